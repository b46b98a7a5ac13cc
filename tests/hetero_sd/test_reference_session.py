"""Sessions that make no copy of a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from hetero_sd.reference_session import make_session


def test_a_transposed_weight_is_read_as_it_is_stored(tmp_path: Path) -> None:
    w = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    nodes = [
        onnx.helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs, outputs = [value("x", 1, [1, 4, 2])], [value("y", 1, [1, 4, 3])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, [w])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = ir.from_proto(proto)
    x = np.random.default_rng(0).standard_normal((1, 4, 2)).astype(np.float32)
    (y,) = make_session(model, tmp_path / "m.onnx", lean=True).run(None, {"x": x})
    assert [node.op_type for node in model.graph] == ["FusedMatMul"]
    assert np.allclose(y, x @ np.arange(6).reshape(3, 2).T, atol=1e-6)
