from __future__ import annotations

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.plain_inputs import plain_inputs
from passes.onnx.testing import importing, lines

TABLE = "float[4,8] e = {" + ",".join(["1"] * 32) + "}"


def test_ids_and_a_mask_that_are_cast_and_logits_by_what_is_left() -> None:
    imp = importing(
        f"g (int32[b,s] x, bool[b,t] my_mask, int64[b,s] types) => (float[b,s,8] y) <{TABLE}> {{"
        " i = Cast <to = 7> (x) m = Cast <to = 7> (my_mask) h = Gather (e, i) n = ReduceSum (m)"
        " f = Cast <to = 1> (n) y = Add (h, f) }"
    )
    entry = run_pass(plain_inputs, imp)
    assert entry.notes == ("nothing reads the input types",)
    assert [(v.name, v.dtype.name) for v in imp.graph.inputs] == [("input_ids", "INT64"), ("attention_mask", "INT64")]
    assert [v.name for v in imp.graph.outputs] == ["logits"]
    assert lines(imp.graph)[:2] == ["h = Gather(e, input_ids)", "n = ReduceSum(attention_mask)"]


def test_what_has_a_name_is_left_alone_and_what_is_computed_of_is_no_token() -> None:
    imp = importing(
        f"g (int64[b,s] input_ids, int64[b,s] x) => (float[b,s,8] logits, int64[b,s] y) <{TABLE}> {{"
        " logits = Gather (e, input_ids) y = Neg (x) }"
    )
    before = lines(imp.graph)
    assert run_pass(plain_inputs, imp).matched == 0
    assert lines(imp.graph) == before
