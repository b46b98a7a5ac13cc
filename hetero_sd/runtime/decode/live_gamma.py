"""How many tokens to draft, decided again and again from what the run itself shows, with the cost model's formulas.

Known at the start is what the plan predicts and what was timed before the first prompt (start_times.py). Every round
then gives times (live_times.py) and judged tokens (live_acceptance.py), and every few rounds the draft length with the
most expected tokens a second is taken (costmodel/speculative.py), 0 among them, for each source of drafts.

* Trying costs. A bank holds the time that may be lost against the target alone (loss_bank.py), more where the plan's
  acceptance was measured and promises much. A round begins only where the bank can pay for it with all its drafts
  rejected; a few steps are lent where drafting surely pays: by an acceptance a standard deviation below what the run
  itself has shown.
  When drafting looks too slow it is still tried once the bank can pay for it, so that it comes back when the text
  changes. Before it is given up plain steps are timed anew: the machine may have become slower, not the drafts.
* Reading costs. A drafter that has not seen the text must read it first. It does so when what is gained on the expected
  rest of the answer repays it, at an acceptance a standard deviation below the one believed in, or when the bank can
  pay for it. Where a quarter of the time to the first token is enough, or 4 plain steps, it reads before that token
  is shown; else in pieces (reading.py). It drafts when all is read.

The same observations lead to the same decisions, and no decision changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode.answer_length import AnswerLength
from hetero_sd.runtime.decode.draft_lengths import DraftLengths
from hetero_sd.runtime.decode.drafters import MODEL, Offer
from hetero_sd.runtime.decode.live_acceptance import LiveAcceptance
from hetero_sd.runtime.decode.live_source import PERIOD, Source
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.loss_bank import LossBank, promised_steps
from hetero_sd.runtime.decode.policy import PLAIN, Choice
from hetero_sd.runtime.decode.reading import SHORT_READING, next_piece
from hetero_sd.runtime.decode.trace import Round, Switch
from hetero_sd.runtime.decode.worth import Worth

_RICH_STEPS, _KNOWN = 4.0, 24.0  # banked, to explore draft lengths; judged tokens that tell an acceptance
_OTHER_PRIOR, _OTHER_WEIGHT = 0.5, 4.0  # of a source that the plan does not know
_TRIES = 2  # plain steps that must be seen first
_PLAIN_PERIOD = 8  # rounds after which a decision not to draft is looked at again; to draft, PERIOD
_LONGEST_PERIOD, _LONGEST_PLAIN_PERIOD = 16, 32  # every time it is confirmed, twice as many, at most
_REFRESH_TOKENS, _FIRST_REFRESH = 256, 8  # tokens after which a plain step is timed again, at most; at first
_LONGEST_REST = 64  # rounds until a source is looked at again that cannot be paid for
_FIRST_READING, _FIRST_READING_STEPS = 0.25, 4.0  # of the time to the first token, that reading may add; plain steps


class LiveGamma:
    """Decides from live acceptance and times; see the module."""

    def __init__(
        self,
        predicted: LivePrediction,
        gammas: Iterable[int],
        start: int = 0,
        narrow: int = 1,
        stops: bool = False,
        only_model: bool = False,
    ) -> None:
        """Start from the plan.

        Args:
            predicted: what the plan says.
            gammas: the draft lengths whose verification is compiled, 0 among them.
            start: the draft length of the model's drafts until something is known.
            narrow: the widest step of the drafter, beside its chunks.
            stops: the model's drafts end before the draft length, or go on after it, by their confidence.
            only_model: no other source will be offered.
        """
        self.times = LiveTimes(predicted, narrow)
        self._lengths = DraftLengths(self.times, gammas)
        start = max(g for g in self._lengths.all if g <= start)
        self._sources = {MODEL: Source(MODEL, LiveAcceptance(predicted.alpha, predicted.alpha_tokens), start, stops)}
        self._only_model = only_model
        self._text = 0  # tokens of all texts
        model = self._sources[MODEL]
        gain = self._lengths.gain(model, model.acceptance.cautious)
        self._bank = LossBank(promised_steps(gain, predicted.alpha_tokens))
        self._since_plain = 0
        self._retime = 0  # plain steps that are to be timed now
        self._switches = list[Switch]()  # not reported yet
        self._answer = AnswerLength()
        self._worth = Worth(self.times, self._lengths, self._bank, self._answer)

    @property
    def alpha(self) -> float:
        """The acceptance of the model's drafts that is believed in."""
        return self._sources[MODEL].acceptance.mean

    def likely_gamma(self) -> int:
        """The draft length of the model's drafts that is likely to be used first."""
        started = self._sources[MODEL].gamma
        return started or max(self._lengths.drafting, key=lambda g: self.tokens_per_s(MODEL, g), default=0)

    def best_tokens_per_s(self) -> float:
        """The expected speed of the best draft length of the model's drafts, 0 among them."""
        return max(self.tokens_per_s(MODEL, gamma) for gamma in self._lengths.all)

    def observe_beside(self, finished: Round, seconds: float) -> None:
        """Learn from a round that was drafted while the target verified, and typically takes so long.

        It says what is accepted, and what was lost or gained; the times of its steps are others.
        """
        tokens = finished.accepted + 1
        self._answer.add(tokens)
        self._text += tokens
        self._bank.note_beside(tokens, seconds, self.times.sure_plain_s())
        if finished.drafted:
            self._source(MODEL).acceptance.observe(finished.accepted, finished.drafted, self._text)

    def may_lose_s(self) -> float:
        """What another round may lose against the target alone."""
        self._settle()
        return self._bank.free_s

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """A new text."""
        self._answer.begin(max_new_tokens)
        self._bank.begin(self.times.sure_plain_s(), self.times.round_s)
        for source in self._sources.values():
            source.left = 0 if source.gamma else min(source.left, _PLAIN_PERIOD)

    def read_first(self, offers: Sequence[Offer], prefill_s: float) -> int:
        """All of the prompt, where reading it takes little time and pays, or is to be tried."""
        offer = next((offer for offer in offers if offer.source == MODEL), None)
        if offer is None or self.times.seen(1) < _TRIES:
            return 0
        source, price = self._sources[MODEL], self.times.read_s(offer.unread)
        if price > max(_FIRST_READING * prefill_s, _FIRST_READING_STEPS * self.times.plain_s()):
            return 0
        self._worth.first = True
        self._switches += self._decide(source, offer)
        self._worth.first = False
        if not source.gamma:
            source.left = min(source.left, _PLAIN_PERIOD)
            return 0
        self._bank.note_reading(price)
        return offer.unread

    def rests(self) -> bool:
        """Whether the draft model does not draft, and that is not looked at again yet."""
        source = self._sources[MODEL]
        if not self._only_model or source.gamma or source.left <= 0 or self._switches:
            return False
        source.left -= 1
        return True

    def choose(self, offers: Sequence[Offer]) -> Choice:
        """What the next round does: it drafts from the source that is expected to be fastest, or from none."""
        timed = self.times.seen(1) >= _TRIES and not self.times.plain_is_doubtful
        if not offers or self._retime or self._since_plain >= self._refresh_tokens() or not timed:
            return PLAIN
        switches, self._switches = self._switches, []
        best: tuple[Source, Offer] | None = None
        for offer in offers:
            source = self._source(offer.source)
            if source.left <= 0:
                switches += self._decide(source, offer)
            if not source.gamma:
                source.left -= 1
            elif best is None or source.tokens_per_s > best[0].tokens_per_s:
                best = source, offer
        if best is None or self._retime:
            return Choice(switches=tuple(switches))
        source, offer = best
        reads = offer.unread and self.times.read_s(offer.unread) > SHORT_READING * self.times.plain_s()
        read, skip = next_piece(self.times, offer.unread, source.skips) if reads else (offer.unread, 0)
        if reads:
            goes_on = self._bank.pays_reading(self.times.read_s(read))
        else:
            goes_on = self._lengths.goes_on(source, source.gamma, self._bank.free_s)
        if not goes_on:
            switches += self._decide(source, offer)
        if not source.gamma or self._retime:
            return Choice(switches=tuple(switches))
        if reads:
            return Choice(source.name, 0, read, skip, tuple(switches))
        gamma = source.begin_round(offer, self.times, lambda: self._lengths.longest(source, self._bank.free_s))
        self._bank.reserve(source.risks_s[gamma])
        return Choice(source.name, gamma, offer.unread, switches=tuple(switches), limit=source.limit)

    def observe(self, finished: Round) -> None:
        """Learn from a round: a few additions, because steps can be as short as a millisecond."""
        tokens = finished.accepted + 1
        self._answer.add(tokens)
        self._text += tokens
        self.times.observe(finished, self._text)
        if finished.read:
            self._bank.note_reading(self.times.read_s(finished.read))
        if not finished.drafted:
            self._bank.note_plain()
            self._since_plain, self._retime = 0, max(0, self._retime - 1)
            return
        source = self._source(finished.source)
        self._bank.note_drafted(source.name, finished.drafted, tokens)
        self._since_plain += tokens
        if source.end_round(finished, self._text):
            source.left = 0

    def tokens_per_s(self, source: str, gamma: int) -> float:
        """Expected speed with a draft length."""
        return self._lengths.tokens_per_s(self._source(source), gamma)

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = Source(name, LiveAcceptance(_OTHER_PRIOR, _OTHER_WEIGHT, self._text))
        return self._sources[name]

    def _settle(self) -> None:
        self._bank.settle(self.times.sure_plain_s(), self.times.round_s)

    def _decide(self, source: Source, offer: Offer) -> list[Switch]:
        """Set the draft length of a source; the switch, where it is another one."""
        self.times.settle(self._text)
        self._settle()
        plain_s = self.times.plain_s()
        rich = self._bank.held_s >= _RICH_STEPS * plain_s  # there is time to find out
        hopeful = rich and not source.limited  # a limit would not draft so far
        speeds = self._lengths.speeds(source, hopeful)
        before, payable = source.gamma, self._lengths.payable(source, speeds, self._bank.free_s)
        wanted, best = (self._lengths.best(speeds, before, among) for among in (self._lengths.all, payable))
        why = "drafting pays" if not before else "another length is faster" if best else "drafting loses"
        if wanted and not best and before:
            why = "drafting lost what may be lost"
        if before and not best and self._since_plain:
            self._retime, source.left = _TRIES, 0  # is it the machine that is slower? Plain steps will say
            return []
        may_pay = not before or self._lengths.gain(source, source.acceptance.hopeful) > 1.0
        if not best and may_pay and (not wanted or source.acceptance.weight < _KNOWN):  # else it saves for what pays
            best = self._worth.length_to_try(source, 0 if wanted else offer.unread, speeds, payable)
            why = "tried again" if best else why
        if best and wanted and not self._worth.reading(source, offer.unread):
            best, why = 0, "the rest of the answer does not repay reading"
        least, most = (PERIOD, _LONGEST_PERIOD) if best or wanted else (_PLAIN_PERIOD, _LONGEST_PLAIN_PERIOD)
        source.period = min(2 * source.period, most) if best == before else least
        source.gamma, source.left, source.tokens_per_s = best, source.period, speeds[best]
        if best and best == before:
            self._bank.confirm()
        elif before and not best and not wanted:
            self._bank.fail()
        if len(payable) == 1 and self._lengths.drafting:
            until_s = self._bank.time_until_s(source.risks_s[self._lengths.drafting[0]])
            source.left = max(source.left, min(_LONGEST_REST, int(until_s / plain_s)))
        if best and not self.times.known(source.name, best):
            source.left = 1
        return [] if best == before else [source.switch(before, why, self.times, speeds, self._bank.held_s)]

    def _refresh_tokens(self) -> int:
        """Tokens after which a plain step is timed again: a few, until it was seen more than a few times."""
        return min(_REFRESH_TOKENS, _FIRST_REFRESH << min(8, self.times.seen(1)))
