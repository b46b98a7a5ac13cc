"""A pair of models that only passes time, for judging policies: scripted times and acceptance, a clock of its own.

The real loop and the real drafters run over it. The clock that they read has noise; what a policy is judged by is the
same time without it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode.drafters.early_exit import EarlyExitDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.start_times import time_steps
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model, Models

FLAT = {1: 1.0, 2: 1.02, 3: 1.04, 4: 1.06, 5: 1.1, 6: 1.2, 8: 1.3}
STEEP = {1: 1.0, 2: 1.35, 3: 1.7, 4: 2.0, 5: 2.4, 6: 2.8, 8: 3.6}
STAIRS = {1: 1.0, 2: 1.05, 3: 1.1, 4: 1.12, 5: 1.6, 6: 1.65, 8: 1.7}
EXIT = {1: 1.0, 2: 1.1, 3: 1.17, 4: 1.27, 5: 1.3, 8: 1.52}  # SmolLM2-135M in int4, one thread
CHUNK, VOCAB = 32, 50
_TURNOVER = 0.3  # of steps, before which the machine may become busy or idle
At = Callable[[int], float]


@dataclass(frozen=True)
class Case:
    """A machine and a text; times are in plain steps as they are at the start.

    Attributes:
        name: for the table.
        draft: a step of the drafter.
        verify: width -> a step of the target.
        alpha: tokens of text so far -> acceptance.
        target_speed, draft_speed: tokens of text so far -> factor on that model's times.
        chunk: what the drafter needs for 32 tokens.
        answers: lengths of the answers.
        prompt: tokens of each prompt.
        warm: tokens that are not judged.
        noise: relative standard deviation of a time.
        pauses: share of steps that take 5 times as long.
        busy: share of the time in which other work makes steps take up to 4 times as long, a few in a row.
        turn_s: other work has the core for so long after each time that the models had it for so long; 0 has none.
        planned_alpha, planned_tokens: what the plan believes, and judged tokens that it counts for.
        plan_off: the plan's times over the true ones; for every other width, and the drafter, the inverse.
        step_s: a plain step.
        confidence: tokens of text so far -> how confident the drafter is; None where it is not asked.
        confidence_steps: what telling it takes.
        early_exit: the drafter reads nothing, it drafts in the target's cache.
    """

    name: str
    draft: float
    verify: Mapping[int, float]
    alpha: At
    target_speed: At = lambda at: 1.0
    draft_speed: At = lambda at: 1.0
    chunk: float = 0.5
    answers: Sequence[int] = (1200,)
    prompt: int = 40
    warm: int = 200
    noise: float = 0.05
    pauses: float = 0.02
    busy: float = 0.0
    turn_s: float = 0.0
    planned_alpha: float = 0.8
    planned_tokens: float = 4.0
    plan_off: float = 1.0
    step_s: float = 0.01
    confidence: At | None = None
    confidence_steps: float = 0.0
    early_exit: bool = False


@dataclass
class Clock:
    """Seconds with noise, and without."""

    case: Case
    seed: int
    now: float = 0.0
    true: float = 0.0
    rng: random.Random = field(init=False)
    _busy: bool = field(init=False, default=False)
    _had_s: float = field(init=False, default=0.0)  # of the present turn

    def __post_init__(self) -> None:
        """Seed the noise."""
        self.rng = random.Random(self.seed)

    def __call__(self) -> float:
        """What the loop reads."""
        return self.now

    def pass_time(self, steps: float) -> None:
        """Let as much time pass as so many plain steps take."""
        seconds = steps * self.case.step_s
        self.true += seconds
        pause = 5.0 if self.rng.random() < self.case.pauses else 1.0
        if self.rng.random() < _TURNOVER:
            self._busy = self.rng.random() < self.case.busy
        if self._busy:
            pause *= self.rng.uniform(1.0, 4.0)
        took = seconds * pause * max(0.5, 1 + self.case.noise * self.rng.gauss(0, 1))
        if self.case.turn_s:
            turns, self._had_s = divmod(self._had_s + took, self.case.turn_s)
            took += turns * self.case.turn_s * self.rng.uniform(0.9, 1.1)
        self.now += took


class SimulatedModel(Model):
    """Knows the text; the drafter is wrong where a scripted coin says so, whatever was drafted before."""

    def __init__(self, name: str, run: Run, begin: int) -> None:
        self.name, self.vocab, self.context = name, VOCAB, 1 << 20
        self._run, self._begin = run, begin

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Any:
        """Let the step's time pass; the tokens are known."""
        case, at, n = self._run.case, self._begin + pos, len(ids)
        if self.name == "draft":
            step = case.draft if n <= 2 else case.chunk * -(-n // CHUNK)
            self._run.clock.pass_time(step * case.draft_speed(at))
        else:
            width = next((w for w in case.verify if w >= n), 0)
            step = case.verify[width] if width else -(-n // CHUNK) * 4.0
            self._run.clock.pass_time(step * case.target_speed(at))
        if self.name == "draft":
            pos += self._run.drafter.skipped
        rows = range(pos + n if last else pos + 1, pos + n + 1)
        choice = np.array([self._token(self._begin + row) for row in rows])
        if LOGITS not in outputs:
            return _Done({CHOICE: choice})
        return _Done(_WithLogits(self._run, choice, self._begin + rows[-1]))

    def _token(self, at: int) -> int:
        run = self._run
        right = self.name == "target" or run.coins[at] < run.case.alpha(at)
        return run.text[at] if right else (run.text[at] + 1) % VOCAB


class _WithLogits(dict[str, Any]):
    """Passes the time that telling a confidence takes when the logits are looked at."""

    def __init__(self, run: Run, choice: np.ndarray, at: int) -> None:
        super().__init__({CHOICE: choice})
        self._run, self._at = run, at

    def __missing__(self, name: str) -> np.ndarray:
        """Logits in which the chosen token has the scripted probability."""
        case = self._run.case
        assert name == LOGITS
        assert case.confidence is not None
        self._run.clock.pass_time(case.confidence_steps)
        confidence = case.confidence(self._at)
        logits = np.full((1, VOCAB), np.log((1 - confidence) / (VOCAB - 1)), np.float32)
        logits[0, self[CHOICE][-1]] = np.log(confidence)
        return logits


@dataclass(frozen=True)
class _Done:
    found: dict[str, Any]

    def result(self) -> dict[str, Any]:
        return self.found


@dataclass
class Run:
    """One policy on one case; all policies see the same text and the same coins.

    `at_s` has the true time after each token, `started_s` that before the first prompt, and `waits_s` the time before
    each round's tokens.
    """

    case: Case
    seed: int
    clock: Clock = field(init=False)
    text: list[int] = field(init=False)
    coins: list[float] = field(init=False)
    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    started_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    drafter: ModelDrafter = field(init=False)

    def __post_init__(self) -> None:
        """Write the text and throw the coins."""
        self.clock = Clock(self.case, self.seed)
        rng = random.Random(f"text {self.seed}")
        length = sum(self.case.answers) + len(self.case.answers) * self.case.prompt + 64
        self.text = [rng.randrange(VOCAB) for _ in range(length)]
        self.coins = [rng.random() for _ in range(length)]

    def play(self, policy: GammaPolicy | None) -> Run:
        """Answer all prompts; None is the target alone."""
        begin = 0
        for length in self.case.answers:
            target, draft = SimulatedModel("target", self, begin), SimulatedModel("draft", self, begin)
            self.drafter = (EarlyExitDrafter if self.case.early_exit else ModelDrafter)(draft, VOCAB, Sampling())
            if isinstance(policy, LiveGamma) and not begin:
                time_steps(Models(target, draft), policy, self.clock)
                self.started_s = self.clock.true
            prompt = self.text[begin : begin + self.case.prompt]
            trace, request = Trace(clock=self.clock), Request(length)
            self.traces.append(trace)
            stream = (
                generate(target, prompt, request, trace)
                if policy is None
                else speculate(target, self.drafter, prompt, request, policy, trace)
            )
            before = self.clock.true
            for i, token in enumerate(stream):
                self.tokens.append(token)
                self.at_s.append(self.clock.true)
                if i and self.clock.true > before:
                    self.waits_s.append(self.clock.true - before)
                before = self.clock.true
            begin += self.case.prompt + length
        return self

    @property
    def seconds(self) -> float:
        """True time after the first `warm` tokens, prompts included."""
        return self.at_s[-1] - (self.at_s[self.case.warm - 1] if self.case.warm else self.started_s)


def live_policy(case: Case) -> LiveGamma:
    """A policy whose plan is wrong by as much as the case says."""
    off = [case.step_s * case.plan_off, case.step_s / case.plan_off]
    verify = {w: s * off[i % 2] for i, (w, s) in enumerate(case.verify.items())}
    predicted = LivePrediction(
        case.planned_alpha, case.draft * off[1], verify, 1e-5, case.chunk * off[1], CHUNK, case.planned_tokens
    )
    return LiveGamma(predicted, [w - 1 for w in verify], narrow=2, stops=case.confidence is not None, only_model=True)


@dataclass(frozen=True)
class Judged:
    """Times of a case over all seeds, over that of the target alone."""

    case: Case
    live: float
    best: float
    best_gamma: int
    worst: float
    switches: int
    longest_wait: float

    @property
    def over_best(self) -> float:
        """Of the policy, over the better of the target alone and the best fixed length."""
        return self.live / self.best


def judge(case: Case, seeds: Sequence[int] = (0, 1, 2), policy: Callable[[Case], GammaPolicy] | None = None) -> Judged:
    """Play the target alone, every fixed length and the live policy, or another one.

    Raises:
        AssertionError: a text is not the target's.
    """
    fixed: dict[int, float] = {}
    alone = [Run(case, seed).play(None) for seed in seeds]
    for gamma in [w - 1 for w in case.verify]:
        runs = [Run(case, seed).play(FixedGamma(gamma)) for seed in seeds] if gamma else alone
        fixed[gamma] = sum(run.seconds for run in runs)
    live = [Run(case, seed).play((policy or live_policy)(case)) for seed in seeds]
    if any(run.tokens != other.tokens for run, other in zip(live, alone, strict=True)):
        raise AssertionError(f"{case.name}: the text is not the target's")
    best = min(fixed, key=lambda g: fixed[g])
    plain = fixed[0]
    return Judged(
        case=case,
        live=sum(run.seconds for run in live) / plain,
        best=fixed[best] / plain,
        best_gamma=best,
        worst=max(fixed.values()) / plain,
        switches=sum(len(trace.switches) for run in live for trace in run.traces),
        longest_wait=max(map(longest_wait, live)),
    )


def from_token(at: int, before: float, after: float) -> At:
    """A value that changes midway."""
    return lambda token: before if token < at else after


def always(value: float) -> At:
    """A value that does not change."""
    return lambda token: value


def longest_wait(run: Run) -> float:
    """The longest time between tokens over the median; tokens of one round come together."""
    return max(run.waits_s) / statistics.median(run.waits_s)


def hard_tokens(share: float, easy: float, hard: float) -> At:
    """A value that differs from token to token: hard ones at random."""
    return lambda token: hard if random.Random(f"hard {token}").random() < share else easy


def random_confidence(token: int) -> float:
    """A confidence that means nothing."""
    return random.Random(f"confidence {token}").uniform(0.1, 0.99)


EASY_OR_HARD = hard_tokens(0.3, 0.98, 0.3)
CONFIDENT_CASES = [
    Case(f"{kind}, draft {c}, {name}", c, curve, EASY_OR_HARD, confidence=confidence, confidence_steps=0.002)
    for kind, confidence in (("confident", EASY_OR_HARD), ("random", random_confidence))
    for name, curve, c in (("flat", FLAT, 0.1), ("flat", FLAT, 0.3), ("steep", STEEP, 0.05), ("stairs", STAIRS, 0.2))
]
CASES = [
    *(
        Case(f"alpha {alpha}, draft {c}, {name}", c, curve, always(alpha))
        for name, curve in (("flat", FLAT), ("steep", STEEP), ("stairs", STAIRS))
        for alpha, c in ((0.9, 0.1), (0.7, 0.3), (0.3, 0.1), (0.1, 0.5))
    ),
    Case("acceptance falls midway", 0.1, FLAT, from_token(700, 0.9, 0.1)),
    Case("acceptance rises midway", 0.1, FLAT, from_token(700, 0.1, 0.9)),
    Case("the drafter becomes useless", 0.2, STAIRS, from_token(700, 0.8, 0.0)),
    Case("the target's processor becomes slower", 0.2, FLAT, always(0.7), target_speed=from_token(700, 1.0, 2.0)),
    Case("the drafter's processor becomes slower", 0.2, FLAT, always(0.7), draft_speed=from_token(700, 1.0, 4.0)),
    Case("both become slower", 0.2, FLAT, always(0.7), from_token(700, 1.0, 2.0), from_token(700, 1.0, 2.0)),
    Case("much noise", 0.2, STAIRS, always(0.7), noise=0.2, pauses=0.05),
    Case("the plan is off by 3", 0.4, STEEP, always(0.6), plan_off=3.0),
    Case("the plan is off by 1/3", 0.1, FLAT, always(0.8), plan_off=1 / 3),
    Case("a step takes a second", 0.1, FLAT, always(0.8), plan_off=1.4, step_s=1.0),
    Case("a step takes a second, nothing pays", 0.4, STEEP, always(0.4), plan_off=1.4, step_s=1.0),
    Case("long prompts, long answers", 0.1, FLAT, always(0.8), answers=(400,) * 3, prompt=600, chunk=0.8),
    Case("long prompts, short answers", 0.1, FLAT, always(0.8), answers=(30,) * 40, prompt=600, chunk=0.8),
    Case("a poor early exit, from the start", 0.3, STAIRS, always(0.1), answers=(128,) * 3, warm=0, early_exit=True),
    Case("long prompts, a slow drafter", 0.45, STAIRS, always(0.7), answers=(256,) * 5, prompt=586, chunk=4.0),
]
BUSY_CASES = [  # other work on the machine: at random, and on the same core in turn with the models
    *(
        Case(f"{alpha}, busy", 0.2, FLAT, always(alpha), answers=(64,) * 12, planned_alpha=alpha, busy=0.5)
        for alpha in (0.05, 0.8)
    ),
    *(
        Case(
            *(f"{alpha}, turns of {turn_s}", 0.5, EXIT, always(alpha)),
            **{"answers": (128,) * 5, "step_s": 0.0038, "turn_s": turn_s, "early_exit": True, "warm": 0},
        )
        for alpha, turn_s in ((0.0, 0.004), (0.3, 0.004), (0.6, 0.004), (0.3, 0.0028), (0.3, 0.01))
    ),
]
