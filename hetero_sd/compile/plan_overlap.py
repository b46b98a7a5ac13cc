"""How a plan drafts while the target verifies: who has which CPUs, and what that is predicted to do."""

from __future__ import annotations

from collections.abc import Mapping

from costmodel.contention import slowdowns
from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.processor import CpuSlice, GpuSlice, Processor
from costmodel.processor_pairs import disjoint, with_enqueuing_core
from costmodel.question import Variant
from costmodel.schema.plan import OVERLAPPED, PlannedOverlap
from costmodel.search import Search
from targets.device import Cluster


def plan_overlap(
    search: Search, best: Variant, specs: Mapping[str, DecoderSpec], placements: Mapping[str, Placement]
) -> PlannedOverlap | None:
    """Of the chosen variant where it is overlapped; else where target and drafter run on different processors anyway.

    The latter is for the run, which may choose it by the times it sees: of CPU and GPU, each model whole on one of them
    and a core left to enqueue the GPU's kernels; the model on the CPU has one core less than in turn, where it has all
    of them then. None elsewhere.
    """
    variant = best if best.mode == OVERLAPPED else _beside(search, best, specs, placements)
    if variant is None or variant.draft is None or variant.draft_placement is None or variant.least is None:
        return None
    here, there = (p.segments[0].processor for p in (variant.target_placement, variant.draft_placement))
    step, draft = search.load(variant.target, here, variant.gamma + 1), search.load(variant.draft, there, 1)
    slow_target, slow_draft = slowdowns(step, draft, search.together_bytes_per_s(here, there))
    in_turn = [
        search.load(spec, placements[role].segments[0].processor, n).total_s
        if placements[role].whole
        else alone.total_s
        for role, spec, n, alone in (
            ("target", variant.target, variant.gamma + 1, step),
            ("draft", variant.draft, 1, draft),
        )
    ]
    cluster = _cluster(there)
    return PlannedOverlap(
        gamma=variant.gamma,
        least=variant.least,
        target_cpus=_cluster(here).cpu_ids[: here.threads],
        draft_cpus=cluster.cpu_ids[cluster.count - there.threads :],
        draft_cluster=cluster.name if isinstance(there, CpuSlice) else _cluster(here).name,
        target_slowdown=max(1.0, slow_target * step.total_s / in_turn[0]),
        draft_slowdown=max(1.0, slow_draft * draft.total_s / in_turn[1]),
        wait_s=variant.round.draft_s,
        hand_over_s=search.roofline.hand_over_s(),
        tokens_per_round=variant.round.tokens,
        tokens_per_s=variant.tokens_per_s,
    )


def _beside(
    search: Search, best: Variant, specs: Mapping[str, DecoderSpec], placements: Mapping[str, Placement]
) -> Variant | None:
    """The fastest overlapped variant under placements on CPU and GPU."""
    drafter, gammas = placements.get("draft"), search.question.gammas
    if drafter is None or not (drafter.whole and placements["target"].whole) or not gammas:
        return None
    pair = placements["target"].segments[0].processor, drafter.segments[0].processor
    if sum(isinstance(p, GpuSlice) for p in pair) != 1 or not disjoint(*pair):
        return None
    board = search.question.board
    found = with_enqueuing_core(board, *pair) or with_enqueuing_core(board, *map(_one_core_less, pair))
    if found is None:
        return None
    target, draft = specs["target"], specs["draft"]
    here, there = search.costs(target).whole(found[0]), search.costs(draft).whole(found[1])
    priced = [search.price(OVERLAPPED, target, here, draft, there, gamma) for gamma in gammas]
    return max(priced, key=lambda variant: variant.tokens_per_s)


def _one_core_less(processor: Processor) -> Processor:
    """The same with a thread less, where it has several on the cores of one cluster."""
    if isinstance(processor, GpuSlice) or processor.threads == 1 or len(processor.parts) > 1:
        return processor
    cluster, threads = processor.parts[0]
    return CpuSlice(((cluster, threads - 1),))


def _cluster(processor: Processor) -> Cluster:
    return processor.host if isinstance(processor, GpuSlice) else processor.parts[0][0]
