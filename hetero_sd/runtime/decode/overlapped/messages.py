"""What the two threads tell each other. Every message names its text: one of an earlier text is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hetero_sd.runtime.decode.drafters import Drafter
from hetero_sd.runtime.decode.sampling import Distribution, Rng
from hetero_sd.runtime.decode.trace import Span

TRANSFER = "transfer"  # the term of a message's way from one thread to the other


class Begin(NamedTuple):
    """To the drafter's thread: a new text.

    Attributes:
        text: its number.
        drafter: for this text; it has read nothing.
        tokens: the prompt.
        limit: no draft at this position or later.
        lead: drafts that the drafter may be ahead of the text.
        least: drafts that the target waits for.
        rng: position -> random numbers of a draft.
    """

    text: int
    drafter: Drafter
    tokens: list[int]
    limit: int
    lead: int
    least: int
    rng: Callable[[int], Rng]


class Verdict(NamedTuple):
    """To the drafter's thread: the text is certain up to `length`, its last token is `token`; sent at `sent_s`."""

    text: int
    length: int
    token: int
    sent_s: float


class End(NamedTuple):
    """To the drafter's thread: the text has ended; it answers with `Ended`."""

    text: int


class Drafts(NamedTuple):
    """To the target's thread.

    Attributes:
        text: its number.
        epoch: misses that the drafter knows of.
        position: of the first.
        tokens: drafted.
        q: when sampling, the distribution that each was drawn from.
        step_s: what each took.
        hand_over_s: from sending a verdict until the drafter, which waited for it, had it.
        spans: what its thread did since the last ones.
        sent_s: when this was sent.
    """

    text: int
    epoch: int
    position: int
    tokens: list[int]
    q: list[Distribution]
    step_s: list[float]
    hand_over_s: list[float]
    spans: list[Span]
    sent_s: float


class Silent(NamedTuple):
    """To the target's thread: no more drafts in this epoch, because the drafter's context is full."""

    text: int
    epoch: int


class Lost(NamedTuple):
    """To the target's thread: no more drafts of this text, and why."""

    text: int
    why: str


class Failed(NamedTuple):
    """To the target's thread: an error that it raises."""

    text: int
    error: BaseException


class Ended(NamedTuple):
    """To the target's thread: nothing more comes of this text."""

    text: int


ToDrafter = Begin | Verdict | End
ToTarget = Drafts | Silent | Lost | Failed | Ended
