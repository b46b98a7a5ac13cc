"""Zig's C and C++ compiler from the PyPI package ``ziglang``: it needs no root and compiles for both instruction sets.

clang and lld with the symbol lists of every glibc, told to link against 2.28: Debian 10, Ubuntu 20.04, and what the
device's TVM and numpy wheels (manylinux_2_28) need anyway.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from targets.errors import UserError

OLDEST_GLIBC = (2, 28)
_TARGETS = {"aarch64": "aarch64-linux-gnu.2.28", "x86-64": "x86_64-linux-gnu.2.28"}


def has_zig() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("ziglang") is not None


def zig(language: str, isa: str) -> list[str]:
    """The command of a compiler.

    Args:
        language: ``cc`` or ``c++``.
        isa: what to compile for, ``aarch64`` or ``x86-64``.

    Raises:
        UserError: the package is not installed.
    """
    if not has_zig():
        raise UserError(f"nothing compiles for {isa} here: pip install ziglang")
    return [sys.executable, "-m", "ziglang", language, "-target", _TARGETS[isa]]


def zig_environment(scratch: str) -> dict[str, str]:
    """The caller's environment, with Zig's caches in a folder of ours, or in ``scratch`` where that is not writable.

    The cache (60 MB of glibc's start files, made at the first link in half a minute; another 100 MB of the C++ library
    for each instruction set, made in about two minutes of one core) lies in $HSD_ZIG_CACHE, by default hetero_sd/zig in
    the user's cache folder.
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
