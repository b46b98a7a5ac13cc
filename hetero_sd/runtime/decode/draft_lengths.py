"""The draft lengths there are, how fast each is expected to be, and which can be paid for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from costmodel.speculative import expected_tokens
from hetero_sd.runtime.decode.live_source import Source
from hetero_sd.runtime.decode.live_times import LiveTimes

BET = 0.5  # of what may be lost, that one round of a long draft, or reading, may lose
_KNOWN, _SURE_GAIN = 12, 1.02  # judged tokens with which an acceptance is known; a gain that is lent for
SURE_STEPS = 8.0  # that may be lost beside the bank where drafting surely pays
_MARGIN, _START_MARGIN, _LEAVE_MARGIN = (
    1.005,
    1.01,
    1.01,
)  # what another draft length must gain over the present one, and over none


class DraftLengths:
    """Those whose verification is compiled, 0 among them.

    Attributes:
        all: ascending.
        drafting: without 0.
    """

    def __init__(self, times: LiveTimes, gammas: Iterable[int]) -> None:
        """With the times of the run."""
        self._times = times
        self.all = sorted({0, *gammas})
        self.drafting = self.all[1:]
        self._widths = {gamma: times.width(gamma) for gamma in self.all}

    def tokens_per_s(self, source: Source, gamma: int, alpha: float | None = None) -> float:
        """Expected speed with a draft length."""
        tokens = expected_tokens(source.acceptance.mean if alpha is None else alpha, gamma)
        return tokens / self._times.round_s(source.name, gamma)

    def speeds(self, source: Source, hopeful: bool = False, alpha: float | None = None) -> dict[int, float]:
        """Expected speed with each draft length; hopeful: as fast as it may be, given how often it was run."""
        times, found, drafted = self._times, dict[int, float](), 0
        steps, draft_s, other_s = times.steps_s(hopeful), times.draft_s(source.name), times.other_s(True)
        alpha = source.acceptance.mean if alpha is None else alpha
        tokens = product = 1.0
        for gamma in self.all:
            while drafted < gamma:
                product *= alpha
                tokens += product
                drafted += 1
            found[gamma] = tokens / (gamma * draft_s + steps[self._widths[gamma]] + other_s)
        found[0] = 1 / times.plain_s()
        return found

    def gain(self, source: Source, alpha: float) -> float:
        """The speed of the best draft length, 0 among them, over plain steps, at an acceptance."""
        speeds = self.speeds(source, alpha=alpha)
        return max(speeds.values()) / speeds[0]

    def best(self, speeds: Mapping[int, float], before: int, among: Sequence[int]) -> int:
        """The fastest draft length; the one before, where that is hardly slower."""
        best = max(among, key=lambda g: (speeds[g], -g))
        margin = (_MARGIN if best else _LEAVE_MARGIN) if before else _START_MARGIN
        return before if before in among and speeds[best] <= margin * speeds[before] else best

    def payable(self, source: Source, speeds: Mapping[int, float], free_s: float) -> list[int]:
        """Those of which some rounds may be lost; of the shortest, and of the shortest that pays, one round.

        What rounds take and risk is set in the source.
        """
        source.risks_s = self._times.risks_s(source.name, self.all)
        source.rounds_s = [self._times.round_s(source.name, gamma) for gamma in range(self.all[-1] + 1)]
        source.pays = source.judged >= _KNOWN and self.gain(source, source.acceptance.cautious) > _SURE_GAIN
        source.lent_s = SURE_STEPS * self._times.plain_s() if source.pays else 0.0
        if source.pays:
            return [g for g in self.all if self.goes_on(source, g, free_s)]
        paying = [g for g in self.drafting if speeds[g] > _START_MARGIN * speeds[0]]
        once = {*self.drafting[:1], *paying[:1]}
        return [g for g in self.all if source.risks_s[g] <= (1.0 if g in once else BET) * max(0.0, free_s)]

    def longest(self, source: Source, free_s: float) -> int:
        """The longest that can be paid for, or the one that was decided for."""
        most_s = (1.0 if source.pays else BET) * self._payable_s(source, free_s)
        return max(g for g in self.all if g <= source.gamma or source.risks_s[g] <= most_s)

    def goes_on(self, source: Source, gamma: int, free_s: float) -> bool:
        """Whether another round of a draft length may begin."""
        return source.risks_s[gamma] <= self._payable_s(source, free_s)

    def _payable_s(self, source: Source, free_s: float) -> float:
        """What may be lost; where drafting surely pays, some steps are lent."""
        return max(0.0, free_s + source.lent_s)
