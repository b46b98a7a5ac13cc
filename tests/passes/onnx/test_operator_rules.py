"""The table of operators is complete, and no attribute, order of inputs, form or opset changes an answer silently."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm_ffi
from unpack_families import one_of_its_kind, unpack_families

from hetero_sd.verify import logit_bound
from passes.onnx import canonicalise, shapes
from passes.onnx.load.check_nodes import check_nodes
from passes.onnx.onnxruntime_rules import FLOATS, TEXTS
from passes.onnx.operator_rule import LIFTED, NO_EFFECT, RUN, Must, Range
from passes.onnx.operator_rules import RULES
from passes.onnx.pass_context import Importing
from passes.onnx.prove.check_vocabulary import refusals
from passes.onnx.prove.vocabulary import CHECKS
from passes.onnx.rewrite.attention_sites import _SITES
from passes.onnx.rewrite.canonical_matmuls import _REWRITES
from passes.onnx.rewrite.fuse_activations import _OPERATORS
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.onnx.shape_rules import SHAPE_RULES
from passes.onnx.testing import CanonicalModel, case, importing
from passes.relax.translate import onnx_to_relax
from targets.errors import UserError
from tests.passes.onnx.answers import accepted, compare
from tests.passes.onnx.rule_walk import Mutant, Stated, kinds, mutants, onnxruntime_schemas, schema_of, write

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
FAMILIES = unpack_families(DATA)
FILES = {p.parent.name: p for p in [*DATA.glob("exports/*/model.onnx"), *FAMILIES.glob("*/model.onnx")]}
FILES |= {p.stem: p for p in DATA.glob("dialects/*.onnx")}
FILES = {name: path for name, path in FILES.items() if not one_of_its_kind(name)}
CONTEXT = 16
QUICK = {"qwen2-dynamo-fp32": 28, "llama-genai-fp32": 40, "llama-opset23": 28}  # every so many-th change of a file
PASSES = [*(ROOT / "passes" / "onnx" / d for d in ("", "load", "prove", "rewrite")), ROOT / "passes" / "relax"]


# ---- the table against the schemas -----------------------------------------------------------------------------------


def optional(schema: Stated) -> set[int]:
    """Places of optional inputs."""
    return {i for i, option in enumerate(schema.inputs) if option == "Optional"}


def check_defaults(key: tuple[str, str], schema: Stated) -> None:
    """The table's defaults are those of the schema."""
    for name, rule in RULES[key].attributes.items():
        if isinstance(rule, Must) and schema.defaults.get(name):
            default = onnx.helper.get_attribute_value(onnx.AttributeProto.FromString(schema.defaults[name]))
            assert default in (rule.default, str(rule.default).encode()), name


@pytest.mark.parametrize("key", sorted(k for k, rule in RULES.items() if rule.schema == "onnx"))
def test_everything_of_onnx_is_in_the_table(key: tuple[str, str]) -> None:
    versions = [schema_of(*key, opset) for opset in range(13, onnx.defs.onnx_opset_version() + 1)]
    schemas = [schema for schema in versions if schema is not None]
    assert schemas, "ONNX has no such operator"
    assert set(RULES[key].attributes) == {name for schema in schemas for name in schema.types}
    assert set(RULES[key].inputs) == {place for schema in schemas for place in optional(schema)}
    for schema in schemas:
        check_defaults(key, schema)


@pytest.mark.parametrize("key", sorted(k for k, rule in RULES.items() if rule.schema == "onnxruntime"))
def test_everything_of_onnxruntime_is_in_the_table(key: tuple[str, str]) -> None:
    schema, rule = onnxruntime_schemas()[key], RULES[key]
    assert set(rule.attributes) == set(schema.types)
    assert set(rule.needed) == schema.required
    assert set(rule.inputs) == optional(schema)
    assert rule.required == max(i for i, option in enumerate(schema.inputs) if option == "Single") + 1
    for name, kind in schema.types.items():
        assert kind == ("FLOAT" if name in FLOATS else "STRING" if name in TEXTS else "INT"), name
    check_defaults(key, schema)


def test_the_default_is_always_allowed() -> None:
    musts = [r for rule in RULES.values() for r in rule.attributes.values() if isinstance(r, Must)]
    assert musts
    assert all(must.default is None or must.default in must.values for must in musts)


def test_the_passes_that_are_named_read_what_they_are_said_to() -> None:
    for (_, op_type), rule in RULES.items():
        for name, what in rule.attributes.items():
            readers = what.reader if isinstance(what, Range) else what
            if isinstance(readers, Must) or readers in (RUN, NO_EFFECT, LIFTED):
                continue
            files = [p / f"{r}.py" for r in readers.split(", ") for p in PASSES if (p / f"{r}.py").exists()]
            assert len(files) == len(readers.split(", ")), (op_type, name)
            assert [f.stem for f in files if f'"{name}"' not in f.read_text()] == [], (op_type, name)


def test_operators_of_the_passes_are_in_the_table() -> None:
    tables = [_SITES, _REWRITES, _OPERATORS, CHECKS]
    used = {key for table in tables for key in table if key[0] != DOMAIN}
    assert used <= set(RULES)
    named = {*shapes._SIZED_BY, *shapes._BOUNDED, *SHAPE_RULES} - {
        *("CausalMask", "Alibi", "Positions", "SquaredRelu", "XIELU"),
        *("AltUpPredict", "AltUpCorrect", "AltUpAdd", "MatchMagnitude", "GaussianTopK"),
    }
    assert named <= {name for _, name in RULES}


# ---- what the canonical form says and Relax reads --------------------------------------------------------------------

CANONICAL = [
    *(
        pytest.param(n, marks=pytest.mark.slow)
        for n in ("llama-genai-int4", "gpt2-dynamo-fp32", "gemma2-dynamo24-fp32")
    ),
    *("qwen2-dynamo-fp32", pytest.param("phi3-genai-int4", marks=pytest.mark.slow)),
]
WRITTEN_BY_PASSES = {"Attention", "RotaryEmbedding", "CausalMask", "Positions"}  # with the attributes that are read


def in_relax(name: str, change: Callable[[Any], None] | None) -> str:
    """A hash of the Relax module of an export, or the line of refusal, after a change to the canonical graph."""
    decoder = canonicalise(FILES[name], CONTEXT)
    if change is not None:
        change(decoder.model.graph)
        try:
            check_nodes(Path("x"), _without(decoder.model, WRITTEN_BY_PASSES))
        except UserError as error:
            return f"refused: {error}"
        if reasons := list(refusals(Importing(decoder.model, CONTEXT))):
            return f"refused: {reasons[0][1]}"
    try:
        return str(tvm_ffi.structural_hash(onnx_to_relax(decoder).mod))
    except (UserError, ValueError) as error:
        return f"refused: {error}"


def _without(model: Any, operators: set[str]) -> Any:
    class Graph(list):  # type: ignore[type-arg]
        opset_imports = model.graph.opset_imports

    class Model:
        graph = Graph(node for node in model.graph if node.op_type not in operators)

    return Model


@pytest.mark.parametrize("name", CANONICAL)
@pytest.mark.slow
def test_relax_reads_what_the_canonical_form_may_say(name: str) -> None:
    before = in_relax(name, None)
    proto = ir.to_proto(canonicalise(FILES[name], CONTEXT).model)
    done: Counter[str] = Counter()
    seen = set()
    for mutant in mutants(proto):
        op_type = mutant.kind.split("|")[0].split(".")[-1]
        attribute = mutant.what.split("=")[0]
        if "=" not in mutant.what or op_type in WRITTEN_BY_PASSES or (op_type, mutant.what) in seen:
            continue
        if attribute == "accuracy_level" or (op_type == "Split" and mutant.what in ("axis=-1", "axis=2")):
            continue  # exact_quantised sets it; the last axis both
        seen.add((op_type, mutant.what))
        place = kinds(proto)[mutant.kind][0]
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        mutant.change(changed)
        new = next(a for a in changed.graph.node[place].attribute if a.name == attribute)
        old = {a.name: onnx.helper.get_attribute_value(a) for a in proto.graph.node[place].attribute}
        schema = schema_of(proto.graph.node[place].domain, op_type, 23)
        assert schema is not None
        default = onnx.AttributeProto.FromString(schema.defaults[attribute])
        if attribute not in old and onnx.helper.get_attribute_value(new) == onnx.helper.get_attribute_value(default):
            continue  # the default written out

        def change(graph: Any, place: int = place, new: Any = new) -> None:
            graph[place].attributes[new.name] = ir.serde.deserialize_attribute(new)

        after = in_relax(name, change)
        done["refused" if after.startswith("refused") else "read" if after != before else "unread"] += 1
        assert after != before, f"{op_type} {mutant.what} is accepted and not read"
    assert done["refused"] + done["read"] >= 5, done


# ---- the walk --------------------------------------------------------------------------------------------------------


def outcome(source: Path, mutant: Mutant, folder: Path) -> str:
    """ "refused", "equal" or "unrunnable"; anything else fails."""
    path = write(source, folder, mutant.change)
    decoder = accepted(path, CONTEXT)
    if isinstance(decoder, str):
        assert "\n" not in decoder
        assert "can make no sense" not in decoder, f"{mutant}: {decoder}"
        return "refused"
    answers = compare(path, decoder)
    assert answers.equal, f"{mutant} ({mutant.kind}): {answers.difference:.3g} bounds at {answers.where}"
    return "equal" if answers.cases else "unrunnable"


@pytest.mark.parametrize("name", QUICK)
def test_some_changes_of_a_few_exports(name: str, tmp_path: Path) -> None:
    chosen = list(mutants(onnx.load(FILES[name], load_external_data=False)))[:: QUICK[name]]
    counts = Counter(outcome(FILES[name], mutant, tmp_path) for mutant in chosen)
    assert counts["refused"] > 0, counts
    assert counts["equal"] > 0, counts


@functools.cache
def first_of() -> dict[tuple[str, str], str]:
    """Which export a change is made in: the smallest that has the operator with such inputs and can be imported."""
    protos = {name: onnx.load(path, load_external_data=False) for name, path in FILES.items() if name not in REFUSED}
    found: dict[tuple[str, str], str] = {}
    for name in sorted(protos, key=lambda name: (len(protos[name].graph.node), name)):
        for mutant in mutants(protos[name]):
            found.setdefault((place(mutant), mutant.what), name)
    return found


def place(mutant: Mutant) -> str:
    """Operator and inputs of the nodes that are changed, whatever their attributes and users."""
    operator, *rest = mutant.kind.split("|")
    return f"{operator}|{rest[1]}" if rest else operator


# Exports that the importer refuses as they are.
REFUSED = {"gemma2-genai-fp32", "mixtral-legacy17-fp32", "qwen2-genai-int4-asymmetric"}


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_exports_without_changes_are_those_that_are_refused(name: str) -> None:
    assert isinstance(accepted(FILES[name], CONTEXT), str)


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted(set(FILES) - REFUSED))
def test_every_change_of_every_kind_of_node(name: str, tmp_path: Path) -> None:
    another_opset = sorted(FILES).index(name) % 4 == 0  # what an opset changes shows in a quarter of the files
    own, seen = [], set()
    for mutant in mutants(onnx.load(FILES[name], load_external_data=False)):
        key = (place(mutant), mutant.what)
        if another_opset if mutant.kind == "opset" else (first_of()[key] == name and key not in seen):
            own.append(mutant)
            seen.add(key)
    print(name, Counter(outcome(FILES[name], mutant, tmp_path) for mutant in own))


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """The negative control: the decoder of another file is not equal to this one."""
    scaled = next(
        m
        for m in mutants(onnx.load(FILES["llama-genai-fp32"], load_external_data=False))
        if m.kind.startswith("com.microsoft.GroupQuery") and m.what.startswith("scale=0.5")
    )
    path = write(FILES["llama-genai-fp32"], tmp_path, scaled.change)
    assert compare(path, canonicalise(path, CONTEXT)).equal
    assert compare(path, canonicalise(FILES["llama-genai-fp32"], CONTEXT)).difference > 100


# ---- kinds that were found -------------------------------------------------------------------------------------------


def nodes(proto: Any, op_type: str) -> list[Any]:
    return [n for n in proto.graph.node if n.op_type == op_type]


def given(op_type: str, **attributes: Any) -> Callable[[Any], None]:
    def change(proto: Any) -> None:
        for node in nodes(proto, op_type):
            kept = [a for a in node.attribute if a.name not in attributes]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(onnx.helper.make_attribute(n, v) for n, v in attributes.items())

    return change


def without(op_type: str, place: int) -> Callable[[Any], None]:
    """Nodes lack an input."""

    def change(proto: Any) -> None:
        for node in nodes(proto, op_type):
            node.input[place] = ""

    return change


def constant_of_nothing(proto: Any) -> None:
    del nodes(proto, "Constant")[0].attribute[:]


def one_scale_for_the_table(proto: Any) -> None:
    for node in nodes(proto, "GatherBlockQuantized"):
        node.input[2] = constant(proto, "one_scale", np.array(0.5, np.float32))


def constant(proto: Any, name: str, numbers: np.ndarray) -> str:
    proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers, name))
    return name


def before(proto: Any, node: Any, place: int, *made: Any) -> None:
    """Let a node read the last of some nodes instead of its input."""
    at = list(proto.graph.node).index(node)
    for k, new in enumerate(made):
        proto.graph.node.insert(at + k, new)
    proto.graph.node[at + len(made)].input[place] = made[-1].output[0]


def norm_epsilon(number: Any) -> Callable[[Any], None]:
    """Norms written out add another epsilon."""

    def change(proto: Any) -> None:
        makers = {n.output[0]: n.op_type for n in proto.graph.node}
        name = constant(proto, "epsilon", np.array(number, np.float32))
        for node in nodes(proto, "Add"):
            if makers.get(node.input[0]) == "ReduceMean":
                node.input[1] = name

    return change


def swapped_caches(proto: Any) -> None:
    for node in nodes(proto, "GroupQueryAttention"):
        node.input[3], node.input[4] = node.input[4], node.input[3]


def without_sin(proto: Any) -> None:
    for node in nodes(proto, "GroupQueryAttention"):
        del node.input[8:]


def dropout_that_drops(proto: Any) -> None:
    rate, training = constant(proto, "rate", np.array(0.5, np.float32)), constant(proto, "training", np.array(True))
    node = nodes(proto, "MatMul")[0]
    before(proto, node, 0, onnx.helper.make_node("Dropout", [node.input[0], rate, training], ["dropped"], name="drop"))


def weight_rounded_to_integers(proto: Any) -> None:
    node = next(n for n in nodes(proto, "MatMul") if n.input[1] in {t.name for t in proto.graph.initializer})
    small = onnx.helper.make_node("Cast", [node.input[1]], ["small"], name="small", to=onnx.TensorProto.INT8)
    before(proto, node, 1, small, onnx.helper.make_node("Cast", ["small"], ["big"], name="big", to=1))


def positions_that_end(proto: Any) -> None:
    last = constant(proto, "last", np.array(12, np.int64))
    tables = {t.name for t in proto.graph.initializer if len(t.dims) == 2}
    node = next(n for n in nodes(proto, "Gather") if n.input[0] in tables and n.input[1] != "input_ids")
    before(proto, node, 1, onnx.helper.make_node("Clip", [node.input[1], "", last], ["clipped"], name="clip"))


def mean_over_tokens_with_a_lie(proto: Any) -> None:
    axis = constant(proto, "tokens", np.array([1], np.int64))
    for node in nodes(proto, "ReduceMean"):
        node.input[1] = axis
        kept = [v for v in proto.graph.value_info if v.name != node.input[0]]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(node.input[0], 1, ["tokens", "width"]))


def norm_of_one_number(proto: Any) -> None:
    one = constant(proto, "one", np.array([1.5], np.float32))
    for node in nodes(proto, "SimplifiedLayerNormalization"):
        node.input[1] = one


def stated_twice(proto: Any) -> None:
    nodes(proto, "Softmax")[0].attribute.append(onnx.helper.make_attribute("axis", 2))


def foreign(proto: Any) -> None:
    nodes(proto, "Add")[0].domain = "elsewhere"
    proto.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))


def one_size_too_few(proto: Any) -> None:
    for node in nodes(proto, "Split"):
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axis", 2))
        node.input[1:] = [constant(proto, f"sizes {node.name}", np.array([64], np.int64))]


def added_to_the_embedding(op_type: str, *ranks: int) -> Callable[[Any], None]:
    """The embedding gets the result of an operator that reads weights alone, rows of those ranks."""

    def change(proto: Any) -> None:
        table = next(n for n in nodes(proto, "Gather") if "input_ids" in n.input)
        width = next(t.dims[1] for t in proto.graph.initializer if t.name == table.input[0])
        numbers = np.linspace(0.5, 1, width, dtype=np.float32)
        rows = [constant(proto, f"row{i}", numbers.reshape((1,) * (rank - 1) + (-1,))) for i, rank in enumerate(ranks)]
        made = onnx.helper.make_node(op_type, rows, ["extra"], name="extra")
        total = onnx.helper.make_node("Add", ["embedded", "extra"], list(table.output), name="total")
        table.output[0] = "embedded"
        at = list(proto.graph.node).index(table)
        for k, new in enumerate((made, total)):
            proto.graph.node.insert(at + 1 + k, new)

    return change


def own_mask(proto: Any) -> None:
    nodes(proto, "Add")[0].op_type, nodes(proto, "Mul")[0].domain = "CausalMask", DOMAIN
    nodes(proto, "CausalMask")[0].domain = DOMAIN
    proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


FOUND = [
    ("qwen2-dynamo-fp32", given("Softmax", axis=2), r"Softmax \(node .* has axis=2 of 4 dimensions; only the last"),
    ("qwen2-dynamo-fp32", given("ReduceMean", keepdims=2), r"ReduceMean \(node .* has keepdims=2; it is 0 or 1"),
    ("qwen2-dynamo-fp32", norm_epsilon(np.full((1, 1, 1, 1), 1e-6)), r"the logits have the shape \[1, 2, 7, 512\]"),
    ("qwen2-dynamo-fp32", dropout_that_drops, r"Dropout \(node 'drop'\)"),
    ("qwen2-dynamo-fp32", weight_rounded_to_integers, r"Cast \(node 'small'\): it makes a weight of FLOAT another one"),
    ("qwen2-dynamo-fp32", mean_over_tokens_with_a_lie, r"the mean is not over the last axis"),
    ("qwen2-dynamo-fp32", given("MatMul", transposed=1), r"has the attribute transposed, which it does not have"),
    ("qwen2-dynamo-fp32", stated_twice, r"Softmax \(node .* states an attribute twice"),
    ("qwen2-dynamo-fp32", foreign, r"elsewhere.Add \(node .* not in that domain"),
    ("qwen2-dynamo-fp32", own_mask, r"hetero_sd\.(CausalMask|Mul) \(node .* not in that domain"),
    ("llama-genai-fp32", given("GroupQueryAttention", scale=-1.0), r"has scale=-1.0; it may be 0 to"),
    ("llama-genai-fp32", given("GroupQueryAttention", local_window_size=0), r"local_window_size=0 is no window"),
    ("llama-genai-fp32", given("GroupQueryAttention", num_heads=2), r"the numbers of heads and the cache need"),
    ("llama-genai-fp32", given("GroupQueryAttention", causal=0), r"has causal=0; only 1 is supported"),
    ("llama-genai-fp32", given("GroupQueryAttention", kv_cache_bit_width=8), r"kv_cache_bit_width=8; only 0"),
    ("llama-genai-fp32", without("GroupQueryAttention", 3), r"the head dimension of .* no node tells it"),
    ("llama-genai-fp32", without("GroupQueryAttention", 4), r"its cache is no graph input"),
    ("llama-genai-fp32", without("GroupQueryAttention", 5), r"seqlens_k or total_sequence_length is missing"),
    ("llama-genai-fp32", without("GroupQueryAttention", 6), r"seqlens_k or total_sequence_length is missing"),
    ("qwen2-genai-int4", one_scale_for_the_table, r"the head dimension of .* no node tells it"),
    ("phi3-longrope-genai-fp32", constant_of_nothing, r"Constant \(node .* has 0 values; it has one"),
    ("llama-genai-fp32", swapped_caches, r"its past and present key are past_key_values\.0\.value"),
    ("llama-genai-fp32", without_sin, r"do_rotary=1 without the tables"),
    ("llama-genai-fp32", norm_of_one_number, r"RMSNormalization \(node .*is no number for each element"),
    ("llama-genai-fp32", given("SimplifiedLayerNormalization", axis=1), r"has axis=1 of 3 dimensions; only the last"),
    ("llama-genai-fp32", given("SimplifiedLayerNormalization", epsilon=float("nan")), r"has epsilon=nan"),
    (
        *("qwen2-dynamo-fp32", added_to_the_embedding("SimplifiedLayerNormalization", 3, 1)),
        r"RMSNormalization \(node .*: it reads row0, a weight, and no row of the text",
    ),
    ("qwen2-dynamo-fp32", norm_epsilon(0.0), r"ReduceMean \(node .*: its epsilon is 0; it may be 1e-30 to "),
    ("llama-genai-fp32", given("SkipSimplifiedLayerNormalization", epsilon=-1e-6), r"has epsilon=-.* it may be 1e-30"),
    ("qwen2-genai-int4", given("GatherBlockQuantized", quantize_axis=0), r"has quantize_axis=0; only 1 or -1"),
    ("llama-genai-bf16", given("MultiHeadAttention", num_heads=2), r"is not made of num_heads=2 heads"),
    ("llama-genai-bf16", given("MultiHeadAttention", mask_filter_value=0.0), r"has mask_filter_value=0.0"),
    ("llama-dynamo23-fp32", given("Attention", softmax_precision=10), r"has softmax_precision=10; only 0 or 1"),
    ("llama-dynamo23-fp32", given("Attention", q_num_heads=2), r"is not made of q_num_heads=2 heads"),
    ("gemma2-dynamo23-fp32", given("RMSNormalization", axis=1), r"has axis=1 of 3 dimensions; only the last axis"),
    ("gpt2-dynamo-fp32", given("LayerNormalization", stash_type=16), r"has stash_type=16; only 1 is supported"),
    ("gpt2-dynamo-fp32", positions_that_end, r"the rows of the table are not chosen by position"),
    ("phi3-packed", given("Split", num_outputs=1), r"Split \(node .* has num_outputs=1, but 2"),  # ended the process
    ("phi3-packed", one_size_too_few, r"Split \(node "),
    ("llama-genai-qdq", given("DequantizeLinear", axis=3), r"a matrix has no axis 3"),
]


@pytest.mark.parametrize(("name", "change", "reason"), FOUND)
def test_kinds_that_were_found(name: str, change: Callable[[Any], None], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        canonicalise(write(FILES[name], tmp_path, change), CONTEXT)


def test_scales_behind_a_transpose() -> None:
    imp = importing(
        "g (float[b,s,16] x) => (float[b,s,2] y) "
        f"<uint8[2,1,8] q = {{{','.join('1' * 16)}}}, float[1,2] d = {{1,2}}> {{ t = Transpose <perm = [1,0]> (d)"
        " y = com.microsoft.MatMulNBits <K = 16, N = 2, bits = 4, block_size = 16> (x, q, t) }"
    )
    assert ["t is stored in another form"] == [reason for _, reason in refusals(imp)]


@pytest.mark.parametrize(
    "made",
    [
        "LayerNormalization <axis = -1> (c, w, w)",
        "RMSNormalization <axis = -1> (c, w)",
        "Tanh(c)",
        "Gelu(c)",
        "Split <axis = -1> (c, width)",
        "com.microsoft.MatMulNBits <K = 16, N = 16, bits = 4, block_size = 16> (c, q, d)",
        "Tanh(x)",
        "Add(x, w)",
    ],
)
def test_a_row_is_computed_from_input_ids(made: str) -> None:
    """Neither from weights alone, c, nor from another input of the graph, x."""
    numbers, packed = ",".join("1" * 16), ",".join("1" * 128)
    text = (
        f"g (int64[b,s] input_ids, float[b,s,16] x) => (float[b,s,16] y) <float[1,16] e = {{{numbers}}}, "
        f"float[1,1,16] c = {{{numbers}}}, float[16] w = {{{numbers}}}, int64[1] width = {{16}}, "
        f"uint8[16,1,8] q = {{{packed}}}, float[16] d = {{{numbers}}}> "
        f"{{ r = Gather(e, input_ids) y = {made} }}"
    )
    ((node, reason),) = refusals(importing(text, opset=23))
    assert node.outputs[0].name == "y"
    read = "x, an input of the graph" if "(x" in made else "c, a weight"
    assert reason == f"it reads {read}, and no row of the text"
    of_rows = made.replace("(c,", "(r,").replace("(c)", "(r)").replace("(x", "(r")
    assert not [*refusals(importing(text.replace(made, of_rows), opset=23))]


def other_opset_import(proto: Any) -> None:
    kept = [o for o in proto.opset_import if o.domain != "com.microsoft"]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen2-dynamo-fp32", given("Softmax", axis=3)),
        ("llama-genai-fp32", given("SimplifiedLayerNormalization", axis=2)),
        ("llama-genai-int4", other_opset_import),
        ("llama-genai-fp32", lambda proto: proto.graph.ClearField("name")),
    ],
)
def test_what_means_the_same_is_accepted(name: str, change: Callable[[Any], None], tmp_path: Path) -> None:
    path = write(FILES[name], tmp_path, change)
    answers = compare(path, canonicalise(path, CONTEXT))
    assert answers.cases, answers
    assert answers.equal, answers


def test_the_bound_is_that_of_verify() -> None:
    decoder = canonicalise(FILES["llama-genai-fp32"], CONTEXT)
    found = CanonicalModel(decoder.model).run(case(decoder.facts, 1, 3, 5))
    scale = float(np.abs(found["logits"]).max())
    assert logit_bound(scale, decoder.facts.ffn, decoder.facts.layers) < 2e-5 * max(scale, 10)
