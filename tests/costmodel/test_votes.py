"""What votes cost: against sums by hand, and what grows with what."""

from __future__ import annotations

from typing import Any

import pytest
from bundles import some_prediction

from costmodel.schema.batch import BatchPrediction
from costmodel.votes import Asked, votes_cost

SLOTS = BatchPrediction({1: (2.0, 0.0), 4: (3.0, 0.01)}, {1: (2.0, 0.0), 8: (6.0, 0.0)}, round_s=0.5)
STEPS: dict[str, Any] = {
    "verify_step_s": {1: 2.0},
    "prompt_chunk_s": 6.0,
    "prompt_start_s": 6.0,
    "prompt_result_s": 1.0,
    "sampling_s": 0.25,
    "dispatch_s": 0.25,
}


def test_without_slots_one_after_the_other() -> None:
    """A prompt of two chunks of 8, answers of ten tokens; a refinement reads three tokens more."""
    cost = votes_cost(Asked(4, 16, 10, 3), some_prediction(**STEPS), 8, 1)
    assert cost.single_s == pytest.approx(13.0 + 9 * 2.5)
    assert cost.chains_s == pytest.approx(13.0 + (4 * 10 - 1) * 2.5)  # the prompt's last token is fed again
    assert cost.refined_s == pytest.approx(cost.single_s + 3 * (7.0 + 9 * 2.5))
    assert (cost.chains_tokens, cost.refined_tokens) == (16 + 40, 16 + 40 + 9)


def test_in_slots_rows_share_a_step() -> None:
    """Six answers in four slots: ten rounds of four rows, then ten of two, whose call has four."""
    cost = votes_cost(Asked(6, 16, 10, 3), some_prediction(slot_calls=SLOTS, **STEPS), 8, 4)
    call = 3.0 + 0.01 * 4 * (16 + 5) + 0.5
    assert cost.chains_s == pytest.approx(13.0 + 10 * (call + 4 * 0.25) + 10 * (call + 2 * 0.25) - (3.64 + 0.5 + 1.0))
    assert cost.single_s == pytest.approx(13.0 + 9 * (2.0 + 0.5 + 0.25))
    assert cost.chains_s < votes_cost(Asked(6, 16, 10, 3), some_prediction(**STEPS), 8, 1).chains_s


@pytest.mark.parametrize("more", [(5, 16, 10, 3), (4, 24, 10, 3), (4, 16, 11, 3), (4, 16, 10, 12)])
def test_more_costs_more(more: tuple[int, int, int, int]) -> None:
    for calls in (None, SLOTS):
        prediction = some_prediction(slot_calls=calls, **STEPS)
        less, found = (votes_cost(Asked(*asked), prediction, 8, 4) for asked in ((4, 16, 10, 3), more))
        assert found.refined_s > less.refined_s
        assert found.refined_tokens > less.refined_tokens
        assert (found.chains_s > less.chains_s) == (more[3] == 3)
