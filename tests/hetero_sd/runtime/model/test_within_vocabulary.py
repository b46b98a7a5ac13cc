"""Padded rows of a head are never answered with, and speculation stays lossless where they would have won."""

from __future__ import annotations

import numpy as np
import pytest

from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Models, Row
from hetero_sd.runtime.model.within_vocabulary import WithinVocabulary, slots_of, within_vocabulary

IDS, TARGET_ROWS, DRAFT_ROWS = 6, 9, 7


@pytest.fixture
def padded(pair):
    """A target and a drafter whose padded rows win in a third of all states."""
    target, draft = pair(3, vocab=TARGET_ROWS, draft_vocab=DRAFT_ROWS, noise=0.3)
    for model in (target, draft):
        model.table[::3, IDS:] += 10.0
    return Models(target, draft)


def run(models, sampling=None, gamma=3):
    request = Request(30, sampling=sampling or Sampling())
    if gamma:
        return list(
            speculate(
                models.target,
                ModelDrafter(models.draft, models.target.vocab, request.sampling),
                [1, 2, 3],
                request,
                FixedGamma(gamma),
                Trace(),
            )
        )
    return list(generate(models.target, [1, 2, 3], request, Trace()))


def test_greedy_is_lossless_and_inside_the_tokenizer(padded) -> None:
    cut = within_vocabulary(padded, IDS)
    alone = run(cut, gamma=0)
    assert max(alone) < IDS
    for gamma in (1, 2, 3, 5):
        assert run(cut, gamma=gamma) == alone


def test_without_the_cut_padding_is_answered(padded) -> None:
    """The negative control: the rows that must not win do win."""
    assert max(run(padded, gamma=0)) >= IDS


def test_sampled_ids_are_inside_the_tokenizer(padded) -> None:
    cut = within_vocabulary(padded, IDS)
    for seed in range(5):
        assert max(run(cut, Sampling(1.0, 0, 1.0, seed))) < IDS


def test_every_way_to_ask_agrees(padded) -> None:
    cut = within_vocabulary(padded, IDS).target
    ids = [1, 2, 3, 4, 5, 0, 1]
    logits = cut.forward(ids, 0)
    assert logits.shape == (7, IDS)
    assert np.array_equal(cut.argmax(ids, 0), logits.argmax(-1))
    for n in range(1, 8):
        assert cut.extend(ids[:n], 0) == logits[n - 1].argmax()


def test_a_head_without_padding_is_left_alone(padded) -> None:
    assert within_vocabulary(padded, TARGET_ROWS).target is padded.target
    assert within_vocabulary(padded, None).target is padded.target
    assert within_vocabulary(Models(padded.target), IDS).draft is None
    assert isinstance(within_vocabulary(padded, DRAFT_ROWS).target, WithinVocabulary)
    assert within_vocabulary(padded, DRAFT_ROWS).draft is padded.draft


class TwoSlots:
    """Two toys as the slots of one model."""

    cache = None

    def __init__(self, models) -> None:
        self.models, self.slots, self.row_widths, self.read_widths = models, len(models), (1, 2), (1, 4)
        self.prefill_widths = (4,)
        self.vocab, self.context, self.name = models[0].vocab, models[0].context, "toy"

    def slot(self, slot):
        return self.models[slot]

    def rows(self, rows):
        logits = np.concatenate([self.models[r.slot].forward([r.token], r.pos) for r in rows])
        return {LOGITS: logits, CHOICE: logits.argmax(-1)}


def test_slots_answer_with_ids_of_the_tokenizer(pair) -> None:
    made = [pair(3, vocab=TARGET_ROWS)[0] for _ in range(3)]
    for model in made:
        model.table[::3, IDS:] += 10.0
    alone, whole = WithinVocabulary(made[2], IDS), TwoSlots(made[:2])
    assert slots_of(alone, IDS) is None  # of one sequence
    assert slots_of(whole, None) is slots_of(whole, TARGET_ROWS) is whole
    cut = slots_of(whole, IDS)
    assert cut is not None
    assert (cut.vocab, cut.slots, cut.row_widths, cut.read_widths) == (IDS, 2, (1, 2), (1, 4))
    texts = [[1, 2, 3, 4, 5, 0], [5, 4, 3, 2, 1, 1]]
    expected = [alone.argmax(text, 0).tolist() for text in texts]
    assert [cut.slot(slot).argmax(text, 0).tolist() for slot, text in enumerate(texts)] == expected
    raw = []
    for pos in range(6):
        rows = [Row(slot, pos, texts[slot][pos]) for slot in (1, 0)]
        found = cut.rows(rows)
        raw += whole.rows(rows)[CHOICE].tolist()
        assert found[LOGITS].shape == (2, IDS)
        assert found[CHOICE].tolist() == [expected[1][pos], expected[0][pos]]
    assert max(raw) >= IDS  # the negative control
