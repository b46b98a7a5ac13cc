"""One answer of a batch: its text so far, and how its next tokens are chosen, as decode/generate.py chooses them.

A token is drawn from the target's distribution by the request's own seed, one draw a token, whether it was drafted or
not; a draft is accepted where it is that token. So the text is the one of the target alone with that seed, whatever is
drafted and whatever runs beside it, and a draft x is accepted with probability p(x), as speculative sampling accepts
what is drafted without chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from hetero_sd.runtime.answer import Piece, Pieces, RunFacts
from hetero_sd.runtime.answer_options import Options, logprobs_of, request_of
from hetero_sd.runtime.decode.generate import Request, record_token, wanted
from hetero_sd.runtime.decode.sampling import Rng, probabilities
from hetero_sd.runtime.decode.trace import Stopwatch, Trace
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, NotFiniteError, Row
from hetero_sd.runtime.model.slot_pool import Slot
from hetero_sd.runtime.serve.branches import NO_DRAFT, Branch, Drafted
from hetero_sd.runtime.serve.engine import GenerationRequest
from hetero_sd.runtime.serve.jobs import shown_tokens
from hetero_sd.runtime.serve.text_drafts import Drafts
from hetero_sd.runtime.session import Session

BATCHED = "batched"  # the mode of such an answer


class RunningText:
    """A choice of a request; implements the Generation protocol.

    Attributes:
        slot: that it runs in.
        trace: the record; a round is the time since the token before, whatever else was computed in it.
        facts: of the run; nothing was predicted for it.
        told_s: when its last token was known, by the engine's clock; None before the first.
        shown: its tokens for a client that asked for their probabilities.
    """

    def __init__(
        self,
        session: Session,
        slot: Slot,
        ids: Sequence[int],
        asked: GenerationRequest,
        choice: int,
        drafts: Sequence[Drafts] = (),
    ) -> None:
        """Begin to read.

        Args:
            session: whose options hold where the request says nothing.
            slot: that it runs in; it holds a beginning of `ids` that is shorter than they.
            ids: the prompt.
            asked: the request.
            choice: of the answers that are made for it.
            drafts: what its drafts can be made from.

        Raises:
            UserError: an option is out of range.
        """
        options: Options = {**asked.options}
        seed = options.get("seed")
        if seed is not None:
            options["seed"] = seed + choice
        self._request: Request = request_of(options, session.request)[0]
        sampling = self._request.sampling
        self.slot, self._context = slot, session.context
        self._prompt, self._tokens = len(ids), list(ids)
        self.trace = Trace(prompt_tokens=len(ids), kept_tokens=len(slot.tokens), logprobs=logprobs_of(options))
        self.shown = shown_tokens(session, self.trace) if asked.show_tokens else None
        self.facts = RunFacts(BATCHED, None if sampling.greedy else sampling.seed)
        self.told_s: float | None = None
        self._rng = Rng(sampling.seed)
        decode = session.text.decode if session.text is not None else None
        self._pieces = Pieces(decode, options.get("stop", session.stops), self.trace)
        self._watch = Stopwatch(self.trace.clock)
        self._fed: list[int] = []  # tokens of the rows that are computed, without those of a branch
        self._branch: Branch | None = None
        self._drafts = drafts

    @property
    def stop_reason(self) -> str | None:
        """See :attr:`hetero_sd.runtime.answer.Answer.stop_reason`."""
        return self.trace.finish_reason

    @property
    def reading(self) -> bool:
        """Whether more than one token is to be fed before the next one is known."""
        return self.unread > 1

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are to be fed before the first one is known."""
        return max(0, self._prompt - self.past)

    @property
    def past(self) -> int:
        """Rows that its slot holds."""
        return len(self.slot.tokens)

    def read(self, most: int) -> list[int]:
        """Feed as many tokens of the prompt; the token that follows it, or nothing where more are left.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        slot, done = self.slot, self.past
        chunk = self._tokens[done : min(done + most, self._prompt)]
        ends = done + len(chunk) == self._prompt
        outputs = wanted(self._request.sampling, self.trace.logprobs) if ends else ()
        found = slot.model.submit(chunk, done, outputs, last=True).result()
        slot.tokens += chunk
        if not ends:
            return []
        row = found[LOGITS][0] if LOGITS in found else None
        return [self._follow(int(found[CHOICE][0]) if CHOICE in found else -1, row)]

    @property
    def tokens(self) -> Sequence[int]:
        """The prompt and what follows it."""
        return self._tokens

    @property
    def left(self) -> int:
        """Tokens that are still to come, at most."""
        return min(self._request.max_new_tokens - len(self.trace.token_ids), self._context - len(self._tokens) + 1)

    @property
    def room(self) -> int:
        """Tokens that could be drafted: the target adds one of its own; none before the first token."""
        return self.left - 1 if self.trace.token_ids else 0

    def rows(self, riding: int = 1, drafted: Drafted = NO_DRAFT) -> list[Row]:
        """What is fed: so many tokens of the prompt, or the last token and what was drafted after it."""
        fed = self._tokens[self.past : self.past + riding] if self.reading else [self._tokens[-1], *drafted.tokens]
        self._fed, self._branch = fed, drafted.branch
        rows = [Row(self.slot.number, self.past + i, token) for i, token in enumerate(fed)]
        if (branch := drafted.branch) is None:
            return rows
        in_branch = [self._tokens[-1], *branch.tokens]
        return rows + [Row(branch.slot.number, self.past + i, token) for i, token in enumerate(in_branch)]

    def choose(self, choices: Sequence[int], logits: Sequence[npt.NDArray[Any]], model: str) -> list[int]:
        """The tokens that follow, by the rows that were fed: the drafts that are accepted, and the one after them.

        Raises:
            NotFiniteError: a logit of a row that counts is NaN or infinite.
        """
        rows, branch = len(self._fed), self._branch
        found = self._accepted(self._fed, choices[:rows], logits, model)
        if branch is None:
            return found
        branch.slot.tokens.append(self._fed[0])
        branch.won = found == [branch.tokens[0]]
        if branch.won:
            self.slot.exchange(branch.slot)
            found += self._accepted(branch.tokens, choices[rows + 1 :], logits[rows + 1 :], model)
        return found

    def _accepted(
        self, fed: Sequence[int], choices: Sequence[int], logits: Sequence[npt.NDArray[Any]], model: str
    ) -> list[int]:
        """The tokens that follow rows, as far as each row is of the token that followed the one before."""
        found: list[int] = []
        for i, (token, choice) in enumerate(zip(fed, choices, strict=True)):
            if choice < 0:
                raise NotFiniteError(model, f" after {self.past + 1} tokens")
            self.slot.tokens.append(token)
            if self.past < self._prompt:
                continue
            found.append(self._follow(choice, logits[i]))
            if i + 1 < len(fed) and fed[i + 1] != found[-1]:
                break
        return found

    def take(self, tokens: Sequence[int]) -> list[Piece]:
        """Go on with tokens of a round; what they complete, and at the end what was held back."""
        trace, first = self.trace, not self.trace.token_ids
        drafted, found = max(0, len(self._fed) - 1), list[Piece | None]()
        if self._branch is not None and self._branch.won:
            drafted += len(self._branch.tokens)
        source = next((drafts.source for drafts in self._drafts if drafts.source), "")
        for drafts in self._drafts:
            drafts.learn(tokens, len(self._tokens) + len(tokens))
        for token in tokens:
            record_token(token, self._request, self._context, trace)
            self._tokens.append(token)
            found.append(self._pieces.feed(token))
            if trace.finish_reason is not None:
                break
        self._watch.book("verify")
        if first:
            trace.prefill_s = sum(self._watch.booked.values())
        else:
            trace.rounds.append(self._watch.round(drafted, len(tokens) - 1, source=source))
        self._watch = Stopwatch(trace.clock)
        if trace.finish_reason is not None and not self._pieces.stopped:
            found.append(self._pieces.flush())
        return [piece for piece in found if piece is not None]

    def _follow(self, best: int, logits: npt.NDArray[Any] | None) -> int:
        """The token after a row, whose best one is known; its logits where they are needed."""
        sampling, token = self._request.sampling, best
        if logits is None:
            return token
        if not sampling.greedy:
            token = self._rng.draw(probabilities(logits, sampling))
        if self.trace.logprobs is not None:
            self.trace.logprobs.add(logits[None], [token])
        return token
