"""What the HTTP layer asks of whatever makes the text: requests, events, and nothing of HTTP.

The HTTP layer depends on :class:`Engine` alone, so that a scheduler of many sequences can take the place of
session_engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.decode.logprobs import TokenLogprob
from hetero_sd.runtime.serve.counts import Snapshot, TokenCounts
from hetero_sd.runtime.serve.shown_tokens import ShownToken
from hetero_sd.runtime.text.chat_template import Chat


@dataclass(frozen=True)
class GenerationRequest:
    """What a client asks for.

    Attributes:
        prompt: a text that goes to the model as it is, token ids, or a conversation for the chat template.
        options: of every answer; what is left out is the engine's.
        choices: answers that are made; each but the first has the next higher seed.
        show_tokens: pieces of text have their tokens, where `options` has logprobs.
    """

    prompt: str | list[int] | Chat
    options: Options = field(default_factory=Options)
    choices: int = 1
    show_tokens: bool = False


@dataclass(frozen=True)
class Started:
    """The first event of a request that is answered: its prompt was accepted."""

    prompt_tokens: int


@dataclass(frozen=True)
class TextPiece:
    """More text of a choice, whole characters, and its tokens where they were asked for."""

    choice: int
    text: str
    tokens: tuple[ShownToken, ...] = ()


@dataclass(frozen=True)
class ChoiceEnded:
    """A choice has all its text; `reason` is that of :attr:`hetero_sd.runtime.answer.Answer.stop_reason`.

    `logprobs` are those of all its tokens, where they were asked for.
    """

    choice: int
    reason: str
    counts: TokenCounts
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class Ended:
    """The last event of a request that was answered."""


REFUSED, PROMPT_TOO_LONG = "refused", "prompt too long"
ENDING, TOOK_TOO_LONG, FAULT = "ending", "took too long", "fault"


@dataclass(frozen=True)
class Failed:
    """The last event of a request that was not answered, or not to its end.

    Attributes:
        kind: REFUSED by what the client asked for, PROMPT_TOO_LONG for the context, ENDING as the server ends,
            TOOK_TOO_LONG, or FAULT.
        message: one line for the client.
    """

    kind: str
    message: str


Event = Started | TextPiece | ChoiceEnded | Ended | Failed


class QueueFull(Exception):
    """No more requests may wait."""


class EngineEnding(Exception):
    """The engine takes no more requests."""


class Job(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """Generate no more for it; nothing where it has ended. From any thread."""


class Engine(Protocol):
    """Makes the text of requests; the methods may be called from any thread."""

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> Job:
        """Take a request and return at once.

        Args:
            request: what is asked for.
            deliver: gets the events in order, on the engine's thread, and must not wait. None come after an Ended or
                a Failed, and at most those of one more token after a `cancel`.

        Raises:
            QueueFull: so many wait that this one cannot.
            EngineEnding: the engine ends.
        """

    def snapshot(self) -> Snapshot:
        """What it did so far, and what it does now."""
