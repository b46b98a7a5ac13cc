"""A library is checked before the system maps it: whole, shared, for this machine."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest
import tvm_ffi

from targets import elf
from targets.errors import UserError

LIBRARY = Path(tvm_ffi.__file__).parent / "lib" / "libtvm_ffi.so"
X86, ARM = 62, 183


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        elf.check_loadable(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_real_library_at_every_length(tmp_path: Path) -> None:
    """The last byte is a part of it, too."""
    whole, path = LIBRARY.read_bytes(), tmp_path / "lib.so"
    path.write_bytes(whole)
    elf.check_loadable(path)
    for length in [*range(0, 130, 3), *range(130, len(whole), len(whole) // 50), len(whole) - 1]:
        assert ("cut off" if length >= 64 else "not a 64-bit") in refused(path, whole[:length])


def tiny(kind: int = 3, machine: int = 0, filesz: int = 8, section: tuple[int, int] = (1, 8)) -> bytes:
    """A header, a segment of 8 bytes at 184, and a section (type, size) there."""
    machine = machine or {"x86_64": X86, "aarch64": ARM}[platform.machine()]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, machine, 1, 0, 64, 120, 0, 64, 56, 1, 64, 1, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 4, 184, 0, 0, filesz, filesz, 8)
    described = struct.pack("<IIQQQQIIQQ", 0, section[0], 0, 0, 184, section[1], 0, 0, 8, 0)
    return head + segment + described + bytes(8)


def test_what_a_header_can_say(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(tiny())
    elf.check_loadable(path)
    path.write_bytes(tiny(section=(8, 1 << 40)))  # .bss takes no bytes of the file
    elf.check_loadable(path)
    assert "has 192 of at least 193 bytes" in refused(path, tiny(filesz=9))
    assert "has 192 of at least 193 bytes" in refused(path, tiny(section=(1, 9)))
    assert "cut off" in refused(path, tiny(filesz=(1 << 64) - 1))
    assert "not a shared library" in refused(path, tiny(kind=2))
    other = ARM if platform.machine() == "x86_64" else X86
    assert "this machine is" in refused(path, tiny(machine=other))
    assert "neither aarch64 nor x86-64" in refused(path, tiny(machine=3))
    for field, value in ((32, (1 << 64) - 1), (40, 1 << 63)):  # offsets of the tables
        assert "cut off" in refused(path, tiny()[:field] + struct.pack("<Q", value) + tiny()[field + 8 :])


def test_defined_symbols(tmp_path: Path) -> None:
    names = elf.defined_symbols(LIBRARY)
    assert "TVMFFIFunctionCall" in names
    assert "malloc" not in names  # needed, not defined
    path = tmp_path / "lib.so"
    path.write_bytes(tiny())
    assert elf.defined_symbols(path) == set()
