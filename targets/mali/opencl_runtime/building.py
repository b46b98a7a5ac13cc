"""Compiling the OpenCL runtime with a system g++, for this machine or across for AArch64.

TVM passes ``std::string`` to devices, so the library must use the C++ library that TVM's wheel uses: libstdc++. zig
and clang with libc++ compile it, but the result would not link up when it is loaded; it is refused.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from targets import elf
from targets.errors import UserError
from targets.mali.opencl_runtime.library import LIBRARY, SOURCES, machine

OLDEST_GLIBC = (2, 28)  # Debian 10, Ubuntu 20.04: what the TVM wheel itself asks for
OLDEST_GLIBCXX = (3, 4, 25)  # GCC 8

_CROSS_COMPILERS = {"aarch64": "aarch64-linux-gnu-g++", "x86-64": "x86_64-linux-gnu-g++"}
_DEBIAN_PACKAGES = {"aarch64": "g++-aarch64-linux-gnu", "x86-64": "g++-x86-64-linux-gnu"}


def build(out_dir: Path, compiler: str | None, target: str) -> Path:
    """Compile the sources one by one and link them; nothing is left behind when it fails.

    Args:
        out_dir: where the library goes; made if need be.
        compiler: a g++ that compiles for ``target``; None looks for the system's.
        target: ``x86-64`` or ``aarch64``.

    Raises:
        UserError: unknown target, no compiler, no TVM headers, a failed compilation (its first error), or a compiler
            whose C++ library is not libstdc++.
    """
    if target not in _CROSS_COMPILERS:
        raise UserError(f"the OpenCL runtime is for x86-64 and aarch64, not {target}")
    command = [compiler or find_compiler(target), "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden"]
    includes = [f"-isystem{folder}" for folder in _header_folders()]
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".building-") as scratch:
        objects = []
        for source in sorted(SOURCES.glob("*.cc")):
            objects.append(str(Path(scratch, f"{source.stem}.o")))
            _run([*command, *includes, "-DTVM_RUNTIME_EXPORTS", "-c", str(source), "-o", objects[-1]])
        library = Path(scratch, LIBRARY)
        exports = f"-Wl,--version-script={SOURCES / 'exports.map'}"
        _run([*command, "-shared", "-s", exports, *objects, "-ldl", "-o", str(library)])
        if elf.machine(library) != target:
            raise UserError(
                f"{command[0]} compiles for {elf.machine(library)}, not {target}: give a compiler for {target}"
            )
        if "libstdc++.so.6" not in elf.needed_versions(library):
            raise UserError(f"{command[0]} does not use libstdc++, which TVM's C++ interface needs: take g++")
        os.replace(library, out_dir / LIBRARY)
    return out_dir / LIBRARY


def find_compiler(target: str) -> str:
    """Return the system's g++ for ``target``.

    Raises:
        UserError: there is none; the message names the Debian package.
    """
    native = target == machine()
    for name in ["g++"] if native else [_CROSS_COMPILERS[target]]:
        found = shutil.which(name)
        if found:
            return found
    package = "g++" if native else _DEBIAN_PACKAGES[target]
    raise UserError(f"no C++ compiler for {target} to build the OpenCL runtime with: apt-get install {package}")


def newer_than_oldest(library: Path) -> list[str]:
    """Return the symbol versions that the oldest supported board lacks: empty for a library that every board loads."""
    limits = {"GLIBC": OLDEST_GLIBC, "GLIBCXX": OLDEST_GLIBCXX, "CXXABI": (1, 3, 11)}
    too_new = []
    for needed in elf.needed_versions(library).values():
        for version in needed:
            match = re.fullmatch(r"(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)", version)
            if match and tuple(int(part) for part in match[2].split(".")) > limits[match[1]]:
                too_new.append(version)
    return sorted(too_new)


def _header_folders() -> list[Path]:
    """Return the include folders inside the installed TVM wheels, without importing TVM."""
    folders = []
    for package, header in (("tvm", "tvm/runtime/device_api.h"), ("tvm_ffi", "tvm/ffi/any.h")):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(f"the OpenCL runtime is built against TVM's headers, and {package} is not installed")
        folder = Path(spec.origin).parent / "include"
        if not (folder / header).is_file():
            raise UserError(f"the OpenCL runtime is built against TVM's headers, and {folder} has no {header}")
        folders.append(folder)
    return folders


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"cannot run the compiler {command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise UserError(f"{command[0]} failed to build the OpenCL runtime: {lines[0]}")
