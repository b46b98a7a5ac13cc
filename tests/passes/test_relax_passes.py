"""Before / Expected of the Relax passes. Operators of ours do not parse as TVMScript, so both sides are built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from costmodel.place import Place
from passes.lower.pack import PackWeights
from passes.pipeline import lower_decoder
from passes.place.partition import partition
from passes.relax import dialect as D
from passes.relax.cache_in_place import CacheInPlace
from passes.relax.decoder_interface import DecoderInterface
from passes.relax.fuse_add_norm import FuseAddNorm
from passes.relax.fuse_gated_ffn import FuseGatedFfn
from passes.relax.make_entries import MakeEntries
from passes.relax.rebuild import bindings
from passes.relax.translate import onnx_to_relax
from passes.testing import TinyDecoder
from targets.cpu.tile import CpuTile

TILE = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
R = relax.op


def var(name: str, *shape: Any, dtype: str = "float32") -> Any:
    return relax.Var(name, D.tensor(shape, dtype))


def module(params: Sequence[Any], body: Callable[[Any], Any]) -> Any:
    """A module whose `main` has these parameters; body(emit) returns the output expression."""
    bb = relax.BlockBuilder()
    with bb.function("main"):
        with bb.dataflow():
            out = bb.emit_output(body(bb.emit))
        bb.emit_func_output(out, list(params))
    return bb.get()


def assert_same(actual: Any, expected: Any) -> None:
    """Structural equality, less how the output variable is bound."""
    tidy = relax.transform.CanonicalizeBindings()
    tvm.ir.assert_structural_equal(tidy(actual), tidy(expected), map_free_vars=True)


def operators(mod: Any, name: str = "main") -> list[str]:
    return [n for b in bindings(mod[name]) if (n := D.op_name(b.value))]


def gated(order: str, params: Sequence[Any]) -> Any:
    g, u = params

    def body(emit: Callable[[Any], Any]) -> Any:
        s = emit(R.sigmoid(g))
        silu = emit(R.multiply(g, s) if order[0] == "g" else R.multiply(s, g))
        return emit(R.multiply(silu, u) if order[1] == "s" else R.multiply(u, silu))

    return module(params, body)


def test_fuse_gated_ffn_in_every_order() -> None:
    for order in ("gs", "gu", "sg", "su"):
        params = [var("g", 1, 3, 32), var("u", 1, 3, 32)]
        expected = module(params, lambda emit, p=params: emit(D.silu_mul(*p)))  # type: ignore[misc]
        assert_same(FuseGatedFfn()(gated(order, params)), expected)


def test_fuse_gated_ffn_leaves_other_products_alone() -> None:
    params = [var("g", 1, 3, 32), var("u", 1, 3, 32)]

    def body(emit: Callable[[Any], Any]) -> Any:
        return emit(R.multiply(emit(R.multiply(params[1], emit(R.sigmoid(params[0])))), params[1]))

    before = module(params, body)
    assert_same(FuseGatedFfn()(before), before)


def test_fuse_add_norm() -> None:
    params = [var("x", 1, 3, 32), var("r", 1, 3, 32), var("w", 32)]
    x, r, w = params

    def before(emit: Callable[[Any], Any]) -> Any:
        total = emit(R.add(x, r))
        return relax.Tuple([total, emit(D.rms_norm(total, w, groups=1, eps=1e-5))])

    def expected(emit: Callable[[Any], Any]) -> Any:
        both = emit(D.add_rms_norm(x, r, w, eps=1e-5))
        return relax.Tuple([emit(relax.TupleGetItem(both, i)) for i in range(2)])

    assert_same(FuseAddNorm()(module(params, before)), module(params, expected))


def test_fuse_add_norm_leaves_biases_and_head_norms_alone() -> None:
    params = [var("x", 1, 3, 32), var("b", 32), var("r", 1, 3, 32), var("w", 32), var("h", 8)]
    x, b, r, w, h = params

    def body(emit: Callable[[Any], Any]) -> Any:
        biased = emit(D.rms_norm(emit(R.add(x, b)), w, groups=1, eps=1e-5))
        per_head = emit(D.rms_norm(emit(R.add(x, r)), h, groups=4, eps=1e-5))
        return relax.Tuple([biased, per_head])

    before = module(params, body)
    assert_same(FuseAddNorm()(before), before)


def attention_module() -> Any:
    n, p = tirx.Var("n", "int64"), tirx.Var("p", "int64")
    ids = var("input_ids", 1, n, dtype="int64")
    past = [var(f"past_key_values.0.{kind}", 1, 2, p, 16) for kind in ("key", "value")]
    weights = [var("table", 50, 64), var("cos", 40, 8), var("sin", 40, 8), var("k", 64, 32), var("head", 64, 50)]
    table, cos, sin, k, head = weights

    def body(emit: Callable[[Any], Any]) -> Any:
        x = emit(D.embedding(table, ids, layout="NK", vocab=50, width=64))
        rotary = {"heads": 4, "rotary_dim": 16, "interleaved": 0}
        q = emit(D.rope(x, cos, sin, relax.prim_value(p), **rotary))
        kv = emit(D.linear(x, k, layout="KN", columns=32))
        attrs = {"heads": 4, "kv_heads": 2, "scale": 0.25, "window": 0, "softcap": 0.0}
        both = emit(D.attention(q, kv, kv, *past, **attrs))
        parts = [emit(relax.TupleGetItem(both, i)) for i in range(3)]
        return relax.Tuple([emit(D.linear(parts[0], head, layout="KN", columns=50)), *parts[1:]])

    return module([ids, *past, *weights], body)


def segment_module() -> Any:
    """The same as one segment: position a parameter, the choice an output."""
    main = DecoderInterface()(attention_module())["main"]
    return tvm.IRModule(partition(main, ["cpu"] * len(bindings(main))).functions["cpu"])


def dims(ty: Any) -> list[Any]:
    """Numbers, and names of symbols."""
    return [d.name if isinstance(d, tirx.Var) else int(d) for d in D.shape_of(ty)]


def names_and_shapes(func: Any) -> dict[str, list[Any]]:
    return {p.name: dims(p) if isinstance(p.ty, relax.TensorType) else [] for p in func.params}


def test_cache_in_place_turns_caches_into_buffers() -> None:
    mod = CacheInPlace(TILE, 40)(segment_module())
    params = names_and_shapes(mod["main"])
    assert list(params)[:4] == ["input_ids", "pos", "cache.0.key", "cache.0.value"]
    assert params["cache.0.key"] == [1, 2, 5, 16, 8]
    assert params["cache.0.value"] == [1, 2, 40, 16]
    kinds = ["embedding", "rope", "linear", "attention_cached", "linear", "argmax"]
    assert operators(mod) == [f"hsd.{kind}" for kind in kinds]
    calls = {D.op_name(b.value): b.value for b in bindings(mod["main"])}
    pos = mod["main"].params[1]
    assert calls["hsd.rope"].args[3].same_as(pos)
    assert calls["hsd.attention_cached"].args[5].same_as(pos)
    assert [dims(ty) for ty in mod["main"].ret_ty.fields] == [[1, "n", 50], [1, "n"]]


def test_make_entries_binds_widths_and_cuts_the_head_to_one_row() -> None:
    mod = MakeEntries([1, 5], [8])(CacheInPlace(TILE, 40)(segment_module()))
    names = sorted(gv.name_hint for gv in mod.get_global_vars())
    assert names == ["fill_8", "prefill_8", "step_1", "step_5"]
    logits, ids = mod["step_5"].ret_ty.fields
    assert dims(logits) == [1, 5, 50]
    assert dims(ids) == [1, 5]
    assert operators(mod, "prefill_8")[-3:] == ["hsd.take_row", "hsd.linear", "hsd.argmax"]
    assert [p.name for p in mod["prefill_8"].params][:3] == ["input_ids", "pos", "row"]
    logits, ids = mod["prefill_8"].ret_ty.fields
    assert dims(logits) == [1, 1, 50]
    assert operators(mod, "fill_8")[-1] == "hsd.attention_cached"
    assert [p.name for p in mod["fill_8"].params][:2] == ["input_ids", "pos"]
    assert len(mod["fill_8"].params) == len(mod["step_1"].params)
    assert [dims(ty) for ty in mod["fill_8"].ret_ty.fields] == [[1, 8, 64]]
    other = MakeEntries([1], [8], fills=())(CacheInPlace(TILE, 40)(segment_module()))  # a segment before the last layer
    assert sorted(gv.name_hint for gv in other.get_global_vars()) == ["prefill_8", "step_1"]


@pytest.mark.parametrize("parallel", [False, True])
def test_what_no_attention_reads_is_computed_for_one_row(parallel: bool) -> None:
    """Of a layer, also where the feed-forward part stands beside attention: its residual and result are rows."""
    tiny = TinyDecoder(layers=2, parallel=parallel)
    main = DecoderInterface()(onnx_to_relax(tiny.decoder()).mod)["main"]
    whole = tvm.IRModule(partition(main, ["cpu"] * len(bindings(main))).functions["cpu"])
    mod = MakeEntries([8], [8])(CacheInPlace(TILE, 40)(FuseGatedFfn()(whole)))

    def rows(entry: str) -> list[tuple[str, int]]:
        found = [(D.op_name(b.value), b.var.ty) for b in bindings(mod[entry]) if D.op_name(b.value)]
        return [(name, dims(ty.fields[0] if isinstance(ty, relax.TupleType) else ty)[1]) for name, ty in found]

    every, cut, filled = (rows(entry) for entry in ("step_8", "prefill_8", "fill_8"))
    last = max(i for i, (name, _) in enumerate(cut) if name == "hsd.attention_cached")
    assert {n for _, n in cut[: last + 1]} == {8}
    later = [name for name, n in cut[last + 1 :] if n == 1]
    assert len(later) == len(cut) - last - 1
    assert later.count("hsd.take_row") == 2  # what attention gives, and the residual stream or the norm of both parts
    assert [name for name in later if name != "hsd.take_row"] == [name for name, _ in every[-len(later) + 2 :]]
    assert filled == cut[: len(filled)]
    assert filled[-1][0] == "hsd.attention_cached"


def test_rows_of_sequences_have_slots_and_positions_of_their_own() -> None:
    before = CacheInPlace(TILE, 40)(segment_module())
    mod = MakeEntries([1], [8], slots=3, rows=(2,))(before)
    params = names_and_shapes(mod["rows_2"])
    assert list(params)[:5] == ["input_ids", "slot", "pos", "cache.0.key", "cache.0.value"]
    assert (params["slot"], params["pos"]) == ([2], [2])
    assert (params["cache.0.key"], params["cache.0.value"]) == ([3, 2, 5, 16, 8], [3, 2, 40, 16])
    kinds = ["embedding", "rope_rows", "linear", "attention_rows", "linear", "argmax"]
    assert operators(mod, "rows_2") == [f"hsd.{kind}" for kind in kinds]
    calls = {D.op_name(b.value): b.value for b in bindings(mod["rows_2"])}
    slot, pos = mod["rows_2"].params[1:3]
    assert calls["hsd.rope_rows"].args[3].same_as(pos)
    assert all(a.same_as(b) for a, b in zip(calls["hsd.attention_rows"].args[5:], (slot, pos), strict=True))
    without = MakeEntries([1], [8])(before)
    assert sorted(gv.name_hint for gv in without.get_global_vars()) == ["fill_8", "prefill_8", "step_1"]
    for name in ("prefill_8", "step_1"):  # what one sequence alone has is the same
        assert_same(tvm.IRModule({"main": mod[name]}), tvm.IRModule({"main": without[name]}))


def test_steps_are_told_the_slot_where_it_is_no_tensor_of_its_own() -> None:
    before = CacheInPlace(TILE, 40)(segment_module())
    mod = MakeEntries([1], [8], slots=3, rows=(2,), told_slot=True)(before)
    for name, more in (("step_1", ()), ("fill_8", ()), ("prefill_8", ("row",))):
        params = names_and_shapes(mod[name])
        assert list(params)[: 4 + len(more)] == ["input_ids", "slot", "pos", *more, "cache.0.key"]
        assert (params["cache.0.key"], params["cache.0.value"]) == ([3, 2, 5, 16, 8], [3, 2, 40, 16])
        (call,) = [b.value for b in bindings(mod[name]) if "attention" in D.op_name(b.value)]
        assert D.op_name(call) == "hsd.attention_in_slot"
        assert all(a.same_as(b) for a, b in zip(call.args[5:], mod[name].params[1:3], strict=True))
    rows = MakeEntries([1], [8], slots=3, rows=(2,))(before)["rows_2"]
    assert_same(tvm.IRModule({"main": mod["rows_2"]}), tvm.IRModule({"main": rows}))


def test_pack_weights_retypes_and_says_how_to_pack() -> None:
    pack = PackWeights(TILE)
    mod = pack(CacheInPlace(TILE, 40)(segment_module()))
    shapes = {p.name: p.shape for p in pack.packed}
    assert shapes == {"table": (4, 64, 16), "cos": (40, 8), "sin": (40, 8), "k": (2, 64, 16), "head": (4, 64, 16)}
    assert all(str(b.value.attrs["layout"]) == "panels" for b in bindings(mod["main"]) if "layout" in _attrs(b.value))
    table = np.arange(50 * 64, dtype=np.float32).reshape(50, 64)
    packed = next(p for p in pack.packed if p.name == "table").pack(table)
    assert packed.shape == (4, 64, 16)
    assert packed[2, 7, 3] == table[2 * 16 + 3, 7]
    assert not packed[3, :, 2:].any()  # columns past 50 are zero


@pytest.mark.parametrize("bits", [0, 2, 4, 8])
def test_pieces_in_a_row_are_the_packed_weight(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind of weight, in either layout, whatever the size of a piece; a piece begins with a panel."""
    decoder = TinyDecoder(bits=bits, tied=bits == 4, qkv_bias=True).decoder()
    lowered = lower_decoder(decoder, {"cpu": TILE}, Place("cpu"), 40, (1,), 8)
    most = 0
    for values in (1, 3000, 1 << 24):
        monkeypatch.setattr("passes.lower.pack._PIECE_VALUES", values)
        for packed in lowered.packed:
            source = lowered.weights[packed.name].numpy()
            whole, pieces = packed.pack(source), list(packed.pieces(source))
            most = max(most, len(pieces))
            assert whole.shape == packed.shape
            assert str(whole.dtype) == packed.dtype
            assert b"".join(piece.tobytes() for piece in pieces) == whole.tobytes()
            assert len(pieces) == 1 or b"".join(piece.tobytes() for piece in pieces[::-1]) != whole.tobytes()
    assert most > 2


def _attrs(value: Any) -> Any:
    return value.attrs if isinstance(value, relax.Call) and value.attrs is not None else {}
