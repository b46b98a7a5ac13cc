"""Speculative decoding: draft gamma tokens, verify them in one pass of the target, keep what it accepts.

Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318); p is the target's distribution,
q the drafter's, both after the same processing. Sampled output has the target's law, greedy output is the
target's own, token by token. A drafter whose logits are not finite is left out for the rest of the text, which is the
target's in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hetero_sd.runtime.decode.drafters import Draft, Drafter
from hetero_sd.runtime.decode.generate import Request, first_token, next_token, record_token, wanted
from hetero_sd.runtime.decode.logprobs import Logprobs
from hetero_sd.runtime.decode.policy import GammaPolicy
from hetero_sd.runtime.decode.sampling import Distribution, Rng, Sampling, probabilities
from hetero_sd.runtime.decode.trace import Stopwatch, Trace
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model

NO_DRAFT = Draft([], [])


def speculate(
    target: Model,
    drafter: Drafter,
    prompt: Sequence[int],
    request: Request,
    policy: GammaPolicy,
    trace: Trace,
    rng: Rng | None = None,
) -> Iterator[int]:
    """Yield the ids that follow ``prompt`` and record the run in ``trace``; see :func:`generate.generate`."""
    rng = rng or Rng(request.sampling.seed)
    tokens = list(prompt)
    policy.begin(len(tokens), request.max_new_tokens)
    new_tokens = [first_token(target, prompt, request.sampling, trace, rng)]
    if request.max_new_tokens > 1 and new_tokens[0] not in request.eos_ids:
        trace.prefill_s += _read_first(drafter, [*tokens, *new_tokens], policy, trace)
    yield from take_turns(target, drafter, tokens, new_tokens, request, policy, trace, rng)


def take_turns(
    target: Model,
    drafter: Drafter,
    tokens: list[int],
    new_tokens: list[int],
    request: Request,
    policy: GammaPolicy,
    trace: Trace,
    rng: Rng,
) -> Iterator[int]:
    """Yield ``new_tokens``, which follow ``tokens``, and then round by round what follows them."""
    while True:
        for token in new_tokens:
            record_token(token, request, target.context, trace)
            tokens.append(token)
            yield token
            if trace.finish_reason:
                return

        watch = Stopwatch(trace.clock, trace.spans)
        if policy.rests():
            pos, sampling = len(tokens) - 1, request.sampling
            new_tokens = [next_token(target, tokens[-1:], pos, sampling, watch, rng, trace.logprobs)]
            trace.rounds.append(watch.round(drafted=0, accepted=0))
            policy.observe(trace.rounds[-1])
            continue
        offers = drafter.offers(tokens, watch)
        choice = policy.choose(offers)
        trace.switches += [replace(switch, tokens=len(trace.token_ids)) for switch in choice.switches]
        watch.book("deciding")
        most = next((offer.most for offer in offers if offer.source == choice.source), 0)
        gamma = min(
            choice.gamma,
            request.max_new_tokens - len(trace.token_ids) - 1,  # the target adds a token of its own
            target.context - len(tokens),
            most,
        )
        watch.book("dispatch")
        reads = choice.read and gamma >= min(1, choice.gamma)
        read = drafter.read(tokens, choice.read, choice.skip, watch) if reads else 0
        limit = choice.limit if gamma > 0 else None
        draft = drafter.propose(tokens, choice.source, gamma, watch, rng, limit) if gamma > 0 else NO_DRAFT
        drafted = draft.tokens
        accepted, extra = verify(target, tokens, draft, request.sampling, watch, rng, trace.logprobs)
        drafter.keep(len(tokens) + accepted)
        trace.lost_drafter = drafter.lost
        new_tokens = [*drafted[:accepted], extra]

        finished = watch.round(len(drafted), accepted, read, choice.source if drafted else "")
        if limit is not None:
            stopped = 0 < len(drafted) < gamma and drafter.lost is None
            finished = replace(finished, confidences=tuple(limit.confidences), stopped=stopped)
        trace.rounds.append(finished)
        trace.draft_prefill_s += trace.rounds[-1].catch_up_s
        policy.observe(trace.rounds[-1])


def _read_first(drafter: Drafter, tokens: Sequence[int], policy: GammaPolicy, trace: Trace) -> float:
    """Let the drafter read before the first token is shown, as far as the policy wants it; the seconds it took."""
    watch = Stopwatch(trace.clock, trace.spans)
    if most := policy.read_first(drafter.offers(tokens, watch), trace.prefill_s):
        trace.read_first = drafter.read(tokens, most, 0, watch)
    return sum(watch.booked.values())


def verify(
    target: Model,
    tokens: Sequence[int],
    draft: Draft,
    sampling: Sampling,
    watch: Stopwatch,
    rng: Rng,
    logprobs: Logprobs | None = None,
) -> tuple[int, int]:
    """Return how many drafts that follow ``tokens`` the target accepts, and its own token after them: one pass."""
    fed = [tokens[-1], *draft.tokens]  # the target has not seen the last token yet
    copied_s = target.copied_s
    rows = target.submit(fed, len(tokens) - 1, wanted(sampling, logprobs)).result()
    watch.transfer_s += target.copied_s - copied_s
    watch.book("verify")
    if sampling.greedy:
        accepted, extra = accept_greedy(rows[CHOICE], draft.tokens)
    else:
        accepted, extra = accept_sampled(rows[LOGITS], draft.tokens, draft.q, sampling, rng)
    if logprobs is not None:
        logprobs.add(rows[LOGITS], [*draft.tokens[:accepted], extra])
    if LOGITS in rows:
        watch.book("sampling")
    return accepted, extra


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
