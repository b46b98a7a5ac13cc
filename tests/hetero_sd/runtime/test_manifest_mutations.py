"""Every field of a manifest, changed: one line and exit code 2, or the tokens of the intact bundle; nothing else."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_places import JsonPath, at, places

from hetero_sd.cli import main
from hetero_sd.compile import compile as compile_module
from hetero_sd.runtime.file_hashes import hash_file
from tests.support.host_with_gpu import host_with_gpu

ROOT = Path(__file__).resolve().parents[3]
HUGE = 1 << 40
OTHER_TYPES = (None, True, 7, -0.5, "x", [], {}, [1, "x"], {"x": 1}, "\ud800", 1e308)
PROMPTS = [{"token_ids": [1, *range(3, 43)]}, {"prompt": "Once upon a time"}]  # 41 of 64 rows: the context is reached
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


class Bundle:
    """A copy of a bundle whose manifest is changed, and how it ran intact."""

    def __init__(self, source: Path, folder: Path, worker: Any) -> None:
        self.folder, self.worker = folder / "bundle", worker
        shutil.copytree(source, self.folder)
        self.prompts = folder / "prompts.jsonl"
        self.prompts.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS))
        self.manifest = json.loads((source / "manifest.json").read_text())
        intact = self.run(self.manifest)
        assert intact["code"] == 0, intact
        self.wanted = answers(intact)

    def run(self, manifest: Any, without_facts: bool = False) -> dict[str, Any]:
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        options = ["--prompts", str(self.prompts), "--json", "--max-new-tokens", "60"]
        outcome: dict[str, Any] = self.worker.run(self.folder, *options, without_facts=without_facts)
        return outcome

    def complaint(self, manifest: Any, without_facts: bool = False) -> str:
        """What is wrong with how a manifest ran; empty where it was refused in one line, or gave the same tokens."""
        return complaint(self.run(manifest, without_facts), self.wanted)


def answers(outcome: dict[str, Any]) -> list[tuple[list[int], str]]:
    lines = [json.loads(line) for line in outcome["out"].splitlines()]
    return [(line["token_ids"], line["text"]) for line in lines]


def complaint(outcome: dict[str, Any], wanted: list[tuple[list[int], str]]) -> str:
    lines = outcome["err"].splitlines()
    if outcome["code"] == 2:
        one_line = len(lines) == 1 and lines[0].startswith("run.py: error: ") and not outcome["out"]
        return "" if one_line else f"not one line: {outcome}"
    if outcome["code"] != 0:
        return f"ended with {outcome['code']}: {lines[-3:]}"
    return "" if answers(outcome) == wanted else f"other tokens: {outcome['out'][:200]}"


@pytest.fixture(scope="session")
def mutable(tiny_pair: Path, worker: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(tiny_pair, tmp_path_factory.mktemp("mutable"), worker)


@pytest.fixture(scope="module")
def mutable_split(opencl: Any, worker: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both models on CPU and GPU, with the CPU alone to fall back on."""
    out, exports = tmp_path_factory.mktemp("split") / "bundle", ROOT / "tests/data/exports"
    target, draft = exports / "llama-dynamo-fp32", exports / "llama-drafter-dynamo-fp32"
    options = ["--tokenizer", target, "--board", "host", "--context", "64", "--gamma", "1", "--place", "gpu:ffn"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "load_board", lambda name, measure: host_with_gpu())
        command = ["compile", target / "model.onnx", "--draft", draft / "model.onnx", *options, "--out", out]
        assert main([*map(str, command)]) == 0
    bundle = Bundle(out, tmp_path_factory.mktemp("mutable_split"), worker)
    assert "runs on the CPU now" not in bundle.run(bundle.manifest)["err"]
    return bundle


def variants(value: Any) -> list[Any]:
    """What a value is changed to: other numbers of its type, other orders, other types."""
    if type(value) is int:
        near = [value + 1, value - 1, 2 * value, value // 2, 0, -1, -value, HUGE, 1 << 70]
    elif isinstance(value, float):
        near = [value * 2, value / 2, 0.0, -value, 1e300, 1]
    elif isinstance(value, str):
        near = [value + "x", value[:-1], "", value[::-1], "../" + value]
    elif isinstance(value, list):
        near = [value[::-1], value[1:], value[:-1], [*value, *value[-1:]], [*value[1:], *value[:1]], [value]]
    elif isinstance(value, dict):
        keys = list(value)
        near = [{**value, a: value[b], b: value[a]} for a, b in itertools.pairwise(keys)]
        near += [{**value, keys[0]: value[keys[-1]]}] if keys else []
    else:
        near = [not value]
    return [v for v in [*near, *OTHER_TYPES] if type(v) is not type(value) or v != value]


def changed(manifest: Any, path: JsonPath, new: Any = None, remove: bool = False) -> Any:
    """A copy with one place changed or removed."""
    out = copy.deepcopy(manifest)
    table = out
    for key in path[:-1]:
        table = table[key]
    if remove:
        del table[path[-1]]
    else:
        table[path[-1]] = new
    return out


def draw(manifest: Any, path: JsonPath, choose: Callable[[int], int]) -> tuple[str, Any]:
    """One of the mutations of a place, and its description."""
    value = at(manifest, path)
    options = variants(value)
    which = choose(len(options) + 1)
    if which == len(options):
        return f"{path} removed", changed(manifest, path, remove=True)
    return f"{path}: {str(value)[:60]} -> {str(options[which])[:60]}", changed(manifest, path, options[which])


def weighted(manifest: Any) -> list[JsonPath]:
    """All places; those outside the board's description and the plan's prices count five times."""
    all_places = list(places(manifest))
    dull = {("board",), ("plan", "variants"), ("plan", "memory"), ("plan", "prediction")}
    return all_places + 4 * [p for p in all_places if p[:1] not in dull and p[:2] not in dull]


@pytest.mark.slow
def test_any_change_is_refused_or_harmless(mutable: Bundle) -> None:
    _mutate(mutable, 40)


@pytest.mark.deep
def test_500_changes_are_refused_or_harmless(mutable: Bundle) -> None:
    _mutate(mutable, 500)


@pytest.mark.deep
def test_changes_of_a_bundle_for_two_processors_are_refused_or_harmless(mutable_split: Bundle) -> None:
    _mutate(mutable_split, 200)


def _mutate(mutable: Bundle, examples: int) -> None:
    refused = []

    @settings(SETTINGS, max_examples=examples)
    @given(path=st.sampled_from(weighted(mutable.manifest)), seed=st.integers(0, 10**6))
    def one(path: JsonPath, seed: int) -> None:
        what, manifest = draw(mutable.manifest, path, random.Random(seed).randrange)
        outcome = mutable.run(manifest)
        assert complaint(outcome, mutable.wanted) == "", what
        refused.append(outcome["code"] == 2)

    one()
    assert 0.2 < sum(refused) / len(refused) < 1


SIZES = ("context", "vocab", "prefill_width", "layers")


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.slow
def test_every_size_is_compared_with_what_was_compiled(mutable: Bundle, role: str) -> None:
    """Also where the plan and all other numbers are changed with it, so that the manifest agrees with itself."""
    for key in SIZES:
        value = mutable.manifest["models"][role][key]
        for new in (value + 1, value * 2, max(1, value // 2)):
            if new != value:
                assert refused(mutable, changed(mutable.manifest, ("models", role, key), new)), (key, new)
    larger = copy.deepcopy(mutable.manifest)
    larger.pop("plan")  # it states the context, too
    model = larger["models"][role]
    model["context"] = 4096
    model["caches"]["value_shape"][2] = 4096
    model["caches"]["key_shape"]["cpu"][2] *= 64
    assert f"models.{role}.caches.key_shape" in refused(mutable, larger)
    fewer = copy.deepcopy(larger)
    fewer["models"][role]["caches"] = mutable.manifest["models"][role]["caches"]
    assert "does not hold a context of 4096" in refused(mutable, fewer)


def refused(mutable: Bundle, manifest: Any) -> str:
    outcome = mutable.run(manifest)
    assert complaint(outcome, mutable.wanted) == ""
    assert outcome["code"] == 2, outcome
    return str(outcome["err"])


def test_changes_that_only_the_libraries_know_of(mutable: Bundle) -> None:
    """The negative control: without the libraries' facts these give other tokens, and the test above would say so."""
    manifest = mutable.manifest
    params = manifest["models"]["target"]["chain"][0]["params"]
    norms = [i for i, name in enumerate(params) if "input_layernorm" in name]
    swapped = copy.deepcopy(manifest)
    here = swapped["models"]["target"]["chain"][0]["params"]
    here[norms[0]], here[norms[1]] = here[norms[1]], here[norms[0]]
    ends = changed(manifest, ("tokenizer", "eos_ids"), [mutable.wanted[0][0][2]])
    for mutant in (swapped, ends):
        assert "was compiled with" in refused(mutable, mutant)
        assert mutable.complaint(mutant, without_facts=True).startswith("other tokens")
    assert mutable.complaint(manifest, without_facts=True) == ""


def test_what_counts_as_a_complaint() -> None:
    line, out = "run.py: error: no\n", '{"token_ids": [1], "text": "a"}\n'
    wanted = [([1], "a")]
    assert complaint({"code": 2, "out": "", "err": line}, wanted) == ""
    assert complaint({"code": 0, "out": out, "err": ""}, wanted) == ""
    for code, printed, err in (
        (2, "", line + line),
        (2, out, line),
        (2, "", "Traceback"),
        (1, "", "Traceback"),
        (-11, "", ""),
        (3, "", line),
        (0, "", ""),
        (0, out.replace("1", "2"), ""),
    ):
        assert complaint({"code": code, "out": printed, "err": err}, wanted), (code, printed, err)


def test_a_library_that_is_cut_off_gets_one_line(mutable: Bundle) -> None:
    """With its new size and hash in the manifest, so that only the ELF file itself shows it."""
    library = mutable.folder / "lib" / "target_cpu.so"
    whole = library.read_bytes()
    rng = random.Random(0)
    contents = [whole[:n] for n in (0, 1, 63, 64, 4096, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(6)))]
    machine = 183 if whole[18:20] == (62).to_bytes(2, "little") else 62
    contents += [b"no library" * 100, whole[:18] + machine.to_bytes(2, "little") + whole[20:]]
    try:
        for data in contents:
            library.write_bytes(data)
            facts = {"bytes": len(data), "sha256": hash_file(library)}
            message = refused(mutable, changed(mutable.manifest, ("files", "lib/target_cpu.so"), facts))
            assert "target_cpu.so" in message
    finally:
        library.write_bytes(whole)
    assert mutable.complaint(mutable.manifest) == ""


def test_a_library_without_our_functions_gets_one_line(mutable: Bundle) -> None:
    import tvm_ffi

    library = mutable.folder / "lib" / "target_cpu.so"
    whole = library.read_bytes()
    (other,) = list(Path(tvm_ffi.__file__).parent.glob("lib/libtvm_ffi.so"))
    try:
        shutil.copyfile(other, library)
        facts = {"bytes": library.stat().st_size, "sha256": hash_file(library)}
        assert "has no kernels of ours" in refused(
            mutable, changed(mutable.manifest, ("files", "lib/target_cpu.so"), facts)
        )
    finally:
        library.write_bytes(whole)


CHECKED_BY_TVM = """
import os, sys
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
import tvm
from pathlib import Path
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import CompiledModel
model = CompiledModel("target", Bundle(Path(sys.argv[1])))
(segment,) = model._chain._segments
ids, fixed = model._steps._inputs[1][1], segment.fixed
step = segment.entries["step_1"]
step(ids, 0, *fixed)
refused = accepted = 0
for i, given in enumerate(fixed):
    shape, dtype = tuple(given.shape), str(given.dtype)
    longer, shorter = (*shape[:-1], shape[-1] + 1), (*shape[:-1], shape[-1] - 1)
    for wrong in ((longer, dtype), (shorter, dtype), ((1, *shape), dtype), (shape, "float16")):
        try:
            step(ids, 0, *fixed[:i], tvm.runtime.empty(*wrong), *fixed[i + 1 :])
            accepted += 1
        except Exception as error:
            refused += "expected" in str(error)
print(refused == 4 * len(fixed), accepted)
for arguments in ([ids, 0, *fixed[:-1]], [ids, *fixed], [ids, 0, *fixed, fixed[-1]]):
    try:
        step(*arguments)
    except Exception:
        print("number")
"""


def test_kernels_check_what_they_are_given(tiny_pair: Path) -> None:
    """The second line of defence: a cache or weight of another type, shape or number never reaches a kernel."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKED_BY_TVM, str(tiny_pair)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    expected = ["True 0", "number", "number", "number"]
    assert done.stdout.splitlines() == expected, done.stderr
