from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.calibrate.budget import Budget
from hetero_sd.runtime.calibrate.turns import TurnCosts, plain_costs_s
from hetero_sd.runtime.model.protocol import Done, Model, Models

TOKEN_S = 1e-3


class Clock:
    """Seconds that pass where a model computes, and a little each time somebody looks."""

    def __init__(self, look_s: float = 0.0) -> None:
        self.now_s, self.look_s, self.last = 0.0, look_s, ""

    def __call__(self) -> float:
        self.now_s += self.look_s
        return self.now_s


class Turning(Model):
    """A model that takes longer where another one ran before it; it follows a token with itself, or with another."""

    vocab, context, prefill_widths = 8, 64, (16,)

    def __init__(self, name: str, clock: Clock, cold_s: float = 0.0, step: int = 0, token_s: float = TOKEN_S) -> None:
        self.name, self.clock, self.cold_s, self.step, self.token_s = name, clock, cold_s, step, token_s
        self.widths = (1, 2, 4)

    def submit(self, ids: Any, pos: int, outputs: Any = (), last: bool = False) -> Done:
        self.clock.now_s += self.token_s * len(ids) + (self.cold_s if self.clock.last != self.name else 0.0)
        self.clock.last = self.name
        rows = ids[-1:] if last else ids
        return Done(np.eye(self.vocab, dtype=np.float32)[[(token + self.step) % self.vocab for token in rows]])


class AfterPrompt(Turning):
    """A model whose first three steps after a prompt take longer."""

    def __init__(self, name: str, clock: Clock, first_s: float = 0.0, token_s: float = TOKEN_S) -> None:
        super().__init__(name, clock, step=1, token_s=token_s)  # no draft is accepted, so that all rounds are alike
        self.first_s, self.cold = first_s, 0
        self.prompts = list[list[int]]()

    def submit(self, ids: Any, pos: int, outputs: Any = (), last: bool = False) -> Done:
        if len(ids) > max(self.widths):
            self.cold = 3
            self.prompts.append(list(ids))
        elif self.cold:
            self.cold -= 1
            self.clock.now_s += self.first_s
        return super().submit(ids, pos, outputs, last)


def turns(clock: Clock, target: Turning, draft: Turning | None, seconds: float = 1e3) -> TurnCosts:
    found = TurnCosts(Models(target, draft), 0.0, clock)
    found.take(Budget(seconds, lambda: clock.now_s))
    return found


def test_the_loop_is_what_is_no_step() -> None:
    """Each look at the clock takes a second, and a round looks once after its step; the step itself takes longer."""
    clock = Clock(look_s=1.0)
    model = Turning("target", clock, token_s=100.0)
    assert plain_costs_s(model, Budget(1e6, lambda: 0.0), clock) == (1.0, 0.0)
    clock.look_s = 3.0
    assert plain_costs_s(model, Budget(1e6, lambda: 0.0), clock) == (3.0, 0.0)


@pytest.mark.parametrize("cold_s", [0.0, 2e-3])
def test_the_first_rounds_of_a_text_take_longer(cold_s: float) -> None:
    """Three steps after a prompt of a chunk are cold, with a drafter as well; 0 is the control."""
    clock = Clock()
    plain = plain_costs_s(AfterPrompt("target", clock, first_s=cold_s), Budget(1e3, lambda: clock.now_s), clock)
    assert plain is not None
    assert plain[1] == pytest.approx(3 * cold_s, abs=1e-9)
    found = turns(clock, AfterPrompt("target", clock, first_s=cold_s), Turning("draft", clock)).result()
    assert found is not None
    assert found.start_s == pytest.approx(3 * cold_s, abs=1e-9)
    assert found.verify_s == pytest.approx(0.0, abs=1e-9)  # later rounds are none of it


def test_prompts_differ_and_are_as_long_as_a_chunk() -> None:
    clock = Clock()
    model = AfterPrompt("target", clock)
    assert plain_costs_s(model, Budget(1e3, lambda: clock.now_s), clock) is not None
    assert len(model.prompts) > 1
    assert {len(prompt) for prompt in model.prompts} == {Turning.prefill_widths[0]}
    assert all(a != b for a, b in pairwise(model.prompts))
    slow = AfterPrompt("target", clock, token_s=0.03)
    assert plain_costs_s(slow, Budget(1e6, lambda: clock.now_s), clock) is not None
    assert not slow.prompts  # two tokens only


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("cold_s", [0.0, 5e-4])
def test_steps_after_another_model_take_longer(cold_s: float, step: int) -> None:
    """One of a round's draft steps is cold: all of it with one draft, a third a step with three; 0 the control.

    Whether all drafts are accepted (step 0) or none (step 1) makes no difference: the drafter then takes in two tokens
    first, as it does alone.
    """
    clock = Clock()
    found = turns(clock, Turning("target", clock, cold_s, step), Turning("draft", clock, cold_s)).result()
    assert found is not None
    assert found.draft_s == pytest.approx((cold_s + cold_s / 3) / 2, abs=1e-9)
    assert found.verify_s == pytest.approx(cold_s, abs=1e-9)
    assert found.loop_s == pytest.approx(0.0, abs=1e-9)


def test_the_loop_of_a_round_that_drafts() -> None:
    """It looks at the clock before the drafts and after the verification, a plain one once."""
    clock = Clock(look_s=1e-5)
    found = turns(clock, Turning("target", clock), Turning("draft", clock)).result()
    assert found is not None
    assert found.loop_s == pytest.approx(2e-5)
    costs = TurnCosts(Models(Turning("target", clock), Turning("draft", clock)), 1e-5, clock)
    costs.take(Budget(1e3, lambda: clock.now_s))
    shorter = costs.result()
    assert shorter is not None
    assert shorter.loop_s == pytest.approx(1e-5)  # what a plain loop takes is not counted twice


def test_nothing_is_measured_where_it_would_not_matter_or_there_is_no_time() -> None:
    clock = Clock()
    assert turns(clock, Turning("target", clock), None).result() is None
    assert turns(clock, Turning("target", clock, token_s=0.03), Turning("draft", clock)).result() is None
    late, budget = TurnCosts(Models(Turning("target", clock), Turning("draft", clock)), 0.0, clock), Budget(1.0, clock)
    clock.now_s += 1.1
    late.take(budget)
    assert late.result() is None
    some = turns(clock, Turning("target", clock), Turning("draft", clock), seconds=1.0)
    assert some.result() is not None
    spent = clock.now_s
    some.take(Budget(1.0, lambda: clock.now_s))
    assert clock.now_s == spent  # its share of the time is used up
