"""--place: every rule is read or refused in one line; models on different processors give the target's own text."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy_backend
import pytest

from costmodel.place import Part, Place
from hetero_sd.cli import main
from hetero_sd.compile import compile as compile_module
from hetero_sd.compile.place import RULES, place_models, place_text
from targets import backend
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from tests.support.host_with_gpu import host_with_gpu

ROOT = Path(__file__).resolve().parents[3]
EXPORTS = ROOT / "tests" / "data" / "exports"
LLAMA, DRAFT = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32"
STATUSES = ["CL_OUT_OF_RESOURCES", "CL_OUT_OF_HOST_MEMORY", "CL_INVALID_COMMAND_QUEUE"]
PROMPTS = [[1, 17, 30, 4, 9], [2, 5], [1, *list(range(3, 43))]]


def test_the_text_of_the_rules_names_every_form_that_is_read() -> None:
    forms = {"", ":FIRST-LAST", ":ffn", ":attention"}
    named = {f"{name}{form}" for name in ("cpu", "gpu") for form in forms}
    assert named - set(re.findall(r"[a-z]+(?::[\w-]+)?", RULES)) == set()
    for rule in named:
        assert Place.parse(rule.replace("FIRST", "0").replace("LAST", "head")).whole == (":" not in rule)


def test_rules() -> None:
    with_gpu, without = load_board("rk3566"), load_board("rpi5")

    def read(rule: str, board: Board, draft: bool) -> dict[str, str]:
        return {role: place.text for role, place in place_models(rule, board, draft).items()}

    assert read("cpu", without, True) == {"target": "cpu", "draft": "cpu"}
    assert read("gpu", with_gpu, False) == {"target": "gpu"}
    assert read("target=gpu,draft=cpu", with_gpu, True) == {"target": "gpu", "draft": "cpu"}
    assert read("draft=gpu", with_gpu, True) == {"target": "cpu", "draft": "gpu"}
    assert read("gpu:ffn", with_gpu, True) == {"target": "gpu:ffn", "draft": "gpu:ffn"}
    assert read("target=gpu:4-head", with_gpu, True) == {"target": "gpu:4-head", "draft": "cpu"}
    assert read("gpu:3", with_gpu, False) == {"target": "gpu:3"}
    for rule in ("gpu:3", "target=gpu:3"):  # an early exit goes where its layers are
        assert place_models(rule, with_gpu, True, early_exit=True) == {"target": Place.parse("gpu:3")}
    with pytest.raises(UserError, match="an early exit runs where the target's layers do"):
        place_models("target=gpu,draft=cpu", with_gpu, True, early_exit=True)


def test_rules_know_every_registered_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    board = load_board("rpi5")
    with pytest.raises(UserError, match="'test' cannot be read"):
        place_models("test", board, True)
    monkeypatch.setitem(backend.REGISTRY, "test", numpy_backend.WHERE)
    placed = place_models("target=test:0-1,draft=test", board, True)
    assert {role: place.text for role, place in placed.items()} == {"target": "test:0-1", "draft": "test"}
    assert placed["target"].processors == ("cpu", "test")
    assert placed["draft"].processors == ("test",)
    assert [placed["target"].of(Part("ffn", i), 4) for i in range(4)] == ["test", "test", "cpu", "cpu"]
    assert place_text(placed["target"], "") == "the TEST (0 to 1), the rest on the CPU"
    assert Place.parse("cpu:0-1").processors == ("cpu", "gpu")  # as before: the rest on the kind registered next


@pytest.mark.parametrize(
    ("rule", "board", "draft", "expected"),
    [
        ("gpu", "rpi5", True, "board rpi5 has no GPU"),
        ("npu", "rk3566", True, "npu"),
        ("target=tpu", "rk3566", True, "cannot be read"),
        ("", "rk3566", True, "cannot be read"),
        ("target=gpu,target=cpu", "rk3566", True, "placed twice"),
        ("draft=gpu", "rk3566", False, "no draft model"),
        ("drafter=gpu", "rk3566", True, "no model 'drafter'"),
        ("gpu:norm", "rk3566", True, "cannot be read"),
        ("gpu:2-", "rk3566", True, "cannot be read"),
        ("gpu:ffn", "rpi5", False, "has no GPU"),
        ("cpu:2-3", "rpi5", False, "has no GPU"),
    ],
)
def test_a_rule_that_cannot_be_followed_gets_one_line(rule: str, board: str, draft: bool, expected: str) -> None:
    with pytest.raises(UserError) as error:
        place_models(rule, load_board(board), draft)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def compiled(
    out: Path, place: str, monkeypatch: pytest.MonkeyPatch, export: Path = LLAMA, draft: bool = True, *options: str
) -> Path:
    monkeypatch.setattr(compile_module, "load_board", lambda name, measure: host_with_gpu())
    args = ["compile", str(export / "model.onnx"), "--tokenizer", str(export), "--board", "host", "--context", "64"]
    args += ["--draft", str(DRAFT / "model.onnx"), "--gamma", "2"] if draft else []
    assert main([*args, "--place", place, "--out", str(out), *options]) == 0
    return out


def run(bundle: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    prompts = bundle.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in PROMPTS))
    command = [sys.executable, str(bundle / "run.py"), "--prompts", str(prompts), "--json", "--max-new-tokens", "20"]
    environment = {**os.environ, "HSD_OPENCL_CACHE": str(bundle.parent / "cache"), **(env or {})}
    environment.pop("PYTHONPATH", None)
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=600, env=environment)


def tokens(done: subprocess.CompletedProcess[str]) -> list[list[int]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["token_ids"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "places",
    [
        pytest.param(["cpu", "target=gpu:1-head"], marks=pytest.mark.slow),
        pytest.param(["cpu", "draft=gpu", "target=gpu,draft=cpu", "gpu"], marks=pytest.mark.deep),
        pytest.param(["cpu", "gpu:ffn", "target=cpu:0,draft=gpu"], marks=pytest.mark.deep),
    ],
    ids=["one split", "whole models", "other splits"],
)
def test_models_on_different_processors_give_the_targets_text(
    opencl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: list[str]
) -> None:
    wanted = None
    for i, place in enumerate(places):
        bundle = compiled(tmp_path / str(i), place, monkeypatch)
        manifest = json.loads((bundle / "manifest.json").read_text())
        placed_models = manifest["plan"]["places"]
        assert {r: p["place"] for r, p in placed_models.items()} == {
            r: m["place"] for r, m in manifest["models"].items()
        }
        assert all(f"as given with --place {place}" in placed["reason"] for placed in placed_models.values())
        alone, speculative = tokens(run(bundle, "--mode", "target-only")), tokens(run(bundle))
        wanted = wanted or alone
        assert alone == wanted, place
        assert speculative == wanted, place
    assert len({tuple(ids) for ids in wanted or []}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["gpu", pytest.param("cpu:ffn", marks=pytest.mark.deep)])
def test_a_gpu_bundle_verifies_and_its_rows_do_not_depend_on_n(
    place: str, released: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.model import load_models
    from hetero_sd.verify import VerifyRequest, verify_bundle

    export = EXPORTS / "qwen2-genai-int4"
    bundle = compiled(tmp_path / "bundle", place, monkeypatch, export, draft=False)
    result = verify_bundle(VerifyRequest(bundle, export / "model.onnx"))
    assert result.passed, result
    other = verify_bundle(VerifyRequest(bundle, EXPORTS / "qwen2-genai-fp32" / "model.onnx"))
    assert not other.passed  # the negative control: unquantised weights are another model
    target = load_models(Bundle(bundle)).target
    ids = PROMPTS[2]
    whole = target.forward(ids, 0)
    one = np.concatenate([target.forward([token], i) for i, token in enumerate(ids)])
    assert np.array_equal(one, whole)
    assert target.extend(ids, 0) == int(whole[-1].argmax())
    assert target.argmax(ids[-3:], len(ids) - 3).tolist() == whole[-3:].argmax(-1).tolist()


@pytest.mark.slow
def test_a_bundle_with_a_cpu_variant_survives_the_gpu(
    opencl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No OpenCL, or OpenCL that fails while generating: the CPU's text, and one line that says so."""
    wanted = tokens(run(compiled(tmp_path / "cpu", "cpu", monkeypatch, draft=False)))
    bundle = compiled(tmp_path / "gpu", "gpu:1-head", monkeypatch, draft=False)
    for env in (
        {"HSD_OPENCL_LIB": str(tmp_path / "nothing.so")},
        {"HSD_OPENCL_FAULT": "clEnqueueNDRangeKernel:300:CL_OUT_OF_RESOURCES"},
    ):
        done = run(bundle, env=env)
        assert tokens(done) == wanted
        (line,) = done.stderr.splitlines()
        assert line.startswith("run.py: note: target: ")
        assert line.endswith("it runs on the CPU now")
        assert done.stderr.count("CL_OUT_OF_RESOURCES") == ("HSD_OPENCL_FAULT" in env)


@pytest.mark.deep
def test_100_random_failures_change_no_token(released: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any OpenCL call may fail at any time: the text is the CPU's, whole or split, with a drafter on the GPU too."""
    from hetero_sd.runtime.decode.drafters.model import ModelDrafter
    from hetero_sd.runtime.decode.generate import Request
    from hetero_sd.runtime.decode.policy import FixedGamma
    from hetero_sd.runtime.decode.sampling import Sampling
    from hetero_sd.runtime.decode.speculate import speculate
    from hetero_sd.runtime.decode.trace import Trace
    from hetero_sd.runtime.manifest import Bundle
    from hetero_sd.runtime.model.model import CompiledModel
    from targets.opencl import interface as opencl

    monkeypatch.setenv("HSD_OPENCL_CACHE", str(tmp_path / "cache"))
    request = Request(16, frozenset(), Sampling(0.0, 0, 1.0, 0))

    def text(bundle: Bundle, fail_at: int, status: str) -> tuple[list[int], int, int]:
        """(tokens, models that the CPU took over, OpenCL calls while generating)."""
        notes: list[str] = []
        target, draft = (CompiledModel(role, bundle, note=notes.append) for role in ("target", "draft"))
        before = opencl.call_count()
        if fail_at:
            opencl.inject_failure("*", fail_at, status)
        try:
            drafter = ModelDrafter(draft, target.vocab, request.sampling)
            found = list(speculate(target, drafter, PROMPTS[2], request, FixedGamma(2), Trace()))
        finally:
            calls = opencl.call_count() - before
            opencl.inject_failure("*", 0, status)
        assert len(notes) == target.on_fallback + draft.on_fallback
        return found, len(notes), calls

    rng, survived = random.Random(0), 0
    for place in ("gpu", "target=gpu:ffn,draft=gpu"):
        bundle = Bundle(compiled(tmp_path / place.replace(":", "_"), place, monkeypatch))
        wanted, notes, calls = text(bundle, 0, STATUSES[0])
        assert notes == 0
        for _ in range(50):
            found, notes, _ = text(bundle, rng.randint(1, calls), rng.choice(STATUSES))
            assert found == wanted
            survived += notes
    assert survived >= 90, "too few of the failures were noticed"


@pytest.mark.slow
def test_without_a_cpu_variant_there_is_one_line(opencl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = compiled(tmp_path / "bundle", "gpu", monkeypatch, LLAMA, False, "--no-cpu-fallback")
    done = run(bundle, env={"HSD_OPENCL_LIB": str(tmp_path / "nothing.so")})
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "OpenCL" in lines[0]
    done = run(bundle, env={"HSD_OPENCL_FAULT": "clEnqueueNDRangeKernel:300:CL_OUT_OF_RESOURCES"})
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "CL_OUT_OF_RESOURCES" in done.stderr
    runtime = next(bundle.rglob("libhetero_sd_opencl.so"))
    data = bytearray(runtime.read_bytes())
    data[100] ^= 1
    runtime.write_bytes(bytes(data))
    done = run(bundle)
    assert done.returncode == 2
    assert "SHA-256" in done.stderr
    assert len(done.stderr.splitlines()) == 1
