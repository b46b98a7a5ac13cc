"""A draft model that leaves out text: what is in its cache, and that the text stays the target's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.decode.drafters import MODEL, Offer
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import PLAIN, Choice, FixedGamma
from hetero_sd.runtime.decode.sampling import Rng, Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Round, Stopwatch, Trace
from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import Model
from targets.backend import ProcessorFailed
from targets.opencl.runtime import OpenCLError

WATCH = Stopwatch()
TEXT = [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


class RandomReads:
    """Reads and leaves out random parts, and drafts only where all was read or left out."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        pass

    def read_first(self, offers: Sequence[Offer], prefill_s: float) -> int:
        return int(self._rng.integers(0, 4))

    def rests(self) -> bool:
        return not self._rng.integers(0, 6)

    def choose(self, offers: Sequence[Offer]) -> Choice:
        if not offers:
            return PLAIN
        unread, gamma = offers[0].unread, int(self._rng.integers(0, 4))
        if not gamma:
            return Choice(MODEL, 0, int(self._rng.integers(0, 3)), int(self._rng.integers(0, unread + 1)))
        skip = int(self._rng.integers(0, unread + 1))
        return Choice(MODEL, gamma, unread - skip, skip)

    def observe(self, finished: Round) -> None:
        pass


def test_a_prompt_that_the_cache_holds_whole_can_be_drafted_from(pair) -> None:
    """Before there is a token of the target, as in mode overlapped: the last one of the prompt is fed again."""
    _, draft = pair(3)
    wanted = ModelDrafter(type(draft)(draft.table, draft.context), 6, Sampling()).propose(TEXT, MODEL, 2, WATCH, Rng(0))
    kept = KeptPrefix(draft)
    kept.submit([*TEXT, 3, 2], 0).result()
    drafter = ModelDrafter(kept, 6, Sampling(), TEXT)
    assert drafter.propose(TEXT, MODEL, 2, WATCH, Rng(0)).tokens == wanted.tokens


def test_the_first_tokens_and_the_last_are_read(pair) -> None:
    _, draft = pair(3)
    drafter = ModelDrafter(draft, 6, Sampling())
    (offer,) = drafter.offers(TEXT, Stopwatch())
    assert offer == Offer(MODEL, 64 - 16 + 1, 15, confident=True)
    assert drafter.read(TEXT, 7, 8, Stopwatch()) == 7
    assert draft.rows == [1, 2, 3, 4, *TEXT[12:15]]  # four first ones, eight left out, the rest but for the last
    (offer,) = drafter.offers(TEXT, Stopwatch())
    assert offer == Offer(MODEL, 64 - 8 + 1, 0, confident=True)
    drafted = drafter.propose(TEXT, MODEL, 2, Stopwatch(), Rng(0)).tokens
    assert draft.rows == [1, 2, 3, 4, *TEXT[12:16], drafted[0]]
    drafter.keep(len(TEXT))
    drafter.propose([*TEXT, 5], MODEL, 1, Stopwatch(), Rng(0))
    assert draft.rows == [1, 2, 3, 4, *TEXT[12:16], 5]


def test_a_later_gap_follows_what_was_read(pair) -> None:
    _, draft = pair(3)
    drafter = ModelDrafter(draft, 6, Sampling())
    assert drafter.read(TEXT[:9], 8, 0, Stopwatch()) == 8
    assert drafter.read(TEXT, 3, 4, Stopwatch()) == 3
    assert draft.rows == [*TEXT[:8], *TEXT[12:15]]
    assert drafter.skipped == 4


def test_pieces_add_up(pair) -> None:
    _, draft = pair(3)
    drafter = ModelDrafter(draft, 6, Sampling())
    assert [drafter.read(TEXT, 6, 0, Stopwatch()) for _ in range(4)] == [6, 6, 3, 0]
    assert draft.rows == TEXT[:15]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    context=st.integers(24, 60),
    draft_context=st.integers(4, 60),
)
def test_greedy_text_is_the_targets_own(pair, seed, prompt, context, draft_context) -> None:
    request = Request(40)
    alone = list(generate(pair(seed, 0.5, context=context)[0], prompt, request, Trace()))
    target, draft = pair(seed, 0.5, context=context, draft_context=draft_context)
    drafter = ModelDrafter(draft, target.vocab, request.sampling)
    assert list(speculate(target, drafter, prompt, request, RandomReads(seed), Trace())) == alone


def test_skipped_text_makes_other_drafts(pair) -> None:
    """The negative control: the toy model's drafts depend on the whole text in its cache."""
    differing = 0
    for seed in range(10):
        drafts = []
        for skip in (0, 8):
            _, draft = pair(seed, 1.0)
            drafter = ModelDrafter(draft, 6, Sampling())
            drafter.read(TEXT, 15 - skip, skip, Stopwatch())
            drafts.append(drafter.propose(TEXT, MODEL, 6, Stopwatch(), Rng(0)).tokens)
        differing += drafts[0] != drafts[1]
    assert differing >= 5


class Failing(Model):
    """A drafter whose processor fails after some steps."""

    def __init__(self, model: Any, steps: int, error: Exception) -> None:
        self._model, self._left, self._error = model, steps, error
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, *given: Any, **more: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._model.submit(*given, **more)


@pytest.mark.parametrize("steps", [0, 1, 9])
def test_a_processor_that_fails_leaves_the_target_alone(pair: Any, steps: int) -> None:
    """At the prompt, at the first draft, in the middle; another error is no processor's and ends the run."""
    target, draft = pair(3, 0.0)
    wanted = list(generate(target, [1, 2, 3], Request(40), Trace()))
    for error in (ProcessorFailed("clFinish: -36"), OpenCLError("clFinish: -36"), ZeroDivisionError("a fault of ours")):
        trace = Trace()
        drafter = ModelDrafter(Failing(draft, steps, error), target.vocab, Sampling())
        stream = speculate(target, drafter, [1, 2, 3], Request(40), FixedGamma(3), trace)
        if isinstance(error, ZeroDivisionError):
            with pytest.raises(ZeroDivisionError):
                list(stream)
            continue
        assert list(stream) == wanted
        assert trace.lost_drafter == "the drafter's processor failed: clFinish: -36"
        assert (sum(r.drafted for r in trace.rounds) > 0) == (steps > 1)
        assert trace.rounds[-1].drafted == 0
