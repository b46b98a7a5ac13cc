"""First layers as a drafter: what they cost by hand, and whom they draft for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from costmodel.early_exit import first_cuts, first_layers, placed_with
from costmodel.format import F32, Format
from costmodel.place import Place
from costmodel.placement import Placement, Segment
from costmodel.question import Question
from costmodel.schema.plan import OVERLAPPED, SEQUENTIAL, TARGET_ONLY
from costmodel.search import Search
from costmodel.work import step_ops
from targets.errors import UserError

LAYERS = 3


def test_bytes_and_parameters_by_hand(published: Any) -> None:
    whole = published["SmolLM2-135M"]()
    short = first_layers(whole, LAYERS)
    hidden, kv, ffn, vocab = 576, 3 * 64, 1536, 49152
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    assert short.weight_bytes == 2 * (vocab * hidden + LAYERS * layer) + F32 * (2 * LAYERS + 1) * hidden
    assert short.kv_bytes(100) == LAYERS * 2 * kv * F32 * 100
    assert short.layers == LAYERS
    assert short.name == "SmolLM2-135M, first 3 of 30 layers"
    assert whole.weight_bytes - short.weight_bytes == 27 * (2 * layer + F32 * 2 * hidden)


def test_a_step_takes_what_its_layers_and_the_head_take(published: Any, rk3588: Any) -> None:
    whole = published["SmolLM2-135M"]()
    search = Search(Question(rk3588, (whole,), (first_layers(whole, LAYERS),), one_process=True))
    (short,) = search.question.drafts
    for cores in search.costs(whole).slices[:3]:
        here, there = search.costs(whole).whole(cores), search.costs(short).whole(cores)
        first, *layers, head = search.costs(whole).units(cores, 1)
        parts = (first, *layers[:LAYERS], head)
        by_hand = sum(unit.total_s for unit in parts) + search.roofline.step_overhead(cores).total_s
        priced = search.price(SEQUENTIAL, whole, here, short, there, 2, alpha=0.0).round
        assert priced.draft_s == pytest.approx(2 * by_hand)
        # the head has as many weights as 8 layers, which have norms and attention beside them
        assert search.costs(whole).step_s(here, 1) / by_hand == pytest.approx((30 + 8) / (LAYERS + 8), rel=0.12)


@pytest.mark.parametrize("layers", [1, 3, 29])
def test_what_an_exits_step_counts_and_takes_by_hand(published: Any, rk3588: Any, layers: int) -> None:
    """Its layers' matrices, the head and attention; float16 weights and float32 keys and values come from DRAM.

    29 of 30 layers pay for nobody, and are priced as right as one.
    """
    short, past = first_layers(published["SmolLM2-135M"](), layers), 256
    hidden, kv, ffn, vocab = 576, 3 * 64, 1536, 49152
    matrices = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn) + hidden * vocab
    ops = step_ops(short, 1, past)
    assert sum(op.flops for op in ops if op.kind == "linear") == 2 * matrices
    assert sum(op.flops for op in ops if op.kind == "attention") == layers * 2 * 2 * hidden * (past + 1)
    streamed = 2 * matrices + F32 * layers * 2 * kv * (past + 1)
    assert sum(op.stream_bytes for op in ops) == pytest.approx(streamed, rel=2e-3)
    search = Search(Question(rk3588, (short,)))
    four = next(s for s in search.costs(short).slices if s.name == "a76 x4")
    step = search.roofline.step(short, four, 1, past)
    rate = 1e9 * rk3588.clusters[0].bandwidth_all_threads_gb_per_s
    assert step.memory_s == pytest.approx(streamed / rate, rel=5e-3)
    whole = streamed + 2 * (hidden * hidden + 3 * hidden * ffn)  # the negative control: not as much as one more layer
    assert step.memory_s != pytest.approx(whole / rate, rel=5e-3)


def test_its_weights_are_in_memory_once(published: Any, rk3588: Any) -> None:
    whole = published["SmolLM2-135M"]()
    short = first_layers(whole, LAYERS)
    search = Search(Question(rk3588, (whole,), (short,), one_process=True))
    cores = search.costs(whole).slices[0]
    own = search.model_memory(short, search.costs(short).whole(cores))
    assert (own.mapped_bytes, own.gpu_bytes) == (0, 0)
    assert own.kv_bytes == 0
    assert search.model_memory(short, search.costs(short).whole(cores), OVERLAPPED).kv_bytes == short.kv_bytes(512)
    copied = search.model_memory(replace(short, whole=None), search.costs(short).whole(cores))
    assert copied.mapped_bytes == short.weight_bytes


def test_after_full_acceptance_it_is_fed_one_token(published: Any, rk3588: Any) -> None:
    """And a draft model two: its own last token was not read."""
    whole = published["SmolLM2-135M"]()
    short = first_layers(whole, LAYERS)
    other = replace(short, whole=None)
    search = Search(Question(rk3588, (whole,), (short,), one_process=True))
    cores = search.costs(whole).slices[0]
    here, there = search.costs(whole).whole(cores), search.costs(short).whole(cores)
    accepted = {spec.whole is None: search.price(SEQUENTIAL, whole, here, spec, there, 2, alpha=1.0) for spec in
                (short, other)}  # fmt: skip
    one, two = (search.costs(short).step_s(there, n) for n in (1, 2))
    assert accepted[False].round.draft_s == pytest.approx(2 * one)
    assert accepted[True].round.draft_s == pytest.approx(one + two)


def test_it_is_chosen_where_it_pays_and_only_there(published: Any, rk3588: Any) -> None:
    whole = published["SmolLM2-135M"]()
    pair = Question(rk3588, (whole,), (first_layers(whole, LAYERS),), one_process=True)
    assert Search(replace(pair, alpha=0.9)).decide().best.mode != TARGET_ONLY
    assert Search(replace(pair, alpha=0.1)).decide().best.mode == TARGET_ONLY


def test_it_runs_where_its_layers_are(published: Any, rk3588: Any) -> None:
    whole = published["SmolLM2-135M"]()
    short = first_layers(whole, LAYERS)
    for one_process in (True, False):
        question = Question(rk3588, (whole,), (short,), alpha=0.9, one_process=one_process, most_gamma=2)
        turns = [v for v in Search(question).decide().leading if v.mode == SEQUENTIAL]
        assert {v.target_placement.families for v in turns} > {("gpu",)}
        assert all(v.draft_placement == placed_with(v.target_placement, whole, short) for v in turns)
        other = Search(replace(question, drafts=(replace(short, whole=None),))).decide().leading
        apart = [v for v in other if v.mode == SEQUENTIAL and v.draft_placement is not None]
        assert any(v.draft_placement != placed_with(v.target_placement, whole, short) for v in apart)
    for rule, draft in (("gpu", "gpu"), ("gpu:20-head", "gpu:head"), ("gpu:1-9", "gpu:1-2"), ("gpu:9", "cpu")):
        best = Search(replace(question, target_place=Place.parse(rule), gamma=2)).decide().best
        assert best.draft_placement is not None
        assert (best.target_placement.place(whole).text, best.draft_placement.place(short).text) == (rule, draft)
    with pytest.raises(UserError, match="placement draft=gpu: an early exit runs where the target's layers do"):
        Search(replace(question, draft_place=Place("gpu")))


@pytest.mark.parametrize(("launch_s", "rate"), [(0.0, 3.0), (1e-5, 1.0), (1e-4, 9.0)])
def test_the_best_borders_of_both_are_found(published: Any, rk3588: Any, launch_s: float, rate: float) -> None:
    """Against every way to cut the target, the first layers following."""
    whole = published["SmolLM2-135M"]()
    short = first_layers(whole, 20)
    gpu = replace(rk3588.gpu, launch_overhead_s=launch_s, bandwidth_gb_per_s=rate)
    question = Question(replace(rk3588, gpu=gpu), (whole,), (short,), alpha=0.9, one_process=True, gamma=3)
    search = Search(question)
    found = max(v.tokens_per_s for v in search.decide().leading if v.mode == SEQUENTIAL)
    best = 0.0
    for group in search.groups():
        for here, there in (group, group[::-1]):
            for i in range(1, len(whole.units) + 1):
                for j in range(i, len(whole.units) + 1):
                    cuts = ((here, 0, i), (there, i, j), (here, j, len(whole.units)))
                    where = Placement(tuple(Segment(*cut) for cut in cuts if cut[1] < cut[2]))
                    priced = search.price(SEQUENTIAL, whole, where, short, placed_with(where, whole, short), 3)
                    best = max(best, priced.tokens_per_s)
    assert found == pytest.approx(best, rel=1e-9)


def test_cuts_of_first_layers() -> None:
    """Of embedding, four layers and head; the first layers are two."""
    for whole, short in (
        ([("a", 0, 6)], [("a", 0, 4)]),
        ([("a", 0, 2), ("b", 2, 6)], [("a", 0, 2), ("b", 2, 4)]),
        ([("a", 0, 4), ("b", 4, 6)], [("a", 0, 3), ("b", 3, 4)]),
        ([("a", 0, 2), ("b", 2, 4), ("a", 4, 6)], [("a", 0, 2), ("b", 2, 3), ("a", 3, 4)]),
        ([("a", 0, 3), ("b", 3, 5), ("a", 5, 6)], [("a", 0, 4)]),
    ):
        assert first_cuts(whole, 6, 4) == short


def test_it_drafts_for_its_own_decoder_alone(published: Any, rk3588: Any) -> None:
    targets = tuple(published["SmolLM2-135M"](weights) for weights in (None, Format("int4", 32, "float16")))
    drafts = tuple(first_layers(target, LAYERS) for target in targets)
    found = Search(Question(rk3588, targets, drafts, alpha=0.9, one_process=True, most_gamma=2)).decide()
    pairs = {(targets.index(v.target), drafts.index(v.draft)) for v in found.leading if v.draft is not None}
    assert pairs == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "an early exit after layer 0: Qwen3-0.6B has 28 layers; give 1 to 27"),
        (28, "an early exit after layer 28: Qwen3-0.6B has 28 layers; give 1 to 27"),
    ],
)
def test_layers_that_are_not_there_are_refused(published: Any, layers: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        first_layers(published["Qwen3-0.6B"](), layers)


@pytest.mark.parametrize(
    ("layers", "message"), [(1, "has one layer, which leaves none out"), (2, "has 2 layers; give 1$")]
)
def test_small_decoders_have_few_exits(make_decoder: Any, layers: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        first_layers(make_decoder("small", 64, layers, 4, 2, 16, 96, 50), layers)
