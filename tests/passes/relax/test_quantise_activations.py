"""Before / Expected of QuantiseActivations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from numpy_backend import NumpyBackend
from tvm import relax

from passes.relax import dialect as D
from passes.relax.quantise_activations import QuantiseActivations
from targets.backend import HOST, backend
from targets.cpu.tile import CpuTile
from targets.opencl.tile import GpuTile
from tests.passes.test_relax_passes import assert_same, module, operators, var

PASS = QuantiseActivations(backend(HOST), CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd"))


def attributes(bits: int, block: int, k: int = 64) -> dict[str, Any]:
    return {"layout": "panels", "bits": bits, "block": block, "k": k, "columns": 48}


def parameters(bits: int, block: int, k: int = 64) -> list[Any]:
    q = var("q", 3, k * bits // 32, 16, dtype="uint32")
    return [var("x", 1, 3, k), q, var("scale", 3, -(-k // block), 16), var("zero", 1, 1, 1, dtype="uint8")]


def two_products(params: list[Any], bits: int, block: int) -> Any:
    """Two matrix multiplications of one x."""

    def body(emit: Callable[[Any], Any]) -> Any:
        x, *weights = params
        return relax.Tuple(
            [emit(D.linear_nbits(x, *weights, **attributes(bits, block, int(x.ty.shape[-1])))) for _ in "ab"]
        )

    return module(params, body)


def test_codes_of_a_gpu_are_four_to_a_word() -> None:
    after = QuantiseActivations(backend("gpu"), GpuTile())(two_products(parameters(4, 32), 4, 32))
    assert operators(after) == ["hsd.quantise_rows", "hsd.linear_int", "hsd.linear_int"]
    made = next(b.value for b in after["main"].body.blocks[0].bindings if D.op_name(b.value) == "hsd.quantise_rows")
    assert [(str(t.dtype), D.shape_of(t)) for t in made.ty.fields] == [
        ("uint32", [1, 3, 16]),
        ("float32", [1, 3, 2]),
        ("int32", [1, 3, 2]),
    ]


@pytest.mark.parametrize(("bits", "dtype"), [(4, "int8"), (8, "int16")])
def test_products_of_one_input_share_its_codes(bits: int, dtype: str) -> None:
    params = parameters(bits, 32)

    def expected(emit: Callable[[Any], Any]) -> Any:
        x, *weights = params
        made = emit(D.quantise_rows(x, step=32, dtype=dtype))
        codes = [emit(relax.TupleGetItem(made, i)) for i in range(3)]
        return relax.Tuple([emit(D.linear_int(*codes, *weights, **attributes(bits, 32))) for _ in "ab"])

    before = two_products(params, bits, 32)
    assert_same(PASS(before), module(params, expected))
    assert operators(before) == ["hsd.linear_nbits"] * 2  # the negative control


@pytest.mark.parametrize(("block", "k"), [(16, 64), (32, 80)])
def test_what_is_not_whole_steps_stays(block: int, k: int) -> None:
    before = two_products(parameters(4, block, k), 4, block)
    assert_same(PASS(before), before)


def test_a_processor_without_integer_kernels_keeps_floats() -> None:
    before = two_products(parameters(4, 32), 4, 32)
    assert_same(QuantiseActivations(NumpyBackend(), GpuTile())(before), before)
