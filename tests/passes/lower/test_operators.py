"""The table from operators to kernels: complete, the same for every backend, refusals in one line."""

from __future__ import annotations

from typing import Any

import numpy_backend
import pytest
from tvm import relax

from passes.lower.kernel_calls import kernel_uses, operators_left
from passes.lower.operators import OPERATORS, Lower, operator_of
from passes.pipeline import lower_decoder
from passes.relax import dialect as D
from passes.testing import TinyDecoder
from targets import backend as backends
from targets.backend import Backend, backend
from targets.cpu.tile import CpuTile
from targets.errors import UserError
from targets.kernels.signatures import MAKERS
from targets.opencl.tile import GpuTile

TILES = {
    "cpu": CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd"),
    "gpu": GpuTile(),
    "test": numpy_backend.Tile(),
}


@pytest.fixture(autouse=True)
def _third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.REGISTRY, "test", numpy_backend.WHERE)


def module(call: Any, *params: Any) -> Any:
    bb = relax.BlockBuilder()
    with bb.function("main", list(params)):
        with bb.dataflow():
            out = bb.emit_output(bb.emit(call))
        bb.emit_func_output(out)
    return bb.get()


def row(width: int = 16, name: str = "x") -> Any:
    return relax.Var(name, D.tensor((1, 2, width)))


def test_every_maker_serves_an_operator() -> None:
    served = {operator.maker for operator in OPERATORS.values()} | {"add_bias"}
    assert served == set(MAKERS)
    x, bias = row(), relax.Var("b", D.tensor((16,)))
    assert operator_of(relax.op.add(x, row(name="y"))).maker == "add"
    bb = relax.BlockBuilder()
    assert operator_of(bb.normalize(relax.op.add(x, bias))).maker == "add_bias"


@pytest.mark.parametrize("name", TILES)
@pytest.mark.slow
def test_a_decoder_calls_the_same_kernels_everywhere(name: str) -> None:
    """By the same names, of elementwise kernels with the width: reports list them, and it is what they cost."""
    from costmodel.place import Place

    tiny = TinyDecoder(bits=4, qk_norm=True, qkv_bias=True)
    lowered = lower_decoder(tiny.decoder(), TILES, Place(name), 64, (2,), 8)
    assert operators_left(lowered.mod) == []
    uses = kernel_uses(lowered.mod["step_2"])
    named = {use.name: use.calls for use in uses}
    assert named["silu_mul_2_48"] == named["attention_2"] == 2
    assert {"linear_4bit_2_64_48", "embedding_2", "rms_norm_2_4", "add_2_64", "argmax_2", "rope_2_4"} <= set(named)
    scratch = {use.name for use in uses if use.scratch}
    assert ("argmax_2" in scratch) == (name != "cpu")
    assert ("attention_2" in scratch) == (name == "gpu")


def lowers(kind: Backend, mod: Any) -> bool:
    return operators_left(Lower(kind, TILES[kind.name])(mod)) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda x: D.tanh(x),
        lambda x: D.relu(x),
        lambda x: D.squared_relu(x),
        lambda x: D.clip(x, least=-1.0, most=1.0),
        lambda x: D.xielu(x, positive=0.8, negative=1.3, beta=0.5),
        lambda x: D.scale(x, factor=0.5),
        lambda x: D.join_columns(x, x),
        lambda x: D.match_magnitude(x, x, least=1e-5),
        lambda x: D.gaussian_top_k(x, deviations=1.5),
        lambda x: relax.op.add(x, x),
        lambda x: D.silu_mul(x, x),
        lambda x: D.gelu(x, tanh=1),
        lambda x: D.gelu_mul(x, x, tanh=1),
    ],
)
def test_rows_of_any_width_have_kernels(call: Any) -> None:
    for width in (16, 18):
        x = row(width)
        assert lowers(backend("cpu"), module(call(x), x))
        assert lowers(backend("gpu"), module(call(x), x))


def test_a_backend_without_the_kernel_is_one_line() -> None:
    x = row()
    with pytest.raises(UserError, match="the TEST has no kernel tanh: use --place cpu"):
        lowers(backend("test"), module(D.tanh(x), x))
    assert lowers(backend("test"), module(D.silu_mul(x, x), x))
