from __future__ import annotations

from typing import Any

import pytest
from bundles import some_measured

from costmodel.cpu_reads import reached_gb_per_s
from costmodel.factors import Factors
from costmodel.schema.measured import Measured, MeasuredBandwidth, MeasuredTurns
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


PI = {"cpus": (0, 1, 2, 3), "gpu": None}  # its four A76 are one cluster, so that each CPU was read on its own


def pi_measured(threads: int, rates: dict[int, float], **changes: Any) -> Measured:
    """What a Raspberry Pi 5 says: GB/s of one thread, of two, and of the run's."""
    pairs = [MeasuredBandwidth(((0,), (1,)), (rates[2] / 2, rates[2] / 2))] if 2 in rates else []
    bandwidths = (MeasuredBandwidth(((3,),), (rates[1],)), *pairs)
    shown = {"bandwidth_gb_per_s": rates[threads], "bandwidth_one_thread_gb_per_s": rates[1]}
    return some_measured(**{**PI, "threads": threads, "bandwidths": bandwidths, **shown, **changes})


@pytest.mark.parametrize("rates", [{1: 13.7, 2: 12.7, 4: 10.5}, {1: 13.7, 4: 10.5}])
def test_a_bandwidth_that_falls_with_threads_is_kept(rates: dict[int, float]) -> None:
    before = load_board("rpi5")
    board = with_bandwidth(before, "a76", [pi_measured(4, rates)])
    a76, given = board.cluster("a76"), before.cluster("a76").bandwidth_by_threads_gb_per_s
    assert (a76.bandwidth_one_thread_gb_per_s, a76.bandwidth_all_threads_gb_per_s) == (13.7, 10.5)
    assert a76.bandwidth_by_threads_gb_per_s == pytest.approx(given, abs=0.11)  # three threads: on the line
    assert a76.bandwidth_by_threads_gb_per_s[3] == 10.5
    for threads in range(1, 5):
        reached = [reached_gb_per_s(Factors(), b.cluster("a76"), threads) for b in (before, board)]
        assert reached[1] == pytest.approx(reached[0], rel=0.01)
    origin = board.provenance["clusters.a76.bandwidth_by_threads_gb_per_s"]
    assert origin.kind == "measured"
    assert ("; 3 threads: " if 2 in rates else "; 2, 3 threads: ") in origin.source


def test_a_bandwidth_that_rises_is_two_numbers() -> None:
    rates = {1: 6.0, 2: 9.0, 4: 10.0}
    a76 = with_bandwidth(load_board("rpi5"), "a76", [pi_measured(4, rates)]).cluster("a76")
    assert (a76.bandwidth_one_thread_gb_per_s, a76.bandwidth_all_threads_gb_per_s) == (6.0, 10.0)
    assert a76.bandwidth_by_threads_gb_per_s == ()
    most = MeasuredBandwidth(((0, 1, 2),), (11.0,))  # but three threads read more than four, two what three allow
    a76 = with_bandwidth(load_board("rpi5"), "a76", [pi_measured(4, {1: 6.0, 4: 10.0}, bandwidths=(most,))]).cluster(
        "a76"
    )
    assert a76.bandwidth_by_threads_gb_per_s == (6.0, 11.0, 11.0, 10.0)


def test_fewer_threads_say_nothing_of_all() -> None:
    """Run with one thread or two, the number of four is the file's: a measured one stays, an assumed one gives way."""
    for threads, by_threads in ((1, (14.0, 12.833, 11.667, 10.5)), (2, (14.0, 13.0, 11.75, 10.5))):
        measured = pi_measured(threads, {1: 14.0, threads: 15.0 - threads}, bandwidths=())
        board = with_bandwidth(load_board("rpi5"), "a76", [measured])
        assert board.cluster("a76").bandwidth_all_threads_gb_per_s == 10.5
        assert board.provenance["clusters.a76.bandwidth_all_threads_gb_per_s"].source.startswith("the same with four")
        assert board.cluster("a76").bandwidth_by_threads_gb_per_s == by_threads
    here = {"threads": 2, "bandwidth_gb_per_s": 15.0, "bandwidth_one_thread_gb_per_s": 8.0, "bandwidths": ()}
    board = with_bandwidth(load_board("imx95"), "a55", [some_measured(**here)])
    a55, origin = board.cluster("a55"), board.provenance["clusters.a55.bandwidth_all_threads_gb_per_s"]
    assert (a55.bandwidth_one_thread_gb_per_s, a55.bandwidth_all_threads_gb_per_s) == (8.0, 15.0)
    assert (origin.kind, origin.source) == ("assumed", "no less than what 2 threads read")
    board = with_bandwidth(load_board("imx95"), "a55", [some_measured(**{**here, "bandwidth_gb_per_s": 12.0})])
    assert board.cluster("a55").bandwidth_all_threads_gb_per_s == 14.0  # the negative control: nothing to move
    assert "decoders" in board.provenance["clusters.a55.bandwidth_all_threads_gb_per_s"].source


def test_an_assumed_number_of_one_thread_is_at_most_what_all_read() -> None:
    little = MeasuredBandwidth(((0, 1, 2, 3),), (4.0,))
    board = with_bandwidth(load_board("rk3588"), "a76", [some_measured(bandwidths=(little,))])
    a55, origin = board.cluster("a55"), board.provenance["clusters.a55.bandwidth_one_thread_gb_per_s"]
    assert (a55.bandwidth_one_thread_gb_per_s, a55.bandwidth_all_threads_gb_per_s) == (4.0, 4.0)
    assert (origin.kind, origin.source) == ("assumed", "no more than what 4 threads read")


def test_a_decoders_rate_is_not_held_against_reads() -> None:
    """rk3588 with one thread: all threads keep what decoders showed, though one thread reads more."""
    here = {"threads": 1, "bandwidth_gb_per_s": 16.0, "bandwidth_one_thread_gb_per_s": 16.0, "bandwidths": ()}
    a76 = with_bandwidth(load_board("rk3588"), "a76", [some_measured(**here)]).cluster("a76")
    assert (a76.bandwidth_one_thread_gb_per_s, a76.bandwidth_all_threads_gb_per_s) == (16.0, 14.5)
    assert (a76.bandwidth_one_thread_rate, a76.bandwidth_all_threads_rate) == ("read", "decoder")
    assert a76.bandwidth_by_threads_gb_per_s == ()


def test_all_threads_are_written_where_one_copies() -> None:
    big = MeasuredBandwidth(((4, 5, 6, 7, 8, 9, 10, 11),), (37.0,))
    a720 = with_bandwidth(load_board("orion-o6"), "a520", [some_measured(bandwidths=(big,))]).cluster("a720")
    assert (a720.bandwidth_one_thread_gb_per_s, a720.bandwidth_all_threads_gb_per_s) == (16.0, 37.0)
    assert (a720.bandwidth_one_thread_rate, a720.bandwidth_all_threads_rate) == ("copy", "read")


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
    turns = [
        some_measured(threads=by, start_s=by * 5e-6, turns=MeasuredTurns(by * 10e-6, by * 20e-6, 0.0, by * 30e-6))
        for by in (2, 1)
    ]
    found = measured_factors(board, turns)  # most threads count, and what is less than nothing is a cycle
    assert found["draft_turn_cycles"] == pytest.approx(20e-6 * 2.3e9)
    assert found["verify_turn_cycles"] == pytest.approx(40e-6 * 2.3e9)
    assert found["turn_start_cycles"] == pytest.approx(60e-6 * 2.3e9)
    assert found["start_cycles"] == pytest.approx(10e-6 * 2.3e9)
    assert found["turn_cycles"] == 1.0
    assert set(found) <= set(Factors().to_json())


def test_a_region_costs_what_most_threads_measured() -> None:
    before = load_board("rk3588")
    board = with_region_cost(
        before, "a76", [some_measured(region_cost_s={4: 2.5e-6}), some_measured(region_cost_s={2: 1e-6})]
    )
    assert board.cluster("a76").launch_overhead_s == 2.5e-6
    assert board.provenance["clusters.a76.launch_overhead_s"].kind == "measured"
    assert board.cluster("a55").launch_overhead_s == before.cluster("a55").launch_overhead_s
    assert with_region_cost(before, "a76", [some_measured()]).cluster("a76") == before.cluster("a76")
