"""The inner loops of linear_int in the assembly that LLVM makes for a core: for arm_static.py, and for tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from targets.cpu.dot import DOTS, STEP, IntegerDot, dot_of
from targets.cpu.tile import CpuTile, cpu_tile
from targets.device import Core

K, COLUMNS = 1024, 64  # of the kernels that are compiled; no panel is ragged
MULTIPLY = {
    "sdot": ("sdot",),
    "smmla": ("smmla",),
    "smull": ("smull", "smull2", "smlal", "smlal2"),
    "vnni 256": ("vpdpbusd",),
    "vnni 512": ("vpdpbusd",),
}
# of a tile: multiplications for one row and one vector of columns in a step of 32 values
PER_STEP = {"sdot": 8, "smmla": 4, "smull": 16, "vnni 256": 8, "vnni 512": 8}
_IGNORED = re.compile(r"//.*|\s# .*|\{vex\}")  # comments of aarch64, of x86-64, and that code has no prefix of AVX-512
_BRANCH = re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z|j[a-z]+)\s.*?(\.LBB\w+)$")
_SCALAR = re.compile(
    r"(f(madd|mul|add|sub|div)|scvtf|ucvtf)\s+[sdh]\d|(madd|smaddl|smull)\s+[wx]\d"
    r"|v(fn?m(add|sub)\d+|mul|add|sub|div|cvtsi2)s[sd]\s"
)
_STACK = re.compile(r"\[sp|%rsp")


@dataclass(frozen=True)
class Loop:
    """A loop without branches into it; instructions as LLVM prints them, the last is the branch back."""

    instructions: tuple[str, ...]

    def count(self, *names: str) -> int:
        """How many are instructions of these names."""
        return sum(line.split()[0] in names for line in self.instructions)

    @property
    def stack(self) -> int:
        """How many read or write the stack."""
        return sum(_STACK.search(line) is not None for line in self.instructions)

    @property
    def scalar(self) -> list[str]:
        """Floating-point arithmetic on single numbers, and multiplications of whole numbers."""
        return [line for line in self.instructions if _SCALAR.match(line)]


@dataclass(frozen=True)
class Kernel:
    """linear_int with symmetric weights in blocks of 32, or with uint8 zero points, as a core gets it.

    Attributes:
        core: for which it is compiled.
        bits: of a weight.
        n: rows.
        zeros: whether there are zero points.
    """

    core: Core
    bits: int
    n: int
    zeros: bool = False

    @property
    def dot(self) -> str:
        """The instruction that multiplies."""
        return self._integer.instruction

    @property
    def _integer(self) -> IntegerDot:
        return DOTS[dot_of(self.tile.dot, self.n)]

    @property
    def tile(self) -> CpuTile:
        """The core's."""
        return cpu_tile(self.core)

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self._integer.tile_rows(self.n)

    @property
    def vectors(self) -> int:
        """Vectors of columns in a tile."""
        return self._integer.side[self.rows - 1]

    @property
    def tiles(self) -> int:
        """Tiles that make a step of a panel."""
        return -(-self.n // self.rows) * (self.tile.panel // (self._integer.columns * self.vectors))

    def assembly(self) -> str:
        """What LLVM makes of it."""
        from targets.cpu.kernels.linear_int import linear_int

        return assembly(self.core, linear_int(self.tile, self.n, K, COLUMNS, self.bits, STEP, "float16", self.zeros))

    def multiplications(self, loop: Loop) -> int:
        """How many of the loop's instructions multiply codes."""
        return loop.count(*MULTIPLY[self.dot])

    def steps(self, loop: Loop) -> float:
        """Steps of a tile in one iteration: what the multiplications are enough for."""
        return self.multiplications(loop) / (PER_STEP[self.dot] * self.rows * self.vectors)


def assembly(core: Core, func: Any) -> str:
    """A PrimFunc for a core."""
    import tvm

    from targets.cpu.target import tvm_target

    return str(tvm.compile(func.with_attr("global_symbol", "main"), target=tvm_target(core)).mod.inspect_source("asm"))


def inner_loops(text: str) -> list[Loop]:
    """Loops that have no other loop inside, in the order of the assembly."""
    lines = [_IGNORED.sub("", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and (not line.startswith(".") or line.startswith(".LBB"))]
    labels = {line.rstrip(":"): i for i, line in enumerate(lines) if line.startswith(".LBB")}
    spans = []
    for i, line in enumerate(lines):
        target = _BRANCH.match(line)
        if target and labels.get(target[1], i + 1) <= i:
            spans.append((labels[target[1]], i))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [Loop(tuple(line for line in lines[a : b + 1] if not line.endswith(":"))) for a, b in inner]


def hot_loop(text: str, count: Callable[[Loop], int]) -> Loop:
    """The inner loop with the most of what is counted."""
    return max(inner_loops(text), key=count)
