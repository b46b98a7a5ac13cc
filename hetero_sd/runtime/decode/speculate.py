"""Speculative decoding: draft gamma tokens, verify them in one pass of the target, keep what it accepts.

Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318); p is the target's distribution,
q the drafter's, both after the same processing. Sampled output has the target's law, greedy output is the
target's own, token by token. A drafter whose logits are not finite is left out for the rest of the text, which is the
target's in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hetero_sd.runtime.decode.generate import Request, first_token, record_token
from hetero_sd.runtime.decode.policy import GammaPolicy
from hetero_sd.runtime.decode.sampling import Distribution, Rng, Sampling, probabilities
from hetero_sd.runtime.decode.trace import Stopwatch, Trace
from hetero_sd.runtime.model.protocol import Model, NotFiniteError


def speculate(
    target: Model,
    draft: Model,
    prompt: Sequence[int],
    request: Request,
    policy: GammaPolicy,
    trace: Trace,
    rng: Rng | None = None,
) -> Iterator[int]:
    """Yield the ids that follow ``prompt`` and record the run in ``trace``; see :func:`generate.generate`."""
    rng = rng or Rng(request.sampling.seed)
    drafter = Drafter(draft, target.vocab, request.sampling)
    tokens = list(prompt)
    policy.begin(len(tokens), request.max_new_tokens)
    new_tokens = [first_token(target, prompt, request.sampling, trace, rng)]
    while True:
        for token in new_tokens:
            record_token(token, request, target.context, trace)
            tokens.append(token)
            yield token
            if trace.finish_reason:
                return

        gamma = min(
            policy.gamma(),
            request.max_new_tokens - len(trace.token_ids) - 1,  # the target adds a token of its own
            target.context - len(tokens),
            drafter.room(len(tokens)),
        )
        caught_up = drafter.catch_up(tokens) if gamma > 0 else 0.0
        trace.draft_prefill_s += caught_up

        watch = Stopwatch()
        drafted, q = drafter.propose(tokens, gamma, watch, rng)
        pos = len(tokens) - 1  # the target has not seen the last token yet
        if request.sampling.greedy:
            best = target.argmax([tokens[-1], *drafted], pos)
            watch.book("verify")
            accepted, extra = accept_greedy(best, drafted)
        else:
            logits = target.forward([tokens[-1], *drafted], pos)
            watch.book("verify")
            accepted, extra = accept_sampled(logits, drafted, q, request.sampling, rng)
            watch.book("sampling")
        drafter.keep(len(tokens) + accepted)
        trace.lost_drafter = drafter.lost
        new_tokens = [*drafted[:accepted], extra]

        trace.rounds.append(watch.round(len(drafted), accepted, caught_up))
        policy.observe(trace.rounds[-1])


def accept_greedy(best: Sequence[int] | np.ndarray, drafted: Sequence[int]) -> tuple[int, int]:
    """Return how many drafted tokens equal the target's best ones, and the target's token after them."""
    for accepted, token in enumerate(drafted):
        if token != best[accepted]:
            return accepted, int(best[accepted])
    return len(drafted), int(best[len(drafted)])


def accept_sampled(
    logits: np.ndarray, drafted: Sequence[int], q: Sequence[Distribution], sampling: Sampling, rng: Rng
) -> tuple[int, int]:
    """Return how many drafted tokens are accepted, and the token sampled after them.

    ``logits`` is ``[len(drafted) + 1, vocab]``. Token i is accepted with probability min(1, p_i/q_i); the first
    rejection is replaced by a sample from norm(max(0, p - q)); if all pass, a bonus token comes from p.
    """
    for accepted, token in enumerate(drafted):
        p = probabilities(logits[accepted], sampling)
        if not rng.accept(p[token], q[accepted][token]):
            residual = np.maximum(p - q[accepted], 0.0)
            return accepted, rng.draw(residual if residual.any() else p)
    return len(drafted), rng.draw(probabilities(logits[len(drafted)], sampling))


class Drafter:
    """The draft model, how much of the text its KV cache holds, and the vocabulary it shares with the target."""

    def __init__(self, model: Model, target_vocab: int, sampling: Sampling) -> None:
        """Start with an empty cache; ``target_vocab`` bounds what may be drafted."""
        self._model = model
        self._target_vocab = target_vocab
        self._common = min(model.vocab, target_vocab)
        self._sampling = sampling
        self._length = 0  # leading tokens of the text whose KV rows are valid
        self.lost: str | None = None  # why it drafts no more

    def room(self, length: int) -> int:
        """Return how many tokens can be drafted after ``length`` tokens before the drafter's context is full."""
        return 0 if self.lost else max(0, self._model.context - length + 1)

    def catch_up(self, tokens: Sequence[int]) -> float:
        """Feed what is missing but for two tokens, which :meth:`propose` feeds; return the seconds it took.

        Rounds leave a lag of one token, or of two after full acceptance; a longer one is the prompt, or rounds
        without drafting.
        """
        end = len(tokens) - 1
        if end <= self._length + 1:
            return 0.0
        watch = Stopwatch()
        try:
            self._model.extend(self._known(tokens[self._length : end]), self._length)
            self._length = end
        except NotFiniteError as error:
            self.lost = str(error)
        watch.book("catch up")
        return watch.booked["catch up"]

    def propose(
        self, tokens: Sequence[int], gamma: int, watch: Stopwatch, rng: Rng
    ) -> tuple[list[int], list[Distribution]]:
        """Return gamma drafted tokens and, when sampling, the distributions q they were drawn from.

        They are fewer where the drafter was lost, or is lost on the way.
        """
        drafted: list[int] = []
        q: list[Distribution] = []
        pending = list(tokens[self._length :])
        try:
            while len(drafted) < gamma and not self.lost:
                drafted.append(self._draw(pending, q, watch, rng))
                self._length += len(pending)
                pending = drafted[-1:]
        except NotFiniteError as error:
            self.lost = str(error)
        if gamma:
            watch.book("draft")
        return drafted, q

    def _draw(self, pending: Sequence[int], q: list[Distribution], watch: Stopwatch, rng: Rng) -> int:
        """Feed ``pending`` and draft a token; when sampling, its distribution is appended to ``q``."""
        if self._sampling.greedy:
            return self._best(pending)
        logits = self._model.forward(self._known(pending), self._length)[-1, : self._common]
        watch.book("draft")
        ours = probabilities(logits, self._sampling)
        q.append(np.zeros(self._target_vocab))
        q[-1][: self._common] = ours
        token = rng.draw(q[-1])
        watch.book("sampling")
        return token

    def keep(self, length: int) -> None:
        """Roll the cache back to the first ``length`` tokens; the text agrees with the drafts up to there."""
        self._length = min(self._length, length)

    def _best(self, pending: Sequence[int]) -> int:
        """Feed ``pending`` and return the best id that the target also has."""
        ids = self._known(pending)
        if self._model.vocab <= self._target_vocab:
            return int(self._model.argmax(ids, self._length)[-1])
        return int(np.argmax(self._model.forward(ids, self._length)[-1, : self._common]))

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Replace ids that only the target has by 0: the drafter then guesses worse, the output is the same."""
        return [token if token < self._model.vocab else 0 for token in tokens]
