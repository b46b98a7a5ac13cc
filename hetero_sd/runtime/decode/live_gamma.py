"""How many tokens to draft, decided again and again from what the run itself shows, with the cost model's formulas.

Known at the start is what the plan predicts: the acceptance, a step of the drafter, a step of the target for each
compiled width. Every round then gives times and judged tokens, and every few rounds the draft length with the most
expected tokens a second is taken (costmodel/speculative.py), 0 among them.

* Acceptance: two memories of accepted and rejected tokens. The short one forgets within about 70 tokens of text; the
  long one, within about 500, starts from the plan's acceptance and is what the short one falls back on.
* Times: the median of the last observations; after 500 tokens of text they count no longer, because the machine may be
  in another state. What was not run yet is predicted: the plan's number, corrected by how far its other numbers were
  off, and taken a little too fast until it was tried, so that it is tried.
* Trying costs. A bank holds the time that may be lost against the target alone: 4 steps at first, and 1.5 % of the time
  that passes. Drafting that loses is paid from it, drafting that gains fills it; when it is empty, nothing is drafted.
  When drafting looks too slow it is still tried once the bank can pay for it, so that it comes back when the text
  changes. A drafter that has not seen the text for a while must read it first, which is part of the price.

The same observations lead to the same decisions, and no decision changes the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

from costmodel.schema.plan import LivePrediction
from costmodel.speculative import RoundCosts, sequential_round
from hetero_sd.runtime.decode.trace import Round

ALLOWANCE_STEPS = 4.0  # steps of the target that may be lost before anything was gained
LOSS_SHARE = 0.015  # of the time, that may be lost on top
_MOST_BANKED_STEPS = 16.0
_SHORT, _LONG = 0.985, 0.998  # what a memory keeps from one token of text to the next
_LONG_WEIGHT, _PRIOR_WEIGHT = 8.0, 8.0  # judged tokens that the long memory, and the plan, count for
_OPTIMISM, _TRIES = 0.9, 2  # a width that ran less often is taken this much faster
_WINDOW = 9  # observations of a time
_PERIOD, _PLAIN_PERIOD = 4, 8  # rounds between decisions, with and without drafting
_MARGIN, _START_MARGIN = 1.01, 1.02  # what another draft length must gain over the present one, and over none
_REFRESH_TOKENS = 256  # after which a plain step is timed again
_STALE_TOKENS = 500  # after which times count no longer
_LENGTH = 64.0  # tokens that an answer is expected to have, until one was seen


class LiveGamma:
    """Decides from live acceptance and times; see the module."""

    def __init__(self, predicted: LivePrediction, gammas: Iterable[int]) -> None:
        """Start from the plan; ``gammas`` are the draft lengths whose verification is compiled, 0 among them."""
        self._predicted = predicted
        self._gammas = sorted({0, *gammas})
        self._widths = sorted(predicted.verify_s)
        self._long = [_PRIOR_WEIGHT * predicted.alpha, _PRIOR_WEIGHT * (1 - predicted.alpha)]
        self._short = [0.0, 0.0]
        self._verify: dict[int, deque[float]] = {}
        self._seen_at: dict[int, int] = {}  # width -> tokens of text when it was last run
        self._text = self._drafted_at = 0
        self._draft: deque[float] = deque(maxlen=_WINDOW)
        self._chunk: deque[float] = deque(maxlen=_WINDOW)
        self._other: deque[float] = deque(maxlen=_WINDOW)
        self._plain_s = 0.0  # a round without drafting, at the last decision
        self._played: dict[int, int] = {}  # rounds since then by drafted tokens
        self._gained_tokens = self._read_chunks = 0  # of rounds that drafted; what the drafter had to read again
        self._bank_s: float | None = None
        self._since_plain = 0
        self._gamma, self._left = 0, 0
        self._unread, self._begun = 0, True  # tokens that the drafter has not read; nothing of this text yet
        self._length, self._done, self._most = _LENGTH, 0, 1 << 30

    @property
    def alpha(self) -> float:
        """The acceptance believed in."""
        long = self._long[0] / sum(self._long)
        return (self._short[0] + _LONG_WEIGHT * long) / (sum(self._short) + _LONG_WEIGHT)

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """A new text: the drafter has read nothing of it."""
        if self._done:
            self._length += 0.3 * (self._done - self._length)
        self._done, self._left = 0, 0
        self._unread, self._begun = prompt_tokens, True
        self._most = max_new_tokens

    def gamma(self) -> int:
        """The draft length of the next round."""
        if self._left <= 0:
            self._decide()
        self._left -= 1
        return self._gamma

    def observe(self, finished: Round) -> None:
        """Learn from a round: a few additions, because steps can be as short as a millisecond."""
        tokens = finished.accepted + 1
        self._done += tokens
        self._text += tokens
        for memory, keep in ((self._short, _SHORT**tokens), (self._long, _LONG**tokens)):
            memory[0] = keep * memory[0] + finished.accepted
            memory[1] = keep * memory[1] + (finished.accepted < finished.drafted)
        width = next((w for w in self._widths if w > finished.drafted), 0)
        if width:
            self._verify.setdefault(width, deque(maxlen=_WINDOW)).append(finished.verify_s)
            self._seen_at[width] = self._text
        self._other.append(finished.dispatch_s + finished.sampling_s)
        self._played[finished.drafted] = self._played.get(finished.drafted, 0) + 1
        if finished.drafted:
            self._gained_tokens += tokens
            self._draft.append(finished.draft_s / finished.drafted)
            if finished.catch_up_s:
                self._chunk.append(finished.catch_up_s / self._chunks())
                self._read_chunks += 0 if self._begun else self._chunks()
            self._unread, self._begun, self._drafted_at = 0, False, self._text
            self._since_plain += tokens
        else:
            self._unread += 1
            self._since_plain = 0

    def _settle(self) -> None:
        """Pay for what was played since the last decision, in typical times: a pause of the system costs nothing."""
        if self._bank_s is None:
            self._bank_s = ALLOWANCE_STEPS * self._plain_s
        else:
            drafting = sum(count * self._round_s(gamma) for gamma, count in self._played.items() if gamma)
            self._bank_s += LOSS_SHARE * (drafting + self._played.get(0, 0) * self._plain_s)
            self._bank_s += self._gained_tokens * self._plain_s - drafting - self._read_chunks * self._chunk_s()
            self._bank_s = min(self._bank_s, _MOST_BANKED_STEPS * self._plain_s)
        self._played, self._gained_tokens, self._read_chunks = {}, 0, 0

    def step_s(self, width: int) -> float:
        """A step of the target: the median seen, beside a first few by what the plan's numbers say."""
        expected = self._predicted.verify_s[width] * self._correction()
        seen = self._verify.get(width)
        if not seen:
            return expected
        return (len(seen) * median(seen) + expected) / (len(seen) + 1)

    def tokens_per_s(self, gamma: int, hopeful: bool = False) -> float:
        """Expected speed with a draft length; hopeful: as fast as it may be while it was hardly tried."""
        width = next(w for w in self._widths if w > gamma)
        few = hopeful and len(self._verify.get(width, ())) < _TRIES
        verify = self.step_s(width) * (_OPTIMISM if few else 1.0)
        draft = self._draft_s()
        costs = RoundCosts(draft, draft, lambda n: verify, self._other_s())
        return sequential_round(self.alpha, gamma, costs).tokens_per_s

    def _decide(self) -> None:
        self._left = 1
        if self._since_plain >= _REFRESH_TOKENS or len(self._verify.get(1, ())) < _TRIES:
            self._gamma = 0
            return
        for width in [w for w, at in self._seen_at.items() if self._text - at > _STALE_TOKENS]:
            del self._seen_at[width], self._verify[width]
        if self._text - self._drafted_at > _STALE_TOKENS:
            self._draft.clear()
            self._chunk.clear()
        self._plain_s = self.step_s(1) + self._other_s()
        self._settle()
        assert self._bank_s is not None
        speeds = {g: self.tokens_per_s(g, hopeful=True) for g in self._gammas}
        best = max(speeds, key=lambda g: (speeds[g], -g))
        if speeds[best] <= (_MARGIN if self._gamma else _START_MARGIN) * speeds[self._gamma]:
            best = self._gamma
        gain_s = 1 / speeds[0] - 1 / speeds[best]
        if best and (self._bank_s < 0 or (self._gamma == 0 and not self._worth(gain_s))):
            best = 0
        elif best == 0:
            best = self._try(speeds)
        self._gamma, self._left = best, _PERIOD if best else _PLAIN_PERIOD

    def _try(self, speeds: Mapping[int, float]) -> int:
        """The draft length to try although it looks too slow, or 0: what the bank can pay for."""
        drafting = [g for g in self._gammas if g]
        if not drafting:
            return 0
        best = max(drafting, key=lambda g: (speeds[g], -g))
        tokens = speeds[best] * self._round_s(best)
        loss = self._round_s(best) - tokens / speeds[0]
        price = _PERIOD * max(loss, 0.0) + self._reading_s()
        return best if price <= (self._bank_s or 0.0) else 0

    def _worth(self, gain_s: float) -> bool:
        """Whether what is gained on the rest of the text pays for what the drafter has to read first.

        An answer is expected to be as long as those before it; one that is longer, to go on for half as long again.
        """
        rest = min(self._most - self._done, max(self._length - self._done, 0.5 * self._done))
        reading = self._reading_s()
        affordable = self._begun or reading <= (self._bank_s or 0.0)
        return affordable and gain_s * rest > reading

    def _chunks(self) -> int:
        return max(1, -(-(self._unread - 1) // self._predicted.chunk))

    def _reading_s(self) -> float:
        """What the drafter needs for the text it has not read; its next step takes in two tokens anyway."""
        if self._unread <= 2:
            return 0.0
        return self._chunks() * self._chunk_s()

    def _chunk_s(self) -> float:
        return median(self._chunk) if self._chunk else self._predicted.chunk_s * self._correction()

    def _round_s(self, gamma: int) -> float:
        width = next((w for w in self._widths if w > gamma), self._widths[-1])
        return gamma * self._draft_s() + self.step_s(width) + self._other_s()

    def _draft_s(self) -> float:
        return median(self._draft) if self._draft else self._predicted.draft_s * self._correction()

    def _other_s(self) -> float:
        return median(self._other) if self._other else self._predicted.round_s

    def _correction(self) -> float:
        """Seen over predicted, the mean over widths: how far this machine is from the plan's."""
        ratios = [(median(seen) / self._predicted.verify_s[w], len(seen)) for w, seen in self._verify.items()]
        return sum(r * n for r, n in ratios) / sum(n for _, n in ratios) if ratios else 1.0
