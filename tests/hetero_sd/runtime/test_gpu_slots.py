"""Slots of a target on an OpenCL device, whole or split: rows and answers have the bits of each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import run_all

from hetero_sd.cli import main
from hetero_sd.compile import compile as compile_module
from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import CompiledModel
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Row
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.engine import ChoiceEnded, GenerationRequest
from tests.support.host_with_gpu import host_with_gpu

EXPORTS = Path(__file__).resolve().parents[2] / "data" / "exports"
SLOTS = 3
LENGTHS = (50, 3, 20)
# whole, with int8 activations and caches in float16; split, in float32
CASES = (("llama-genai-int4", "gpu", "float16"), ("llama-dynamo-fp32", "gpu:ffn", "float32"))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[1])
def bundle(request: Any, opencl: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export, place, kv = request.param
    out, target = tmp_path_factory.mktemp("slots") / "bundle", EXPORTS / export
    given = ["--board", "host", "--context", "64", "--slots", str(SLOTS), "--place", place, "--kv", kv]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "load_board", lambda name, measure: host_with_gpu())
        models = ["compile", str(target / "model.onnx"), "--tokenizer", str(target)]
        assert main([*models, *given, "--out", str(out)]) == 0
    return out


@pytest.fixture
def model(bundle: Path, released: None) -> tuple[CompiledModel, list[str]]:
    notes: list[str] = []
    return CompiledModel("target", Bundle(bundle), note=notes.append), notes


def texts_of(model: CompiledModel) -> list[list[int]]:
    return [np.random.default_rng(i).integers(0, model.vocab, n).tolist() for i, n in enumerate(LENGTHS)]


def read(model: CompiledModel, texts: list[list[int]]) -> list[tuple[int, int]]:
    """Read all but the last two tokens of each text into its slot; returns the places of those."""
    for slot, text in enumerate(texts):
        model.slot(slot).submit(text[:-2], 0, last=True).result()
    return [(slot, len(text) - back) for back in (2, 1) for slot, text in enumerate(texts)]


@pytest.mark.slow
def test_rows_have_the_bits_of_each_text_alone(model: tuple[CompiledModel, list[str]]) -> None:
    target, notes = model
    texts = texts_of(target)
    places = read(target, texts)
    rows = [Row(slot, pos, texts[slot][pos]) for slot, pos in places]
    found = [target.rows(part)[LOGITS].copy() for part in (rows[:3], rows[3:5], rows[5:])]
    together = target.rows(rows)[LOGITS].copy()  # several rows of a text in one call
    alone = [target.forward(text, 0).copy() for text in texts]
    expected = np.stack([alone[slot][pos] for slot, pos in places])
    assert np.array_equal(np.concatenate(found), expected)
    assert np.array_equal(together, expected)
    assert not np.array_equal(together[::-1], expected)  # the negative control
    assert notes == []  # no CPU took over


@pytest.mark.slow
def test_a_gpu_that_fails_loses_no_slot(model: tuple[CompiledModel, list[str]], opencl: Any) -> None:
    """In the middle of rows: the CPU reads every slot's text again, and goes on."""
    target, notes = model
    texts = texts_of(target)
    places = read(target, texts)
    rows = [Row(slot, pos, texts[slot][pos]) for slot, pos in places]
    first = target.rows(rows[:3])[CHOICE].tolist()
    opencl.inject_failure("clEnqueueNDRangeKernel", 7, "CL_OUT_OF_RESOURCES")
    try:
        made = target.rows(rows[3:])
    finally:
        opencl.inject_failure("*", 0, "CL_SUCCESS")
    assert len(notes) == 1
    assert notes[0].endswith("it runs on the CPU now")
    alone = [target.forward(text, 0).copy() for text in texts]  # on the CPU
    expected = np.stack([alone[slot][pos] for slot, pos in places])
    assert np.array_equal(made[LOGITS], expected[3:])
    assert first == expected[:3].argmax(-1).tolist()
    assert not np.array_equal(made[LOGITS], expected[:3])  # the negative control


@pytest.mark.slow
def test_answers_under_load_have_the_tokens_of_single_runs(bundle: Path, released: None) -> None:
    with load_folder(bundle, {"mode": "off"}) as session:
        rng, asked = np.random.default_rng(1), []
        for i in range(7):
            prompt = rng.integers(0, session.models.target.vocab, (1, 33, 40, 7)[i % 4]).tolist()
            asked.append((prompt, {"max_new_tokens": 3 + 5 * i % 12}))
        expected = []
        for ids, options in asked:
            answer = session.answer(ids, **options)
            expected.append((answer.read(), answer.stop_reason, len(answer.token_ids)))
        assert session.slots is not None
        found = []
        for client in run_all(BatchEngine(session, session.slots, 16, 60.0), *(GenerationRequest(*a) for a in asked)):
            ended = client.events[-2]
            assert isinstance(ended, ChoiceEnded)
            found.append((client.text(), ended.reason, ended.counts.generated))
    assert found == expected
    assert len({text for text, _, _ in expected}) > 4
