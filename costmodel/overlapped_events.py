"""Overlapped rounds of one text, event by event: what the two threads do when each step takes what it took.

The formulas (speculative.py, early_verification.py) say what a round of a long text takes on average. Here is the
protocol itself, message by message: which drafts have arrived when the target begins a step, when the drafter learns of
a miss, and where one waits for the other. With the durations of the steps of a real run, and which of the drafter's
guesses were right, it says how long that run takes, if nothing but the protocol decides it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Durations:
    """Seconds.

    Attributes:
        draft_s: a step of the drafter.
        verify_s: drafts -> the target's step that verifies them and adds a token.
        other_s: the loop of a round.
        hand_over_s: from sending a message until the other thread, which waited for it, has it.
        first_s: the target reads the prompt, up to the first token.
        read_s: the drafter reads the prompt, beside it.
    """

    draft_s: float
    verify_s: Callable[[int], float]
    other_s: float
    hand_over_s: float = 0.0
    first_s: float = 0.0
    read_s: float = 0.0


class SimulatedText(NamedTuple):
    """The rounds of a text after its first token.

    Attributes:
        seconds: of all.
        wait_s: of them, in which the target waited for drafts.
        rounds: drafted and accepted tokens of each.
    """

    seconds: float
    wait_s: float
    rounds: list[tuple[int, int]]


def simulate_text(
    right: Sequence[bool], gamma: int, least: int, durations: Durations, most_new: int | None = None
) -> SimulatedText:
    """Play the rounds of a text.

    Args:
        right: for each token of the text, whether the drafter guesses it from the text before.
        gamma: drafts that are verified at a time, at most.
        least: drafts that the target waits for.
        durations: of the steps.
        most_new: tokens that were asked for; None: those of the text.
    """
    limit = (len(right) if most_new is None else most_new) - 1  # the target adds a token of its own
    drafter = _Drafter(right, gamma, least, limit, durations)
    now, length, rounds, waited_s = durations.first_s, 1, list[tuple[int, int]](), 0.0
    while length < len(right):
        drafter.inbox.append((now, length))
        most = min(gamma, limit - length)
        begin = now
        drafter.work(now)
        while drafter.arrived(length, now) < min(least, most):
            sent = drafter.next_message(now)
            if sent is None:
                break
            now = sent + durations.hand_over_s
        waited_s += now - begin
        drafted = max(0, min(most, drafter.arrived(length, now)))  # most: none for the last token
        accepted = next((i for i in range(drafted) if not _is(right, length + i)), drafted)
        now += durations.verify_s(drafted) + durations.other_s
        rounds.append((drafted, accepted))
        length += accepted + 1
    return SimulatedText(now - durations.first_s, waited_s, rounds)


def _is(right: Sequence[bool], place: int) -> bool:
    return place < len(right) and right[place]


class _Drafter:
    """The drafter's thread: its copy of the text, and the messages that it sent."""

    def __init__(self, right: Sequence[bool], gamma: int, least: int, limit: int, durations: Durations) -> None:
        self.inbox: deque[tuple[float, int]] = deque()  # when a verdict was sent, and how long the text is
        self._right, self._least, self._limit, self._lead = right, least, limit, 2 * gamma + 1
        self._durations = durations
        self._now = durations.read_s  # its running step, or its wait, has ended
        self._copy, self._certain = 0, 0  # tokens of its copy after the prompt, and of the text as it knows it
        self._wrong: int | None = None  # first place where the copy is another text
        self._held, self._enough = 0, least
        self._sent: list[tuple[float, int]] = []  # since the last miss: when, and how long the copy was

    def arrived(self, length: int, now: float) -> int:
        """Drafts behind a text of that length that the target has at a time."""
        if self._wrong is not None and self._wrong < length:
            return 0  # the target knows that they are of another text
        return max([0, *(copy - length for sent, copy in self._sent if sent <= now)])

    def next_message(self, now: float) -> float | None:
        """When the next message after a time is sent; None: none is before the next verdict."""
        while (sent := min((at for at, _ in self._sent if at > now), default=None)) is None:
            if not self._step():
                return None
        return sent

    def work(self, until: float) -> None:
        """Let it work until a time, before which all verdicts are in the inbox; its running step goes on after it."""
        while self._now <= until and self._step():
            pass

    def _step(self) -> bool:
        """One verdict, or one draft; False where it waits for a verdict that was not sent yet."""
        if self.inbox and (self.inbox[0][0] <= self._now or not self._may_draft()):
            sent, length = self.inbox.popleft()
            if sent > self._now:
                self._now = sent + self._durations.hand_over_s
            self._judge(length)
            return True
        if not self._may_draft():
            return False
        self._now += self._durations.draft_s
        if self._wrong is None and not _is(self._right, self._copy):
            self._wrong = self._copy
        self._copy, self._held = self._copy + 1, self._held + 1
        if self._held >= self._enough or not self._may_draft():
            self._flush()
        return True

    def _may_draft(self) -> bool:
        return self._copy < min(self._certain + self._lead, self._limit)

    def _flush(self) -> None:
        self._sent.append((self._now, self._copy))
        self._held, self._enough = 0, 1

    def _judge(self, length: int) -> None:
        if self._held:
            self._flush()
        self._certain = length
        if self._copy >= length and (self._wrong is None or self._wrong >= length):
            return
        if self._copy >= length:  # a miss
            self._enough = self._least
        self._copy, self._wrong, self._sent = length, None, []
