"""What a batch did in its rounds, and what was predicted for the very same calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BatchCounts:
    """Sums over rounds; one thread writes, others read.

    Attributes:
        rounds: that called the target.
        rows, computed_rows: of the calls for several texts, and those that they had room for.
        read_tokens, riding_tokens: of prompts, in calls of their own and as rows beside texts.
        tokens: generated.
        busy_s: of all rounds.
        calls_s: of it, the target's calls.
        drafting_s: of it, the draft model's calls.
        branching_s: of it, giving slots the rows of texts for branches of drafts.
        scheduling_s: of it, deciding what each round does.
        predicted_s: of all rounds, by the plan; 0 where it predicts none.
        bound_s: that a text waits at most between two of its tokens.
        gaps, late_gaps: between tokens of a text, and those of them that were longer than the bound.
        longest_gap_s: between two of them.
        branches, branches_won: of drafts that were verified, and those of them that the text went on with.
    """

    rounds: int = 0
    rows: int = 0
    computed_rows: int = 0
    read_tokens: int = 0
    riding_tokens: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    calls_s: float = 0.0
    drafting_s: float = 0.0
    branching_s: float = 0.0
    scheduling_s: float = 0.0
    predicted_s: float = 0.0
    bound_s: float = 0.0
    gaps: int = 0
    late_gaps: int = 0
    longest_gap_s: float = 0.0
    branches: int = 0
    branches_won: int = 0

    def gap(self, seconds: float) -> None:
        """Count the time between two tokens of a text."""
        self.gaps += 1
        self.late_gaps += seconds > self.bound_s
        self.longest_gap_s = max(self.longest_gap_s, seconds)

    @property
    def scheduling_share(self) -> float:
        """Of the rounds' time, that which deciding took."""
        return self.scheduling_s / self.busy_s if self.busy_s else 0.0
