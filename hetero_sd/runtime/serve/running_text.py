"""One answer of a batch: its text so far, and how its next token is chosen, as decode/generate.py chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from hetero_sd.runtime.answer import Piece, Pieces, RunFacts
from hetero_sd.runtime.decode.generate import Request, record_token
from hetero_sd.runtime.decode.sampling import Rng, probabilities
from hetero_sd.runtime.decode.trace import Stopwatch, Trace
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Row
from hetero_sd.runtime.model.slot_pool import Slot
from hetero_sd.runtime.serve.engine import GenerationRequest
from hetero_sd.runtime.session import Options, Session

BATCHED = "batched"  # the mode of such an answer


class RunningText:
    """A choice of a request; implements the Generation protocol.

    Attributes:
        trace: the record; a round is the time since the token before, whatever else was computed in it.
        facts: of the run; nothing was predicted for it.
    """

    def __init__(self, session: Session, slot: Slot, ids: Sequence[int], asked: GenerationRequest, choice: int) -> None:
        """Begin to read.

        Args:
            session: whose options hold where the request says nothing.
            slot: that it runs in; it holds a beginning of `ids` that is shorter than they.
            ids: the prompt.
            asked: the request.
            choice: of the answers that are made for it.

        Raises:
            UserError: an option is out of range.
        """
        options: Options = {**asked.options}
        seed = options.get("seed")
        if seed is not None:
            options["seed"] = seed + choice
        self._request: Request = session.request_of(options)[0]
        sampling = self._request.sampling
        self._slot, self._ids, self._context = slot, list(ids), session.context
        self.trace = Trace(prompt_tokens=len(ids), kept_tokens=len(slot.tokens))
        self.facts = RunFacts(BATCHED, None if sampling.greedy else sampling.seed)
        self._rng = Rng(sampling.seed)
        decode = session.text.decode if session.text is not None else None
        self._pieces = Pieces(decode, options.get("stop", session.stops), self.trace)
        self._watch = Stopwatch(self.trace.clock)
        self._last = self._ids[-1]

    @property
    def stop_reason(self) -> str | None:
        """See :attr:`hetero_sd.runtime.answer.Answer.stop_reason`."""
        return self.trace.finish_reason

    @property
    def reading(self) -> bool:
        """Whether more than one token is to be fed before the next one is known."""
        return len(self._slot.tokens) < len(self._ids) - 1

    @property
    def row(self) -> Row:
        """What is to be fed where it is not reading."""
        return Row(self._slot.number, len(self._slot.tokens), self._last)

    def read(self, most: int) -> int | None:
        """Feed as many tokens of the prompt; the token that follows it, or None where more are left.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        slot, done = self._slot, len(self._slot.tokens)
        chunk = self._ids[done : done + most]
        ends = done + len(chunk) == len(self._ids)
        output = LOGITS if ends and not self._request.sampling.greedy else CHOICE
        row = slot.model.submit(chunk, done, (output,), last=True).result()[output][0]
        slot.tokens += chunk
        if not ends:
            return None
        return int(row) if output == CHOICE else self._draw(row)

    def choose(self, choice: int, logits: npt.NDArray[Any]) -> int:
        """The token that follows the row that was fed."""
        self._slot.tokens.append(self._last)
        return choice if self._request.sampling.greedy else self._draw(logits)

    def take(self, token: int) -> list[Piece]:
        """Go on with a token; what it completes, and at the end what was held back."""
        trace = self.trace
        record_token(token, self._request, self._context, trace)
        self._watch.book("verify")
        if len(trace.token_ids) == 1:
            trace.prefill_s = sum(self._watch.booked.values())
        else:
            trace.rounds.append(self._watch.round(drafted=0, accepted=0))
        self._watch = Stopwatch(trace.clock)
        self._last = token
        found = [self._pieces.feed(token)]
        if trace.finish_reason is not None and not self._pieces.stopped:
            found.append(self._pieces.flush())
        return [piece for piece in found if piece is not None]

    def _draw(self, logits: npt.NDArray[Any]) -> int:
        return self._rng.draw(probabilities(logits, self._request.sampling))
