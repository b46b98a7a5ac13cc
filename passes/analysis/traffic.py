"""What a kernel moves: bytes of each parameter, and how its loops are cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from passes.analysis.loop_scope import Ints


@dataclass(frozen=True)
class Traffic:
    """Bytes of one parameter of a PrimFunc.

    Attributes:
        name: the parameter's name in the kernel.
        read_bytes: loads that are issued.
        written_bytes: stores that are issued.
        needed_read_bytes: different bytes among those loads; 0 for what the PrimFunc wrote itself.
        needed_written_bytes: different bytes among those stores; 0 for scratch.
    """

    name: str
    read_bytes: int
    written_bytes: int
    needed_read_bytes: int
    needed_written_bytes: int


@dataclass
class Kernel:
    """One kernel of a PrimFunc: an OpenCL kernel, or the whole PrimFunc on a CPU.

    Attributes:
        name: of its block.
        launches: times that one call of the PrimFunc starts it.
        work_items: work-items of one launch; 0 on a CPU.
        group: work-items of a work-group; 0 on a CPU.
        tasks: iterations of its parallel loop; 1 runs on one thread. 0 on a GPU.
        moved_bytes: loads and stores of all launches.
        vector_lanes, vector_bits: values that are moved at once where the most different bytes are, and bits of one.
        register_tile: shape of the largest array that a work-item, or a CPU thread, has to itself: of sums in
            registers, or of those of all row tiles that take turns.
    """

    name: str = ""
    launches: int = 1
    work_items: int = 0
    group: int = 0
    tasks: int = 0
    moved_bytes: int = 0
    vector_lanes: int = 1
    vector_bits: int = 0
    register_tile: tuple[int, ...] = ()
    most_bits: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Counted:
    """What a call of a PrimFunc moves."""

    kernels: tuple[Kernel, ...]
    traffic: tuple[Traffic, ...]

    @property
    def moved_bytes(self) -> int:
        """Bytes that are loaded and stored."""
        return sum(t.read_bytes + t.written_bytes for t in self.traffic)

    @property
    def needed_bytes(self) -> int:
        """Bytes that have to be loaded and stored at least."""
        return sum(t.needed_read_bytes + t.needed_written_bytes for t in self.traffic)


class Touched:
    """What was loaded from and stored to one parameter."""

    def __init__(self, shape: tuple[int, ...], bits: int) -> None:
        self.shape, self.bits = shape, bits
        self.moved = {"load": 0, "store": 0}
        self.where: dict[str, list[set[int] | int]] = {kind: [set() for _ in shape] for kind in self.moved}

    def add(self, kind: str, count: int, where: list[Ints | int]) -> None:
        """`count` values at every combination of the positions `where`; a number counts positions that data give."""
        self.moved[kind] += count
        for d, found in enumerate(where):
            before = self.where[kind][d]
            if isinstance(found, int) or isinstance(before, int):
                sizes = [x if isinstance(x, int) else len(x) for x in (before, found)]
                self.where[kind][d] = min(max(sizes), self.shape[d])
            else:
                before.update(found.tolist())

    def traffic(self, name: str, own: bool, scratch: bool) -> Traffic:
        """Its bytes; `own`: the kernel writes it; `scratch`: nothing is left of it."""
        different = {}
        for kind, moved in self.moved.items():
            sizes = [x if isinstance(x, int) else len(x) for x in self.where[kind]]
            different[kind] = min(moved, int(np.prod(sizes, dtype=np.int64)))
        read, written = self.moved["load"], self.moved["store"]
        needed_read = 0 if own or scratch else different["load"]
        needed_written = 0 if scratch else different["store"]
        return Traffic(name, *(count * self.bits // 8 for count in (read, written, needed_read, needed_written)))
