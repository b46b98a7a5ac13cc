"""A draft model: it drafts token by token with its own KV cache, which is rolled back by length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetero_sd.runtime.decode.drafters import MODEL, Draft, Drafter, GoOn, Offer
from hetero_sd.runtime.decode.sampling import Distribution, Rng, Sampling, best_probability, probabilities
from hetero_sd.runtime.decode.trace import Stopwatch
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model, NotFiniteError
from targets.backend import HOST, ProcessorFailed
from targets.errors import last_line
from targets.opencl.runtime import OpenCLError

_ALWAYS_READ = 4  # first tokens of a text
_FAILURES = (NotFiniteError, ProcessorFailed, OpenCLError)  # of a drafter, which the target goes on without


class ModelDrafter(Drafter):
    """The draft model, how much of the text its KV cache holds, and the vocabulary it shares with the target."""

    def __init__(self, model: Model, target_vocab: int, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        """Start a text with what the cache holds of its prompt; ``target_vocab`` bounds what may be drafted."""
        self._model = model
        self._target_vocab = target_vocab
        self._common = min(model.vocab, target_vocab)
        self._sampling = sampling
        held = min(model.held(self._known(prompt)), max(0, len(prompt) - 1))  # a draft needs a token to be fed
        self._length = held  # leading tokens that are in the cache, or were left out
        self._confident = getattr(model, "processor", HOST) == HOST  # its logits are here without a copy
        self.skipped = 0  # how many were left out
        self.lost: str | None = None  # why it drafts no more

    def offers(self, tokens: Sequence[int], watch: Stopwatch) -> Sequence[Offer]:
        """Offer drafts until the drafter's context is full or it was lost; see :class:`Drafter`."""
        room = 0 if self.lost else self._model.context - len(tokens) + self.skipped + 1
        return [Offer(MODEL, room, self._unread(tokens), self._confident)] if room > 0 else []

    def _unread(self, tokens: Sequence[int]) -> int:
        """Tokens to be read before :meth:`propose`, which feeds up to two.

        Rounds leave a lag of one token, or of two after full acceptance; a longer one is the prompt, or rounds
        without drafts of this model.
        """
        missing = len(tokens) - 1 - self._length
        return missing if missing > 1 else 0

    def read(self, tokens: Sequence[int], most: int, skip: int, watch: Stopwatch) -> int:
        """Feed the next ``most`` of the tokens that are missing, after ``skip``; see :class:`Drafter`.

        The first few tokens of a text are never left out: attention of models that were trained with them needs them
        (StreamingLLM, arXiv 2309.17453).
        """
        begin = min(max(self._length, _ALWAYS_READ), len(tokens) - 1) if skip else self._length
        skip = min(skip, len(tokens) - 1 - begin)
        end = min(max(begin, self._length + most) + skip, len(tokens) - 1)
        ids = [*tokens[self._length : begin], *tokens[begin + skip : end]]
        if not ids or self.lost:
            return 0
        try:
            self._model.submit(self._known(ids), self._length - self.skipped, ()).result()
            self._length, self.skipped = end, self.skipped + skip
        except _FAILURES as error:
            self._lose(error)
        watch.book("catch_up")
        return len(ids)

    def propose(
        self, tokens: Sequence[int], source: str, gamma: int, watch: Stopwatch, rng: Rng, go_on: GoOn | None = None
    ) -> Draft:
        """Return gamma tokens, fewer where ``go_on`` or the loss of the drafter ends the draft; see :class:`Drafter`.

        The confidence of a token is its probability in the distribution that it was taken from: greedy, where there is
        none, it is computed here from the logits, which lie in memory that both the kernels and numpy see.
        """
        drafted: list[int] = []
        q: list[Distribution] = []
        pending, copied_s = list(tokens[self._length :]), self._model.copied_s
        try:
            while len(drafted) < gamma and not self.lost:
                token, confidence = self._draw(pending, q, watch, rng, go_on is not None)
                drafted.append(token)
                self._length += len(pending)
                pending = [token]
                if go_on is None:
                    continue
                wanted = go_on(confidence)
                watch.book("confidence")
                if not wanted:
                    break
        except _FAILURES as error:
            self._lose(error)
        watch.transfer_s += self._model.copied_s - copied_s
        watch.book("draft")
        return Draft(drafted, q)

    def _draw(
        self, pending: Sequence[int], q: list[Distribution], watch: Stopwatch, rng: Rng, confident: bool
    ) -> tuple[int, float]:
        """Feed ``pending``; a token, and its probability where that is asked for.

        When sampling, its distribution is appended to ``q``.
        """
        if self._sampling.greedy:
            return self._best(pending, watch, confident)
        step = self._model.submit(self._known(pending), self._length - self.skipped, (LOGITS,), last=True)
        logits = step.result()[LOGITS][-1, : self._common]
        watch.book("draft")
        ours = probabilities(logits, self._sampling)
        q.append(np.zeros(self._target_vocab))
        q[-1][: self._common] = ours
        token = rng.draw(q[-1])
        watch.book("sampling")
        return token, float(q[-1][token])

    def _lose(self, error: Exception) -> None:
        said = isinstance(error, NotFiniteError)
        self.lost = str(error) if said else f"the drafter's processor failed: {last_line(error)}"

    def keep(self, length: int) -> None:
        """Roll the cache back to the first ``length`` tokens; the text agrees with the drafts up to there."""
        self._length = min(self._length, length)

    def _best(self, pending: Sequence[int], watch: Stopwatch, confident: bool) -> tuple[int, float]:
        """Feed ``pending``; the best id that the target also has, and its probability where that is asked for."""
        ids, whole = self._known(pending), self._model.vocab <= self._target_vocab
        outputs = (*((CHOICE,) if whole else ()), *((LOGITS,) if confident or not whole else ()))
        found = self._model.submit(ids, self._length - self.skipped, outputs, last=True).result()
        token = int(found[CHOICE][-1] if whole else np.argmax(found[LOGITS][-1, : self._common]))
        if not confident:
            return token, 0.0
        watch.book("draft")
        return token, best_probability(found[LOGITS][-1, : self._common], token)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Replace ids that only the target has by 0: the drafter then guesses worse, the output is the same."""
        return [token if token < self._model.vocab else 0 for token in tokens]
