"""Vectors of numbers of a table of 16 (targets/kernels/code_tables.py) by the permutations a core has.

AVX-512 permutes 16 floats by the lowest four bits of 16 integers. AVX2 permutes 8 floats by the lowest three bits of 8:
two of those and one select by the fourth bit. NEON looks up 16 bytes in 64 (TBL): a float's four bytes lie at 4 * code
and the three places after it. What has neither selects by each bit, 15 times. At one row of 2048 x 2048 AVX2's way
takes 0.76 ms on one Zen 3 core, selects take 2.55; on one Zen 5 core AVX-512's takes 0.07, selects take 0.40.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile
from targets.kernels.code_tables import CODE_TABLES

_X86 = ("pmadd", "vnni 256", "vnni 512")
_NEON = ("sdot", "sdot in order", "smmla", "smmla in order", "smull")


def lookup(tile: CpuTile) -> Callable[[Any, Any, str], Any] | None:
    """(words, shift, table) -> float32 numbers of the 4-bit codes at a place of `lanes` words; None: there is none."""
    if tile.dot in _X86:
        return {8: _avx2, 16: _avx512}.get(tile.lanes)
    return _neon if tile.dot in _NEON and tile.lanes == 4 else None


def _avx512(words: Any, shift: Any, table: str) -> Any:
    codes = T.cast(words >> T.broadcast(T.cast(shift, "uint32"), 16), "int32x16")
    numbers = T.Shuffle([T.float32(x) for x in CODE_TABLES[table]], list(range(16)))
    return _intrinsic("llvm.x86.avx512.permvar.sf.512", "float32x16", numbers, codes)


def _avx2(words: Any, shift: Any, table: str) -> Any:
    codes = T.cast(words >> T.broadcast(T.cast(shift, "uint32"), 8), "int32x8")
    low, high = (
        _intrinsic(
            "llvm.x86.avx2.permps",
            "float32x8",
            T.Shuffle([T.float32(x) for x in CODE_TABLES[table][first : first + 8]], list(range(8))),
            codes,  # of which it reads the lowest three bits
        )
        for first in (0, 8)
    )
    return T.Select((codes & T.broadcast(T.int32(8), 8)) != T.broadcast(T.int32(0), 8), high, low)


def _neon(words: Any, shift: Any, table: str) -> Any:
    numbers = struct.unpack("<16i", struct.pack("<16f", *CODE_TABLES[table]))
    quarters = [
        T.reinterpret(T.Shuffle([T.int32(x) for x in numbers[i : i + 4]], [0, 1, 2, 3]), dtype="int8x16")
        for i in range(0, 16, 4)
    ]
    codes = (words >> T.broadcast(T.cast(shift, "uint32"), 4)) & T.broadcast(T.uint32(15), 4)
    places = codes * T.broadcast(T.uint32(0x04040404), 4) + T.broadcast(T.uint32(0x03020100), 4)
    found = _intrinsic("llvm.aarch64.neon.tbl4", "int8x16", *quarters, T.reinterpret(places, dtype="int8x16"))
    return T.reinterpret(found, dtype="float32x4")


def _intrinsic(name: str, dtype: str, *args: Any) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)
