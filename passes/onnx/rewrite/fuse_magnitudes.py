"""What Gemma 3n does to rows by their statistics, written out -> functions of the canonical form.

    Mul(x, Pow(ReduceMean(y^2), 0.5)), Div by Sqrt(Clip(ReduceMean(x^2), least))  ->  hetero_sd::MatchMagnitude(x, y)
    Relu(Sub(x, Add(ReduceMean(x), Mul(deviation of x, k))))                      ->  hetero_sd::GaussianTopK(x)

Found by the last node; what lies between it and x (and y) is run on numbers and must be the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from passes.onnx.pass_context import Declined, Importing, PassLog, describe, emit, replace_uses, scalar
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.rewrite.altup_functions import gaussian_top_k_function, match_magnitude_function
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.onnx.shapes import known_shapes, points

_BOUND = 3e-6  # of the largest number


def fuse_magnitudes(imp: Importing) -> PassLog:
    """Rewrite all that are proven; others stay, with the reason in the log."""
    matched, notes = 0, list[str]()
    for op_type, fuse in (("Div", _match_magnitude), ("Relu", _gaussian_top_k)):
        for node in [n for n in imp.graph if n.op_type == op_type and not n.domain]:
            try:
                matched += fuse(imp, node)
            except Declined as reason:
                notes.append(f"{describe(node)}: {reason}")
    return PassLog("fuse_magnitudes", matched, tuple(notes))


def _back(value: Any, *op_types: str) -> Any:
    """The first operand of a chain of nodes of these kinds, last first; None where another node stands there."""
    for op_type in op_types:
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type:
            return None
        value = node.inputs[0]
    return value


def _number(node: Any) -> float | None:
    """The one-element constant that a node reads; None if there is none."""
    return next((number for number in map(scalar, node.inputs) if number is not None), None)


def _match_magnitude(imp: Importing, node: Any) -> bool:
    mean = _back(node.inputs[1], "Sqrt")
    x = _back(mean, "Clip", "ReduceMean", "Pow")
    scaled = node.inputs[0].producer()
    if x is None or scaled is None or scaled.op_type != "Mul" or x not in scaled.inputs:
        return False
    clip = mean.producer()
    if len(clip.inputs) != 2:  # no number shows a bound far above those of the proof
        raise Declined("the mean of squares is kept below a bound, too")
    least = scalar(clip.inputs[1])
    wanted = next((v for v in scaled.inputs if v is not x), None)
    y = _back(wanted, "Pow", "ReduceMean", "Pow") or _back(wanted, "Sqrt", "ReduceMean", "Pow")
    if y is None or least is None or not least > 0:
        return False

    def compute(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        own = np.maximum(np.square(x).mean(-1, keepdims=True), least)
        return np.asarray(x * np.sqrt(np.square(y).mean(-1, keepdims=True) / own))

    if not _is(imp, [x, y], node.outputs[0], compute, np.sqrt(least)):
        raise Declined("what is divided by a root mean square is not a row with another one's magnitude")
    _write(imp, node, "MatchMagnitude", [x, y], {"least": least}, match_magnitude_function())
    return True


def _gaussian_top_k(imp: Importing, node: Any) -> bool:
    bound = node.inputs[0].producer()
    if bound is None or bound.op_type != "Sub":
        return False
    x, sum_of = bound.inputs[0], bound.inputs[1].producer()
    if sum_of is None or sum_of.op_type != "Add" or not any(_back(v, "ReduceMean") is x for v in sum_of.inputs):
        return False
    factor = next((v.producer() for v in sum_of.inputs if _back(v, "ReduceMean") is not x), None)
    deviations = None if factor is None or factor.op_type != "Mul" else _number(factor)
    if deviations is None:
        raise Declined("a row's mean has something else beside it than deviations times a number")

    def compute(x: np.ndarray) -> np.ndarray:
        return np.maximum(0, x - x.mean(-1, keepdims=True) - deviations * x.std(-1, keepdims=True))

    if not _is(imp, [x], node.outputs[0], compute, 1.0):
        raise Declined("what is cut off below is not a row's distance to its mean by a number of deviations")
    _write(imp, node, "GaussianTopK", [x], {"deviations": deviations}, gaussian_top_k_function())
    return True


def _is(imp: Importing, read: list[Any], y: Any, compute: Callable[..., np.ndarray], small: float) -> bool:
    """Whether a value is what `compute` makes of others, for numbers of size 1 and of size `small` and a tenth."""
    piece, rng = Piece(imp, read, y), np.random.default_rng(0)
    for at in points(imp):
        known = known_shapes(imp, at)
        for size in (1.0, 10.0 * small, 0.1 * small):
            if any(v not in known for v in read):
                return False
            cuts = {v: (size * rng.standard_normal(known[v].shape)).astype(np.float32) for v in read}
            made, expected = piece.run(at, cuts), compute(*(cuts[v].astype(np.float64) for v in read))
            if made.shape != expected.shape or not np.abs(made - expected).max() <= _BOUND * np.abs(expected).max():
                return False
    return True


def _write(
    imp: Importing, node: Any, name: str, inputs: list[Any], attributes: dict[str, float], function: Any
) -> None:
    imp.model.functions.setdefault((DOMAIN, name, ""), function)
    imp.graph.opset_imports[DOMAIN] = 1
    y, label = node.outputs[0], f"{node.outputs[0].name}.{name}"
    replace_uses(y, emit(node, name, inputs, attributes, domain=DOMAIN, name=label, outputs=[label]).outputs[0])
