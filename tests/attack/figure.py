"""What an attack found: how much was tried, what became of it, and what must not have happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Figures:
    """The figures of one kind of attack.

    Attributes:
        what: the attack, in a few words.
        seeds: which seeds were taken, for people who run it again.
        counts: what became of how many.
        failures: what must not have happened, one line each.
    """

    what: str
    seeds: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Two lines: the figures and the failures; more where there are failures."""
        counted = ", ".join(f"{name} {number:,}" for name, number in self.counts.items())
        lines = [f"{self.what}: {counted} ({self.seeds})", f"  {len(self.failures)} failures"]
        return "\n".join([*lines, *(f"  {line}" for line in self.failures[:20])])
