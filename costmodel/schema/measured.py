"""What `run.py --calibrate` writes and `hetero-sd calibrate` reads: timed steps, bandwidths, what a GPU costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from costmodel.schema.model import KvName, QuantisedFacts, Role, Size
from costmodel.schema.plan import MOST_THREADS, Cpu
from costmodel.schema.record import Entries, OneOf, Record, SchemaError, Within
from targets.backend import names

CALIBRATION_FORMAT = 2
GPU = "gpu"
MIXED = "mixed"
Seconds = Annotated[float, Within(above=0, most=1e4)]
Rate = Annotated[float, Within(above=0.01, most=1e4)]
Count = Annotated[int, Within(0)]
Reader = Annotated[tuple[Cpu, ...], Entries(1)] | Annotated[str, OneOf((GPU,))]


@dataclass(frozen=True)
class MeasuredStep(Record):
    """What was timed.

    Attributes:
        model: "target" or "draft".
        processor: its kind, a name of targets/backend.py, or "mixed" for a model over several.
        n, past: new tokens, and tokens before them.
        chunk: 0 is one step of n tokens; otherwise a prompt of n tokens in chunks of that many.
    """

    model: Role
    processor: str
    n: Size
    past: Count
    chunk: Count

    def __post_init__(self) -> None:
        """Refuse an unknown processor, and a prompt that is not of whole chunks."""
        if self.processor not in (*names(), MIXED):
            raise SchemaError(f"processor is {self.processor[:40]!r}, none of {', '.join((*names(), MIXED))}")
        if self.chunk and self.n % self.chunk:
            raise SchemaError(f"has impossible numbers: {self.n} tokens in chunks of {self.chunk}")


@dataclass(frozen=True)
class MeasuredPoint(MeasuredStep):
    """A timed step.

    Attributes:
        seconds: median time.
        low, high: quartiles.
        bandwidth_gb_per_s: read by its processor beside it.
        samples: how many count.
        stable: there were enough samples and they agreed.
    """

    seconds: Seconds
    low: Seconds
    high: Seconds
    bandwidth_gb_per_s: Rate
    samples: Count
    stable: bool

    @staticmethod
    def of(step: MeasuredStep, **timing: Any) -> MeasuredPoint:
        """The point of a step, from its timing."""
        return MeasuredPoint(**{f.name: getattr(step, f.name) for f in fields(MeasuredStep)}, **timing)


@dataclass(frozen=True)
class MeasuredBandwidth(Record):
    """What readers read alone or at the same time: lists of CPUs or "gpu", and the median of each."""

    readers: Annotated[tuple[Reader, ...], Entries(1, 64)]
    gb_per_s: Annotated[tuple[Annotated[float, Within(above=0, most=1e5)], ...], Entries(1, 64)]

    def __post_init__(self) -> None:
        """Refuse rates of other readers."""
        if len(self.readers) != len(self.gb_per_s):
            raise SchemaError(f"there are {len(self.gb_per_s)} rates of {len(self.readers)} readers")


@dataclass(frozen=True)
class HandOver(Record):
    """Seconds to give a tensor to the host and back in shared memory, and to copy it instead."""

    bytes: Count
    shared_s: Annotated[float, Within(0)]
    copied_s: Annotated[float, Within(0)]


@dataclass(frozen=True)
class GpuDevice(Record):
    """What the OpenCL driver says of the device."""

    name: str
    version: str
    driver: str
    compute_units: Count
    clock_mhz: Annotated[int, Within(0, 100_000)]
    max_work_group: Size
    unified_memory: bool

    @staticmethod
    def of(facts: Mapping[str, Any]) -> GpuDevice:
        """From what targets/opencl/interface.py says of a device."""
        return GpuDevice(
            name=str(facts["name"]),
            version=str(facts["version"]),
            driver=str(facts["driver_version"]),
            compute_units=int(facts["compute_units"]),
            clock_mhz=int(facts["clock_mhz"]),
            max_work_group=int(facts["max_work_group"]),
            unified_memory=bool(facts["unified_memory"]),
        )


@dataclass(frozen=True)
class MeasuredGpu(Record):
    """What a GPU costs before it computes.

    Attributes:
        start_s: of an empty kernel, from an empty queue until the host knows its end.
        queued_s: of one more kernel in the queue.
        hand_over: by size.
        device: what the driver says.
    """

    start_s: Annotated[float, Within(0, 10)]
    queued_s: Annotated[float, Within(0, 10)]
    hand_over: tuple[HandOver, ...]
    device: GpuDevice


@dataclass(frozen=True)
class CpuState(Record):
    """Governor and clock of a CPU; "" and None where the system does not say."""

    governor: str
    mhz: Count | None


@dataclass(frozen=True)
class MachineState(Record):
    """CPUs by name, and the hottest thermal zone where there is one."""

    cpus: dict[str, CpuState]
    hottest_celsius: float | None


@dataclass(frozen=True)
class MachineStates(Record):
    """The machine before and after the measurement."""

    before: MachineState
    after: MachineState


@dataclass(frozen=True)
class MeasuredTurns(Record):
    """What rounds of two models in turn take longer than their steps alone, again and again.

    Attributes:
        draft_s: each draft step.
        verify_s: the target's step.
        loop_s: the decoding loop, over that of the target alone.
        start_s: all first rounds of a text together, over as many later ones.
    """

    draft_s: Annotated[float, Within(0, 1)]
    verify_s: Annotated[float, Within(0, 1)]
    loop_s: Annotated[float, Within(0, 1)]
    start_s: Annotated[float, Within(0, 1)] = 0.0


@dataclass(frozen=True)
class Measured(Record):
    """A file of `run.py --calibrate`.

    Attributes:
        format: CALIBRATION_FORMAT.
        threads: of the CPU kernels.
        cpus: that the process could use.
        bandwidth_gb_per_s: read by as many threads.
        bandwidth_one_thread_gb_per_s: read by one.
        bandwidths: of each cluster and the GPU, alone and two together.
        gpu: what it costs; None where no model runs there.
        region_cost_s: what a parallel region adds, by threads; empty where it was not measured.
        int8_activations: the models whose kernels multiplied int8 activations.
        kv_caches: how the models' keys and values were stored.
        quantised: how the weights of the models were quantised; without those whose weights are the export's own.
        points: the timed steps.
        not_measured: the steps that there was no time for.
        passes: over all steps.
        seconds: that it took.
        slowed: the last third of the samples took longer than the first.
        machine: its state before and after.
        loop_s: what the decoding loop adds to a step of the target alone; None where it was not measured.
        start_s: what all first steps of a text of the target alone take longer than later ones, likewise.
        turns: what rounds of both models add to that; None where they were not measured.
    """

    format: int
    threads: Annotated[int, Within(1, MOST_THREADS)]
    cpus: tuple[Cpu, ...]
    bandwidth_gb_per_s: Rate
    bandwidth_one_thread_gb_per_s: Rate
    bandwidths: tuple[MeasuredBandwidth, ...]
    gpu: MeasuredGpu | None
    region_cost_s: dict[Annotated[int, Within(2, MOST_THREADS)], Annotated[float, Within(0, 1)]]
    int8_activations: tuple[Role, ...]
    kv_caches: dict[Role, KvName]
    quantised: dict[Role, QuantisedFacts]
    points: tuple[MeasuredPoint, ...]
    not_measured: tuple[MeasuredStep, ...]
    passes: Count
    seconds: Annotated[float, Within(0)]
    slowed: bool
    machine: MachineStates
    loop_s: Annotated[float, Within(0, 1)] | None = None
    start_s: Annotated[float, Within(0, 1)] | None = None
    turns: MeasuredTurns | None = None

    def __post_init__(self) -> None:
        """Refuse another format."""
        if self.format != CALIBRATION_FORMAT:
            raise SchemaError(f"format is {self.format}, not {CALIBRATION_FORMAT}")
