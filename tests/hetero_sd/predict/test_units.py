from __future__ import annotations

import pytest

from hetero_sd.predict.units import plain, size, with_unit


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("dram.capacity_bytes", 17179869184, "17.2 GB"),
        ("clusters.a55.l2_bytes", 65536, "65.5 kB"),
        ("clusters.a55.l3_bytes", 0, "0 B"),
        ("gpu.launch_overhead_s", 6e-5, "60 us"),
        ("clusters.a76.frequency_ghz", 2.3, "2.3 GHz"),
        ("gpu.bandwidth_gb_per_s", 24.9, "24.9 GB/s"),
        ("gpu.fp32_gflops", 470.0, "470 GFLOP/s"),
        ("clusters.a76.core.fp32_flops_per_cycle", 16.0, "16 operations a cycle"),
        ("clusters.a76.bandwidth_by_threads_gb_per_s", (13.7, 12.7), "13.7, 12.7 GB/s"),
        ("clusters.a76.cpu_ids", (4, 5), "4, 5"),
        ("clusters.a76.count", 4, "4"),
        ("gpu.unified_memory", True, "yes"),
        ("step_cycles", 100_000.0, "100000 cycles"),
        ("page_ns", 1.0, "1 ns"),
        ("launch", 0.00002, "0.00002"),
        ("gpu_compute", 0.456789, "0.4568"),
    ],
)
def test_a_number_by_its_name(name: str, value: object, text: str) -> None:
    assert with_unit(name, value) == text


def test_borders_between_units() -> None:
    assert [size(n) for n in (999, 1000, 999_499, 999_500, 1e9)] == ["999 B", "1 kB", "999 kB", "1 MB", "1 GB"]
    assert [plain(x) for x in (0.1, 1e6, 123456.7, -0.25)] == ["0.1", "1000000", "123500", "-0.25"]
