"""Processor cycles of the CPU kernels in targets/cpu/kernels, read off their loops.

What a core can issue follows from its facts: FMA instructions a cycle from the float32 rate; two vector loads a cycle
on out-of-order cores, half a 128-bit load on the in-order A53 and A55 (64-bit load path). With that, float32 at one row
on an A55 comes to 200 cycles per 1024 bytes of weights where llvm-mca finds 210, float16 to 200 per 512 against 161
(facts of the A55 schedules, LLVM 14 to 22). An FMA has a latency of four cycles and each output is one chain.
On a Zen 3 core with the data in its caches these counts came to 0.8 to 1.1 of the measured time of float16, int8 and
int4 matrix multiplications at n = 1 to 16 (1.4 at n = 6 and 12, where the AVX2 tile spills). Of attention's they came
to 0.52 to 0.8 at an assumed 3.2 GHz (9 heads of 64, 3 KV heads, n = 1 to 128, 128 to 890 keys), while other work ran
beside it; of the kernel before it, row by row, to 0.83 in the same run. On a Zen 5 core at 4.3 GHz the counts of
int4 with VNNI came to 0.8 to 1.2 (2048 x 2048, n = 1 to 32, the best of 41 runs).
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.format import F32, INT8, Format
from costmodel.operators import NONLINEARITIES, NORMS, STATISTICS, TABLES
from costmodel.work import Op, visible_keys
from targets.cpu.dot import DOTS, STEP, dot_of
from targets.cpu.linear_tile import LINE_BYTES, linear_tile
from targets.cpu.tile import CHUNK, SERIAL_WEIGHTS, CpuTile, chunk_tasks, cpu_tile, row_groups
from targets.device import Core
from targets.kv_format import KV_FORMATS

_FMA_LATENCY = 4.0
_EXP = 18.0  # operations of lanes_exp
_KV_SCALES = 2.0  # a score times its key's scale, a weight times its value's
_JOIN = 10.0  # of a chunk's peak and sum
_ALIBI = 2.0  # the distance of the keys, and a multiply-add
_DIVIDE = 8.0  # cycles of a vector division
_SCALES = 2.0  # vector instructions for the scales of a step
_ZERO_ROW = 1.0  # for a row where there are zero points
_VECTOR_CYCLES = {  # of one vector of a row
    **dict.fromkeys(("add", "bias", "scale", "clip", "relu", "squared_relu"), 1.5),
    **dict.fromkeys(("scale_columns", "altup_correct", "altup_add"), 1.5),
    **dict.fromkeys(("rope", "take", "join_columns"), 9.0),
}


@dataclass(frozen=True)
class Issue:
    """What one core issues a cycle, in vector instructions.

    Attributes:
        fma: fused multiply-adds, and other vector arithmetic.
        load: vector loads.
        in_order: instructions of different kinds do not hide each other.
        converts: float16 to float32, one vector each, on pipes of their own; 0: they take those of the multiply-adds.
    """

    fma: float
    load: float
    in_order: bool
    converts: float = 0.0

    def cycles(self, fma: float, other: float, load: float, chain: float) -> float:
        """Cycles of a loop body: arithmetic and loads one after the other or side by side, never below `chain`."""
        arithmetic = (fma + other) / self.fma
        loads = load / self.load
        return max(arithmetic + loads if self.in_order else max(arithmetic, loads), chain)

    @property
    def scalar_penalty(self) -> float:
        """How much longer scalar and short loops take than on an out-of-order core; assumed."""
        return 2.0 if self.in_order else 1.0


def issue_of(core: Core) -> Issue:
    """The issue rates of a core."""
    fma = core.fp32_flops_per_cycle / (2 * (core.vector_bits // 32))
    load = 0.5 if core.in_order else 2.0
    return Issue(fma, load, core.in_order, 1.0 if core.isa == "x86-64" else 0.0)


@dataclass(frozen=True)
class Cycles:
    """Cycles of a kernel on the busiest thread, and how it walks its data.

    Attributes:
        cycles: processor cycles of the thread with the most parts.
        threads: threads that have work.
        walks: times the parts below are read; the first time from memory, later from the cache that holds a part.
        part_bytes: bytes read again and again together: a group of weight panels, or a chunk of a head's KV rows.
        streams: sequences of addresses that are read side by side: panels of a group, or keys and values; None where
            all lines are asked for ahead, so that none waits at the end of a page.
    """

    cycles: float
    threads: int
    walks: int = 1
    part_bytes: float = 0.0
    streams: int | None = 1


def kernel_cycles(op: Op, core: Core, threads: int) -> Cycles:
    """Cycles of an operator's kernel with that many threads."""
    tile, issue = cpu_tile(core), issue_of(core)
    if op.kind == "linear" and op.operator.activations == INT8:
        return _linear_int(op, tile, issue, threads)
    if op.kind == "linear":
        return _linear(op, tile, issue, threads)
    if op.kind == "attention":
        return _attention(op, tile, issue, threads)
    return Cycles(_serial(op, tile, issue), 1)


def _linear(op: Op, tile: CpuTile, issue: Issue, threads: int) -> Cycles:
    """Row tiles over the panels of the weights; the last tile overlaps, so its time is that of a full one."""
    k, columns, stored = op.operator.k, op.operator.columns, op.operator.format
    panels = -(-columns // tile.panel)
    if stored.quantised:
        rows, side, asked_lines = tile.rows(op.rows), 1, 0.0
        row_tiles = walks = -(-op.rows // rows)
    else:
        walk = linear_tile(tile, op.rows, k, panels, stored.bits // 8)
        rows, side, row_tiles, walks = walk.rows, walk.side, walk.row_tiles, walk.walks
        asked_lines = side * tile.panel * stored.bits / 8 / LINE_BYTES / row_tiles if walk.ahead else 0.0
    groups = panels // side
    serial = not stored.quantised and columns * k < SERIAL_WEIGHTS
    used = 1 if serial else min(threads, groups)
    body = _linear_body(stored, tile, issue, rows, side, asked_lines)
    per_thread = -(-groups // used)
    group_bytes = side * stored.nbytes(k, tile.panel)
    streams = None if asked_lines else side
    return Cycles(per_thread * row_tiles * k * body, used, walks, group_bytes, streams)


def _linear_body(stored: Format, tile: CpuTile, issue: Issue, rows: int, side: int, asked_lines: float) -> float:
    """Cycles of one step of k for `side` panels and `rows` rows, which asks for so many cache lines."""
    vectors = side * tile.panel_vectors
    fma = rows * vectors
    ask = asked_lines * (issue.load if issue.in_order else 1.0)  # a cycle each, where a load takes two
    load = vectors * stored.bits / 32 + rows + ask
    if stored.quantised:
        return issue.cycles(fma, vectors * stored.type.cpu_unpack, load, _FMA_LATENCY)
    convert = vectors if stored.bits == 16 else 0
    if issue.converts:
        return max(issue.cycles(fma, 0, load, _FMA_LATENCY), convert / issue.converts)
    return issue.cycles(fma, convert, load, _FMA_LATENCY)


def _linear_int(op: Op, tile: CpuTile, issue: Issue, threads: int) -> Cycles:
    """All rows of a panel at each step of k, in tiles that share the unpacked weights; one walk over the weights.

    The codes are made before by one thread, by the first matrix multiplication that reads them; here by each.
    """
    k, columns, stored = op.operator.k, op.operator.columns, op.operator.format
    dot, panels, steps = DOTS[dot_of(tile.dot, op.rows)], -(-columns // tile.panel), k // STEP
    vectors, used = tile.panel // dot.columns, min(threads, panels)
    tile_rows = dot.tile_rows(op.rows)
    tiles = -(-op.rows // tile_rows)
    ahead = vectors * (_SCALES + tiles * dot.unpack[stored.bits])
    row = dot.row[stored.bits] + (_ZERO_ROW if stored.zeros else 0)
    loads = vectors * (tiles * stored.bits + 1 + tiles * tile_rows * dot.row_loads[stored.bits])
    body = issue.cycles(vectors * tiles * tile_rows * row, ahead, loads, _FMA_LATENCY)
    panel_cycles = -(-panels // used) * steps * body
    codes = op.rows * steps * dot.codes * issue.scalar_penalty
    return Cycles(panel_cycles + codes, used, 1, stored.nbytes(k, tile.panel), None)


def _attention(op: Op, tile: CpuTile, issue: Issue, threads: int) -> Cycles:
    """Scores with keys in lanes, exp, then the weighted sum of values, for tiles of rows of each KV head."""
    head_dim, kv_heads = op.operator.head_dim, op.operator.kv_heads
    share, n = op.operator.heads // kv_heads, op.rows // op.batch
    vectors = head_dim // tile.vector(head_dim)
    cut = tile.attention(n, share, vectors)
    queries = cut.rows * share
    # keys that any row of a tile sees
    spans = [visible_keys(op.past + t, op.operator.window) + cut.rows - 1 for t in range(0, n, cut.rows)]
    key_tiles = [-(-span // tile.lanes) for span in spans]
    stored = next(KV_FORMATS[t.dtype] for t in op.traffic if t.kind == "kv")

    def body(fma: float, read: float, other_loads: float, chain: float) -> float:
        """Cycles with so many vectors of keys or of values, which are converted to floats."""
        load, convert = read * stored.bytes / F32 + other_loads, read * stored.conversions
        if issue.converts and stored.name == "float16":
            return max(issue.cycles(fma, 0, load, chain), convert / issue.converts)
        return issue.cycles(fma, convert, load, chain)

    score = head_dim * body(queries * cut.key_vectors, cut.key_vectors, queries, _FMA_LATENCY)
    soften = (
        queries * (_EXP + 8 + (_ALIBI if op.operator.alibi else 0) + (_KV_SCALES if stored.scales else 0)) / issue.fma
    )
    sums = queries * cut.value_vectors
    spilled = sums if sums > tile.accumulators else 0  # accumulators that do not fit are loaded and stored each time
    beside, chain = queries + 2 * spilled, 1.0 if spilled else _FMA_LATENCY
    value = vectors / cut.value_vectors * body(sums, cut.value_vectors, beside, chain)
    scores = sum(-(-count // cut.key_vectors) for count in key_tiles) * score + sum(key_tiles) * soften
    of_head = op.batch * (scores + sum(spans) * value + n * share * vectors * _DIVIDE)
    keys, parts = max(spans), kv_heads * row_groups(kv_heads, len(spans)) * op.batch
    used, joins = min(threads, parts), 0.0
    busiest = -(-parts // used) / parts
    if chunk_tasks(n, keys):  # the calling thread joins what they find
        chunks = -(-keys // CHUNK)
        used = min(threads, parts * chunks)
        busiest = min(busiest, -(-parts * chunks // used) / parts * CHUNK / keys)
        joins = op.batch * n * op.operator.heads * chunks * (2 * vectors + _EXP + _JOIN) / issue.fma
    busiest *= kv_heads * of_head
    return Cycles(busiest + joins, used, len(spans), stored.token_bytes(head_dim) * min(keys, CHUNK))


def _serial(op: Op, tile: CpuTile, issue: Issue) -> float:
    """Kernels that run on one thread: cycles for each row; norm, rope, take and silu_mul as measured on Zen 3."""
    columns = op.operator.columns
    vectors = columns / tile.vector(columns)
    if op.kind in TABLES:
        each = columns * (8.0 if op.operator.format.quantised else 2.0)
    elif op.kind == "altup_predict":
        each = vectors * 1.5 * (1 + op.operator.groups)
    elif op.kind in NORMS or op.kind in STATISTICS:
        each = vectors * 18.0 + 60
    elif op.kind in _VECTOR_CYCLES:
        each = vectors * _VECTOR_CYCLES[op.kind]
    elif op.kind in NONLINEARITIES:
        each = vectors * ((_EXP + 4) / issue.fma + _DIVIDE)
    else:
        assert op.kind == "argmax", op.kind
        each = vectors * _FMA_LATENCY + columns
    return op.rows * each * issue.scalar_penalty
