"""What the elementwise kernels compute from one value, or from two, as TIR expressions; the loops are the backend's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from targets.kernels.vector_math import lanes_exp, lanes_gelu, lanes_tanh


def _relu(x: Any) -> Any:
    """The larger of x and 0; NaN stays NaN, so that the check of the logits sees it."""
    return tirx.Select(x < T.float32(0), T.float32(0), x)


def _clip(x: Any, least: float, most: float) -> Any:
    """The nearest number from `least` to `most`; NaN stays NaN."""
    below = tirx.Select(x > T.float32(most), T.float32(most), x)
    return tirx.Select(below < T.float32(least), T.float32(least), below)


def _xielu(x: Any, positive: float, negative: float, beta: float) -> Any:
    """Above 0 positive * x^2 + beta * x, below negative * (exp(x) - 1 - x) + beta * x; NaN stays NaN."""
    over = _relu(x)
    under = tirx.Select(x > T.float32(0), T.float32(0), x)
    grown = lanes_exp(under) - T.float32(1) - under
    return T.float32(positive) * over * over + T.float32(negative) * grown + T.float32(beta) * x


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "silu_mul": lambda gate, up: gate / (T.float32(1) + lanes_exp(T.float32(0) - gate)) * up,
    "gelu_mul tanh": lambda gate, up, *constants: lanes_gelu(gate, True, *constants) * up,
    "gelu_mul erf": lambda gate, up, *_: lanes_gelu(gate, tanh=False) * up,
    "gelu tanh": lambda x, *constants: lanes_gelu(x, True, *constants),
    "gelu erf": lambda x, *_: lanes_gelu(x, tanh=False),
    "relu": _relu,
    "squared_relu": lambda x: _relu(x) * _relu(x),
    "tanh": lanes_tanh,
    "clip": _clip,
    "xielu": _xielu,
    "scale": lambda x, factor: T.float32(factor) * x,
}


def elementwise(kind: str, *constants: float) -> Callable[..., Any]:
    """The function of one or two float32 values, scalars or lanes, with its constants bound."""
    function = _FUNCTIONS[kind]
    return lambda *values: function(*values, *constants)


def gelu_kind(name: str, tanh: bool) -> str:
    """The kind of a kernel that has a GELU, by tanh or by erf (lanes_gelu)."""
    return f"{name} tanh" if tanh else f"{name} erf"
