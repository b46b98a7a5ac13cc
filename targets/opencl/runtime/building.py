"""Compiling the OpenCL runtime with Zig's C++ compiler, for this machine and for AArch64 alike: no other is needed.

TVM's libraries use libstdc++, Zig compiles against libc++ and links it statically. That is right as long as nothing of
the C++ library's own crosses the border, and nothing does: TVM's interface is its C functions, objects of its own
layout and virtual functions; of a ``std::string`` only a reference is passed, to a function that ignores it. Exceptions
do cross: the runtime throws from functions that TVM calls, and TVM catches. So throwing, catching, unwinding and the
memory of exceptions are libstdc++'s and libgcc's, which the process has anyway (:data:`_SHARED`); the linker sees them
in stand-ins made here, which hold those names and nothing else. ``src/exceptions.cc`` has what libc++ asks for beyond.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

from targets import elf
from targets.errors import UserError
from targets.opencl.runtime.library import LIBRARY, SOURCES
from targets.zig import OLDEST_GLIBC, zig, zig_environment

OLDEST_GLIBCXX = (3, 4, 25)  # GCC 8
TARGETS = ("x86-64", "aarch64")

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DTVM_RUNTIME_EXPORTS", "-w")
_LINK = ("-shared", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none")
_CLASS_INFO = tuple(
    f"_ZTVN10__cxxabiv1{name}E"  # virtual tables of the descriptions of types: a class, one with a base, with several
    for name in ("17__class_type_info", "20__si_class_type_info", "21__vmi_class_type_info")
)
_SHARED: dict[
    str, dict[str, tuple[str, ...]]
] = {  # library -> version -> names: the Itanium C++ ABI, section 2, and what new and delete are called in it
    "libstdc++.so.6": {
        "CXXABI_1.3": (
            *("__cxa_allocate_exception", "__cxa_free_exception", "__cxa_throw", "__cxa_rethrow", "__cxa_begin_catch"),
            *("__cxa_end_catch", "__cxa_get_globals", "__cxa_get_globals_fast", "__cxa_current_exception_type"),
            *("__cxa_guard_acquire", "__cxa_guard_release", "__cxa_guard_abort", "__cxa_pure_virtual"),
            *("__cxa_call_unexpected", "__gxx_personality_v0", "__dynamic_cast", *_CLASS_INFO),
        ),
        "CXXABI_1.3.7": ("__cxa_thread_atexit",),
        "CXXABI_1.3.8": ("__cxa_throw_bad_array_new_length",),
        "CXXABI_1.3.9": ("_ZdlPvm", "_ZdaPvm"),
        "CXXABI_1.3.11": (
            *("__cxa_init_primary_exception", "_ZnwmSt11align_val_t", "_ZdlPvSt11align_val_t"),
            "_ZdlPvmSt11align_val_t",
        ),
        "GLIBCXX_3.4": ("_ZSt9terminatev", "_Znwm", "_Znam", "_ZdlPv", "_ZdaPv", "_ZnwmRKSt9nothrow_t"),
        "GLIBCXX_3.4.20": ("_ZSt15get_new_handlerv", "_ZSt13get_terminatev"),
    },
    "libgcc_s.so.1": {"GCC_3.0": ("_Unwind_Resume", "_Unwind_RaiseException", "_Unwind_DeleteException")},
}


def build(out_dir: Path, target: str) -> Path:
    """Compile and link the sources; nothing is left behind when it fails.

    Args:
        out_dir: where the library goes; made if need be.
        target: ``x86-64`` or ``aarch64``.

    Raises:
        UserError: unknown target, no compiler, no TVM headers, a failed compilation (its first error), or a library
            that boards could not load.
    """
    if target not in TARGETS:
        raise UserError(f"the OpenCL runtime is for x86-64 and aarch64, not {target}")
    zig("c++", target)
    includes = [f"-isystem{folder}" for folder in _header_folders()]
    out_dir = out_dir.absolute()  # the compiler runs in the scratch folder inside it
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".building-") as name:
        scratch = Path(name)
        stand_ins = [_stand_in(scratch, library, target) for library in _SHARED]
        sources = sorted(map(str, SOURCES.glob("*.cc")))
        library = scratch / LIBRARY
        exports = f"-Wl,--version-script={SOURCES / 'exports.map'}"
        arguments = [*_FLAGS, *includes, *_LINK, exports, *sources, *stand_ins, "-ldl", "-o", str(library)]
        _run([*zig("c++", target), *arguments], scratch)
        _check(library)
        os.replace(library, out_dir / LIBRARY)
    return out_dir / LIBRARY


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


def _stand_in(folder: Path, library: str, target: str) -> str:
    """A library of that name with the shared symbols in their versions, to link against; its path."""
    source, versions, made = folder / f"{library}.c", folder / f"{library}.map", folder / library
    names = [name for group in _SHARED[library].values() for name in group]
    source.write_text("".join(f"void *{n}[16];\n" if n in _CLASS_INFO else f"void {n}(void) {{}}\n" for n in names))
    versions.write_text("".join(f"{v} {{ {'; '.join(group)}; }};\n" for v, group in _SHARED[library].items()))
    flags = ["-O2", "-fPIC", "-shared", "-w", f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
    _run([*zig("cc", target), *flags, str(source), "-o", str(made)], folder)
    return str(made)


def _check(library: Path) -> None:
    """Refuse a library that has an exception machinery of its own, or that old boards cannot load."""
    missing = sorted(set(_SHARED) - set(elf.needed_versions(library)))
    if missing:
        raise UserError(
            f"the OpenCL runtime was linked without {' and '.join(missing)}: TVM could not catch its errors"
        )
    if too_new := newer_than_oldest(library):
        raise UserError(f"the OpenCL runtime would need {', '.join(too_new)}, which old boards lack")


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


def _run(command: list[str], scratch: Path) -> None:
    environment = zig_environment(str(scratch))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch, env=environment)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise UserError(f"zig c++ failed to build the OpenCL runtime: {lines[0]}")
