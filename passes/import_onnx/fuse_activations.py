"""Activations written out in scalars -> Gelu or a capped tanh, recognised by what they compute.

    0.5 * x * (1 + tanh(0.798 * (x + 0.0447 * x^3)))    ->  Gelu(x){approximate tanh}
    x * 0.5 * (1 + erf(x / 1.414))                      ->  Gelu(x){approximate none}
    tanh(x / 30) * 30                                   ->  Mul(Tanh(Mul(x, 1 / 30)), 30)

Around each Tanh and Erf the nodes that use nothing but one value and scalar constants are collected; that piece is
run on numbers and compared with the formulas, whatever the order or the operators of its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from passes.import_onnx.probe import Piece
from passes.import_onnx.shapes import Known, known_shapes, points
from passes.import_onnx.state import (
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

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Tanh", "Erf", "Neg", "Cast", "Identity"}
_BOUND = 1.6e-5  # of values up to 8
_ROUNDED = 2e-3  # what constants of 8 bits do to it: 3.4e-4 for both of them, times what the arithmetic adds
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
    x = _source(node)
    y = _result(x, node)
    at = points(imp)[0]
    if x not in known:
        raise Declined(f"the shape of {x.name} is unknown")
    piece = Piece(imp, [x], y)

    def run(numbers: np.ndarray) -> np.ndarray:
        cycle = np.resize(numbers.astype(np.float32), known[x].size).reshape(known[x].shape)
        return piece.run(at, {x: cycle}).reshape(-1)[: len(numbers)].astype(np.float64)

    numbers = np.concatenate([np.linspace(-8, 8, 61), [1e-3, -1e-3]])[: known[x].size]
    actual = run(numbers)
    for approximate, formula in (("tanh", _gelu_tanh), ("none", _gelu_erf)):
        if np.abs(actual - formula(numbers)).max() < _BOUND:
            replace_uses(
                y, emit(node, "Gelu", [x], {"approximate": approximate}, outputs=[f"{y.name}.gelu"]).outputs[0]
            )
            return True
    cap = float(run(np.array([1e9]))[0])
    small = 1e-3
    factor = float(run(np.array([small]))[0]) / small
    capped = 0 < cap < _LARGEST_CAP and factor > 0
    if capped and np.abs(actual - cap * np.tanh(numbers * factor / cap)).max() < 1e-5 * np.abs(actual).max():
        _write_capped(imp, node, x, y, float(np.float32(factor / cap)), cap)
        return True
    if np.abs(actual - _gelu_tanh(numbers)).max() < _ROUNDED:
        raise Declined(
            "it is a GELU whose constants the export rounded to 16 bits, so that it is another function; export in "
            "float32 (weights may be quantised), or with onnxruntime-genai's builder in any precision"
        )
    raise Declined("it is neither a GELU nor a soft cap c * tanh(x / c)")


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _write_capped(imp: Importing, node: Any, x: Any, y: Any, inside: float, cap: float) -> None:
    if node.op_type == "Tanh" and y is node.outputs[0] and x is node.inputs[0]:
        return
    factors = [
        add_initializer(imp.graph, f"{y.name}.{n}", np.array(v, np.float32)) for n, v in (("in", inside), ("cap", cap))
    ]
    small = emit(node, "Mul", [x, factors[0]], outputs=[f"{y.name}.small"]).outputs[0]
    bent = emit(node, "Tanh", [small], outputs=[f"{y.name}.bent"]).outputs[0]
    replace_uses(y, emit(node, "Mul", [bent, factors[1]], outputs=[f"{y.name}.capped"]).outputs[0])


def _operands(node: Any) -> list[Any]:
    """The operands that are no scalar constants."""
    return [v for v in node.inputs if v is not None and scalar(v) is None]


def _source(node: Any) -> Any:
    """The one value all of the arithmetic before a node starts from: walk back while one value is enough."""
    frontier, order = set(_operands(node)), {n: i for i, n in enumerate(node.graph)}
    best = None
    while True:
        if len(frontier) == 1:
            (best,) = frontier
        latest = max(frontier, key=lambda v: order.get(v.producer(), -1))
        producer = latest.producer()
        if producer is None or producer.op_type not in _ELEMENTWISE or producer.domain:
            break
        if len(frontier) == 1 and not _single(producer):
            break
        frontier = (frontier - {latest}) | set(_operands(producer))
        if not frontier:
            break
    if best is None:
        raise Declined("it starts from more than one value")
    return best


def _single(node: Any) -> bool:
    """Whether a node has one operand beside scalars, or the same one twice, or branches that meet again."""
    return len(set(_operands(node))) <= 2 and not any(v.const_value is not None for v in _operands(node))


def _result(x: Any, node: Any) -> Any:
    """The last value computed from `x` and scalars alone, after `node`."""
    inside, after = {x}, {node.outputs[0]}
    for candidate in node.graph:
        if candidate.op_type not in _ELEMENTWISE or candidate.domain:
            continue
        operands = _operands(candidate)
        if operands and all(v in inside for v in operands):
            inside.add(candidate.outputs[0])
            if any(v in after for v in operands):
                after.add(candidate.outputs[0])
    ends = [
        v for v in after if v in inside and (v.is_graph_output() or any(u.outputs[0] not in after for u, _ in v.uses()))
    ]
    if len(ends) != 1:
        raise Declined("its result is used in the middle")
    return ends[0]


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


_OPERATORS: dict[tuple[str, str], Callable[[Importing, Any, dict[Any, Known]], bool]] = {
    ("", "Tanh"): _written_out,
    ("", "Erf"): _written_out,
    ("", "Gelu"): _standard,
    ("com.microsoft", "Gelu"): _operator("none"),
    ("com.microsoft", "BiasGelu"): _operator("none"),
    ("com.microsoft", "FastGelu"): _operator("tanh"),
}
