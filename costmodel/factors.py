"""What no data sheet says: the shares of the board's numbers that real kernels reach; calibration refits them.

The defaults are assumed, from measurements on x86-64 and from published decoders; each says why. They multiply or
divide numbers of the board file, so a prediction can be traced to that file and to this page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from costmodel.format import Format
from targets.device import Core
from targets.errors import UserError


def overhead_range(core: Core) -> tuple[float, float]:
    """Least and most times as many cycles as the overheads' defaults on a core that was never calibrated.

    The defaults are of one Zen 5 core, whose code is Python, TVM's virtual machine and the system's. 7-zip with one
    thread does 1340 MIPS a GHz on a Cortex-A76 (RK3588), 1000 on a Cortex-A72 (RK3399, Pi 4) and 750 on a Cortex-A53
    (S5P6818; ThomasKaiser/sbc-bench, Sorted-Results.md); that a Zen 5 does up to twice as many as the first is assumed.
    """
    if core.isa != "aarch64":
        return 0.5, 2.0
    return 0.5, 4.0 if core.in_order else 3.0


_KINDS = ("float16", "int8", "int4")
# factor -> kind of weights -> the factor that multiplies it for them
OF_FORMATS = {factor: {kind: f"{factor}_{kind}" for kind in _KINDS} for factor in ("bandwidth", "compute", "overlap")}


def weights_kind(stored: Format) -> str | None:
    """Which of OF_FORMATS weights have: "float16", "int8", "int4" for 4 or fewer bits; None for 32 bits."""
    return {32: None, 16: "float16", 8: "int8"}.get(stored.bits, "int4")


@dataclass(frozen=True)
class Factors:
    """Efficiencies and overheads; 1 means: as the board file or the cycle count says.

    Attributes:
        bandwidth: share of a cluster's read bandwidth that linears reach (0.92 to 0.99 measured on x86-64; llama.cpp
            with four A76 of a Pi 5 streams 0.93 to 0.95 of what a program that only reads does).
        bandwidth_one_thread: the same of one thread's, which reads one stream where kernels read several side by side.
        compute: time of linears' arithmetic over the cycle count.
        bandwidth_float16, bandwidth_int8, bandwidth_int4: what both shares of the bandwidth, and the rate from a
            cache, are multiplied by for weights of 16, 8, and 4 or fewer bits: kernels of one format keep more loads
            under way than those of another (0.8 for float16, 0.9 for int4 measured on Zen 5).
        compute_float16, compute_int8, compute_int4: the same of `compute`.
        overlap_float16, overlap_int8, overlap_int4: the same of `overlap`, together at most 1: kernels that ask for
            lines ahead wait for memory while they compute (2.1 for int8 fitted on Zen 5: all of it is hidden).
        attention: the same for attention.
        serial: the same for kernels on one thread.
        overlap: share of the shorter of arithmetic and memory time that the longer one hides.
        launch: parallel regions, over the cluster's launch_overhead_s.
        dispatch_cycles: processor cycles to call one kernel (0.1 us measured on Zen 5, at about 4 GHz).
        step_cycles: processor cycles around one step of a model (10.5 us of Python and of storage measured there).
        round_cycles: processor cycles of the decoding loop around a round (Python; about 40 us assumed, which stands
            for all that a round adds to its steps; 1 us measured of the target alone).
        turn_cycles: processor cycles that the loop takes longer where a drafter takes turns with the target.
        draft_turn_cycles: processor cycles that a draft step takes longer there than after itself: tokens change, the
            other model's step took the caches next to the core, and Python draws (6 to 12 us measured on Zen 5).
        verify_turn_cycles: the same of the target's step (5 to 15 us measured there).
        start_cycles: processor cycles that the first steps of a text take longer than later ones, all together: the
            prompt went through the caches before them (50 us measured on Zen 5 with a model of 5.8 M parameters).
        turn_start_cycles: the same of the first rounds that draft (340 us measured there).
        hand_over_cycles: processor cycles from a message of one thread until the other, which waits for it, has it, and
            back (8 us one way with Python's queues measured on x86-64; about 40 us explain whole rounds there).
        sampling_cycles: processor cycles to turn one logit into a probability when sampling (numpy, float64; assumed).
        cache_bytes_per_cycle: read by one core from a last-level cache that holds the data.
        near_cache: rate from a core's own level-2 cache, over 32 bytes a cycle on x86-64 (above 25 measured on Zen 3)
            and 16 on Arm (128 bits, assumed).
        cache_share: share of the caches' size that a cyclic walk finds again (victim caches and neighbours take some).
        cache_kept: share of the caches' size in which they keep the same lines of a model that is larger, from step to
            step, as long as nothing else runs between (what rounds lose of it is measured with the turns: 0.4 on Zen 5;
            nobody measured it on Arm cores, so none is assumed).
        cache_refill: share of what a last-level cache will hold that one walk brings in (0.4 measured on Zen 3, whose
            cache takes 10 to 30 walks to hold a model after another one went through).
        page_ns: hardware prefetchers stop at the end of a 4 KiB page; each page of a stream waits this long for its
            first lines, which streams read side by side hide for each other (50 to 100 measured on Zen 3; nobody
            measured it on Arm cores, so almost none is assumed).
        gpu_bandwidth: share of the GPU's read bandwidth that a decoder reaches (0.29 to 0.40 by existing OpenCL
            decoders on a G610; kernels that tile rows are assumed to reach more).
        gpu_compute: share of the GPU's arithmetic issue slots that its kernels use; loads and addresses take others.
        gpu_attention: the same for attention's kernels, whose loads are narrower.
        gpu_item_steps: what a work-item of a matrix multiplication costs besides its steps of k, in such steps.
        gpu_load_ns: how long a work-item waits for its loads, which follow one another (210 to 240 fitted to steps
            of two small models on an H200, whose 132 cores such kernels leave idle; nobody measured it on a Mali, so
            almost none is assumed).
        gpu_overlap: share of the shorter of arithmetic and memory time that the longer one hides on the GPU.
        gpu_start: starting an empty queue and awaiting its end, over twice launch_overhead_s.
        gpu_dispatch: one more kernel in a queue that is not empty, over launch_overhead_s (10 to 20 us are reported for
            phones, second hand, whose start takes 60 to 80 us; 5 us against 46 to 54 us measured on PoCL).
        dram_together: share of the DRAM peak that several processors read together.
    """

    bandwidth: float = 0.93
    bandwidth_one_thread: float = 0.9
    compute: float = 1.0
    bandwidth_float16: float = 1.0
    bandwidth_int8: float = 1.0
    bandwidth_int4: float = 1.0
    compute_float16: float = 1.0
    compute_int8: float = 1.0
    compute_int4: float = 1.0
    overlap_float16: float = 1.0
    overlap_int8: float = 1.0
    overlap_int4: float = 1.0
    attention: float = 1.0
    serial: float = 1.0
    overlap: float = 0.9
    launch: float = 1.0
    dispatch_cycles: float = 450.0
    step_cycles: float = 45_000.0
    round_cycles: float = 150_000.0
    turn_cycles: float = 1.0
    draft_turn_cycles: float = 1.0
    verify_turn_cycles: float = 1.0
    start_cycles: float = 1.0
    turn_start_cycles: float = 1.0
    hand_over_cycles: float = 150_000.0
    sampling_cycles: float = 20.0
    cache_bytes_per_cycle: float = 8.0
    near_cache: float = 1.0
    cache_share: float = 1.0
    cache_kept: float = 1e-6
    cache_refill: float = 0.4
    page_ns: float = 1.0
    gpu_bandwidth: float = 0.6
    gpu_compute: float = 0.5
    gpu_attention: float = 0.5
    gpu_item_steps: float = 1.0
    gpu_load_ns: float = 1.0
    gpu_overlap: float = 1.0
    gpu_start: float = 1.0
    gpu_dispatch: float = 0.2
    dram_together: float = 0.8

    def share(self, factor: str, stored: Format) -> float:
        """What "bandwidth", "compute" or "overlap" is multiplied by for weights of a format; 1 for those of 32 bits."""
        kind = weights_kind(stored)
        return 1.0 if kind is None else float(getattr(self, OF_FORMATS[factor][kind]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object, where: str) -> Factors:
        """The factors that `to_json` wrote.

        Raises:
            UserError: an unknown name, or a value that is no positive number.
        """
        if not isinstance(data, dict):
            raise UserError(f"{where}: there are no `factors` in it; give a file that `hetero-sd calibrate` wrote")
        known = {f.name for f in fields(cls)}
        for name, value in data.items():
            if name not in known:
                raise UserError(f"{where}: unknown factor {name!r}; known: {', '.join(sorted(known))}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
                raise UserError(f"{where}: factor {name} is {value!r}; it must be a positive number")
        return cls(**data)
