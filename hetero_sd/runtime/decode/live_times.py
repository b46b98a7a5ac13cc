"""The times of a run's steps, as seen; what was not run yet is predicted.

A time is a low quantile of the last observations (seen.py): a pause of the system, or other work on the machine, hardly
changes it; where that work makes drafting longer than it makes plain steps, drafting counts as so much longer
(`seen.stretched`). A prediction is the plan's number, corrected by how far its other numbers were off; it counts by the
chance that all observations of its step were disturbed (step_times.py). Where the last few of a width are clearly
others than those before, the processor became slower or faster: all widths are scaled until they are seen again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.seen import RECENT, WINDOW, Seen, stretched
from hetero_sd.runtime.decode.step_times import steps_of
from hetero_sd.runtime.decode.trace import Round

_SPREAD = 0.05  # until some deviations were seen
_DOUBT = 0.9  # of a plain step, that a wider one must take less than to make it doubtful
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
        self._other, self._other_drafted = Seen(), Seen()
        self._before: dict[int, float] = {}  # width -> plain steps that it took when it was last run
        self._drafted_before: dict[str, float] = {}  # plain steps that a drafted token took
        self._fresh: set[int] = set()  # widths run since the last decision
        self._verified_at: dict[int, int] = {}  # width -> tokens of text when it was last run
        self._drafted_at: dict[str, int] = {}
        self._widths = {
            n: next((w for w in self.widths if w >= n), self.widths[-1]) for n in range(self.widths[-1] + 1)
        }
        self._steps: dict[int, float] | None = None  # of every width; None: something was seen since
        self._hopeful: dict[int, float] = {}

    def measured(self, width: int, seconds: float) -> None:
        """A step of the target that was run to be timed."""
        self._verify[width].append(seconds)
        self._verified_at.setdefault(width, 0)
        self._steps = None

    def measured_draft(self, seconds: float) -> None:
        """A step of the draft model that was run to be timed."""
        self._draft[MODEL].append(seconds)
        self._drafted_at.setdefault(MODEL, 0)

    def observe(self, finished: Round, at: int) -> None:
        """Learn from a round that ended after ``at`` tokens of text: a few additions."""
        drafted = finished.drafted
        if not drafted:
            self.observe_plain([finished], at)
            return
        if drafted < self.widths[-1]:
            width = self._widths[drafted + 1]
            self._verify[width].append(finished.verify_s)
            self._verified_at[width] = at
            self._fresh.add(width)
            self._steps = None
        self._draft[finished.source].append(finished.draft_s / drafted)
        self._drafted_at[finished.source] = at
        self._other_drafted.append(finished.loop_s + finished.sampling_s)
        if finished.confidences:
            self._confidence.append(finished.confidence_s / drafted)
        self._observe_reading(finished)

    def observe_plain(self, rounds: Sequence[Round], at: int) -> None:
        """Learn from rounds without drafts, the last of which ended after ``at`` tokens of text."""
        width = self._widths[1]
        self._verify[width].extend([finished.verify_s for finished in rounds])
        self._verified_at[width] = at
        self._fresh.add(width)
        self._steps = None  # a search that found nothing is in draft_s
        self._other.extend([finished.loop_s + finished.sampling_s + finished.draft_s for finished in rounds])
        for finished in rounds:
            if finished.read:
                self._observe_reading(finished)

    def _observe_reading(self, finished: Round) -> None:
        if finished.read > self._narrow:
            self._chunk.append(finished.catch_up_s / self._chunks(finished.read))

    def _follow(self, width: int) -> None:
        """Where the processor's speed has changed, scale what was seen of the target's other widths.

        Plain steps are forgotten: what all else is compared with is timed anew.
        """
        change = self._verify[width].change()
        if change == 1.0:
            return
        for other, times in self._verify.items():
            self._verify[other] = Seen(list(times.times)[-RECENT:] if other == width else [change * times.low])
        self._steps = None
        if width != 1:
            self.forget_plain()

    def settle(self, at: int) -> None:
        """Before a decision: follow the processors' speeds, drop what was seen long before ``at`` tokens of text."""
        for width in sorted(self._fresh & self._verify.keys()):
            self._follow(width)
        self._fresh.clear()
        for source, times in self._draft.items():
            if times.change() != 1.0:
                self._draft[source] = Seen(list(times.times)[-RECENT:])
        for width in [w for w, seen in self._verified_at.items() if at - seen > _STALE_TOKENS]:
            self._before[width] = self._verify[width].low / self.step_s(1)
            del self._verified_at[width], self._verify[width]
            self._steps = None
        for source in [s for s, seen in self._drafted_at.items() if at - seen > _STALE_TOKENS]:
            self._drafted_before[source] = self._draft[source].low / self.step_s(1)
            del self._drafted_at[source], self._draft[source]
            if source == MODEL:
                self._chunk = Seen()

    def forget_plain(self) -> None:
        """Plain steps are timed anew: what all else is compared with."""
        self._verify.pop(1, None)
        self._verified_at.pop(1, None)
        self._steps = None

    def seen(self, width: int) -> int:
        """How often a step of the target was seen."""
        return len(self._verify.get(width, ()))

    @property
    def plain_is_doubtful(self) -> bool:
        """Whether plain steps were seen a few times and took longer than steps of more rows, which never take less."""
        plain = self._verify.get(1)
        if plain is None or len(plain) >= 2 * RECENT:
            return False
        longest = _DOUBT * plain.low
        return any(seen.low < longest for width, seen in self._verify.items() if width > 1 and seen)

    def width(self, gamma: int) -> int:
        """The entry point that verifies so many drafts; the widest where none is wide enough."""
        return self._widths.get(gamma + 1, self.widths[-1])

    def known(self, source: str, gamma: int) -> bool:
        """Whether the steps of a round were seen."""
        return self.seen(self.width(gamma)) > 0 and bool(self._draft.get(source))

    def step_s(self, width: int) -> float:
        """A step of the target: as seen, where that was a few times.

        One that was not seen is expected to take as many plain steps as long ago, or as the plan says; at least one and
        at most n, and no more than a wider one. Of one that was seen once or twice the times may all have been
        disturbed: it takes no more than that either, and what is expected counts, too.
        """
        return self.steps_s()[width]

    def steps_s(self, hopeful: bool = False) -> dict[int, float]:
        """A step of each width; hopeful: as fast as it may be, given how often it was run.

        One that was not seen may take no longer than narrower ones, because more rows never take less.
        """
        if self._steps is None:
            self._steps, self._hopeful = steps_of(
                self._verify, self._before, self._predicted.verify_s, self._correction(), self._spread()
            )
        return self._hopeful if hopeful else self._steps

    def most_steps_s(self) -> dict[int, float]:
        """A step of each width as long as it may be: one that was not seen, as long as narrower ones in a row."""
        steps, found = self.steps_s(), dict[int, float]()
        seen = [(w, steps[w]) for w, times in self._verify.items() if len(times.times) > 1]
        known = {w for w, _ in seen}
        for width, seconds in steps.items():
            rows = 0.0 if width in known or not seen else min(-(-width // w) * s for w, s in seen)
            found[width] = max(seconds, rows)
        return found

    def _spread(self) -> float:
        """Relative standard deviation of a step."""
        found = sorted(times.spread for times in self._verify.values() if len(times) >= RECENT)
        return found[len(found) // 2] if found else _SPREAD

    def draft_s(self, source: str) -> float:
        """A drafted token."""
        if seen := self._draft.get(source):
            plain = self._verify.get(1)
            return seen.low * stretched(seen, plain) if plain else seen.low
        if source in self._drafted_before:
            return self._drafted_before[source] * self.step_s(1)
        return self._predicted.draft_s * self._correction() if source == MODEL else 0.0

    def confidence_s(self) -> float:
        """Telling how confident the drafter is of a token; nothing, until it was seen."""
        return self._confidence.low if self._confidence else 0.0

    def other_s(self, drafts: bool = False) -> float:
        """The rest of a round; one that drafts has more of it."""
        seen = self._other_drafted if drafts and self._other_drafted else self._other
        return seen.low if seen else self._predicted.round_s

    def plain_s(self) -> float:
        """A round without drafts."""
        return self.step_s(1) + self.other_s()

    def sure_plain_s(self) -> float:
        """What a round without drafts takes at least: a standard error less than was seen, while few were seen."""
        error = self._spread() * (1 / math.sqrt(self.seen(1) or 1) - 1 / math.sqrt(WINDOW))
        return self.step_s(1) * (1 - error) + self.other_s()

    def round_s(self, source: str, gamma: int) -> float:
        """A round with drafts."""
        return gamma * self.draft_s(source) + self.step_s(self.width(gamma)) + self.other_s(gamma > 0)

    def risks_s(self, source: str, gammas: Sequence[int]) -> dict[int, float]:
        """What a round of each draft length loses at most against a plain step: all drafts are rejected."""
        draft, plain = self.draft_s(source), self.sure_plain_s() - self.other_s(True)
        steps, most, risks = self.steps_s(), self.most_steps_s(), {0: 0.0}
        for gamma in gammas:
            if gamma:
                width = self.width(gamma)
                risks[gamma] = max(0.0, gamma * draft + (steps if gamma == 1 else most)[width] - plain)
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
        seen = self._chunk
        return seen.low if len(seen) > 2 else min(seen.low, expected) if seen else expected

    def _chunks(self, tokens: int) -> int:
        return -(-tokens // self.chunk)

    def _correction(self) -> float:
        """Seen over predicted, the median over widths: how far this machine is from the plan's."""
        ratios = sorted(seen.low / self._predicted.verify_s[w] for w, seen in self._verify.items() if seen)
        return (ratios[len(ratios) // 2] + ratios[(len(ratios) - 1) // 2]) / 2 if ratios else 1.0
