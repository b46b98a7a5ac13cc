"""``hetero-sd doctor`` and ``run.py --doctor``: what this machine has, what is missing, and what fixes it."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from shlex import quote

from hetero_sd.runtime.doctor import machine
from hetero_sd.runtime.doctor.kernel_check import KernelCheck, check_kernels, gpu_libraries
from hetero_sd.runtime.doctor.opencl_probe import NO_PLATFORM, OpenCLState, probe_apart
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.model.program_cache import cache_folder, writable
from hetero_sd.runtime.model.thread_pool import LIBRARY, PoolError, ThreadPool, why_tvms_pool
from hetero_sd.runtime.model.threads import choose_threads, usable_cpus
from targets.errors import UserError
from targets.opencl import runtime as opencl_runtime
from targets.zig import OLDEST_GLIBC, has_zig

OLDEST_PYTHON = (3, 10)
OLDEST_OPENCL = (1, 2)
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy", "tokenizers")
_OPEN_DRIVERS = ("panfrost", "panthor")  # Mesa's; OpenCL through rusticl
_FAT = ("vfat", "msdos", "exfat")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``note`` (works, but worth knowing) or ``problem``.
        fix: the command or the act that fixes it; "" where there is nothing to fix.
    """

    subject: str
    level: str
    text: str
    fix: str = ""


def examine(folder: Path | None = None, opencl_lib: str | None = None, root: Path = Path("/")) -> list[Finding]:
    """Look at the machine, at the folder of a bundle if one is given, and at OpenCL.

    Args:
        folder: the bundle.
        opencl_lib: the OpenCL library to open; None tries the usual ones.
        root: where /proc, /sys and /dev are; another one in tests.
    """
    findings = [*_cpu(root), *_memory(root), *_software(), *(_folder(folder, root) if folder else ())]
    state, nodes = probe_apart(opencl_lib), machine.gpu_nodes(root)
    findings += [*opencl_findings(state, nodes, _kernel_release(root)), _runtime()]
    return [*findings, *(_bundle(folder, opencl_lib, bool(state.devices)) if folder else ())]


def run(folder: Path | None, as_json: bool, opencl_lib: str | None = None) -> int:
    """Print what :func:`examine` finds; return 0, or 1 if there is a problem among it."""
    findings = examine(folder, opencl_lib)
    print(report_json(findings) if as_json else report_text(findings))
    return int(any(finding.level == "problem" for finding in findings))


def report_text(findings: list[Finding]) -> str:
    """Return one line a finding, and its fix on a line of its own."""
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]}  {finding.subject:{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':{width + 11}}  -> {finding.fix}")
    return "\n".join(lines)


def report_json(findings: list[Finding]) -> str:
    """Return the findings as a JSON list."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)


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


def opencl_findings(state: OpenCLState, nodes: list[machine.GpuNode], kernel_release: str) -> list[Finding]:
    """Judge what was found of OpenCL; the first usable GPU settles it."""
    findings = [*_nodes(nodes)]
    drivers = {node.driver for node in nodes}
    absent = "problem" if nodes else "note"  # a machine without a GPU needs no OpenCL
    if state.crash:
        fix = "install another release of the driver, or name another library with --opencl-lib"
        findings.append(Finding("opencl", absent, f"the OpenCL driver {state.crash} when it was asked", fix))
    elif state.library is None:
        tried = "; ".join(f"{name}: {reason}" for name, reason in state.tried.items())
        packages = "ocl-icd-libopencl1" + (" mesa-opencl-icd" if drivers & set(_OPEN_DRIVERS) else "")
        findings.append(Finding("opencl", absent, f"no loader ({tried})", f"sudo apt-get install {packages}"))
    elif state.status != 0:
        code = "CL_PLATFORM_NOT_FOUND_KHR" if state.status == NO_PLATFORM else f"status {state.status}"
        text = f"{state.library} finds no driver ({code})"
        findings.append(Finding("opencl", absent, text, _driver_fix(drivers)))
    for name, version, devices in state.platforms:
        if devices == 0 and "rusticl" in name.lower() and not os.environ.get("RUSTICL_ENABLE"):
            fix = f"export RUSTICL_ENABLE={'panfrost' if drivers & set(_OPEN_DRIVERS) else 'DRIVER'}"
            findings.append(Finding("opencl", "problem", f"{name} ({version}) has no device: it is not enabled", fix))
        elif devices == 0:
            findings.append(Finding("opencl", "problem", f"{name} ({version}) has no device", _driver_fix(drivers)))
    for device in state.devices:
        text = f"{device.name} ({device.kind}, {device.platform}), {device.version}, driver {device.driver}"
        findings.append(Finding("opencl", "ok" if device.kind == "gpu" else "note", text))
        features = ", ".join(("" if there else "no ") + name for name, there in device.features.items())
        limits = (
            f"{device.compute_units} units, work-groups up to {device.max_work_group}, buffers up to "
            f"{device.max_alloc_bytes / 2**20:.0f} MiB of {device.global_bytes / 2**20:.0f}, "
            f"{device.local_bytes / 2**10:.0f} KiB local"
        )
        findings.append(Finding("opencl", "ok", f"{features}; {limits}"))
        found = re.match(r"OpenCL (\d+)\.(\d+)", device.version)
        if found and (int(found[1]), int(found[2])) < OLDEST_OPENCL:
            text = f"{device.name} has OpenCL {found[1]}.{found[2]}, kernels need 1.2"
            fix = "install a newer driver, or compile with --place cpu"
            findings.append(Finding("opencl", "problem" if device.kind == "gpu" else "note", text, fix))
        findings += _versions(device.driver + " " + device.version, kernel_release)
    if state.devices and all(device.kind != "gpu" for device in state.devices):
        fix = _driver_fix(drivers) if nodes else ""
        findings.append(Finding("opencl", absent, "no GPU among the devices", fix))
    return findings


def _bundle(folder: Path, opencl_lib: str | None, has_device: bool) -> list[Finding]:
    """Build every GPU kernel of a bundle; a folder that is none is left alone."""
    if not (folder / MANIFEST).is_file():
        return []
    try:
        bundle = Bundle(folder)
        threads = _thread_pool(bundle)
        if not gpu_libraries(bundle):
            return [threads, Finding("kernels", "ok", "the bundle has no GPU kernels: its models run on the CPU")]
        if not has_device:
            return [threads, _without_gpu(bundle)]
        return [threads, *kernel_findings(check_kernels(folder, opencl_lib)), *_cache()]
    except UserError as error:
        return [Finding("bundle", "problem", str(error), "copy the bundle again")]


def _thread_pool(bundle: Bundle) -> Finding:
    """Say whose thread pool runs the CPU kernels, and what a parallel region of ours costs here."""
    why = why_tvms_pool(bundle)
    threads = choose_threads(None, bundle.plan)
    if why is None:
        try:
            pool = ThreadPool(bundle.path(LIBRARY), usable_cpus(), threads)
        except PoolError as error:
            why = str(error)
    if why is not None:
        fix = "unset HSD_THREAD_POOL" if why.startswith("HSD_") else "compile the bundle again"
        return Finding("threads", "note", f"TVM's thread pool is used, which suffers on a busy machine: {why}", fix)
    cost_us = 1e6 * pool.region_cost_s()
    pool.close()
    cost = f"a parallel region of {threads} threads adds {cost_us:.1f} us" if threads > 1 else "one thread"
    return Finding("threads", "ok", f"our thread pool: {cost}")


def _without_gpu(bundle: Bundle) -> Finding:
    lost = [role for role, model in bundle.models.items() if model.opencl_runtime and not model.fallback]
    if lost:
        text = f"the {' and the '.join(lost)} of the bundle cannot run here: no OpenCL device"
        return Finding("kernels", "problem", text, "fix what is said of opencl, or compile with --place cpu")
    return Finding("kernels", "note", "no OpenCL device: the bundle's models run on the CPU, for which it has them too")


def kernel_findings(checks: list[KernelCheck]) -> list[Finding]:
    """Judge what became of the kernels of each library; at most five are named."""
    fix = "install another release of the driver; until then compile with --place cpu"
    findings = []
    for check in checks:
        for name, reason in check.failed[:5]:
            text = f"{check.library}: kernel {name} does not build: {reason.partition('; its log: ')[2] or reason}"
            findings.append(Finding("kernels", "problem", text, fix))
        if len(check.failed) > 5:
            findings.append(Finding("kernels", "problem", f"{check.library}: and {len(check.failed) - 5} more", fix))
        if check.problem:
            findings.append(Finding("kernels", "problem", f"{check.library}: {check.problem}", fix))
        elif not check.failed:
            findings.append(Finding("kernels", "ok", f"{check.library}: all {check.kernels} kernels build"))
    return findings


def _cache() -> Iterator[Finding]:
    """Say where compiled kernels are kept, or that they are not."""
    folder = cache_folder()
    if folder is None or not writable(folder):
        where = "there is no folder" if folder is None else f"{folder} cannot be written"
        text = f"{where} to keep compiled kernels in: every start compiles them"
        yield Finding("cache", "note", text, "run.py --cache-dir FOLDER")
    else:
        yield Finding("cache", "ok", f"compiled kernels are kept in {folder}")


def _runtime() -> Finding:
    """Say whether our OpenCL runtime lies ready or can be built; it is needed only where kernels go to a GPU."""
    library = opencl_runtime.find()
    if library is not None:
        return Finding("opencl", "ok", f"runtime {library}")
    if not opencl_runtime.SOURCES.is_dir():
        return Finding("opencl", "ok", "this bundle carries no OpenCL runtime: its models run on the CPU")
    if not has_zig():
        return Finding("opencl", "note", "the OpenCL runtime cannot be built here", "pip install ziglang")
    return Finding("opencl", "ok", "the runtime will be built with zig when it is first needed")


def _nodes(nodes: list[machine.GpuNode]) -> Iterator[Finding]:
    for node in nodes:
        if node.usable:
            yield Finding("gpu", "ok", f"{node.path}, kernel driver {node.driver}")
        else:
            user = getpass.getuser()
            fix = f"sudo usermod -aG {quote(node.group)} {quote(user)}, then log in again"
            if node.group in ("", "root"):
                fix = f"sudo chmod 666 {quote(node.path)}"
            yield Finding("gpu", "problem", f"{user} may not open {node.path} (kernel driver {node.driver})", fix)


def _driver_fix(drivers: set[str]) -> str:
    if drivers & set(_OPEN_DRIVERS):
        return "sudo apt-get install mesa-opencl-icd, then export RUSTICL_ENABLE=panfrost"
    if "mali" in drivers:
        return "install the board vendor's libmali and write its path into /etc/OpenCL/vendors/mali.icd"
    return "no Mali kernel driver is loaded either; for a trial on the CPU: sudo apt-get install pocl-opencl-icd"


def _versions(user_space: str, kernel: str) -> Iterator[Finding]:
    """Compare Arm's release numbers, such as g13p0, where both sides of the driver state one."""
    pattern = r"\b([gr]\d+p\d+)"
    above, below = re.search(pattern, user_space), re.search(pattern, kernel)
    if above and below and above[1] != below[1]:
        text = f"libmali is {above[1]} and the kernel driver {below[1]}: they must be of one release"
        yield Finding("opencl", "problem", text, f"install the libmali of release {below[1]}")


def _kernel_release(root: Path) -> str:
    """Return what Arm's kernel driver says of its release; "" without one."""
    for module in ("mali_kbase", "bifrost_kbase", "midgard_kbase", "mali"):
        try:
            return (root / "sys/module" / module / "version").read_text("ascii", errors="replace").strip()
        except OSError:
            continue
    return ""


def _ranges(numbers: tuple[int, ...]) -> str:
    """Write CPU numbers as the kernel does: 0-3,6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
