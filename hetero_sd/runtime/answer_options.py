"""How one answer is generated, as the user gives it, checked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypedDict

from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.logprobs import MOST_TOP, Logprobs
from hetero_sd.runtime.decode.sampling import Sampling
from targets.errors import UserError


class Options(TypedDict, total=False):
    """How an answer is generated; what is left out is the session's.

    Attributes:
        max_new_tokens: tokens after which it ends, at least 1 (256).
        temperature: spread of the samples; 0 takes the best token (0).
        top_k: sample among so many best tokens; 0 is all (0).
        top_p: sample among the best tokens of that mass, above 0 and at most 1 (1).
        seed: makes samples repeatable; None takes another one each time (None).
        stop: texts before which it ends (none).
        logprobs: most probable tokens that are kept with each token, 20 at most; None keeps no probabilities (None).
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: Sequence[str]
    logprobs: int | None


def request_of(options: Options, usual: Request) -> tuple[Request, bool]:
    """When to stop and how to choose, and whether the user gave a seed; `usual` has what the options leave out.

    Raises:
        UserError: an option is out of range.
    """
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        raise TypeError(f"unknown option {unknown[0]!r}: there are {', '.join(Options.__annotations__)}")
    default = usual.sampling
    seed = options.get("seed")
    sampling = Sampling(
        options.get("temperature", default.temperature),
        options.get("top_k", default.top_k),
        options.get("top_p", default.top_p),
        secrets.randbits(63) if seed is None else seed,
    )
    most = options.get("max_new_tokens", usual.max_new_tokens)
    for name, holds in (
        ("max_new_tokens must be at least 1", most >= 1),
        ("temperature must be finite and not negative", 0 <= sampling.temperature < float("inf")),
        ("top_k must not be negative", sampling.top_k >= 0),
        ("top_p must be above 0 and at most 1", 0 < sampling.top_p <= 1),
        ("seed must not be negative", sampling.seed >= 0),
        ("stop is one text, give a list", not isinstance(options.get("stop", ()), str)),
        ("stop has an empty text", "" not in options.get("stop", ())),
        (f"logprobs must be 0 to {MOST_TOP}", 0 <= (options.get("logprobs") or 0) <= MOST_TOP),
    ):
        if not holds:
            raise UserError(name)
    return Request(most, usual.eos_ids, sampling), seed is not None


def logprobs_of(options: Options) -> Logprobs | None:
    """Where the probabilities of an answer's tokens are kept, if they are asked for."""
    top = options.get("logprobs")
    return None if top is None else Logprobs(top)
