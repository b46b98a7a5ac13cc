"""What a drafter that has not seen the text takes to read it: all of it, in pieces, or only its end.

Before the first token it reads at one go; later in pieces that take a plain step at most, one after each token.
"""

from __future__ import annotations

from hetero_sd.runtime.decode.live_times import LiveTimes

SHORT_READING = 0.5  # of a plain step: reading that needs no round of its own


def whole_text(times: LiveTimes, unread: int, at_once: bool) -> tuple[float, int]:
    """Seconds and rounds until all is read; every round adds a token to be read.

    Args:
        times: of the steps.
        unread: tokens.
        at_once: before the first token.
    """
    once = times.read_s(unread)
    if at_once or once <= SHORT_READING * times.plain_s():
        return once, 0
    piece = times.piece()
    if piece < 2:
        return float("inf"), 1 << 30
    rounds = -(-unread // (piece - 1))
    return rounds * times.read_s(piece), rounds


def end_of_text(times: LiveTimes, unread: int, at_once: bool) -> float:
    """Seconds for the last chunk alone; no time is short enough where it takes longer than a step."""
    if at_once or times.piece() < times.chunk:
        return float("inf")
    return times.read_s(min(unread, times.chunk))


def next_piece(times: LiveTimes, unread: int, skips: bool) -> tuple[int, int]:
    """Tokens to read before a plain step, and to leave out where the drafter skips to the end."""
    if skips and unread > times.chunk:
        return times.chunk, unread - times.chunk
    return min(times.piece(), unread), 0
