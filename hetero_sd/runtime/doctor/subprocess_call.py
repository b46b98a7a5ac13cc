"""Asking a driver in a process of its own: one that crashes or hangs is reported instead of followed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence


def ask_apart(
    call: Callable[..., None], arguments: Sequence[str], timeout_s: float, env: dict[str, str]
) -> tuple[list[str], str]:
    """Run a function of a module with text arguments in a process of its own.

    Args:
        call: the function, for example ``opencl_probe.print_probe``; what it returns is lost.
        arguments: its arguments.
        timeout_s: when it counts as hanging.
        env: variables to set beside this process's.

    Returns:
        The lines that it printed, and how it ended too early: "crashed (SIGSEGV)"; "" where it did not.
    """
    code = f"import sys; from {call.__module__} import {call.__name__} as call; call(*sys.argv[1:])"
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    command = [sys.executable, "-B", "-c", code, *arguments]
    settings = {**os.environ, "PYTHONPATH": path, **env}
    try:
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as stopped:
        printed = stopped.stdout or b""
        text = printed.decode("utf-8", "replace") if isinstance(printed, bytes) else printed
        return text.splitlines(), f"did not answer within {timeout_s:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode < 0:
        return lines, f"crashed ({signal.Signals(-done.returncode).name})"
    return lines, f"ended the process with code {done.returncode}" if done.returncode else ""
