"""Compiling the thread pool with Zig's C compiler, for this machine or across.

Zig links against the symbols of glibc 2.28 and gives the same bytes on every host.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from targets import elf
from targets.errors import UserError
from targets.zig import OLDEST_GLIBC, zig, zig_environment

FLAGS = (
    *("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-sanitize=all", "-Wall", "-Wextra", "-Werror"),
    *("-shared", "-pthread", "-Wl,--build-id=none", "-s"),
)


def build_key(isa: str, sources: Path) -> str:
    """Return what a library is good for: the instruction set, and a hash of sources, flags and compiler."""
    digest = hashlib.sha256(" ".join([*FLAGS, _zig_version()]).encode())
    for source in sorted(sources.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return f"{isa}-{digest.hexdigest()[:16]}"


def build(isa: str, sources: Path, library: Path) -> Path:
    """Compile all sources into ``library``, whole or not at all, and return it.

    Raises:
        UserError: no compiler for ``isa``, a failed compilation (its first error), a library for another machine or
            for a glibc newer than 2.28, or a folder that cannot be written.
    """
    command = zig("cc", isa)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix=".building-") as scratch:
            made = Path(scratch, library.name)
            files = [str(source) for source in sorted(sources.glob("*.c"))]
            full = [*command, *FLAGS, *files, "-o", str(made)]
            done = subprocess.run(
                full, cwd=scratch, env=zig_environment(scratch), capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise UserError(f"zig cc failed to build the thread pool: {lines[0] if lines else '?'}")
            if elf.machine(made) != isa or elf.newest_glibc(made) > OLDEST_GLIBC:
                raise UserError(f"{' '.join(command)} built a thread pool that a board with {isa} could not load")
            os.replace(made, library)
    except OSError as error:
        raise UserError(f"{library.parent}: the thread pool cannot be built there: {error.strerror}") from None
    return library


def _zig_version() -> str:
    try:
        return metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        return "none"
