"""Every pass leaves the names and the order of inputs and outputs as they were; run_pass checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unpack_families import unpack_families

from passes.onnx import PIPELINE
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, PassLog, emit, interface_names, replace_uses, run_pass
from passes.onnx.testing import importing, lines

DATA = Path(__file__).parents[2] / "data"
TEXT = "g (float[b,s,8] x) => (float[b,s,8] y, float[b,s,8] z) { y = Neg(x) z = Abs(y) }"


def test_a_pass_that_renames_an_output_is_caught() -> None:
    def rename(imp: Importing) -> PassLog:
        imp.graph.outputs[0].name = "other"
        return PassLog("rename", 1)

    def swap(imp: Importing) -> PassLog:
        imp.graph.outputs[:] = [imp.graph.outputs[1], imp.graph.outputs[0]]
        return PassLog("swap", 1)

    for wrong in (rename, swap):
        with pytest.raises(AssertionError, match=f"{wrong.__name__} changed inputs or outputs"):
            run_pass(wrong, importing(TEXT))


def names_after(new_of: Any) -> tuple[Importing, list[str]]:
    """The names of the outputs after the second one was replaced by `new_of` the graph."""
    imp = importing(TEXT)
    old = imp.graph.outputs[1]
    replace_uses(old, new_of(imp.graph))
    return imp, [v.name for v in imp.graph.outputs]


def test_a_new_value_takes_the_name() -> None:
    def sign(graph: Any) -> Any:
        return emit(graph[1], "Sign", [graph.inputs[0]], outputs=["sign"]).outputs[0]

    assert names_after(sign)[1] == ["y", "z"]


@pytest.mark.parametrize("which", ["input", "other output"])
def test_a_value_that_needs_its_own_name_keeps_it(which: str) -> None:
    imp, names = names_after(lambda graph: graph.inputs[0] if which == "input" else graph.outputs[0])
    assert names == ["y", "z"]
    assert imp.graph.inputs[0].name == "x"
    assert f"z = Identity({'x' if which == 'input' else 'y'})" in lines(imp.graph)


@pytest.mark.parametrize("name", ["granite", "olive-tie-qwen2", "ortext-llama"])
def test_logits_and_caches_through_the_whole_pipeline(name: str) -> None:
    imp = Importing(load(unpack_families(DATA, "cases") / name / "model.onnx"), 32)
    for run in PIPELINE:
        run_pass(run, imp)
    caches = [f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert interface_names(imp.graph)[1] == ["logits", *caches]
