"""Whether this machine's OpenCL driver builds the GPU kernels of a bundle: every kernel, one by one.

They are built in a process of their own, which says what it is about to build, so that the kernel at which a driver
crashes or hangs has a name. Binaries go to the program cache, as in a first start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_sd.runtime.doctor.subprocess_call import ask_apart
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.segments import load_module
from targets.errors import UserError
from targets.opencl import runtime as opencl_runtime

_FOLDER, _SUFFIX = "lib/", "_gpu.so"


@dataclass(frozen=True)
class KernelCheck:
    """One GPU library of a bundle.

    Attributes:
        library: its path in the bundle.
        kernels: how many were built or refused.
        failed: (name, first line of the reason) of those that the driver refuses.
        problem: why the others were not tried; "" if they were.
    """

    library: str
    kernels: int
    failed: tuple[tuple[str, str], ...]
    problem: str = ""


def gpu_libraries(bundle: Bundle) -> list[str]:
    """Return every library with GPU kernels, by its name in the manifest."""
    return sorted(name for name in bundle.manifest.files if name.startswith(_FOLDER) and name.endswith(_SUFFIX))


def check_kernels(folder: Path, opencl_lib: str | None = None, timeout_s: float = 1800.0) -> list[KernelCheck]:
    """Build every kernel of the bundle in ``folder``.

    Args:
        folder: the bundle; its libraries are verified before they are loaded.
        opencl_lib: the OpenCL library to open; None tries the usual ones.
        timeout_s: for all kernels together.

    Raises:
        UserError: the folder is not a bundle, or its manifest is damaged.
    """
    libraries = gpu_libraries(Bundle(folder))
    if not libraries:
        return []
    env = {"TVM_USE_RUNTIME_LIB": "1", **({"HSD_OPENCL_LIB": opencl_lib} if opencl_lib else {})}
    lines, end = ask_apart(build_and_print, [str(folder)], timeout_s, env)
    return _read(libraries, lines, end)


def build_and_print(folder: str) -> None:
    """Build, and print a JSON line before and after each step; the child's side of :func:`check_kernels`."""
    try:
        for line in _build(Bundle(Path(folder))):
            print(json.dumps(line), flush=True)
    except (UserError, opencl_runtime.OpenCLError) as error:
        print(json.dumps({"problem": str(error).strip().splitlines()[-1]}), flush=True)
    os._exit(0)  # a driver that crashes when it is unloaded has answered


def _build(bundle: Bundle) -> Iterator[dict[str, Any]]:
    from targets.opencl import interface as opencl

    wanted = f"/{opencl_runtime.machine()}/{opencl_runtime.LIBRARY}"
    runtimes = [name for name in bundle.manifest.files if name.endswith(wanted)]
    if runtimes:
        with bundle.opened(runtimes[0]) as opened:
            ours = opencl_runtime.load(Path(opened))
    else:
        ours = opencl_runtime.load()
    if ours != "ours":
        raise UserError("TVM has an OpenCL runtime of its own here, which builds kernels when they are first used")
    opencl.devices()
    for name in gpu_libraries(bundle):
        yield {"library": name}
        try:
            with bundle.opened(name) as opened:
                module = load_module(opened)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cannot load {name}: {str(error).strip().splitlines()[-1]}") from None

        def before(kernel: str) -> None:
            print(json.dumps({"kernel": kernel}), flush=True)

        yield {"failed": opencl.build_kernels(module, before=before)}


def _read(libraries: list[str], lines: list[str], end: str) -> list[KernelCheck]:
    """What the child said: a driver may print between its lines."""
    kernels: dict[str, list[str]] = {name: [] for name in libraries}
    failed: dict[str, list[tuple[str, str]]] = {}
    problems: dict[str, str] = {}
    current = libraries[0]
    for line in lines:
        try:
            said = json.loads(line)
            key, value = next(iter(said.items())) if isinstance(said, dict) and len(said) == 1 else ("", [])
        except ValueError:
            continue
        if key == "library" and value in kernels:
            current = value
        elif key == "kernel":
            kernels[current].append(str(value))
        elif key == "failed":
            failed[current] = [(str(name), str(reason).splitlines()[0]) for name, reason in value]
        elif key == "problem":
            problems[current] = str(value)
    if end and current not in problems:
        begun = kernels[current] if current not in failed else []
        problems[current] = f"the driver {end}" + (f" while it built kernel {begun[-1]}" if begun else "")
    return [
        KernelCheck(name, len(kernels[name]), tuple(failed.get(name, ())), problems.get(name, ""))
        for name in libraries
        if name in failed or name in problems
    ]
