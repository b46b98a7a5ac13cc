"""The model-local functions of AltUp (Baykal et al. 2023) as Gemma 3n has it, with bodies that onnxruntime can run.

S streams of h numbers lie beside one another in a row [batch, new, S * h]:

    hetero_sd::AltUpPredict(x, c [batch, new, S * S]){streams}: x_i + sum over j of c[i * S + j] x_j     -> like x
    hetero_sd::AltUpCorrect(x, a [batch, new, h], c [batch, new, S]){streams, active}:
        x_i + (1 + c_i) (a - x_active)                                                                   -> like x
    hetero_sd::AltUpAdd(x, a [batch, new, h]){streams, first}: x_i + a, of streams before `first` x_i    -> like x

and what prepares them and a feed-forward part whose gate is sparse:

    hetero_sd::MatchMagnitude(x, y){least}: x sqrt(mean(y^2) / max(mean(x^2), least))                    -> like x
    hetero_sd::GaussianTopK(x){deviations}: max(0, x - mean(x) - deviations sqrt(mean((x - mean(x))^2))) -> like x
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.rewrite.local_functions import Body


def _integer(body: Body, name: str) -> Any:
    """The attribute of that name, an integer."""
    made = body("Constant")
    made.producer().attributes["value_int"] = ir.RefAttr("value_int", name, ir.AttributeType.INT)
    return made


def _by_stream(body: Body, value: Any, last: int = -1) -> Any:
    """[batch, new, S * h] -> [batch, new, S, h]."""
    streams = body("Unsqueeze", _integer(body, "streams"), body.constant([0]))
    tail = body.constant([last]) if last else streams
    return body("Reshape", value, body("Concat", body.constant([0, 0]), streams, tail, axis=0))


def _in_a_row(body: Body, value: Any) -> Any:
    return body("Reshape", value, body.constant([0, 0, -1]))


def altup_predict_function() -> Any:
    """AltUpPredict: each stream with a sum of all of them, whose factors are a token's own."""
    body = Body(["x", "c"])
    x, c = (_by_stream(body, body.inputs[0]), _by_stream(body, body.inputs[1], 0))
    predicted = body("Add", x, body("MatMul", c, x))
    return body.function("AltUpPredict", _in_a_row(body, predicted), [ir.Attr("streams", ir.AttributeType.INT, None)])


def altup_correct_function() -> Any:
    """AltUpCorrect: what a layer made of the active stream moves all of them, each by a factor of the token's own."""
    body = Body(["x", "a", "c"])
    x, one = _by_stream(body, body.inputs[0]), body.number(1.0)
    active = body("Gather", x, _integer(body, "active"), axis=2)
    innovation = body("Unsqueeze", body("Sub", body.inputs[1], active), body.constant([2]))
    factors = body("Unsqueeze", body("Add", body.inputs[2], one), body.constant([3]))
    corrected = body("Add", x, body("Mul", innovation, factors))
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in ("streams", "active")]
    return body.function("AltUpCorrect", _in_a_row(body, corrected), attributes)


def altup_add_function() -> Any:
    """AltUpAdd: the same row is added to every stream from one on."""
    body = Body(["x", "a"])
    x, zero, one = _by_stream(body, body.inputs[0]), body.constant(0), body.constant(1)
    later = body("GreaterOrEqual", body("Range", zero, _integer(body, "streams"), one), _integer(body, "first"))
    factors = body("Unsqueeze", body("Cast", later, to=int(ir.DataType.FLOAT)), body.constant([1]))
    added = body("Mul", body("Unsqueeze", body.inputs[1], body.constant([2])), factors)
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in ("streams", "first")]
    return body.function("AltUpAdd", _in_a_row(body, body("Add", x, added)), attributes)


def _mean(body: Body, value: Any) -> Any:
    return body("ReduceMean", value, body.constant([-1]), keepdims=1)


def match_magnitude_function() -> Any:
    """MatchMagnitude: a row with the root mean square of another one."""
    body = Body(["x", "y"])
    x, y = body.inputs
    own = body("Max", _mean(body, body("Mul", x, x)), body.given("least"))
    wanted = body("Sqrt", _mean(body, body("Mul", y, y)))
    scaled = body("Div", body("Mul", x, wanted), body("Sqrt", own))
    return body.function("MatchMagnitude", scaled, [ir.Attr("least", ir.AttributeType.FLOAT, None)])


def gaussian_top_k_function() -> Any:
    """GaussianTopK: what of a row lies above its mean by so many standard deviations, less that bound."""
    body = Body(["x"])
    (x,) = body.inputs
    centred = body("Sub", x, _mean(body, x))
    deviation = body("Sqrt", _mean(body, body("Mul", centred, centred)))
    above = body("Relu", body("Sub", centred, body("Mul", deviation, body.given("deviations"))))
    return body.function("GaussianTopK", above, [ir.Attr("deviations", ir.AttributeType.FLOAT, None)])


def altup_predict(x: np.ndarray, c: np.ndarray, streams: int) -> np.ndarray:
    """What AltUpPredict computes, in numpy."""
    rows = x.reshape(*x.shape[:2], streams, -1)
    return (rows + c.reshape(*x.shape[:2], streams, streams) @ rows).reshape(x.shape)


def altup_correct(x: np.ndarray, a: np.ndarray, c: np.ndarray, streams: int, active: int) -> np.ndarray:
    """What AltUpCorrect computes, in numpy."""
    rows = x.reshape(*x.shape[:2], streams, -1)
    moved = (a - rows[:, :, active])[:, :, None] * (1 + c)[..., None]
    return (rows + moved).reshape(x.shape)


def altup_add(x: np.ndarray, a: np.ndarray, streams: int, first: int) -> np.ndarray:
    """What AltUpAdd computes, in numpy."""
    rows = np.array(x.reshape(*x.shape[:2], streams, -1))
    rows[:, :, first:] += a[:, :, None]
    return rows.reshape(x.shape)
