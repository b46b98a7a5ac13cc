"""What answers say, and how much each of them counts.

An answer counts the more the surer the model was of its tokens: by the inverse of their mean entropy
(arXiv 2511.02309).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_BITS = 1e-10


@dataclass(frozen=True)
class Ballot:
    """One answer.

    Attributes:
        text: all of it.
        says: what it says; None where it says nothing, and then it does not count.
        entropy_bits: mean of its tokens.
        tokens: whose probabilities are known.
    """

    text: str
    says: str | None
    entropy_bits: float
    tokens: int

    @property
    def weight(self) -> float:
        """How much it counts."""
        return 1.0 / max(self.entropy_bits, _LEAST_BITS)


@dataclass(frozen=True)
class Counted:
    """Those that say the same: how many there are, and what they weigh together; and their mean entropy."""

    says: str
    ballots: int
    weight: float
    entropy_bits: float


def what_it_says(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """What a text says: the last match of the pattern, its group where it has one; without a pattern the last line."""
    if pattern is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else None
    matches = [*pattern.finditer(text)]
    if not matches:
        return None
    found = matches[-1][1] if pattern.groups else matches[-1][0]
    return None if found is None else found.strip() or None


def count(ballots: Sequence[Ballot], weighted: bool = True) -> list[Counted]:
    """What was said, the heaviest first; of equal ones the surer first, and else the one that was said first.

    Unweighted each ballot counts as one: the majority.
    """
    by: dict[str, list[Ballot]] = {}
    for ballot in ballots:
        if ballot.says is not None:
            by.setdefault(ballot.says, []).append(ballot)
    found = [
        Counted(
            says,
            len(of),
            sum(ballot.weight if weighted else 1.0 for ballot in of),
            sum(ballot.entropy_bits for ballot in of) / len(of),
        )
        for says, of in by.items()
    ]
    return sorted(found, key=lambda one: (-one.weight, one.entropy_bits))
