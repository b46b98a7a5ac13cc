"""The decision of the live policy: the draft length of one source of drafts, and when it is looked at again."""

from __future__ import annotations

from hetero_sd.runtime.decode.draft_lengths import DraftLengths
from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.live_source import PERIOD, Source
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.loss_bank import LossBank
from hetero_sd.runtime.decode.pace import Pace
from hetero_sd.runtime.decode.trace import Switch
from hetero_sd.runtime.decode.worth import Worth

TRIES = 2  # plain steps that must be seen first
PLAIN_PERIOD = 8  # rounds after which a decision not to draft is looked at again; to draft, PERIOD
_RICH_STEPS, _KNOWN = 4.0, 24.0  # banked, to explore draft lengths; judged tokens that tell an acceptance
_LONGEST_PERIOD, _LONGEST_PLAIN_PERIOD = 16, 32  # every time it is confirmed, twice as many, at most; see pace.py
_LONGEST_REST = 64  # rounds until a source is looked at again that cannot be paid for


class Decision:
    """Sets the draft length of a source."""

    def __init__(self, times: LiveTimes, lengths: DraftLengths, bank: LossBank, worth: Worth, pace: Pace) -> None:
        """With what the run knows, which is up to date when it is called."""
        self._times, self._lengths, self._bank, self._worth, self._pace = times, lengths, bank, worth, pace

    def __call__(self, source: Source, offer: Offer, in_round: bool) -> list[Switch]:
        """The switch, where the draft length is another one; it is decided in the loop of a round or before any."""
        plain_s = self._times.plain_s()
        self._pace.decided(plain_s, in_round)
        rich = self._bank.held_s >= _RICH_STEPS * plain_s  # there is time to find out
        hopeful = rich and not source.limited  # a limit would not draft so far
        speeds = self._lengths.speeds(source, hopeful)
        before, payable = source.gamma, self._lengths.payable(source, speeds, self._bank.free_s)
        wanted, best = (self._lengths.best(speeds, before, among) for among in (self._lengths.all, payable))
        why = "drafting pays" if not before else "another length is faster" if best else "drafting loses"
        if wanted and not best and before:
            why = "drafting lost what may be lost"
        if before and not best and self._pace.since_plain:
            self._pace.retime, source.left = TRIES, 0  # is it the machine that is slower? Plain steps will say
            return []
        may_pay = not before or self._lengths.gain(source, source.acceptance.hopeful) > 1.0
        if not best and may_pay and (not wanted or source.acceptance.weight < _KNOWN):  # else it saves for what pays
            best = self._worth.length_to_try(source, 0 if wanted else offer.unread, speeds, payable)
            why = "tried again" if best else why
        if best and wanted and not self._worth.reading(source, offer.unread):
            best, why = 0, "the rest of the answer does not repay reading"
        least, most = (PERIOD, _LONGEST_PERIOD) if best or wanted else (PLAIN_PERIOD, _LONGEST_PLAIN_PERIOD)
        source.period = self._pace.rounds(least, most, source.period if best == before else None, best > 0)
        source.gamma, source.left, source.tokens_per_s = best, source.period, speeds[best]
        if best and best == before:
            self._bank.confirm()
        elif before and not best and not wanted:
            self._bank.fail()
        if len(payable) == 1 and self._lengths.drafting:
            until_s = self._bank.time_until_s(source.risks_s[self._lengths.drafting[0]])
            source.left = max(source.left, min(_LONGEST_REST, int(until_s / plain_s)))
        if best and not self._times.known(source.name, best):
            source.left = 1
        return [] if best == before else [source.switch(before, why, self._times, speeds, self._bank.held_s)]
