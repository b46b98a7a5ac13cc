"""How many tokens to draft, decided again and again from what the run itself shows, with the cost model's formulas.

Known at the start is what the plan predicts and what was timed before the first prompt (start_times.py). Every round
then gives times (live_times.py) and judged tokens (live_acceptance.py), and every few rounds the draft length with the
most expected tokens a second is taken (live_decision.py, costmodel/speculative.py), 0 among them, for each source of
drafts; less often where a step is so short that deciding counts (pace.py).

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
from hetero_sd.runtime.decode.live_decision import PLAIN_PERIOD, TRIES, Decision
from hetero_sd.runtime.decode.live_source import Source
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.loss_bank import LossBank, promised_steps
from hetero_sd.runtime.decode.pace import Pace
from hetero_sd.runtime.decode.policy import PLAIN, Choice
from hetero_sd.runtime.decode.reading import SHORT_READING, next_piece
from hetero_sd.runtime.decode.trace import Round, Switch
from hetero_sd.runtime.decode.worth import Worth

_OTHER_PRIOR, _OTHER_WEIGHT = 0.5, 4.0  # of a source that the plan does not know
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
        self._times = LiveTimes(predicted, narrow)
        self._plain = list[Round]()  # rounds that nothing was learnt from yet
        self._lengths = DraftLengths(self._times, gammas)
        start = max(g for g in self._lengths.all if g <= start)
        self._sources = {MODEL: Source(MODEL, LiveAcceptance(predicted.alpha, predicted.alpha_tokens), start, stops)}
        self._only_model = only_model
        self._text = 0  # tokens of all texts
        model = self._sources[MODEL]
        gain = self._lengths.gain(model, model.acceptance.cautious)
        self._bank = LossBank(promised_steps(gain, predicted.alpha_tokens))
        self._pace = Pace()
        self._new_text, self._reads_first = False, 0  # unknown to the bank; tokens of a prompt that are read
        self._switches = list[Switch]()  # not reported yet
        self._answer = AnswerLength()
        self._worth = Worth(self._times, self._lengths, self._bank, self._answer)
        self._decision = Decision(self._times, self._lengths, self._bank, self._worth, self._pace)

    @property
    def times(self) -> LiveTimes:
        """Of steps and rounds, all those that were observed among them."""
        self._learn()
        return self._times

    @property
    def may_decide(self) -> bool:
        """Whether the last decision was long enough ago that another one costs little."""
        return self._pace.due

    @property
    def alpha(self) -> float:
        """The acceptance of the model's drafts that is believed in."""
        return self._sources[MODEL].acceptance.mean

    def likely_gamma(self) -> int:
        """The draft length of the model's drafts that is likely to be used first."""
        lengths = self._lengths.drafting
        return self._sources[MODEL].gamma or max(lengths, key=lambda g: self.tokens_per_s(MODEL, g), default=0)

    def best_tokens_per_s(self) -> float:
        """The expected speed of the best draft length of the model's drafts, 0 among them."""
        return max(self.tokens_per_s(MODEL, gamma) for gamma in self._lengths.all)

    def observe_beside(self, finished: Round, seconds: float) -> None:
        """Learn from a round that was drafted while the target verified, and typically takes so long.

        It says what is accepted, and what was lost or gained; the times of its steps are others.
        """
        tokens = finished.accepted + 1
        self._open_text()
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
        """A new text: nothing is reckoned for it before something is to be decided."""
        self._learn()
        self._answer.begin(max_new_tokens)
        self._new_text = True
        for source in self._sources.values() if self._pace.due else ():
            source.left = 0 if source.gamma else min(source.left, PLAIN_PERIOD)

    def read_first(self, offers: Sequence[Offer], prefill_s: float) -> int:
        """All of the prompt, where reading it takes little time and pays, or is to be tried."""
        offer, source = next((offer for offer in offers if offer.source == MODEL), None), self._sources[MODEL]
        if offer is None or not (source.gamma or self._pace.due) or self.times.seen(1) < TRIES:
            return 0
        price = self.times.read_s(offer.unread)
        if not self._pace.due and offer.unread <= self._reads_first:
            self._bank.note_reading(price)
            return offer.unread
        if price > max(_FIRST_READING * prefill_s, _FIRST_READING_STEPS * self.times.plain_s()):
            return 0
        self._open_text()
        self._worth.first = True
        self._switches += self._decide(source, offer, in_round=False)
        self._worth.first = False
        self._reads_first = offer.unread if source.gamma else 0
        if not source.gamma:
            source.left = min(source.left, max(PLAIN_PERIOD, self._pace.least))
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
        seen = self.times.seen(1)
        if not offers or self._pace.needs_plain(seen) or seen < TRIES or self.times.plain_is_doubtful:
            return PLAIN
        self._open_text()
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
        if best is None or self._pace.retime:
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
        if not source.gamma or self._pace.retime:
            return Choice(switches=tuple(switches))
        if reads:
            return Choice(source.name, 0, read, skip, tuple(switches))
        gamma = source.begin_round(offer, self.times, lambda: self._lengths.longest(source, self._bank.free_s))
        self._bank.reserve(source.risks_s[gamma])
        return Choice(source.name, gamma, offer.unread, switches=tuple(switches), limit=source.limit)

    def observe(self, finished: Round) -> None:
        """Learn from a round: a few additions, because steps can be as short as a tenth of a millisecond."""
        tokens = finished.accepted + 1
        self._pace.passed(tokens, finished.loop_s, finished.drafted > 0)
        if not finished.drafted:
            self._plain.append(finished)
        if finished.read:
            self._bank.note_reading(self.times.read_s(finished.read))
        if not finished.drafted:
            return
        self._answer.add(tokens)
        self._text += tokens
        self.times.observe(finished, self._text)
        source = self._source(finished.source)
        self._bank.note_drafted(source.name, finished.drafted, tokens)
        if source.end_round(finished, self._text):
            source.left = 0

    def tokens_per_s(self, source: str, gamma: int) -> float:
        """Expected speed with a draft length."""
        return self._lengths.tokens_per_s(self._source(source), gamma)

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = Source(name, LiveAcceptance(_OTHER_PRIOR, _OTHER_WEIGHT, self._text))
        return self._sources[name]

    def _learn(self) -> None:
        """Learn from the rounds without drafts since the last time: none of them asks for it by itself."""
        if rounds := self._plain:
            self._plain = []
            self._text += len(rounds)
            self._answer.add(len(rounds))
            self._bank.note_plain(len(rounds))
            self._times.observe_plain(rounds, self._text)

    def _open_text(self) -> None:
        if self._new_text:
            self._new_text = False
            self._bank.begin(self.times.sure_plain_s(), self.times.round_s)

    def _settle(self) -> None:
        self._learn()
        self._open_text()
        self._bank.settle(self._times.sure_plain_s(), self._times.round_s)

    def _decide(self, source: Source, offer: Offer, in_round: bool = True) -> list[Switch]:
        """Set the draft length of a source; the switch, where it is another one."""
        self._times.settle(self._text)
        self._settle()
        return self._decision(source, offer, in_round)
