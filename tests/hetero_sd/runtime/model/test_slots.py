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

from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.model import CompiledModel
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, ContextFull, Row
from targets.errors import UserError

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
