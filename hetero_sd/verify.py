"""A bundle's logits against onnxruntime's, teacher-forced.

The reference is the source ONNX file with graph optimisation off, weights upcast or dequantised to float32. Pass =
every logit within the bound of the format, the same argmax wherever the reference's two best logits are further apart
than twice the bound, and at most 1 % of rows closer than that (near-ties, where no implementation is right).

Of a target that `compile --quantise` quantised, the reference has the weights that quantising this file again gives.
The manifest says by which recipe, and the file's SHA-256; nothing of the bundle's weights is used.

A target with int8 activations or a KV cache in float16 or int8 is compared with the same float reference. Its bound is
measured: what the same rounding does to the reference (ReferenceModel with these), because two computations that round
values on the way differ from each other by about as much as from the exact one: a last bit that differs moves some
values over a rounding border, and after some layers the errors are two draws of one distribution. So the root mean
square of all differences may be 1.25 times, and the largest one twice, what rounding the reference does; near-ties are
counted but not limited.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.format import FLOAT
from hetero_sd.quantisation.recipes import recipe_of
from hetero_sd.reference import ReferenceModel
from hetero_sd.run_here import sequences
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.load import check_machine
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.threads import choose_threads
from hetero_sd.runtime.saved_logits import SavedLogits, read_logits
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV

Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]

MOST_NEAR_TIES = 0.01
_ROUNDOFF = 2.0**-24
MOST_RMS_OF_ROUNDING = 1.25
MOST_OF_ROUNDING = 2.0
_CONTINUE = 32


@dataclass(frozen=True)
class VerifyRequest:
    """What is to be compared.

    Attributes:
        bundle: its folder.
        against: ONNX file the target was made from.
        prompts: texts to compare on, each continued greedily by the bundle; None takes random tokens.
        saved: logits that `run.py --save-logits` wrote on the device, in place of running the bundle here.
    """

    bundle: Path
    against: Path
    prompts: Path | None = None
    saved: Path | None = None


@dataclass(frozen=True)
class VerifyResult:
    """The comparison over all rows.

    Attributes:
        rows: logit rows compared.
        scale: largest |reference logit|.
        bound: allowed |difference|.
        largest_error: largest |difference| seen.
        wrong: rows whose argmax differs although the reference's margin exceeds 2 x bound.
        near_ties: rows whose reference margin is at most 2 x bound.
        differing_ties: those of them whose argmax differs.
        error_rms: root mean square of all differences.
        bound_rms: allowed error_rms, where activations or the KV cache are rounded; near-ties have no limit then.
        rounded: what is rounded on the way, for people.
        quantised: the recipe by which the reference's weights were quantised, for people; "": they are the export's.
    """

    rows: int
    scale: float
    bound: float
    largest_error: float
    wrong: int
    near_ties: int
    differing_ties: int
    error_rms: float
    bound_rms: float | None = None
    rounded: tuple[str, ...] = ()
    quantised: str = ""

    @property
    def passed(self) -> bool:
        """Whether all conditions hold; a NaN anywhere does not pass."""
        if self.bound_rms is None:
            few = self.near_ties <= MOST_NEAR_TIES * self.rows
        else:
            few = self.error_rms <= self.bound_rms
        return self.largest_error <= self.bound and self.wrong == 0 and few


def logit_bound(scale: float, widest: int, layers: int) -> float:
    """The allowed |difference| between two float32 computations of the same logits.

    Stored weights are exact in both (float16 is upcast, blocks are dequantised to the same float32 values), so only
    the order of float32 sums differs. A sum of K products errs by about u sqrt(K) of its size (u = 2^-24, errors of
    random sign); 2 layers + 1 such sums follow one another in the residual stream (attention and FFN of each layer,
    the head), so the relative error grows as u sqrt(K (2 layers + 1)), our derivation. It is at least 1e-5: 1e-4 on
    logits of scale 10, for K (2 layers + 1) up to 28,000. It is relative at every scale: a model that divides its
    logits (Granite, by 8 or 16) has errors and margins that are smaller by as much.

    Args:
        scale: largest |logit|.
        widest: K, the larger of hidden and FFN size.
        layers: decoder layers.
    """
    return max(1e-5, _ROUNDOFF * math.sqrt(widest * (2 * layers + 1))) * scale


def compare(pairs: Sequence[Pair], bound: float, bound_rms: float | None = None) -> VerifyResult:
    """Compare (reference, ours) logits, each [n, vocab], by the rule above."""
    rows = wrong = ties = differing = values = 0
    scale = error = squares = 0.0
    for reference, ours in pairs:
        if reference.shape != ours.shape:
            raise UserError(
                f"logits have shape {list(ours.shape)}, the reference's {list(reference.shape)}: the bundle was made "
                "from another model"
            )
        gap = np.abs(reference - ours)
        error = max(error, float(gap.max())) if np.isfinite(gap).all() else math.inf
        values, squares = values + gap.size, squares + float(np.square(gap, dtype=np.float64).sum())
        scale = max(scale, float(np.abs(reference).max()))
        top2 = np.partition(reference, -2, axis=-1)[:, -2:]
        near = top2[:, 1] - top2[:, 0] <= 2 * bound
        other = reference.argmax(-1) != ours.argmax(-1)
        rows, ties = rows + len(reference), ties + int(near.sum())
        wrong, differing = wrong + int((other & ~near).sum()), differing + int((other & near).sum())
    rms = math.sqrt(squares / values) if math.isfinite(error) else math.inf
    return VerifyResult(rows, scale, bound, error, wrong, ties, differing, rms, bound_rms)


def verify_bundle(request: VerifyRequest) -> VerifyResult:
    """Compare the target of a bundle with its source.

    Raises:
        UserError: a file is missing or unusable, or bundle and ONNX file do not belong together.
    """
    bundle, saved = Bundle(request.bundle), request.saved
    if saved is None:
        check_machine(bundle, ": `run.py --save-logits F` there, then `verify --from F` here")
    bundle.verify_all()
    facts = bundle.target
    recipe = None if facts.quantised is None else recipe_of(facts.quantised, request.against)
    again: dict[str, Any] = {"recipe": recipe, "scales": {}}
    reference = ReferenceModel(request.against, **again)
    logits = read_logits(saved) if saved is not None else list(_run_here(bundle, request.prompts))
    pairs = [(reference.forward(s.token_ids), np.asarray(s.logits)) for s in logits]
    scale = max(float(np.abs(r).max()) for r, _ in pairs)
    bound = logit_bound(scale, facts.widest_sum, facts.layers)
    quantised = "" if recipe is None else recipe.text
    codes, kv = facts.activations, facts.caches.dtype
    said: tuple[str, ...] = ("activations are int8 codes",) if codes != FLOAT else ()
    said += (f"keys and values are stored in {kv}",) if kv != DEFAULT_KV else ()
    if not said:
        return replace(compare(pairs, bound), quantised=quantised)
    rounding = ReferenceModel(request.against, activations=codes, kv=kv, **again)
    rounded = [(r, rounding.forward(s.token_ids)) for s, (r, _) in zip(logits, pairs, strict=True)]
    bounds = bounds_of_rounding(compare(rounded, math.inf), bound)
    return replace(compare(pairs, *bounds), rounded=said, quantised=quantised)


def bounds_of_rounding(rounded: VerifyResult, bound: float) -> tuple[float, float]:
    """(allowed |difference|, allowed root mean square) where values are rounded on the way; the factors are assumed.

    Args:
        rounded: the reference with that rounding, compared with the reference.
        bound: allowed without rounding.

    Raises:
        UserError: the rounded reference has no finite logits, which bound nothing.
    """
    if not math.isfinite(rounded.largest_error):
        raise UserError(
            "with int8 activations or a rounded KV cache as the bundle's, the reference's logits are not finite: "
            "compile with --activations float or --kv float32"
        )
    return (
        bound + MOST_OF_ROUNDING * rounded.largest_error,
        bound + MOST_RMS_OF_ROUNDING * rounded.error_rms,
    )


def _run_here(bundle: Bundle, prompts: Path | None) -> Iterator[SavedLogits]:
    os.environ.setdefault("TVM_NUM_THREADS", str(choose_threads(None, bundle.plan)))
    from hetero_sd.runtime.model.model import load_models

    target = load_models(bundle).target
    for prompt in sequences(bundle, target, prompts):
        ids = prompt[: target.context]
        if prompts is not None and len(ids) < target.context:
            request = Request(min(_CONTINUE, target.context - len(ids)))
            ids = [*ids, *generate(target, ids, request, Trace())]
        logits = np.concatenate([target.forward(ids[p : p + 8], p) for p in range(0, len(ids), 8)])
        yield SavedLogits(ids, len(prompt), logits)
