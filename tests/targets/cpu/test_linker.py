from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from requirements import need_program, only_where

from targets.boards import load_board
from targets.cpu import core
from targets.cpu.linker import host_isa, link_function
from targets.device import Core
from targets.elf import machine, needed_versions, newest_glibc
from targets.errors import UserError
from targets.zig import zig, zig_environment


def host_core() -> Core:
    return load_board("host", measure=False).clusters[0].core


def library(described: Core, path: Path, prefer: str | None = None) -> Path:
    """A small module with a call into libm, built and linked for the core."""
    from tvm import relax

    from targets.cpu.target import tvm_target

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.exp(relax.op.nn.relu(x))))
    built = relax.build(builder.get(), tvm_target(described))
    path.parent.mkdir(parents=True, exist_ok=True)
    built.export_library(str(path), fcompile=link_function(described, prefer))
    return path


def object_file(path: Path, source: str) -> Path:
    path.with_suffix(".c").write_text(source)
    command = [*zig("cc", host_isa()), "-O2", "-fPIC", "-c", str(path.with_suffix(".c")), "-o", str(path)]
    subprocess.run(command, check=True, env=zig_environment(str(path.parent)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["zig", None])
@pytest.mark.parametrize("described", [core("cortex-a55"), core("cortex-a53"), host_core()], ids=lambda c: c.name)
def test_the_same_bytes_in_another_folder(tmp_path: Path, described: Core, prefer: str | None) -> None:
    first = library(described, tmp_path / "a" / "module.so", prefer)
    second = library(described, tmp_path / "another folder" / "deeper" / "module.so", prefer)
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()
    assert machine(first) == described.isa
    assert newest_glibc(first) <= (2, 28)
    assert not sorted(tmp_path.rglob("zig*"))


@pytest.mark.slow
def test_the_same_bytes_from_another_process(tmp_path: Path) -> None:
    """Python's hash seed and the order of folders must not reach the library."""
    script = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('here', sys.argv[1])\n"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)\n"
        "here.library(here.core('cortex-a55'), pathlib.Path(sys.argv[2]), 'zig')\n"
    )
    digests = set()
    for seed in ("1", "2"):
        output = tmp_path / seed / "module.so"
        root = Path(__file__).parents[3]
        paths = os.pathsep.join(map(str, (root, root / "tests" / "support")))
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", script, __file__, str(output)], env=environment, check=True)
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_newer_glibc_is_refused(tmp_path: Path) -> None:
    """A library of the compiling machine itself may need its own glibc; one for a device may not."""
    only_where(host_isa() == "x86-64", "the made-up symbol version below is spelled for x86-64")
    need_program("cc")  # its linker would take the newer glibc
    source = (
        '__asm__(".symver later, exp@GLIBC_2.29");\ndouble later(double);\ndouble f(double x) { return later(x); }\n'
    )
    made = object_file(tmp_path / "f.o", source)
    native = host_core()
    import dataclasses

    device = dataclasses.replace(native, llvm_cpu="x86-64-v3")
    output = tmp_path / "f.so"
    link_function(native, "system")(str(output), [str(made)])
    assert newest_glibc(output) == (2, 29)
    assert needed_versions(output)["libm.so.6"] == ["GLIBC_2.29"]
    with pytest.raises(UserError, match=r"f\.so: needs glibc 2\.29, the device is only sure to have 2\.28"):
        link_function(device, "system")(str(output), [str(made)])


def test_a_library_for_another_machine_is_refused(tmp_path: Path) -> None:
    import dataclasses

    native = host_core()
    made = object_file(tmp_path / "f.o", "int f(void) { return 1; }\n")
    link = link_function(native)
    link(str(tmp_path / "f.so"), [str(made)])
    other = "aarch64" if native.isa == "x86-64" else "x86-64"
    lying = dataclasses.replace(native, isa=other)
    from targets.cpu import linker

    with pytest.raises(UserError, match=f"linked for {native.isa}, but .* is {other}"):
        linker._check(tmp_path / "f.so", lying)


def test_no_linker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="no linker for aarch64 here: pip install ziglang, or install Debian's gcc"):
        link_function(core("cortex-a55"), "system")


def test_a_failed_link_shows_the_linkers_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no-such-file\.o"):
        link_function(host_core())(str(tmp_path / "f.so"), ["no-such-file.o"])


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def no_elf(data: bytes) -> bytes:
    return b"MZ" + data[2:]


def other_machine(data: bytes) -> bytes:
    return data[:18] + struct.pack("<H", 243) + data[20:]  # RISC-V


def section_table_far_away(data: bytes) -> bytes:
    return data[:40] + struct.pack("<Q", 1 << 40) + data[48:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged ELF file"),
        (no_elf, "not a 64-bit little-endian ELF file"),
        (other_machine, "built for ELF machine 243"),
        (section_table_far_away, "damaged ELF file"),
    ],
)
def test_a_damaged_library_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    made = object_file(tmp_path / "f.o", "int f(void) { return 1; }\n")
    link_function(host_core())(str(tmp_path / "f.so"), [str(made)])
    data = (tmp_path / "f.so").read_bytes()
    damaged = tmp_path / "g.so"
    damaged.write_bytes(damage(data))
    with pytest.raises(UserError, match=message):
        newest_glibc(damaged)


def test_what_readelf_says_too(tmp_path: Path) -> None:
    """Symbol versions of a real library, against binutils."""
    library_path = Path(sys.modules["_ctypes"].__file__ or "")
    done: Any = subprocess.run(["readelf", "-V", str(library_path)], capture_output=True, text=True, check=True)
    blocks = done.stdout.split("Version needs section")[1]
    expected = {line.split("Name: ")[1].split()[0] for line in blocks.splitlines() if "Name: " in line}
    ours = {version for names in needed_versions(library_path).values() for version in names}
    assert ours == expected
    assert ours


def test_text_that_tvm_could_not_write_to_its_end_is_a_lack_of_memory(tmp_path: Path) -> None:
    link, text = link_function(host_core()), tmp_path / "devc.c"
    whole = (
        "#ifdef __cplusplus\n#endif\nconst unsigned char numbers[2] = {\n  0x5f,0x33};\n#ifdef __cplusplus\n#endif\n"
    )
    text.write_text(whole[: whole.index("33}")])
    with pytest.raises(UserError, match=r"^library\.so: cannot be linked: .* when memory runs out$"):
        link(str(tmp_path / "library.so"), [str(text)])
    text.write_text(whole.replace("};", ""))  # another error in a text that has its end is a fault
    with pytest.raises(RuntimeError, match=r"devc\.c"):
        link(str(tmp_path / "library.so"), [str(text)])
