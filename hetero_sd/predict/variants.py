"""A priced variant as `predict --json` and a plan state it."""

from __future__ import annotations

from dataclasses import asdict

from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.question import Variant
from costmodel.schema.plan import MemoryBytes, PlacedModel, PlacedUnits, PlannedVariant, RoundSeconds
from costmodel.uncertainty import Interval
from hetero_sd.predict.compilable import compilable


def planned_variant(variant: Variant, sure: Interval | None) -> PlannedVariant:
    """A variant and the range of its speed, where it was computed, as plain facts."""
    r = variant.round
    placed = variant.draft is not None and variant.draft_placement is not None
    return PlannedVariant(
        mode=variant.mode,
        gamma=variant.gamma,
        target=_model(variant.target, variant.target_placement),
        draft=_model(variant.draft, variant.draft_placement) if placed else None,  # type: ignore[arg-type]
        tokens_per_s=variant.tokens_per_s,
        interval=None if sure is None else (sure.low, sure.high),
        influences=() if sure is None else sure.influences,
        round_s=RoundSeconds(r.draft_s, r.verify_s, r.other_s, r.time_s),
        tokens_per_round=r.tokens,
        against_same=variant.against_same,
        against_best=variant.against_best,
        memory_bytes=MemoryBytes(**asdict(variant.memory), total_bytes=variant.memory.total_bytes),
        compilable=compilable(variant),
        reason=variant.reason,
    )


def _model(spec: DecoderSpec, placement: Placement) -> PlacedModel:
    units = [PlacedUnits(s.processor.name, s.processor.threads, s.start, s.end) for s in placement.segments]
    return PlacedModel(spec.name, tuple(units))
