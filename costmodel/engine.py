"""Whose kernels a prediction assumes: ours, or those of a generic engine with 8-bit activations.

The generic engine is a declared profile, so that a board's memory and threads can be judged apart from our kernels: it
says what its kernels reach of a core, and everything else (bytes, bandwidth by threads, caches, overlap) is the
roofline's own. Other engines' integer kernels are of three kinds, and a published measurement says which one ran.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from costmodel.cpu_reads import first_walk_s
from costmodel.estimate import Estimate
from costmodel.factors import Factors
from costmodel.processor import CpuSlice, GpuSlice, Processor
from costmodel.roofline import Roofline
from costmodel.work import Op
from targets.device import Board, Core
from targets.errors import UserError

OURS = "ours"
INTERLEAVED, ROWS, WIDENING = "interleaved", "rows", "widening"
_TWO_PIPES = 16.0  # float32 operations a cycle of a core with two 128-bit pipes, a Cortex-A76 or Neoverse N1
_ONE_PIPE = 8.0  # of a core with two 64-bit ones, a Cortex-A72


@dataclass(frozen=True)
class IntegerKernels:
    """Matrix multiplications of quantised weights and 8-bit activations, of one kind.

    Attributes:
        what: one sentence with its source and range.
        operations_per_cycle: of one core: multiplications and additions, two for each weight and token.
    """

    what: str
    operations_per_cycle: Callable[[Core], float]


def _widening(core: Core) -> float:
    """A core with 64-bit pipes reaches another share of its rate than one with 128-bit pipes."""
    one, two = 2.6 / _ONE_PIPE, 4.0 / _TWO_PIPES
    return core.fp32_flops_per_cycle * (one if core.fp32_flops_per_cycle <= _ONE_PIPE else two)


KERNELS = {
    INTERLEAVED: IntegerKernels(
        "several rows of weights interleaved, with dot products: 40 % of the core's int8 peak (two of five issue "
        "slots; the others load, scale and unpack)",
        lambda core: 0.4 * core.int8_ops_per_cycle,
    ),
    ROWS: IntegerKernels(
        "row by row, with dot products: 5.1 operations a cycle on a Cortex-A76 or Neoverse N1, in proportion to the "
        "float32 rate on others (3.9, 5.7 and 6.9 by prompts on a Pi 5: llamafile 0.6.2 and llama.cpp of 2024-03, "
        "justine.lol/matmul, llama.cpp of 2024, edge-llm-leaderboard; 4.3 on a Graviton2: candle pull request 3723)",
        lambda core: 5.1 * core.fp32_flops_per_cycle / _TWO_PIPES,
    ),
    WIDENING: IntegerKernels(
        "row by row, without dot products: 2.6 operations a cycle on a Cortex-A72 (2.3 to 2.7: TinyLlama-1.1B in Q8_0 "
        "reads 9 to 10 tokens/s of a prompt on a Pi 4, justine.lol/matmul), 4.0 on a Neoverse N1 (Qwen2.5-0.5B in "
        "Q4_0, 34.75 tokens/s with two threads at 3.0 GHz: llama.cpp pull request 10889)",
        _widening,
    ),
}


def kernels_of(core: Core) -> str:
    """What a recent engine multiplies with on a core: interleaved kernels need dot products."""
    return INTERLEAVED if core.has_dotprod else WIDENING


@dataclass(frozen=True)
class Engine:
    """A declared profile of kernels.

    Attributes:
        name: what --engine calls it.
        what: one sentence.
        float_share: share of a core's float32 rate that attention and weights without blocks reach.
        half_share: the same where values in float16 are converted, because the core has no arithmetic on them.
        chunk: tokens that a prompt is read in.
    """

    name: str
    what: str
    float_share: float
    half_share: float
    chunk: int


GENERIC = Engine(
    "generic-int8-dot",
    "a generic engine: weights of 8 and 4 bits times 8-bit activations by integer kernels of one of the kinds "
    "below, float16 at a quarter of the float32 peak where cores must convert it (LLVM's model of a Cortex-A72: 16 "
    "cycles for 16 multiply-adds), everything else at half of it, every kernel on all threads, prompts in chunks of "
    "512",
    float_share=0.5,
    half_share=0.25,
    chunk=512,
)
ENGINES = {OURS: "our kernels, as the cost model counts their loops", GENERIC.name: GENERIC.what}


def roofline_of(engine: str, kernels: str | None, board: Board, factors: Factors) -> Roofline:
    """The roofline with an engine's kernels; `kernels` is a name of KERNELS, None what `kernels_of` says.

    Raises:
        UserError: no such engine.
    """
    if engine == OURS:
        return Roofline(board, factors)
    if engine != GENERIC.name:
        raise UserError(f"--engine {engine}: known engines: {', '.join(ENGINES)}")
    return GenericRoofline(board, factors, kernels=kernels)


@dataclass(frozen=True)
class GenericRoofline(Roofline):
    """Prices CPU operators with the generic profile; a GPU cannot be asked with it."""

    profile: Engine = GENERIC
    kernels: str | None = None

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
        memory = first_walk_s(self.factors, op, cluster, threads, 1.0, resident)
        if op.kind == "linear" and op.operator.format.quantised:
            rate = KERNELS[self.kernels or kernels_of(cluster.core)].operations_per_cycle(cluster.core)
        elif op.kind in ("linear", "attention"):
            converted = _reads_float16(op) and not cluster.core.has_fp16
            share = self.profile.half_share if converted else self.profile.float_share
            rate = share * cluster.core.fp32_flops_per_cycle
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


def _reads_float16(op: Op) -> bool:
    """Whether the weights, or the keys and values, are stored in float16."""
    if op.kind == "linear":
        return op.operator.format.dtype == "float16"
    return any(t.kind == "kv" and t.dtype == "float16" for t in op.traffic)
