"""Branches of drafts: what may follow instead of the first draft of a text, verified in the same call.

A branch is a free slot that has the rows of the text. The last token of the text is fed again in it, and the branch's
tokens after that, so that every row has the bits that it has alone: rows of a branch behind those of the drafts would
have other positions in the cache, and sums over them another order. Where the branch is right the text goes on in its
slot, which it exchanges for its own. At the end of the round the other slot is free again; it keeps the rows that both
have, so that the next branch of the text lacks only what was accepted (CacheBlocks.follow).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hetero_sd.runtime.decode.live_acceptance import LiveAcceptance
from hetero_sd.runtime.decode.seen import Seen
from hetero_sd.runtime.model.slot_pool import Slot, SlotPool, common
from hetero_sd.runtime.serve.batch_counts import BatchCounts

_TOKENS_EACH, _MOST_LATER = 8, 4  # of a text for a branch of it; branches that the first one's rows count for
_EXPECTED, _WEIGHT = 0.3, 2.0  # how often a branch is right where the first draft is not, and what this counts for


@dataclass
class Branch:
    """Tokens after a text in a slot that has its rows.

    Attributes:
        won: the text went on with them, and the slot has the rows that the text had.
    """

    slot: Slot
    tokens: Sequence[int]
    won: bool = False


@dataclass(frozen=True)
class Drafted:
    """What is verified of a text in a round."""

    tokens: Sequence[int] = ()
    branch: Branch | None = None


NO_DRAFT = Drafted()


class Branches:
    """Those of a round."""

    def __init__(self, pool: SlotPool, counts: BatchCounts, clock: Callable[[], float]) -> None:
        """There are none.

        Args:
            pool: of the target's slots.
            counts: where they are counted.
            clock: gives seconds.
        """
        self._pool, self._counts, self._clock = pool, counts, clock
        self._took, self._now = {False: Seen(), True: Seen()}, list[Branch]()  # by whether the slot was one before

    @property
    def free_slots(self) -> int:
        """Slots for more of them."""
        return self._pool.free_for_branches

    def takes_s(self, slot: Slot, left: int) -> float:
        """Giving a slot the rows of a text, as seen; the first time for all branches of the tokens that are left."""
        follows = self._pool.follows(slot)
        took = self._took[follows]
        seconds = took.median if took else 0.0
        return seconds if follows else seconds / max(1, min(_MOST_LATER, left // _TOKENS_EACH))

    def begin(self, slot: Slot, tokens: Sequence[int]) -> Branch | None:
        """A branch of the text of a slot; None where no slot is free."""
        if not self.free_slots:
            return None
        begin, follows = self._clock(), self._pool.follows(slot)
        branch = Branch(self._pool.branch(slot), tokens)
        took = self._clock() - begin
        self._took[follows].append(took)
        self._now.append(branch)
        self._counts.branching_s += took
        self._counts.branches += 1
        return branch

    def end(self) -> None:
        """The round ends: their slots are free again."""
        for branch in self._now:
            self._counts.branches_won += branch.won
            self._pool.give_back(branch.slot)
        self._now.clear()


class SecondChoice:
    """How often a source's branches begin right where the first draft is rejected, in all texts.

    What followed a text says it of every branch that was known, verified or not. So it costs nothing to be cautious: of
    few of them one standard deviation less is believed.
    """

    def __init__(self) -> None:
        """Nothing was seen."""
        self._seen, self._judged = LiveAcceptance(_EXPECTED, _WEIGHT), 0

    @property
    def beta(self) -> float:
        """The share that is believed."""
        return self._seen.cautious

    def judge(self, right: bool) -> None:
        """Learn from one of them."""
        self._judged += 1
        self._seen.observe(int(right), 1, self._judged)


class Acceptances:
    """How often drafts of a source are accepted in a text, and how often a branch is right where they are not."""

    def __init__(self, expected: float, weight: float, at: int, second: SecondChoice) -> None:
        """Expect an acceptance of drafts, with the weight of so many judged ones, from `at` tokens of text on."""
        self._drafts, self._second = LiveAcceptance(expected, weight, at), second

    @property
    def alpha(self) -> float:
        """Of a drafted token."""
        return self._drafts.mean

    @property
    def beta(self) -> float:
        """Of a branch's first token where the first draft is rejected.

        As if that one was accepted a standard deviation more often: branches are for texts that reject, and of many the
        one that seems to reject most is often one of whose drafts little is known.
        """
        rejects = (1 - self._drafts.hopeful) / max(1 - self._drafts.mean, 1e-9)
        return self._second.beta * rejects

    def learn(self, drafted: Sequence[int], branch: Sequence[int], tokens: Sequence[int], at: int) -> int:
        """From what followed a text that has `at` tokens with it; returns how many drafts were accepted."""
        accepted = common(drafted, tokens)
        self._drafts.observe(accepted, len(drafted), at)
        if not accepted and branch:
            self._second.judge(branch[0] == tokens[0])
        return accepted
