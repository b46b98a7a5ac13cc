"""Nothing depends on the order that nodes have in the file: every export, shuffled, is the same decoder."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from unpack_families import one_of_its_kind, unpack_families

from passes.analysis.count_work import count_work
from passes.onnx import canonicalise
from passes.onnx.rewrite.sort_nodes import sort_nodes
from passes.onnx.testing import CanonicalModel, case, lines
from targets.errors import UserError
from tests.support.quantised_exports import quantised_exports

DATA = Path(__file__).parents[2] / "data"
EXPORTS = {
    p.parent.name if p.name == "model.onnx" else p.stem: p
    for p in sorted(
        [
            *(DATA / "exports").glob("*/model.onnx"),
            *unpack_families(DATA).glob("*/model.onnx"),
            *unpack_families(DATA, "cases").glob("*/model.onnx"),
            *(DATA / "dialects").glob("*.onnx"),
            *quantised_exports().glob("*/model.onnx"),
        ]
    )
    if not one_of_its_kind(p.parent.name) or p.parent.name in ("gpt-neox-dynamo-fp32", "cohere-dynamo-fp32")
}
QUICK = ("nb-gpt2", "llama-dynamo-fp32", "qwen3-genai-int4", "phi3-packed", "g-gather-int4", "qwen2-ort-dynamic-uint8")
LOST_HEAD = ("llama-genai-int4-block128", "llama-genai-int4-kquant")
REFUSED = (
    "llama-ort-static-16-bit",
    "llama-ort-static-all-operators",
    "gemma2-genai-fp32",
    "mixtral-legacy17-fp32",
    "qwen2-genai-int4-asymmetric",
    *LOST_HEAD,
)
BY_SPEED = [n if n in QUICK else pytest.param(n, marks=pytest.mark.deep) for n in EXPORTS if n not in REFUSED]
CONTEXT = 32


def shuffled(source: Path, folder: Path, seed: int) -> Path:
    """The file with its nodes in another topological order, external weights beside it."""
    proto = onnx.load(source, load_external_data=False)
    rng, graph = random.Random(seed), proto.graph
    makers = {o: i for i, node in enumerate(graph.node) for o in node.output if o}
    needs = [{makers[v] for v in _reads(node) if v in makers} for node in graph.node]
    order, ready = list[int](), [i for i, need in enumerate(needs) if not need]
    users: dict[int, list[int]] = {}
    for i, need in enumerate(needs):
        for j in need:
            users.setdefault(j, []).append(i)
    while ready:
        order.append(ready.pop(rng.randrange(len(ready))))
        for user in users.get(order[-1], ()):
            needs[user].discard(order[-1])
            if not needs[user]:
                ready.append(user)
    nodes = [graph.node[i] for i in order]
    assert len(nodes) == len(graph.node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    folder.mkdir()
    for other in source.parent.glob("*.data"):
        shutil.copyfile(other, folder / other.name)
    path = folder / source.name
    path.write_bytes(proto.SerializeToString())
    return path


def _reads(node: Any) -> list[str]:
    """What a node and its subgraphs read."""
    inner = [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]
    return [
        *node.input,
        *(v for g in inner for n in g.node for v in _reads(n)),
        *(o.name for g in inner for o in g.output),
    ]


@pytest.mark.parametrize("name", BY_SPEED)
@pytest.mark.slow
def test_a_shuffled_export_is_the_same_decoder(name: str, tmp_path: Path) -> None:
    source = EXPORTS[name]
    expected = canonicalise(source, CONTEXT)
    counted, canonical = count_work(expected, ""), CanonicalModel(expected.model)
    feed = case(expected.facts, 1, 3, 5) if expected.facts.many_tokens_after_past else case(expected.facts, 1, 1, 5)
    answers = canonical.run(feed)
    for seed in range(3):
        actual = canonicalise(shuffled(source, tmp_path / str(seed), seed), CONTEXT)
        assert actual.facts == expected.facts
        assert count_work(actual, "") == counted
        assert lines(actual.model.graph) == lines(expected.model.graph)
    again = CanonicalModel(actual.model).run(feed)
    assert all(np.array_equal(answers[n], again[n]) for n in answers)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.slow
def test_a_shuffled_export_is_refused_for_the_same_reason(name: str, tmp_path: Path) -> None:
    def reason(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            canonicalise(path, CONTEXT)
        return str(caught.value).split(": ", 1)[1]

    expected = reason(EXPORTS[name])
    assert ("its logits come from inside a layer" in expected) == (name in LOST_HEAD)
    for seed in range(2):
        assert reason(shuffled(EXPORTS[name], tmp_path / str(seed), seed)) == expected


def test_the_shuffle_changes_the_order(tmp_path: Path) -> None:
    source = EXPORTS["nb-gpt2"]
    before = [n.name for n in onnx.load(source).graph.node]
    after = [n.name for n in onnx.load(shuffled(source, tmp_path / "0", 0)).graph.node]
    assert before != after
    assert sorted(before) == sorted(after)


def test_a_cycle_is_one() -> None:
    a, b = (ir.Value(name=n) for n in "ab")
    first, second = ir.node("Neg", [b], outputs=[a]), ir.node("Neg", [a], outputs=[b])
    with pytest.raises(ValueError, match="cycle"):
        sort_nodes(ir.Graph([], [b], nodes=[first, second]))
