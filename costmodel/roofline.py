"""An operator on a processor: the roofline of Williams et al. 2009, with the kernels that are really used.

Time = the longer of arithmetic and memory, plus the part of the shorter one that is not hidden. Arithmetic comes from
the kernels' cycles (cpu_cycles.py), so it climbs in stairs of the register tile with the rows n; memory from the bytes
that miss the caches. Parallel regions, kernel calls and GPU launches are added one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from costmodel.cpu_cycles import Cycles, kernel_cycles
from costmodel.cpu_reads import first_walk_s, later_walk_s, resident_share
from costmodel.decoder import DecoderSpec
from costmodel.estimate import Estimate, total
from costmodel.factors import Factors
from costmodel.gpu_time import gpu_time
from costmodel.processor import CpuSlice, GpuSlice, Processor, cache_bytes
from costmodel.work import Op, step_units
from targets.device import Board, Core

_PAGE_BYTES = 4096
_COPY_CYCLES = 20_000  # of the runtime around a few rows of one cache: 0.1 ms for the 24 of 12 layers on Zen 5


@dataclass(frozen=True)
class Roofline:
    """Prices operators and steps on one board.

    Attributes:
        board: the hardware's numbers.
        factors: what kernels reach of them.
        counted: kernels whose cycles were counted, which factors do not change; a fit prices the same ones again and
            again and hands it on. Keys are identities, so the values keep what they belong to.
    """

    board: Board
    factors: Factors = field(default_factory=Factors)
    counted: dict[tuple[int, int, int], tuple[Op, Core, Cycles]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def op(self, op: Op, processor: Processor, resident: float = 0.0) -> Estimate:
        """One kernel call; `resident` is the share of its weights and KV rows that are in the caches."""
        if isinstance(processor, GpuSlice):
            return gpu_time(op, processor.gpu, self.factors)
        return self._on_cpu(op, processor, resident)

    def units(
        self, units: list[tuple[Op, ...]], processor: Processor, beside_bytes: float = 0.0, in_a_row: int | None = None
    ) -> list[Estimate]:
        """Each counted unit of a step (work.step_units) on one processor, without the step's own overhead.

        Args:
            units: the counted step.
            processor: where.
            beside_bytes: read by others between two steps; they compete for the caches: the other model of a pair.
            in_a_row: steps of this model since those others ran, from 0; None is many, or no others.
        """
        resident = self.resident(dram_bytes(units), processor, beside_bytes, in_a_row)
        priced: dict[int, Estimate] = {}
        for unit in units:
            if id(unit) not in priced:
                priced[id(unit)] = total([self.op(op, processor, resident) for op in unit])
        return [priced[id(unit)] for unit in units]

    def resident(
        self, size: float, processor: Processor, beside_bytes: float = 0.0, in_a_row: int | None = None
    ) -> float:
        """Share of a step's bytes in the caches: what is left when others ran, and more with each step in a row."""
        f, caches = self.factors, cache_bytes(processor)
        end = resident_share(size, f.cache_share * caches, f.cache_kept * caches)
        if not beside_bytes:
            return end
        left = resident_share(size + beside_bytes, f.cache_share * caches)
        if in_a_row is None:
            return left
        return left + (end - left) * (1.0 - (1.0 - min(1.0, f.cache_refill)) ** in_a_row)

    def step(
        self,
        spec: DecoderSpec,
        processor: Processor,
        n: int,
        past: int,
        batch: int = 1,
        beside_bytes: float = 0.0,
        in_a_row: int | None = None,
    ) -> Estimate:
        """A whole step of n new tokens after `past`, on one processor; the last two arguments as in `units`."""
        units = self.units(step_units(spec, n, past, batch), processor, beside_bytes, in_a_row)
        return total([self.step_overhead(processor), *units])

    def prompt(self, spec: DecoderSpec, processor: Processor, tokens: int, past: int, chunk: int) -> Estimate:
        """A prompt of some tokens after `past`, in whole chunks, the last one with the logits of one row."""
        return self.chunks(prompt_units(spec, tokens, past, chunk), processor)

    def chunks(self, steps: Sequence[list[tuple[Op, ...]]], processor: Processor) -> Estimate:
        """Counted steps one after the other, each with its overhead."""
        parts = []
        for units in steps:
            parts += [self.step_overhead(processor), *self.units(units, processor)]
        return total(parts)

    def step_overhead(self, processor: Processor) -> Estimate:
        """Around a step: the call of the entry point; on the GPU also starting an empty queue and awaiting its end."""
        if isinstance(processor, GpuSlice):
            call = self.factors.step_cycles / (processor.host.frequency_ghz * 1e9)
            return Estimate(launch_s=2 * self.factors.gpu_start * processor.gpu.launch_overhead_s, dispatch_s=call)
        cluster = processor.parts[0][0]
        return Estimate(dispatch_s=self.factors.step_cycles / (cluster.frequency_ghz * 1e9))

    def border(self, source: Processor, target: Processor, values: float) -> Estimate:
        """Handing `values` float32 activations from one processor to the next, beyond the step overhead of each.

        To and from a GPU with unified memory the buffer is mapped without a copy (its start and the wait for its end
        are the GPU's step overhead); without, the values are copied. Between clusters they go through DRAM.
        """
        if source.family == target.family:
            return Estimate()
        gpu = next((p.gpu for p in (source, target) if isinstance(p, GpuSlice)), None)
        if gpu is not None:
            return Estimate(transfer_s=0.0 if gpu.unified_memory else 4 * values / (gpu.bandwidth_gb_per_s * 1e9))
        cluster = target.parts[0][0] if isinstance(target, CpuSlice) else self.board.clusters[0]
        return Estimate(transfer_s=4 * values / (cluster.bandwidth_one_thread_gb_per_s * 1e9))

    def round_overhead_s(self) -> float:
        """The decoding loop around a round, on the first cluster."""
        return self.factors.round_cycles / (self.board.clusters[0].frequency_ghz * 1e9)

    def branch_s(self, spec: DecoderSpec) -> float:
        """Giving a slot the rows that a text has got since the last time, in every cache, on the first cluster."""
        return 2 * spec.layers * _COPY_CYCLES / (self.board.clusters[0].frequency_ghz * 1e9)

    def text_start_s(self) -> float:
        """What the first steps of a text of one model take longer than later ones, all together."""
        return self.factors.start_cycles / (self.board.clusters[0].frequency_ghz * 1e9)

    def hand_over_s(self) -> float:
        """From a miss of overlapped drafting until the drafter knows of it, and back, on the first cluster."""
        return self.factors.hand_over_cycles / (self.board.clusters[0].frequency_ghz * 1e9)

    def _on_cpu(self, op: Op, processor: CpuSlice, resident: float) -> Estimate:
        """The first walk over the weights waits for memory or computes; later walks find their part in a cache."""
        f = self.factors
        share = self._arithmetic_share(op)
        compute = memory = launch = later = 0.0
        for cluster, threads in processor.parts[:1] if op.parallel == 0 else processor.parts:
            hz = cluster.frequency_ghz * 1e9
            found = self._cycles(op, cluster.core, processor.threads)
            walks = found.walks if op.kind == "linear" else 1
            walk_s = share * found.cycles / hz / walks
            compute = max(compute, walk_s)
            later = max(later, (walks - 1) * max(walk_s, later_walk_s(f, op, cluster, found.threads, found.part_bytes)))
            mixed = len(processor.parts) > 1 and found.threads > 1
            portion = threads / processor.threads if mixed else 1.0
            on_cluster = min(threads, found.threads)
            pages = 0.0
            if op.kind == "linear" and found.streams is not None:
                pages = op.stream_bytes * portion / _PAGE_BYTES / on_cluster / found.streams
            waits = pages * 1e-9 * f.page_ns * (1 - resident)
            limit = f.dram_together * self.board.dram.peak_bandwidth_gb_per_s * 1e9 if mixed else math.inf
            first = first_walk_s(f, op, cluster, on_cluster, portion, resident, limit)
            memory = max(memory, first + waits)
            if found.threads > 1:
                launch = max(launch, cluster.launch_overhead_s * f.launch)
        main = processor.parts[0][0]
        dispatch = f.dispatch_cycles / (main.frequency_ghz * 1e9)
        exposed = (1 - self._hidden(op)) * min(compute, memory)
        if compute >= memory:
            return Estimate(compute + later, exposed, launch, dispatch)
        return Estimate(exposed + later, memory, launch, dispatch)

    def _hidden(self, op: Op) -> float:
        """Share of the shorter of a kernel's arithmetic and memory time that the longer one hides."""
        share = self.factors.share("overlap", op.operator.format) if op.kind == "linear" else 1.0
        return min(1.0, self.factors.overlap * share)

    def _arithmetic_share(self, op: Op) -> float:
        """Time of a kernel's arithmetic over its cycle count."""
        if op.kind == "linear":
            return self.factors.compute * self.factors.share("compute", op.operator.format)
        return self.factors.attention if op.kind == "attention" else self.factors.serial

    def _cycles(self, op: Op, core: Core, threads: int) -> Cycles:
        key = id(op), id(core), threads
        if key not in self.counted:
            self.counted[key] = op, core, kernel_cycles(op, core, threads)
        return self.counted[key][2]


def prompt_units(spec: DecoderSpec, tokens: int, past: int, chunk: int) -> list[list[tuple[Op, ...]]]:
    """The counted chunks of a prompt, as `Roofline.prompt` prices them."""
    end = past + tokens
    return [step_units(spec, chunk, start, 1, int(start + chunk >= end)) for start in range(past, end, chunk)]


def dram_bytes(units: list[tuple[Op, ...]]) -> float:
    """Bytes of weights and KV rows that a step touches."""
    sizes = {id(unit): sum(op.stream_bytes for op in unit) for unit in units}
    return sum(sizes[id(unit)] for unit in units)
