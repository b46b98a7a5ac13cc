"""Rotations in several spellings give their tables; what is no rotation by position alone is refused."""

from __future__ import annotations

import numpy as np
import pytest

from passes.onnx.pass_context import Declined
from passes.onnx.prove.prove_rope import Rope, Rotation, check_rope, check_unrotated, prove_rope
from passes.onnx.testing import importing

CONTEXT, HEADS, DIM = 32, 2, 4
FREQUENCIES = np.array([1.0, 0.1], np.float32)
INPUTS = "int64[b,s] input_ids, int64[b,t] attention_mask, int64[b,s] position_ids, float[b,2,p,4] K, float[b,s,8] x"
CONSTANTS = (
    "float[2] freq = {1.0, 0.1}, float[1,1,1,2] freq4 = {1.0, 0.1}, int64[1] z = {0}, int64[1] one1 = {1}, "
    "int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {-1}, int64 zero = {0}, int64 one = {1}, "
    "int64[4] heads = {0,0,2,4}, int64[5] pairs = {0,2,-1,2,2}, int64[4] unpair = {0,2,-1,4}, float k = {0.5}, "
    "float[1,2,1,1] each = {1,2}, "
    "int64[2] mid = {0,1}"
)
HEADED = "h = Reshape(x, heads) y = Transpose <perm = [0,2,1,3]> (h) "
ANGLES = "a1 = Cast <to = 1> (pos) a2 = Unsqueeze(a1, last) a3 = Mul(a2, freq) angle = Unsqueeze(a3, one1) "
BY_HALVES = (
    "e = Concat <axis = -1> (angle, angle) c = Cos(e) s = Sin(e) y1 = Slice(y, z, two, last) "
    "y2 = Slice(y, two, four, last) n = Neg(y2) r = Concat <axis = -1> (n, y1) yc = Mul(y, c) rs = Mul(r, s) "
)
INPUT_POSITIONS = "pos = Identity(position_ids) "
PAST_POSITIONS = (
    "p1 = Shape <start = 2, end = 3> (K) p = Squeeze(p1) n1 = Shape <start = 1, end = 2> (input_ids) "
    "nn = Squeeze(n1) t = Add(p, nn) row = Range(p, t, one) pos = Unsqueeze(row, z) "
)
MASK_POSITIONS = (
    "p1 = Shape <start = 2, end = 3> (K) t1 = Shape <start = 1, end = 2> (attention_mask) "
    "sum = CumSum(attention_mask, one) sum1 = Sub(sum, one) pos = Slice(sum1, p1, t1, one1) "
)


def rotation(body: str) -> Rotation:
    text = f"g ({INPUTS}) => (float[b,2,s,4] out) <{CONSTANTS}> {{ {HEADED} {body} }}"
    imp = importing(text, context=CONTEXT, kv_heads=2, head_dim=DIM)
    values = {v.name: v for v in imp.graph.inputs}
    values["K"].name = "past_key_values.0.key"
    return Rotation(imp, values["x"], imp.graph.outputs[0], HEADS, ("bsd", "bhsd"))


def tables() -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(CONTEXT)[:, None] * FREQUENCIES
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize(
    ("positions", "kind"), [(INPUT_POSITIONS, "input"), (PAST_POSITIONS, "past"), (MASK_POSITIONS, "mask")]
)
def test_halves_and_where_positions_come_from(positions: str, kind: str) -> None:
    rope = prove_rope(rotation(positions + ANGLES + BY_HALVES + "out = Add(yc, rs)"))
    assert rope is not None
    assert (rope.rotary_dim, rope.interleaved, rope.positions) == (4, False, kind)
    cos, sin = tables()
    np.testing.assert_allclose(rope.cos, cos, atol=1e-5)
    np.testing.assert_allclose(rope.sin, sin, atol=1e-5)


NEIGHBOURS = (
    "q = Reshape(y, pairs) q1 = Gather <axis = -1> (q, zero) q2 = Gather <axis = -1> (q, one) c = Cos(angle) "
    "s = Sin(angle) ac = Mul(q1, c) bs = Mul(q2, s) u = Sub(ac, bs) as = Mul(q1, s) bc = Mul(q2, c) v = Add(as, bc) "
    "u1 = Unsqueeze(u, last) v1 = Unsqueeze(v, last) w = Concat <axis = -1> (u1, v1) out = Reshape(w, unpair)"
)


def test_neighbours() -> None:
    rope = prove_rope(rotation(INPUT_POSITIONS + ANGLES + NEIGHBOURS))
    assert rope is not None
    assert (rope.rotary_dim, rope.interleaved) == (4, True)
    np.testing.assert_allclose(rope.sin, tables()[1], atol=1e-5)


def test_part_of_a_head() -> None:
    part = (
        "a1 = Cast <to = 1> (pos) a2 = Unsqueeze(a1, last) angle = Unsqueeze(a2, one1) c = Cos(angle) s = Sin(angle) "
        "y1 = Slice(y, z, one1, last) y2 = Slice(y, one1, two, last) rest = Slice(y, two, four, last) "
        "ac = Mul(y1, c) bs = Mul(y2, s) u = Sub(ac, bs) as = Mul(y1, s) bc = Mul(y2, c) v = Add(as, bc) "
        "out = Concat <axis = -1> (u, v, rest)"
    )
    rope = prove_rope(rotation(INPUT_POSITIONS + part))
    assert rope is not None
    assert rope.rotary_dim == 2
    np.testing.assert_allclose(rope.cos[:, 0], np.cos(np.arange(CONTEXT)), atol=1e-5)


def test_scaling_stays_in_the_tables_of_the_key_and_is_a_factor_of_the_query() -> None:
    scaled = INPUT_POSITIONS + ANGLES + BY_HALVES + "o = Add(yc, rs) out = Mul(o, k)"
    plain = rotation(INPUT_POSITIONS + ANGLES + BY_HALVES + "out = Add(yc, rs)")
    by_half = prove_rope(rotation(scaled))
    assert by_half is not None
    np.testing.assert_allclose(by_half.cos, 0.5 * tables()[0], atol=1e-5)
    rope = prove_rope(plain)
    assert rope is not None
    assert check_rope(plain, rope) == 1.0
    assert check_rope(rotation(scaled), rope) == pytest.approx(0.5)


def test_no_rotation() -> None:
    still = rotation("out = Mul(y, k)")
    assert prove_rope(still) is None
    assert check_unrotated(still) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # a reflection: the sign of one sine is wrong
        (BY_HALVES.replace("n = Neg(y2)", "n = Identity(y2)") + "out = Add(yc, rs)", "pairs the elements"),
        # the tables depend on the length of the text
        (
            "m = ReduceMax <keepdims = 0> (position_ids) mf = Cast <to = 1> (m) f = Add(mf, k) g = Mul(angle, f) "
            + BY_HALVES.replace("(angle, angle)", "(g, g)")
            + "out = Add(yc, rs)",
            "depends on the other positions",
        ),
        # the numbers are squared on the way: not linear
        (BY_HALVES + "o = Add(yc, rs) out = Mul(o, o)", "pairs the elements|depends on the other positions"),
        # each head its own way
        (BY_HALVES + "o = Add(yc, rs) out = Mul(o, each)", "depends on the other positions"),
    ],
)
def test_what_is_no_rotation_is_refused(body: str, reason: str) -> None:
    with pytest.raises(Declined, match=reason):
        prove_rope(rotation(INPUT_POSITIONS + ANGLES + body))


def test_another_table_is_another_rotation() -> None:
    rope = prove_rope(rotation(INPUT_POSITIONS + ANGLES + BY_HALVES + "out = Add(yc, rs)"))
    assert rope is not None
    control = Rope(rope.rotary_dim, rope.interleaved, rope.cos, -rope.sin, rope.positions)
    with pytest.raises(Declined, match="depends on the other positions"):
        check_rope(rotation(INPUT_POSITIONS + ANGLES + BY_HALVES + "out = Add(yc, rs)"), control)


def test_positions_shifted_by_the_mask_are_refused_beside_position_ids() -> None:
    shifted = (
        "sum = ReduceSum <keepdims = 1> (attention_mask, one1) len = Shape <start = 1, end = 2> (attention_mask) "
        "lack = Sub(len, sum) pos = Sub(position_ids, lack) "
    )
    with pytest.raises(Declined, match="not position_ids alone"):
        prove_rope(rotation(shifted + ANGLES + BY_HALVES + "out = Add(yc, rs)"))
