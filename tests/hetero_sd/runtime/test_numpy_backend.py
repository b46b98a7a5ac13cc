"""A third kind of processor, tests/support/numpy_backend.py: registered, it compiles, runs and fails as the others do.

So nothing outside a backend's own folder and its line in the registry needs to know it.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
import numpy_backend
import numpy_kernels
import pytest

from costmodel.place import Place, ReasonedPlace
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.manifest import Bundle, write_manifest
from targets import backend
from targets.boards import load_board
from targets.errors import UserError

EXPORTS = Path(__file__).resolve().parents[3] / "tests/data/exports"
PAIR = {"target": "llama-dynamo-fp32", "draft": "llama-drafter-dynamo-fp32"}
INT4 = {"target": "qwen2-genai-int4"}  # with biases, and q, k, v in one matrix multiplication
EVERY = {"add_rms_norm", "argmax", "attention_cached", "rms_norm", "rope", "silu_mul", "take_row"}
KERNELS = {  # of the target
    PAIR["target"]: EVERY | {"embedding", "linear"},
    INT4["target"]: EVERY | {"add", "embedding_nbits", "linear_nbits", "take_columns"},
}
CONTEXT, PROMPT, NEW = 48, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], 20


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend.REGISTRY, "test", numpy_backend.WHERE)
        yield


def build(folder: Path, places: dict[str, str], fallback: bool = False, exports: dict[str, str] = PAIR) -> Path:
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from passes.onnx import canonicalise

    core, models = load_board("host", measure=False).clusters[0].core, {}
    for role, place in places.items():
        decoder = canonicalise(EXPORTS / exports[role] / "model.onnx", CONTEXT)
        sizes = Sizes(CONTEXT, (1, 4) if role == "target" else (1, 2), 8)
        where = ReasonedPlace(Place.parse(place))
        models[role] = build_model(ModelRequest(role, decoder, core, where, sizes, fallback=fallback), folder).facts
    write_manifest(folder, models)
    return folder


def load(folder: Path, role: str, notes: list[str] | None = None) -> Any:
    from hetero_sd.runtime.model.model import CompiledModel

    return CompiledModel(role, Bundle(folder), note=notes.append if notes is not None else None)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair on the CPU."""
    return build(tmp_path_factory.mktemp("cpu") / "bundle", {"target": "cpu", "draft": "cpu"})


def greedy(model: Any) -> list[int]:
    return list(generate(model, PROMPT, Request(max_new_tokens=NEW), Trace()))


def rows(model: Any) -> Any:
    """Logits [n, vocab] of the prompt, fed in two parts."""
    return np.concatenate([model.forward(PROMPT[:7], 0), model.forward(PROMPT[7:], 7)])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["test", "test:0-0", "test:ffn", "test:1-head"])
def test_the_pair_speaks_as_on_the_cpu(cpu: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "bundle", {"target": place, "draft": "test"})
    target, draft, on_cpu = load(folder, "target"), load(folder, "draft"), load(cpu, "target")
    assert (target.processor, draft.processor) == ("test" if place == "test" else "mixed", "test")
    assert (target.thread_facts is None) == (place == "test")
    numpy_backend.CALLS.clear()
    expected = greedy(on_cpu)
    assert not numpy_backend.CALLS
    assert greedy(target) == expected
    assert numpy_backend.CALLS["linear"] > NEW
    assert place != "test" or set(numpy_backend.CALLS) == KERNELS[PAIR["target"]]
    trace, request = Trace(), Request(max_new_tokens=NEW)
    drafter = ModelDrafter(draft, target.vocab, request.sampling)
    assert list(speculate(target, drafter, PROMPT, request, FixedGamma(3), trace)) == expected
    assert any(r.accepted for r in trace.rounds)
    logits = rows(on_cpu)
    assert np.abs(rows(target) - logits).max() < 1e-4 * np.abs(logits).max()

    def wrong(x: Any, w: Any, y: Any, columns: int) -> None:  # the negative control: the numbers are numpy's
        right(x, w, y, columns)
        y[:] = y[..., ::-1].copy()

    right = numpy_kernels.linear
    monkeypatch.setattr(numpy_kernels, "linear", wrong)
    assert np.abs(rows(target) - logits).max() > 0.1 * np.abs(logits).max()


@pytest.mark.slow
def test_an_int4_model_speaks_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, target = (load(build(tmp_path / p, {"target": p}, exports=INT4), "target") for p in ("cpu", "test"))
    numpy_backend.CALLS.clear()
    assert greedy(target) == greedy(on_cpu)
    assert set(numpy_backend.CALLS) == KERNELS[INT4["target"]]
    logits = rows(on_cpu)
    assert np.abs(rows(target) - logits).max() < 1e-4 * np.abs(logits).max()
    for name in ("linear_nbits", "embedding_nbits"):  # the negative controls: the numbers are numpy's
        right = getattr(numpy_kernels, name)

        def wrong(*arguments: Any, right: Any = right) -> None:
            right(*arguments)
            y = [a for a in arguments if isinstance(a, np.ndarray)][-1]
            y[:] = y[..., ::-1].copy()

        with monkeypatch.context() as patch:
            patch.setattr(numpy_kernels, name, wrong)
            assert np.abs(rows(target) - logits).max() > 0.1 * np.abs(logits).max()


def test_every_kernel_runs_in_a_test() -> None:
    kernels = {name for name, body in vars(numpy_kernels).items() if isfunction(body) and not name.startswith("_")}
    assert kernels == set().union(*KERNELS.values())


@pytest.mark.slow
def test_the_cpu_takes_over(cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    model = load(build(tmp_path / "bundle", {"target": "test:ffn"}, fallback=True), "target", notes)
    expected, stream = greedy(load(cpu, "target")), generate(model, PROMPT, Request(max_new_tokens=NEW), Trace())
    tokens = [next(stream) for _ in range(5)]

    def broken(*_: Any) -> None:
        raise ValueError("out of order")

    monkeypatch.setattr(numpy_kernels, "silu_mul", broken)
    tokens += stream
    assert tokens == expected
    assert model.processor == "cpu"
    (note,) = notes
    assert note.startswith("target: the TEST failed: ")
    assert note.endswith("out of order; it runs on the CPU now")


@pytest.mark.slow
def test_without_a_device_and_without_the_cpu_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "bundle", {"target": "test"})

    def absent(self: Any, runtime: Any) -> None:
        raise backend.ProcessorFailed("it was taken out")

    monkeypatch.setattr(numpy_backend.NumpyBackend, "open", absent)
    with pytest.raises(UserError, match="this bundle runs on the TEST: it was taken out; "):
        load(folder, "target")
