"""Whose kernels a prediction assumes: ours, or those of a generic engine with integer dot products.

The generic engine is a declared profile, so that a board's memory and threads can be judged apart from our kernels: it
says what share of a core's peak its kernels reach, and everything else (bytes, bandwidth by threads, caches, overlap)
is the roofline's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.estimate import Estimate
from costmodel.factors import Factors
from costmodel.roofline import CpuSlice, GpuSlice, Processor, Roofline
from costmodel.work import Op
from targets.device import Board
from targets.errors import UserError

OURS = "ours"


@dataclass(frozen=True)
class Engine:
    """A declared profile of kernels.

    Attributes:
        name: what --engine calls it.
        what: one sentence.
        int8_share: share of a core's int8 rate that matrix multiplications of quantised weights reach.
        float_share: share of its float32 rate that the others and attention reach.
        chunk: tokens that a prompt is read in.
    """

    name: str
    what: str
    int8_share: float
    float_share: float
    chunk: int


GENERIC = Engine(
    "generic-int8-dot",
    "a generic engine: weights of 8 and 4 bits times 8-bit activations by integer dot products at 40 % of the core's "
    "int8 peak (two of five issue slots; the others load, scale and unpack), everything else at half the float32 peak, "
    "every kernel on all threads, prompts in chunks of 512",
    int8_share=0.4,
    float_share=0.5,
    chunk=512,
)
ENGINES = {OURS: "our kernels, as the cost model counts their loops", GENERIC.name: GENERIC.what}


def roofline_of(engine: str, board: Board, factors: Factors) -> Roofline:
    """The roofline with an engine's kernels.

    Raises:
        UserError: no such engine.
    """
    if engine == OURS:
        return Roofline(board, factors)
    if engine != GENERIC.name:
        raise UserError(f"--engine {engine}: known engines: {', '.join(ENGINES)}")
    return GenericRoofline(board, factors)


@dataclass(frozen=True)
class GenericRoofline(Roofline):
    """Prices CPU operators with the generic profile; a GPU cannot be asked with it."""

    profile: Engine = GENERIC

    def op(self, op: Op, processor: Processor, resident: float = 0.0) -> Estimate:
        """One kernel call, on all threads of one cluster.

        Raises:
            UserError: on a GPU, or on several clusters.
        """
        if isinstance(processor, GpuSlice) or len(processor.parts) > 1:
            raise UserError(f"engine {self.profile.name}: only the cores of one cluster can be priced")
        own = super().op(op, processor, resident)
        cluster, threads = processor.parts[0]
        hz = cluster.frequency_ghz * 1e9
        memory = self._memory_s(op, cluster, threads, 1.0, False, resident)
        if op.kind == "linear" and op.operator.format.quantised:
            rate = self.profile.int8_share * cluster.core.int8_ops_per_cycle
        elif op.kind in ("linear", "attention"):
            rate = self.profile.float_share * cluster.core.fp32_flops_per_cycle
        else:
            return Estimate(own.compute_s / self._used(own, threads), memory, self._launch(processor), own.dispatch_s)
        compute = self.factors.compute * op.flops / (rate * hz * threads)
        exposed = (1 - self.factors.overlap) * min(compute, memory)
        if compute >= memory:
            return Estimate(compute, exposed, self._launch(processor), own.dispatch_s)
        return Estimate(exposed, memory, self._launch(processor), own.dispatch_s)

    def _launch(self, processor: CpuSlice) -> float:
        cluster, threads = processor.parts[0]
        return cluster.launch_overhead_s * self.factors.launch if threads > 1 else 0.0

    @staticmethod
    def _used(own: Estimate, threads: int) -> int:
        """Our kernels of this kind run on one thread (no parallel region): the generic ones on all."""
        return threads if own.launch_s == 0 else 1
