"""Activations written out -> Gelu, a capped tanh or SquaredRelu; those of scalars by what they compute.

    0.5 * x * (1 + tanh(0.798 * (x + 0.0447 * x^3)))    ->  Gelu(x){approximate tanh}
    x * 0.5 * (1 + erf(x / 1.414))                      ->  Gelu(x){approximate none}
    either times another number than 0.5                ->  Mul(Gelu(x), twice that)
    tanh(x / 30) * 30                                   ->  Mul(Tanh(Mul(x, 1 / 30)), 30)
    Relu(x)^2                                           ->  hetero_sd::SquaredRelu(x)

Exports in 16 bits round the constants, and converters to float32 leave them so: that is another function. Its own
constants are kept: hetero_sd::Gelu(x){slope, cubic}, or Mul(Gelu(Mul(x, s)), 1 / s) where it is written with erf.

Around each Tanh and Erf the nodes that use nothing but one value and scalar constants are collected; that piece is
run on numbers and compared with the formulas, whatever the order or the operators of its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    describe,
    emit,
    replace_uses,
    scalar,
)
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.rewrite.local_functions import DOMAIN, gelu_function, squared_relu_function
from passes.onnx.rewrite.scalar_pieces import ARITHMETIC, result, source
from passes.onnx.shapes import Known, known_shapes, points

_ELEMENTWISE = {*ARITHMETIC, "Tanh", "Erf"}
_BOUND = 2e-6  # what float32 arithmetic does is below 1e-6, a constant of 11 bits makes more
_LARGEST_FACTOR = 1e3
_LARGEST_CAP = 1e4  # what grows beyond it with its input is no cap


def fuse_activations(imp: Importing) -> PassLog:
    """Rewrite every activation that is proven one; others stay, with the reason in the log."""
    matched, notes = 0, []
    nodes = list(imp.graph)
    if not any((node.domain, node.op_type) in _OPERATORS for node in nodes):
        return PassLog("fuse_activations", 0)
    known = known_shapes(imp, points(imp)[0])
    for node in nodes:
        rewrite = _OPERATORS.get((node.domain, node.op_type))
        if rewrite is None or node.graph is None:
            continue
        try:
            matched += rewrite(imp, node, known)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("fuse_activations", matched, tuple(notes))


def _written_out(imp: Importing, node: Any, known: dict[Any, Known]) -> bool:
    x = source(node, _ELEMENTWISE)
    y = result(x, node, _ELEMENTWISE)
    at = points(imp)[0]
    if x not in known:
        raise Declined(f"the shape of {x.name} is unknown")
    piece = Piece(imp, [x], y)

    def run(numbers: np.ndarray) -> np.ndarray:
        cycle = np.resize(numbers.astype(np.float32), known[x].size).reshape(known[x].shape)
        return piece.run(at, {x: cycle}).reshape(-1)[: len(numbers)].astype(np.float64)

    numbers = np.concatenate([np.linspace(-8, 8, 61), [1e-3, -1e-3]])[: known[x].size]
    actual = run(numbers)
    factor = _factor(numbers, actual)
    if (made := _gelu(imp, node, x, f"{y.name}.gelu", numbers, actual / factor)) is not None:
        if factor != 1.0:
            times = add_initializer(imp.graph, f"{y.name}.factor", np.array(factor, np.float32))
            made = emit(node, "Mul", [made, times], outputs=[f"{y.name}.times"]).outputs[0]
        replace_uses(y, made)
        return True
    cap = float(run(np.array([1e9]))[0])
    small = 1e-3
    factor = float(run(np.array([small]))[0]) / small
    capped = 0 < cap < _LARGEST_CAP and factor > 0
    if capped and np.abs(actual - cap * np.tanh(numbers * factor / cap)).max() < 1e-5 * np.abs(actual).max():
        _write_capped(imp, node, x, y, float(np.float32(factor / cap)), cap)
        return True
    raise Declined("it is neither a GELU nor a soft cap c * tanh(x / c)")


def _factor(numbers: np.ndarray, actual: np.ndarray) -> float:
    """With which a GELU would be multiplied: onnxruntime moves its half into the matrix multiplication after it."""
    largest = int(numbers.argmax())  # of which a GELU is the number itself
    factor = float(np.float32(actual[largest] / numbers[largest]))
    return factor if 1 / _LARGEST_FACTOR < factor < _LARGEST_FACTOR and abs(factor - 1) > _BOUND else 1.0


def _gelu(imp: Importing, node: Any, x: Any, name: str, numbers: np.ndarray, actual: np.ndarray) -> Any:
    """The GELU that computes `actual` of `numbers`, exact or with rounded constants; None: it is none."""
    exact = (math.sqrt(2 / math.pi), 0.044715)
    pairs = [(slope, cubic) for slope in _as_stored(exact[0]) for cubic in _as_stored(exact[1])]
    errors = [_error(actual, _gelu_tanh(numbers, *pair), numbers) for pair in pairs]
    if min(errors) < _BOUND:
        slope, cubic = pairs[errors.index(min(errors))]  # of equals the first, which is more exact
        if (slope, cubic) == exact:
            return emit(node, "Gelu", [x], {"approximate": "tanh"}, outputs=[name]).outputs[0]
        imp.model.functions.setdefault((DOMAIN, "Gelu", ""), gelu_function())
        imp.graph.opset_imports[DOMAIN] = 1
        constants = {"slope": float(np.float32(slope)), "cubic": float(np.float32(cubic))}
        return emit(node, "Gelu", [x], constants, domain=DOMAIN, name=name, outputs=[name]).outputs[0]
    roots = [*_as_stored(math.sqrt(2)), *(1 / number for number in _as_stored(math.sqrt(0.5)))]
    errors = [_error(actual, _gelu_erf(numbers, root), numbers) for root in roots]
    best = roots[errors.index(min(errors))]
    return _gelu_of_erf(imp, node, x, name, math.sqrt(2) / best) if min(errors) < _BOUND else None


def _error(actual: np.ndarray, expected: np.ndarray, numbers: np.ndarray) -> float:
    """The largest difference, for numbers beyond 1 relative to them, as float32 rounds."""
    return float((np.abs(actual - expected) / np.maximum(1, np.abs(numbers))).max())


def _as_stored(number: float) -> list[float]:
    """A constant as it is, in float16 and in bfloat16 (rounded to nearest)."""
    bits = int(np.array(number, np.float32).view(np.uint32))
    bfloat = np.array((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000, np.uint32).view(np.float32)
    return list(dict.fromkeys([number, float(np.float16(number)), float(bfloat)]))


def _gelu_of_erf(imp: Importing, node: Any, x: Any, name: str, factor: float) -> Any:
    """0.5 x (1 + erf(s x / sqrt(2))) = Gelu(s x) / s."""
    if abs(factor - 1) < 1e-7:
        return emit(node, "Gelu", [x], {"approximate": "none"}, outputs=[name]).outputs[0]
    inside, outside = (
        add_initializer(imp.graph, f"{name}.{part}", np.array(number, np.float32))
        for part, number in (("in", factor), ("out", 1 / factor))
    )
    scaled = emit(node, "Mul", [x, inside], outputs=[f"{name}.scaled"]).outputs[0]
    made = emit(node, "Gelu", [scaled], {"approximate": "none"}, outputs=[f"{name}.exact"]).outputs[0]
    return emit(node, "Mul", [made, outside], outputs=[name]).outputs[0]


def _gelu_tanh(x: np.ndarray, slope: float, cubic: float) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(slope * (x + cubic * x**3)))


def _gelu_erf(x: np.ndarray, root: float) -> np.ndarray:
    return np.array([0.5 * v * (1 + math.erf(v / root)) for v in x])


def _write_capped(imp: Importing, node: Any, x: Any, y: Any, inside: float, cap: float) -> None:
    if node.op_type == "Tanh" and y is node.outputs[0] and x is node.inputs[0]:
        return
    factors = [
        add_initializer(imp.graph, f"{y.name}.{n}", np.array(v, np.float32)) for n, v in (("in", inside), ("cap", cap))
    ]
    small = emit(node, "Mul", [x, factors[0]], outputs=[f"{y.name}.small"]).outputs[0]
    tanh = emit(node, "Tanh", [small], outputs=[f"{y.name}.tanh"]).outputs[0]
    replace_uses(y, emit(node, "Mul", [tanh, factors[1]], outputs=[f"{y.name}.capped"]).outputs[0])


def _operator(approximate: str) -> Callable[[Importing, Any, dict[Any, Known]], bool]:
    def rewrite(imp: Importing, node: Any, known: dict[Any, Known]) -> bool:
        x = node.inputs[0]
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            x = emit(node, "Add", [x, node.inputs[1]], outputs=[f"{node.outputs[0].name}.biased"]).outputs[0]
        name = f"{node.outputs[0].name}.gelu"
        replace_uses(node.outputs[0], emit(node, "Gelu", [x], {"approximate": approximate}, outputs=[name]).outputs[0])
        return True

    return rewrite


def _standard(imp: Importing, node: Any, known: dict[Any, Known]) -> bool:
    if attribute(node, "approximate", "none") not in ("none", "tanh"):
        raise Declined(f"approximate={attribute(node, 'approximate')} is not supported")
    return True


def _relu(imp: Importing, node: Any, known: dict[Any, Known]) -> bool:
    y = node.outputs[0]
    squares = {user for user, _ in y.uses()}
    if y.is_graph_output() or not all(_is_square(user, y) for user in squares):
        return False
    imp.model.functions.setdefault((DOMAIN, "SquaredRelu", ""), squared_relu_function())
    imp.graph.opset_imports[DOMAIN] = 1
    name = f"{y.name}.squared"
    made = emit(node, "SquaredRelu", [node.inputs[0]], {}, domain=DOMAIN, name=name, outputs=[name]).outputs[0]
    for square in squares:
        replace_uses(square.outputs[0], made)
    return True


def _is_square(node: Any, x: Any) -> bool:
    if node.op_type == "Pow" and not node.domain:
        return node.inputs[0] is x and scalar(node.inputs[1]) == 2
    return node.op_type == "Mul" and not node.domain and all(v is x for v in node.inputs)


_OPERATORS: dict[tuple[str, str], Callable[[Importing, Any, dict[Any, Known]], bool]] = {
    ("", "Tanh"): _written_out,
    ("", "Erf"): _written_out,
    ("", "Gelu"): _standard,
    ("", "Relu"): _relu,
    ("com.microsoft", "Gelu"): _operator("none"),
    ("com.microsoft", "BiasGelu"): _operator("none"),
    ("com.microsoft", "FastGelu"): _operator("tanh"),
}
