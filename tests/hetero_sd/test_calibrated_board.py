from __future__ import annotations

import pytest
from bundles import some_measured

from costmodel.factors import Factors
from hetero_sd.calibrated_board import measured_factors, with_bandwidth, with_gpu, with_region_cost
from targets.boards import load_board


def test_each_cluster_gets_what_it_read() -> None:
    board = with_bandwidth(load_board("rk3588"), "a76", [some_measured()])
    a76, a55 = board.cluster("a76"), board.cluster("a55")
    assert (a76.bandwidth_one_thread_gb_per_s, a76.bandwidth_all_threads_gb_per_s) == (9.0, 17.0)
    assert a55.bandwidth_all_threads_gb_per_s == 8.0
    assert a55.bandwidth_one_thread_gb_per_s <= 8.0
    kinds = {name: board.provenance[f"clusters.{name}.bandwidth_all_threads_gb_per_s"].kind for name in ("a76", "a55")}
    assert set(kinds.values()) == {"measured"}


def test_a_cluster_that_was_not_read_keeps_its_file() -> None:
    before = load_board("rk3588").cluster("a55")
    board = with_bandwidth(load_board("rk3588"), "a76", [some_measured(bandwidths=())])
    assert board.cluster("a55") == before
    assert board.cluster("a76").bandwidth_all_threads_gb_per_s == 16.0


def test_the_gpu_gets_its_rate_and_launch() -> None:
    board = with_gpu(load_board("rk3588"), [some_measured()])
    assert board.gpu is not None
    assert board.gpu.bandwidth_gb_per_s == 14.0
    assert board.gpu.launch_overhead_s == 30e-6
    assert board.provenance["gpu.launch_overhead_s"].kind == "measured"
    assert with_gpu(load_board("rk3588"), [some_measured(gpu=None)]) == load_board("rk3588")


def test_a_gpu_that_the_file_lacks_is_described_by_its_driver() -> None:
    board = with_gpu(load_board("rpi5"), [some_measured()])
    assert board.gpu is not None
    assert (board.gpu.model, board.gpu.shader_cores, board.gpu.bandwidth_gb_per_s) == ("Mali-G999", 2, 14.0)
    assert board.provenance["gpu.fp32_gflops"].kind == "assumed"


def test_factors_that_were_measured_by_themselves() -> None:
    board = with_gpu(load_board("rk3588"), [some_measured()])
    factors = measured_factors(board, [some_measured()])
    assert factors["dram_together"] == pytest.approx(22.0 / board.dram.peak_bandwidth_gb_per_s)
    assert factors["gpu_dispatch"] == pytest.approx(5e-6 / 30e-6)
    assert measured_factors(board, [some_measured(bandwidths=(), gpu=None)]) == {}
    assert set(factors) <= set(Factors().to_json())


def test_a_region_costs_what_most_threads_measured() -> None:
    before = load_board("rk3588")
    board = with_region_cost(
        before, "a76", [some_measured(region_cost_s={4: 2.5e-6}), some_measured(region_cost_s={2: 1e-6})]
    )
    assert board.cluster("a76").launch_overhead_s == 2.5e-6
    assert board.provenance["clusters.a76.launch_overhead_s"].kind == "measured"
    assert board.cluster("a55").launch_overhead_s == before.cluster("a55").launch_overhead_s
    assert with_region_cost(before, "a76", [some_measured()]).cluster("a76") == before.cluster("a76")
