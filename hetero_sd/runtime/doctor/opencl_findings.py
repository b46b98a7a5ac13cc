"""What the doctor says of OpenCL: loader, driver, device, and the runtime of ours."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from hetero_sd.runtime.doctor import machine
from hetero_sd.runtime.doctor.finding import Finding
from hetero_sd.runtime.doctor.opencl_probe import NO_PLATFORM, OpenCLState
from targets.opencl import runtime as opencl_runtime
from targets.zig import has_zig

OLDEST_OPENCL = (1, 2)
_OPEN_DRIVERS = ("panfrost", "panthor")  # Mesa's; OpenCL through rusticl


def opencl_findings(
    state: OpenCLState, nodes: list[machine.GpuNode], kernel_release: str, stated: bool = False
) -> list[Finding]:
    """Judge what was found of OpenCL, in the library that --opencl-lib `stated` or else in the usual ones.

    The first usable GPU settles it.
    """
    findings = [*_nodes(nodes)]
    drivers = {node.driver for node in nodes}
    absent = "problem" if nodes else "note"  # a machine without a GPU needs no OpenCL
    if state.crash:
        fix = "install another release of the driver, or name another library with --opencl-lib"
        findings.append(Finding("opencl", absent, f"the OpenCL driver {state.crash} when it was asked", fix))
    elif state.library is None:
        tried = "; ".join(f"{name}: {reason}" for name, reason in state.tried.items())
        if stated:
            fix = "name an OpenCL library that is there, or leave --opencl-lib out"
            return [*findings, Finding("opencl", "problem", f"--opencl-lib cannot be opened ({tried})", fix)]
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


def runtime_finding() -> Finding:
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
                name = Path(node.path).name
                rule = f'KERNEL=="{name}", GROUP="video", MODE="0660"'
                fix = (  # a file of its own for each device, so that no fix undoes another
                    f"echo {quote(rule)} | sudo tee {quote(f'/etc/udev/rules.d/70-{name}.rules')} && "
                    f"sudo udevadm control --reload && sudo udevadm trigger && "
                    f"sudo usermod -aG video {quote(user)}, then log in again"
                )
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


def kernel_release(root: Path) -> str:
    """Return what Arm's kernel driver says of its release; "" without one."""
    for module in ("mali_kbase", "bifrost_kbase", "midgard_kbase", "mali"):
        try:
            return (root / "sys/module" / module / "version").read_text("ascii", errors="replace").strip()
        except OSError:
            continue
    return ""
