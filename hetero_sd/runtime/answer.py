"""An answer while it comes: pieces of text with their tokens, then why it ended and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.logprobs import TokenLogprob
from hetero_sd.runtime.decode.stats import stats_json
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.text.stream import Detokeniser, StopScanner


@dataclass(frozen=True)
class Piece:
    """Text that is complete, whole characters only, and the tokens since the piece before.

    The last piece may have tokens without text, such as the end of text, or text that was held back.
    """

    text: str
    token_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True)
class RunFacts:
    """What an answer says of the run beside its own measurements.

    Attributes:
        mode: "target-only", "live" where the draft length follows what is measured, "speculative" or "overlapped";
            "batched" beside others (serve/batch_engine.py).
        seed: of the sampling; None for the best tokens.
        plan: what was predicted.
        gamma: drafted tokens of every round, where that is fixed and its speed is predicted.
        threads: what runs the CPU kernels (CompiledModel.thread_facts), asked at the end.
        draft_threads: likewise of the draft model, where it runs beside the target.
    """

    mode: str
    seed: int | None = None
    plan: Plan | None = None
    gamma: int | None = None
    threads: Callable[[], dict[str, Any] | None] = lambda: None
    draft_threads: Callable[[], dict[str, Any] | None] = lambda: None


class Generation(Protocol):
    """A text that is generated, with its record."""

    @property
    def trace(self) -> Trace:
        """The record of the run."""

    @property
    def facts(self) -> RunFacts:
        """Of the run."""

    @property
    def stop_reason(self) -> str | None:
        """See :attr:`Answer.stop_reason`."""


class Pieces:
    """Makes pieces of tokens as they come, and says in the trace where a stop string ends them."""

    def __init__(self, decode: Callable[[Sequence[int]], str] | None, stops: Sequence[str], trace: Trace) -> None:
        """Without ``decode`` there is no text, and each token is a piece."""
        self._has_text, self._trace = decode is not None, trace
        self._detokeniser, self._scanner = Detokeniser(decode or (lambda _: "")), StopScanner(stops)
        self._since: list[int] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: nothing is to follow."""
        return self._scanner.hit

    def feed(self, token: int) -> Piece | None:
        """The piece that a token completes, if any."""
        self._since.append(token)
        text = self._scan(self._detokeniser.feed(token))
        return self._piece(text) if text or self.stopped or not self._has_text else None

    def flush(self) -> Piece | None:
        """What was held back, after the last token; nothing of a character that the end of the answer cut in two."""
        text = self._scan(self._detokeniser.flush(self._trace.cut))
        text += self._scanner.flush()
        return self._piece(text) if text or self._since else None

    def _scan(self, text: str) -> str:
        shown = self._scanner.feed(text)
        if self.stopped:
            self._trace.finish_reason = "stop"
        return shown

    def _piece(self, text: str) -> Piece:
        since, self._since = self._since, []
        return Piece(text, tuple(since))


class Answer(Iterator[Piece]):
    """Iterate over it to generate; what was generated so far is in its attributes.

    Attributes:
        prompt_ids: the tokens before it.
        text: all of it so far; nothing from a stop string on.
        trace: the record of the run (decode/trace.py).
        facts: of the run.
        interrupted: asked after every token, and at once ends the generation where it says so; nobody does unless it is
            set. The stop reason stays None then.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        tokens: Iterator[int],
        trace: Trace,
        decode: Callable[[Sequence[int]], str] | None,
        stops: Sequence[str],
        facts: RunFacts,
    ) -> None:
        """Read ``tokens``, which fills in ``trace``; without ``decode`` there is no text, and each token is a piece."""
        self.prompt_ids, self.text, self.trace, self.facts = list(prompt_ids), "", trace, facts
        self.interrupted: Callable[[], bool] = lambda: False
        self._pieces = self._read(tokens, Pieces(decode, stops, trace))

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far, the end of text and those of a stop string among them."""
        return self.trace.token_ids

    @property
    def stop_reason(self) -> str | None:
        """Why it ended; None while it comes, and where it was not generated to its end.

        "eos", "length" (max_new_tokens), "context" (the KV cache is full), or "stop" (a stop string).
        """
        return self.trace.finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Those of `token_ids`, where they were asked for."""
        return self.trace.known_logprobs

    @property
    def stats(self) -> dict[str, Any]:
        """What ``run.py --json`` prints under that name: times, acceptance, and the plan's predictions beside them."""
        return run_stats([self])

    def __next__(self) -> Piece:
        """Generate until there is a piece."""
        piece = next(self._pieces)
        self.text += piece.text
        return piece

    def read(self) -> str:
        """Generate to the end; the whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Generate no more."""
        self._pieces.close()

    def _read(self, tokens: Iterator[int], pieces: Pieces) -> Generator[Piece]:
        for token in tokens:
            if self.trace.finish_reason is None and self.interrupted():
                return
            piece = pieces.feed(token)
            if piece is not None:
                yield piece
            if pieces.stopped:
                return
        rest = pieces.flush()
        if rest is not None:
            yield rest


def run_stats(answers: Sequence[Generation]) -> dict[str, Any]:
    """Return what answers of one session measured together."""
    facts = answers[-1].facts if answers else RunFacts("")
    ran = {"threads": facts.threads(), "draft_threads": facts.draft_threads()}
    found = stats_json([answer.trace for answer in answers], facts.plan, facts.gamma)
    return {"mode": facts.mode, "seed": facts.seed, **found, **{name: what for name, what in ran.items() if what}}
