from __future__ import annotations

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.cache_axes import cache_axes
from passes.onnx.testing import importing, lines

INPUTS = "int64[b,s] input_ids, float[b,p,2,4] past_key_values.0.key, float[b,s,2,4] k"


def test_a_cache_with_its_length_before_its_heads() -> None:
    imp = importing(
        f"g ({INPUTS}) => (float[b,t,2,4] present.0.key, float[b,2,t,4] y, int64[1] n) {{"
        " present.0.key = Concat <axis = 1> (past_key_values.0.key, k)"
        " y = Transpose <perm = [0, 2, 1, 3]> (present.0.key)"
        " n = Shape <start = 1, end = 2> (past_key_values.0.key) }"
    )
    assert run_pass(cache_axes, imp).matched == 1
    assert [str(d) for d in imp.graph.inputs[1].shape] == ["b", "2", "p", "4"]
    assert [str(d) for d in imp.graph.outputs[0].shape] == ["b", "2", "t", "4"]
    concat = next(node for node in imp.graph if node.op_type == "Concat")
    assert concat.attributes["axis"].value == 2
    assert [v.producer().op_type if v.producer() else v.name for v in concat.inputs] == [
        "past_key_values.0.key",
        "Transpose",
    ]
    assert imp.graph.outputs[0].name == "present.0.key"
    assert sum(node.op_type == "Transpose" for node in imp.graph) == 1  # that of the new keys


def test_the_usual_order_is_left_alone() -> None:
    imp = importing(
        "g (int64[b,s] input_ids, float[b,2,p,4] past_key_values.0.key, float[b,2,s,4] k)"
        " => (float[b,2,t,4] present.0.key) { present.0.key = Concat <axis = 2> (past_key_values.0.key, k) }"
    )
    before = lines(imp.graph)
    assert run_pass(cache_axes, imp).matched == 0
    assert lines(imp.graph) == before


def test_a_cache_that_nothing_is_appended_to_is_left_alone() -> None:
    imp = importing(f"g ({INPUTS}) => (float[b,2,p,4] y) {{ y = Neg (past_key_values.0.key) }}")
    assert run_pass(cache_axes, imp).matched == 0
