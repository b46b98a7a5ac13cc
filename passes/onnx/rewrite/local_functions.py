"""The model-local functions of the canonical form: mask, positions, activations; with bodies onnxruntime can run.

    hetero_sd::CausalMask(attention_mask | "", input_ids, past_key){window} -> float32 [batch, 1, new, past + new]
    hetero_sd::Alibi(mask){slopes}: mask + slopes * (key - last key) -> float32 [batch, heads, new, past + new]
    hetero_sd::Positions(attention_mask | "", input_ids, past_key)          -> int64 [batch, new]
    hetero_sd::Gelu(x){slope, cubic}: 0.5 x (1 + tanh(slope (x + cubic x^3)))  -> like x
    hetero_sd::SquaredRelu(x): max(x, 0)^2                                     -> like x
    hetero_sd::XIELU(x){positive, negative, beta}: positive max(x, 0)^2 + negative (exp(u) - 1 - u) + beta x,
        u = min(x, 0)                                                          -> like x

Where the mask is left out, CausalMask and Positions are the overload "unpadded", because a body cannot ask whether an
input is there. Later passes read them by name and never look inside. Hidden entries are the lowest finite number, not
-inf, so that the row of a padding token, where everything is hidden, stays finite instead of spreading NaN through the
caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN = "hetero_sd"
OPSET = 23
_UNPADDED = "unpadded"
HIDDEN = float(np.finfo(np.float32).min)


class Body:
    """Builds a function body a node at a time."""

    def __init__(self, inputs: list[str]) -> None:
        self.inputs = [ir.Value(name=n) for n in inputs]
        self.nodes: list[Any] = []

    def __call__(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
        """Append a node; its first output."""
        node = ir.node(op_type, list(inputs), attributes)
        node.outputs[0].name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, numbers: Any) -> Any:
        """Whole numbers."""
        return self("Constant", value=ir.tensor(np.asarray(numbers, np.int64)))

    def number(self, value: float) -> Any:
        """A float32 number."""
        return self("Constant", value=ir.tensor(np.float32(value)))

    def given(self, name: str) -> Any:
        """The attribute of that name, a float."""
        made = self("Constant")
        made.producer().attributes["value_float"] = ir.RefAttr("value_float", name, ir.AttributeType.FLOAT)
        return made

    def dimension(self, value: Any, axis: int) -> Any:
        """One-element vector."""
        return self("Shape", value, start=axis, end=axis + 1)

    def arange(self, first: Any, end: Any) -> Any:
        """Whole numbers from one one-element vector up to another."""
        zero = self.constant([0])
        return self("Range", self("Squeeze", first, zero), self("Squeeze", end, zero), self.constant(1))

    def function(self, name: str, output: Any, attributes: list[Any], overload: str = "") -> Any:
        """The function of the nodes so far."""
        output.name = "result"
        graph = ir.Graph(self.inputs, [output], nodes=self.nodes, opset_imports={"": OPSET}, name=name)
        return ir.Function(DOMAIN, name, overload, graph=graph, attributes=attributes)


def causal_mask_function(padding: bool) -> Any:
    """CausalMask: causal, and within the window if it is not 0, and not padding if `padding`."""
    body = Body(["attention_mask", "input_ids", "past_key"])
    attention_mask, input_ids, past_key = body.inputs
    past, new = body.dimension(past_key, 2), body.dimension(input_ids, 1)
    total = body("Add", past, new)
    query = body("Unsqueeze", body.arange(past, total), body.constant([1]))
    key = body.arange(body.constant([0]), total)
    seen = body("LessOrEqual", key, query)
    window = body("Constant")
    window.producer().attributes["value_int"] = ir.RefAttr("value_int", "window", ir.AttributeType.INT)
    unlimited = body("Equal", window, body.constant(0))
    near = body("Less", body("Sub", query, key), window)
    seen = body("And", seen, body("Or", near, unlimited))
    shape = body("Concat", body.dimension(input_ids, 0), body.constant([1]), new, total, axis=0)
    seen = body("Expand", seen, shape)
    if padding:
        kept = body("Cast", attention_mask, to=int(ir.DataType.BOOL))
        seen = body("And", seen, body("Unsqueeze", kept, body.constant([1, 2])))
    zero = body("Constant", value=ir.tensor(np.float32(0)))
    hidden = body("Constant", value=ir.tensor(np.float32(HIDDEN)))
    overload = "" if padding else _UNPADDED
    return body.function("CausalMask", body("Where", seen, zero, hidden), [ir.AttrInt64("window", 0)], overload)


def alibi_function() -> Any:
    """Alibi: what each head adds to the scores of a key, besides a mask: its slope times the key's position.

    Positions are counted from the last key, which a softmax does not see.
    """
    body = Body(["mask"])
    total = body.dimension(body.inputs[0], 3)
    last = body("Sub", total, body.constant([1]))
    behind = body("Cast", body("Sub", body.arange(body.constant([0]), total), last), to=int(ir.DataType.FLOAT))
    slopes = body("Constant")
    slopes.producer().attributes["value_floats"] = ir.RefAttr("value_floats", "slopes", ir.AttributeType.FLOATS)
    bias = body("Mul", body("Unsqueeze", slopes, body.constant([1, 2])), behind)
    attributes = [ir.Attr("slopes", ir.AttributeType.FLOATS, None)]
    return body.function("Alibi", body("Add", body.inputs[0], bias), attributes)


def positions_function(padding: bool) -> Any:
    """Positions: past, past + 1, ..., or, if `padding`, the number of real tokens before each (never negative)."""
    body = Body(["attention_mask", "input_ids", "past_key"])
    attention_mask, input_ids, past_key = body.inputs
    past, new = body.dimension(past_key, 2), body.dimension(input_ids, 1)
    total = body("Add", past, new)
    if padding:
        one = body.constant(1)
        before = body("Sub", body("CumSum", attention_mask, one), one)
        positions = body("Slice", body("Max", before, body.constant(0)), past, total, body.constant([1]))
    else:
        shape = body("Concat", body.dimension(input_ids, 0), new, axis=0)
        positions = body("Expand", body.arange(past, total), shape)
    return body.function("Positions", positions, [], "" if padding else _UNPADDED)


def gelu_function() -> Any:
    """Gelu with the constants of an export that has rounded them; ONNX's own operator has exact ones only."""
    body = Body(["x"])
    (x,) = body.inputs
    cube = body("Mul", body("Mul", x, x), x)
    inner = body("Mul", body("Add", x, body("Mul", cube, body.given("cubic"))), body.given("slope"))
    share = body("Add", body("Tanh", inner), body.number(1.0))
    attributes = [ir.Attr(name, ir.AttributeType.FLOAT, None) for name in ("slope", "cubic")]
    return body.function("Gelu", body("Mul", body("Mul", x, body.number(0.5)), share), attributes)


def squared_relu_function() -> Any:
    """SquaredRelu: the activation of Nemotron, which ONNX has no operator for."""
    body = Body(["x"])
    positive = body("Relu", body.inputs[0])
    return body.function("SquaredRelu", body("Mul", positive, positive), [])


def xielu_function() -> Any:
    """XIELU: the activation of Apertus, which ONNX has no operator for."""
    body = Body(["x"])
    (x,) = body.inputs
    over, under = body("Max", x, body.number(0.0)), body("Min", x, body.number(0.0))
    grown = body("Sub", body("Sub", body("Exp", under), body.number(1.0)), under)
    square = body("Mul", body("Mul", over, over), body.given("positive"))
    curved = body("Add", square, body("Mul", grown, body.given("negative")))
    attributes = [ir.Attr(name, ir.AttributeType.FLOAT, None) for name in ("positive", "negative", "beta")]
    return body.function("XIELU", body("Add", curved, body("Mul", x, body.given("beta"))), attributes)
