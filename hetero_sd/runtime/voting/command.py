"""`run.py --votes`: says what the answers will cost, makes them, and prints what they say together."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from costmodel.votes import VoteCost
from hetero_sd.runtime.internal_error import step
from hetero_sd.runtime.load import note
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.prompts import Prompt
from hetero_sd.runtime.voting.ballots import Ballot, Counted, count
from hetero_sd.runtime.voting.options import REFINE
from hetero_sd.runtime.voting.vote import (
    Election,
    ballots_of_chains,
    ballots_of_refinements,
    expected_cost,
)


def vote(session: Session, prompts: Sequence[Prompt], election: Election, as_json: bool) -> None:
    """Answer every prompt by a vote.

    Raises:
        UserError: a prompt cannot be answered.
    """
    ids = [session.encode(prompt) for prompt in prompts]  # all are checked first
    costs = [expected_cost(session, election, len(of)) for of in ids]
    for prompt, cost in zip(prompts, costs, strict=True):
        if cost is not None:
            note(said_before(prompt, election, cost))
    begin = time.perf_counter()
    with step("answering"):
        if election.way == REFINE:
            found = [ballots_of_refinements(session, election, prompt) for prompt in prompts]
        else:
            found = list(ballots_of_chains(session, election, ids))
    took_s = time.perf_counter() - begin
    for prompt, ballots in zip(prompts, found, strict=True):
        _show(prompt, ballots, as_json)
    if all(costs):
        note(said_after(session, election, ids, found, took_s))


def said_before(prompt: Prompt, election: Election, cost: VoteCost) -> str:
    """What the answers cost, before they are made."""
    single_s, chains_s, refined_s = _seconds(cost)
    new = election.options["max_new_tokens"]
    return (
        f"{prompt.where}: {election.votes} answers of at most {new} tokens are predicted to take {chains_s:.3g} s as "
        f"chains, {refined_s:.3g} s as refinements, and one answer {single_s:.3g} s; "
        f"{cost.chains_tokens} and {cost.refined_tokens} tokens are computed"
    )


def said_after(
    session: Session, election: Election, prompts: Sequence[Sequence[int]], found: Sequence[Sequence[Ballot]], s: float
) -> str:
    """What the answers took, beside what the plan predicts for as many of their mean length."""
    tokens = [sum(ballot.tokens for ballot in ballots) for ballots in found]
    means = [max(1, round(of / election.votes)) for of in tokens]
    costs = [expected_cost(session, election, len(ids), new) for ids, new in zip(prompts, means, strict=True)]
    predicted_s = sum(refined if election.way == REFINE else chains for _, chains, refined in map(_seconds, costs))
    return f"{sum(tokens)} tokens took {s:.3g} s, {predicted_s:.3g} s are predicted for answers of their mean length"


def _seconds(cost: VoteCost | None) -> tuple[float, float, float]:
    assert cost is not None
    return cost.single_s, cost.chains_s, cost.refined_s


def _show(prompt: Prompt, ballots: Sequence[Ballot], as_json: bool) -> None:
    counted = count(ballots)
    if as_json:
        print(json.dumps(_line(prompt, ballots, counted)), flush=True)
        return
    if not counted:
        note(f"{prompt.where}: no answer says anything by the pattern")
    print(counted[0].says if counted else "", flush=True)
    whole = sum(one.weight for one in counted)
    for one in counted:
        said = f"  {100 * one.weight / whole:5.1f} %  {one.ballots:2} of {len(ballots)}  {one.entropy_bits:.3f} bits"
        print(f"{said}  {one.says}", file=sys.stderr)


def _line(prompt: Prompt, ballots: Sequence[Ballot], counted: Sequence[Counted]) -> dict[str, Any]:
    asked = {"messages": prompt.given.messages} if isinstance(prompt.given, Chat) else {"prompt": prompt.given}
    majority = count(ballots, weighted=False)
    return {
        **asked,
        "answer": counted[0].says if counted else None,
        "majority": majority[0].says if majority else None,
        "answers": [asdict(one) for one in counted],
        "votes": [asdict(ballot) for ballot in ballots],
    }
