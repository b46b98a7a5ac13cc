"""A decoder cut at the borders of its processors: any placement gives the same numbers, its ONNX pieces do, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from costmodel.place import Part, Place
from passes.onnx import canonicalise
from passes.place.partition import Partition, partition, weights_of
from passes.place.place_ops import place_ops
from passes.place.write_subgraphs import write_subgraphs
from passes.relax import dialect as D
from passes.relax.decoder_interface import DecoderInterface
from passes.relax.rebuild import bindings
from passes.relax.translate import onnx_to_relax
from passes.testing import TinyDecoder, run_onnx
from targets.boards import load_board
from targets.cpu.target import tvm_target
from targets.errors import UserError

Array = npt.NDArray[Any]
EXPORTS = Path(__file__).resolve().parents[2] / "data" / "exports"
TINY = TinyDecoder(layers=2, heads=2, kv_heads=1, head_dim=8, ffn=16, vocab=20, qk_norm=True)
IMPORTED = onnx_to_relax(TINY.decoder())
MAIN = DecoderInterface()(IMPORTED.mod)["main"]
RULES = ["cpu", "gpu", "gpu:0", "gpu:1-head", "cpu:0-1", "gpu:embedding-0", "gpu:head", "gpu:ffn", "cpu:attention"]
BEFORE = 5  # tokens in the caches


def cut(rule: str) -> Partition:
    return partition(
        MAIN, [op.processor for op in place_ops(MAIN, IMPORTED.origins, Place.parse(rule), TINY.layers, "a test")]
    )


def test_parts_of_a_decoder() -> None:
    placed = place_ops(MAIN, IMPORTED.origins, Place.parse("cpu"), 2, "a test")
    named = list(zip([D.op_name(b.value) for b in bindings(MAIN)], [op.part for op in placed], strict=True))
    assert [part.text for name, part in named if name == "hsd.linear"] == [
        *["attention of layer 0"] * 4, *["ffn of layer 0"] * 3, *["attention of layer 1"] * 4, *["ffn of layer 1"] * 3,
        "head",
    ]  # fmt: skip
    assert [part.text for name, part in named if name == "relax.add"] == [
        f"{kind} of layer {i}" for i in (0, 1) for kind in ("attention", "ffn")
    ]
    assert named[0] == ("hsd.embedding", Part("embedding"))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gpu", [("main", "gpu", "input_ids", "logits choice", (0, 1))]),
        (
            "gpu:1-head",
            [("s0", "cpu", "input_ids", "x0", (0,)), ("s1", "gpu", "x0", "logits choice", (1,))],
        ),
        (
            "cpu:0",
            [
                ("s0", "gpu", "input_ids", "x0", ()),
                ("s1", "cpu", "x0", "x1", (0,)),
                ("s2", "gpu", "x1", "logits choice", (1,)),
            ],
        ),
        (
            "gpu:ffn",
            [
                ("s0", "cpu", "input_ids", "x0", (0,)),
                ("s1", "gpu", "x0", "x1", ()),
                ("s2", "cpu", "x1", "x2", (1,)),
                ("s3", "gpu", "x2", "x3", ()),
                ("s4", "cpu", "x3", "logits choice", ()),
            ],
        ),
    ],
)
def test_segments_of_a_rule(rule: str, expected: list[tuple[Any, ...]]) -> None:
    """Only the residual stream crosses, once per border; caches and weights stay where they are."""
    found = cut(rule)
    assert [
        (s.name, s.processor, " ".join(s.inputs), " ".join(s.outputs), s.layers) for s in found.segments
    ] == expected
    for segment in found.segments:
        func = found.functions[segment.processor][segment.name]
        names = [p.name for p in func.params]
        assert names[: len(segment.inputs) + 1] == [*segment.inputs, "pos"]
        caches = [n for n in names if n.startswith("past_key_values.")]
        assert caches == [f"past_key_values.{i}.{kind}" for i in segment.layers for kind in ("key", "value")]


@pytest.mark.parametrize(
    ("rule", "message"), [("gpu:2", "no layer 2, the model has 0 to 1"), ("gpu:1-0", "ends before it begins")]
)
def test_ranges_that_are_not_there(rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(rule)


@given(st.sampled_from(["cpu", "gpu"]), st.sampled_from(["", "ffn", "attention", "3", "0-7", "embedding-2", "4-head"]))
def test_a_place_reads_what_it_writes(processor: str, part: str) -> None:
    text = f"{processor}:{part}" if part else processor
    assert Place.parse(text).text == text


def reference(found: Partition) -> Any:
    """The segments with the operators' reference bodies; one module, for the time of it."""
    functions = {n: f.with_attr("global_symbol", n) for made in found.functions.values() for n, f in made.items()}
    core = load_board("host", measure=False).clusters[0].core
    return relax.VirtualMachine(relax.build(tvm.IRModule(functions), tvm_target(core)), tvm.cpu())


def run(vm: Any, found: Partition, ids: list[int], past: list[Array], weights: dict[str, Array]) -> list[Array]:
    """All outputs of the segments run in order."""
    caches = {f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}": x for i, x in enumerate(past)}
    values: dict[str, Any] = {"input_ids": tvm.runtime.tensor(np.array([ids]))}
    presents = []
    for segment in found.segments:
        arguments: list[Any] = []
        for p in found.functions[segment.processor][segment.name].params:
            known = values.get(p.name, BEFORE if p.name == "pos" else None)
            arguments.append(tvm.runtime.tensor(caches.get(p.name, weights.get(p.name))) if known is None else known)
        out = vm[segment.name](*arguments)
        values.update(zip(segment.outputs, out, strict=False))
        presents += [x.numpy() for x in out[len(segment.outputs) :]]
    assert values["choice"].numpy().tolist() == values["logits"].numpy().argmax(-1).tolist()
    return [values["logits"].numpy(), *presents]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["cpu", "gpu"]), min_size=len(bindings(MAIN)), max_size=len(bindings(MAIN))))
def test_any_placement_gives_the_same_numbers(processors: list[str]) -> None:
    """Every operator alone on either processor: each placed once, segments without a cycle, the model's own outputs."""
    found = partition(MAIN, processors)
    known = {"input_ids"}
    for segment in found.segments:
        assert set(segment.inputs) <= known, "a segment reads what a later one computes"
        known |= set(segment.outputs)
    operators = [D.op_name(b.value) for made in found.functions.values() for f in made.values() for b in bindings(f)]
    assert sorted(filter(None, operators)) == sorted(filter(None, (D.op_name(b.value) for b in bindings(MAIN))))
    rng = np.random.default_rng(3)
    shape = (1, TINY.kv_heads, BEFORE, TINY.head_dim)
    past = [rng.standard_normal(shape).astype(np.float32) for _ in range(2 * TINY.layers)]
    weights = {name: tensor.numpy() for name, tensor in IMPORTED.weights.items()}
    vm = reference(found)
    ours = run(vm, found, [3, 1, 4], past, weights)
    expected = run_onnx(TINY.proto(), [3, 1, 4], past)
    assert max(float(np.abs(a - b).max()) for a, b in zip(ours, expected, strict=True)) < 2e-5
    weights["0.down"] = weights["0.down"] * np.float32(1.01)  # the negative control
    other = run(vm, found, [3, 1, 4], past, weights)
    assert float(np.abs(other[0] - expected[0]).max()) > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_onnx_pieces_chained_are_the_model(rule: str, tmp_path: Path) -> None:
    """The files of the segments, run one after the other by onnxruntime, give the export's outputs."""
    decoder = canonicalise(EXPORTS / "llama-dynamo-fp32" / "model.onnx", 64)
    imported = onnx_to_relax(decoder)
    main = DecoderInterface()(imported.mod)["main"]
    placed = place_ops(main, imported.origins, Place.parse(rule), decoder.facts.layers, "a test")
    paths = write_subgraphs(decoder, imported.origins, placed, tmp_path)
    assert len(paths) == len(partition(main, [op.processor for op in placed]).segments)
    facts, rng = decoder.facts, np.random.default_rng(0)
    feed: dict[str, Array] = {
        "input_ids": np.array([[3, 1, 4]]),
        "position_ids": np.arange(BEFORE, BEFORE + 3)[None],
        "attention_mask": np.ones((1, BEFORE + 3), np.int64),
    }
    shape = (1, facts.kv_heads, BEFORE, facts.head_dim)
    for i in range(facts.layers):
        for kind in ("key", "value"):
            feed[f"past_key_values.{i}.{kind}"] = rng.standard_normal(shape).astype(np.float32)
    expected = session(EXPORTS / "llama-dynamo-fp32" / "model.onnx").run(["logits"], feed)[0]
    values = dict(feed)
    for path in paths:
        processors = {p.value for n in onnx.load(path, load_external_data=False).graph.node for p in n.metadata_props
                      if p.key == "hetero_sd.processor"}  # fmt: skip
        assert processors == {path.stem.split("_")[1]}
        piece = session(path)
        names = [o.name for o in piece.get_outputs()]
        given_values = {i.name: values[i.name] for i in piece.get_inputs()}
        values.update(zip(names, piece.run(names, given_values), strict=True))
    assert float(np.abs(values["logits"] - expected).max()) < 1e-5 * float(np.abs(expected).max())
    assert float(np.abs(values["logits"] * 1.01 - expected).max()) > 1e-5 * float(np.abs(expected).max())


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def two_branches(order: str) -> tuple[Any, list[str]]:
    """An FFN whose columns are split over two processors, as `order` says, and which processor each operator has.

    y = up(x)[:, :6] @ down[:6] + up(x)[:, 6:] @ down[6:], with x an embedding and y the logits.
    """
    bb = relax.BlockBuilder()
    ids, pos = relax.Var("input_ids", D.tensor((1, 3), "int64")), relax.Var("pos", tvm.ir.PrimType("int64"))
    table = relax.Var("table", D.tensor((20, 8)))
    halves = {f"{w}.{side}": relax.Var(f"{w}.{side}", D.tensor(shape))
              for side in "ab" for w, shape in (("up", (8, 6)), ("down", (6, 20)))}  # fmt: skip
    made: dict[str, Any] = {}
    places = ["cpu"]
    with bb.function("main", [ids, pos, table, *halves.values()]):
        with bb.dataflow():
            x = bb.emit(D.embedding(table, ids, layout="NK", vocab=20, width=8))
            for name in order.split():
                weight, side = name.split(".")
                read = x if weight == "up" else made[f"up.{side}"]
                made[name] = bb.emit(D.linear(read, halves[name], layout="KN", columns=6 if weight == "up" else 20))
                places.append("cpu" if side == "a" else "gpu")
            logits = bb.emit(relax.op.add(made["down.a"], made["down.b"]))
            out = bb.emit_output(relax.Tuple([logits, bb.emit(D.argmax(logits))]))
        bb.emit_func_output(out)
    return bb.get()["main"], [*places, "cpu", "cpu", "cpu"]


BRANCHES = ["up.a up.b down.a down.b", "up.a down.a up.b down.b", "up.b down.b up.a down.a", "up.b up.a down.b down.a"]


@pytest.mark.parametrize("order", BRANCHES)
def test_branches_that_join(order: str) -> None:
    """Both branches begin from one value and run at the same time; a third segment joins them. Weights stay apart."""
    func, processors = two_branches(order)
    found = partition(func, processors)
    assert [(s.processor, s.inputs, s.outputs) for s in found.segments] == [
        ("cpu", ("input_ids",), ("x0",)),
        ("gpu", ("x0",), ("x1",)),
        ("cpu", ("x0",), ("x2",)),
        ("cpu", ("x2", "x1"), ("logits", "choice")),
    ]
    held = [[p.name for p in weights_of(found.functions[s.processor][s.name])] for s in found.segments]
    assert held == [["table"], ["up.b", "down.b"], ["up.a", "down.a"], []]

    rng = np.random.default_rng(1)
    weights = {
        n: rng.standard_normal(s).astype(np.float32)
        for n, s in (("table", (20, 8)), ("up", (8, 12)), ("down", (12, 20)))
    }
    parts = {
        "up.a": weights["up"][:, :6],
        "up.b": weights["up"][:, 6:],
        "down.a": weights["down"][:6],
        "down.b": weights["down"][6:],
    }
    ids = [3, 1, 4]
    logits = run(
        reference(found), found, ids, [], {**weights, **{n: np.ascontiguousarray(w) for n, w in parts.items()}}
    )[0]
    expected = weights["table"][ids] @ weights["up"] @ weights["down"]
    assert np.abs(logits[0] - expected).max() < 1e-5 * np.abs(expected).max()
    half = weights["table"][ids] @ parts["up.a"] @ parts["down.a"]  # the negative control: one branch alone
    assert np.abs(logits[0] - half).max() > 0.1 * np.abs(expected).max()
