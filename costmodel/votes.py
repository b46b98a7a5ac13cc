"""What several answers to one prompt cost that are voted on: side by side, or each a refinement of those before it.

Side by side the prompt is read once, and a step of several rows reads the weights once. Refinements read what is added
to the text before them, and take their steps alone. Both write the same number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.schema.prediction import PlanPrediction


@dataclass(frozen=True)
class Asked:
    """So many answers of at most so many tokens to a prompt; a refinement adds tokens to the text before it."""

    votes: int
    prompt_tokens: int
    new_tokens: int
    added_tokens: int


@dataclass(frozen=True)
class VoteCost:
    """Seconds of one answer, and of all of them in either way; and the tokens that are computed.

    Attributes:
        single_s: one answer.
        chains_s: answers side by side, in slots where the target has any.
        refined_s: refinements, one after the other.
        chains_tokens, refined_tokens: read and written.
    """

    single_s: float
    chains_s: float
    refined_s: float
    chains_tokens: int
    refined_tokens: int


def votes_cost(asked: Asked, prediction: PlanPrediction, chunk: int, slots: int) -> VoteCost:
    """Price them by a plan's steps.

    Args:
        asked: what is wanted.
        prediction: of the plan.
        chunk: tokens of a prompt that are read at once.
        slots: texts that can be written side by side; 1 where they come one after the other.
    """
    votes, prompt, new, added = asked.votes, asked.prompt_tokens, asked.new_tokens, asked.added_tokens
    first_s = prediction.first_token_s(prompt, chunk)
    single_s = first_s + (new - 1) * _round_s(prediction, 1, prompt + new / 2)
    waves = [min(slots, votes - begun) for begun in range(0, votes, slots)]
    chains_s = first_s + sum(new * _round_s(prediction, rows, prompt + new / 2) for rows in waves)
    chains_s -= _round_s(prediction, waves[0], prompt)  # the prompt's reading gave a first token
    refined_s = single_s
    for step in range(1, votes):
        past = prompt + step * (new + added)
        refined_s += prediction.first_token_s(added, chunk) + (new - 1) * _round_s(prediction, 1, past + new / 2)
    return VoteCost(single_s, chains_s, refined_s, prompt + votes * new, prompt + votes * new + (votes - 1) * added)


def _round_s(prediction: PlanPrediction, rows: int, past: float) -> float:
    """A step of so many texts, with what comes around it."""
    calls = prediction.slot_calls
    if calls is None:
        return rows * (prediction.verify_step_s[1] + prediction.sampling_s + prediction.dispatch_s)
    parts = [min(calls.most_rows, rows - done) for done in range(0, rows, calls.most_rows)]
    steps_s = sum(calls.row_call_s(calls.row_width(part), past) for part in parts)
    return steps_s + calls.round_s + rows * prediction.sampling_s
