from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.decoder import DecoderSpec
from costmodel.factors import Factors
from costmodel.format import Format
from costmodel.model_costs import ModelCosts
from costmodel.place import Part, Place
from costmodel.placement import Placement, Segment
from costmodel.processor import CpuSlice, GpuSlice, Processor, processors
from costmodel.processor_pairs import disjoint, with_enqueuing_core
from costmodel.question import NGRAM, Question, Variant
from costmodel.roofline import Roofline
from costmodel.schema.plan import OVERLAPPED, SEQUENTIAL, TARGET_ONLY
from costmodel.search import Search
from costmodel.standard_decoder import Blocks, standard_decoder
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError

INT4 = Format("int4", 32, "float16")


def every_placement(board: Board, units: int) -> Iterator[Placement]:
    """At most two borders; each segment on any slice; neighbours on different kinds of processor."""
    slices = processors(board)
    for cuts in [(), *((i,) for i in range(1, units)), *((i, j) for i in range(1, units) for j in range(i + 1, units))]:
        edges = [0, *cuts, units]
        for chosen in product(slices, repeat=len(edges) - 1):
            if all(a.family != b.family for a, b in pairwise(chosen)):
                yield Placement(tuple(Segment(p, edges[i], edges[i + 1]) for i, p in enumerate(chosen)))


def cores_of(*placements: Placement | None) -> set[str]:
    """Slices of the CPU that are used."""
    parts = [s.processor for p in placements if p is not None for s in p.segments]
    return {p.name for p in parts if isinstance(p, CpuSlice)}


def brute_force(search: Search) -> Iterator[Variant]:
    """Everything that may run, priced one by one."""
    q = search.question
    for target in q.targets:
        placements = list(every_placement(q.board, len(target.units)))
        for placement in placements:
            if not q.one_process or len(cores_of(placement)) <= 1:
                yield search.price(TARGET_ONLY, target, placement)
        if q.ngram_alpha is not None and not q.one_process:
            for gamma, placement in product(range(1, q.most_gamma + 1), placements):
                yield search.price(NGRAM, target, placement, gamma=gamma)
        for draft in q.drafts:
            drafters = list(every_placement(q.board, len(draft.units)))
            for gamma, placement, drafter in product(range(1, q.most_gamma + 1), placements, drafters):
                if not q.one_process or len(cores_of(placement, drafter)) <= 1:
                    yield search.price(SEQUENTIAL, target, placement, draft, drafter, gamma)
                if placement.whole and drafter.whole:
                    for pair in enqueued(q.board, placement.segments[0].processor, drafter.segments[0].processor):
                        here, there = search.costs(target).whole(pair[0]), search.costs(draft).whole(pair[1])
                        yield search.price(OVERLAPPED, target, here, draft, there, gamma)


def enqueued(board: Board, here: Processor, there: Processor) -> Iterator[tuple[Processor, Processor]]:
    """Both at the same time, the GPU's kernels from every cluster that has a core to spare."""
    if isinstance(here, CpuSlice) and isinstance(there, CpuSlice):
        if not set(here.cores) & set(there.cores):  # not two groups of cores of one cluster
            yield here, there
    elif disjoint(here, there):
        for cluster in board.clusters:
            if here.cores.get(cluster.name, 0) + there.cores.get(cluster.name, 0) < cluster.count:
                hosted = [replace(p, host=cluster) if isinstance(p, GpuSlice) else p for p in (here, there)]
                yield hosted[0], hosted[1]


def small_board(board: Board, gpu_launch_s: float, capacity: int) -> Board:
    """Two clusters of at most two cores and the GPU, with a launch cost that makes borders pay or not."""
    assert board.gpu is not None
    rates = ((12.4, 20.0), (5.0, 10.0))
    clusters = tuple(
        replace(
            c,
            count=2 - i,
            cpu_ids=c.cpu_ids[: 2 - i],
            bandwidth_one_thread_gb_per_s=rates[i][0],
            bandwidth_all_threads_gb_per_s=rates[i][1],
            bandwidth_one_thread_rate="read",
            bandwidth_all_threads_rate="read",
        )
        for i, c in enumerate(board.clusters)
    )
    dram = replace(board.dram, capacity_bytes=capacity, reserved_bytes=0)
    return replace(board, clusters=clusters, gpu=replace(board.gpu, launch_overhead_s=gpu_launch_s), dram=dram)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    alpha=st.floats(0.1, 1.0),
    launch=st.sampled_from([0.0, 1e-6, 1e-4]),
    wide=st.booleans(),
    spare=st.floats(0.0, 2.5),
    ngram=st.booleans(),
    one_process=st.booleans(),
)
def test_equals_brute_force(
    make_decoder: Any,
    rk3588: Board,
    alpha: float,
    launch: float,
    wide: bool,
    spare: float,
    ngram: bool,
    one_process: bool,
) -> None:
    target = make_decoder("target", 1024 if wide else 256, 2, 4, 2, 64, 2048, 20_000, INT4 if wide else None)
    target = with_half_head(target) if wide else target
    draft = make_decoder("draft", 256, 1, 4, 2, 64, 512, 20_000, INT4)
    need = 150_000_000 + int((1.1 + spare) * (target.weight_bytes + draft.weight_bytes)) + 20_000_000
    board = small_board(rk3588, launch, need)
    question = Question(board, (target,), (draft,), alpha, 64, most_gamma=2, ngram_alpha=0.3 if ngram else None)
    question = replace(question, ngram_match=0.6)
    question = replace(question, one_process=one_process)
    search = Search(question)
    fitting = [v for v in brute_force(search) if v.memory.total_bytes <= search.free_bytes]
    assert search.decide().best.tokens_per_s == pytest.approx(max(v.tokens_per_s for v in fitting), rel=1e-9)


def with_half_head(shape: DecoderSpec) -> DecoderSpec:
    """A head and an embedding of float16: a border beside the head can pay."""
    half = Format("float16")
    matrices = (shape.embedding, shape.head)
    return replace(shape, operators=tuple(replace(op, format=half) if op in matrices else op for op in shape.operators))


@pytest.mark.parametrize("one_process", [False, True])
def test_brute_force_sees_borders_win(make_decoder: Any, rk3588: Board, one_process: bool) -> None:
    """The comparison above would be empty if borders never paid; without room for the table twice, not that border."""
    target = with_half_head(make_decoder("target", 1024, 4, 4, 2, 64, 4096, 20_000, INT4))

    def best(room: int) -> Variant:
        board = small_board(rk3588, 1e-6, room)
        return Search(Question(board, (target,), (), 0.8, 64, one_process=one_process)).decide().best

    free = best(1 << 32)
    assert free.target_placement.families == ("gpu", "a76")
    need = free.memory.total_bytes
    assert best(need).target_placement == free.target_placement
    families = best(need - 1).target_placement.families
    assert (families[0] == "gpu") == (families[-1] == "gpu")


def test_one_process_costs_what_the_other_cores_would_gain(published: Any, rk3588: Board) -> None:
    target, draft = published["Llama-3.2-3B"](INT4), published["Llama-3.2-1B"](INT4)
    question = Question(replace(rk3588, gpu=None), (target,), (draft,), alpha=0.95, overlapped=False)
    free, bound = (Search(replace(question, one_process=one)).decide() for one in (False, True))
    assert bound.best.tokens_per_s <= free.best.tokens_per_s
    used = {
        cores for v in bound.leading for cores in [cores_of(v.target_placement, v.draft_placement)] if len(cores) > 1
    }
    assert not used
    assert any(len(cores_of(v.target_placement, v.draft_placement)) > 1 for v in free.leading)


def test_what_is_given_is_kept(published: Any, rk3588: Board) -> None:
    target, draft = published["Llama-3.2-3B"](INT4), published["Llama-3.2-1B"](INT4)
    question = Question(rk3588, (target,), (draft,), one_process=True)
    free = Search(question).decide().best
    five = Search(replace(question, gamma=5)).decide()
    assert {v.gamma for v in five.leading} == {5}
    alone = Search(replace(question, gamma=0)).decide()
    assert {v.mode for v in alone.leading} == {TARGET_ONLY}
    rule = Place.parse("gpu:4-11")
    split = Search(replace(question, target_place=rule, draft_place=Place("cpu"))).decide().best
    assert split.target_placement.place(target) == rule
    assert split.draft_placement is not None
    assert split.draft_placement.place(draft) == Place("cpu")
    assert max(five.best.tokens_per_s, alone.best.tokens_per_s, split.tokens_per_s) <= free.tokens_per_s
    with pytest.raises(UserError, match="there is no layer 28"):
        Search(replace(question, target_place=Place.parse("gpu:28"))).decide()
    with pytest.raises(UserError, match=r"^placement npu: the cost model cannot price 'npu', only cpu and gpu$"):
        Search(replace(question, target_place=Place("npu"))).decide()


@pytest.mark.parametrize("rule", ["cpu", "gpu", "gpu:0-3", "gpu:embedding", "cpu:5-head", "cpu:head", "gpu:3-27"])
def test_rules_of_placements_come_back(published: Any, rk3588: Board, rule: str) -> None:
    shape = published["Llama-3.2-3B"](INT4)
    costs = Search(Question(rk3588, (shape,))).costs(shape)
    cores, gpu = processors(rk3588)[0], processors(rk3588)[-1]
    placement = costs.placed(Place.parse(rule), cores, gpu)
    found = placement.place(shape)
    assert all(found.of(Part("ffn", i), 28) == Place.parse(rule).of(Part("ffn", i), 28) for i in range(28))
    assert all(found.of(Part(k), 28) == Place.parse(rule).of(Part(k), 28) for k in ("embedding", "head"))


def test_a_rule_by_kind_is_priced_by_its_parts(published: Any, rk3588: Board) -> None:
    shape = published["Llama-3.2-1B"](INT4)
    costs = Search(Question(rk3588, (shape,))).costs(shape)
    cores, gpu = processors(rk3588)[3], processors(rk3588)[-1]
    ffn, attention = (costs.placed(Place.parse(f"gpu:{kind}"), cores, gpu) for kind in ("ffn", "attention"))
    both = costs.step(ffn, 4) + costs.step(attention, 4)
    alone = [costs.step(costs.whole(p), 4) for p in (cores, gpu)]
    # each part is once on either side; embedding and head are twice on the CPU and never on the GPU
    ends = [costs.units(p, 4)[i].total_s for p in (cores, gpu) for i in (0, -1)]
    calls = [costs.roofline.step_overhead(p).total_s for p in (cores, gpu)]
    parts = sum(e.total_s for e in alone) - sum(calls) + sum(ends[:2]) - sum(ends[2:])
    assert both.total_s == pytest.approx(parts + calls[0] * (17 + 17) + calls[1] * (16 + 16), rel=1e-9)
    ffn_bytes, attention_bytes = (p.weight_bytes(shape) for p in (ffn, attention))
    assert ffn_bytes[1] + attention_bytes[1] == sum(shape.unit_bytes[1:-1])
    assert ffn_bytes[1] == 16 * (3 * INT4.nbytes(2048, 8192) + 4 * 2048)
    assert sum(ffn_bytes) == shape.weight_bytes
    assert ffn.text(shape) == "a76 x4: attention of every layer; gpu: ffn of every layer"


def pair(published: Any, weights: Format | None = None) -> tuple[DecoderSpec, DecoderSpec]:
    return published["Llama-3.2-3B"](weights), published["Llama-3.2-1B"](weights)


def test_deterministic_and_fast_for_a_large_pair(published: Any, rk3588: Board) -> None:
    target, draft = pair(published, Format("int4", 32, "float16"))
    start = time.process_time()
    first = Search(Question(rk3588, (target,), (draft,))).decide()
    elapsed = time.process_time() - start
    assert elapsed < 2.0
    again = Search(Question(rk3588, (target,), (draft,))).decide()
    assert first == again


def test_leading_variants_are_ranked_and_every_one_has_a_reason(published: Any, imx95: Board) -> None:
    target, draft = pair(published)
    decision = Search(Question(imx95, (target,), (draft,))).decide()
    speeds = [v.tokens_per_s for v in decision.leading]
    assert speeds == sorted(speeds, reverse=True)
    assert all(v.reason for v in (*decision.leading, *decision.not_fitting))
    assert decision.best.reason.startswith("chosen")
    assert {v.mode for v in decision.leading} == {TARGET_ONLY, SEQUENTIAL, OVERLAPPED}
    assert decision.baseline.mode == TARGET_ONLY
    assert decision.baseline.against_best in (0.0, 1.0)


def test_speculation_does_not_pay_when_nothing_is_accepted(published: Any, imx95: Board) -> None:
    target, draft = pair(published)
    best = Search(Question(imx95, (target,), (draft,), alpha=0.0)).decide().best
    assert best.mode == TARGET_ONLY
    assert best.against_best == pytest.approx(1.0)


def test_the_gain_rises_with_acceptance(published: Any, imx95: Board) -> None:
    target, draft = pair(published)
    speeds = [
        Search(Question(imx95, (target,), (draft,), alpha=a)).decide().best.tokens_per_s for a in (0.0, 0.6, 0.8, 0.95)
    ]
    assert speeds == sorted(speeds)
    assert speeds[-1] > 1.2 * speeds[0]


def test_memory_refuses_with_the_number(published: Any, rk3588: Board) -> None:
    target, draft = pair(published, Format())
    with pytest.raises(
        UserError, match=r"Llama-3.2-3B fits no memory of board rk3588: it needs at least 13.* GB, 7.52 GB"
    ):
        Search(Question(rk3588, (target,), (draft,))).decide()


def test_a_drafter_that_does_not_fit_is_named(published: Any, rk3588: Board) -> None:
    target, draft = pair(published)
    decision = Search(Question(rk3588, (target,), (draft,))).decide()
    assert decision.best.mode == TARGET_ONLY
    assert all("7.52 GB are free" in v.reason for v in decision.not_fitting)
    assert any(v.mode == SEQUENTIAL for v in decision.not_fitting)


def test_quantisation_at_hand_is_chosen_by_speed(published: Any, rk3588: Board) -> None:
    half, four = published["Llama-3.2-1B"](), published["Llama-3.2-1B"](Format("int4", 32, "float16"))
    decision = Search(Question(rk3588, (half, four))).decide()
    assert decision.best.target is four  # the GPU reads a quarter of the bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.2}, "acceptance 1.2 is not a probability"),
        ({"alpha": [0.5, -0.1]}, "acceptance -0.1"),
        ({"alpha": []}, "no positions"),
        ({"context": 0}, "a context of 0 tokens"),
        ({"most_gamma": 17}, "gamma up to 17"),
    ],
)
def test_impossible_questions_are_refused(published: Any, imx95: Board, change: dict[str, Any], message: str) -> None:
    target, draft = pair(published)
    with pytest.raises(UserError, match=message):
        Search(Question(imx95, (target,), (draft,), **change))


def test_vocabularies_that_differ_are_refused(published: Any, imx95: Board) -> None:
    with pytest.raises(UserError, match=r"128256 token ids.* 49152"):
        Search(Question(imx95, (published["Llama-3.2-1B"](),), (published["SmolLM2-135M"](),)))


def test_overlap_needs_cores_of_its_own(rk3588: Board) -> None:
    slices = {p.name: p for p in processors(rk3588)}
    assert disjoint(slices["a76 x2"], slices["a76 x2"])
    assert not disjoint(slices["a76 x3"], slices["a76 x2"])
    assert disjoint(slices["a76 x4"], slices["a55 x4"])
    assert disjoint(slices["a76 x4"], slices["gpu"])
    assert not disjoint(slices["gpu"], slices["gpu"])


def test_weights_count_where_they_are_read(published: Any, rk3588: Board) -> None:
    shape = published["Llama-3.2-1B"]()
    table, total = 128256 * 2048 * 2, shape.weight_bytes
    cpu, gpu = processors(rk3588)[0], processors(rk3588)[-1]
    whole = Placement((Segment(gpu, 0, 18),))
    assert whole.weight_bytes(shape) == (0, total)
    head = Placement((Segment(cpu, 0, 17), Segment(gpu, 17, 18)))
    assert head.weight_bytes(shape) == (total - shape.unit_bytes[-1] + table, shape.unit_bytes[-1])
    embedding = Placement((Segment(gpu, 0, 1), Segment(cpu, 1, 18)))
    assert embedding.weight_bytes(shape) == (total, table)
    both_ends = Placement((Segment(gpu, 0, 1), Segment(cpu, 1, 17), Segment(gpu, 17, 18)))
    assert both_ends.weight_bytes(shape) == (sum(shape.unit_bytes[1:17]), shape.unit_bytes[-1])


def test_factors_change_the_answer(published: Any, rk3588: Board) -> None:
    target = published["Llama-3.2-1B"](Format("int4", 32, "float16"))
    fast, slow = (Search(Question(rk3588, (target,), factors=Factors(gpu_compute=c))).decide() for c in (0.5, 0.01))
    assert fast.best.target_placement.families == ("gpu",)
    assert slow.best.target_placement.families == ("a76",)


def test_a_thread_that_enqueues_needs_a_core(published: Any) -> None:
    """On imx95 the drafter beside a target on the GPU gets five of the six cores."""
    board = load_board("imx95")
    (a55,) = board.clusters
    assert board.gpu is not None
    gpu = GpuSlice(board.gpu, a55)
    assert with_enqueuing_core(board, gpu, CpuSlice(((a55, 6),))) is None
    five = CpuSlice(((a55, 5),))
    assert with_enqueuing_core(board, gpu, five) == (gpu, five)
    one, all_six = CpuSlice(((a55, 1),)), CpuSlice(((a55, 6),))
    assert with_enqueuing_core(board, five, one) == (five, one)  # without a GPU no core has to be left
    assert with_enqueuing_core(board, all_six, all_six) == (all_six, all_six)  # `disjoint` refuses these, not this
    assert disjoint(gpu, all_six)
    assert not disjoint(all_six, one)
    two_clusters = load_board("rk3588")
    a76, little = two_clusters.clusters
    assert two_clusters.gpu is not None
    found = with_enqueuing_core(two_clusters, GpuSlice(two_clusters.gpu, a76), CpuSlice(((a76, 4),)))
    assert found is not None
    assert found[0] == GpuSlice(two_clusters.gpu, little)
    question = Question(board, (published["Llama-3.2-3B"](),), (published["Llama-3.2-1B"](),), 0.9)
    leading = Search(question).decide().leading
    on_gpu = [v for v in leading if v.mode == OVERLAPPED and v.target_placement.families == ("gpu",)]
    assert on_gpu
    assert {v.draft_placement.segments[0].processor.name for v in on_gpu if v.draft_placement} <= {
        f"a55 x{n}" for n in range(1, 6)
    }


def test_a_chunk_of_a_prompt_needs_the_head_for_one_row(published: Any) -> None:
    board, spec = load_board("imx95"), published["SmolLM2-135M"]()
    costs = ModelCosts(Roofline(board), spec, 64)
    whole = costs.whole(CpuSlice(((board.clusters[0], 6),)))
    found = costs.prompt_chunk_s(whole, 32)
    assert found == pytest.approx(costs.roofline.prompt(spec, whole.segments[0].processor, 32, 64, 32).total_s)
    assert found < 0.9 * costs.step_s(whole, 32)  # the negative control: the head for all 32 rows
    both = costs.roofline.prompt(spec, whole.segments[0].processor, 64, 64, 32).total_s
    after = ModelCosts(costs.roofline, spec, 96).prompt_chunk_s(whole, 32)
    assert costs.prompt_chunk_s(whole, 32, fills=True) + after == pytest.approx(both)


def test_a_chunk_without_results_runs_up_to_the_last_attention(published: Any) -> None:
    """What follows on other processors has no part in it, and no border is crossed to it."""
    board, spec = load_board("imx95"), published["SmolLM2-135M"]()
    costs = ModelCosts(Roofline(board), spec, 64)
    assert board.gpu is not None
    cores, gpu = CpuSlice(((board.clusters[0], 6),)), GpuSlice(board.gpu, board.clusters[0])
    placement = costs.placed(Place.parse("gpu:ffn"), cores, gpu)
    ran = placement.segments[:-2]  # all but the last FFN and the head
    assert (ran[-1].part, len(placement.segments)) == ("attention", 2 * spec.layers + 2)
    units = sum(u.total_s for s in ran for u in costs.segment_units(s, 32, 0))
    calls = sum(costs.roofline.step_overhead(s.processor).total_s for s in ran[1:])  # the first two are one call
    borders = sum(costs.roofline.border(a.processor, b.processor, 32 * spec.hidden).total_s for a, b in pairwise(ran))
    fills = costs.step(placement, 32, 0).total_s
    assert fills == pytest.approx(units + calls + borders)
    assert fills < costs.prompt_chunk_s(placement, 32) < costs.step_s(placement, 32)


def test_other_factors_share_what_they_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prices as a search of its own, and no kernel's cycles or step's operators are counted again."""
    from costmodel import model_costs, roofline

    target = standard_decoder("target", Blocks(256, 4, 2, 64, 704, 1000), [0] * 4, tied=True)
    question = Question(load_board("imx95"), (target,), one_process=True)
    search = Search(question)
    search.decide()
    factors = replace(question.factors, bandwidth=0.5, compute=2.0, gpu_dispatch=0.9)
    expected = Search(replace(question, factors=factors)).decide()

    def again(*_: Any) -> Any:
        raise AssertionError("counted again")

    with monkeypatch.context() as patched:
        patched.setattr(roofline, "kernel_cycles", again)
        patched.setattr(model_costs, "step_units", again)
        found = search.with_factors(factors).decide()
        with pytest.raises(AssertionError, match="counted again"):  # the negative control
            Search(question).decide()
    assert [(v.mode, v.gamma, v.tokens_per_s) for v in found.leading] == [
        (v.mode, v.gamma, v.tokens_per_s) for v in expected.leading
    ]
    assert found.best.tokens_per_s != search.decide().best.tokens_per_s
