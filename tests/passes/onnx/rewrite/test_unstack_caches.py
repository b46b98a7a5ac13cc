from __future__ import annotations

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.unstack_caches import unstack_caches
from passes.onnx.testing import importing, lines

CONSTANTS = "int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}"
INPUTS = "float[2,b,2,p,4] past, float[b,2,s,4] a, float[b,2,s,4] c"


def test_two_caches_in_one_tensor() -> None:
    imp = importing(
        f"g ({INPUTS}) => (float[2,b,2,t,4] present, int64[5] n) <{CONSTANTS}> {{"
        " f = Gather <axis = 0> (past, zero) s = Gather <axis = 0> (past, one) n = Shape (past)"
        " fa = Concat <axis = 2> (f, a) sc = Concat <axis = 2> (s, c)"
        " fu = Unsqueeze (fa, axes) su = Unsqueeze (sc, axes) present = Concat <axis = 0> (fu, su) }"
    )
    assert run_pass(unstack_caches, imp).matched == 1
    assert [v.name for v in imp.graph.inputs] == ["a", "c", "stacked.0.0", "stacked.0.1"]
    assert [v.name for v in imp.graph.outputs] == ["unstacked.0.0", "unstacked.0.1", "n"]
    assert [str(d) for d in imp.graph.inputs[-1].shape] == ["b", "2", "p", "4"]
    done = lines(imp.graph)
    assert "unstacked.0.0 = Concat(stacked.0.0, a) {axis: 2}" in done
    assert "unstacked.0.1 = Concat(stacked.0.1, c) {axis: 2}" in done


def test_a_stack_that_is_read_as_a_whole_is_left_alone() -> None:
    imp = importing(
        f"g ({INPUTS}) => (float[b,2,p,4] y, float[2,b,2,p,4] z) <{CONSTANTS}> {{"
        " y = Gather <axis = 0> (past, zero) z = Neg (past) }"
    )
    before = lines(imp.graph)
    assert run_pass(unstack_caches, imp).matched == 0
    assert lines(imp.graph) == before
