from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.cpu_cycles import Cycles, issue_of, kernel_cycles
from costmodel.cpu_reads import reached_gb_per_s
from costmodel.decoder import DecoderSpec
from costmodel.estimate import Estimate
from costmodel.factors import Factors
from costmodel.format import INT8, Format
from costmodel.gpu_time import loads_in_a_row
from costmodel.operators import Operator
from costmodel.place import EMBEDDING, FFN, HEAD, Part
from costmodel.processor import CpuSlice, GpuSlice, all_cores, processors
from costmodel.roofline import Roofline
from costmodel.work import Op, Traffic, step_ops, step_units
from targets.boards import load_board
from targets.cpu import core
from targets.cpu.tile import CHUNK, cpu_tile
from targets.errors import UserError

IDEAL = Factors(
    bandwidth=1.0,
    bandwidth_one_thread=1.0,
    overlap=1.0,
    dispatch_cycles=1e-9,
    step_cycles=1e-9,
    round_cycles=1e-9,
    page_ns=1e-9,
)


def linear(k: int, columns: int, rows: int, weights: Format | None = None) -> Op:
    """One matrix multiplication of a step."""
    attention = Operator("attention", "attention", Part("attention"), 64, heads=1, kv_heads=1, head_dim=64)
    operators = (
        Operator("embedding", "embedding", Part(EMBEDDING), 64, 16),
        attention,
        Operator("linear", "gate", Part(FFN), columns, k, weights or Format()),
        Operator("linear", "head", Part(HEAD), 16, 64),
        Operator("argmax", "argmax", Part(HEAD), 16),
    )
    return next(op for op in step_ops(DecoderSpec("one", operators, tied=False), rows, 0) if op.name == "gate")


def gate(rows: int, weights: Format | None = None) -> Op:
    return linear(2048, 8192, rows, weights)


def test_decode_is_bytes_over_bandwidth(rk3588: Any) -> None:
    four = CpuSlice(((rk3588.clusters[0], 4),))
    found = Roofline(rk3588, IDEAL).op(gate(1), four)
    activations = 4 * (2048 + 8192)
    assert found.memory_s == pytest.approx(2048 * 8192 * 4 / (14.5e9 / 0.93) + activations / (8 * 2.3e9 * 4), rel=1e-3)
    assert found.launch_s == 6e-6
    assert found.compute_s == 0.0


def test_a_gemm_is_bound_by_the_core(rk3588: Any) -> None:
    one = CpuSlice(((rk3588.clusters[0], 1),))
    found = Roofline(rk3588, IDEAL).op(gate(6), one)
    # 6 rows fill a tile: 24 FMAs on 2 pipes a step of k and panel of 16 columns
    assert found.compute_s == pytest.approx(2048 * (8192 / 16) * 6 * 4 / 2 / 2.3e9)
    flops = 2 * 6 * 2048 * 8192
    assert flops / found.compute_s == pytest.approx(2.3e9 * 16)  # the peak of the core file
    assert found.launch_s == 0.0  # one thread enters no parallel region


def test_time_climbs_in_stairs_of_the_row_tile(imx95: Any) -> None:
    roofline, six = Roofline(imx95), CpuSlice(((imx95.clusters[0], 6),))
    times = {n: roofline.op(gate(n), six).total_s for n in range(1, 17)}
    tile = cpu_tile(imx95.clusters[0].core)
    for n in range(1, 16):
        same_shape = tile.rows(n) * -(-n // tile.rows(n)) == tile.rows(n + 1) * -(-(n + 1) // tile.rows(n + 1))
        if same_shape:  # 7 rows are two tiles of 4: as long as 8
            assert times[n + 1] == pytest.approx(times[n], rel=0.01), n
    assert times[7] > 1.1 * times[6]  # of arithmetic 1.33, of which memory hides a part: the tiles read weights once


@pytest.mark.parametrize(("weights", "mca_cycles", "bytes_"), [(Format(), 210, 1024), (Format("float16"), 161, 512)])
def test_a55_cycles_beside_llvm_mca(weights: Format, mca_cycles: float, bytes_: int) -> None:
    a55 = core("cortex-a55")
    found = kernel_cycles(gate(1, weights), a55, 1).cycles / weights.nbytes(2048, 8192) * bytes_
    assert found == pytest.approx(mca_cycles, rel=0.3)


def test_issue_rates_come_from_the_core_file() -> None:
    assert issue_of(core("cortex-a55")).fma == 1.0
    assert issue_of(core("cortex-a76")).fma == 2.0
    assert issue_of(core("cortex-x1")).fma == 4.0


def test_half_the_bytes_half_the_time_when_memory_decides(rk3588: Any) -> None:
    four = CpuSlice(((rk3588.clusters[0], 4),))
    roofline = Roofline(rk3588, IDEAL)
    full, half = roofline.op(gate(1), four), roofline.op(gate(1, Format("float16")), four)
    assert half.memory_s == pytest.approx(full.memory_s / 2, rel=0.01)


def test_int4_is_bound_by_unpacking_on_one_core(rk3588: Any) -> None:
    one = CpuSlice(((rk3588.clusters[0], 1),))
    found = Roofline(rk3588).op(gate(1, Format("int4", 32, "float16")), one)
    assert found.compute_s > found.memory_s


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "SmolLM2-135M"])
def test_time_grows_with_context_and_rows(published: Any, rk3588: Any, name: str) -> None:
    roofline, shape = Roofline(rk3588), published[name]()
    for processor in processors(rk3588):
        by_context = [roofline.step(shape, processor, 1, past).total_s for past in (0, 64, 512, 2048)]
        assert all(a < b for a, b in pairwise(by_context)), processor.name
        by_rows = [roofline.step(shape, processor, n, 128).total_s for n in range(1, 17)]
        assert all(a <= 1.005 * b for a, b in pairwise(by_rows)), processor.name


def test_growth_with_context_is_the_kv_traffic(published: Any, rk3588: Any) -> None:
    shape = published["Llama-3.2-3B"]()
    gpu = GpuSlice(rk3588.gpu, rk3588.clusters[0])
    roofline = Roofline(rk3588, replace(IDEAL, gpu_bandwidth=1.0, gpu_compute=1.0, gpu_item_steps=1e-9))
    near, far = (roofline.step(shape, gpu, 1, past).total_s for past in (100, 1100))
    assert far - near == pytest.approx(1000 * 28 * 2 * 8 * 128 * 4 / 24.9e9, rel=1e-6)


def test_a_vector_of_halves_is_converted_once_for_the_heads_that_share_it() -> None:
    """A76: 4 query heads, one KV head of 64 values, 128 keys in tiles of 4 vectors of 4, on two arithmetic pipes."""
    attention = Operator("attention", "attention", Part("attention"), 256, heads=4, kv_heads=1, head_dim=64)

    def cycles(stored: str) -> float:
        kv = Traffic("kv", stored, 1.0)
        op = Op(attention, 1, 1.0, (kv,), parallel=1, past=127)
        return kernel_cycles(op, core("cortex-a76"), 1).cycles

    scores, values = 128 / 16 * 64 * 4 / 2, 128 * 16 / 2  # conversions over pipes
    assert cycles("float16") - cycles("float32") == scores + values


def test_attention_uses_threads_for_kv_heads_and_chunks(published: Any, imx95: Any) -> None:
    """3 KV heads; of more keys than a chunk has each chunk of a head is work for a thread."""

    def cycles(past: int, threads: int) -> Cycles:
        op = next(op for op in step_ops(published["SmolLM2-135M"](), 1, past) if op.kind == "attention")
        return kernel_cycles(op, imx95.clusters[0].core, threads)

    assert cycles(CHUNK - 1, 3) == cycles(CHUNK - 1, 6)
    assert cycles(2 * CHUNK - 1, 3).threads == 3
    six, whole = cycles(2 * CHUNK - 1, 6), cycles(2 * CHUNK - 1, 3)
    assert six.threads == 6
    assert 0.5 < six.cycles / whole.cycles < 0.55  # the calling thread joins them
    assert cycles(CHUNK, 6).cycles > 0.95 * cycles(CHUNK, 3).cycles  # a chunk and one key


def test_small_models_stay_in_the_cache(make_decoder: Any, rk3588: Any) -> None:
    small = make_decoder("small", 128, 2, 4, 2, 32, 256, 1024)
    assert small.weight_bytes < 3 * 2**20
    four = CpuSlice(((rk3588.clusters[0], 4),))
    uncached = replace(rk3588, clusters=tuple(replace(c, l2_bytes=0, l3_bytes=0) for c in rk3588.clusters))
    away = CpuSlice(((uncached.clusters[0], 4),))
    assert Roofline(rk3588).step(small, four, 1, 16).total_s < Roofline(uncached).step(small, away, 1, 16).total_s


def test_mixing_big_and_little_is_slower_where_arithmetic_decides(published: Any, rk3588: Any) -> None:
    mixed = all_cores(rk3588)
    assert mixed is not None
    shape, roofline = published["Llama-3.2-1B"](Format("int4", 32, "float16")), Roofline(rk3588)
    big = roofline.step(shape, CpuSlice(((rk3588.clusters[0], 4),)), 1, 64).total_s
    assert roofline.step(shape, mixed, 1, 64).total_s > 1.2 * big


def test_bandwidth_of_some_threads(rk3588: Any) -> None:
    a76, gate_bytes = rk3588.clusters[0], 4 * 2048 * 8192
    times = [Roofline(rk3588, IDEAL).op(gate(1), CpuSlice(((a76, t),))).memory_s for t in (1, 2, 4)]
    # one thread reads 16.8 GB/s, above what four threads read if a decoder reaches 0.93 of it
    assert [gate_bytes / t / 1e9 for t in times] == pytest.approx([14.5 / 0.93] * 3, rel=2e-3)
    little = rk3588.clusters[1]
    times = [Roofline(rk3588, IDEAL).op(gate(1), CpuSlice(((little, t),))).memory_s for t in (1, 2, 4)]
    assert [gate_bytes / t / 1e9 for t in times] == pytest.approx([6.8, 10.0, 10.0], rel=2e-3)


def test_bandwidth_falls_with_threads_where_the_board_says_so() -> None:
    board, gate_bytes = load_board("rpi5"), 4 * 2048 * 8192
    (a76,) = board.clusters
    times = [Roofline(board, IDEAL).op(gate(1), CpuSlice(((a76, t),))).memory_s for t in (1, 2, 3, 4)]
    assert [gate_bytes / t / 1e9 for t in times] == pytest.approx([13.7, 12.7, 11.6, 10.5], rel=2e-3)
    ends = replace(a76, bandwidth_by_threads_gb_per_s=(), bandwidth_all_threads_gb_per_s=13.7)
    rates = [reached_gb_per_s(IDEAL, ends, t) for t in (1, 4)]
    assert rates == [13.7, 13.7]  # the negative control: two numbers cannot say it


def test_later_walks_find_their_part_in_a_cache(rk3588: Any) -> None:
    """42 rows are seven tiles of 6, too many to take turns: six walks more, which wait where level 2 is slower."""
    one = CpuSlice(((rk3588.clusters[0], 1),))
    narrow = linear(256, 8192, 42)  # a group of panels has 16 KiB: level 1 holds it
    roofline = Roofline(rk3588, replace(IDEAL, compute=0.01))
    first = roofline.op(replace(narrow, rows=6), one)
    assert roofline.op(narrow, one).compute_s < 0.2 * first.memory_s
    wide = linear(1024, 8192, 42)  # 64 KiB: level 2
    again = roofline.op(wide, one).compute_s
    assert again == pytest.approx(6 * 4 * 1024 * 8192 / (16 * 2.3e9), rel=0.1)
    turns = roofline.op(replace(wide, rows=12), one)  # two tiles take turns at what level 1 holds
    assert turns.compute_s < 0.1 * again


def test_each_page_of_a_stream_waits(rk3588: Any) -> None:
    """One row reads four panels side by side; the two tiles of 8 rows ask for their lines ahead."""
    one = CpuSlice(((rk3588.clusters[0], 1),))
    pages = 4 * 2048 * 8192 / 4096
    slow = replace(IDEAL, compute=0.01)
    delay = [
        (
            Roofline(rk3588, replace(slow, page_ns=100.0)).op(gate(n), one).memory_s
            - Roofline(rk3588, slow).op(gate(n), one).memory_s
        )
        for n in (4, 1, 8)
    ]
    assert delay == pytest.approx([pages * 1e-7, pages * 1e-7 / 4, 0.0], rel=0.01)


def test_the_other_model_of_a_pair_takes_cache(make_decoder: Any, rk3588: Any) -> None:
    small = make_decoder("small", 128, 2, 4, 2, 32, 256, 1024)
    one, roofline = CpuSlice(((rk3588.clusters[0], 1),)), Roofline(rk3588)
    alone, beside = (roofline.step(small, one, 1, 16, beside_bytes=b).total_s for b in (0.0, 1e9))
    assert beside > 1.05 * alone


def test_each_format_hides_its_share(rk3588: Any) -> None:
    one = CpuSlice(((rk3588.clusters[0], 1),))

    def total_s(stored: Format, **factors: float) -> float:
        return Roofline(rk3588, replace(IDEAL, overlap=0.5, **factors)).op(gate(4, stored), one).total_s

    for stored in (Format("float16"), Format("int8", 32), Format("int4", 32)):
        name = f"overlap_{stored.dtype}"
        none, half, every, more = (total_s(stored, **{name: share}) for share in (1e-9, 1.0, 2.0, 3.0))
        assert every < half < none
        assert half == pytest.approx((none + every) / 2)
        assert more == every  # no more than all of it
        assert total_s(Format(), **{name: 2.0}) == total_s(Format())  # the control: another format


def test_what_caches_keep_of_a_large_model_is_gone_after_another_one(rk3588: Any) -> None:
    one = CpuSlice(((rk3588.clusters[0], 1),))
    roofline = Roofline(rk3588, Factors(cache_kept=0.4))
    caches = rk3588.clusters[0].l2_bytes + rk3588.clusters[0].l3_bytes
    size = 20.0 * caches
    assert roofline.resident(size, one) == pytest.approx(0.4 / 20)
    assert roofline.resident(size, one, beside_bytes=caches) < 1e-6
    again = [roofline.resident(size, one, beside_bytes=caches, in_a_row=i) for i in range(3)]
    assert again == sorted(again)  # each step in a row finds more
    assert Roofline(rk3588).resident(size, one) < 1e-3  # the control: nobody measured it there


def test_a_prompt_is_its_chunks(published: Any, rk3588: Any) -> None:
    shape, one = published["SmolLM2-135M"](), CpuSlice(((rk3588.clusters[0], 1),))
    roofline = Roofline(rk3588)
    both, parts = roofline.prompt(shape, one, 64, 16, 32), [roofline.prompt(shape, one, 32, p, 32) for p in (16, 48)]
    first = roofline.chunks([step_units(shape, 32, 16, result_rows=0)], one)  # no logits of the first one
    assert both.total_s == pytest.approx(first.total_s + parts[1].total_s)
    assert first.total_s < 0.99 * parts[0].total_s
    assert parts[0].total_s < roofline.step(shape, one, 32, 16).total_s  # one row of logits instead of 32


def test_a_board_of_one_kind_has_no_mix(imx95: Any) -> None:
    assert all_cores(imx95) is None
    assert [p.name for p in processors(imx95)] == [*(f"a55 x{t}" for t in range(1, 7)), "gpu"]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.integers(0, 1000), st.sampled_from(["bandwidth", "gpu_bandwidth"]))
def test_time_never_falls_when_bandwidth_does(published: Any, rk3588: Any, n: int, past: int, name: str) -> None:
    shape = published["SmolLM2-135M"]()
    slower = Roofline(rk3588, Factors(**{name: 0.2}))
    for processor in processors(rk3588)[-2:]:
        assert (
            slower.step(shape, processor, n, past).total_s >= Roofline(rk3588).step(shape, processor, n, past).total_s
        )


def test_factors_round_trip_and_refuse() -> None:
    assert Factors.from_json(Factors(bandwidth=0.7).to_json(), "here") == Factors(bandwidth=0.7)
    with pytest.raises(UserError, match="unknown factor 'bandwith'"):
        Factors.from_json({"bandwith": 0.7}, "here")
    with pytest.raises(UserError, match="must be a positive number"):
        Factors.from_json({"bandwidth": -1}, "here")


def test_gpu_counts_slots_of_its_row_tiles(rk3588: Any) -> None:
    """Up to 8 rows are one tile (4 columns a work-item from 5 rows on); unpacking costs a slot a weight."""
    gpu = GpuSlice(rk3588.gpu, rk3588.clusters[0])
    roofline = Roofline(rk3588, replace(IDEAL, gpu_bandwidth=1.0, gpu_compute=1.0, gpu_item_steps=1e-9))
    weights = 2048 * 8192
    many, eight = (roofline.op(gate(n, Format("float16")), gpu) for n in (16, 8))
    # two tiles of 8 rows: the second one finds the weights in the GPU's cache
    assert many.memory_s == pytest.approx((2 * weights + 4 * 16 * (2048 + 8192)) / 24.9e9)
    assert many.compute_s == pytest.approx(2 * eight.compute_s)
    one = roofline.op(gate(1, Format("float16")), gpu)
    assert one.memory_s == pytest.approx((2 * weights + 4 * (2048 + 8192)) / 24.9e9)
    five = roofline.op(gate(5, Format("int4", 32, "float16")), gpu)
    assert five.compute_s == pytest.approx(2 * weights * (5 + 5) / 470e9)


def test_a_work_item_waits_for_its_loads(rk3588: Any, make_decoder: Any) -> None:
    """512 steps of k, four at a time, 300 ns each; 1,000 keys likewise; hidden where memory takes longer."""
    gpu = GpuSlice(rk3588.gpu, rk3588.clusters[0])
    roofline = Roofline(rk3588, replace(IDEAL, gpu_load_ns=300.0))
    narrow = linear(512, 512, 1, Format("float16"))
    assert loads_in_a_row(narrow, rk3588.gpu) == 512 / 4
    assert loads_in_a_row(linear(512, 512, 1, Format("int4", 32)), rk3588.gpu) == 512 / 8
    assert roofline.op(narrow, gpu).compute_s == pytest.approx(128 * 300e-9)
    spec = make_decoder("one", 576, 1, 9, 3, 64, 1536, 100)
    (attention,) = [op for op in step_ops(spec, 1, 999) if op.kind == "attention"]
    assert loads_in_a_row(attention, rk3588.gpu) == 1000 / 4
    many = gate(8, Format("float16"))
    without = Roofline(rk3588, replace(IDEAL, gpu_load_ns=1e-3)).op(many, gpu)
    assert roofline.op(many, gpu) == without
    assert without.memory_s > loads_in_a_row(many, rk3588.gpu) * 300e-9


def test_gpu_counts_slots_of_integer_dot_products(rk3588: Any) -> None:
    """Of 32 weights: 8 dot products and 3 more a row, 12 to unpack 4 bits; a scale; without the instruction more."""
    gpu = GpuSlice(replace(rk3588.gpu, bandwidth_gb_per_s=100.0), rk3588.clusters[0])
    roofline = Roofline(rk3588, replace(IDEAL, gpu_bandwidth=1.0, gpu_compute=1.0, gpu_item_steps=1e-9))
    weights, stored = 2048 * 8192, Format("int4", 32, "float16")

    def gates(rows: int, processor: GpuSlice = gpu, makes_codes: bool = False) -> Estimate:
        op = gate(rows, stored)
        operator = replace(op.operator, activations=INT8, makes_codes=makes_codes)
        return roofline.op(replace(op, operator=operator), processor)

    assert gates(8).compute_s == pytest.approx(2 * weights * (8 * 11 + 12 + 1) / 32 / 470e9)
    assert gates(8).compute_s < 0.4 * roofline.op(gate(8, stored), gpu).compute_s
    assert gates(9).compute_s > 1.2 * gates(8).compute_s  # two walks over the weights
    made, shared = gates(1, makes_codes=True), gates(1)
    assert made.dispatch_s == 2 * shared.dispatch_s  # a kernel makes the codes
    assert made.total_s > shared.total_s
    without = replace(gpu, gpu=replace(gpu.gpu, has_integer_dot=False))
    assert gates(8, without).compute_s > 4 * gates(8).compute_s
