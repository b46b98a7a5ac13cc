"""What CPU kernels read from memory and from caches in a second, and what of a step the caches still hold."""

from __future__ import annotations

import math

from costmodel.factors import Factors
from costmodel.format import Format
from costmodel.work import Op
from targets.device import Cluster

# bytes read a second over bytes copied, each byte of a copy counted once, as tinymembench does: 1.15 to 1.45 of one A76
# on nine boards with RK3588, whose DRAM is wide; 2.5 on a Pi 5, whose DRAM one thread fills (ThomasKaiser/sbc-bench)
_READ_OVER_COPY = 1.34
_ASSUMED = Factors()
_FLOAT32 = Format()
_NEWTON_STEPS = 8
_NEAR_BYTES_PER_CYCLE = {"x86-64": 32.0, "aarch64": 16.0}  # one core from its own level-2 cache


def resident_share(working_set_bytes: float, cache_bytes: float, kept_bytes: float = 0.0) -> float:
    """Share of a step's bytes that the caches still hold from the step before.

    Everything where it fits. Of a cyclic walk over more, a share h is found again with
    h = exp(-(1 - h) size / capacity): a line stays where none of the misses until it is needed again takes its place,
    and each takes any place (a reconstruction: replacement policies differ, and that of the least recently used would
    leave nothing). That is 0.42 of 1.5 times the capacity, 0.20 of twice, 0.02 of four times.
    Caches that insert most new lines as the next to go, where that finds more again, keep the same lines of such a walk
    (Qureshi et al. 2007, Adaptive insertion policies for high performance caching): `kept_bytes`, if that is more.
    """
    if working_set_bytes <= max(0.0, cache_bytes, kept_bytes):
        return 1.0
    if cache_bytes <= 0:
        return 0.0
    ratio, found = working_set_bytes / cache_bytes, 0.0
    for _ in range(_NEWTON_STEPS):  # from below, towards the smaller root
        left = math.exp(-(1.0 - found) * ratio)
        found += (left - found) / (1.0 - ratio * left)
    return max(found, kept_bytes / working_set_bytes)


def reached_gb_per_s(factors: Factors, cluster: Cluster, threads: int, stored: Format = _FLOAT32) -> float:
    """DRAM reads of the kernels: the board's number for so many threads, or threads add up to their limit.

    `stored` is the format of the weights that are read.
    """
    if cluster.bandwidth_by_threads_gb_per_s:
        share = _kernels_share(cluster.bandwidth_by_threads_rate, *_shares(factors, threads, stored))
        return share * cluster.bandwidth_by_threads_gb_per_s[threads - 1]
    share = _kernels_share(cluster.bandwidth_one_thread_rate, *_shares(factors, 1, stored))
    one = share * cluster.bandwidth_one_thread_gb_per_s
    every = _kernels_share(cluster.bandwidth_all_threads_rate, *_shares(factors, 2, stored))
    return min(threads * one, every * cluster.bandwidth_all_threads_gb_per_s)


def first_walk_s(
    factors: Factors,
    op: Op,
    cluster: Cluster,
    used: int,
    portion: float,
    resident: float,
    limit_bytes_per_s: float = math.inf,
) -> float:
    """First walk over weights and KV rows from DRAM or, the resident share, from cache; activations from cache.

    `used` threads of the cluster move `portion` of the bytes; several clusters also share what DRAM gives.
    """
    stream = op.stream_bytes
    rate = 1e9 * reached_gb_per_s(factors, cluster, used, _weights(op))
    cached = max(rate, _from_cache(factors, cluster, _weights(op)) * used)
    near = (resident * stream + op.activation_bytes) * portion / cached
    far = (1 - resident) * stream
    return near + max(far * portion / rate, far / limit_bytes_per_s)


def later_walk_s(factors: Factors, op: Op, cluster: Cluster, used: int, part_bytes: float) -> float:
    """Reading all parts of a kernel once more, each from the nearest cache that holds it."""
    if part_bytes <= 0.75 * cluster.core.l1d_bytes:  # activations and the stack are there too
        return 0.0
    hz = cluster.frequency_ghz * 1e9
    if part_bytes <= cluster.l2_bytes:
        return op.stream_bytes / (factors.near_cache * _NEAR_BYTES_PER_CYCLE[cluster.core.isa] * hz * used)
    dram = 1e9 * reached_gb_per_s(factors, cluster, used, _weights(op))
    if part_bytes * used <= cluster.l3_bytes:
        return op.stream_bytes / max(_from_cache(factors, cluster, _weights(op)) * used, dram)
    return op.stream_bytes / dram


def _from_cache(factors: Factors, cluster: Cluster, stored: Format) -> float:
    """Bytes a second that one core reads from a last-level cache."""
    return factors.share("bandwidth", stored) * factors.cache_bytes_per_cycle * cluster.frequency_ghz * 1e9


def _weights(op: Op) -> Format:
    """The format of a matrix multiplication's weights; others read floats."""
    return op.operator.format if op.kind == "linear" else _FLOAT32


def _shares(factors: Factors, threads: int, stored: Format) -> tuple[float, float]:
    """Share of a read bandwidth that kernels reach with so many threads: as fitted, and as assumed."""
    name = "bandwidth_one_thread" if threads == 1 else "bandwidth"
    return getattr(factors, name) * factors.share("bandwidth", stored), getattr(_ASSUMED, name)


def _kernels_share(rate: str, share: float, assumed: float) -> float:
    """What kernels reach of a bandwidth that is a rate of reads, of copies or of a decoder.

    Each number is discounted once: in a decoder's rate the losses of kernels are in it, so that only what a calibration
    says beyond the assumed share changes it.
    """
    return {"read": share, "copy": _READ_OVER_COPY * share, "decoder": share / assumed}[rate]
