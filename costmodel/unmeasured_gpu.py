"""A GPU none of whose kernels was measured decides nothing: what it may gain stands below the answer, as potential.

One rule for everything that decides: `predict`, with `--like` too, `sweep` and `compile`. Who asks for the GPU by a
place gets it, and after a calibration that ran a model on it, it decides like any processor.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel.processor import GpuSlice
from costmodel.question import Decision, Question, Variant, factors_of, rank, why_not
from costmodel.uncertainty import used_processors

_GPU_KERNELS = ("gpu_bandwidth", "gpu_compute", "gpu_attention")  # factors that a calibration fits to steps on a GPU
WHY = "no kernel of a model was measured on this board's GPU"


def gpu_kernels_given(question: Question) -> bool:
    """Whether the question has other factors for the GPU's kernels than its board: those of a calibration."""
    given, own = question.factors.to_json(), factors_of(question.board).to_json()
    return any(given[name] != own[name] for name in _GPU_KERNELS)


def gpu_kernels_measured(question: Question) -> bool:
    """Whether a calibration fitted the factors of the GPU's kernels."""
    origins = [question.board.provenance.get(f"factors.{name}") for name in _GPU_KERNELS]
    return gpu_kernels_given(question) or any(o is not None and o.kind == "measured" for o in origins)


def gpu_origins(question: Question) -> str:
    """Where the board's factors of the GPU's kernels come from."""
    board = question.board
    origins = {board.provenance[f"factors.{name}"].source for name in _GPU_KERNELS if name in board.factors}
    return "; ".join(sorted(origins))


def uses_gpu(variant: Variant) -> bool:
    """Whether a model of it, or a part of one, runs on the GPU."""
    return any(isinstance(p, GpuSlice) for p in used_processors(variant))


def gpu_waits(question: Question) -> bool:
    """Whether the board has a GPU that nobody asked for and none of whose kernels was measured."""
    free = question.target_place is None and question.draft_place is None
    return question.board.gpu is not None and free and not gpu_kernels_measured(question)


def deciding(question: Question) -> Question:
    """The same question with what may decide it: without a GPU that waits."""
    return replace(question, board=replace(question.board, gpu=None)) if gpu_waits(question) else question


def beside(decision: Decision, everything: Decision) -> tuple[Decision, tuple[Variant, ...]]:
    """A decision without the GPU, with the slower ways of one with it put beside it; and the faster ones."""
    base, best = decision.baseline.tokens_per_s, decision.best
    slower: list[Variant] = []
    faster: list[Variant] = []
    for v in everything.leading:
        if uses_gpu(v):
            gain = v.tokens_per_s / best.tokens_per_s
            reason = f"{gain:.2f} x the chosen one; {WHY}" if gain > 1 else why_not(v, best)
            (faster if gain > 1 else slower).append(replace(v, against_best=v.tokens_per_s / base, reason=reason))
    leading = (best, *sorted([*decision.leading[1:], *slower], key=rank))
    return replace(decision, leading=leading), tuple(faster)
