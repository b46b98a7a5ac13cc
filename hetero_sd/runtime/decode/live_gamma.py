"""How many tokens to draft, decided again and again from what the run itself shows, with the cost model's formulas.

Known at the start is what the plan predicts and what was timed before the first prompt (start_times.py). Every round
then gives times (live_times.py) and judged tokens (live_acceptance.py), and every few rounds the draft length with the
most expected tokens a second is taken (costmodel/speculative.py), 0 among them, for each source of drafts.

* Trying costs. A bank holds the time that may be lost against the target alone (loss_bank.py); when it is empty,
  nothing is drafted. When drafting looks too slow it is still tried once the bank can pay for it, so that it comes back
  when the text changes.
* Reading costs. A drafter that has not seen the text must read it first. It does so when what is gained on the expected
  rest of the answer repays it, at an acceptance a standard deviation below the one believed in, or when the bank can
  pay for it. Where a quarter of the time to the first token is enough, or 4 plain steps, it reads before that token
  is shown; else in pieces (reading.py). It drafts when all is read.

The same observations lead to the same decisions, and no decision changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from costmodel.schema.plan import LivePrediction
from costmodel.speculative import RoundCosts, expected_tokens, sequential_round
from hetero_sd.runtime.decode.drafters import MODEL, Offer
from hetero_sd.runtime.decode.live_acceptance import LiveAcceptance
from hetero_sd.runtime.decode.live_source import PERIOD, Source
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.loss_bank import LossBank
from hetero_sd.runtime.decode.policy import PLAIN, Choice
from hetero_sd.runtime.decode.reading import SHORT_READING, end_of_text, next_piece, whole_text
from hetero_sd.runtime.decode.trace import Round, Switch

_RICH_STEPS = 4.0  # banked, with which draft lengths are explored
_PRIOR_WEIGHT = 8.0  # judged tokens that the plan's acceptance counts for
_OTHER_PRIOR, _OTHER_WEIGHT = 0.5, 4.0  # of a source that the plan does not know
_TRIES = 2  # plain steps that must be seen first
_PLAIN_PERIOD = 8  # rounds after which a decision not to draft is looked at again; to draft, PERIOD
_LONGEST_PERIOD, _LONGEST_PLAIN_PERIOD = 16, 32  # every time it is confirmed, twice as many, at most
_MARGIN, _START_MARGIN = 1.005, 1.02  # what another draft length must gain over the present one, and over none
_REFRESH_TOKENS = 256  # after which a plain step is timed again
_LEAST_REST = 16  # tokens of an answer, for which a drafter reads to be tried
_LENGTH = 64.0  # tokens that an answer is expected to have, until one was seen
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
    ) -> None:
        """Start from the plan.

        Args:
            predicted: what the plan says.
            gammas: the draft lengths whose verification is compiled, 0 among them.
            start: the draft length of the model's drafts until something is known.
            narrow: the widest step of the drafter, beside its chunks.
            stops: the model's drafts end before the draft length, or go on after it, by their confidence.
        """
        self.times = LiveTimes(predicted, narrow)
        self._gammas = sorted({0, *gammas})
        start = max(g for g in self._gammas if g <= start)
        self._sources = {MODEL: Source(MODEL, LiveAcceptance(predicted.alpha, _PRIOR_WEIGHT), start, stops)}
        self._text = 0  # tokens of all texts
        self._bank = LossBank()
        self._since_plain = 0
        self._first, self._switches = False, list[Switch]()  # deciding before the first token; not reported yet
        self._length, self._done, self._most = _LENGTH, 0, 1 << 30

    @property
    def alpha(self) -> float:
        """The acceptance of the model's drafts that is believed in."""
        return self._sources[MODEL].acceptance.mean

    def likely_gamma(self) -> int:
        """The draft length of the model's drafts that is likely to be used first."""
        drafting = [g for g in self._gammas if g]
        started = self._sources[MODEL].gamma
        return started or max(drafting, key=lambda g: self.tokens_per_s(MODEL, g), default=0)

    def best_tokens_per_s(self) -> float:
        """The expected speed of the best draft length of the model's drafts, 0 among them."""
        return max(self.tokens_per_s(MODEL, gamma) for gamma in self._gammas)

    def observe_beside(self, finished: Round) -> None:
        """Learn the acceptance from a round that was drafted while the target verified; its times are others."""
        self._done += finished.accepted + 1
        self._text += finished.accepted + 1
        if finished.drafted:
            self._source(MODEL).acceptance.observe(finished.accepted, finished.drafted, self._text)

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """A new text."""
        if self._done:
            self._length += 0.3 * (self._done - self._length)
        self._done, self._most = 0, max_new_tokens
        self._bank.begin(self.times.plain_s(), self.times.round_s)
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
        self._first = True
        self._switches += self._decide(source, offer)
        self._first = False
        if not source.gamma:
            source.left = min(source.left, _PLAIN_PERIOD)
            return 0
        self._bank.note_reading(price)
        return offer.unread

    def choose(self, offers: Sequence[Offer]) -> Choice:
        """What the next round does: it drafts from the source that is expected to be fastest, or from none."""
        if not offers or self._since_plain >= _REFRESH_TOKENS or self.times.seen(1) < _TRIES:
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
        if best is None:
            return Choice(switches=tuple(switches))
        source, offer = best
        if self.times.read_s(offer.unread) > SHORT_READING * self.times.plain_s():
            read, skip = next_piece(self.times, offer.unread, source.skips)
            return Choice(source.name, 0, read, skip, tuple(switches))
        gamma = source.begin_round(offer, self.times, self._gammas[-1])
        return Choice(source.name, gamma, offer.unread, switches=tuple(switches), limit=source.limit)

    def observe(self, finished: Round) -> None:
        """Learn from a round: a few additions, because steps can be as short as a millisecond."""
        tokens = finished.accepted + 1
        self._done += tokens
        self._text += tokens
        self.times.observe(finished, self._text)
        if finished.read:
            self._bank.note_reading(self.times.read_s(finished.read))
        if not finished.drafted:
            self._bank.note_plain()
            self._since_plain = 0
            return
        source = self._source(finished.source)
        self._bank.note_drafted(source.name, finished.drafted, tokens)
        self._since_plain += tokens
        if source.end_round(finished, self._text):
            source.left = 0

    def tokens_per_s(self, source: str, gamma: int, hopeful: bool = False, alpha: float | None = None) -> float:
        """Expected speed with a draft length; hopeful: as fast as it may be, given how often it was run."""
        known = self._source(source)
        width = self.times.width(gamma)
        draft, other = self.times.draft_s(source), self.times.other_s()
        verify = self.times.hopeful_step_s(width) if hopeful and gamma else self.times.step_s(width)
        costs = RoundCosts(draft, draft, lambda n: verify, other)
        expected = sequential_round(known.acceptance.mean if alpha is None else alpha, gamma, costs)
        return expected.tokens_per_s

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = Source(name, LiveAcceptance(_OTHER_PRIOR, _OTHER_WEIGHT, self._text))
        return self._sources[name]

    def _decide(self, source: Source, offer: Offer) -> list[Switch]:
        """Set the draft length of a source; the switch, where it is another one."""
        self.times.settle(self._text)
        self._bank.settle(self.times.plain_s(), self.times.round_s)
        rich = self._bank.held_s >= _RICH_STEPS * self.times.plain_s()  # there is time to find out
        hopeful = rich and not source.limited  # a limit would not draft so far
        speeds = {g: self.tokens_per_s(source.name, g, hopeful) for g in self._gammas}
        best, before = max(speeds, key=lambda g: (speeds[g], -g)), source.gamma
        if speeds[best] <= (_MARGIN if before else _START_MARGIN) * speeds[before]:
            best = before
        why = "drafting pays" if not before else "another length is faster" if best else "drafting loses"
        if best and self._bank.held_s < self._bank.floor_s:
            best, why = 0, "drafting lost what may be lost"
        elif best and not self._worth_reading(source, best, offer.unread):
            best, why = 0, "the rest of the answer does not repay reading"
        elif best == 0:
            best = self._try(source, offer.unread, speeds)
            why = "tried again" if best else why
        least, most = (PERIOD, _LONGEST_PERIOD) if best else (_PLAIN_PERIOD, _LONGEST_PLAIN_PERIOD)
        source.period = min(2 * source.period, most) if best == before else least
        source.gamma, source.left, source.tokens_per_s = best, source.period, speeds[best]
        if best and best == before:
            self._bank.confirm()
        elif before and not best:
            self._bank.fail()
        return [] if best == before else [self._switch(source, before, why, speeds)]

    def _switch(self, source: Source, before: int, why: str, speeds: Mapping[int, float]) -> Switch:
        longer, plain_s = max(before, source.gamma), self.times.plain_s()
        return Switch(
            source=source.name,
            before=before,
            after=source.gamma,
            why=why,
            acceptance=source.acceptance.mean,
            plain_s=plain_s,
            round_s=self.times.round_s(source.name, longer),
            speedup=speeds[longer] / speeds[0],
            bank_s=self._bank.held_s,
        )

    def _try(self, source: Source, unread: int, speeds: Mapping[int, float]) -> int:
        """The draft length to try although it looks too slow, or 0: what the bank can pay for."""
        drafting = [g for g in self._gammas if g]
        if not drafting or (unread and self._rest() < _LEAST_REST):
            return 0
        best = max(drafting, key=lambda g: (speeds[g], -g))
        tokens = expected_tokens(source.acceptance.mean, best)
        loss = self.times.round_s(source.name, best) - tokens * self.times.plain_s()
        whole, end = whole_text(self.times, unread, self._first)[0], end_of_text(self.times, unread, self._first)
        source.skips = end < whole
        price = PERIOD * max(loss, 0.0) + min(whole, end)
        return best if price <= self._bank.held_s else 0

    def _worth_reading(self, source: Source, gamma: int, unread: int) -> bool:
        """Whether what is gained on the rest of the text pays for what the drafter has to read first.

        That is all it has not read, or else only the end of it.
        """
        price, rounds = whole_text(self.times, unread, self._first)
        source.skips = False
        if price <= SHORT_READING * self.times.plain_s() or self._pays(source.name, gamma, price, rounds):
            return True
        end = end_of_text(self.times, unread, self._first)
        source.skips = end < price and self._pays(source.name, gamma, end, 1)
        return source.skips

    def _pays(self, source: str, gamma: int, price: float, rounds: int) -> bool:
        """Whether what is gained on the rest of the text, after some plain rounds, pays for a price in seconds."""
        bank_s = self._bank.held_s
        rest = self._rest() - rounds
        plain = 1 / self.tokens_per_s(source, 0)
        if price <= bank_s and (plain - 1 / self.tokens_per_s(source, gamma)) * rest > price:
            return True
        alpha = self._source(source).acceptance.cautious
        if (plain - 1 / self.tokens_per_s(source, gamma, alpha=alpha)) * rest <= price:
            return False
        self._bank.floor_s = min(self._bank.floor_s, bank_s - price)
        return True

    def _rest(self) -> float:
        """Tokens that the answer is expected to have yet.

        It is expected to be as long as those before it; one that is longer, to go on for half as long again.
        """
        return min(self._most - self._done, max(self._length - self._done, 0.5 * self._done))
