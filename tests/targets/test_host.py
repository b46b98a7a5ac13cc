from __future__ import annotations

import time
from pathlib import Path

import pytest

from targets.boards import load_board
from targets.cpu.tile import cpu_tile
from targets.errors import UserError
from targets.host import bandwidth, host_board
from targets.host.bandwidth import BandwidthReader, measure_read_bandwidth
from targets.host.features import masked_features, present_features


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def rk3588(root: Path) -> None:
    """The /proc and /sys of an RK3588, as far as the host board reads them."""
    blocks = []
    for cpu in range(8):
        part = "0xd05" if cpu < 4 else "0xd0b"
        features = "fp asimd aes crc32 atomics fphp asimdhp asimddp"
        blocks.append(f"processor\t: {cpu}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n")
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        write(root, f"{folder}/cpufreq/cpuinfo_max_freq", "1800000\n" if cpu < 4 else "2304000\n")
        l2 = "128K" if cpu < 4 else "512K"
        caches = [("1", "Data", "32K", 1 << cpu), ("2", "Unified", l2, 1 << cpu), ("3", "Unified", "3072K", 255)]
        for index, (level, kind, size, sharers) in enumerate(caches):
            for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_map", f"{sharers:02x}")):
                write(root, f"{folder}/cache/index{index}/{name}", text + "\n")
    write(root, "proc/cpuinfo", "\n".join(blocks))
    write(root, "proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n")


def test_big_and_little_cores_become_clusters(tmp_path: Path) -> None:
    rk3588(tmp_path)
    board = host_board(measure=False, root=tmp_path)
    big, little = board.clusters
    assert (big.core.name, big.cpu_ids, big.frequency_ghz) == ("cortex-a76", (4, 5, 6, 7), 2.304)
    assert (little.core.name, little.cpu_ids, little.frequency_ghz) == ("cortex-a55", (0, 1, 2, 3), 1.8)
    assert (big.l2_bytes, little.l2_bytes, big.l3_bytes) == (512 << 10, 128 << 10, 3 << 20)
    assert board.dram.capacity_bytes == 8_000_000 * 1024
    assert board.provenance["dram.peak_bandwidth_gb_per_s"].kind == "assumed"
    assert board.provenance["clusters.cpu0.bandwidth_one_thread_gb_per_s"].kind == "assumed"


def test_split_gives_each_half_a_cluster(tmp_path: Path) -> None:
    rk3588(tmp_path)
    board = host_board(measure=False, root=tmp_path, split=True)
    assert [c.cpu_ids for c in board.clusters] == [(4, 5), (6, 7), (0, 1), (2, 3)]
    assert [c.name for c in board.clusters] == ["cpu0", "cpu1", "cpu2", "cpu3"]
    assert board.name == "host-split"
    blocks = (tmp_path / "proc/cpuinfo").read_text().split("\n\n")
    (tmp_path / "proc/cpuinfo").write_text(blocks[0])
    with pytest.raises(UserError, match="needs two CPUs"):
        host_board(measure=False, root=tmp_path, split=True)


def test_an_arm_core_of_no_table_is_described_by_its_flags(tmp_path: Path) -> None:
    rk3588(tmp_path)
    text = (tmp_path / "proc/cpuinfo").read_text().replace("0xd0b", "0xfff").replace("0xd05", "0xfff")
    (tmp_path / "proc/cpuinfo").write_text(text)
    (cluster,) = host_board(measure=False, root=tmp_path).clusters
    assert (cluster.core.llvm_cpu, cluster.count, cluster.core.vector_bits) == ("native", 8, 128)
    assert cluster.core.has_dotprod
    assert "+dotprod" in cluster.core.llvm_features


@pytest.mark.parametrize(
    ("flags", "vendor", "bits", "registers", "flops"),
    [
        ("lm sse4_2", "GenuineIntel", 128, 16, 16),
        ("lm avx2 fma", "AuthenticAMD", 256, 16, 32),
        ("lm avx2 fma avx512f avx512bw avx512dq avx512vl", "AuthenticAMD", 512, 32, 32),
        ("lm avx2 fma avx512f avx512bw avx512dq avx512vl", "GenuineIntel", 512, 32, 64),
    ],
)
def test_x86_flags(tmp_path: Path, flags: str, vendor: str, bits: int, registers: int, flops: float) -> None:
    write(tmp_path, "proc/cpuinfo", f"processor : 0\nvendor_id : {vendor}\ncpu MHz : 2500.0\nflags : {flags}\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 1000000 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "536870912\n")
    board = host_board(measure=False, root=tmp_path)
    core = board.clusters[0].core
    assert (core.vector_bits, core.vector_registers, core.fp32_flops_per_cycle) == (bits, registers, flops)
    assert board.dram.capacity_bytes == 512 << 20  # the container's limit, below the machine's memory
    assert board.clusters[0].frequency_ghz == 2.5


@pytest.mark.parametrize(
    ("flags", "multiply"),
    [
        ("avx2 fma", "pmadd"),
        ("avx2 fma avx_vnni", "vnni 256"),
        ("avx2 fma avx512_vnni", "pmadd"),  # without vectors of 256 bits
        ("avx2 fma avx512_vnni avx512vl", "vnni 256"),
        ("avx2 fma avx512f avx512bw avx512dq avx512vl", "pmadd"),
        ("avx2 fma avx512f avx512bw avx512dq avx512vl avx_vnni", "pmadd"),  # without vectors of 512 bits
        ("avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni", "vnni 512"),
        ("sse4_2", "pmadd"),
    ],
)
def test_dot_products_of_whole_vectors(tmp_path: Path, flags: str, multiply: str) -> None:
    write(tmp_path, "proc/cpuinfo", f"processor : 0\nvendor_id : GenuineIntel\ncpu MHz : 2500.0\nflags : lm {flags}\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 1000000 kB\n")
    core = host_board(measure=False, root=tmp_path).clusters[0].core
    assert cpu_tile(core).dot == multiply
    assert core.has_dotprod == (multiply != "pmadd")
    assert core.int8_ops_per_cycle == (4 if core.has_dotprod else 2) * core.fp32_flops_per_cycle


@pytest.mark.parametrize(("family", "flops"), [(25, 32), (26, 64)])
def test_amd_cores_of_family_26_have_whole_pipes(tmp_path: Path, family: int, flops: float) -> None:
    flags = "lm avx2 fma avx512f avx512bw avx512dq avx512vl"
    write(
        tmp_path,
        "proc/cpuinfo",
        f"processor : 0\nvendor_id : AuthenticAMD\ncpu family : {family}\ncpu MHz : 2500.0\nflags : {flags}\n",
    )
    write(tmp_path, "proc/meminfo", "MemTotal: 1000000 kB\n")
    assert host_board(measure=False, root=tmp_path).clusters[0].core.fp32_flops_per_cycle == flops


def test_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs /proc/cpuinfo"):
        host_board(measure=False, root=tmp_path)
    write(tmp_path, "proc/cpuinfo", "processor : 0\nisa : rv64imafdc\n")
    with pytest.raises(UserError, match="needs x86-64 or AArch64 Linux"):
        host_board(measure=False, root=tmp_path)


def test_features_that_a_virtual_machine_hides_are_switched_off() -> None:
    present = present_features("x86-64", {"avx2", "fma", "abm"})
    assert present == ("+avx2", "+fma", "+lzcnt")
    assert masked_features("x86-64", present, {"avx2", "avx512f", "fast-bextr"}) == ("-avx512f",)


def test_what_is_measured_is_marked_so() -> None:
    board = load_board("host")
    (path,) = [p for p in board.provenance if p.endswith(".bandwidth_one_thread_gb_per_s")][:1]
    assert board.provenance[path].kind == "measured"
    assert 0.1 < board.clusters[0].bandwidth_one_thread_gb_per_s < 1000


def test_the_rate_is_bytes_over_time() -> None:
    one, every = measure_read_bandwidth(2, last_cache_bytes=0, available_bytes=256 << 20)  # so the buffer has 64 MiB
    assert one <= every
    reader = BandwidthReader(1, size_bytes=64 << 20)
    start = time.perf_counter()
    rate = reader()
    assert 0 < (64 << 20) / (time.perf_counter() - start) / 1e9 <= rate  # the clock of the rate runs inside this one


@pytest.mark.parametrize(("one", "kept"), [(9.7, (20.1, 40.2)), (30.0, (30.0, 40.2)), (50.0, (50.0, 50.0))])
def test_one_thread_read_at_least_its_share(
    monkeypatch: pytest.MonkeyPatch, one: float, kept: tuple[float, float]
) -> None:
    """Other work can have slowed down the one thread while it was measured."""
    rates = {1: one, 2: 40.2}
    monkeypatch.setattr(bandwidth, "_best_rate", lambda threads, size: rates[threads])
    assert measure_read_bandwidth(2, last_cache_bytes=0, available_bytes=1 << 30) == kept
