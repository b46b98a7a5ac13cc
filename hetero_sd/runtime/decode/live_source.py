"""What is known of one source of drafts, and what was decided for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.live_acceptance import LiveAcceptance
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.stopping import DraftLimit, Prices, Stopping
from hetero_sd.runtime.decode.trace import Round, Switch

PERIOD = 4  # rounds after which a new draft length is looked at again


class Source:
    """Set by a :class:`LiveGamma`.

    Attributes:
        name: of the source.
        acceptance: of its drafts.
        gamma: its draft length; 0: it does not draft.
        skips: it reads only the end of a text that it has not read.
        left, period: rounds until the next decision, and how many there were after the last one.
        tokens_per_s: expected with that draft length, at the last decision.
        risks_s: draft length -> what a round loses at most, at the last decision.
        rounds_s: seconds of rounds with 0, 1, 2, ... drafts, at the last decision.
        lent_s: what a round may lose beside what the bank holds, at the last decision.
        judged: drafted tokens that the target has judged in this run.
        pays: it surely pays, by what the run has shown, at the last decision.
        limit: of the present round; None where it has the draft length.
    """

    def __init__(self, name: str, acceptance: LiveAcceptance, gamma: int = 0, stops: bool = False) -> None:
        """Begin with a draft length; ``stops``: its drafts may end by their confidence."""
        self.name, self.acceptance, self.gamma = name, acceptance, gamma
        self.skips = False
        self.left, self.period = 0, PERIOD
        self.tokens_per_s = 0.0
        self.risks_s: dict[int, float] = {}
        self.rounds_s: list[float] = []
        self.lent_s = 0.0
        self.judged, self.pays = 0, False
        self.limit: DraftLimit | None = None
        self._stopping = Stopping() if stops else None

    @property
    def limited(self) -> bool:
        """Whether the present round may have another length than the draft length."""
        return self.limit is not None and not self.limit.learns

    def begin_round(self, offer: Offer, times: LiveTimes, longest: Callable[[], int]) -> int:
        """Begin a round that drafts; tokens to draft, up to ``longest`` where the limit decides.

        A round asks for no more times than it must: it may last a tenth of a millisecond.
        """
        self.left -= 1
        limited, self.limit = self.limited, None
        if self._stopping is not None and offer.confident:
            self.limit = self._stopping.limit(
                lambda: Prices(self.acceptance.mean, self.rounds_s[: longest() + 1], times.confidence_s())
            )
        if self.limited:
            return longest()
        if limited:  # the draft length was not run for a while
            self.left = min(self.left, PERIOD)
        return self.gamma

    def end_round(self, finished: Round, at: int) -> bool:
        """Learn from a round that drafted, and ended after ``at`` tokens of text; whether the text has changed."""
        if self._stopping is not None and self.limit is not None and finished.confidences:
            self._stopping.observe(self.limit, finished.accepted)
        self.judged += min(finished.accepted + 1, finished.drafted)
        return self.acceptance.observe(finished.accepted, finished.drafted, at)

    def switch(self, before: int, why: str, times: LiveTimes, speeds: Mapping[int, float], bank_s: float) -> Switch:
        """The change from another draft length, with its numbers; ``speeds`` are those that were expected."""
        longer, plain_s = max(before, self.gamma), times.plain_s()
        return Switch(
            source=self.name,
            before=before,
            after=self.gamma,
            why=why,
            acceptance=self.acceptance.mean,
            plain_s=plain_s,
            round_s=times.round_s(self.name, longer),
            speedup=speeds[longer] / speeds[0],
            bank_s=bank_s,
        )
