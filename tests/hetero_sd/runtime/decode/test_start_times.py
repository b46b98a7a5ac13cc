"""The steps that are timed before the first prompt: within their budget, and without a trace in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.start_times import BUDGET_S, time_steps
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.protocol import CHOICE, Done, Model, Models, NotFiniteError

WIDTHS = {1: 1.0, 2: 1.1, 4: 1.2, 8: 2.0}


class Timed(Model):
    """Steps that only take time, on a clock that all models of a test share."""

    now = 0.0

    def __init__(self, step_s: float) -> None:
        self.name, self.vocab, self.context, self.step_s, self.steps = "timed", 4, 64, step_s, list[int]()

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Done:
        assert pos == 0
        self.steps.append(len(ids))
        Timed.now += self.step_s * next(s for w, s in WIDTHS.items() if w >= len(ids))
        return Done(np.zeros((len(ids), 4), np.float32))


def timed(step_s: float, predicted_s: float) -> tuple[Timed, Timed, LiveGamma, float]:
    target, draft = Timed(step_s), Timed(step_s / 10)
    verify = {w: predicted_s * s for w, s in WIDTHS.items()}
    policy = LiveGamma(LivePrediction(0.8, predicted_s / 10, verify, 1e-6, predicted_s, 32), [0, 1, 3, 7], start=3)
    return target, draft, policy, time_steps(Models(target, draft), policy, lambda: Timed.now)


@pytest.mark.parametrize("off", [0.3, 1.0, 3.0])
def test_small_models_are_timed_at_every_width(off: float) -> None:
    target, draft, policy, took = timed(0.001, 0.001 * off)
    assert took <= BUDGET_S
    assert set(target.steps) == set(WIDTHS)
    assert target.steps[:4] == [1, 1, 2, 4]  # plain steps, the shortest drafts', and those of the plan's length
    assert draft.steps == [1] * len(draft.steps)
    assert policy.times.step_s(1) == pytest.approx(0.001)
    assert policy.times.step_s(4) == pytest.approx(0.0012)
    assert policy.times.draft_s("model") == pytest.approx(0.0001)


def test_what_does_not_fit_the_budget_is_left_out() -> None:
    target, _, policy, took = timed(0.03, 0.03)
    assert took <= BUDGET_S
    assert 1 in target.steps
    assert policy.times.seen(8) == 0
    target, draft, _, took = timed(0.5, 0.5)
    assert took <= BUDGET_S
    assert target.steps == []
    assert set(draft.steps) <= {1}


def test_no_text_changes(pair: Any) -> None:
    target, draft = pair(3, 0.5)
    wanted = list(generate(target, [1, 2, 3], Request(30), Trace()))
    target, draft = pair(3, 0.5)
    verify = {w: 1e-6 for w in WIDTHS}
    policy = LiveGamma(LivePrediction(0.8, 1e-7, verify, 1e-6, 1e-6, 32), [0, 1, 3, 7], start=3)
    time_steps(Models(target, draft), policy)
    assert max(n for _, n in target.fed) == 8
    assert list(generate(target, [1, 2, 3], Request(30), Trace())) == wanted
    target.table[:] = -target.table
    assert list(generate(target, [1, 2, 3], Request(30), Trace())) != wanted  # the negative control


def test_a_drafter_that_is_not_finite_is_said_a_target_when_it_answers(pair: Any) -> None:
    def policy() -> LiveGamma:
        return LiveGamma(LivePrediction(0.8, 1e-7, {w: 1e-6 for w in WIDTHS}, 1e-6, 1e-6, 32), [0, 1, 3, 7], start=3)

    target, draft = pair(3, 0.5)
    draft.table[:] = np.nan
    with pytest.raises(NotFiniteError, match="the draft computed"):
        time_steps(Models(target, draft), policy())
    target, draft = pair(3, 0.5)
    target.table[:] = np.nan
    time_steps(Models(target, draft), policy())
