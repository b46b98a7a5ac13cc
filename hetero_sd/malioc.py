"""Registers and spills of OpenCL kernels, as Arm's Mali Offline Compiler states them, where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = "malioc"
MISSING = (
    "unknown, no `malioc` on the PATH: the Mali Offline Compiler comes with Arm Performance Studio "
    "(developer.arm.com, for Linux on x86-64)"
)
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Registers:
    """What one kernel takes.

    Attributes:
        work_registers: 32-bit registers of a thread; up to 32 all threads fit a core, up to 64 half of them.
        spills: values do not fit and go through memory.
        occupancy_percent: threads that fit, of those the core has; None if it was not said.
    """

    work_registers: int
    spills: bool
    occupancy_percent: int | None = None

    @property
    def text(self) -> str:
        """For a table."""
        return f"{self.work_registers}{' spills' if self.spills else ''}"


def inspect_kernels(
    source: Callable[[], tuple[str, dict[tuple[str, int], str]]], core: str
) -> tuple[dict[tuple[str, int], Registers], str]:
    """Ask malioc about kernels; nothing that goes wrong is an error, those kernels are missing in the answer.

    Args:
        source: makes the OpenCL C, and the kernels' names in it by a key of the caller's; called if there is a malioc.
        core: the GPU, for example ``Mali-G610``.

    Returns:
        What is known, by the caller's key, and a sentence on where it comes from.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        return {}, MISSING
    code, kernels = source()
    found: dict[tuple[str, int], Registers] = {}
    problem = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cl"
        path.write_text(code, "utf-8")
        for key, kernel in kernels.items():
            answer = _ask(program, path, kernel, core)
            if isinstance(answer, Registers):
                found[key] = answer
            else:
                problem = problem or f"{kernel}: {answer}"
    if not found:
        return {}, f"unknown, malioc did not answer as expected ({problem or 'there is no kernel'})"
    left = len(kernels) - len(found)
    sentence = f"32-bit registers of a work-item, by malioc for {core}; `spills` go through memory"
    return found, f"{sentence}; unknown for {left} kernels ({problem})" if left else sentence


def _ask(program: str, path: Path, kernel: str, core: str) -> Registers | str:
    """What malioc says about one kernel, or why not."""
    command = [program, "--opencl", "--core", core, "--name", kernel, "--format", "json", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    try:
        return _registers(json.loads(done.stdout))
    except (ValueError, LookupError, TypeError):
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
        return said[:100]


def _registers(report: Any) -> Registers:
    """The properties of the first variant of the first shader.

    Raises:
        ValueError, LookupError, TypeError: the report has another form.
    """
    variant = report["shaders"][0]["variants"][0]
    properties = {entry["name"]: entry["value"] for entry in variant["properties"]}
    count, spills = properties["work_registers_used"], properties["has_stack_spilling"]
    occupancy = properties.get("thread_occupancy")
    if not isinstance(count, int) or isinstance(count, bool) or not isinstance(spills, bool) or count < 0:
        raise ValueError("work_registers_used is no number, or has_stack_spilling is not true or false")
    return Registers(count, spills, occupancy if isinstance(occupancy, int) else None)
