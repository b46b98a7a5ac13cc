"""What a prediction says in sentences: the verdict, what else a reader must know, and where a model runs."""

from __future__ import annotations

from dataclasses import replace

from costmodel.batch_throughput import Throughput
from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.question import Question, Variant, gb
from costmodel.schema.plan import TARGET_ONLY
from costmodel.ties import LEAST_GAIN, end_of_tie
from costmodel.uncertainty import Interval
from costmodel.unmeasured_gpu import WHY, gpu_kernels_given, gpu_kernels_measured, gpu_origins, uses_gpu
from hetero_sd.calibrated_board import GPU_HOW
from hetero_sd.compile.place import place_rule
from hetero_sd.predict.number_names import in_words
from hetero_sd.predict.predict import Prediction, Sharing
from hetero_sd.predict.story import outcome_text
from hetero_sd.predict.units import plain


def verdict(p: Prediction) -> str:
    """The answer in one sentence."""
    best, fast = p.decision.best, speed(p.decision.best, p.intervals[0])
    board = p.question.board.name
    if best.mode == TARGET_ONLY:
        start = f"On {board} run {best.target.name} alone on {where_text(best.target_placement, best.target)}: {fast}"
        if not p.question.drafts:
            return f"{start}."
        other = p.speculative
        if other is None:
            return f"{start}; speculation does not fit the memory."
        reached = f"{rate(other.tokens_per_s)} tokens/s at gamma {other.gamma}"
        gain = other.tokens_per_s / best.tokens_per_s
        if 1 < gain < LEAST_GAIN:
            return f"{start}; speculation gains too little to draft for, its best reaches {reached}."
        if gain > 1:
            return f"{start}; speculation is a tie with it and less sure, its best reaches {reached}."
        return f"{start}; speculation does not pay, its best reaches {reached}."
    models = [f"{spec.name} on {where_text(placement, spec)}" for _, spec, placement in models_of(best)]
    return (
        f"On {board} speculate ({best.mode}) with gamma {best.gamma}: draft with {models[-1]}, "
        f"verify with {models[0]}: {fast}, "
        f"{best.against_best:.2f} x the best single processor alone."
    )


def notes(p: Prediction) -> list[str]:
    """What a reader must know beside the verdict."""
    best, found = p.decision.best, time_note(p) + _tie_note(p)
    if uses_gpu(best):
        found.append(gpu_note(p.question))
    found += _waiting_note(p)
    if p.together is not None:
        found.append(together_note(p.together, p.requests))
    if p.together is not None and p.sharing is not None:
        found.append(sharing_note(p.together, p.sharing))
    base = p.decision.baseline
    on = where_text(base.target_placement, base.target)
    found.append(
        f"baseline, the best single processor alone: {base.target.name} on {on}, {rate(base.tokens_per_s)} tokens/s"
    )
    speculative = p.speculative
    if speculative is not None:
        pays = f"pays from {p.pays_from:.2f} on" if p.pays_from is not None else "does not pay at any acceptance"
        found.append(
            f"acceptance {p.alpha_source}; {speculative.mode} speculation with gamma {speculative.gamma} {pays}"
        )
    if p.from_text is not None:
        drafting, sure = p.from_text
        gain = f"{drafting.tokens_per_s / best.tokens_per_s:.2f} x the chosen one"
        found.append(f"drafts from the text (run.py --drafter ngram): {way(drafting)}, {speed(drafting, sure)}, {gain}")
    if best.draft is not None:
        found.append(
            f"a round drafts {best.gamma} and verifies {best.gamma + 1} tokens; it yields {outcome_text(p, best)}"
        )
    if p.like_note:
        found.append(p.like_note)
    wide = ", ".join(f"{in_words(i.number)} (+-{100 * i.effect:.0f} %)" for i in p.intervals[0].influences[:3])
    if wide:
        found.append(f"the interval is as wide as it is by: {wide}")
    return found


def time_note(p: Prediction) -> list[str]:
    """What a whole answer takes: its times, its memory and, where the board's watts are known, its energy."""
    t, free = p.time, p.search.free_bytes
    if t is None:
        return []
    memory = f"memory {gb(p.decision.best.memory.total_bytes)} of {gb(free)} that are free"
    prompt = f"{plural(t.prompt_tokens, 'token')} of prompt in {wait(t.prefill_s)} "
    prompt += f"({rate(t.prompt_tokens / t.prefill_s)} tokens/s), then the first token"
    whole = f"an answer of {plural(t.new_tokens, 'token')} in {wait(t.answer_s)}"
    if t.energy_j is not None and t.watts is not None:
        whole += f", {t.energy_j:.3g} J at {t.watts:g} W of the whole board"
    return [f"{prompt}; {whole}; {memory}"]


def together_note(t: Throughput, requests: int) -> str:
    """What several requests get that come together."""
    drafts = f"{t.drafted_per_round:.2g} drafts a round" if t.drafted_per_round else "without drafts"
    if t.branches_per_round:
        drafts += f" and {t.branches_per_round:.2g} branches"
    gaps = f"{plain(1e3 * t.gap_s, 2)} ms between the tokens of a text, at most {plain(1e3 * t.longest_gap_s, 2)}"
    return (
        f"{plural(requests, 'request')} together, {drafts}: {rate(t.tokens_per_s)} tokens/s, prompts included, "
        f"{t.tokens_per_s / t.alone_tokens_per_s:.2f} x one after the other; {gaps}; the first token after "
        f"{wait(t.first_token_s)} on average; {100 * t.rows_filled:.0f} % of the rows are filled, prompts alone take "
        f"{100 * t.prompt_share:.0f} % of the time"
    )


def sharing_note(t: Throughput, sharing: Sharing) -> str:
    """What a beginning in common saves."""
    saved, apart = sharing.prompt_tokens - sharing.read_tokens, sharing.apart
    if not saved:
        return "the beginning that the prompts have in common is read by each: on a GPU, and where it is very short"
    return (
        f"the prompts' beginning in common is read once: {saved} of {sharing.prompt_tokens} tokens are not read "
        f"({100 * saved / sharing.prompt_tokens:.0f} %), all answers are there after {wait(t.seconds)} where they took "
        f"{wait(apart.seconds)}, and the first token after {wait(t.first_token_s)} where it took "
        f"{wait(apart.first_token_s)}"
    )


def change_notes(p: Prediction) -> list[str]:
    """The inputs with the most leverage, each with the value at which the verdict flips."""
    found = []
    for c in p.changes:
        now = f"{c.name}: {_amount(c.now, c.unit)} {'predicted, not measured' if c.waits else 'now'}"
        measure = f" (`compile --place {c.place}` and `calibrate BUNDLE --on USER@BOARD` measure it)"
        if c.flips_at is None:
            found.append(f"{now}; nothing flips between {_amount(c.low, c.unit)} and {_amount(c.high, c.unit)}")
        else:
            side = "above" if (c.flips_at > c.now) != c.already else "below"
            gain = f"{100 * (end_of_tie(p.decision) - 1):.0f} % faster, no tie any more" if c.ends_tie else "faster"
            found.append(f"{now}; {side} {_amount(c.flips_at, c.unit)} {c.to} is {gain}{measure * c.waits}")
    return found


def _amount(value: float, unit: str) -> str:
    return f"{plain(value, 3)} {unit}".rstrip()


def wait(seconds_: float) -> str:
    """How long a user waits: ``0.41 s``, ``74 s``, ``6.2 min``."""
    if seconds_ < 99.5:
        return f"{plain(seconds_, 2)} s"
    return f"{plain(seconds_ / 60, 2 if seconds_ < 600 else 3)} min"


def plural(count: int, noun: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def gpu_note(question: Question) -> str:
    """What the GPU's times rest on, by the origin of the board's numbers."""
    board = question.board
    if gpu_kernels_given(question):
        return "the GPU's times rest on the factors that were given"
    if gpu_kernels_measured(question):
        return f"the GPU's times rest on kernels measured on this board: {gpu_origins(question)}"
    if board.provenance["gpu.bandwidth_gb_per_s"].source == GPU_HOW:
        rests = "its bandwidth and its launches, measured on this board; no kernel of a model was measured on it"
        return f"the GPU's times are predicted from {rests}"
    return "the GPU's times are predicted from the board's numbers: no GPU kernel was measured on this board"


def _waiting_note(p: Prediction) -> list[str]:
    """The fastest way with a GPU that nobody measured, and how to ask for it, where it may be faster."""
    other, sure = next(iter(p.on_waiting_gpu), (None, None))
    if other is None or sure is None or other not in p.potential:
        return []
    return [f"potential, {WHY}: {way(other)}, {speed(other, sure)} (--place {place_rule(other)})"]


def left_out(p: Prediction) -> str:
    """What `compile` says of a GPU that waits: its fastest way, and the option that takes it; "" where none does."""
    other, sure = next(iter(p.on_waiting_gpu), (None, None))
    if other is None or sure is None:
        return ""
    return f"Left out, because {WHY}: {way(other)}, {speed(other, sure)}; --place {place_rule(other)} takes it."


def _tie_note(p: Prediction) -> list[str]:
    """The way that ties with the chosen one, if there is one, and why it was not taken."""
    first, pairs = p.decision.tied, zip(p.decision.leading, p.intervals, strict=True)
    if first is None:
        return []
    tied, sure = next((v, i) for v, i in pairs if replace(v, reason=first.reason) == first)
    if tied.tokens_per_s < LEAST_GAIN * p.decision.best.tokens_per_s:
        return []
    return [f"a tie with {way(tied)}, {speed(tied, sure)}; the surer one was taken"]


def way(v: Variant) -> str:
    """How a variant runs, in one line."""
    target = f"{v.target.name} on {where_text(v.target_placement, v.target)}"
    if v.draft is None or v.draft_placement is None:
        return f"gamma {v.gamma}, verify with {target}" if v.gamma else f"{target} alone"
    drafter = f"{v.draft.name} on {where_text(v.draft_placement, v.draft)}"
    return f"{v.mode} with gamma {v.gamma}, draft with {drafter}, verify with {target}"


def speed(v: Variant, sure: Interval) -> str:
    """Its speed and the interval."""
    return f"{rate(v.tokens_per_s)} tokens/s ({rate(sure.low)} to {rate(sure.high)})"


def models_of(variant: Variant) -> list[tuple[str, DecoderSpec, Placement]]:
    """Title, spec and placement of each model of a variant."""
    models = [("target", variant.target, variant.target_placement)]
    if variant.draft is not None and variant.draft_placement is not None:
        models.append(("draft", variant.draft, variant.draft_placement))
    return models


def where_text(placement: Placement, spec: DecoderSpec) -> str:
    """Where a model runs, for people; the GPU's times are predicted."""
    return placement.text(spec).replace("gpu", "gpu (predicted)")


def rate(tokens_per_s: float) -> str:
    """A speed for people."""
    return f"{tokens_per_s:.2f}" if tokens_per_s < 99.5 else f"{tokens_per_s:.0f}"
