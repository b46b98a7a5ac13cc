"""Exports of other tools that once failed: the numbers of the export itself, or refused with the reason."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from unpack_families import unpack_families

from hetero_sd.cli import main
from hetero_sd.reference import ReferenceModel
from hetero_sd.verify import VerifyRequest, verify_bundle
from passes.analysis.count_work import count_work
from passes.onnx import Decoder, canonicalise
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.testing import CanonicalModel, case, worst_difference
from targets.errors import UserError

DATA = Path(__file__).parents[2] / "data"
CASES = {p.parent.name: p for p in sorted(unpack_families(DATA, "cases").glob("*/model.onnx"))}
TOKENIZER = DATA / "exports" / "llama-dynamo-fp32"
LLAMA = TOKENIZER / "model.onnx"
CONTEXT = 32
BOUND = 1e-5


@functools.cache
def imported(name: str) -> tuple[Decoder, ReferenceModel]:
    return canonicalise(CASES[name], CONTEXT), ReferenceModel(CASES[name], threads=1)


def worst(decoder: Decoder, reference: ReferenceModel, model: Any = None) -> float:
    """The largest difference between the canonical model and the export at several sizes."""
    canonical, difference = CanonicalModel(model or decoder.model), 0.0
    for new, past in ((6, 0), (3, 5), (1, 9)):
        feed = case(decoder.facts, 1, new, past)
        caches = {n: x for n, x in feed.items() if n.startswith("past")}
        expected = reference.run(feed["input_ids"], caches, feed["attention_mask"], feed["position_ids"])
        difference = max(difference, worst_difference(canonical.run(feed), expected, feed["attention_mask"], past))
    return difference


@contextmanager
def scaled(value: Any, factor: float) -> Iterator[None]:
    """A weight times a factor, and as it was again afterwards."""
    tensor = value.const_value
    value.const_value = ir.tensor((tensor.numpy() * np.float32(factor)).astype(np.float32), name=value.name)
    try:
        yield
    finally:
        value.const_value = tensor


@pytest.mark.parametrize("name", CASES)
def test_same_numbers_and_a_twin_that_differs(name: str) -> None:
    decoder, reference = imported(name)
    assert worst(decoder, reference) < BOUND
    norm = next(n for n in decoder.model.graph if n.op_type in ("RMSNormalization", "LayerNormalization"))
    with scaled(initializer_of(norm.inputs[1]), 1.01):
        assert worst(decoder, reference) > BOUND


SOON = ("granite", "nb-hqq")  # the others are deep


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=getattr(pytest.mark, "slow" if n in SOON else "deep")) for n in CASES]
)
def test_compiled_and_verified(name: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    command = ["compile", str(CASES[name]), "--board", "host", "--tokenizer", str(_tokenizer(tmp_path)), "--eos", "1"]
    assert main([*command, "--context", "48", "--out", str(bundle)]) == 0
    result = verify_bundle(VerifyRequest(bundle, CASES[name]))
    assert result.passed, result
    assert result.rows > 100


def _tokenizer(folder: Path) -> Path:
    from passes.onnx.testing import write_word_tokenizer

    write_word_tokenizer(folder, 320)
    return folder


def test_what_the_exports_are() -> None:
    """The embedding is not the first Gather, both 4-bit tables are read, HQQ's zero points are fractions."""
    facts = {name: imported(name)[0].facts for name in CASES}
    assert {f.vocab for f in facts.values()} == {320}
    assert facts["olive-tie-qwen2"].tied
    assert facts["nb-gpt2"].family == "gpt2"
    shape = count_work(imported("nb-hqq")[0], "")
    assert (shape.head.format.zeros, shape.head.format.zero_dtype) == (True, "float32")
    for name in ("g-gather-int4", "nb-gather"):
        stored = count_work(imported(name)[0], "").embedding.format
        assert (stored.dtype, stored.block, stored.zeros) == ("int4", 32, False)


def test_all_of_granites_multipliers_are_there() -> None:
    """12 after the embedding, 0.0156 on the scores, 0.22 before each residual sum, 1/8 on the logits."""
    graph = imported("granite")[0].model.graph
    factors = [
        float(v.const_value.numpy())
        for n in graph
        if n.op_type == "Mul"
        for v in n.inputs
        if v.const_value is not None and v.const_value.size == 1
    ]
    assert sorted(np.round(factors, 4)) == [0.125, 0.22, 0.22, 0.22, 0.22, 12.0]
    scales = {round(n.attributes["scale"].value, 6) for n in graph if n.op_type == "Attention"}
    assert scales == {0.0156}


# what is made of a committed export by an edit


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    def edit(source: Path, change: Callable[[Any], object]) -> Path:
        proto = onnx.load(source)
        change(proto.graph)
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        return path

    return edit


def rename_logits(graph: Any, name: str) -> None:
    for node in graph.node:
        node.output[:] = [name if o == "logits" else o for o in node.output]


def divided(graph: Any) -> None:
    rename_logits(graph, "raw")
    graph.initializer.append(numpy_helper.from_array(np.array(8.0, np.float32), "eight"))
    graph.node.append(helper.make_node("Div", ["raw", "eight"], ["logits"]))


def seen_again(graph: Any) -> None:
    """A Reshape to the same shape, an Identity and a Cast to the same type at the very end."""
    rename_logits(graph, "raw")
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "same"))
    graph.node.append(helper.make_node("Reshape", ["raw", "same"], ["again"]))
    graph.node.append(helper.make_node("Identity", ["again"], ["once more"]))
    graph.node.append(helper.make_node("Cast", ["once more"], ["logits"], to=TensorProto.FLOAT))


@pytest.mark.parametrize("change", [divided, seen_again])
def test_what_follows_the_head_keeps_the_name_of_the_logits(edited: Any, change: Any) -> None:
    path = edited(LLAMA, change)
    decoder = canonicalise(path, CONTEXT)
    assert decoder.model.graph.outputs[0].name == "logits"
    assert worst(decoder, ReferenceModel(path, threads=1)) < BOUND


def last_row(graph: Any) -> None:
    """What transformers does with logits_to_keep=1: a Slice before the head."""
    head = next(n for n in graph.node if "logits" in n.output)
    for name, number in (("from", -1), ("to", 2**62), ("axis", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), name))
    at = list(graph.node).index(head)
    graph.node.insert(at, helper.make_node("Slice", [head.input[0], "from", "to", "axis"], ["last"]))
    head.input[0] = "last"


def last_row_gathered(graph: Any) -> None:
    """What the builder's prune_lm_head does: Gather and Unsqueeze before the head."""
    head = next(n for n in graph.node if "logits" in n.output)
    graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "last index"))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis one"))
    at = list(graph.node).index(head)
    graph.node.insert(at, helper.make_node("Unsqueeze", ["row", "axis one"], ["last"]))
    graph.node.insert(at, helper.make_node("Gather", [head.input[0], "last index"], ["row"], axis=1))
    head.input[0] = "last"


def last_of_the_logits(graph: Any) -> None:
    """A Gather after the head: [batch, vocabulary]."""
    rename_logits(graph, "all")
    graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "last index"))
    graph.node.append(helper.make_node("Gather", ["all", "last index"], ["logits"], axis=1))


@pytest.mark.parametrize("change", [last_row, last_row_gathered, last_of_the_logits])
def test_logits_of_the_last_token_are_refused_with_the_option(edited: Any, change: Any) -> None:
    path = edited(LLAMA, change)
    with pytest.raises(UserError, match=r"those of one token, .* logits_to_keep=0 .* prune_lm_head=false") as caught:
        canonicalise(path, CONTEXT)
    assert "\n" not in str(caught.value)


LEVELS = ("BASIC", "EXTENDED", "ALL")
SAVED = ("llama-dynamo-fp32", "gpt2-legacy17-fp32", "gemma2-dynamo-fp32", "llama-dynamo-fp16", "qwen3-optimum-fp32")


@pytest.mark.deep
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SAVED)
def test_saved_by_onnxruntime(name: str, level: str, tmp_path: Path) -> None:
    import onnxruntime

    families = unpack_families(DATA)
    source = next(f / name / "model.onnx" for f in (families, DATA / "exports") if (f / name).is_dir())
    path, options = tmp_path / "model.onnx", onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    decoder = canonicalise(path, CONTEXT)
    assert worst(decoder, ReferenceModel(path, threads=1)) < BOUND


def zero_points(dtype: str, block: int, bits: int = 4) -> Callable[[Any], None]:
    """The head of an export as a MatMulNBits whose zero points are of a type; 64 inputs in blocks."""

    def change(graph: Any) -> None:
        rng = np.random.default_rng(0)
        head = next(n for n in graph.node if "logits" in n.output)
        vocab, k = 512, 64
        blocks = -(-k // block)
        numbers = {
            "uint8": rng.integers(0, 256, (vocab * -(-blocks * bits // 8),)).astype(np.uint8),
            "float32": rng.uniform(4, 11, vocab * blocks).astype(np.float32) * (1 << bits) / 16,
            "float16 matrix": rng.uniform(4, 11, (vocab, blocks)).astype(np.float16),
        }[dtype]
        scales = rng.uniform(0.01, 0.02, numbers.shape if "matrix" in dtype else vocab * blocks)
        q = rng.integers(0, 256, (vocab, blocks, block * bits // 8)).astype(np.uint8)
        for name, x in (("q", q), ("s", scales.astype(np.float16 if "16" in dtype else np.float32)), ("z", numbers)):
            graph.initializer.append(numpy_helper.from_array(x, f"head.{name}"))
        names, x = [f"head.{n}" for n in "qsz"], head.input[0]
        if "16" in dtype:  # of a float16 graph: its values are of one type
            graph.node.insert(0, helper.make_node("Cast", [x], ["x16"], to=TensorProto.FLOAT16))
            x = "x16"
        at = list(graph.node).index(head)
        graph.node.remove(head)
        out = "logits16" if "16" in dtype else "logits"
        made = helper.make_node(
            "MatMulNBits", [x, *names], [out], domain="com.microsoft", K=k, N=vocab, bits=bits, block_size=block
        )
        graph.node.insert(at, made)
        if "16" in dtype:
            graph.node.append(helper.make_node("Cast", [out], ["logits"], to=TensorProto.FLOAT))

    return change


def with_contrib(change: Callable[[Any], None], graph_holder: Any) -> None:
    graph_holder.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    change(graph_holder.graph)


@pytest.mark.parametrize(
    ("dtype", "block", "bits"),
    [
        ("uint8", 64, 4),
        ("uint8", 16, 4),
        ("float32", 32, 4),
        ("float16 matrix", 16, 4),
        ("uint8", 64, 2),
        ("uint8", 16, 2),
        ("float32", 32, 2),
    ],
)
def test_zero_points_of_every_storage(tmp_path: Path, dtype: str, block: int, bits: int) -> None:
    """Packed bytes (an odd number of blocks too), or fractions of either type."""
    proto = onnx.load(LLAMA)
    with_contrib(zero_points(dtype, block, bits), proto)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    decoder = canonicalise(path, CONTEXT)
    reference = ReferenceModel(path, threads=1)
    assert worst(decoder, reference) < BOUND
    stored = count_work(decoder, "").head.format
    assert (stored.dtype, stored.zero_dtype) == (f"int{bits}", dtype.split()[0])


def test_zero_points_of_another_type_are_refused(tmp_path: Path) -> None:
    proto = onnx.load(LLAMA)
    with_contrib(zero_points("uint8", 32), proto)
    zero = next(t for t in proto.graph.initializer if t.name == "head.z")
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero).astype(np.int32), zero.name))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    with pytest.raises(UserError, match=r"head.z is of type INT32; UINT8, FLOAT, FLOAT16 is supported"):
        canonicalise(path, CONTEXT)


INT4 = [(TensorProto.INT4, False), (TensorProto.INT4, True), (TensorProto.UINT4, False), (TensorProto.UINT4, True)]
INT2 = [(TensorProto.INT2, True), (TensorProto.UINT2, False)]


def quantised_table(kind: int, zeros: bool, gather: bool) -> Callable[[Any], None]:
    """The embedding as a table of 2 or 4 bits: GatherBlockQuantized, or a Gather of a DequantizeLinear."""

    def change(proto: Any) -> None:
        graph, rng = proto.graph, np.random.default_rng(1)
        old = next(n for n in graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
        vocab, width, block = 512, 64, 32
        few = kind in (TensorProto.INT2, TensorProto.UINT2)
        shapes = {"q": (vocab, width), **({"z": (vocab, width // block)} if zeros else {})}
        for name, shape in shapes.items():
            raw = rng.integers(0, 256, int(np.prod(shape)) // (4 if few else 2)).astype(np.uint8).tobytes()
            graph.initializer.append(TensorProto(name=f"table.{name}", data_type=kind, dims=shape, raw_data=raw))
        scales = rng.uniform(0.05, 0.1, (vocab, width // block)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(scales, "table.s"))
        last = ["table.z"] if zeros else []
        at = list(graph.node).index(old)
        graph.node.remove(old)
        if gather:
            made = helper.make_node(
                "GatherBlockQuantized", ["table.q", "input_ids", "table.s", *last], [old.output[0]],
                domain="com.microsoft", block_size=block, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
            graph.node.insert(at, made)
        else:
            graph.node.insert(at, helper.make_node("Gather", ["table", "input_ids"], [old.output[0]]))
            inputs = ["table.q", "table.s", *last]
            made = helper.make_node("DequantizeLinear", inputs, ["table"], axis=1, block_size=block)
            graph.node.insert(at, made)
        for entry in proto.opset_import:
            entry.version = max(entry.version, 25 if few else 21) if entry.domain == "" else entry.version
        proto.ir_version = 12 if few else proto.ir_version

    return change


@pytest.mark.parametrize(
    ("kind", "zeros", "gather"),
    [(*case, gather) for case in INT4 for gather in (True, False)] + [(*case, False) for case in INT2],
)
def test_tables_of_few_bits(tmp_path: Path, kind: int, zeros: bool, gather: bool) -> None:
    proto = onnx.load(LLAMA)
    with_contrib(lambda graph: None, proto)
    quantised_table(kind, zeros, gather)(proto)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    decoder = canonicalise(path, CONTEXT)
    reference = ReferenceModel(path, threads=1)
    assert worst(decoder, reference) < BOUND
    table = next(n for n in decoder.model.graph if n.op_type == "GatherBlockQuantized")
    with scaled(initializer_of(table.inputs[2]), 1.01):
        assert worst(decoder, reference) > BOUND


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_bits_of_onnxruntimes_quantiser(tmp_path: Path, symmetric: bool) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, accuracy_level=4, bits=2)
    quantizer = MatMulNBitsQuantizer(onnx.load(LLAMA), algo_config=config)
    quantizer.process()
    path = tmp_path / "model.onnx"
    quantizer.model.save_model_to_file(str(path))
    decoder, reference = canonicalise(path, CONTEXT), ReferenceModel(path, threads=1)
    assert worst(decoder, reference) < BOUND
    assert decoder.facts.weight_dtype == "int2"
    matrix = next(n for n in decoder.model.graph if n.op_type == "MatMulNBits")
    with scaled(initializer_of(matrix.inputs[2]), 1.01):
        assert worst(decoder, reference) > BOUND
