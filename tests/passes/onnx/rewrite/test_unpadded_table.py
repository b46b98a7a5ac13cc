"""A table whose last block is filled up: the builder shares it with a head whose width is no multiple of the block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from hetero_sd.reference import ReferenceModel
from passes.onnx import canonicalise
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.testing import CanonicalModel, case, worst_difference
from targets.errors import UserError

LLAMA = Path(__file__).parents[3] / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"
VOCAB, WIDTH, BLOCK, CONTEXT = 512, 64, 128, 32
BOUND = 1e-5


def padded(path: Path, bits: int, start: int = 0, end: int = WIDTH) -> Path:
    """An export whose embedding is a table of rows of BLOCK elements, of which [start:end] are taken."""
    proto, rng = onnx.load(LLAMA), np.random.default_rng(6)
    graph = proto.graph
    old = next(n for n in graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    tensors = {
        "table": rng.integers(0, 256, (VOCAB, 1, BLOCK * bits // 8)).astype(np.uint8),
        "scales": rng.uniform(0.01, 0.02, (VOCAB, 1)).astype(np.float32),
        "rows": np.array([VOCAB, -1], np.int64),
        **{name: np.array([x], np.int64) for name, x in (("start", start), ("end", end), ("last", -1))},
    }
    graph.initializer.extend(numpy_helper.from_array(x, f"t.{name}") for name, x in tensors.items())
    sizes = dict(bits=bits, block_size=BLOCK, gather_axis=0, quantize_axis=1)
    made = [
        helper.make_node("Reshape", ["t.table", "t.rows"], ["t.wide"]),
        helper.make_node(
            "GatherBlockQuantized", ["t.wide", "input_ids", "t.scales"], ["t.row"], domain="com.microsoft", **sizes
        ),
        helper.make_node("Slice", ["t.row", "t.start", "t.end", "t.last"], [old.output[0]], name="cut"),
    ]
    at = list(graph.node).index(old)
    graph.node.remove(old)
    for node in reversed(made):
        graph.node.insert(at, node)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("bits", [4, 8])
def test_the_numbers_are_those_of_the_cut_rows(tmp_path: Path, bits: int) -> None:
    path = padded(tmp_path / "model.onnx", bits)
    decoder, reference = canonicalise(path, CONTEXT), ReferenceModel(path, threads=1)
    feed = case(decoder.facts, 2, 6, 0)
    expected = reference.run(feed["input_ids"], {n: x for n, x in feed.items() if n.startswith("past")})
    difference = worst_difference(CanonicalModel(decoder.model).run(feed), expected, feed["attention_mask"], 0)
    assert difference < BOUND
    table = next(n for n in decoder.model.graph if n.op_type == "GatherBlockQuantized")
    assert list(initializer_of(table.inputs[0]).shape) == [VOCAB, WIDTH * bits // 8]
    scales = initializer_of(table.inputs[2])
    scales.const_value = ir.tensor(scales.const_value.numpy() * np.float32(1.01), name=scales.name)
    difference = worst_difference(CanonicalModel(decoder.model).run(feed), expected, feed["attention_mask"], 0)
    assert difference > BOUND


def test_other_elements_than_the_first_are_refused(tmp_path: Path) -> None:
    path = padded(tmp_path / "model.onnx", 4, 32, 96)
    with pytest.raises(UserError, match=r"Slice \(node 'cut'\)"):
        canonicalise(path, CONTEXT)
