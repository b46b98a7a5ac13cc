"""In which chunks a prompt is read: wide ones read the weights less often, narrow ones leave fewer rows empty."""

from __future__ import annotations

from collections.abc import Sequence

CHUNK = 32  # tokens of the chunk that every bundle has
LONG_CHUNKS = (64, 128)  # that a plan may add
LONGEST_CHUNK = 1024  # that a user may ask for


def next_chunk(left: int, widths: Sequence[int]) -> int:
    """Tokens of the next chunk where so many are left: the widest that fewer tokens than a narrowest one do not fill.

    `widths` ascend.
    """
    return next_pieces(left, widths)[0][1]


def next_pieces(left: int, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens of the next call and its chunk, where so many tokens are left: the best chunk, then each narrower one."""
    return [(min(left, width), width) for width in reversed(widths) if left > width - widths[0]]
