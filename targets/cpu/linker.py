"""The linker that turns TVM's object files into a shared library for a core: ``ex.export_library(path, fcompile=...)``.

For this machine's own instruction set it is the system's C compiler; for the other one Debian's cross compiler if
there is one. Otherwise it is Zig's C compiler (targets/zig.py). The library is the same byte for byte wherever it is
linked with the same linker: no build id, no debug sections (they hold nothing of ours), no path in it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from targets.device import Core
from targets.elf import machine, newest_glibc
from targets.errors import UserError, wanting
from targets.zig import OLDEST_GLIBC, has_zig, zig, zig_environment

LinkFunction = Callable[..., None]

_SYSTEM = {"aarch64": ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++"), "x86-64": ("x86_64-linux-gnu-gcc",)}
_DEBIAN = {"aarch64": "gcc-aarch64-linux-gnu", "x86-64": "gcc-x86-64-linux-gnu"}
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


def host_link() -> LinkFunction:
    """The function for libraries that this machine itself loads; it asks for no compiler to be installed.

    Raises:
        UserError: no linker; the message says what to install.
    """
    from targets.boards import load_board

    return link_function(load_board("host", measure=False, calibrated=False).clusters[0].core)


_ENTRY_POINTS = "devc.c"  # as TVM's export_library names it


def host_isa() -> str:
    """Instruction set of the machine that compiles."""
    return {"x86_64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _command(isa: str, prefer: str | None) -> list[str]:
    names = _SYSTEM[isa] + (("cc", "gcc", "clang") if isa == host_isa() else ())
    system = next((path for name in names if (path := shutil.which(name))), None)
    if system and prefer != "zig":
        return [system]
    if prefer != "system" and has_zig():
        return zig("cc", isa)
    raise UserError(f"no linker for {isa} here: pip install ziglang, or install Debian's {_DEBIAN[isa]}")


def _link(command: list[str], output: Path, arguments: list[str]) -> None:
    """Link.

    Raises:
        UserError: the disk is full, or memory was short.
    """
    output = output.absolute()
    # the linker's own files land here, beside the library: what a killed build leaves goes as a whole
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".linking-") as scratch:
        full = [*command, *_FLAGS, "-o", str(output), *arguments]
        environment = {**zig_environment(scratch), "TMPDIR": scratch}
        done = subprocess.run(full, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lacking = wanting(done.stdout + done.stderr) or ("it was killed" if done.returncode == -9 else None)
        if lacking is None and any(map(_cut_short, arguments)):
            lacking = "TVM wrote a part of its C text, as it does when memory runs out"
        if lacking is not None:
            raise UserError(f"{output.name}: cannot be linked: {lacking}")
        raise RuntimeError(f"linking {output} failed: {' '.join(full)}\n{done.stdout}{done.stderr}")


def _cut_short(argument: str) -> bool:
    """Whether an argument is the file of TVM's that holds the entry points as numbers, without its end."""
    path = Path(argument)
    return path.name == _ENTRY_POINTS and not path.read_bytes().rstrip().endswith(b"#endif")


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
