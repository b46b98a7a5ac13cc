"""The cores for several requests at a time: a call of many rows computes more for each byte that it reads.

What is fastest for one text, where memory is the limit, is often one core or two; eight rows keep all of them busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.batch_calls import predicted_calls
from costmodel.batch_text import Drafting, ModelDrafting
from costmodel.batch_throughput import Requests, Throughput, throughput
from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.phase_threads import prompt_placement
from costmodel.placement import Placement
from costmodel.processor import CpuSlice, GpuSlice, processors
from costmodel.prompt_chunks import CHUNK
from costmodel.question import Question
from costmodel.roofline import Roofline

WIDTHS = (1, 2, 4, 8)  # of the entry points that a bundle has beside those for drafts
DRAFT_WIDTHS = (1, 2)  # of its draft model
_TOKENS = 128  # of a prompt and of an answer
_GAIN = 1.02  # that more cores must bring


@dataclass(frozen=True)
class BatchDraft:
    """A draft model beside the target, the acceptance of its drafts, and how often its second choices are right."""

    spec: DecoderSpec
    placement: Placement
    alpha: float
    beta: float = 0.0


def batch_on(
    question: Question,
    target: DecoderSpec,
    placement: Placement,
    asked: Requests,
    drafting: Drafting | None = None,
    draft: BatchDraft | None = None,
    chunks: Sequence[int] = (CHUNK,),
    reading: Placement | None = None,
    slots: int | None = None,
) -> Throughput:
    """What requests get that come together.

    Args:
        question: has the board.
        target: the model.
        placement: where it runs.
        asked: the requests.
        drafting: drafts from the texts themselves.
        draft: a model that drafts beside it.
        chunks: tokens that prompts are read in, ascending.
        reading: where it reads them; None takes as many threads as are the fastest for it.
        slots: texts that the target holds; None: one for each request.
    """
    roofline = Roofline(question.board, question.factors)
    rows = asked.prompt_tokens + asked.new_tokens
    reading = reading or prompt_placement(ModelCosts(roofline, target, 0), placement, CHUNK)
    slots = asked.count if slots is None else slots
    calls = predicted_calls(roofline, target, placement, slots, WIDTHS, chunks, rows, reading)
    model = None
    if draft is not None:
        sizes = slots, DRAFT_WIDTHS, chunks, rows
        priced = predicted_calls(roofline, draft.spec, draft.placement, *sizes)
        model = ModelDrafting(draft.alpha, priced, beta=draft.beta)
    shares_rows = not any(isinstance(s.processor, GpuSlice) for s in placement.segments)
    branch_s = roofline.branch_s(target) if shares_rows else None
    return throughput(asked, slots, calls, drafting=drafting, model=model, branch_s=branch_s)


def batch_cores(question: Question) -> CpuSlice:
    """The cores of one cluster on which the target answers as many requests as it has slots fastest.

    Of those that are about as fast the first by the board's order, which has fewer threads.
    """
    tokens = max(1, min(_TOKENS, question.context))
    asked, target = Requests(question.slots, tokens, tokens), question.targets[0]
    slices = [p for p in processors(question.board) if isinstance(p, CpuSlice)]
    costs = ModelCosts(Roofline(question.board, question.factors), target, 0)
    speeds = [batch_on(question, target, costs.whole(cores), asked).tokens_per_s for cores in slices]
    return next(cores for cores, speed in zip(slices, speeds, strict=True) if _GAIN * speed >= max(speeds))
