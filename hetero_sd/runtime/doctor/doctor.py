"""``hetero-sd doctor`` and ``run.py --doctor``: what this machine has, what is missing, and what fixes it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from shlex import quote

from hetero_sd.runtime.doctor import machine
from hetero_sd.runtime.doctor.bundle_findings import bundle_findings
from hetero_sd.runtime.doctor.finding import Finding, any_problem, report_json, report_text
from hetero_sd.runtime.doctor.opencl_findings import kernel_release, opencl_findings, runtime_finding
from hetero_sd.runtime.doctor.opencl_probe import probe_apart
from targets.host.calibrated import find
from targets.zig import OLDEST_GLIBC

OLDEST_PYTHON = (3, 10)
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy", "tokenizers")
_FAT = ("vfat", "msdos", "exfat")


def examine(folder: Path | None = None, opencl_lib: str | None = None, root: Path = Path("/")) -> list[Finding]:
    """Look at the machine, at the folder of a bundle if one is given, and at OpenCL.

    Args:
        folder: the bundle.
        opencl_lib: the OpenCL library to open; None tries the usual ones.
        root: where /proc, /sys and /dev are; another one in tests.
    """
    findings = [
        *_cpu(root),
        *_memory(root),
        *_calibration(root),
        *_software(),
        *(_folder(folder, root) if folder else ()),
    ]
    state, nodes = probe_apart(opencl_lib), machine.gpu_nodes(root)
    findings += [*opencl_findings(state, nodes, kernel_release(root), opencl_lib is not None), runtime_finding()]
    return [*findings, *(bundle_findings(folder, opencl_lib, bool(state.devices)) if folder else ())]


def doctor_report(folder: Path | None, opencl_lib: str | None, as_json: bool) -> tuple[str, int]:
    """What `examine` finds as text or as JSON, and the exit code: 1 where something is a problem."""
    findings = examine(folder, opencl_lib)
    return report_json(findings) if as_json else report_text(findings), int(any_problem(findings))


def _cpu(root: Path) -> Iterator[Finding]:
    found = machine.clusters(root)
    if not found:
        yield Finding("cpu", "note", "/proc/cpuinfo names no CPU")
    for cluster in found:
        clock = f", {cluster.min_mhz} to {cluster.max_mhz} MHz" if cluster.max_mhz else ", clock unknown"
        capacity = f", capacity {cluster.capacity}" if cluster.capacity else ""
        text = f"{len(cluster.cpus)} x {cluster.name} (CPUs {_ranges(cluster.cpus)}){clock}{capacity}"
        if cluster.usable != cluster.cpus:
            usable = _ranges(cluster.usable) or "none"
            yield Finding("cpu", "note", f"{text}; this process may use {usable}", "start it without taskset")
        elif cluster.governor in ("powersave", "ondemand", "conservative", "schedutil"):
            fix = "echo performance | sudo tee " + " ".join(
                f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor" for cpu in cluster.cpus
            )
            yield Finding("cpu", "note", f"{text}; governor {cluster.governor}: clocks vary during measurements", fix)
        else:
            yield Finding("cpu", "ok", text + (f"; governor {cluster.governor}" if cluster.governor else ""))


def _memory(root: Path) -> Iterator[Finding]:
    sizes = machine.memory_bytes(root)
    total, free = (sizes[name] / 1e9 for name in ("total", "available"))
    text = f"{total:.1f} GB, {free:.1f} GB available"
    if total and free < 0.2 * total:
        yield Finding(
            "memory", "note", f"{text}: weights may be read from storage again and again", "end other programs"
        )
    else:
        yield Finding("memory", "ok", text)


def _calibration(root: Path) -> Iterator[Finding]:
    """The board file of this machine, where `hetero-sd calibrate --board host` wrote one."""
    found = find(root=root)
    if found is None:
        return
    if found.ignored:
        yield Finding("board host", "note", found.ignored)
    else:
        yield Finding("board host", "ok", f"calibrated on {found.date or 'an unknown day'}: {found.path}")


def _software() -> Iterator[Finding]:
    python = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("python", "problem", f"Python {python} is older than 3.10", "install Python 3.10 or newer")
    else:
        yield Finding("python", "ok", f"Python {python} on {platform.machine()}")
    version = machine.glibc_version()
    name = ".".join(map(str, version))
    if version == (0,):
        yield Finding("glibc", "problem", "the C library is not glibc", "use a system with glibc 2.28 or newer")
    elif version < OLDEST_GLIBC:
        yield Finding("glibc", "problem", f"glibc {name} is older than 2.28", "use Debian 10, Ubuntu 20.04 or newer")
    else:
        yield Finding("glibc", "ok", f"glibc {name}")
    for package in _PACKAGES:
        try:
            yield Finding("package", "ok", f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield Finding(
                "package", "problem", f"no package {package}", f"{quote(sys.executable)} -m pip install {package}"
            )


def _folder(folder: Path, root: Path) -> Iterator[Finding]:
    mount = machine.mount_of(folder, root)
    if mount is None:
        return
    where = f"{folder} is on {mount.kind} at {mount.point}"
    if "noexec" in mount.options:
        fix = f"sudo mount -o remount,exec {quote(mount.point)}"
        yield Finding("folder", "problem", f"{where}, mounted noexec: its libraries cannot be loaded", fix)
    elif mount.kind in _FAT:
        text = f"{where}: no permissions, and files of at most 4 GB on FAT32"
        yield Finding("folder", "note", text, f"cp -r {folder} ~/ if a file is larger or a library will not load")
    elif "ro" in mount.options:
        yield Finding("folder", "ok", f"{where}, read-only: the bundle writes nothing there")
    else:
        yield Finding("folder", "ok", where)


def _ranges(numbers: tuple[int, ...]) -> str:
    """Write CPU numbers as the kernel does: 0-3,6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
