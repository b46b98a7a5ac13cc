"""The plan of a bundle: what `compile` decided, why, and what else was considered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from costmodel.place import ReasonedPlace
from costmodel.schema.model import Role, Size, Slots, Widths
from costmodel.schema.prediction import NotNegative, PlanPrediction
from costmodel.schema.record import Entries, OneOf, Record, SchemaError, Within
from costmodel.speculative import MOST_GAMMA

TARGET_ONLY, SEQUENTIAL, OVERLAPPED = "target-only", "sequential", "overlapped"
MOST_THREADS = 1024
_MOST_BYTES = 1 << 62
Gamma = Annotated[int, Within(0, MOST_GAMMA)]
Cpu = Annotated[int, Within(0, 1 << 16)]
Bytes = Annotated[int, Within(0, _MOST_BYTES)]


@dataclass(frozen=True)
class PlannedOverlap(Record):
    """How the drafter goes on while the target verifies, each on a processor of its own.

    Attributes:
        gamma: drafts that are verified at a time, at most.
        least: drafts that the target waits for; 0 starts at once and judges the first draft while it is being made.
        target_cpus, draft_cpus: CPUs of each: its kernels compute there, or are enqueued from there.
        draft_cluster: the CPU cluster of the latter, for which the drafter's kernels are compiled.
        target_slowdown, draft_slowdown: how many times as long a step takes as in turn: the other one reads DRAM, too,
            and there may be fewer threads.
        wait_s: what the target waits for drafts in a round, the mean.
        hand_over_s: from a miss until the drafter knows of it.
        tokens_per_round: expected.
        tokens_per_s: speed.
    """

    gamma: Annotated[int, Within(1, MOST_GAMMA)]
    least: Gamma
    target_cpus: Annotated[tuple[Cpu, ...], Entries(1, MOST_THREADS)]
    draft_cpus: Annotated[tuple[Cpu, ...], Entries(1, MOST_THREADS)]
    draft_cluster: str
    target_slowdown: Annotated[float, Within(1)]
    draft_slowdown: Annotated[float, Within(1)]
    wait_s: NotNegative
    hand_over_s: NotNegative
    tokens_per_round: NotNegative
    tokens_per_s: NotNegative

    def __post_init__(self) -> None:
        """The target can wait for no more drafts than it verifies; no CPU belongs to both."""
        if self.least > self.gamma:
            raise SchemaError(f"least is {self.least}, but gamma is {self.gamma}")
        if both := sorted({*self.target_cpus} & {*self.draft_cpus}):
            raise SchemaError(f"CPU {both[0]} is in target_cpus and in draft_cpus")


@dataclass(frozen=True)
class PlacedUnits(Record):
    """Consecutive units of a model (embedding, layers, head; counted from 0) on a processor; `end_unit` is excluded."""

    processor: str
    threads: Annotated[int, Within(0, MOST_THREADS)]
    first_unit: Annotated[int, Within(0)]
    end_unit: Annotated[int, Within(0)]


@dataclass(frozen=True)
class PlacedModel(Record):
    """A model of a variant and where it runs."""

    name: str
    placement: tuple[PlacedUnits, ...]


@dataclass(frozen=True)
class Influence(Record):
    """What one number does to a predicted speed.

    Attributes:
        number: dotted path in the board file, or the factor.
        error: relative error assumed of it.
        effect: |ln| of the change of speed when it is that much off.
    """

    number: str
    error: float
    effect: float


@dataclass(frozen=True)
class RoundSeconds(Record):
    """A round's time by use."""

    draft: NotNegative
    verify: NotNegative
    other: NotNegative
    total: NotNegative


@dataclass(frozen=True)
class MemoryBytes(Record):
    """Memory by use, as costmodel.memory.Memory has it, and the sum."""

    mapped_bytes: Bytes
    gpu_bytes: Bytes
    kv_bytes: Bytes
    activation_bytes: Bytes
    process_bytes: Bytes
    total_bytes: Bytes


@dataclass(frozen=True)
class PlanMemory(MemoryBytes):
    """Memory of the plan: also what the board leaves free, and what the drafter needs of the sum."""

    free_bytes: Bytes
    drafter_bytes: Bytes


@dataclass(frozen=True)
class PlannedVariant(Record):
    """One way to run the pair, priced.

    Attributes:
        mode: a mode of costmodel/question.py.
        gamma: drafted tokens a round.
        target, draft: the models; no drafter in mode target-only.
        tokens_per_s: predicted speed.
        interval: its range; None where it was not computed.
        influences: what makes the range wide, largest first.
        round_s: time of a round.
        tokens_per_round: expected.
        against_same: speed over the target alone under the same placement of it.
        against_best: speed over the fastest target alone on a single processor.
        memory_bytes: what it keeps in memory.
        compilable: whether `compile` can plan it; drafts from the text ("n-gram") are asked for where a bundle runs.
        reason: why it was chosen, or why not.
    """

    mode: str
    gamma: Gamma
    target: PlacedModel
    draft: PlacedModel | None
    tokens_per_s: NotNegative
    interval: tuple[NotNegative, NotNegative] | None
    influences: tuple[Influence, ...]
    round_s: RoundSeconds
    tokens_per_round: NotNegative
    against_same: NotNegative
    against_best: NotNegative
    memory_bytes: MemoryBytes
    compilable: bool
    reason: str


@dataclass(frozen=True)
class Plan(Record):
    """Decisions for one target and at most one drafter on one board.

    Attributes:
        board: its name.
        mode: "target-only", or speculation, "sequential" or "overlapped".
        gamma: drafted tokens a round, 0 without.
        places: where each model of the bundle runs, and why, by role.
        cluster: CPU cluster that both models use, and that launches the GPU's kernels; in mode overlapped the target's,
            or the drafter's where the target runs on the GPU.
        threads: of it.
        prompt_threads: of it, where a prompt is read; 0 is `threads`.
        cpu_ids: the cores of the cluster.
        context: tokens that fit the KV caches.
        target_widths: entry points of the target, in new tokens; gamma + 1 is among them.
        draft_widths: entry points of the drafter; after full acceptance it is fed two tokens.
        prefill_width: tokens of a prompt chunk.
        given: what the user decided: "gamma", "place".
        verdict: the decision in one or two sentences, with its numbers.
        reasons: one sentence for each other decision.
        variants: the leading ways to run the pair, fastest first, each with its reason; then those that do not fit.
        memory: bytes by use, what is free, and what the drafter needs of it.
        prediction: what `run.py --stats` compares with, and what live decisions start from.
        overlap: how to draft while the target verifies: in mode overlapped, and where the run may choose it; else None.
        slots: sequences that the KV caches of each model hold.
        long_prefill_width: tokens of a second, wider prompt chunk, or None.
    """

    board: str
    mode: Annotated[str, OneOf((TARGET_ONLY, SEQUENTIAL, OVERLAPPED))]
    gamma: Gamma
    places: dict[Role, ReasonedPlace]
    cluster: str
    threads: Annotated[int, Within(1, MOST_THREADS)]
    cpu_ids: tuple[Cpu, ...]
    context: Size
    target_widths: Widths
    draft_widths: Widths
    prefill_width: Size
    given: Annotated[tuple[str, ...], Entries(0, 64)]
    verdict: str
    reasons: Annotated[tuple[str, ...], Entries(0, 64)]
    variants: tuple[PlannedVariant, ...] = field(repr=False)
    memory: PlanMemory = field(repr=False)
    prediction: PlanPrediction = field(repr=False)
    overlap: PlannedOverlap | None = field(default=None, repr=False)
    slots: Slots = 1
    long_prefill_width: Size | None = None
    prompt_threads: Annotated[int, Within(0, MOST_THREADS)] = 0

    @property
    def prefill_widths(self) -> tuple[int, ...]:
        """Tokens of prompt chunks, ascending."""
        return (self.prefill_width, *((self.long_prefill_width,) if self.long_prefill_width else ()))

    def __post_init__(self) -> None:
        """Hold the fields against each other.

        Raises:
            SchemaError: they contradict each other.
        """
        if (self.gamma > 0) != (self.mode != TARGET_ONLY):
            raise SchemaError(f"gamma is {self.gamma}, but mode is {self.mode!r}")
        if self.mode == OVERLAPPED and (self.overlap is None or self.overlap.gamma != self.gamma):
            raise SchemaError(f"mode is {self.mode!r}, but overlap has no gamma {self.gamma}")
        if self.gamma + 1 not in self.target_widths:
            raise SchemaError(f"gamma is {self.gamma}, but target_widths has no {self.gamma + 1}")
        live = self.prediction.live
        if live is not None and list(live.verify_s) != list(self.target_widths):
            raise SchemaError(
                f"prediction.live has widths {list(live.verify_s)}, target_widths {list(self.target_widths)}"
            )

    @property
    def gamma_given(self) -> bool:
        """Whether the user decided the draft length."""
        return "gamma" in self.given

    def compiled_for(self, role: str) -> str:
        """The CPU cluster whose kernels a model gets."""
        return self.overlap.draft_cluster if self.overlap is not None and role == "draft" else self.cluster

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Entry points by role, in new tokens."""
        return {"target": self.target_widths, "draft": self.draft_widths}
