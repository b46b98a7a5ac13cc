"""Timing on a busy machine: steps taken in turn, the memory's speed beside each, medians of what agreed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from costmodel.schema.measured import MeasuredPoint, MeasuredStep
from hetero_sd.runtime.calibrate.budget import Budget

LEAST_REPEATS = 5
_UNSTABLE = 0.15  # bandwidth before and after a step may differ by this share
_ERROR = 0.05  # the standard error of a median may be this share of it
_SHORTEST_S = 6e-3  # shorter steps are repeated back to back up to this time
_WARM_S = 25e-3  # and run this long before: a last-level cache of 32 MB held models of 10 to 28 MB after 10 to 30 runs
_LONGEST_WARM_S = 80e-3  # or longer, while they become faster
_FASTER = 0.97  # runs that take this share of those before them are not warm yet
_BLOCK = 8  # runs, or half of all, that are compared with as many before them
_MOST_BACK_TO_BACK = 24


@dataclass
class Step:
    """Something to time.

    Attributes:
        facts: what identifies it in the result.
        run: does it once.
        samples: seconds of one run, and GB/s before and after it.
    """

    facts: MeasuredStep
    run: Callable[[], object]
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def time_s(self) -> float:
        """Seconds of one run, as `back_to_back_s` has them."""
        return back_to_back_s(self.run, time.perf_counter)

    def point(self, least: int = LEAST_REPEATS) -> MeasuredPoint:
        """Median of the steady samples; `stable` says whether there were enough of them and whether they agree.

        Steady are those with the same bandwidth before and after, as most of the others have it: the memory of a
        virtual machine can have two speeds, and a step then has two times, between which there is nothing.
        """
        steady = _alike([s for s in self.samples if abs(s[1] - s[2]) <= _UNSTABLE * max(s[1], s[2])])
        kept = steady if len(steady) >= least else self.samples
        times = sorted(s for s, _, _ in kept)
        low, high = times[len(times) // 4], times[(3 * len(times)) // 4]
        error = 0.929 * (high - low) / len(times) ** 0.5  # of a normal distribution's median, from its middle half
        return MeasuredPoint.of(
            self.facts,
            seconds=median(times),
            low=low,
            high=high,
            bandwidth_gb_per_s=median(0.5 * (a + b) for _, a, b in kept),
            samples=len(kept),
            stable=len(steady) >= least and error <= _ERROR * median(times),
        )


def _alike(samples: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The most samples, by bandwidth, of which the fastest memory is by no more than _UNSTABLE above the slowest."""
    rising = sorted(samples, key=lambda s: s[1] + s[2])
    groups = [
        [s for s in rising[first:] if (1 - _UNSTABLE) * (s[1] + s[2]) <= slowest[1] + slowest[2]]
        for first, slowest in enumerate(rising)
    ]
    return max(groups, key=len, default=[])


def back_to_back_s(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one run after others, which bring code and weights into the caches; short ones as a mean."""
    took = _warm_runs_s(run, clock)
    times = max(1, min(_MOST_BACK_TO_BACK, round(_SHORTEST_S / max(median(took[-_BLOCK:]), 1e-9))))
    start = clock()
    for _ in range(times):
        run()
    return (clock() - start) / times


def _warm_runs_s(run: Callable[[], object], clock: Callable[[], float]) -> list[float]:
    """Run until runs do not become faster: how fast a cache takes in what it can hold, the first run does not say."""
    took, start = list[float](), clock()
    while True:
        before = clock()
        run()
        took.append((end := clock()) - before)
        warm = end - start + took[-1] > _WARM_S and not _faster(took)
        if warm or end - start + took[-1] > _LONGEST_WARM_S:
            return took


def _faster(took: Sequence[float]) -> bool:
    """Whether the last runs took less time than those before them."""
    block = min(_BLOCK, len(took) // 2)
    return block > 1 and median(took[-block:]) < _FASTER * median(took[-2 * block : -block])


def take_turns(steps: Sequence[Step], read: Callable[[], float], more: Callable[[int], bool]) -> None:
    """Time every step once a pass, so that a slow spell hits all of them.

    Args:
        steps: what to time.
        read: measures the memory's GB/s; called between the steps.
        more: passes done -> whether another one follows.
    """
    passes = 0
    while more(passes):
        before = read()
        for step in steps:
            seconds, after = step.time_s(), read()
            step.samples.append((seconds, before, after))
            before = after
        passes += 1


def take_turn(steps: Sequence[Step], read: Callable[[], float], budget: Budget) -> bool:
    """Time every step once, in turn, but those that would not end in time; False where that is more than half of them.

    A step that was not timed yet is guessed from those that were: their median time for a token.
    """
    if not budget.allows("read"):
        return False
    with budget.spend("read"):
        before = read()
    left_out = 0
    for step in steps:
        a_token = [took / s.facts.n for s in steps if s is not step and (took := budget.took_s(id(s))) is not None]
        if not budget.allows(id(step), step.facts.n * median(a_token) if a_token else 0.0):
            left_out += 1
            continue
        with budget.spend(id(step)):
            seconds, after = step.time_s(), read()
        step.samples.append((seconds, before, after))
        before = after
    return 2 * left_out <= len(steps)
