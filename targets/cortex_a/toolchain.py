"""The linker that turns TVM's object files into a shared library for a core: ``ex.export_library(path, fcompile=...)``.

For this machine's own instruction set it is the system's C compiler; for the other one Debian's cross compiler if
there is one. Otherwise it is Zig's C compiler from the PyPI package ``ziglang``, which needs no root: clang and lld
with the symbol lists of every glibc, told to link against 2.28. The library is the same byte for byte wherever it is
linked with the same linker: no build id, no debug sections (they hold nothing of ours), no path in it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from targets.device import Core
from targets.elf import machine, newest_glibc
from targets.errors import UserError

OLDEST_GLIBC = (2, 28)  # Debian 10, and what the device's TVM and numpy wheels (manylinux_2_28) need anyway
LinkFunction = Callable[..., None]

_SYSTEM = {"aarch64": ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++"), "x86-64": ("x86_64-linux-gnu-gcc",)}
_DEBIAN = {"aarch64": "gcc-aarch64-linux-gnu", "x86-64": "gcc-x86-64-linux-gnu"}
_ZIG = {"aarch64": "aarch64-linux-gnu.2.28", "x86-64": "x86_64-linux-gnu.2.28"}
_FLAGS = ("-shared", "-fPIC", "-Wl,--build-id=none", "-Wl,--strip-debug", "-Wl,--as-needed")


def link_function(core: Core, prefer: str | None = None) -> LinkFunction:
    """The function to give ``export_library`` as ``fcompile``, for a library that runs on this core.

    Args:
        core: what the objects were compiled for. A core described as ``native`` is this machine, whose own glibc is
            the one that counts; for every other core the library may need no glibc after 2.28.
        prefer: ``system`` or ``zig`` to insist on one linker; None takes the system's if there is one.

    Raises:
        UserError: no linker for that instruction set; the message says what to install.
    """
    command = _command(core.isa, prefer)

    def link(output: str, objects: Sequence[str] | str, options: Sequence[str] | None = None) -> None:
        inputs = [objects] if isinstance(objects, str) else list(objects)
        _link(command, Path(output), [*inputs, "-lm", *(options or ())])
        _check(Path(output), core)

    link.object_format = "o"  # type: ignore[attr-defined]
    return link


def host_isa() -> str:
    """Instruction set of the machine that compiles."""
    return {"x86_64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _command(isa: str, prefer: str | None) -> list[str]:
    names = _SYSTEM[isa] + (("cc", "gcc", "clang") if isa == host_isa() else ())
    system = next((path for name in names if (path := shutil.which(name))), None)
    if system and prefer != "zig":
        return [system]
    if prefer != "system" and importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", _ZIG[isa]]
    raise UserError(f"no linker for {isa} here: pip install ziglang, or install Debian's {_DEBIAN[isa]}")


def _link(command: list[str], output: Path, arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # the linker's own files land here, not in the user's folder
        full = [*command, *_FLAGS, "-o", str(output.absolute()), *arguments]
        done = subprocess.run(full, cwd=scratch, env=_environment(scratch), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"linking {output} failed: {' '.join(full)}\n{done.stdout}{done.stderr}")


def _environment(scratch: str) -> dict[str, str]:
    """The caller's environment, with Zig's caches in a folder of ours, or in ``scratch`` where that is not writable.

    The cache (about 60 MB: glibc's start files, made at the first link in half a minute) lies in $HSD_ZIG_CACHE, by
    default hetero_sd/zig in the user's cache folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(os.environ.get("HSD_ZIG_CACHE") or Path(home) / "hetero_sd" / "zig")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    folder = str(cache) if writable else scratch
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder, "SOURCE_DATE_EPOCH": "0"}


def _check(library: Path, core: Core) -> None:
    """Refuse a library that would not load: another machine, or a glibc newer than the device may have."""
    built_for = machine(library)
    if built_for != core.isa:
        raise UserError(f"{library}: linked for {built_for}, but {core.name} is {core.isa}")
    if core.llvm_cpu == "native":
        return
    needed = newest_glibc(library)
    if needed > OLDEST_GLIBC:
        newest, oldest = (".".join(str(part) for part in version) for version in (needed, OLDEST_GLIBC))
        raise UserError(
            f"{library}: needs glibc {newest}, the device is only sure to have {oldest}; pip install ziglang, "
            "which links against the older one"
        )
