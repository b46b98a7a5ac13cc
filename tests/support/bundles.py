"""What a manifest or a calibration says, complete and consistent, for tests to change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from costmodel.place import Place, ReasonedPlace
from costmodel.schema.measured import (
    GpuDevice,
    MachineState,
    MachineStates,
    Measured,
    MeasuredBandwidth,
    MeasuredGpu,
    MeasuredPoint,
)
from costmodel.schema.model import CacheFacts, ModelFacts, SegmentFacts
from costmodel.schema.plan import MemoryBytes, PlacedModel, PlacedUnits, Plan, PlanMemory, PlannedVariant, RoundSeconds
from costmodel.schema.prediction import LivePrediction, PlanPrediction


def some_model(
    role: str = "target", processor: str = "cpu", vocab: int = 270, fallback: bool = False, **changes: Any
) -> ModelFacts:
    """One layer, whole on a processor and with `fallback` on the CPU too, a context of 64."""
    segment = SegmentFacts(processor, "", ("input_ids",), ("logits", "choice"), (0,), True, ("w",))
    processors = {processor, "cpu"} if fallback else {processor}
    model = ModelFacts(
        role=role,
        libraries={p: f"lib/{role}.so" if p == "cpu" else f"lib/{role}_{p}.so" for p in sorted(processors)},
        weights=f"weights/{role}.safetensors",
        layers=1,
        vocab=vocab,
        context=64,
        widest_sum=32,
        widths=(1, 4) if role == "target" else (1, 2),
        prefill_width=32,
        weight_dtype="float32",
        place=Place(processor),
        chain=(segment,),
        fallback=(replace(segment, processor="cpu"),) if fallback else (),
        caches=CacheFacts("float32", {p: (1, 2, 16, 8, 4) for p in sorted(processors)}, (1, 2, 64, 8)),
        opencl_runtime="libhsd_opencl.so" if processor == "gpu" else None,
    )
    return replace(model, **changes)


LIVE = LivePrediction(alpha=0.8, draft_s=0.01, verify_s={1: 0.1, 4: 0.11}, round_s=1e-4, chunk_s=0.02, chunk=32)


def some_plan(roles: tuple[str, ...] = ("target",), **changes: Any) -> Plan:
    """The plan of `some_model`s for those roles: gamma 3 on two threads, no live decisions; all else by `changes`."""
    memory = MemoryBytes(1, 2, 3, 4, 5, 15)
    placed = PlacedModel("target", (PlacedUnits("cpu", 2, 0, 3),))
    variant = PlannedVariant(
        mode="target-only", gamma=0, target=placed, draft=None, tokens_per_s=10.0, interval=(9.0, 11.0),
        influences=(), round_s=RoundSeconds(0.0, 0.1, 0.0, 0.1), tokens_per_round=1.0, against_same=1.0,
        against_best=1.0, memory_bytes=memory, compilable=True, reason="chosen",
    )  # fmt: skip
    plan = Plan(
        board="host",
        mode="sequential",
        gamma=3,
        places={role: ReasonedPlace(Place("cpu"), f"{role} on the CPU") for role in roles},
        cluster="cpu",
        threads=2,
        cpu_ids=(),
        context=64,
        target_widths=(1, 4),
        draft_widths=(1, 2),
        prefill_width=32,
        given=(),
        verdict="",
        reasons=(),
        variants=(variant,),
        memory=PlanMemory(1, 2, 3, 4, 5, 15, 1 << 30, 0),
        prediction=PlanPrediction(
            acceptance_rate=None,
            acceptance_source=None,
            tokens_per_round=None,
            tokens_per_s=0.0,
            tokens_per_s_interval=(0.0, 0.0),
            draft_step_s=0.01,
            verify_step_s={},
            prompt_chunk_s=0.0,
            sampling_s=0.0,
            dispatch_s=0.0,
            context=32,
        ),
    )
    return replace(plan, **changes)


def some_prediction(**changes: Any) -> PlanPrediction:
    """The prediction of `some_plan`, changed."""
    return replace(some_plan().prediction, **changes)


MEASURED_GPU = MeasuredGpu(60e-6, 5e-6, (), GpuDevice("Mali-G999", "OpenCL 3.0", "r1p0", 2, 800, 512, True))


def some_measured(points: tuple[MeasuredPoint, ...] = (), **changes: Any) -> Measured:
    """What run.py --calibrate says for rk3588: A76 on CPUs 4 to 7, A55 on 0 to 3, and a GPU."""
    a76, a55, state = (4, 5, 6, 7), (0, 1, 2, 3), MachineState({}, None)
    measured = Measured(
        format=2,
        threads=4,
        cpus=(*a55, *a76),
        bandwidth_gb_per_s=16.0,
        bandwidth_one_thread_gb_per_s=9.0,
        bandwidths=(
            MeasuredBandwidth((a76,), (17.0,)),
            MeasuredBandwidth((a55,), (8.0,)),
            MeasuredBandwidth(("gpu",), (14.0,)),
            MeasuredBandwidth((a76, "gpu"), (12.0, 10.0)),
        ),
        gpu=MEASURED_GPU,
        region_cost_s={},
        int8_activations=(),
        kv_caches={},
        quantised={},
        points=points,
        not_measured=(),
        passes=8,
        seconds=100.0,
        slowed=False,
        machine=MachineStates(state, state),
    )
    return replace(measured, **changes)
