"""Whether drafting is worth what it takes before anything is gained: reading, and rounds that look too slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.speculative import expected_tokens
from hetero_sd.runtime.decode.answer_length import AnswerLength
from hetero_sd.runtime.decode.draft_lengths import BET, DraftLengths
from hetero_sd.runtime.decode.live_source import PERIOD, Source
from hetero_sd.runtime.decode.live_times import LiveTimes
from hetero_sd.runtime.decode.loss_bank import LossBank
from hetero_sd.runtime.decode.reading import SHORT_READING, end_of_text, whole_text

_LEAST_REST = 16  # tokens of an answer, for which a drafter reads to be tried


class Worth:
    """By the times of the run, what may be lost, and the expected rest of the answer.

    Attributes:
        first: it is decided before the first token.
    """

    def __init__(self, times: LiveTimes, lengths: DraftLengths, bank: LossBank, answer: AnswerLength) -> None:
        """Keep them all."""
        self._times, self._lengths, self._bank, self._answer = times, lengths, bank, answer
        self.first = False

    def length_to_try(self, source: Source, unread: int, speeds: Mapping[int, float], payable: Sequence[int]) -> int:
        """The draft length to try although it looks too slow, or 0: what the bank can pay for."""
        drafting = [g for g in payable if g]
        if not drafting or (unread and self._answer.rest < _LEAST_REST):
            return 0
        best = max(drafting, key=lambda g: (speeds[g], -g))
        tokens = expected_tokens(source.acceptance.mean, best)
        loss = self._times.round_s(source.name, best) - tokens * self._times.plain_s()
        whole, end = whole_text(self._times, unread, self.first)[0], end_of_text(self._times, unread, self.first)
        source.skips = end < whole
        reading = min(whole, end)
        rounds = PERIOD if reading > SHORT_READING * self._times.plain_s() else 1  # reading is to be worth it
        return best if rounds * max(loss, 0.0) + reading <= self._bank.free_s else 0

    def reading(self, source: Source, unread: int) -> bool:
        """Whether what is gained on the rest of the text pays for what the drafter has to read first.

        That is all it has not read, or else only the end of it.
        """
        gamma = max(self._lengths.drafting, key=lambda g: self._lengths.tokens_per_s(source, g))
        price, rounds = whole_text(self._times, unread, self.first)
        source.skips = False
        if price <= SHORT_READING * self._times.plain_s() or self._pays(source, gamma, price, rounds):
            return True
        end = end_of_text(self._times, unread, self.first)
        source.skips = end < price and self._pays(source, gamma, end, 1)
        return source.skips

    def _pays(self, source: Source, gamma: int, price: float, rounds: int) -> bool:
        """Whether what is gained on the rest of the text, after some plain rounds, pays for a price in seconds."""
        rest, plain = max(0.0, self._answer.rest - rounds), 1 / self._lengths.tokens_per_s(source, 0)
        if price <= BET * self._bank.free_s and (plain - 1 / self._lengths.tokens_per_s(source, gamma)) * rest > price:
            return True
        alpha = source.acceptance.cautious
        if (plain - 1 / self._lengths.tokens_per_s(source, gamma, alpha=alpha)) * rest <= price:
            return False
        self._bank.lend(price)
        return True
