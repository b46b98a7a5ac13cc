"""A decoder lowered to OpenCL equals onnxruntime on every variant, rows do not depend on n, nothing is left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from passes.testing import TinyDecoder, run_onnx
from targets.backend import backend
from targets.cpu.linker import host_link
from targets.errors import UserError
from targets.opencl.tile import GpuTile
from tests.support.lowered import lower_whole

Array = npt.NDArray[Any]
TILE = GpuTile()
CONTEXT, STEPS, PREFILL = 64, (1, 3, 8), 8
VARIANTS: dict[str, dict[str, Any]] = {
    "float16 tied": {"dtype": "float16", "tied": True},
    "qk norm and bias": {"qk_norm": True, "qkv_bias": True},
    "2 bit": {"bits": 2},
    "4 bit": {"bits": 4},
    "8 bit, odd sizes": {"bits": 8, "head_dim": 8, "heads": 6, "kv_heads": 3, "vocab": 53},
}


class Compiled:
    """The lowered decoder on the OpenCL device; caches start as NaN so that a stale row shows."""

    def __init__(self, tiny: TinyDecoder, library: Path) -> None:
        import tvm
        from tvm import relax

        proto = tiny.proto()
        lowered = lower_whole(tiny.decoder(proto), TILE, CONTEXT, STEPS, PREFILL, processor="gpu")
        target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})
        relax.build(lowered.mod, target).export_library(str(library), fcompile=host_link())
        self.device = tvm.opencl()
        self.vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), [self.device, tvm.cpu()])
        packed = [p.pack(lowered.weights[p.name].numpy()) for p in lowered.packed]
        self.params = [self.tensor(a.view(np.uint16) if a.dtype == np.float16 else a) for a in packed]
        kv, dim = tiny.kv_heads, tiny.head_dim
        shapes = [(1, kv, CONTEXT // 4, dim, 4), (1, kv, CONTEXT, dim)] * tiny.layers
        self.caches = [self.tensor(np.full(s, np.nan, np.float32)) for s in shapes]

    def tensor(self, array: Array) -> Any:
        import tvm

        return tvm.runtime.tensor(array, self.device)

    def run(self, name: str, ids: list[int], *scalars: int) -> tuple[Array, Array]:
        out = self.vm[name](self.tensor(np.array([ids])), *scalars, *self.caches, *self.params)
        return out[0].numpy()[0], out[1].numpy()[0]

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


def reference(tiny: TinyDecoder, ids: list[int]) -> Array:
    empty = [np.zeros((1, tiny.kv_heads, 0, tiny.head_dim), np.float32)] * (2 * tiny.layers)
    logits: Array = run_onnx(tiny.proto(), ids, empty)[0][0]
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_onnxruntime(variant: str, released: None, tmp_path: Path) -> None:
    tiny = TinyDecoder(**VARIANTS[variant])
    ids = np.random.default_rng(1).integers(0, tiny.vocab, 14).tolist()
    expected = reference(tiny, ids)
    ours = Compiled(tiny, tmp_path / "model.so")
    whole = ours.logits(ids, [8, 3, 3])
    assert scaled_error(whole, expected) < 4e-6
    for parts in ([1] * 14, [3, 8, 3]):
        assert np.array_equal(ours.logits(ids, parts), whole), parts
    row, best = ours.run(f"prefill_{PREFILL}", ids[:8], 0, 5)
    assert np.array_equal(row[0], whole[5])
    assert int(best[0]) == int(whole[5].argmax())

    ours.logits(ids, [8, 3])  # rollback: other tokens from row 9 on, then the first ones again
    ours.run("step_3", [1, 2, 3], 9)
    again = np.concatenate(
        [ours.run("step_3", ids[9:12], 9)[0], *(ours.run("step_1", [ids[i]], i)[0] for i in (12, 13))]
    )
    assert np.array_equal(again, whole[9:])
    other = TinyDecoder(**{**VARIANTS[variant], "seed": 1})  # the negative control: another model's logits are noticed
    assert scaled_error(whole, reference(other, ids)) > 1e-2


def test_nothing_of_ours_is_left() -> None:
    import tvm
    from tvm import relax

    from passes.lower.kernel_calls import operators_left
    from passes.lower.operators import Lower
    from passes.relax import dialect as D

    bb = relax.BlockBuilder()
    x = relax.Var("x", D.tensor((1, 2, 8)))
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(bb.emit(relax.op.sigmoid(x)))
        bb.emit_func_output(out)
    assert operators_left(bb.get()) == ["relax.sigmoid"]

    tiny = TinyDecoder()
    lowered = lower_whole(tiny.decoder(tiny.proto()), TILE, CONTEXT, (1,), PREFILL, processor="gpu")
    assert operators_left(lowered.mod) == []
    tvm.ir.register_op_attr("hsd.unknown_to_the_gpu", "FPurity", True)
    tvm.ir.register_op_attr("hsd.unknown_to_the_gpu", "FInferType", lambda call, ctx: call.args[0].ty)
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(bb.emit(relax.Call("hsd.unknown_to_the_gpu", [x])))
        bb.emit_func_output(out)
    with pytest.raises(AssertionError, match=r"without a kernel of backend gpu: .*unknown_to_the_gpu"):
        Lower(backend("gpu"), TILE)(bb.get())


def test_half_parameters_become_their_bits() -> None:
    tiny = TinyDecoder(dtype="float16")
    lowered = lower_whole(tiny.decoder(tiny.proto()), TILE, CONTEXT, (1,), PREFILL, processor="gpu")
    types = {str(p.ty.dtype) for p in lowered.mod["step_1"].params if hasattr(p.ty, "ndim")}
    assert "uint16" in types
    assert "float16" not in types
    assert {p.dtype for p in lowered.packed} >= {"float16"}  # on disk they are what they are on the CPU


def test_bfloat16_is_refused_in_one_line() -> None:
    from tvm import relax

    from passes.lower.operators import Lower
    from passes.relax import dialect as D

    bb = relax.BlockBuilder()
    x, w = relax.Var("x", D.tensor((1, 2, 16))), relax.Var("w", D.tensor((1, 16, 16), "bfloat16"))
    with bb.function("main", [x, w]):
        with bb.dataflow():
            out = bb.emit_output(bb.emit(D.linear(x, w, layout="panels", columns=16)))
        bb.emit_func_output(out)
    with pytest.raises(UserError, match="bfloat16 weights have no GPU kernel"):
        Lower(backend("gpu"), TILE)(bb.get())
