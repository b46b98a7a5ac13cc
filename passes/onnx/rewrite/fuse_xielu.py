"""xIELU written out (Apertus; Huang and Schlag 2024) -> hetero_sd::XIELU(x){positive, negative, beta}.

    Where(x > 0, a x^2 + b x, c (exp(min(x, -1e-6)) - 1 - x) + b x)  ->  XIELU(x){a, c, b}

Around each Exp the nodes that use nothing but one value and scalar constants are collected; that piece is run on
numbers, its three constants are fitted, and with them it must be the function. The exponential linear unit is one, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import Declined, Importing, PassLog, describe, emit, replace_uses
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.rewrite.local_functions import DOMAIN, xielu_function
from passes.onnx.rewrite.scalar_pieces import ARITHMETIC, result, source
from passes.onnx.shapes import Known, known_shapes, points

_ELEMENTWISE = {*ARITHMETIC, "Exp", "Min", "Max", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"}
_BOUND = 3e-6  # of a number, or of 1 where it is smaller; the cut at -1e-6 moves results by 1e-6 times `negative`
_CONSTANTS = ("positive", "negative", "beta")


def fuse_xielu(imp: Importing) -> PassLog:
    """Rewrite every xIELU that is proven one; others stay, with the reason in the log."""
    matched, notes = 0, []
    nodes = [node for node in imp.graph if node.op_type == "Exp" and not node.domain]
    known = known_shapes(imp, points(imp)[0]) if nodes else {}
    for node in nodes:
        try:
            _fuse(imp, node, known)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("fuse_xielu", matched, tuple(notes))


def _fuse(imp: Importing, node: Any, known: dict[Any, Known]) -> None:
    x = source(node, _ELEMENTWISE)
    y = result(x, node, _ELEMENTWISE)
    if x not in known:
        raise Declined(f"the shape of {x.name} is unknown")
    numbers = np.outer(np.linspace(0.25, 8, 32), (1, -1)).reshape(-1)[: known[x].size]
    cycle = np.resize(numbers.astype(np.float32), known[x].size).reshape(known[x].shape)
    made = Piece(imp, [x], y).run(points(imp)[0], {x: cycle})
    if made.shape != cycle.shape:
        raise Declined(f"{y.name} has another shape than {x.name}")
    actual, numbers = (a.reshape(-1)[: len(numbers)].astype(np.float64) for a in (made, cycle))
    under = np.minimum(numbers, 0)
    parts = np.stack([np.maximum(numbers, 0) ** 2, np.expm1(under) - under, numbers], axis=1)
    fitted = np.linalg.lstsq(parts, actual)[0].astype(np.float32)
    if not (np.abs(parts @ fitted - actual) / np.maximum(1, np.abs(actual))).max() < _BOUND:
        raise Declined("what is computed with it is no xIELU")
    imp.model.functions.setdefault((DOMAIN, "XIELU", ""), xielu_function())
    imp.graph.opset_imports[DOMAIN] = 1
    constants = dict(zip(_CONSTANTS, map(float, fitted), strict=True))
    name = f"{y.name}.xielu"
    replace_uses(y, emit(node, "XIELU", [x], constants, domain=DOMAIN, name=name, outputs=[name]).outputs[0])
