"""What a round of two models costs beside their steps: measured on rounds, with the same steps alone beside them.

A step alone, again and again, finds its code, its weights and its embedding row in the caches next to the core. In a
round another model ran before it, the token is another one, and the loop decides, calls and compares. Rounds and lone
steps are timed in turn, so that a slow spell hits both; what rounds take longer is booked where the trace has it: a
draft step, the target's step, the loop. The first rounds of a text come after a prompt, which went through the caches;
what they take longer than later ones is booked once for the text.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from statistics import median

from costmodel.schema.measured import MeasuredTurns
from hetero_sd.runtime.calibrate.budget import Budget
from hetero_sd.runtime.calibrate.measure import back_to_back_s
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import COLD_ROUNDS, Round, Trace, first_rounds_s
from hetero_sd.runtime.model.protocol import Model, Models

_NEW_TOKENS = 40  # of a text
_TEXTS = 9  # of the target alone
_MOST_GAMMA = 3
_NOTICED_S = 20e-3  # in longer steps of the target the tens of microseconds that turns add are lost
_PROMPT = 2
_LOOP_SHARE, _TURN_SHARE = 0.05, 0.15  # of the time at most


def plain_costs_s(target: Model, budget: Budget, clock: Callable[[], float]) -> tuple[float, float] | None:
    """Of the target alone: median seconds of a plain round that are no step, and what a text's first ones add."""
    loops, starts = list[float](), list[float]()
    end_s = budget.spent_s + _LOOP_SHARE * budget.seconds
    prompt = _prompt_tokens(target, clock)
    for text in range(_TEXTS):
        trace = Trace(clock=clock)
        for _ in generate(target, _prompt(target, prompt, text), _request(target), trace):
            if budget.spent_s > end_s:
                break
        loops += [r.dispatch_s for r in trace.rounds[2:]]  # the first ones read code and weights
        if (start_s := first_rounds_s(trace.rounds)) is not None:
            starts.append(start_s)
        if budget.spent_s > end_s:
            break
    return (median(loops), max(0.0, median(starts or [0.0]))) if loops else None


class TurnCosts:
    """What rounds add to a plain loop and to the steps, measured in blocks that a calibration takes between others."""

    def __init__(self, models: Models, loop_s: float, clock: Callable[[], float]) -> None:
        """Measure nothing yet; `loop_s` is of the target alone."""
        self._models, self._loop_s, self._clock = models, loop_s, clock
        widths = getattr(models.target, "widths", ()) if models.draft is not None else ()
        gammas = [n - 1 for n in widths if 2 <= n <= _MOST_GAMMA + 1]
        self._gammas = sorted({*gammas[:1], *gammas[-1:]})
        self._blocks: list[tuple[float, ...]] = []
        self._texts, self._prompt = 0, _PROMPT
        self._spent_s = 0.0

    def take(self, budget: Budget) -> None:
        """One more block, where there is time: a text with one drafted token a round, and one with three."""
        if not self._gammas or not budget.allows("turns") or self._spent_s > _TURN_SHARE * budget.seconds:
            return
        begin = budget.spent_s
        with budget.spend("turns"):
            if not self._blocks:
                self._prompt = _prompt_tokens(self._models.target, self._clock)
                self._gammas = self._gammas if self._prompt > _PROMPT else []
            found = [block for gamma in self._gammas if (block := self._block(gamma)) is not None]
        self._spent_s += budget.spent_s - begin
        if found:
            self._blocks.append(tuple(sum(part) / len(found) for part in zip(*found, strict=True)))

    def result(self) -> MeasuredTurns | None:
        """Medians over the blocks; None where there is none."""
        if not self._blocks:
            return None
        draft, verify, loop, start = (max(0.0, median(block[i] for block in self._blocks)) for i in range(4))
        return MeasuredTurns(draft, verify, max(0.0, loop - self._loop_s), start)

    def _block(self, gamma: int) -> tuple[float, float, float, float] | None:
        """What rounds of gamma drafts take longer than lone steps: a draft step, the target's step; and their loop.

        Then what the first rounds of the text take longer than later ones.
        """
        target, draft, trace = self._models.target, self._models.draft, Trace(clock=self._clock)
        assert draft is not None
        request = _request(target)
        drafter = ModelDrafter(draft, target.vocab, request.sampling)
        self._texts += 1
        prompt = _prompt(target, self._prompt, self._texts)
        for _ in islice(speculate(target, drafter, prompt, request, FixedGamma(gamma), trace), request.max_new_tokens):
            pass
        # The first rounds read code and weights; what a draft step does depends on the round before.
        later = trace.rounds[COLD_ROUNDS:]
        rounds = [(old, r) for old, r in pairwise(later) if r.drafted == gamma]
        if not rounds:
            return None
        middle = self._prompt + request.max_new_tokens // 2
        one, two = (self._alone_s(draft, n, middle) for n in (1, 2))
        verify = self._alone_s(target, gamma + 1, middle)

        def drafts_longer(old: Round, r: Round) -> float:
            """After full acceptance the drafter takes in two tokens first."""
            first = two if old.accepted == old.drafted > 0 else one
            return (r.draft_s - first - (gamma - 1) * one) / gamma

        return (
            median(drafts_longer(old, r) for old, r in rounds),
            median(r.verify_s for _, r in rounds) - verify,
            median(r.dispatch_s for _, r in rounds),
            first_rounds_s(trace.rounds) or 0.0,
        )

    def _alone_s(self, model: Model, n: int, past: int) -> float:
        """Seconds of a step after itself, timed as the steps that the cost model is fitted to."""
        return back_to_back_s(lambda: model.submit([1] * n, past, last=True).result(), self._clock)


def _prompt_tokens(target: Model, clock: Callable[[], float]) -> int:
    """A chunk, which is read by the entry point of prompts; two tokens where steps are so long that it does not matter.

    A prompt in the caches, and what it left out of them, costs tens of microseconds.
    """
    if back_to_back_s(lambda: target.submit([1], 0, last=True).result(), clock) > _NOTICED_S:
        return _PROMPT
    return max(_PROMPT + 1, min(getattr(target, "prefill_width", 0), target.context // 4))


def _prompt(target: Model, tokens: int, text: int) -> list[int]:
    """Another prompt for each text: what the caches hold of one is not read again."""
    return [text % target.vocab] * tokens


def _request(target: Model) -> Request:
    return Request(max(1, min(_NEW_TOKENS, target.context * 3 // 4 - 8)))
