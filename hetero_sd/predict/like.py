"""Configurations that others measured, by name: what is asked, and why their ratio is what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.format import FLOAT
from costmodel.processor import CpuSlice
from costmodel.question import Decision, Variant
from costmodel.schema.plan import TARGET_ONLY
from costmodel.search import Search
from targets.errors import UserError


@dataclass(frozen=True)
class Like:
    """A published configuration.

    Attributes:
        title: for people.
        board, target, draft: names of a board and of models of known_models.py.
        weights, activations, threads, place, alpha: what the options of the same names would say.
        published: the speed-up that was published, over the target alone on the same processor.
        assumed: what is taken for it where the publication's abstract says nothing.
    """

    title: str
    board: str
    target: str
    draft: str
    weights: str
    activations: str
    threads: str
    place: str
    alpha: float
    published: float
    assumed: Sequence[str]


LIKE = {
    "2602.08060": Like(
        title="arXiv 2602.08060: the target on one Cortex-A55, the drafter on the Mali-G310",
        board="imx95",
        target="Llama-3.2-3B",
        draft="Llama-3.2-1B",
        weights="int8",
        activations=FLOAT,
        threads="a55:1",
        place="target=cpu,draft=gpu",
        alpha=0.9,
        published=1.68,
        assumed=(
            "drafter Llama-3.2-1B",
            "int8 weights in blocks of 32, the head, too",
            "float activations",
            "acceptance 0.9",
        ),
    )
}


def like(name: str) -> Like:
    """The configuration of that name.

    Raises:
        UserError: it is not known.
    """
    if name not in LIKE:
        raise UserError(f"--like {name}: known configurations: {', '.join(LIKE)}")
    return LIKE[name]


def baseline_note(chosen: Like, search: Search, decision: Decision, every: Variant) -> str:
    """Why the published ratio is what it is.

    Args:
        chosen: the configuration.
        search: that prices the question.
        decision: its answer.
        every: the target alone on the cores and threads that are fastest.
    """
    best = decision.best
    alone = search.price(TARGET_ONLY, best.target, best.target_placement)
    processor = every.target_placement.segments[0].processor
    ratio = every.tokens_per_s / alone.tokens_per_s
    whole = f"{processor.threads} cores" if isinstance(processor, CpuSlice) else "the GPU"
    verdict = "less than" if best.tokens_per_s < every.tokens_per_s else "more than"
    return (
        f"published: {chosen.published:.2f} x, predicted {best.against_same:.2f} x, both over the target alone on one "
        f"core ({alone.tokens_per_s:.2f} tokens/s). That core is the baseline that makes the ratio: one A55 is slow "
        f"enough for a drafter on the GPU to cost little beside it. {whole[0].upper()}{whole[1:]} run the same target "
        f"alone at {every.tokens_per_s:.2f} tokens/s, {ratio:.2f} x the one core; against that the pair reaches "
        f"{best.tokens_per_s / every.tokens_per_s:.2f} x, {verdict} drafting nothing."
    )
