"""A decoder through all phases: reference bodies and kernels equal onnxruntime, rows do not depend on n."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tvm
from tvm import relax

from passes.lower.lowered import IrDump, LoweredDecoder
from passes.relax.translate import onnx_to_relax
from passes.testing import TinyDecoder, run_onnx
from targets.boards import load_board
from targets.cpu.target import tvm_target
from targets.cpu.tile import cpu_tile
from targets.errors import UserError
from tests.support.lowered import lower_whole
from tests.support.machines import kernels_of, virtual_machine

Array = npt.NDArray[Any]
CORE = load_board("host", measure=False).clusters[0].core
TILE = cpu_tile(CORE)
KERNELS = kernels_of(CORE)
CONTEXT, STEPS, PREFILL = 64, (1, 2, 3, 8), 8
VARIANTS = {
    "plain": {},
    "float16 tied": {"dtype": "float16", "tied": True},
    "qk norm and bias": {"qk_norm": True, "qkv_bias": True},
    "2 bit": {"bits": 2},
    "4 bit": {"bits": 4},
    "8 bit": {"bits": 8},
}


class Compiled:
    """The lowered decoder with its own caches, filled with NaN so that a stale row shows."""

    def __init__(self, tiny: TinyDecoder, lowered: LoweredDecoder) -> None:
        self.vm = virtual_machine(lowered, CORE, KERNELS)
        packed = [p.pack(lowered.weights[p.name].numpy()) for p in lowered.packed]
        self.params = [tvm.runtime.tensor(a) for a in packed]
        kv, dim, lanes = tiny.kv_heads, tiny.head_dim, TILE.lanes
        shapes = [(1, kv, CONTEXT // lanes, dim, lanes), (1, kv, CONTEXT, dim)] * tiny.layers
        self.caches = [tvm.runtime.tensor(np.full(s, np.nan, np.float32)) for s in shapes]

    def run(self, name: str, ids: list[int], *scalars: int) -> list[Array]:
        out = self.vm[name](tvm.runtime.tensor(np.array([ids])), *scalars, *self.caches, *self.params)
        return [tensor.numpy()[0] for tensor in out]

    def logits(self, ids: list[int], parts: list[int]) -> Array:
        rows, pos = [], 0
        for n in parts:
            logits, best = self.run(f"step_{n}", ids[pos : pos + n], pos)
            assert best.tolist() == logits.argmax(-1).tolist()
            rows.append(logits)
            pos += n
        return np.concatenate(rows)


def scaled_error(ours: Array, reference: Array) -> float:
    return float(np.abs(ours - reference).max() / max(1.0, np.abs(reference).max()))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_onnxruntime(variant: str, tmp_path: Path) -> None:
    tiny = TinyDecoder(**VARIANTS[variant])
    proto = tiny.proto()
    ids = np.random.default_rng(1).integers(0, tiny.vocab, 14).tolist()
    empty = [np.zeros((1, tiny.kv_heads, 0, tiny.head_dim), np.float32)] * (2 * tiny.layers)
    expected = run_onnx(proto, ids, empty)

    lowered = lower_whole(tiny.decoder(proto), TILE, CONTEXT, STEPS, PREFILL, IrDump(tmp_path), kernels=KERNELS)
    assert sorted(p.name[0] for p in tmp_path.glob("*.py")) == ["0", "1", "2", "3", "4", "5"]
    ours = Compiled(tiny, lowered)
    whole = ours.logits(ids, [8, 3, 3])
    assert scaled_error(whole, expected[0][0]) < 2e-6
    for parts in ([1] * 14, [2] * 7, [3, 8, 2, 1]):
        assert np.array_equal(ours.logits(ids, parts), whole), parts
    row, best = ours.run(f"prefill_{PREFILL}", ids[:8], 0, 5)
    assert np.array_equal(row[0], whole[5])
    assert int(best[0]) == int(whole[5].argmax())
    ours.logits([5] * 14, [8, 3, 3])  # other rows, which a fill writes over
    ours.run(f"fill_{PREFILL}", ids[:8], 0)
    assert np.array_equal(ours.run("step_3", ids[8:11], 8)[0], whole[8:11])

    ours.logits(ids, [8, 3])  # rollback: other tokens from row 9 on, then the first ones again
    ours.run("step_3", [1, 2, 3], 9)
    again = np.concatenate([ours.run("step_3", ids[9:12], 9)[0], ours.run("step_2", ids[12:], 12)[0]])
    assert np.array_equal(again, whole[9:])


@pytest.mark.slow
def test_reference_bodies_equal_onnxruntime() -> None:
    tiny = TinyDecoder(qk_norm=True, qkv_bias=True, bits=4)
    proto = tiny.proto()
    rng = np.random.default_rng(2)
    past = [rng.standard_normal((1, tiny.kv_heads, 5, tiny.head_dim)).astype(np.float32) for _ in range(4)]
    imported = onnx_to_relax(tiny.decoder(proto))
    vm = relax.VirtualMachine(relax.build(imported.mod, tvm_target(CORE)), tvm.cpu())
    names = [p.name for p in imported.mod["main"].params][1 + len(past) :]
    params = [imported.weights[name].numpy() for name in names]
    for ids in ([3], [7, 1, 9]):
        expected = run_onnx(proto, ids, past)
        out = vm["main"](*map(tvm.runtime.tensor, [np.array([ids]), *past, *params]))
        assert max(scaled_error(o.numpy(), e) for o, e in zip(out, expected, strict=True)) < 2e-6


@pytest.mark.parametrize("what", ["nothing", "a weight", "the scale of attention", "an epsilon"])
def test_a_changed_model_is_noticed(what: str) -> None:
    """The negative control of test_equals_onnxruntime: the comparison fails when the compiled model is another one."""
    tiny = TinyDecoder()
    proto = tiny.proto()
    ids = np.random.default_rng(1).integers(0, tiny.vocab, 14).tolist()
    empty = [np.zeros((1, tiny.kv_heads, 0, tiny.head_dim), np.float32)] * (2 * tiny.layers)
    expected = run_onnx(proto, ids, empty)
    nodes = {kind: [n for n in proto.graph.node if n.op_type == kind] for kind in ("Attention", "RMSNormalization")}
    if what == "a weight":
        weight = next(t for t in proto.graph.initializer if t.name == "0.o")
        array = onnx.numpy_helper.to_array(weight).copy()
        array[3, 4] += 0.05
        weight.CopyFrom(onnx.numpy_helper.from_array(array, "0.o"))
    elif what == "the scale of attention":
        next(a for a in nodes["Attention"][1].attribute if a.name == "scale").f *= 1.01
    elif what == "an epsilon":
        next(a for a in nodes["RMSNormalization"][0].attribute if a.name == "epsilon").f *= 100
    lowered = lower_whole(tiny.decoder(proto), TILE, CONTEXT, (8,), PREFILL, kernels=KERNELS)
    error = scaled_error(Compiled(tiny, lowered).logits(ids[:8], [8]), expected[0][0][:8])
    assert (error > 2e-6) == (what != "nothing"), error


def test_unknown_operator_is_refused_by_name() -> None:
    tiny = TinyDecoder()
    proto = tiny.proto()
    node = next(n for n in proto.graph.node if n.op_type == "Sigmoid")
    node.op_type = "Elu"
    with pytest.raises(UserError, match=r"ai.onnx.Elu .*not in the decoder vocabulary"):
        onnx_to_relax(tiny.decoder(proto))
