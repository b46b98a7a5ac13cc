"""The register tile of a core: what the kernels and the packed weight layout are derived from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from targets.cpu.dot import DOTS
from targets.device import Core

# Below this many weights a parallel region (about 2 us to enter and leave) costs more than it saves.
SERIAL_WEIGHTS = 16 * 1024

_QUERIES = 6  # of an attention's tile
CHUNK = 384  # keys of one part of an attention, from which a row's bits follow: whole groups of 1 to 4 key vectors
_SPLIT_ROWS = 16  # of an attention with a task for each chunk of keys
_ENOUGH_TASKS = 16


def chunk_tasks(rows: int, context: int) -> bool:
    """Whether each chunk of keys is a task of its own."""
    return rows <= _SPLIT_ROWS and context > CHUNK


def row_groups(kv_heads: int, row_tiles: int) -> int:
    """Groups of equally many tiles of rows, which are tasks for each KV head."""
    enough = (g for g in range(1, row_tiles + 1) if row_tiles % g == 0 and kv_heads * g >= _ENOUGH_TASKS)
    return next(enough, row_tiles)


@dataclass(frozen=True)
class AttentionTile:
    """What an attention computes together for one KV head; queries are rows times the heads that share it.

    Attributes:
        rows: of new tokens; they divide the rows of a call.
        key_vectors: of keys beside each other, for scores.
        value_vectors: of head_dim beside each other, for the sums of values; they divide it.
    """

    rows: int
    key_vectors: int
    value_vectors: int


@dataclass(frozen=True)
class CpuTile:
    """Vector and register-tile sizes of one instruction set.

    Attributes:
        lanes: float32 values in one vector register.
        panel: columns of a packed weight panel; the layout on disk depends on it, so one board has one panel.
        accumulators: vector registers a tile may accumulate in without spilling.
        dot: how the core multiplies integers, a name of targets/cpu/dot.py.
        l1d_bytes: level-1 data cache.
    """

    lanes: int
    panel: int
    accumulators: int
    dot: str
    l1d_bytes: int = 32 << 10

    @property
    def panel_vectors(self) -> int:
        """Vectors across one panel."""
        return self.panel // self.lanes

    def vector(self, width: int) -> int:
        """Values that a kernel moves together along a row of `width`: a whole register's where they divide it."""
        return math.gcd(self.lanes, width)

    def rows(self, n: int) -> int:
        """Rows of one register tile when n rows are computed: the row tile whose stairs the verify curve shows."""
        registers = self.accumulators * 4 // 3
        # Each row also keeps its input in a register beside one vector of weights: with 16 registers and two vectors a
        # panel, 6 rows need 19; 5 rows took 0.75 of the time of 6 over a prompt chunk (Zen 3).
        most = max(1, min(self.accumulators // self.panel_vectors, (registers - 1) // (self.panel_vectors + 1)))
        tiles = -(-n // most)
        return -(-n // tiles)

    def attention(self, n: int, share: int, vectors: int) -> AttentionTile:
        """The tile of an attention over n rows, `share` heads a KV head and `vectors` vectors across head_dim.

        Beside its sums, a tile of scores keeps the keys in registers, and what they are multiplied with: on aarch64,
        which multiplies by lane, a vector of each query.
        """
        rows = next(r for r in range(max(1, _QUERIES // share), 0, -1) if n % r == 0)
        queries, registers = rows * share, self.accumulators * 4 // 3
        factors = queries if self.lanes == 4 else 1
        side = max(1, min(4, (registers - factors) // (queries + 1)))
        widest = max(1, min(4, self.accumulators // queries, vectors))
        return AttentionTile(rows, side, next(w for w in range(widest, 0, -1) if vectors % w == 0))


def cpu_tile(core: Core) -> CpuTile:
    """The tile of a core: 32 registers (NEON, AVX-512) leave 24 accumulators, 16 registers (AVX2) leave 12."""
    lanes = core.vector_bits // 32
    accumulators = core.vector_registers * 3 // 4
    panel = max(16, 4 * lanes if lanes == 16 else 16)
    return CpuTile(lanes=lanes, panel=panel, accumulators=accumulators, dot=_dot(core), l1d_bytes=core.l1d_bytes)


def _dot(core: Core) -> str:
    if core.isa == "x86-64":
        vnni = f"vnni {core.vector_bits}"
        return vnni if core.has_dotprod and vnni in DOTS else "pmadd"
    if not core.has_dotprod:
        return "smull"
    return ("smmla" if core.has_i8mm else "sdot") + (" in order" if core.in_order else "")
