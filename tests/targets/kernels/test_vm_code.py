from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from targets.kernels.vm_code import ShortenVmCode, pipeline


@I.ir_module(s_tir=True)
class Values:
    """Four values one after the other, two of which are returned."""

    @T.prim_func(s_tir=True)
    def add_one(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        for i in T.serial(8):
            with T.sblock("add"):
                vi = T.axis.spatial(8, i)
                y[vi] = x[vi] + T.float32(1)

    @R.function
    def main(x: R.Tensor((8,), "float32")):
        cls = Values
        with R.dataflow():
            a = R.call_tir(cls.add_one, (x,), out_ty=R.Tensor((8,), "float32"))
            b = R.call_tir(cls.add_one, (a,), out_ty=R.Tensor((8,), "float32"))
            c = R.call_tir(cls.add_one, (b,), out_ty=R.Tensor((8,), "float32"))
            d = R.call_tir(cls.add_one, (c,), out_ty=R.Tensor((8,), "float32"))
            e = R.call_tir(cls.add_one, (d,), out_ty=R.Tensor((8,), "float32"))
            f = R.call_tir(cls.add_one, (e,), out_ty=R.Tensor((8,), "float32"))
            R.output(c, f)
        return (c, f)


def lowered() -> Any:
    with tvm.target.Target("llvm"):
        return relax.get_pipeline("default")(Values)


def calls(func: Any) -> Counter[str]:
    """How often a function calls what."""
    values = [binding.value for block in func.body.blocks for binding in block.bindings]
    ops = [value.op for value in values if isinstance(value, relax.Call)]
    names = [getattr(op, "name", None) or getattr(op, "global_symbol", None) or op.name_hint for op in ops]
    return Counter(str(name).rpartition(".")[2] for name in names)


def test_a_view_is_made_once_and_types_are_not_compared() -> None:
    """Six values are in four pieces of storage, of which two hold two values each."""
    kernels = {"alloc_storage": 4, "add_one": 6}
    before = {"check_tensor_info": 1, "match_shape": 1, "alloc_tensor": 6, "kill_object": 4 + 4, "null_value": 1}
    assert calls(lowered()["main"]) == kernels | before
    after = calls(ShortenVmCode()(lowered())["main"])
    assert after == kernels | {"alloc_tensor": 4, "kill_object": 4 + 2, "null_value": 1}


def test_the_same_numbers() -> None:
    built = relax.build(Values, target="llvm", relax_pipeline=pipeline())
    x = np.arange(8, dtype=np.float32)
    made = relax.VirtualMachine(built, tvm.cpu())["main"](tvm.runtime.tensor(x))
    np.testing.assert_array_equal([part.numpy() for part in made], [x + 3, x + 6])


def test_a_result_is_not_dropped_with_a_view_that_is_the_same() -> None:
    """The fifth value is returned: its storage held the second, which is dropped before."""
    func = lowered()["main"]
    bound = [binding for block in func.body.blocks for binding in block.bindings]
    views = [binding.var for binding in bound if "alloc_tensor" in str(binding.value)]
    fifth = views[4]
    kept = [b for b in bound if not ("kill_object" in str(b.value) and b.value.args[0].same_as(fifth))]
    assert len(kept) == len(bound) - 1
    body = relax.SeqExpr([relax.BindingBlock(kept)], relax.Tuple([fifth]))
    returning = relax.Function(func.params, body, relax.TupleType([fifth.ty]), func.is_pure, func.attrs)
    for mod, dropped in ((tvm.IRModule({"main": returning}), False), (lowered(), True)):
        shorter = ShortenVmCode()(mod)["main"]
        second = next(b.var for b in shorter.body.blocks[0].bindings if b.var.name == views[1].name)
        drops = [b for b in shorter.body.blocks[0].bindings if "kill_object" in str(b.value)]
        assert any(b.value.args[0].same_as(second) for b in drops) == dropped
