"""What a shared library asks of the system that loads it: its machine, and the newest glibc among its symbol versions.

Reads 64-bit little-endian ELF, all that Cortex-A and x86-64 Linux use. Layout: the gABI, and the LSB's chapter on
symbol versioning.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from pathlib import Path
from typing import BinaryIO

from targets.errors import UserError

_MACHINES = {183: "aarch64", 62: "x86-64"}  # e_machine
_HERE = {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}  # what Python says of this machine
_SHARED = 3  # e_type ET_DYN
_NO_BITS = 8  # sh_type SHT_NOBITS: takes no bytes of the file
_DYNAMIC_SYMBOLS = 11  # sh_type SHT_DYNSYM
_VERSION_NEEDS = 0x6FFFFFFE  # sh_type SHT_GNU_verneed
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")  # type, flags, offset, address, physical one, bytes in the file, bytes, alignment
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, alignment, entry size
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section (0 where it is not defined here), value, size
_NEED = struct.Struct("<HHIII")  # vn_version, vn_cnt, vn_file, vn_aux, vn_next
_NEED_AUX = struct.Struct("<IHHII")  # vna_hash, vna_flags, vna_other, vna_name, vna_next


def machine(library: Path) -> str:
    """``aarch64`` or ``x86-64``.

    Raises:
        UserError: not a 64-bit little-endian ELF file of one of the two.
    """
    return _machine(library.read_bytes(), library)


def check_loadable(library: Path, shown: Path | None = None) -> None:
    """Check, before the system maps it, that a shared library is whole and for this machine.

    The system's loader trusts the program headers: a segment that ends beyond the file ends the process with SIGBUS.

    Args:
        library: the file.
        shown: its path for messages, where `library` is one to an open file.

    Raises:
        UserError: it is no shared library, for another machine, or shorter than its headers say.
    """
    try:
        with library.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEADER.size)
            built_for = _machine(head, shown or library)
            kind, end = _HEADER.unpack(head)[1], _end(file, head)
    except OSError as error:
        raise UserError(f"cannot read {shown or library}: {error.strerror}") from None
    except (struct.error, OverflowError, ValueError):
        library = shown or library
        raise UserError(f"{library} is cut off: its {size} bytes do not hold its headers; copy it again") from None
    library = shown or library
    if kind != _SHARED:
        raise UserError(f"{library}: not a shared library; copy or build the bundle again")
    if end > size:
        raise UserError(f"{library} is cut off: it has {size} of at least {end} bytes; copy the bundle again")
    here = _HERE.get(platform.machine().lower(), platform.machine())
    if built_for != here:
        raise UserError(f"{library} was compiled for {built_for}, this machine is {here}: compile for this board")


def _end(file: BinaryIO, head: bytes) -> int:
    """The first byte after all segments and sections.

    Raises:
        struct.error, OverflowError, ValueError: a table of them is cut off, or begins where no file does.
    """
    _, _, _, _, _, segments, sections, _, _, segment_size, segment_count, section_size, section_count, _ = (
        _HEADER.unpack(head)
    )
    ends = [0]
    for _, _, offset, _, _, length, _, _ in _rows(file, segments, _SEGMENT, segment_size, segment_count):
        ends.append(offset + length)
    for _, kind, _, _, offset, length, _, _, _, _ in _rows(file, sections, _SECTION, section_size, section_count):
        ends.append(offset + length if kind != _NO_BITS else 0)
    return max(ends)


def _rows(file: BinaryIO, start: int, row: struct.Struct, size: int, count: int) -> list[tuple[int, ...]]:
    """A header table at `start` of `count` rows, one every `size` bytes.

    Raises:
        struct.error: it is cut off, or its rows are shorter than the format's.
    """
    file.seek(start)
    data = file.read(size * count)
    if len(data) < size * count or (count and size < row.size):
        raise struct.error("cut off")
    return [row.unpack_from(data, i * size) for i in range(count)]


def needed_versions(library: Path) -> dict[str, list[str]]:
    """Symbol versions that the library needs, by the file that must provide them: ``{"libm.so.6": ["GLIBC_2.27"]}``.

    Raises:
        UserError: not such a library, or a damaged one.
    """
    data = library.read_bytes()
    _machine(data, library)
    try:
        return _needed_versions(data)
    except (struct.error, IndexError, ValueError) as error:
        raise UserError(f"{library}: damaged ELF file ({error})") from None


def newest_glibc(library: Path) -> tuple[int, ...]:
    """The glibc release that the library needs, such as (2, 17); (0,) when it needs none."""
    versions = [version for needed in needed_versions(library).values() for version in needed]
    numbers = [match[1] for version in versions if (match := re.fullmatch(r"GLIBC_([0-9.]+)", version))]
    return max((tuple(int(part) for part in number.split(".")) for number in numbers), default=(0,))


def defined_symbols(library: Path) -> set[str]:
    """Names that the library defines for others.

    Raises:
        UserError: not such a library, or a damaged one.
    """
    data = library.read_bytes()
    _machine(data, library)
    try:
        sections = _sections(data)
        names = set()
        for _, kind, _, _, offset, length, link, _, _, _ in sections:
            if kind == _DYNAMIC_SYMBOLS:
                strings = sections[link][4]
                symbols = [_SYMBOL.unpack_from(data, at) for at in range(offset, offset + length, _SYMBOL.size)]
                names |= {_string(data, strings + name) for name, _, _, section, _, _ in symbols if section}
        return names
    except (struct.error, IndexError, ValueError) as error:
        raise UserError(f"{library}: damaged ELF file ({error})") from None


def _machine(data: bytes, library: Path) -> str:
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01":
        raise UserError(f"{library}: not a 64-bit little-endian ELF file")
    code = struct.unpack_from("<H", data, 18)[0]
    if code not in _MACHINES:
        raise UserError(f"{library}: built for ELF machine {code}, neither aarch64 nor x86-64")
    return _MACHINES[code]


def _sections(data: bytes) -> list[tuple[int, ...]]:
    (table,) = struct.unpack_from("<Q", data, 40)  # e_shoff
    size, count = struct.unpack_from("<HH", data, 58)  # e_shentsize, e_shnum
    return [_SECTION.unpack_from(data, table + i * size) for i in range(count)]


def _needed_versions(data: bytes) -> dict[str, list[str]]:
    sections = _sections(data)
    found: dict[str, list[str]] = {}
    for _, kind, _, _, offset, _, link, entries, _, _ in sections:
        if kind != _VERSION_NEEDS:
            continue
        strings = sections[link][4]
        for _ in range(entries):
            _, versions, file_name, aux, step = _NEED.unpack_from(data, offset)
            names, at = found.setdefault(_string(data, strings + file_name), []), offset + aux
            for _ in range(versions):
                *_, name, aux_step = _NEED_AUX.unpack_from(data, at)
                names.append(_string(data, strings + name))
                at += aux_step
            offset += step
    return found


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode("ascii")
