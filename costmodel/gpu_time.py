"""An operator on the GPU: arithmetic in issue slots, bytes, and loads that one work-item waits for one after the other.

Rows are computed in whole row tiles (targets/opencl/tile.py); each tile unpacks the weights once. They come from memory
once: work-groups of the same columns and other rows are neighbours, which run side by side or find them in the GPU's
cache (on PoCL a prompt of 64 tokens, eight such tiles, takes 4.4 times as long as a step of 8, at 40 M parameters). A
fused multiply-add and any other operation take one issue slot each, and the rate of the board counts two operations a
slot. A matrix with few columns has few work-items, so that nothing hides how long their loads take: with one row of 512
columns it is one work-group.
"""

from __future__ import annotations

from costmodel.estimate import Estimate
from costmodel.factors import Factors
from costmodel.format import INT8
from costmodel.operators import NORMS
from costmodel.work import Op, visible_keys
from targets.cpu.dot import STEP
from targets.device import Gpu
from targets.opencl.dot import CODES_OF_A_VALUE, DOT, PLAIN
from targets.opencl.tile import gpu_tile

_KERNELS = {
    **dict.fromkeys((*NORMS, "match_magnitude"), 2),
    "attention": 3,
    "gaussian_top_k": 3,
}  # of one operator (targets/opencl/kernels); others have one


def gpu_time(op: Op, gpu: Gpu, factors: Factors) -> Estimate:
    """One operator's kernels, in a queue that is not empty."""
    flops, kernels = op.flops, _KERNELS.get(op.kind, 1)
    if op.kind == "linear" and op.operator.activations == INT8:
        flops = _integer_flops(op, gpu, factors.gpu_item_steps)
        kernels += op.operator.makes_codes
    elif op.kind == "linear":
        stored, k, columns = op.operator.format, op.operator.k, op.operator.columns
        rows = gpu_tile(gpu).rows(op.rows, _widest(op))
        tiles = -(-op.rows // rows)
        flops = 2.0 * (k + factors.gpu_item_steps) * columns * tiles * (rows + stored.type.gpu_unpack)
    read = op.bytes_of("weights") + op.bytes_of("kv") + op.activation_bytes
    memory = read / (factors.gpu_bandwidth * gpu.bandwidth_gb_per_s * 1e9)
    share = factors.gpu_attention if op.kind == "attention" else factors.gpu_compute
    compute = max(flops / (share * gpu.fp32_gflops * 1e9), factors.gpu_load_ns * 1e-9 * loads_in_a_row(op, gpu))
    dispatch = factors.gpu_dispatch * gpu.launch_overhead_s * kernels
    exposed = (1 - factors.gpu_overlap) * min(compute, memory)
    if compute > memory:
        return Estimate(compute, exposed, 0.0, dispatch)
    return Estimate(exposed, memory, 0.0, dispatch)


def loads_in_a_row(op: Op, gpu: Gpu) -> float:
    """Times that one work-item waits for loads: for the weights of some steps of k, or for the values of some keys."""
    tile, k = gpu_tile(gpu), op.operator.k
    if op.kind == "attention":
        n = op.rows // op.batch
        _, _, keys = tile.weighted_sums(n, op.operator.head_dim)
        return visible_keys(op.past + n - 1, op.operator.window) / keys
    if op.kind != "linear":
        return 1.0
    if op.operator.activations == INT8:
        return k / STEP
    if op.operator.format.quantised:
        return k * op.operator.format.bits / 32  # a word of a column's weights at a time
    return k / tile.unroll(k, tile.rows(op.rows, _widest(op)), tile.columns(op.rows, _widest(op)))


def _widest(op: Op) -> int:
    """Columns of a work-item of few rows."""
    return 8 if op.operator.format.bits < 32 else 4


def _integer_flops(op: Op, gpu: Gpu, item_steps: float) -> float:
    """Twice the issue slots of a matrix multiplication with int8 activations."""
    k, columns, stored = op.operator.k, op.operator.columns, op.operator.format
    dot = DOT if gpu.has_integer_dot else PLAIN
    _, rows = gpu_tile(gpu).integer_tile(op.rows, stored.zeros)
    tiles = -(-op.rows // rows)
    step = dot.unpack[stored.bits] + rows * (dot.row + (dot.zero_row if stored.zeros else 0.0))
    scales = k / stored.block * (dot.scale + (dot.zero if stored.zeros else 0.0))
    codes = CODES_OF_A_VALUE * op.rows * k if op.operator.makes_codes else 0.0
    return 2.0 * (columns * tiles * ((k + item_steps) / STEP * step + scales) + codes)
