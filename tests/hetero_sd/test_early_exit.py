"""`--draft early-exit:K` from the command line to the text: compiled, run every way, measured, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hetero_sd
import hetero_sd.compile.compile as compile_module
from costmodel.format import FLOAT
from costmodel.schema.manifest import Manifest
from costmodel.schema.record import SchemaError
from hetero_sd.acceptance import AcceptanceRequest, measure_acceptance
from hetero_sd.cli import main
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.inputs import pair_specs
from hetero_sd.reference import EarlyExitReference
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import CompiledModel, load_models
from hetero_sd.runtime.model.segments import load_module
from hetero_sd.runtime.model.shared_rows import SharedRows
from hetero_sd.runtime.model.thread_pool import LIBRARY, ThreadPool
from passes.analysis.count_work import count_work
from passes.onnx import canonicalise
from passes.onnx.testing import write_word_tokenizer
from passes.synthetic import LlamaShape, write_early_exit_pair
from tests.support.host_with_gpu import host_with_gpu

TARGET = Path(__file__).resolve().parents[1] / "data" / "exports" / "llama-dynamo-fp32"  # of two layers
NEW_TOKENS = 90  # which reach the context of 96, so that the last rounds are short ones
PROMPTS = ("The quick brown fox", "Once upon a time there was", "x")
SHAPE, EXIT = LlamaShape(layers=4, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=64), 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of two layers whose first one drafts."""
    out = tmp_path_factory.mktemp("early") / "bundle"
    given = ["--tokenizer", str(TARGET), "--board", "host", "--context", "96", "--gamma", "4", "--out", str(out)]
    assert main(["compile", str(TARGET / "model.onnx"), "--draft", "early-exit:1", *given]) == 0
    return out


@pytest.fixture(scope="module")
def compiled_for_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The same for a board with a GPU, placed by a rule; each is compiled once."""
    folder = tmp_path_factory.mktemp("placed")

    def compiled(place: str) -> Path:
        out = folder / place.replace(":", "_") / "bundle"
        given = ["--tokenizer", str(TARGET), "--board", "host", "--context", "96", "--gamma", "4", "--place", place]
        if not out.exists():
            command = ["compile", str(TARGET / "model.onnx"), "--draft", "early-exit:1", *given, "--out", str(out)]
            assert main(command) == 0
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "load_board", lambda name, measure: host_with_gpu())
        patch.setenv("HSD_OPENCL_CACHE", str(folder / "cache"))
        yield compiled


def answered(bundle: Path, **settings: Any) -> tuple[list[list[int]], int, int]:
    """The answers' tokens, and how many were drafted and accepted."""
    tokens, drafted, accepted = [], 0, 0
    with hetero_sd.load(bundle, **settings) as session:
        for prompt in PROMPTS:
            answer = session.generate(prompt, max_new_tokens=NEW_TOKENS)
            answer.read()
            tokens.append(answer.token_ids)
            drafted, accepted = drafted + answer.stats["drafted"], accepted + answer.stats["accepted"]
    return tokens, drafted, accepted


def test_the_text_is_the_targets_own(bundle: Path) -> None:
    alone, drafted, _ = answered(bundle, mode="off")
    assert drafted == 0
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)
    for gamma in (1, 4, 7):
        tokens, drafted, accepted = answered(bundle, mode="sequential", gamma=gamma)
        assert tokens == alone
        assert 0 < accepted < drafted  # so caches were rolled back
    assert answered(bundle, mode="sequential", gamma=4, drafter="model+ngram")[0] == alone
    assert answered(bundle, mode="overlapped", gamma=2, least=2)[0] == alone
    assert answered(bundle)[0] == alone


def test_it_reads_no_prompt_but_where_both_work_at_once(bundle: Path) -> None:
    prompt = list(range(5, 75))
    for mode, gamma in (("sequential", 4), ("overlapped", 2)):
        with hetero_sd.load(bundle, mode=mode, gamma=gamma) as session:
            answer = session.generate(prompt, max_new_tokens=8)
            answer.read()
            assert isinstance(session.models.draft, SharedRows) == (mode == "sequential")
            assert answer.trace.draft_prefill_s == 0
    loaded = load_models(Bundle(bundle))
    target, draft = loaded.target, loaded.draft
    assert isinstance(target, CompiledModel)
    assert isinstance(draft, CompiledModel)
    own = draft.forward(prompt, 0)[-1]
    target.forward([3] * len(prompt), 0)
    assert draft.share_rows(target)
    assert not np.allclose(draft.forward(prompt[-1:], len(prompt) - 1)[0], own)  # the target has read another text
    target.forward(prompt, 0)
    assert np.array_equal(draft.forward(prompt[-1:], len(prompt) - 1)[0], own)
    assert draft.share_rows(None)
    target.forward([3] * len(prompt), 0)
    assert np.array_equal(draft.forward(prompt[-1:], len(prompt) - 1)[0], own)
    assert not draft.share_rows(load_models(Bundle(bundle)).target)  # weights that are mapped again


def test_weights_are_stored_and_mapped_once(bundle: Path) -> None:
    opened = Bundle(bundle)
    target, draft = opened.models["target"], opened.models["draft"]
    assert (target.layers, draft.layers) == (2, 1)
    stored = [name for name in opened.manifest.files if name.startswith("weights/")]
    assert stored == [target.weights] == [draft.weights]
    used = {p for segment in draft.chain for p in segment.params}
    assert used < {p for segment in target.chain for p in segment.params}
    parameters = count_work(canonicalise(TARGET / "model.onnx", 96), "target").parameters
    assert 4 * parameters < opened.manifest.files[target.weights].bytes < 4.4 * parameters  # with tables of positions
    loaded = load_models(opened)
    assert loaded.draft is not None
    assert loaded.draft.weights is loaded.target.weights  # type: ignore[attr-defined]


def test_it_has_entry_points_of_its_own_in_the_targets_library(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Bundle(bundle)
    target, draft = opened.models["target"], opened.models["draft"]
    assert draft.early_exit
    assert not target.early_exit
    assert draft.libraries == target.libraries == {"cpu": "lib/target_cpu.so"}
    libraries = [name for name in opened.manifest.files if name.startswith("lib/")]
    assert sorted(libraries) == ["lib/target_cpu.so", "lib/thread_pool.so"]
    loaded = load_models(opened)
    assert isinstance(loaded.draft, CompiledModel)
    (segment,) = loaded.draft._chain._segments
    machine = load_machine(bundle / "lib" / "target_cpu.so")
    for n in draft.widths:
        assert segment.facts.prefix + f"step_{n}" == f"exit_1_step_{n}"
        assert machine[f"exit_1_step_{n}"] is not None
    for absent in ("exit_2_step_1", "exit_1_step_9"):
        with pytest.raises(Exception, match=absent):
            machine[absent]
    assert main(["inspect", str(bundle)]) == 0
    shown = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert [text for name, text in shown if name == "calls"] == [
        "step_<n> of lib/target_cpu.so",
        "exit_1_step_<n> of lib/target_cpu.so",
    ]


def load_machine(library: Path) -> Any:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    return VirtualMachine(load_module(str(library)), tvm.cpu())


def test_a_manifest_that_calls_another_model_an_early_exit_is_refused(bundle: Path) -> None:
    def changed(**facts: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text("utf-8"))
        found["models"]["draft"] |= facts
        return found

    Manifest.from_json(changed())
    for facts, message in (
        ({"early_exit": False}, "a segment has entry points exit_1_step_<n>, not step_<n>"),
        ({"libraries": {"cpu": "lib/thread_pool.so"}}, "an early exit, and not of models.target"),
        ({"weights": "lib/thread_pool.so"}, "an early exit, and not of models.target"),
    ):
        with pytest.raises(SchemaError, match=message):
            Manifest.from_json(changed(**facts))


def test_each_launches_its_regions_in_its_own_threads(bundle: Path) -> None:
    """Though one library has both: what one runs, the other's pool does not count."""
    loaded = load_models(Bundle(bundle))
    target, draft = loaded.target, loaded.draft
    assert isinstance(target, CompiledModel)
    assert isinstance(draft, CompiledModel)
    pools = [ThreadPool(bundle / LIBRARY, [], 2) for _ in range(2)]  # of two threads, however many CPUs there are
    for model, pool in zip((target, draft), pools, strict=True):
        if model.pool is not None:
            model.pool.close()
        model.pool, model.threads, model.prompt_threads = pool, 2, 2
        pool.attach(bundle / "lib" / "target_cpu.so", shared=True)

    def regions() -> list[int]:
        return [pool.counts()["regions"] for pool in pools]

    before = regions()
    target.forward([5, 6], 0)
    between = regions()
    draft.forward([5, 6], 0)
    after = regions()
    assert between[0] > before[0]
    assert between[1] == before[1]
    assert after[0] == between[0]
    assert after[1] > between[1]


def test_the_library_computes_the_first_layer(bundle: Path) -> None:
    models, ids = load_models(Bundle(bundle)), [5, 6, 7, 8, 60, 2]
    assert models.draft is not None
    found = models.draft.forward(ids, 0)
    np.testing.assert_allclose(
        found, EarlyExitReference(TARGET / "model.onnx", EarlyExit(1), 96).forward(ids), atol=1e-4
    )
    assert np.abs(found - models.target.forward(ids, 0)).max() > 0.1


@pytest.mark.parametrize(
    ("place", "exit_place"),
    [
        pytest.param("gpu:ffn", "gpu:ffn", marks=pytest.mark.slow),
        pytest.param("gpu", "gpu", marks=pytest.mark.deep),
        pytest.param("target=gpu:1-head", "gpu:head", marks=pytest.mark.deep),
        pytest.param("gpu:1", "cpu", marks=pytest.mark.deep),
    ],
)
def test_it_follows_the_target(
    released: None, bundle: Path, compiled_for_a_gpu: Callable[[str], Path], place: str, exit_place: str
) -> None:
    """Beside the target on a GPU or on both, in its caches: as much is accepted as on the CPU, the text is the same."""
    out = compiled_for_a_gpu(place)
    assert Bundle(out).models["draft"].place.text == exit_place
    alone = answered(bundle, mode="off")[0]
    assert answered(out, mode="off")[0] == alone
    assert answered(out, mode="sequential", gamma=4) == answered(bundle, mode="sequential", gamma=4)
    loaded = load_models(Bundle(out))
    target, draft = loaded.target, loaded.draft
    assert isinstance(target, CompiledModel)
    assert isinstance(draft, CompiledModel)
    tensors = [{id(t) for s in model._chain._segments for t in s.fixed} for model in (target, draft)]
    assert len(tensors[0] & tensors[1]) == len(tensors[1]) - 2  # weights once on each processor, caches of its layer
    fed = list(range(5, 40))
    target.forward(fed, 0)
    draft.forward([3] * len(fed), 0)
    own = draft.forward(fed[-1:], len(fed) - 1)
    assert draft.share_rows(target)
    shared = draft.forward(fed[-1:], len(fed) - 1)
    assert draft.share_rows(None)
    assert not np.allclose(shared, own)  # it has read another text itself
    draft.forward(fed, 0)
    assert np.array_equal(draft.forward(fed[-1:], len(fed) - 1), shared)


@pytest.mark.slow
def test_it_goes_to_the_cpu_with_the_target(
    released: None, bundle: Path, compiled_for_a_gpu: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A step on the GPU fails: the target's takes both to the CPU, the drafter's ends the drafts of this text."""
    from targets.opencl import interface as opencl

    out = compiled_for_a_gpu("gpu:ffn")
    alone = answered(bundle, mode="off")[0]
    for role in ("target", "draft"):
        lost, found = list[str | None](), list[list[int]]()
        with hetero_sd.load(out, mode="sequential", gamma=4) as session:
            models = {"target": session.models.target, "draft": session.models.draft}
            step = models[role].submit  # type: ignore[union-attr]

            def fails(*args: Any, step: Any = step, **more: Any) -> Any:
                opencl.inject_failure("*", 1, "CL_OUT_OF_RESOURCES")
                try:
                    return step(*args, **more)
                finally:
                    opencl.inject_failure("*", 0, "CL_OUT_OF_RESOURCES")

            for prompt in PROMPTS:
                answer = session.generate(prompt, max_new_tokens=NEW_TOKENS)
                tokens = iter(answer)
                for _ in range(7):
                    next(tokens)
                if not found:
                    models[role].submit = fails  # type: ignore[union-attr, method-assign]
                    rounds = len(answer.trace.rounds)
                    while len(answer.trace.rounds) == rounds:
                        next(tokens)
                    models[role].submit = step  # type: ignore[union-attr, method-assign]
                answer.read()
                found.append(answer.token_ids)
                lost.append(answer.trace.lost_drafter)
                assert answer.stats["drafted"] > 0
        assert found == alone
        assert [why is not None for why in lost] == [role == "draft", False, False]
        assert capsys.readouterr().err.count("it runs on the CPU now") == (2 if role == "target" else 0)


@pytest.mark.deep
@pytest.mark.parametrize(
    "name", ["exports/qwen3-genai-int4", "families/gemma3-optimum-fp32", "families/cohere2-dynamo-fp32"]
)
def test_other_families_pass_the_audit(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Int4 weights with int8 activations, sliding windows, norms that two parts share."""
    export, out = TARGET.parents[1] / name, tmp_path / "bundle"
    tokenizer = export
    if not (export / "tokenizer.json").exists():
        tokenizer = tmp_path
        write_word_tokenizer(tokenizer, 64)
    given = ["--draft", "early-exit:1", "--tokenizer", str(tokenizer), "--board", "host", "--context", "64"]
    assert main(["compile", str(export / "model.onnx"), *given, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["audit", str(out), "--json", "--max-new-tokens", "24"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"]
    assert {way["drafter"] for way in result["ways"]} == {"model", "ngram", "model+ngram"}
    assert sum(way["drafted"] for way in result["ways"] if way["drafter"] == "model" and way["least"] is None) > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, its first layers as an export of their own, and a tokenizer."""
    folder = tmp_path_factory.mktemp("pair")
    write_early_exit_pair(folder / "model.onnx", folder / "short.onnx", SHAPE, EXIT, 0.2, "float16")
    write_word_tokenizer(folder, SHAPE.vocab)
    return folder


def acceptance(folder: Path, draft: Path | EarlyExit, **more: Any) -> Any:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"token_ids": [3 + i, 40, 17]}) for i in range(3)))
    asked = AcceptanceRequest(folder / "model.onnx", draft, prompts, max_new_tokens=24, gamma=3, eos=(63,), **more)
    return measure_acceptance(asked, quiet=True).to_json()


def test_acceptance_is_that_of_an_export_of_these_layers(folder: Path) -> None:
    found, exported = acceptance(folder, EarlyExit(EXIT)), acceptance(folder, folder / "short.onnx")
    assert (found.pop("draft"), exported.pop("draft")) == ("early-exit:2", "short.onnx")
    assert found == exported
    assert 0 < found["greedy"]["alpha"] < 1
    assert acceptance(folder, EarlyExit(1), temperature=0.0)["greedy"] != found["greedy"]


def test_quantised_weights_are_those_of_the_target(folder: Path) -> None:
    found = acceptance(folder, EarlyExit(EXIT), quantise="int4", quantise_head="int4", temperature=0.0)
    exported = acceptance(folder, folder / "short.onnx", quantise="int4", quantise_head="int4", temperature=0.0)
    assert found["greedy"] == exported["greedy"]
    assert found["greedy"] != acceptance(folder, EarlyExit(EXIT), temperature=0.0)["greedy"]


def test_what_it_was_compiled_from_is_found_again(folder: Path) -> None:
    both = {"target": FLOAT, "draft": FLOAT}
    specs = pair_specs(folder / "model.onnx", EarlyExit(EXIT), 96, both)
    assert specs["draft"].operators == pair_specs(folder / "short.onnx", None, 96, both)["target"].operators


@pytest.mark.parametrize("draft", [["--draft", "early-exit:2"], ["--draft", str(TARGET / "model.onnx")], []])
def test_a_bundle_is_calibrated_with_its_own_exit(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], draft: list[str]
) -> None:
    out, target = tmp_path / "board.toml", str(TARGET / "model.onnx")
    assert main(["calibrate", str(bundle), "--board", "host", "--target", target, *draft, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.endswith("give what it was compiled from with --target TARGET.onnx --draft early-exit:1\n")
    assert said.count("\n") == 1
    assert not out.exists()


def test_predict_writes_the_command_that_compiles_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(folder / "model.onnx")
    assert main(["predict", target, "--draft", "early-exit:2", "--board", "rpi5", "--alpha", "1", "--gamma", "2"]) == 0
    assert f"compile {target} --draft early-exit:2 --gamma 2 --alpha 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--draft", "early-exit:4"], "an early exit after layer 4: model.onnx has 4 layers; give 1 to 3"),
        (["--draft", "early-exit:0"], "'early-exit:0' names no layer: give early-exit:K"),
        (["--draft", "early-exit:two"], "'early-exit:two' names no layer"),
        (["--draft", "early-exit:1", "--draft", "d.onnx"], "two drafters, early-exit:1 and d.onnx: give one"),
        (["--draft", "early-exit:1", "--quantise-draft", "int4"], "early-exit:1 reads the target's weights"),
        (
            ["--draft", "early-exit:1", "--place", "draft=gpu"],
            "--place draft=gpu: an early exit runs where the target's layers do",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "bundle"
    given = ["--board", "rk3588", "--context", "96", "--out", str(out)]
    assert main(["compile", str(folder / "model.onnx"), *given, *more]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert message in err[-1]
    assert sum("error" in line for line in err) == 1
    assert not out.exists()


def test_names() -> None:
    assert EarlyExit.named("draft/model.onnx") is None
    assert EarlyExit.named("early-exit:12") == EarlyExit(12)
    assert str(EarlyExit(12)) == "early-exit:12"
    for wrong in ("early-exit", "early-exit:", "early-exit:-1", "early-exit:" + 7 * "1"):
        with pytest.raises(ValueError, match="names no layer"):
            EarlyExit.named(wrong)
