"""Blocks of MatMulBnb4 that run over the ends of columns become smaller ones of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.prove.check_vocabulary import refusals
from passes.onnx.rewrite.blocks_of_columns import BNB4_TABLES, blocks_of_columns
from passes.onnx.testing import importing, lines
from targets.kernels.code_tables import CODE_TABLES


def product(k: int, n: int, block: int, table: int = 1, absmax: int | None = None) -> Any:
    imp = importing(
        f"g (float[b,s,{k}] x) => (float[b,s,{n}] y)"
        f" {{ y = com.microsoft.MatMulBnb4 <K = {k}, N = {n}, block_size = {block}, quant_type = {table}> (x, q, a) }}"
    )
    rng = np.random.default_rng(0)
    numbers = {
        "q": rng.integers(0, 256, k * n // 2).astype(np.uint8),
        "a": rng.uniform(0.5, 2, -(-k * n // block) if absmax is None else absmax).astype(np.float32),
    }
    node = imp.graph[0]
    for place, (name, x) in enumerate(numbers.items(), 1):
        value = ir.Value(name=name, const_value=ir.tensor(x, name=name))
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(x.shape)
        imp.graph.register_initializer(value)
        node.replace_input_with(place, value)
    return imp


def weights(imp: Any) -> np.ndarray:
    """What onnxruntime reads: the product with the identity."""
    k = imp.graph[0].attributes["K"].value
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.eye(k, dtype=np.float32)[None]})[0][0])


@pytest.mark.parametrize(("k", "block", "size"), [(96, 64, 32), (48, 32, 16), (80, 256, 16)])
def test_no_number_changes(k: int, block: int, size: int) -> None:
    imp = product(k, 6, block)
    before = weights(imp)
    assert run_pass(blocks_of_columns, imp).matched == 1
    assert imp.graph[0].attributes["block_size"].value == size
    assert imp.graph[0].inputs[2].const_value.size == 6 * k // size
    assert np.array_equal(weights(imp), before)
    imp.graph[0].inputs[2].const_value.numpy()[1] *= 2  # the negative control
    assert not np.array_equal(weights(imp), before)
    assert list(refusals(imp)) == [
        (imp.graph[0], f"it reads {imp.graph.inputs[0].name}, an input of the graph, and no row of the text")
    ]


def test_whole_blocks_are_left_alone() -> None:
    imp = product(128, 6, 64)
    before = lines(imp.graph)
    assert run_pass(blocks_of_columns, imp).matched == 0
    assert lines(imp.graph) == before


@pytest.mark.parametrize(
    ("k", "absmax", "why"), [(40, None, "no whole blocks of 16"), (96, 5, "need 9 stored numbers")]
)
def test_what_cannot_be_cut_is_refused(k: int, absmax: int | None, why: str) -> None:
    imp = product(k, 6, 64, absmax=absmax)
    entry = run_pass(blocks_of_columns, imp)
    assert entry.matched == 0
    assert why in entry.notes[0]
    assert "has to be a multiple of 16" in next(refusals(imp))[1]


@pytest.mark.parametrize("table", [0, 1], ids=BNB4_TABLES)
def test_the_tables_are_those_of_onnxruntime(table: int) -> None:
    """Bit for bit, and the first code of a byte is the high one."""
    imp = product(16, 1, 16, table)
    codes = np.arange(0, 16, 2, dtype=np.uint8)
    node = imp.graph[0]
    node.inputs[1].const_value = ir.tensor(codes << 4 | (codes + 1), name="q")
    node.inputs[2].const_value = ir.tensor(np.ones(1, np.float32), name="a")
    expected = np.array(CODE_TABLES[BNB4_TABLES[table]], np.float32)
    assert np.array_equal(weights(imp)[:, 0], expected)
    assert not np.array_equal(weights(imp)[:, 0], np.array(CODE_TABLES[BNB4_TABLES[1 - table]], np.float32))
