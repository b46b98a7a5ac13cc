"""Vector arithmetic written as TIR expressions, so that LLVM vectorises it (a call of libm would not be)."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T


def lanes_exp(x: Any) -> Any:
    """exp(x) for float32 scalars or vector lanes; 2 ulp on [-87, 88], clamped outside.

    Range reduction x = t ln 2 + r with a two-part ln 2, then a polynomial of degree 7 in r (the coefficients are
    those of the Cephes library's expf).
    """
    x = tirx.max(tirx.min(x, T.float32(88.0)), T.float32(-87.0))
    t = tirx.floor(x * T.float32(1.44269504) + T.float32(0.5))
    r = x - t * T.float32(0.693359375) - t * T.float32(-2.12194440e-4)
    p = T.float32(1.9875691500e-4)
    for c in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        p = p * r + T.float32(c)
    p = p * r * r + r + T.float32(1)
    return p * tirx.reinterpret("float32", (tirx.Cast("int32", t) + 127) << 23)


def lanes_tanh(x: Any) -> Any:
    """tanh(x) = 1 - 2 / (exp(2x) + 1) for float32 lanes."""
    return T.float32(1) - T.float32(2) / (lanes_exp(T.float32(2) * x) + T.float32(1))


GELU_SLOPE, GELU_CUBIC = 0.7978845608, 0.044715  # sqrt(2 / pi), and the constant that the approximation was fitted with


def lanes_gelu(x: Any, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC) -> Any:
    """GELU, x * Phi(x), for float32 lanes (Hendrycks and Gimpel 2016).

    tanh: their approximation 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = slope (x + cubic x^3), where an export may
    have rounded slope = sqrt(2 / pi) and cubic = 0.044715.
    Otherwise Phi through erf by formula 7.1.26 of Abramowitz and Stegun, absolute error 1.5e-7.
    """
    if tanh:
        u = T.float32(slope) * x * (T.float32(1) + T.float32(cubic) * x * x)
        return x / (T.float32(1) + lanes_exp(T.float32(-2) * u))
    size = tirx.max(x, T.float32(0) - x)
    t = T.float32(1) / (T.float32(1) + T.float32(0.3275911 * 0.5**0.5) * size)
    p = T.float32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + T.float32(c)
    tail = p * t * lanes_exp(T.float32(-0.5) * x * x)
    return tirx.max(x, T.float32(0)) - T.float32(0.5) * size * tail


def of_head(numbers: tuple[float, ...], head: Any, first: int = 0) -> Any:
    """The number of a head, among constants: a choice between halves, and so on."""
    if len(numbers) == 1:
        return T.float32(numbers[0])
    half = len(numbers) // 2
    parts = of_head(numbers[:half], head, first), of_head(numbers[half:], head, first + half)
    return tirx.Select(head < first + half, *parts)


def value_with_key(value: Any, key: Any) -> Any:
    """A value that a KV cache in float16 gets: too large for it where the key of its place is.

    The infinite score of such a key would hide it without a trace; an infinite value spoils every row that sees it.
    """
    return tirx.Select(T.abs(key) < T.float32(65520), value, T.float32(3e38))
