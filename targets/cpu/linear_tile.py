"""How a matrix multiplication with float weights walks them: for the kernel (kernels/linear.py) and for its cycles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from targets.cpu.tile import CpuTile

LINE_BYTES = 64
_UNROLLED = 4  # rows of the matrix
_SHARED_BY = 6  # the most row tiles that take turns at a part of the weights
_CONVERTED_CHAINS = 4  # multiply-adds under way that keep a core busy which also converts each weight
_FLOAT32_ROWS_AHEAD = 5  # with fewer, a core that runs ahead of its loads sees far enough by itself
_ROWS_AHEAD = {2: 64, 4: 32}  # of the matrix, by bytes of a weight: 8 KiB with AVX-512, 2 KiB with 16 columns


@dataclass(frozen=True)
class LinearTile:
    """How a float matrix multiplication walks its weights: row tiles take turns at parts that a level-1 cache holds.

    Attributes:
        rows: of one register tile.
        row_tiles: that cover the rows of a call; the last may overlap the one before it.
        side: panels side by side.
        part: rows of the matrix that every row tile multiplies before the next rows are read; all of them, where the
            row tiles are too many.
        asked: rows of the matrix whose cache lines are asked for together, each row tile for its share, between loops
            that keep all sums in registers; it divides k.
        ahead: how many rows before they are multiplied; 0 leaves it to the core.
    """

    rows: int
    row_tiles: int
    side: int
    part: int
    asked: int
    ahead: int

    @property
    def walks(self) -> int:
        """Times that a panel is read from further away than a level-1 cache."""
        return 1 if self.ahead else self.row_tiles


def linear_tile(tile: CpuTile, n: int, k: int, panel_count: int, weight_bytes: int) -> LinearTile:
    """The tile of a multiplication of n rows with panels of k rows; a weight has 4 bytes, or 2.

    One row alone needs panels side by side, to hide the latency of the FMA. Lines are asked for ahead where a core does
    not see far enough by itself: between two lines it would have to hold the multiply-adds of all rows. On a Zen 5
    core, one thread, weights in DRAM, that took a float16 matrix of 2048 x 2048 from 266 to 215 us at one row, 284 to
    226 at 4, 410 to 306 at 8, 495 to 469 at 12, and a float32 one from 489 to 456 at 5, 596 to 547 at 8, 746 to 551 at
    12; at 128 rows it took longer, and for float32 at up to 4 rows. From a level-2 cache, where nothing is waited for,
    it takes 3 to 10 % longer, float32 at 12 rows 25 %. Nobody measured it on Arm.
    """
    rows = tile.rows(n)
    row_tiles, sums = -(-n // rows), tile.panel_vectors * rows
    most = max(1, min(4, tile.accumulators // sums))
    if (
        weight_bytes < 4 and tile.lanes > 4
    ):  # NEON converts with the pipes that multiply, and loads a row's value itself
        most = min(most, -(-_CONVERTED_CHAINS // sums))
    side = next(p for p in range(most, 0, -1) if panel_count % p == 0)
    alone = row_tiles == 1
    # on NEON what is asked for beside a tile's loop takes registers from it, and nobody measured that it helps
    sees_far = tile.lanes == 4 or (weight_bytes == 4 and rows < _FLOAT32_ROWS_AHEAD)
    if row_tiles > _SHARED_BY or (alone and sees_far):
        return LinearTile(rows, row_tiles, side, k, k, 0)
    row_bytes = side * tile.panel * weight_bytes
    # a row tile asks for as many lines as a vector has lanes: cores with wide ones have more requests under way
    asked = math.gcd(k, max(_UNROLLED, _power_of_two(row_tiles * tile.lanes * LINE_BYTES / row_bytes)))
    if alone:
        return LinearTile(rows, 1, side, k, asked, _ROWS_AHEAD[weight_bytes])
    # in the cache are what is multiplied, what is asked for, and the activations of both
    fits = tile.l1d_bytes // (2 * row_bytes + 4 * n)
    part = min(k, max(1, fits // asked) * asked)
    return LinearTile(rows, row_tiles, side, part, asked, part)


def _power_of_two(size: float) -> int:
    """The least one that is not below a size."""
    return 1 << max(0, math.ceil(math.log2(size)))
