"""A compiled model of several sequences: rows of a call have the bits that their sequence has alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from costmodel.format import FLOAT, INT8
from costmodel.place import Place, ReasonedPlace
from hetero_sd.compile.build import ModelRequest, Sizes, build_model
from hetero_sd.runtime.manifest import Bundle, write_manifest
from hetero_sd.runtime.model.model import CompiledModel
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, ContextFull, Row
from hetero_sd.runtime.model.slot_pool import SlotPool
from passes.onnx import canonicalise
from targets.boards import load_board
from targets.errors import UserError

DATA = Path(__file__).resolve().parents[3] / "data"
SLOTS, CONTEXT = 6, 64


@pytest.fixture(scope="module")
def model(tiny_slots: Path) -> CompiledModel:
    return CompiledModel("target", Bundle(tiny_slots))


def test_what_the_manifest_says(tiny_slots: Path) -> None:
    bundle = Bundle(tiny_slots)
    assert bundle.plan is not None
    assert (bundle.plan.slots, bundle.target.slots, bundle.target.row_widths) == (6, 6, (2, 4, 6))
    assert bundle.target.cache_bytes == 6 * 2 * 2 * CONTEXT * 2 * 32 * 4  # slots, K and V, layers, rows, heads, dim
    assert bundle.plan.memory.kv_bytes == bundle.target.cache_bytes


@settings(max_examples=20, deadline=None)
@example(before=[1, 60, 5, 33, 0, 17], steps=[[1, 0, 1, 2], [0, 1, 2, 3, 4, 5], [3]], seed=0)
@given(
    before=st.lists(st.integers(0, CONTEXT - 12), min_size=SLOTS, max_size=SLOTS),
    steps=st.lists(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_any_mix_of_rows_has_the_bits_of_each_alone(
    model: CompiledModel, before: list[int], steps: list[list[int]], seed: int
) -> None:
    """Prompts of any length in every slot, then calls of one to nine rows, several of one sequence among them."""
    before = [min(length, CONTEXT - sum(slots.count(slot) for slots in steps)) for slot, length in enumerate(before)]
    texts = np.random.default_rng(seed).integers(0, model.vocab, (SLOTS, CONTEXT)).tolist()
    for slot, length in enumerate(before):
        if length:
            model.slot(slot).submit(texts[slot][:length], 0, last=True).result()
    found: list[tuple[Row, Any, int]] = []
    at = [*before]
    for slots in steps:
        rows = []
        for slot in slots:
            rows.append(Row(slot, at[slot], texts[slot][at[slot]]))
            at[slot] += 1
        made = model.rows(rows)
        found += zip(rows, made[LOGITS].copy(), made[CHOICE].tolist(), strict=True)
    alone = [model.slot(slot).forward(text, 0).copy() for slot, text in enumerate(texts)]
    for row, logits, choice in found:
        assert np.array_equal(logits, alone[row.slot][row.pos]), row
        assert choice == alone[row.slot][row.pos].argmax()
        if row.pos:
            other = alone[(row.slot + 1) % SLOTS][row.pos]
            assert not np.array_equal(logits, other)  # the negative control


@pytest.mark.parametrize("own", [0, 5, 9])
def test_rows_in_common_have_the_bits_of_rows_of_their_own(model: CompiledModel, own: int) -> None:
    """A block of 32 rows is shared and 9 rows are copied, into a slot with as many of them; then all slots go on."""
    pool = SlotPool(model)
    rng = np.random.default_rng(own)
    shared = rng.integers(0, model.vocab, 41).tolist()
    texts = [[*shared, *rng.integers(0, model.vocab, 6).tolist()] for _ in range(SLOTS)]
    before = [pool.take([7] * 20) for _ in range(SLOTS)]
    for slot in before:
        slot.model.submit(shared[:own] or [1], 0, last=True).result()
        slot.tokens += shared[:own]
    for slot in before:
        pool.give_back(slot)
    slots = [pool.take(text) for text in texts]
    slots[0].model.submit(texts[0][len(slots[0].tokens) :], len(slots[0].tokens), last=True).result()
    slots[0].tokens[:] = texts[0]
    assert [pool.share(slot, text) for slot, text in zip(slots[1:], texts[1:], strict=True)] == [41 - own] * 5
    found = []
    others = [(slot.number, text) for slot, text in zip(slots[1:], texts[1:], strict=True)]
    for pos in range(41, 47):
        found.append(model.rows([Row(number, pos, text[pos]) for number, text in others])[LOGITS].copy())
    SlotPool(model)  # every slot has its own blocks again
    for i, text in enumerate(texts[1:]):
        alone = model.slot(0).forward(text, 0)[41:]
        assert np.array_equal([logits[i] for logits in found], alone)
        assert not np.array_equal([logits[i - 1] for logits in found], alone)  # the negative control


def test_slots_do_not_touch_each_other(model: CompiledModel) -> None:
    """A slot's text goes on as before when the others were read and fed to their last row."""
    texts = np.random.default_rng(7).integers(0, model.vocab, (SLOTS, CONTEXT)).tolist()
    expected = model.slot(2).forward(texts[2], 0).copy()
    model.slot(2).submit(texts[2][:40], 0, last=True).result()
    for slot in (1, 3):
        model.slot(slot).submit(texts[slot][: CONTEXT - 1], 0, last=True).result()
    model.rows([Row(slot, CONTEXT - 1, texts[slot][-1]) for slot in (1, 3)])
    assert np.array_equal(model.slot(2).forward(texts[2][40:], 40), expected[40:])
    model.slot(2).submit(texts[1][:40], 0, last=True).result()
    assert not np.array_equal(model.slot(2).forward(texts[2][40:], 40), expected[40:])  # the negative control


def test_other_slots_than_those_of_the_library_are_refused(tiny_slots: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_slots, folder)
    text = (folder / "manifest.json").read_text()
    whole = json.loads(text)
    whole["plan"]["slots"] = 7
    caches = whole["models"]["target"]["caches"]
    caches["value_shape"][0] = caches["key_shape"]["cpu"][0] = 7
    (folder / "manifest.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"is 7, lib/target_cpu\.so was compiled with 6: copy or build the bundle"):
        CompiledModel("target", Bundle(folder))
    (folder / "manifest.json").write_text(text)
    assert CompiledModel("target", Bundle(folder)).slots == 6


def test_what_no_kernel_would_check_is_refused(model: CompiledModel) -> None:
    with pytest.raises(ContextFull, match="rows 64 to 65 do not fit a context of 64"):
        model.rows([Row(0, 3, 1), Row(1, CONTEXT, 1)])
    with pytest.raises(ValueError, match="slots are 0 to 5: 6"):
        model.rows([Row(6, 0, 1), Row(0, 0, 1)])
    with pytest.raises(ValueError, match="token ids must be"):
        model.rows([Row(0, 0, model.vocab), Row(1, 0, 1)])
    with pytest.raises(ValueError, match="two rows at one place"):
        model.rows([Row(0, 0, 1), Row(0, 0, 2)])
    with pytest.raises(ValueError, match="slots are 0 to 5: -1"):
        model.slot(-1).submit([1], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("export", "kv"),
    [
        ("exports/llama-genai-int4", "float16"),  # int8 activations
        ("families/gpt2-dynamo-fp32", "float32"),  # learned positions
        pytest.param("families/gemma2-genai-full-cache-fp32", "float16", marks=pytest.mark.deep),  # windows, soft caps
        pytest.param("families/bloom-legacy17-fp32", "float32", marks=pytest.mark.deep),  # ALiBi
        pytest.param("families/gptj-dynamo-fp32", "float32", marks=pytest.mark.deep),  # rotated pairs of neighbours
    ],
)
def test_other_decoders(export: str, kv: str, tmp_path: Path) -> None:
    """Six rows of three texts, two of each, the longest beyond any window; they are read in chunks of 32 and 16."""
    decoder = canonicalise(DATA / export / "model.onnx", CONTEXT)
    activations = INT8 if decoder.facts.int8_activations else FLOAT
    core, sizes = load_board("host", measure=False).clusters[0].core, Sizes(CONTEXT, (1, 4), 16, 3, long_prefill=32)
    place = ReasonedPlace(Place("cpu"))
    request = ModelRequest("target", decoder, core, place, sizes, activations=activations, kv=kv)
    write_manifest(tmp_path, {"target": build_model(request, tmp_path).facts})
    model = CompiledModel("target", Bundle(tmp_path))
    lengths = (50, 3, 20)
    texts = [np.random.default_rng(i).integers(0, model.vocab, n).tolist() for i, n in enumerate(lengths)]
    for slot, text in enumerate(texts):
        model.slot(slot).submit(text[:-2], 0, last=True).result()
    places = [(slot, len(text) - back) for back in (2, 1) for slot, text in enumerate(texts)]
    found = [
        model.rows([Row(s, pos, texts[s][pos]) for s, pos in part])[LOGITS].copy() for part in (places[:3], places[3:])
    ]
    found += [model.rows([Row(s, pos, texts[s][pos]) for s, pos in places])[LOGITS].copy()]
    alone = [model.forward(text, 0).copy() for text in texts]
    expected = np.stack([alone[slot][pos] for slot, pos in places])
    assert np.array_equal(np.concatenate(found[:2]), expected)
    assert np.array_equal(found[2], expected)  # several rows of a text in one call
    assert not np.array_equal(found[2][::-1], expected)  # the negative control
