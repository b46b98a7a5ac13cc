"""Every export of tests/data: the numbers of the export itself, or refused with the reason; COVERAGE.md says which.

`PYTHONPATH=. python tests/passes/import_onnx/test_coverage.py` writes the table anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tvm
from tvm import relax

from hetero_sd.reference import Cache, ReferenceModel
from passes.import_onnx import Decoder, canonicalise
from passes.import_onnx.testing import CanonicalModel, case, worst_difference
from passes.onnx_to_relax import onnx_to_relax
from passes.pipeline import lower_decoder_for_cpu
from targets.boards import load_board
from targets.cortex_a.tile import cpu_tile
from targets.cortex_a.tvm_target import tvm_target
from targets.errors import UserError

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
TABLE = ROOT / "passes" / "import_onnx" / "COVERAGE.md"
FOLDERS = sorted(
    p.parent for p in [*(DATA / "exports").glob("*/model.onnx"), *(DATA / "families").glob("*/model.onnx")]
)
CELLS = {p.name: p / "model.onnx" for p in FOLDERS} | {p.stem: p for p in sorted((DATA / "dialects").glob("*.onnx"))}
CANNOT_EXPORT: dict[str, str] = json.loads((DATA / "families" / "cannot_export.json").read_text())
CONTEXT = 32  # within the length at which phi3-longrope (dialects) changes its rotation
BOUND = 1e-5  # float32 against float32, relative to the largest number; measured 1.3e-6 at most
RELAX_BOUND = 2e-5
REFUSED = {
    "bloom-legacy17-fp32": r"Softmax \(node .*: the scores get a bias other than a mask \(ALiBi or the like\)",
    "gemma2-genai-fp32": r"GroupQueryAttention \(node .*sliding_window_cache",  # onnxruntime's ring buffer of a cache
    "phi3-longrope-genai-fp32": r"If \(node .*export without control flow",
    # the builder leaves out the scales of a tied embedding with zero points
    "qwen2-genai-int4-asymmetric": r"GatherBlockQuantized \(node .* has 2 inputs, its operator takes 3",
    "mixtral-legacy17-fp32": r"TopK \(node .*mixtures of experts do: use a dense model",
}
# every exporter and every family at least once
COMPILED = [
    "gemma2-dynamo-fp32", "gemma3-dynamo23-fp32", "gpt2-dynamo-fp32", "phi3-dynamo-fp32", "mistral-dynamo-fp32",
    "llama3-genai-fp16", "llama-genai-int4-asymmetric", "llama-genai-int4-block128", "qwen3-genai-int8",
    "llama-genai-qdq", "qwen3-dynamo-no-cache-mask", "qwen3-optimum-fp32", "smollm-dynamo-fp32",
]  # fmt: skip
CORE = load_board("host", measure=False).clusters[0].core


@functools.cache
def imported(name: str) -> tuple[Decoder, CanonicalModel, ReferenceModel]:
    decoder = canonicalise(CELLS[name], CONTEXT)
    return decoder, CanonicalModel(decoder.model), ReferenceModel(CELLS[name], threads=1)


def cases(decoder: Decoder) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """(inputs, past): several sizes, batch 2 where it is free, padding on the sides that the export understands."""
    facts = decoder.facts
    batch = facts.batch or 2
    for new, past in ((3, 5), (1, 9), (6, 0)):
        if facts.many_tokens_after_past or new == 1 or past == 0:
            yield case(facts, facts.batch or 1, new, past), past
    if batch > 1:
        yield case(facts, batch, 6, 0), 0
        yield case(facts, batch, 1, 9), 9
    if facts.padding == "left and right" and batch > 1:
        yield case(facts, batch, 6, 0, (2, 0)), 0
        yield case(facts, batch, 1, 9, (4, 1)), 9
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


def changed(model: Any) -> Any:
    """Scale the first norm's weight by 1.01 and hand the model back."""
    norm = next(n for n in model.graph if n.op_type in ("RMSNormalization", "LayerNormalization"))
    value = norm.inputs[1]
    while value.producer() is not None:
        value = value.producer().inputs[0]
    value.const_value = ir.tensor((value.const_value.numpy() * 1.01).astype(np.float32), name=value.name)
    return model


ACCEPTED = [n for n in CELLS if n not in REFUSED]


# the other folders have their tests in test_canonicalise.py and test_dialects.py
TESTED = [n for n in ACCEPTED if CELLS[n].parent.parent.name == "families"]


@pytest.mark.parametrize("name", TESTED)
def test_same_numbers_and_a_twin_that_differs(name: str) -> None:
    assert worst(name, imported(name)[1]) < BOUND
    assert worst(name, CanonicalModel(changed(canonicalise(CELLS[name], CONTEXT).model)), few=True) > BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
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
    twin = [tvm.runtime.tensor(w.numpy() * np.float32(1.01)) if i == vector else w for i, w in enumerate(weights)]
    actual = {n: x for n, x in outputs(feed, twin).items() if n in expected}
    assert worst_difference(actual, expected, feed["attention_mask"], past) > RELAX_BOUND


def _one_element_off(vector: np.ndarray) -> np.ndarray:
    """Not all of it: Gemma normalises before and after a block, so a common factor is lost again."""
    twin = np.array(vector)
    twin[0] *= 1.5
    return twin


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_for_this_host(name: str) -> None:
    decoder, _, reference = imported(name)
    ids = np.random.default_rng(1).integers(0, decoder.facts.vocab, 14).tolist()
    cache = Cache()
    expected = np.concatenate([reference.forward(ids[:5], cache), reference.forward(ids[5:], cache)])
    tile, context = cpu_tile(CORE), CONTEXT
    lowered = lower_decoder_for_cpu(decoder, tile, context, (1, 3, 5), 8)
    vm = relax.VirtualMachine(relax.build(lowered.mod, tvm_target(CORE)), tvm.cpu())
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
    twin = [_one_element_off(a) if i == vector else a for i, a in enumerate(packed)]
    assert np.abs(logits([5, 5, 3, 1], twin) - expected).max() / scale > RELAX_BOUND


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_node_and_reason(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        canonicalise(CELLS[name], CONTEXT)
    assert "\n" not in str(caught.value)


def test_longrope_is_refused_beyond_its_switch() -> None:
    path = CELLS["phi3-longrope-dynamo-fp32"]
    assert canonicalise(path, 64).facts.context == 64  # the length up to which the short factors hold
    with pytest.raises(UserError, match=r"LongRoPE.*choose a --context within"):
        canonicalise(path, 65)


def row(name: str) -> str:
    path = CELLS[name]
    try:
        decoder = canonicalise(path, CONTEXT)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ").replace("|", "/")[:300]
        return f"| {name} | | | | | refused: {reason} |"
    facts = decoder.facts
    rope = "learned" if facts.rope is None else facts.rope.positions
    window = str(facts.window or "none")
    added = next(entry.matched for entry in decoder.log if entry.name == "add_cache")
    cached = "pass; the import adds the cache" if added else "pass"
    limits = "" if facts.many_tokens_after_past else "; the export itself takes one token after a past"
    return f"| {name} | {facts.family} | {facts.weight_dtype} | {window} | {facts.padding}, {rope} | {cached}{limits} |"


def table() -> str:
    head = [
        "# What the importer reads",
        "",
        "Made by `PYTHONPATH=. python tests/passes/import_onnx/test_coverage.py`. The same file holds the tests:",
        "all outputs against onnxruntime at several lengths, paddings and batches, through the canonical model",
        "and, for tests/data/families, through the reference bodies of the Relax operators; some are compiled.",
        "Names are family-exporter-precision; dynamo is opset 18 unless the name says otherwise. The second",
        "column is the family that the importer recognises.",
        "",
        "| export | family | weights | window | padding, positions | result |",
        "|---|---|---|---|---|---|",
    ]
    unable = [
        f"| {name} | | | | | n/a, the exporter says: {e.replace('|', '/')} |" for name, e in CANNOT_EXPORT.items()
    ]
    return "\n".join([*head, *map(row, sorted(CELLS)), *unable, ""])


@pytest.mark.slow
def test_table_is_up_to_date() -> None:
    assert TABLE.read_text() == table(), "run: PYTHONPATH=. python tests/passes/import_onnx/test_coverage.py"


if __name__ == "__main__":
    TABLE.write_text(table())
