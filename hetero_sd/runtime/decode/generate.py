"""Generation with the target alone: the reference that speculation must reproduce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hetero_sd.runtime.decode.logprobs import Logprobs
from hetero_sd.runtime.decode.sampling import Rng, Sampling, probabilities
from hetero_sd.runtime.decode.trace import Stopwatch, Trace
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model


@dataclass(frozen=True)
class Request:
    """When to stop (``max_new_tokens`` >= 1, any of ``eos_ids``) and how to choose a token."""

    max_new_tokens: int = 256
    eos_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)


def generate(
    target: Model, prompt: Sequence[int], request: Request, trace: Trace, rng: Rng | None = None
) -> Iterator[int]:
    """Yield the ids that follow ``prompt``, one forward pass each, and record the run in ``trace``.

    An end-of-text id is yielded as the last one. ``prompt`` holds 1 to ``target.context`` ids. The last token needs
    no KV row, so up to ``context - len(prompt) + 1`` tokens can be generated.
    """
    rng = rng or Rng(request.sampling.seed)
    token = first_token(target, prompt, request.sampling, trace, rng)
    while True:
        record_token(token, request, target.context, trace)
        yield token
        if trace.finish_reason:
            return
        watch = Stopwatch(trace.clock, trace.spans)
        pos = len(prompt) + len(trace.token_ids) - 1
        token = next_token(target, [token], pos, request.sampling, watch, rng, trace.logprobs)
        trace.rounds.append(watch.round(drafted=0, accepted=0))


def first_token(target: Model, prompt: Sequence[int], sampling: Sampling, trace: Trace, rng: Rng) -> int:
    """Feed what the cache does not hold of the prompt, its last token at least; the token that follows it."""
    watch = Stopwatch(trace.clock, trace.spans)
    held = min(target.held(prompt), len(prompt) - 1)
    trace.prompt_tokens, trace.kept_tokens = len(prompt), held
    token = next_token(target, prompt[held:], held, sampling, watch, rng, trace.logprobs)
    watch.book("prefill")
    trace.prefill_s = sum(watch.booked.values())
    return token


def next_token(
    target: Model,
    ids: Sequence[int],
    pos: int,
    sampling: Sampling,
    watch: Stopwatch,
    rng: Rng,
    logprobs: Logprobs | None = None,
) -> int:
    """Feed ``ids`` at ``pos`` and choose what follows the last of them."""
    copied_s = target.copied_s
    found = target.submit(ids, pos, wanted(sampling, logprobs), last=True).result()
    watch.transfer_s += target.copied_s - copied_s
    watch.book("verify")
    token = int(found[CHOICE][0]) if sampling.greedy else rng.draw(probabilities(found[LOGITS][0], sampling))
    if logprobs is not None:
        logprobs.add(found[LOGITS], [token])
    if LOGITS in found:
        watch.book("sampling")
    return token


def wanted(sampling: Sampling, logprobs: Logprobs | None) -> tuple[str, ...]:
    """The outputs of a step that tokens are chosen by."""
    if not sampling.greedy:
        return (LOGITS,)
    return (CHOICE,) if logprobs is None else (CHOICE, LOGITS)


def record_token(token: int, request: Request, context: int, trace: Trace) -> None:
    """Append ``token`` to the trace and set its finish reason where the generation ends with it."""
    trace.token_ids.append(token)
    if token in request.eos_ids:
        trace.finish_reason = "eos"
    elif len(trace.token_ids) >= request.max_new_tokens:
        trace.finish_reason = "length"
    elif trace.prompt_tokens + len(trace.token_ids) > context:
        trace.finish_reason = "context"
