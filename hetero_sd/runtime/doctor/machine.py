"""What Linux says of this machine: CPU clusters, clocks, memory, glibc, the GPU's driver, the mount of a folder."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from targets.host.cpuinfo import core_name, read_cpus, read_memory, read_number, read_text


@dataclass(frozen=True)
class CpuCluster:
    """CPUs of one kind.

    Attributes:
        capacity: the scheduler's measure of speed, 1024 for the fastest; 0 where it is silent.
        min_mhz: lowest clock, 0 where the system does not say.
        max_mhz: highest clock.
        governor: cpufreq's policy, such as ``schedutil``; "" where there is none.
        usable: the CPUs of it that this process may run on.
    """

    name: str
    cpus: tuple[int, ...]
    usable: tuple[int, ...]
    capacity: int
    min_mhz: int
    max_mhz: int
    governor: str


@dataclass(frozen=True)
class Mount:
    """The file system that holds a folder."""

    point: str
    kind: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class GpuNode:
    """A device node of a GPU.

    Attributes:
        driver: the kernel driver, such as ``mali``, ``panthor`` or ``panfrost``.
        group: the group that may use it, "" if it has no name.
        usable: this user may open it.
    """

    path: str
    driver: str
    group: str
    usable: bool


def clusters(root: Path = Path("/")) -> list[CpuCluster]:
    """Return the CPUs grouped by kind, capacity and clock, fastest first."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") and root == Path("/") else None
    groups: dict[tuple[str, int, int, int, str], list[int]] = {}
    for cpu, fields in read_cpus(root).items():
        name = core_name(fields) if "CPU part" in fields else fields.get("model name", "unknown CPU")
        name = name.title() if name.startswith("cortex-") else name
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        clocks = [read_number(folder / "cpufreq" / f"cpuinfo_{end}_freq") // 1000 for end in ("min", "max")]
        governor = read_text(folder / "cpufreq/scaling_governor")
        key = (name, read_number(folder / "cpu_capacity"), clocks[0], clocks[1], governor)
        groups.setdefault(key, []).append(cpu)
    found = [
        CpuCluster(name, tuple(cpus), tuple(c for c in cpus if allowed is None or c in allowed), cap, low, high, gov)
        for (name, cap, low, high, gov), cpus in groups.items()
    ]
    return sorted(found, key=lambda cluster: (-cluster.capacity, -cluster.max_mhz, cluster.cpus))


def memory_bytes(root: Path = Path("/")) -> dict[str, int]:
    """Return ``total``, ``available`` and ``swap``; 0 where the system does not say."""
    sizes = read_memory(root)
    names = {"total": "MemTotal", "available": "MemAvailable", "swap": "SwapTotal"}
    return {name: sizes.get(key, 0) for name, key in names.items()}


def glibc_version() -> tuple[int, ...]:
    """Return the C library's release such as (2, 36), or (0,) where it is not glibc."""
    kind, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")) if kind == "glibc" and version else (0,)


def mount_of(folder: Path, root: Path = Path("/")) -> Mount | None:
    """Return the file system that holds ``folder``, or None where /proc/mounts is silent."""
    place = str(folder.resolve())
    best: Mount | None = None
    for line in read_text(root / "proc/mounts").splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])  # \040 stands for a space
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.point)):
            best = Mount(point, fields[2], tuple(fields[3].split(",")))
    return best


def gpu_nodes(root: Path = Path("/")) -> list[GpuNode]:
    """Return the nodes through which a Mali driver talks to its kernel: /dev/mali0 and DRM render nodes."""
    found = []
    for node in sorted([*(root / "dev").glob("mali[0-9]*"), *(root / "dev/dri").glob("renderD*")]):
        driver = "mali"
        if node.name.startswith("renderD"):
            driver = (root / "sys/class/drm" / node.name / "device/driver").resolve().name
        found.append(GpuNode(str(node), driver, _group(node), os.access(node, os.R_OK | os.W_OK)))
    return found


def _group(path: Path) -> str:
    import grp

    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (KeyError, OSError):
        return ""
