"""Every export of tests/data: the numbers of the export itself, or refused with the reason; COVERAGE.md says which.

`PYTHONPATH=.:tests/data python tests/passes/onnx/test_coverage.py` writes the table anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tvm
from tvm import relax
from unpack_families import OTHERS, one_of_its_kind, unpack_families

from hetero_sd.reference import Cache, ReferenceModel
from passes.onnx import ContextTooLong, Decoder, canonicalise
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.testing import CanonicalModel, case, worst_difference
from passes.relax.translate import onnx_to_relax
from targets.boards import load_board
from targets.cpu.target import tvm_target
from targets.cpu.tile import cpu_tile
from targets.errors import UserError
from tests.support.lowered import lower_whole
from tests.support.machines import kernels_of, virtual_machine
from tests.support.quantised_exports import quantised_exports
from tests.support.saved_exports import MERGED_SWITCH, saved_exports

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
TABLE = ROOT / "passes" / "onnx" / "COVERAGE.md"
FOLDERS = sorted(
    p.parent
    for folder in (DATA / "exports", unpack_families(DATA), quantised_exports(), saved_exports())
    for p in folder.glob("*/model.onnx")
)
DIALECTS = {p.stem: p for p in sorted((DATA / "dialects").glob("*.onnx"))}
CELLS = {p.name: p / "model.onnx" for p in FOLDERS} | DIALECTS
CANNOT_EXPORT: dict[str, str] = json.loads((DATA / "cannot_export.json").read_text())
CONTEXT = 32  # within the length at which phi3-longrope (dialects) changes its rotation
SWITCH = 64  # tokens up to which the short factors of the phi3-longrope cells hold
BOUND = 1e-5  # float32 against float32, relative to the largest number; measured 1.7e-6 at most
RELAX_BOUND = 2e-5
MOST_BYTES = 12_000_000  # of all test data
WINDOW = 4  # of every family that has one, shorter than the tests' texts
REFUSED = {
    "gemma2-genai-fp32": r"GroupQueryAttention \(node .*sliding_window_cache\); build .* windowed_kv_cache=false$",
    "qwen2-genai-int4-asymmetric": r"GatherBlockQuantized \(node .* has 2 inputs.*shared_embeddings=false$",
    **dict.fromkeys(
        ("llama-genai-int4-block128", "llama-genai-int4-kquant"),  # a layer has a matrix of the head's size
        r"its logits come from inside a layer, .* export it again$",
    ),
    "llama-ort-static-16-bit": r"a weight of type UINT16; .*: quantise activations and weights to 8 bits$",
    "llama-ort-static-all-operators": r"constants are rounded to 8 bits, too: .*\['MatMul', 'Gemm', 'Gather'\]$",
    "mixtral-legacy17-fp32": r"TopK \(node .*mixtures of experts do: use a dense model",
}
# traced with a short text, so the short factors hold for every length
TRACED = {"phi3-longrope-optimum-fp32"}
# a window that the exporter itself left out: what the export computes without one is what the import computes
WINDOW_LEFT_OUT = {"mistral-genai-fp32", "mistral-genai-int4-block128-symmetric", "mistral-genai-qdq-asymmetric"}
# every exporter, family and precision at least once
COMPILED = [
    "llama-genai-int4-asymmetric", "llama-genai-qdq", "llama3-legacy17-eager-fp32",
    "mistral-genai-int4-block128-symmetric",
    "mistral-genai11-int4", "phi3-dynamo-fp16", "phi3-longrope-genai-int4", "qwen2-genai-bf16",
    "qwen3-genai-int8", "qwen3-optimum-fp32", "qwen3-dynamo-no-cache-mask", "gemma2-dynamo24-fp32",
    "gemma3-dynamo23-fp32", "smollm-dynamo-fp32", "gpt2-legacy17-fp32", "glm-interleaved",
    "granite-genai-int4", "olmo2-dynamo-fp32",
    "phi-dynamo-fp32", "gpt-neox-dynamo-fp32", "cohere2-dynamo-fp32",  # parallel blocks, packed by head
    "opt-dynamo-fp32", "falcon-dynamo-fp32", "falcon-grouped-dynamo-fp32", "nemotron-dynamo-fp32",
    "bloom-dynamo-fp32", "mpt-legacy17-fp32", "opt-350m-dynamo-fp32",
    # layer norms by head, clipped projections, xIELU
    "stablelm-heads-dynamo-fp32", "persimmon-dynamo-fp32", "cohere-heads-dynamo-fp32", "olmo-clipped-dynamo-fp32",
    "apertus-dynamo-fp32",
    "gemma3n-shared-dynamo-fp32",  # streams beside one another
    "gemma3-dynamo-bf16", "gpt2-dynamo-eager-fp16",  # a GELU with the rounded constants of each
    "qwen2-ort-dynamic-uint8", "gpt2-ort-dynamic-int8-per-channel", "llama-ort-bnb4-nf4-across-columns",
    "qwen2-ort-bnb4-fp4",
]  # fmt: skip
CORE = load_board("host", measure=False).clusters[0].core
ROWS = (
    *("llama", "llama3", "mistral", "phi3", "phi3-longrope", "qwen2", "qwen3", "gemma2", "gemma3", "smollm", "gpt2"),
    *("granite", "olmo2"),
)
UNSCALED = {
    "olmo-dynamo-fp32",
    "olmo-clipped-dynamo-fp32",
    "olmo-clipped-legacy17-fp32",
    "nanochat-dynamo-fp32",
}  # their norms have no weights
COLUMNS = {
    "dynamo": "dynamo, opset 18",
    "dynamo23": "dynamo, 23",
    "dynamo24": "dynamo, 24",
    "legacy": "torchscript",
    "optimum": "optimum-onnx",
    "genai": "genai 0.18",
    "genai11": "genai 0.11",
    "ort": "onnxruntime's quantisers",
    "saved": "saved again by",
}


@functools.cache
def imported(name: str) -> tuple[Decoder, CanonicalModel, ReferenceModel]:
    decoder = canonicalise(CELLS[name], CONTEXT)
    return decoder, CanonicalModel(decoder.model), ReferenceModel(CELLS[name], threads=1)


def cases(decoder: Decoder) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """(inputs, past): several sizes, batch 2 where it is free, padding on the sides that the export understands."""
    facts = decoder.facts
    batch = facts.batch or 2
    for new, past in ((3, 5), (1, 9), (6, 0), (4, 24), (1, 31)):
        if facts.many_tokens_after_past or new == 1 or past == 0:
            yield case(facts, facts.batch or 1, new, past), past
    if batch > 1:
        yield case(facts, batch, 6, 0), 0
        yield case(facts, batch, 1, 9), 9
    if facts.padding == "left and right" and batch > 1:
        yield case(facts, batch, 6, 0, (2, 0)), 0
        yield case(facts, batch, 1, 9, (4, 1)), 9
        if facts.many_tokens_after_past:
            yield case(facts, batch, 3, 5, (2, 1)), 5
    if facts.padding != "none" and batch > 1:
        yield case(facts, batch, 6, 0, (2, 0), "right"), 0


def of_the_export(reference: ReferenceModel, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    past = {n: x for n, x in feed.items() if n.startswith("past")}
    return reference.run(feed["input_ids"], past, feed["attention_mask"], feed["position_ids"])


def worst(name: str, canonical: CanonicalModel, few: bool = False) -> float:
    """The largest difference between a canonical model and the export over all cases, or the first ones."""
    decoder, _, reference = imported(name)
    if not reference.layers:
        return without_cache(decoder, canonical, reference)
    all_cases = list(cases(decoder))[: 1 if few else None]
    return max(
        worst_difference(canonical.run(feed), of_the_export(reference, feed), feed["attention_mask"], past)
        for feed, past in all_cases
    )


def without_cache(decoder: Decoder, canonical: CanonicalModel, reference: ReferenceModel) -> float:
    """An export without cache runs the whole text; the canonical form runs it in steps of 5, 1 and 3."""
    feed = case(decoder.facts, 2, 9, 0)
    expected, logits, start = reference.run(feed["input_ids"])["logits"], [], 0
    past = {n: x for n, x in feed.items() if n.startswith("past")}
    for end in (5, 6, 9):
        ids, mask = feed["input_ids"][:, start:end], np.ones((2, end), np.int64)
        out = canonical.run({"input_ids": ids, "attention_mask": mask, **past})
        logits.append(out.pop("logits"))
        past, start = {n.replace("present", "past_key_values"): x for n, x in out.items()}, end
    actual = np.concatenate(logits, axis=1)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@contextmanager
def changed(model: Any) -> Iterator[CanonicalModel]:
    """The model with its first norm's weight scaled by 1.01, and as it was again afterwards."""
    norm = next(n for n in model.graph if n.op_type in ("RMSNormalization", "LayerNormalization"))
    value = initializer_of(norm.inputs[1])
    tensor = value.const_value
    value.const_value = ir.tensor((tensor.numpy() * 1.01).astype(np.float32), name=value.name)
    try:
        yield CanonicalModel(model)
    finally:
        value.const_value = tensor


ACCEPTED = [n for n in CELLS if n not in REFUSED]
# the folders of exports/ have all this in test_canonicalise.py, and are compiled in test_compile.py
TESTED = [n for n in ACCEPTED if CELLS[n].parent.parent.name != "exports"]
SAVED = [n for n in TESTED if "-saved-" in n]  # another cell saved by a tool: only the numbers can be others
EXPORTED = [n for n in TESTED if n not in SAVED]
# of the families with one export, those that are compiled; the others have the same operators
BODIES = [n for n in EXPORTED if n in COMPILED or not one_of_its_kind(n)]
# one cell of each family and exporter; the others in `make deep`
QUICK = {*COMPILED, *DIALECTS, "mistral-optimum-fp32", "phi3-genai-int4", "gemma3-genai11-int4", "llama-dynamo24-fp32"}
QUICK |= {"llama-ort-dynamic-uint8-extended", "llama-ort-static-uint8"}
QUICK |= {"mistral-saved-merged", "gpt2-saved-transformers"}
QUICK -= {n for n in COMPILED if one_of_its_kind(n)}
COMPILED_QUICK = {"llama-genai-int4-asymmetric", "qwen3-genai-int8", "phi3-dynamo-fp16", "gemma3-dynamo23-fp32"}


def by_speed(tested: set[str], names: list[str]) -> list[Any]:
    """The cells as parameters: outside `tested` they are deep, within it slow but for a few and the dialects."""
    slow = tested - COMPILED_QUICK - {*DIALECTS}
    marks = {n: pytest.mark.slow if n in tested else pytest.mark.deep for n in names}
    return [pytest.param(n, marks=marks[n]) if n in slow or n not in tested else n for n in names]


def test_all_data_stays_small() -> None:
    """What is committed: exports, dialects and the packed families."""
    made = {"__pycache__", "families", "cases", "quantised", "saved"}
    parts = (p for p in DATA.rglob("*") if p.is_file() and not made & set(p.parts))
    assert sum(p.stat().st_size for p in parts) <= MOST_BYTES


@pytest.mark.parametrize("name", by_speed(QUICK, TESTED))
def test_same_numbers_and_a_twin_that_differs(name: str) -> None:
    decoder, canonical, _ = imported(name)
    assert worst(name, canonical) < BOUND
    with changed(decoder.model) as control:
        assert worst(name, control, few=True) > BOUND


def test_a_merged_decoder_is_its_branch_with_a_cache() -> None:
    """The file itself, run by onnxruntime with its switch on; with it off, another branch gives other numbers."""
    name = "mistral-saved-merged"
    decoder, canonical, _ = imported(name)
    session = onnxruntime.InferenceSession(str(CELLS[name]), providers=["CPUExecutionProvider"])
    feed = case(decoder.facts, 2, 3, 5)
    outputs = [v.name for v in session.get_outputs()]

    def run(switch: bool) -> dict[str, np.ndarray]:
        given = {**feed, MERGED_SWITCH: np.array([switch])}
        if not switch:
            given["attention_mask"] = feed["attention_mask"][:, 5:]
        return dict(zip(outputs, session.run(None, given), strict=True))

    actual = canonical.run(feed)
    assert worst_difference(actual, run(True), feed["attention_mask"], 5) < BOUND
    assert np.abs(actual["logits"] - run(False)["logits"]).max() > 1000 * BOUND


@pytest.mark.parametrize("name", by_speed(QUICK, EXPORTED))
def test_norm_weights_and_biases_are_random(name: str) -> None:
    """Otherwise a norm or a bias that the import lost would not show in the numbers."""
    graph = imported(name)[0].model.graph
    norms = [n for n in graph if n.op_type in ("RMSNormalization", "LayerNormalization")]
    vectors = [v for n in norms for v in n.inputs[1:] if v is not None]
    vectors += [v for n in graph if n.op_type == "Add" for v in n.inputs if v.producer() is None]
    vectors += [n.inputs[5] for n in graph if n.op_type == "MatMulNBits" and len(n.inputs) > 5 and n.inputs[5]]
    constants = [initializer_of(v).const_value for v in vectors if not v.is_graph_input()]
    assert len(constants) >= len(norms) > 0
    numbers = [t.numpy().astype(np.float32) for t in constants if len(t.shape) <= 2]  # two: a row for each head
    written = [x for x in numbers if x.any()]  # zeros are what the import writes where a norm has no bias
    if name.startswith("gemma3n-"):  # and ones where it has no weight, as the norm of the values
        written = [x for x in written if (x != 1).any()]
    assert min(float(np.std(x)) for x in written) > 0.05 or name in UNSCALED


LOCAL_LAYER = {"gemma2-genai11-fp32": 1}  # of layers that alternate; the others begin with a local one
WINDOWED = [n for n in EXPORTED if n.startswith(("mistral", "gemma2", "gemma3"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", by_speed(QUICK, WINDOWED))
def test_windows_are_those_of_the_export(name: str) -> None:
    """Keys outside the window change nothing in a layer that has one: asked of the export, then of its facts."""
    decoder, _, reference = imported(name)
    window = decoder.facts.window
    assert window == (0 if name in WINDOW_LEFT_OUT else 16 if name == "mistral-window" else WINDOW)
    feed = case(decoder.facts, 1, 1, 31)
    before = of_the_export(reference, feed)["logits"]
    layer = LOCAL_LAYER.get(name, 0)
    for kind in ("key", "value"):
        past = np.array(feed[f"past_key_values.{layer}.{kind}"])
        past[:, :, : 31 + 1 - (window or WINDOW)] += 1.0
        feed[f"past_key_values.{layer}.{kind}"] = past
    after = of_the_export(reference, feed)["logits"]
    assert np.array_equal(before, after) == bool(window)


@pytest.mark.slow
@pytest.mark.parametrize("name", by_speed(QUICK, [n for n in WINDOWED if n not in WINDOW_LEFT_OUT]))
def test_a_twin_without_its_window_differs(name: str) -> None:
    decoder, _, reference = imported(name)
    masks = [n for n in decoder.model.graph if n.op_type == "CausalMask" and n.attributes["window"].value]
    kept = [n.attributes["window"] for n in masks]
    feed = case(decoder.facts, 1, 1, 31)
    try:
        for node in masks:
            node.attributes["window"] = ir.AttrInt64("window", 0)
        actual = CanonicalModel(decoder.model).run(feed)
    finally:
        for node, window in zip(masks, kept, strict=True):
            node.attributes["window"] = window
    assert worst_difference(actual, of_the_export(reference, feed), feed["attention_mask"], 31) > BOUND


@pytest.mark.parametrize("name", ["bloom-dynamo-fp32", "mpt-legacy17-fp32"])
def test_a_twin_with_other_slopes_differs(name: str) -> None:
    """Those of the export are powers of two; the position of the first key does not matter."""
    decoder, canonical, _ = imported(name)
    (node,) = (n for n in decoder.model.graph if n.op_type == "Alibi")
    slopes = node.attributes["slopes"]
    powers = [2.0 ** (-8 * i / 4) for i in (1, 2, 3, 4)] if name.startswith("bloom") else [2.0**-i for i in (2, 4, 6)]
    assert list(slopes.value)[: len(powers)] == powers
    assert worst(name, canonical, few=True) < BOUND
    try:
        node.attributes["slopes"] = ir.AttrFloat32s("slopes", [*slopes.value[1:], slopes.value[0]])
        assert worst(name, CanonicalModel(decoder.model), few=True) > 100 * BOUND
    finally:
        node.attributes["slopes"] = slopes


@pytest.mark.parametrize(
    ("name", "op_type", "place"),
    [("olmo-clipped-dynamo-fp32", "Clip", 2), ("apertus-dynamo-fp32", "XIELU", "negative")],
)
def test_a_twin_with_another_constant_differs(name: str, op_type: str, place: int | str) -> None:
    """An upper end of the clipping that is 1.01 times the export's; a factor of xIELU likewise."""
    decoder, canonical, _ = imported(name)
    nodes = [n for n in decoder.model.graph if n.op_type == op_type]
    assert len(nodes) == {"Clip": 3, "XIELU": 1}[op_type]
    assert worst(name, canonical, few=True) < BOUND
    if isinstance(place, str):
        kept = nodes[0].attributes[place]
        nodes[0].attributes[place] = ir.AttrFloat32(place, 1.01 * kept.value)
    else:
        value = nodes[0].inputs[place]
        kept, value.const_value = value.const_value, ir.tensor(1.01 * value.const_value.numpy(), name=value.name)
    try:
        assert worst(name, CanonicalModel(decoder.model), few=True) > 10 * BOUND
    finally:
        if isinstance(place, str):
            nodes[0].attributes[place] = kept
        else:
            value.const_value = kept


@pytest.mark.parametrize("name", ["stablelm-heads-dynamo-fp32", "cohere-heads-dynamo-fp32"])
def test_a_twin_whose_heads_share_a_scale_differs(name: str) -> None:
    """Each head has a scale of its own: with the first head's for all, the numbers are others."""
    decoder, canonical, _ = imported(name)
    assert worst(name, canonical, few=True) < BOUND
    scales = [n.inputs[1] for n in decoder.model.graph if n.op_type == "LayerNormalization"]
    value = next(v for v in scales if len(v.const_value.shape) == 2)
    kept, rows = value.const_value, value.const_value.numpy()
    assert rows.shape == (4, 8)
    value.const_value = ir.tensor(np.repeat(rows[:1], len(rows), axis=0), name=value.name)
    try:
        assert worst(name, CanonicalModel(decoder.model), few=True) > 100 * BOUND
    finally:
        value.const_value = kept


def test_alibi_that_ends_limits_the_context() -> None:
    """MPT's has max_seq_len positions; for more, its slice of one number would be taken for no bias at all."""
    for context in (129, 200, 1024):
        with pytest.raises(ContextTooLong, match=rf"ALiBi .* 128 positions, the context is {context}; compile") as no:
            canonicalise(CELLS["mpt-legacy17-fp32"], context)
        assert no.value.longest == 128
    assert canonicalise(CELLS["mpt-legacy17-fp32"], 128).facts.context == 128
    assert canonicalise(CELLS["bloom-legacy17-fp32"], 1024).facts.alibi


@pytest.mark.slow
@pytest.mark.parametrize("name", by_speed(QUICK, [n for n in EXPORTED if "-genai" in n]))
def test_padding_on_the_left_means_nothing_to_lengths(name: str) -> None:
    """GroupQueryAttention takes lengths: the export's own numbers of padded and bare tokens differ, so facts say so."""
    decoder, _, reference = imported(name)
    if decoder.facts.padding != "right":  # the builder writes float16 attention for CPUs with a mask
        assert decoder.facts.padding == "left and right"
        return
    padded = case(decoder.facts, 2, 6, 0, (2, 0))
    bare = {n: x[:1, 2:] for n, x in padded.items() if not n.startswith("past")}
    bare |= {n: x[:1] for n, x in padded.items() if n.startswith("past")}
    expected = of_the_export(reference, bare)["logits"]
    assert np.abs(of_the_export(reference, padded)["logits"][:1, 2:] - expected).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", by_speed(QUICK, BODIES))
def test_reference_bodies(name: str) -> None:
    """Our Relax operators in their stock definitions give the export's logits and caches."""
    decoder, _, reference = imported(name)
    module = onnx_to_relax(decoder)
    vm = relax.VirtualMachine(relax.build(module.mod, tvm_target(CORE)), tvm.cpu())
    caches = [f"past_key_values.{i}.{kind}" for i in range(decoder.facts.layers) for kind in ("key", "value")]
    names = [str(p.name) for p in module.mod["main"].params][1 + len(caches) :]
    weights = [tvm.runtime.tensor(np.ascontiguousarray(module.weights[n].numpy())) for n in names]
    sizes = [(6, 0), (1, 9)] if reference.layers else [(6, 0)]

    def outputs(feed: dict[str, np.ndarray], parameters: list[Any]) -> dict[str, np.ndarray]:
        given = [tvm.runtime.tensor(feed[n]) for n in ("input_ids", *caches)]
        results = [r.numpy() for r in vm["main"](*given, *parameters)]
        return dict(zip(["logits", *(c.replace("past_key_values", "present") for c in caches)], results, strict=True))

    for new, past in sizes:
        feed = case(decoder.facts, 1, new, past)
        expected = of_the_export(reference, feed)
        actual = {n: x for n, x in outputs(feed, weights).items() if n in expected}
        assert worst_difference(actual, expected, feed["attention_mask"], past) < RELAX_BOUND
    vector = next(i for i, w in enumerate(weights) if len(w.shape) == 1)
    control = [tvm.runtime.tensor(w.numpy() * np.float32(1.01)) if i == vector else w for i, w in enumerate(weights)]
    actual = {n: x for n, x in outputs(feed, control).items() if n in expected}
    assert worst_difference(actual, expected, feed["attention_mask"], past) > RELAX_BOUND


def _one_element_off(vector: np.ndarray) -> np.ndarray:
    """Not all of it: Gemma normalises before and after a block, so a common factor is lost again."""
    control = np.array(vector)
    control[0] *= 1.5
    return control


@pytest.mark.slow
@pytest.mark.parametrize("name", by_speed(COMPILED_QUICK, COMPILED))
def test_compiled_for_this_host(name: str) -> None:
    decoder, _, reference = imported(name)
    ids = np.random.default_rng(1).integers(0, decoder.facts.vocab, 14).tolist()
    cache = Cache()
    expected = np.concatenate([reference.forward(ids[:5], cache), reference.forward(ids[5:], cache)])
    tile, context = cpu_tile(CORE), CONTEXT
    kernels = kernels_of(CORE)
    vm = virtual_machine(lowered := lower_whole(decoder, tile, context, (1, 3, 5), 8, kernels=kernels), CORE, kernels)
    kv, dim, lanes = decoder.facts.kv_heads, decoder.facts.head_dim, tile.lanes
    packed = [p.pack(lowered.weights[p.name].numpy()) for p in lowered.packed]

    def logits(parts: list[int], arrays: list[Any]) -> np.ndarray:
        shapes = [(1, kv, context // lanes, dim, lanes), (1, kv, context, dim)] * decoder.facts.layers
        caches = [tvm.runtime.tensor(np.full(s, np.nan, np.float32)) for s in shapes]
        weights, rows, pos = [tvm.runtime.tensor(a) for a in arrays], [], 0
        for n in parts:
            out = vm[f"step_{n}"](tvm.runtime.tensor(np.array([ids[pos : pos + n]])), pos, *caches, *weights)
            rows.append(out[0].numpy()[0])
            pos += n
        return np.concatenate(rows)

    scale = np.abs(expected).max()
    whole = logits([5, 5, 3, 1], packed)
    assert np.abs(whole - expected).max() / scale < RELAX_BOUND
    assert np.array_equal(whole, logits([1] * 14, packed))  # a row's bits do not depend on how many are computed
    vector = next(i for i, a in enumerate(packed) if a.ndim == 1)
    control = [_one_element_off(a) if i == vector else a for i, a in enumerate(packed)]
    assert np.abs(logits([5, 5, 3, 1], control) - expected).max() / scale > RELAX_BOUND


@pytest.mark.slow
def test_the_compiled_cells_have_every_exporter_family_and_precision() -> None:
    exporters, families, precisions = zip(*(parts(n) for n in COMPILED if n not in DIALECTS), strict=True)
    assert set(exporters) == set(COLUMNS) - {"saved"}
    assert set(families) >= set(ROWS)
    found = {imported(n)[0].facts.weight_dtype for n in COMPILED}
    assert found == {"float32", "float16", "int4", "int8", "nf4", "fp4"}  # bfloat16 is widened
    assert any("bf16" in p for p in precisions)
    assert any("qdq" in p for p in precisions)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_node_and_reason(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        canonicalise(CELLS[name], CONTEXT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen2-genai-int4-asymmetric", "gemma2-genai-fp32"])
def test_onnxruntime_refuses_what_is_refused_for_the_exporter(name: str) -> None:
    """Scales that the builder leaves out, and a ring cache that cannot grow: neither runs as it is."""
    cache = {f"past_key_values.{i}.{k}": np.zeros((1, 2, 0, 16), np.float32) for i in (0, 1) for k in ("key", "value")}
    with pytest.raises(UserError, match="onnxruntime cannot"):
        ReferenceModel(CELLS[name], threads=1).run(np.zeros((1, 7), np.int64), cache)


LONGROPE = [n for n in TESTED if n.startswith("phi3-longrope-")]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGROPE)
def test_longrope_up_to_its_switch_and_beyond(name: str) -> None:
    """Up to the switch one table is right for all; beyond it the export contradicts itself, unless it was traced."""
    assert canonicalise(CELLS[name], SWITCH).facts.context == SWITCH
    decoder, _, reference = imported(name)
    assert worst_at(name, SWITCH - 1, 0) < BOUND
    assert worst_at(name, 1, SWITCH - 1) < BOUND
    if name in TRACED:  # the exporter kept the short factors for every length
        assert canonicalise(CELLS[name], SWITCH + 1).facts.context == SWITCH + 1
        return
    with pytest.raises(
        UserError, match=rf"LongRoPE.* beyond {SWITCH} tokens.*|beyond {SWITCH} tokens .*LongRoPE"
    ) as no:
        canonicalise(CELLS[name], SWITCH + 1)
    assert str(no.value).endswith(f"compile with --context {SWITCH} or less")
    ids = np.random.default_rng(3).integers(0, decoder.facts.vocab, (1, SWITCH + 6))
    whole = reference.run(ids)["logits"][:, SWITCH:]
    first = reference.run(ids[:, :SWITCH])
    past = {n.replace("present", "past_key_values"): x for n, x in first.items() if n != "logits"}
    rest = [one_more(reference, ids[:, SWITCH + i : SWITCH + i + 1], past) for i in range(6)]
    assert np.abs(np.concatenate(rest, axis=1) - whole).max() > 1000 * BOUND  # cached keys keep the short factors


def one_more(reference: ReferenceModel, token: np.ndarray, past: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of the next token; `past` goes on."""
    out = reference.run(token, past)
    logits = out.pop("logits")
    past.update({n.replace("present", "past_key_values"): x for n, x in out.items()})
    return logits


def worst_at(name: str, new: int, past: int) -> float:
    decoder = canonicalise(CELLS[name], SWITCH)
    feed = case(decoder.facts, 1, new, past)
    expected = of_the_export(imported(name)[2], feed)
    return worst_difference(CanonicalModel(decoder.model).run(feed), expected, feed["attention_mask"], past)


def parts(name: str) -> tuple[str, str, str]:
    """(exporter, family, precision and inputs) of a cell's name."""
    family = max((r for r in [*ROWS, *OTHERS, "mixtral"] if name.startswith(r + "-")), key=len)
    exporter, _, rest = name.removeprefix(family + "-").removeprefix("drafter-").partition("-")
    if exporter.startswith("legacy"):
        exporter, rest = "legacy", f"{exporter.removeprefix('legacy')}-{rest}"
    return exporter, family, rest


def outcome(name: str) -> tuple[str, str]:
    """(pass, refused or n/a; the reason, or what the export is)."""
    if name in CANNOT_EXPORT:
        return "n/a", CANNOT_EXPORT[name].replace("|", "/")
    try:
        facts = canonicalise(CELLS[name], CONTEXT).facts
    except UserError as error:
        return "refused", str(error).removeprefix(f"{CELLS[name]}: ").replace("|", "/")
    notes = [NOTES.get(name, "")] + (["one token after a past"] if not facts.many_tokens_after_past else [])
    return "pass", "; ".join(n for n in notes if n)


NOTES = {name: "the builder leaves out the window" for name in WINDOW_LEFT_OUT}
NOTES |= {n: "the import adds the cache" for n in CELLS if "no-cache" in n}
NOTES |= {n: f"contexts up to the switch ({SWITCH} here)" for n in LONGROPE if n not in TRACED}
NOTES |= {n: "the exporter kept the short factors for every length" for n in TRACED}


def matrix(outcomes: dict[str, tuple[str, str]]) -> Iterator[str]:
    yield "| family | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for row in (*ROWS, *OTHERS):
        cells = []
        for column in COLUMNS:
            here = {n: o for n, (o, _) in outcomes.items() if n not in DIALECTS and parts(n)[:2] == (column, row)}
            shown = []
            for what in ("pass", "refused", "n/a"):
                names = ", ".join(sorted({parts(n)[2] for n in here if here[n] == what}))
                shown += [f"{what}: {names}" if what == "pass" else f"**{what}**: {names}"] if names else []
            cells.append("; ".join(shown) or "not tried")
        yield f"| {row} | " + " | ".join(cells) + " |"


def details(name: str, note: str) -> str:
    facts = canonicalise(CELLS[name], CONTEXT).facts
    rope = ("ALiBi" if facts.alibi else "learned") if facts.rope is None else facts.rope.positions
    window = str(facts.window or "none")
    return f"| {name} | {facts.family} | {facts.weight_dtype} | {window} | {facts.padding} | {rope} | {note} |"


HEAD = f"""# What the importer reads

Made by `PYTHONPATH=.:tests/data python tests/passes/onnx/test_coverage.py`. The same file holds the tests: all
outputs of every cell that passes against onnxruntime, at several lengths, paddings and batches, through the canonical
model and, for each kind of graph, the reference bodies of Relax operators, with negative controls;
{len(COMPILED)} cells are compiled for the host and two for the emulated board.
The exports are made by the scripts in `tests/data`.

Find your family's row and your exporter's column. A cell names what was exported: the precision, and what else is
special (`13` to `18`: the opset; `eager`: attention written out, else sdpa; `qdq`: blocked DequantizeLinear; `int4`
and `int8` are symmetric in blocks of 32 unless they say otherwise; `ids-and-cache`, `no-positions`, `no-cache`:
inputs left out; `presents`: optimum's decoder_model.onnx, which gives a cache and takes none).
"dynamo" is `torch.onnx.export(dynamo=True)` and "torchscript" is `dynamo=False` at opsets 13 to 18, of torch 2.13 and
transformers 5.23 (OPT, Falcon, Nemotron, MPT: 5.24); "optimum-onnx" is 0.1.0; "genai" is onnxruntime-genai's builder.
"onnxruntime's quantisers" are those of onnxruntime 1.32 on a float32 export of another column: `dynamic` is
`quantize_dynamic` with weights uint8 or int8,
`per-channel`, `reduced` (reduce_range) or saved by onnxruntime at level `extended`; `static` is `quantize_static` in
the form QDQ with activations uint8, or of `16-bit`, of MatMul, Gemm and Gather or of `all-operators`; `bnb4` is
`MatMulBnb4Quantizer` with the tables NF4 and FP4 in blocks of 64 unless it says otherwise. "Saved again by" is an
export of another column as a tool left it: onnxruntime's optimiser at level `basic` or `extended`, the one of
onnxruntime.`transformers`, `onnxslim`, `onnxsim`, Olive 0.13 (`olive-rtn`: its blocks of 4 bits); `fp16` has inputs and
outputs in float16, too, `casts` keeps them; `q4f16` is MatMulNBitsQuantizer's blocks in a graph of float16; `merged` is
optimum's decoder_model_merged.onnx.
"""
AFTER = """
Whatever the file: batch size 1, keys and values in float32, weights as they are stored. Where a file rounds activations
to 8 bits, that rounding is left out: compiled with `--activations int8`, the default for such files, activations are
rounded row by row with a scale for 32 values. ONNX's dynamic rounding has one scale for all rows of a call, so that a
token's numbers would depend on the tokens beside it. LongRoPE (Phi-3) is compiled
for contexts up to the length at which the export switches its factors: beyond it the export rotates the whole text
anew, so that keys in a cache are no longer right, and onnxruntime itself gives other logits for a text in one piece
than token by token. Exports with GroupQueryAttention (genai) take lengths instead of a mask: padding on the left means
nothing to them.
"""


def table() -> str:
    outcomes = {name: outcome(name) for name in [*CELLS, *CANNOT_EXPORT]}
    passed = [n for n in sorted(CELLS) if outcomes[n][0] == "pass"]
    lines = [HEAD, *matrix(outcomes), AFTER, "## Refused, and what exporters cannot export", ""]
    lines += ["| export | | reason |", "|---|---|---|"]
    lines += [f"| {n} | {o} | {why} |" for n, (o, why) in sorted(outcomes.items()) if o == "refused"]
    lines += [f"| {n} | {o} | the exporter says: {why} |" for n, (o, why) in sorted(outcomes.items()) if o == "n/a"]
    columns = "| export | read as | weights | window | padding | positions | |"
    lines += [
        "",
        "## Every cell that passes",
        "",
        "Names without an exporter are one-layer exports by dynamo at opset 18",
    ]
    lines += ["of other architectures and spellings.", "", columns, "|---|---|---|---|---|---|---|"]
    lines += [details(n, outcomes[n][1]) for n in passed]
    return "\n".join([*lines, ""])


@pytest.mark.deep
def test_table_is_up_to_date(golden: Any) -> None:
    golden(str(TABLE), table())


if __name__ == "__main__":
    TABLE.write_text(table())
