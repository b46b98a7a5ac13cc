"""The boards ``host`` and ``host-split``: this machine, x86-64 or AArch64 Linux, from /proc and /sys and by measuring.

So the whole path, from ONNX to predicted and measured tokens, runs without a board at hand.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from targets.cpu import core_tables
from targets.device import Board
from targets.errors import UserError
from targets.host.cpuinfo import core_name, read_cpus, read_memory, read_text
from targets.host.features import present_features
from targets.read_board import read_board

_ROOT = Path("/")
_GIB = 1 << 30


def host_board(measure: bool = True, root: Path = _ROOT, split: bool = False) -> Board:
    """Describe this machine.

    Args:
        measure: measure the DRAM bandwidth, about one second; otherwise those numbers are of kind ``assumed``.
        root: where /proc and /sys lie (another folder in tests).
        split: the board ``host-split``: each kind of CPU as two clusters, so that two models have processors of
            their own.

    Raises:
        UserError: neither x86-64 nor AArch64, /proc cannot be read, or one CPU cannot be split.
    """
    cpus = _usable_cpus(root)
    isa = _isa(cpus)
    groups = list(_group_by_core(cpus, isa).items())
    if split:
        groups = [(name, half) for name, group in groups for half in _halves(group)]
        if len(groups) < 2:
            raise UserError("board host-split needs two CPUs, this process may use one; take board host")
    memory = _memory_bytes(root)
    caches = {cpu: _caches(root, cpu) for _, group in groups for cpu in group[:1]}
    cpu_count = sum(len(group) for _, group in groups)
    last_cache = max((c["l3"] or c["l2"] for c in caches.values()), default=0)
    rates = _read_rates(cpu_count, last_cache, memory["MemAvailable"]) if measure else _assumed_rates()
    clusters = []
    for index, (name, group) in enumerate(groups):
        first, cache = cpus[group[0]], caches[group[0]]
        every = {**rates["all"], "value": min(_number(rates["all"]), round(len(group) * _number(rates["one"]), 2))}
        clusters.append(
            {
                "name": f"cpu{index}" if len(groups) > 1 else "cpu",
                "core": core_tables().get(name) or _core_table(first, isa, cache["l1d"]),
                "count": _fact(len(group), "measured", "CPUs of this kind that this process may use"),
                "frequency_ghz": _frequency(root, group[0], first),
                "cpu_ids": _fact(group, "measured", "sched_getaffinity"),
                "l2_bytes": _fact(cache["l2"], "measured", "/sys/devices/system/cpu: its part for one CPU"),
                "l3_bytes": _fact(cache["l3"], "measured", "/sys/devices/system/cpu"),
                "bandwidth_one_thread_gb_per_s": rates["one"],
                "bandwidth_all_threads_gb_per_s": every if split else rates["all"],
                "launch_overhead_s": _fact(5e-6, "assumed", "4 to 5 us measured on an x86-64 server with two threads"),
            }
        )
    reserved = min(_GIB, memory["MemTotal"] // 4)
    table = {
        "name": "host-split" if split else "host",
        "description": f"this machine: {cpu_count} CPUs, {isa}" + (", in two halves" if split else ""),
        "clusters": clusters,
        "dram": {
            "capacity_bytes": _fact(memory["MemTotal"], "measured", "/proc/meminfo, or the limit of the container"),
            "peak_bandwidth_gb_per_s": rates["peak"],
            "reserved_bytes": _fact(reserved, "assumed", "1 GiB, or a quarter of a small memory, for everything else"),
        },
    }
    return read_board(table, "this machine", {})


def _halves(group: list[int]) -> list[list[int]]:
    middle = (len(group) + 1) // 2
    return [half for half in (group[:middle], group[middle:]) if half]


def _number(fact: dict[str, object]) -> float:
    value = fact["value"]
    assert isinstance(value, (int, float))
    return float(value)


def _read_rates(cpu_count: int, last_cache_bytes: int, available_bytes: int) -> dict[str, dict[str, object]]:
    """Facts of the bandwidth that one CPU and all of them read, and of the peak that this suggests."""
    from targets.host.bandwidth import measure_read_bandwidth

    one, every = measure_read_bandwidth(cpu_count, last_cache_bytes, available_bytes)
    how = "largest element of a large int32 array, best of five runs (targets/host/bandwidth.py)"
    peak = "a quarter above what all CPUs read together: this program cannot see which modules are fitted"
    return {
        "one": _fact(round(one, 2), "measured", how),
        "all": _fact(round(every, 2), "measured", how),
        "peak": _fact(round(1.25 * every, 2), "assumed", peak),
    }


def _assumed_rates() -> dict[str, dict[str, object]]:
    return {
        "one": _fact(8.0, "assumed", "not measured: about what one thread of a small computer reads"),
        "all": _fact(16.0, "assumed", "not measured: twice one thread"),
        "peak": _fact(20.0, "assumed", "not measured: a quarter above all threads"),
    }


def _fact(value: object, kind: str, source: str) -> dict[str, object]:
    return {"value": value, "kind": kind, "source": source}


def _usable_cpus(root: Path) -> dict[int, dict[str, str]]:
    """The CPUs that this process may use."""
    cpus = read_cpus(root)
    if not cpus:
        raise UserError("board host needs /proc/cpuinfo, which cannot be read")
    usable = os.sched_getaffinity(0) if root == _ROOT else set(cpus)
    return {cpu: fields for cpu, fields in cpus.items() if cpu in usable}


def _isa(cpus: dict[int, dict[str, str]]) -> str:
    fields = next(iter(cpus.values()), {})
    if "CPU implementer" in fields:
        return "aarch64"
    if "lm" in fields.get("flags", "").split():
        return "x86-64"
    raise UserError(f"board host needs x86-64 or AArch64 Linux, this is {platform.machine()}")


def _group_by_core(cpus: dict[int, dict[str, str]], isa: str) -> dict[str, list[int]]:
    """Core name -> CPU numbers, biggest cores first; x86-64 is one group, named for the instruction set."""
    groups: dict[str, list[int]] = {}
    for cpu, fields in cpus.items():
        groups.setdefault(isa if isa == "x86-64" else core_name(fields), []).append(cpu)
    return dict(sorted(groups.items(), key=lambda item: _peak_flops(item[0]), reverse=True))


def _peak_flops(core_name: str) -> float:
    table = core_tables().get(core_name)
    return float(table["fp32_flops_per_cycle"]["value"]) if table else 0.0


def _core_table(fields: dict[str, str], isa: str, l1d_bytes: int) -> dict[str, Any]:
    """Facts of a core that is in no table, from its CPU flags."""
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    intel = fields.get("vendor_id") == "GenuineIntel"
    width, registers, pipes = 128, 32, 2
    if isa == "x86-64":
        wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
        width, registers = (512, 32) if wide else (256, 16) if {"avx2", "fma"} <= flags else (128, 16)
        # AMD: two 256-bit pipes made one 512-bit operation a cycle before Zen 5 (family 26), whose pipes have 512 bits.
        pipes = 2 if width < 512 or intel or int(fields.get("cpu family", "0")) >= 26 else 1
    flops = width // 32 * 2 * pipes
    dotprod = _has_dotprod(isa, width, flags)
    seen = "/proc/cpuinfo"
    rate = f"{pipes} fused multiply-adds of {width} bits a cycle"
    gain = 4 if dotprod else 2
    l1d_kind = "measured" if l1d_bytes else "assumed"
    return {
        "name": f"host-{isa}",
        "isa": isa,
        "llvm_cpu": "native",
        "llvm_features": list(present_features(isa, flags)),
        "vector_bits": _fact(width, "measured", seen),
        "vector_registers": _fact(registers, "measured", seen),
        "fp32_flops_per_cycle": _fact(flops, "assumed", rate),
        "int8_ops_per_cycle": _fact(flops * gain, "assumed", f"{gain} times float32"),
        "l1d_bytes": _fact(l1d_bytes or 32768, l1d_kind, "/sys/devices/system/cpu, else 32 KiB"),
        "has_dotprod": _fact(dotprod, "measured", seen),
        "has_fp16": _fact(bool(flags & {"asimdhp", "avx512_fp16"}), "measured", seen),
        "has_i8mm": _fact("i8mm" in flags, "measured", seen),
        "in_order": _fact(False, "assumed", "Linux does not say; x86-64 cores and large Arm cores are not"),
    }


def _has_dotprod(isa: str, width: int, flags: set[str]) -> bool:
    """Whether there are int8 dot products of whole vectors."""
    if isa == "aarch64":
        return "asimddp" in flags
    of_256 = "avx_vnni" in flags or {"avx512_vnni", "avx512vl"} <= flags
    return {512: "avx512_vnni" in flags, 256: of_256}.get(width, False)


def _frequency(root: Path, cpu: int, fields: dict[str, str]) -> dict[str, object]:
    text = read_text(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq")
    if text.isdigit():
        return _fact(round(int(text) / 1e6, 3), "measured", "cpufreq/cpuinfo_max_freq: the highest clock")
    try:
        # One decimal, so that the board is the same the next time it is described.
        return _fact(round(float(fields["cpu MHz"]) / 1e3, 1), "measured", "/proc/cpuinfo: the clock when it was read")
    except (KeyError, ValueError):
        return _fact(2.0, "assumed", "the system does not say")


def _caches(root: Path, cpu: int) -> dict[str, int]:
    """Bytes of the data caches of one CPU: l1d, its part of l2, and the whole l3; 0 where the system is silent."""
    sizes = {"l1d": 0, "l2": 0, "l3": 0}
    for index in range(8):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
        level, kind, size = (read_text(folder / name) for name in ("level", "type", "size"))
        if kind == "Instruction" or not size.endswith("K") or not size[:-1].isdigit():
            continue
        sharers = max(1, bin(int(read_text(folder / "shared_cpu_map").replace(",", "") or "1", 16)).count("1"))
        if level == "1":
            sizes["l1d"] = int(size[:-1]) * 1024
        elif level == "2":
            sizes["l2"] = int(size[:-1]) * 1024 // sharers
        elif level == "3":
            sizes["l3"] = int(size[:-1]) * 1024
    return sizes


def _memory_bytes(root: Path) -> dict[str, int]:
    """MemTotal and MemAvailable in bytes, not above the limit of the container."""
    sizes = read_memory(root)
    if "MemTotal" not in sizes:
        raise UserError("board host needs /proc/meminfo, which cannot be read")
    limits = [read_text(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    most = min([sizes["MemTotal"], *(int(limit) for limit in limits if limit.isdigit())])
    return {"MemTotal": most, "MemAvailable": min(most, sizes.get("MemAvailable", most))}
