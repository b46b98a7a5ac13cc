"""Before and Expected of float_positions: the numbers are onnxruntime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.float_positions import float_positions
from passes.onnx.testing import importing, lines

ROWS, WIDTH, BLOCK = 5, 32, 16


def graph(bits: int, zeros: bool, indices: str = "position_ids", **attributes: int) -> Any:
    rng = np.random.default_rng(0)

    def stated(name: str, numbers: Any, dtype: str) -> str:
        shape = ",".join(map(str, numbers.shape))
        return f"{dtype}[{shape}] {name} = {{{','.join(map(str, numbers.reshape(-1).tolist()))}}}"

    blocks, per = WIDTH // BLOCK, 8 // bits
    values = [
        stated("q", rng.integers(0, 256, (ROWS, WIDTH // per)), "uint8"),
        stated("s", np.round(rng.uniform(0.5, 2, (ROWS, blocks)), 3), "float"),
    ]
    if zeros:
        values.append(stated("o", rng.integers(0, 256, (ROWS, -(-blocks // per))), "uint8"))
    given = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1, **attributes}
    stated_attributes = ", ".join(f"{k} = {v}" for k, v in given.items())
    return importing(
        f"g (int64[b,s] input_ids, int64[b,s] position_ids) => (float[b,s,{WIDTH}] z) <{', '.join(values)}> {{"
        f" y = com.microsoft.GatherBlockQuantized <{stated_attributes}> (q, {indices}, s{', o' if zeros else ''})"
        " z = Neg(y) }"
    )


def run(imp: Any) -> np.ndarray:
    imp.graph.opset_imports["com.microsoft"] = 1
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    ids = np.array([[0, 4, 2], [1, 3, 0]])
    return np.asarray(session.run(None, {v.name: ids for v in session.get_inputs()})[0])


@pytest.mark.parametrize(("bits", "zeros"), [(4, False), (4, True), (8, False), (8, True)])
def test_positions_are_rows_of_floats(bits: int, zeros: bool) -> None:
    imp = graph(bits, zeros)
    before = run(imp)
    assert run_pass(float_positions, imp).matched == 1
    assert lines(imp.graph)[0] == "y.float32 = Gather(q.float32, position_ids) {axis: 0}"
    assert np.array_equal(run(imp), before)
    assert not np.array_equal(run(graph(bits, not zeros)), before)  # the negative control


@pytest.mark.parametrize("more", [{"indices": "input_ids"}, {"gather_axis": 1}, {"block_size": 32}])
def test_others_are_left_alone(more: Any) -> None:
    imp = graph(4, False, **more)
    before = lines(imp.graph)
    assert run_pass(float_positions, imp).matched == 0
    assert lines(imp.graph) == before
