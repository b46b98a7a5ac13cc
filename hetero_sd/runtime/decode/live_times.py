"""The times of a run's steps, as seen; what was not run yet is predicted.

A time is the median of the last observations: a pause of the system changes nothing. Where the last few of a width are
a fifth off those before, and more than chance explains, the processor became slower or faster: all widths are scaled
until they are seen again. A prediction is the plan's number, corrected by how far its other numbers were off.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median, median_low

from costmodel.schema.plan import LivePrediction
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.seen import RECENT, WINDOW, Seen
from hetero_sd.runtime.decode.trace import Round

_DRIFT = 0.2  # how far off the last few are that show another speed of the processor
_SURPRISE = 4.0  # standard errors that chance does not explain; those of a median are 1.25 times those of a mean
_OPTIMISM = 0.9  # on what was seen long ago
_SPREAD = 0.05  # until some deviations were seen
_STALE_TOKENS = 500  # after which times count no longer


class LiveTimes:
    """Seconds of steps and rounds."""

    def __init__(self, predicted: LivePrediction, narrow: int = 1) -> None:
        """Start from the plan; ``narrow`` is the widest step of the drafter, beside its chunks."""
        self._predicted, self._narrow = predicted, narrow
        self.widths, self.chunk = sorted(predicted.verify_s), predicted.chunk
        self._verify: dict[int, Seen] = defaultdict(Seen)
        self._draft: dict[str, Seen] = defaultdict(Seen)
        self._confidence = Seen()
        self._chunk = Seen()
        self._other = Seen()
        self._before: dict[int, float] = {}  # width -> plain steps that it took when it was last run
        self._drafted_before: dict[str, float] = {}  # plain steps that a drafted token took
        self._fresh: set[int] = set()  # widths run since the last decision
        self._verified_at: dict[int, int] = {}  # width -> tokens of text when it was last run
        self._drafted_at: dict[str, int] = {}

    def measured(self, width: int, seconds: float) -> None:
        """A step of the target that was run to be timed."""
        self._verify[width].append(seconds)
        self._verified_at.setdefault(width, 0)

    def measured_draft(self, seconds: float) -> None:
        """A step of the draft model that was run to be timed."""
        self._draft[MODEL].append(seconds)
        self._drafted_at.setdefault(MODEL, 0)

    def observe(self, finished: Round, at: int) -> None:
        """Learn from a round that ended after ``at`` tokens of text: a few additions."""
        width = next((w for w in self.widths if w > finished.drafted), 0) if finished.drafted else 1
        if width:
            self._verify[width].append(finished.verify_s)
            self._verified_at[width] = at
            self._fresh.add(width)
        other = finished.dispatch_s + finished.sampling_s
        if finished.drafted:
            each = finished.draft_s / finished.drafted
            self._draft[finished.source].append(each)
            self._drafted_at[finished.source] = at
            if finished.confidences:
                self._confidence.append(finished.confidence_s / finished.drafted)
        else:
            other += finished.draft_s  # a search that found nothing
        self._other.append(other)
        if finished.read > self._narrow:
            self._chunk.append(finished.catch_up_s / self._chunks(finished.read))

    def _follow(self, width: int) -> None:
        """Where the processor's speed has changed, scale what was seen of the target's other widths.

        Plain steps are forgotten: what all else is compared with is timed anew.
        """
        seen = list(self._verify[width].times)
        if len(seen) < 2 * RECENT:
            return
        change = median(seen[-RECENT:]) / median(seen[:-RECENT])
        if abs(change - 1) < _DRIFT:
            return
        by_chance = _SURPRISE * self._spread() * math.sqrt(1 / RECENT + 1 / (len(seen) - RECENT))
        if abs(change - 1) < by_chance:
            return
        for other, times in self._verify.items():
            self._verify[other] = Seen(seen[-RECENT:] if other == width else [change * times.median])
        if width != 1:
            self.forget_plain()

    def settle(self, at: int) -> None:
        """Before a decision: follow the processor's speed, drop what was seen long before ``at`` tokens of text."""
        for width in sorted(self._fresh & self._verify.keys()):
            self._follow(width)
        self._fresh.clear()
        for width in [w for w, seen in self._verified_at.items() if at - seen > _STALE_TOKENS]:
            self._before[width] = self._verify[width].median / self.step_s(1)
            del self._verified_at[width], self._verify[width]
        for source in [s for s, seen in self._drafted_at.items() if at - seen > _STALE_TOKENS]:
            self._drafted_before[source] = self._draft[source].median / self.step_s(1)
            del self._drafted_at[source], self._draft[source]
            if source == MODEL:
                self._chunk = Seen()

    def forget_plain(self) -> None:
        """Plain steps are timed anew: what all else is compared with."""
        self._verify.pop(1, None)
        self._verified_at.pop(1, None)

    def seen(self, width: int) -> int:
        """How often a step of the target was seen."""
        return len(self._verify.get(width, ()))

    def width(self, gamma: int) -> int:
        """The entry point that verifies so many drafts; the widest where none is wide enough."""
        return next((w for w in self.widths if w > gamma), self.widths[-1])

    def known(self, source: str, gamma: int) -> bool:
        """Whether the steps of a round were seen."""
        return self.seen(self.width(gamma)) > 0 and bool(self._draft.get(source))

    def step_s(self, width: int) -> float:
        """A step of the target: the median seen.

        One that was not seen is expected to take as many plain steps as long ago, or as the plan says; at least one and
        at most n, and no more than a wider one. One that was seen a few times may have had a pause of the system.
        """
        seen = self._verify.get(width)
        if seen and len(seen) >= RECENT:
            return seen.median
        if seen and len(seen) > 1:
            return min([seen.median, *(times.median for w, times in self._verify.items() if w > width)])
        expected = self._predicted.verify_s[width] * self._correction()
        if width > 1 and 1 in self._verify:
            plain = self._verify[1].median
            expected = self._before[width] * plain if width in self._before else expected
            expected = min(max(expected, plain), width * plain)
        most = [times.median for w, times in self._verify.items() if w > width and len(times) > 1]
        expected = min([expected, *most])
        if not seen:
            return expected
        if width > 1 and 1 in self._verify:
            most.append(width * self._verify[1].median)
        return (min([seen.median, *most]) + expected) / 2

    def hopeful_step_s(self, width: int) -> float:
        """A step of the target as fast as it may be: a standard error less than was seen.

        One that was not seen may take no longer than narrower ones, because more rows never take less.
        """
        if seen := self._verify.get(width):
            return self.step_s(width) * max(0.5, 1 - self._spread() / math.sqrt(len(seen)))
        if width in self._before:
            return self.step_s(width) * _OPTIMISM
        narrower = [times.median for w, times in self._verify.items() if w < width]
        return max(narrower, default=self.step_s(width))

    def most_step_s(self, width: int) -> float:
        """A step of the target as long as it may be: one that was not seen, as long as narrower ones in a row."""
        if len(self._verify.get(width, ())) > 1:
            return self.step_s(width)
        rows = [-(-width // w) * self.step_s(w) for w in self._verify if self.seen(w) > 1]
        return max(self.step_s(width), min(rows, default=0.0))

    def _spread(self) -> float:
        """Relative standard deviation of a step."""
        found = [times.spread for times in self._verify.values() if len(times) >= RECENT]
        return median(found) if found else _SPREAD

    def draft_s(self, source: str) -> float:
        """A drafted token."""
        if seen := self._draft.get(source):
            return seen.median
        if source in self._drafted_before:
            return self._drafted_before[source] * self.step_s(1)
        return self._predicted.draft_s * self._correction() if source == MODEL else 0.0

    def confidence_s(self) -> float:
        """Telling how confident the drafter is of a token; nothing, until it was seen."""
        return self._confidence.median if self._confidence else 0.0

    def other_s(self) -> float:
        """The rest of a round."""
        return self._other.median if self._other else self._predicted.round_s

    def plain_s(self) -> float:
        """A round without drafts."""
        return self.step_s(1) + self.other_s()

    def sure_plain_s(self) -> float:
        """What a round without drafts takes at least: a standard error less than was seen, while few were seen."""
        error = self._spread() * (1 / math.sqrt(self.seen(1) or 1) - 1 / math.sqrt(WINDOW))
        return self.step_s(1) * (1 - error) + self.other_s()

    def round_s(self, source: str, gamma: int) -> float:
        """A round with drafts."""
        return gamma * self.draft_s(source) + self.step_s(self.width(gamma)) + self.other_s()

    def risks_s(self, source: str, gammas: Sequence[int]) -> dict[int, float]:
        """What a round of each draft length loses at most against a plain step: all drafts are rejected."""
        draft, plain, risks = self.draft_s(source), self.sure_plain_s() - self.other_s(), {0: 0.0}
        for gamma in gammas:
            if gamma:
                verify_s = (self.step_s if gamma == 1 else self.most_step_s)(self.width(gamma))
                risks[gamma] = max(0.0, gamma * draft + verify_s - plain)
        return risks

    def read_s(self, tokens: int) -> float:
        """What the drafter needs to read so many tokens in one go."""
        if tokens <= 0:
            return 0.0
        return self.draft_s(MODEL) if tokens <= self._narrow else self._chunks(tokens) * self._chunk_s()

    def piece(self) -> int:
        """Tokens that the drafter reads in about a plain step: whole chunks, or a step where a chunk takes longer."""
        chunks = int(self.plain_s() / self._chunk_s())
        return chunks * self.chunk if chunks else self._narrow

    def _chunk_s(self) -> float:
        expected = self._predicted.chunk_s * self.draft_s(MODEL) / self._predicted.draft_s
        return self._chunk.median if len(self._chunk) > 2 else median_low([*self._chunk.times, expected])

    def _chunks(self, tokens: int) -> int:
        return -(-tokens // self.chunk)

    def _correction(self) -> float:
        """Seen over predicted, the median over widths: how far this machine is from the plan's."""
        ratios = [seen.median / self._predicted.verify_s[w] for w, seen in self._verify.items()]
        return median(ratios) if ratios else 1.0
