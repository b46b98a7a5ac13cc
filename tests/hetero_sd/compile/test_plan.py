"""compile's plan is predict's search; what is given is kept and priced; the verdict has the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from costmodel.decoder import DecoderSpec
from costmodel.format import Format
from costmodel.model_costs import ModelCosts
from costmodel.processor import CpuSlice
from costmodel.question import Question, factors_of
from costmodel.roofline import Roofline
from costmodel.search import Search
from costmodel.standard_decoder import Blocks, standard_decoder
from costmodel.ties import TIE_SHARE
from costmodel.unmeasured_gpu import deciding
from hetero_sd.compile.context import whole_context
from hetero_sd.compile.plan import Overrides, make_plan
from hetero_sd.predict.inputs import AlphaFile
from hetero_sd.predict.sentences import rate
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.read_board import board_from_json


def shape(
    name: str, hidden: int, layers: int, heads: int, ffn: int, vocab: int = 128256, dtype: str = "int4"
) -> DecoderSpec:
    """A Llama with 8 KV heads."""
    weights = Format("int4", 32, "float16") if dtype == "int4" else Format(dtype)
    blocks = Blocks(hidden, heads, 8, hidden // heads, ffn, vocab, weights)
    return standard_decoder(name, blocks, [0] * layers, tied=True)


TARGET, DRAFT = shape("3B", 3072, 12, 24, 8192), shape("1B", 2048, 5, 32, 8192)
PAIR = {"target": TARGET, "draft": DRAFT}


def small(board: Board, capacity: int) -> Board:
    return replace(board, dram=replace(board.dram, capacity_bytes=capacity, reserved_bytes=0))


@pytest.mark.parametrize("board", ["rk3588", "imx95", "rpi5"])
def test_it_is_the_search_of_what_one_process_can_run(board: str) -> None:
    found = load_board(board)
    plan, prediction = make_plan(found, PAIR, 1024)
    question = Question(found, (TARGET,), (DRAFT,), 0.8, 512, factors_of(found), cache_rows=1024, one_process=True)
    best = Search(deciding(question)).decide().best
    assert (plan.mode, plan.gamma) == (best.mode, best.gamma)
    assert prediction.decision.best.tokens_per_s == best.tokens_per_s
    assert plan.prediction.tokens_per_s == pytest.approx(best.tokens_per_s, rel=0.02)  # widths are those compiled
    assert plan.variants[0].reason.startswith("chosen")
    assert [v.tokens_per_s for v in plan.variants[:3]] == sorted(
        (v.tokens_per_s for v in plan.variants[:3]), reverse=True
    )
    assert plan.given == ()
    assert best.gamma + 1 in plan.target_widths
    assert f"{best.tokens_per_s:.2f} tokens/s predicted" in plan.verdict
    assert best.memory.total_bytes <= plan.memory.total_bytes < plan.memory.free_bytes


def measured_gpu(board: Board) -> Board:
    """The board after a calibration that found of its GPU's kernels what was assumed."""
    fact = {"value": factors_of(board).gpu_bandwidth, "kind": "measured", "source": "a test"}
    return board_from_json({**board.to_json(), "factors": {"gpu_bandwidth": fact}})


def test_a_gpu_that_nobody_measured_is_left_out_and_the_option_that_takes_it_is_said() -> None:
    """What predict says to compile is what compile does; measured, or asked for, the same GPU is taken."""
    board, alone = load_board("rk3588"), {"target": shape("3B float16", 3072, 12, 24, 8192, dtype="float16")}
    plan, prediction = make_plan(board, alone, 256)
    assert plan.places["target"].place.text == "cpu"
    assert prediction.potential[0].tokens_per_s > prediction.decision.best.tokens_per_s
    left_out = "Left out, because no kernel of a model was measured on this board's GPU: 3B float16 on gpu (predicted) "
    assert left_out in plan.verdict
    assert f"alone, {rate(prediction.potential[0].tokens_per_s)} tokens/s (" in plan.verdict
    assert plan.verdict.count("--place target=gpu takes it.") == 1
    asked, _ = make_plan(board, alone, 256, Overrides(place="target=gpu"))
    measured, _ = make_plan(measured_gpu(board), alone, 256)
    for other in (asked, measured):
        assert other.places["target"].place.text == "gpu"
        assert "Left out" not in other.verdict
    assert "Left out" not in make_plan(load_board("rpi5"), alone, 256)[0].verdict  # it has no GPU
    slower, prediction = make_plan(load_board("imx95"), PAIR, 256)
    assert not prediction.potential
    assert "Left out" in slower.verdict
    assert "--place target=" in slower.verdict


def test_a_drafter_that_stays_beside_the_target_does_not_take_that_gpu_either() -> None:
    plan, _ = make_plan(load_board("rk3588"), PAIR, 256, Overrides(gamma=0))
    assert {placed.place.text for placed in plan.places.values()} == {"cpu"}
    asked, _ = make_plan(load_board("rk3588"), PAIR, 256, Overrides(gamma=0, place="target=cpu,draft=gpu"))
    assert asked.places["draft"].place.text == "gpu"


def test_wide_chunks_of_a_prompt_where_they_are_worth_it() -> None:
    """Float kernels read weights of four bits faster in wide chunks; a short context, or --prompt-chunk, has none."""
    board = load_board("rpi5")
    alone = {"target": TARGET}
    plan, prediction = make_plan(board, alone, 2048)
    assert plan.prefill_widths in ((32, 64), (32, 128))
    assert plan.reasons[-1].startswith(f"prompts are read {plan.long_prefill_width} tokens at a time and what is left")
    narrow, _ = make_plan(board, alone, 2048, Overrides(chunks=(32,)))
    assert (narrow.prefill_widths, narrow.prediction.long_chunks_s) == ((32,), {})
    assert plan.reasons[:-1] == narrow.reasons
    assert narrow.memory.total_bytes == prediction.decision.best.memory.total_bytes
    more = plan.memory.activation_bytes - narrow.memory.activation_bytes
    assert plan.memory.total_bytes - narrow.memory.total_bytes == more > 0
    fast, slow = (p.prediction.first_token_s(1024, 32) for p in (plan, narrow))
    assert fast < 0.95 * slow
    assert make_plan(board, alone, 256)[0].prefill_widths == (32,)
    assert make_plan(board, alone, 256, Overrides(chunks=(32, 200)))[0].prefill_widths == (32, 200)
    assert make_plan(board, alone, 256, Overrides(chunks=(8,)))[0].prefill_widths == (8,)
    with pytest.raises(UserError, match="--prompt-chunk 300: the context has 256 tokens"):
        make_plan(board, alone, 256, Overrides(chunks=(32, 300)))


def test_slots_keep_the_target_on_the_cpu_and_count_its_caches() -> None:
    board = load_board("rk3588")
    one, _ = make_plan(board, PAIR, 256, Overrides(place="target=cpu,draft=gpu"))
    plan, _ = make_plan(board, PAIR, 256, Overrides(place="target=cpu,draft=gpu", slots=4))
    assert (one.slots, plan.slots) == (1, 4)
    assert plan.memory.kv_bytes - one.memory.kv_bytes == 3 * (TARGET.kv_bytes(256) + PAIR["draft"].kv_bytes(256))
    assert any("4 x 25.2 MB" in reason for reason in plan.reasons)
    assert not any("requests at a time" in reason for reason in one.reasons)
    alone = {"target": TARGET}
    free, _ = make_plan(load_board("imx95"), alone, 256, Overrides(slots=4))
    assert free.places["target"].place.text == "cpu"
    assert make_plan(board, alone, 256, Overrides(place="gpu", slots=4))[0].places["target"].place.text == "gpu"
    just = small(board, free.memory.total_bytes - 2 * TARGET.kv_bytes(256))
    with pytest.raises(UserError, match="fits no memory of board rk3588"):
        make_plan(just, alone, 256, Overrides(slots=4))
    assert make_plan(just, alone, 256, Overrides(slots=2))[0].slots == 2


def test_the_same_inputs_give_the_same_plan() -> None:
    plans = [json.dumps(make_plan(load_board("rk3588"), PAIR, 256)[0].to_json()) for _ in range(2)]
    assert plans[0] == plans[1]
    other = json.dumps(make_plan(load_board("rk3588"), PAIR, 512)[0].to_json())
    assert other != plans[0]


def test_what_is_given_is_kept_and_priced() -> None:
    board = load_board("imx95")
    own, _ = make_plan(board, PAIR, 256)
    assert own.mode == "sequential"
    plan, _ = make_plan(board, PAIR, 256, Overrides(gamma=7, place="target=gpu:4-11"))
    assert (plan.gamma, plan.given) == (7, ("gamma", "place"))
    assert {role: placed.place.text for role, placed in plan.places.items()} == {"target": "gpu:4-11", "draft": "cpu"}
    ratio = own.prediction.tokens_per_s / plan.prediction.tokens_per_s
    assert f"the plan would have taken: speculate with gamma {own.gamma}" in plan.verdict
    assert f"predicted {ratio:.2f}x faster" in plan.verdict
    assert any(p.reason.endswith("as given with --place target=gpu:4-11") for p in plan.places.values())
    assert "gamma 7: as given with --gamma 7" in plan.reasons
    same, _ = make_plan(board, PAIR, 256, Overrides(gamma=own.gamma, place="cpu"))
    assert "the plan would have decided the same" in same.verdict
    assert same.prediction.tokens_per_s == own.prediction.tokens_per_s


def test_a_drafter_that_does_not_pay_stays_in_the_bundle_with_its_price() -> None:
    plan, _ = make_plan(load_board("imx95"), PAIR, 256, Overrides(alpha=0.05))
    assert (plan.mode, plan.gamma) == ("target-only", 0)
    assert set(plan.places) == {"target", "draft"}
    assert "Speculation does not pay: its best, gamma 1, reaches" in plan.verdict
    assert "it pays from acceptance 0." in plan.verdict
    assert f"takes {1e-6 * plan.memory.drafter_bytes:.0f} MB of memory" in plan.verdict
    assert plan.memory.drafter_bytes > DRAFT.weight_bytes
    assert plan.prediction.live is not None
    zero, _ = make_plan(load_board("imx95"), PAIR, 256, Overrides(gamma=0))
    assert zero.mode == "target-only"
    assert "--gamma" in zero.verdict


def test_a_drafter_that_does_not_fit_is_left_out() -> None:
    need = 150_000_000 + TARGET.weight_bytes + 200_000_000
    plan, _ = make_plan(small(load_board("imx95"), need), PAIR, 256)
    assert set(plan.places) == {"target"}
    assert plan.mode == "target-only"
    assert "left out of the bundle: it does not fit" in plan.verdict
    assert plan.prediction.live is None
    with pytest.raises(
        UserError, match=r"3B and 1B fits no memory of board imx95: it needs at least \d\.\d+ GB, \d\.\d+ GB"
    ):
        make_plan(small(load_board("imx95"), need), PAIR, 256, Overrides(gamma=2))
    with pytest.raises(UserError, match="3B fits no memory"):
        make_plan(small(load_board("imx95"), 1 << 29), PAIR, 256)


def test_one_cluster_and_one_thread_count_for_both_that_take_turns() -> None:
    for overrides in (Overrides(), Overrides(gamma=4, place="cpu"), Overrides(place="target=cpu,draft=gpu")):
        plan, prediction = make_plan(load_board("rk3588"), PAIR, 256, overrides)
        assert 1 <= plan.threads <= load_board("rk3588").cluster(plan.cluster).count
        assert plan.cpu_ids == load_board("rk3588").cluster(plan.cluster).cpu_ids
        for variant in plan.variants:
            models = [variant.target, variant.draft]
            cores = {s.processor for m in models if m for s in m.placement} - {"gpu"}
            assert len(cores) <= (1 if variant.mode != "overlapped" else 2)
        assert prediction.decision.best.reason


def test_where_the_target_has_all_cores_in_turn_one_of_them_enqueues_the_drafters_kernels_meanwhile() -> None:
    """The run may choose it; the target's steps are slower with a core less, which its slowdown says."""
    board, where = load_board("rk3566"), "target=cpu,draft=gpu"
    plan, _ = make_plan(board, PAIR, 256, Overrides(place=where, alpha=0.8))
    overlap = plan.overlap
    assert (plan.mode, plan.threads) == ("target-only", 4)
    assert overlap is not None
    assert (overlap.target_cpus, overlap.draft_cpus) == ((0, 1, 2), (3,))
    costs = ModelCosts(Roofline(board), PAIR["target"], plan.context // 2)
    three, four = (
        costs.step_s(costs.whole(CpuSlice(((board.clusters[0], threads),))), overlap.gamma + 1) for threads in (3, 4)
    )
    assert overlap.target_slowdown == pytest.approx(three / four, rel=0.02)
    assert overlap.target_slowdown > 1.2
    one_core = replace(board, clusters=(replace(board.clusters[0], count=1, cpu_ids=(0,)),))
    assert make_plan(one_core, PAIR, 256, Overrides(place=where, alpha=0.8))[0].overlap is None


def test_overlapped_where_target_and_drafter_have_processors_of_their_own() -> None:
    """The GPU, whose kernels a core enqueues, beside four cores; on the one cluster of a Pi 5 taking turns wins."""
    board = load_board("rk3588")
    plan, _ = make_plan(board, PAIR, 1024, Overrides(alpha=0.6, place="target=gpu,draft=cpu"))
    overlap = plan.overlap
    assert plan.mode == "overlapped"
    assert overlap is not None
    assert (overlap.gamma, overlap.tokens_per_s) == (plan.gamma, plan.prediction.tokens_per_s)
    cores = board.cluster(plan.cluster)
    assert {*overlap.draft_cpus} <= {*cores.cpu_ids}  # the target is on the GPU
    assert len(overlap.target_cpus) == 1
    assert not {*overlap.target_cpus} & {*overlap.draft_cpus}
    assert min(overlap.target_slowdown, overlap.draft_slowdown) >= 1.0
    assert "drafting while the target verifies" in plan.verdict
    assert any(reason.startswith("overlapped: the target enqueued from CPU") for reason in plan.reasons)
    assert type(plan).from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert make_plan(load_board("rpi5"), PAIR, 1024, Overrides(alpha=0.6))[0].overlap is None


def test_measured_acceptance_and_factors_of_the_board_decide() -> None:
    board = load_board("imx95")
    low = AlphaFile((0.05,), (0.04,), (0.06,), "measured, a.json")
    plan, _ = make_plan(board, PAIR, 256, Overrides(alpha_file=low))
    assert plan.mode == "target-only"
    assert "measured, a.json" in plan.verdict
    fact = {"value": 2.0, "kind": "measured", "source": "a test"}
    slower = board_from_json({**board.to_json(), "factors": {"compute": fact}})
    ratio = make_plan(board, PAIR, 256)[0].prediction.tokens_per_s / (
        make_plan(slower, PAIR, 256)[0].prediction.tokens_per_s
    )
    assert 1.3 < ratio <= 2.0 / (1 - TIE_SHARE)  # a surer variant may be taken in a tie


def test_an_acceptance_counts_for_more_where_it_was_measured() -> None:
    board = load_board("imx95")
    overrides = [
        Overrides(),
        Overrides(alpha=0.8),
        Overrides(alpha_file=AlphaFile((0.8,), (0.7,), (0.9,), "measured, a.json")),
    ]
    live = [make_plan(board, PAIR, 256, given)[0].prediction.live for given in overrides]
    counts = [0.0 if found is None else found.alpha_tokens for found in live]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_vocabularies_padded_differently_share_a_tokenizer() -> None:
    padded = {**PAIR, "draft": shape("1B padded", 2048, 5, 32, 8192, 128320)}
    assert make_plan(load_board("imx95"), padded, 256)[0].mode == "sequential"


def test_widths_follow_the_plan_and_what_the_run_may_come_to_prefer() -> None:
    board = load_board("imx95")
    auto, _ = make_plan(board, PAIR, 256)
    given, _ = make_plan(board, PAIR, 256, Overrides(gamma=4, widths=(11,)))
    assert given.target_widths == (1, 2, 4, 5, 8, 11)
    assert {1, 2, 4, 8, auto.gamma + 1} <= set(auto.target_widths)
    alone, _ = make_plan(board, {"target": TARGET}, 256)
    assert alone.target_widths == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (Overrides(alpha=1.5), "acceptance 1.5 is not a probability"),
        (Overrides(place="gpu:90"), "there is no layer 90"),
        (Overrides(place="npu"), "cannot be read"),
    ],
)
def test_impossible_wishes_are_refused(overrides: Overrides, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(load_board("imx95"), PAIR, 256, overrides)


def test_contexts_are_whole_tiles() -> None:
    board: Any = load_board("rk3588")
    assert whole_context(board, 2) == 32
    assert whole_context(board, 1000) % 4 == 0
    assert whole_context(board, 1000) >= 1000
