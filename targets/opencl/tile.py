"""How the kernels of a GPU are cut: columns and rows of one work-item, work-items of one group."""

from __future__ import annotations

from dataclasses import dataclass

from targets.device import Gpu


@dataclass(frozen=True)
class GpuTile:
    """Sizes of the kernels for one GPU; none of them changes the order of a reduction.

    Attributes:
        group: work-items of a work-group, at most what the board's driver allows.
        panel: columns of a packed weight panel, the layout that CPU kernels stream too.
        lanes: float32 values in one 128-bit load, and keys in one tile of the key cache.
        accumulators: float32 accumulators of one work-item that stay in its registers.
        registers: of 32 bits that the accumulators, weights and activations may take together. A work-item of
            Bifrost and Valhall has 64 (Arm's OpenCL guide for them, 101574, section 9.6); the rest holds addresses.
        native_half: matrix multiplications use half arithmetic where it is exact; the device must have cl_khr_fp16.
    """

    group: int = 64
    panel: int = 16
    lanes: int = 4
    accumulators: int = 32
    registers: int = 56
    native_half: bool = False

    def columns(self, n: int, widest: int) -> int:
        """Columns that one work-item of a matrix multiplication computes: `widest`, or 4 where n rows would not fit.

        So up to 8 rows share one read of the weights, whatever their type.
        """
        return widest if n * widest <= self.accumulators else min(4, widest)

    def rows(self, n: int, widest: int) -> int:
        """Rows that one work-item computes, for its `columns`, when n rows are wanted."""
        most = max(1, self.accumulators // self.columns(n, widest))
        tiles = -(-n // most)
        return -(-n // tiles)

    def shared_rows(self, n: int, each: int) -> int:
        """Rows that one work-item computes when each takes `each` accumulators and n are wanted, in equal tiles."""
        tiles = -(-n // max(1, self.accumulators // each))
        return -(-n // tiles)

    def integer_tile(self, n: int, zeros: bool) -> tuple[int, int]:
        """Columns and rows of one work-item that multiplies int8 codes, when n rows are wanted.

        Each result has a sum of integers beside it; half a step of weights and of one row's codes, 4 words each, and
        the scales and zero points of the columns take registers, too.
        """
        most = {wide: (self.registers - 4 - wide * (5 + zeros)) // (2 * wide) for wide in (4, 2)}
        wide = 4 if n <= most[4] else 2
        tiles = -(-n // min(8, most[wide]))
        return wide, -(-n // tiles)

    def weighted_sums(self, n: int, head_dim: int) -> tuple[int, int, int]:
        """Values and rows of one work-item that adds up weighted values, and keys that it loads before it uses one."""
        wide = self.vector(head_dim)
        rows = self.shared_rows(n, 2 * wide)
        return wide, rows, self.unroll(self.lanes, 2 * rows, wide)

    def unroll(self, steps: int, rows: int, columns: int, beside: int = 0) -> int:
        """Steps of k done together, a divisor of `steps`: their weights and activations fit with `beside` others."""
        free = self.registers - rows * columns - beside
        return next((u for u in (4, 2) if steps % u == 0 and u * (columns + 1) <= free), 1)

    def vector(self, width: int) -> int:
        """Values moved at once where rows have `width` of them."""
        return next(v for v in (self.lanes, 2, 1) if width % v == 0)


def gpu_tile(gpu: Gpu) -> GpuTile:
    """The tile of a board's GPU: groups of 64 work-items, or fewer where the driver allows no more."""
    return GpuTile(group=min(64, gpu.max_work_group_size), native_half=gpu.native_half)
