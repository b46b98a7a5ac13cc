"""Answers for a vote: side by side or one after the other, apart or each after those before it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import some_plan, some_prediction

from hetero_sd.runtime.decode.logprobs import entropy_bits
from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.options import parse_options
from hetero_sd.runtime.run import main
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.prompts import Prompt
from hetero_sd.runtime.voting.ballots import Ballot
from hetero_sd.runtime.voting.command import said_after, said_before
from hetero_sd.runtime.voting.vote import (
    ASK_AGAIN,
    Election,
    ballots_of_chains,
    ballots_of_refinements,
    expected_cost,
)
from targets.errors import UserError

Letters = Callable[..., Session]
SAMPLED: Any = {"max_new_tokens": 6, "temperature": 1.3, "seed": 5}


def test_chains_are_the_answers_of_following_seeds(letters: Letters) -> None:
    session = letters(chats=False)
    ids = [session.encode(Prompt(text, "it")) for text in ("hello", "abc")]
    found = list(ballots_of_chains(session, Election(4, "chains", re.compile("[ab]"), SAMPLED), ids))
    for of, ballots in zip(ids, found, strict=True):
        for i, ballot in enumerate(ballots):
            answer = letters(chats=False).answer(list(of), **{**SAMPLED, "seed": 5 + i, "logprobs": 20})
            assert ballot.text == answer.read()
            assert ballot.says == next((c for c in reversed(ballot.text) if c in "ab"), None)
            assert ballot.entropy_bits == pytest.approx(entropy_bits(answer.logprobs))
            assert ballot.tokens == 6
    assert len({ballot.text for ballot in found[0]}) > 1


def test_in_slots_they_are_the_same(tiny_slots: Path) -> None:
    """Nine chains in six slots, the bits of single runs; the prompts are read once."""
    prompts = [np.random.default_rng(i).integers(2, 500, 20).tolist() for i in range(2)]
    election = Election(9, "chains", None, {**SAMPLED, "seed": 1})
    with load_folder(tiny_slots, {"mode": "off"}) as session:
        together = list(ballots_of_chains(session, election, prompts))
    with load_folder(tiny_slots, {"mode": "off"}) as session:
        session.slots = None
        assert list(ballots_of_chains(session, election, prompts)) == together


def test_a_refinement_has_the_answers_before_it_in_view(letters: Letters) -> None:
    session, asked = letters(), list[list[int]]()
    answer = session.answer
    session.answer = lambda ids, **options: (asked.append(ids), answer(ids, **options))[1]  # type: ignore[method-assign, assignment, func-returns-value]
    found = ballots_of_refinements(session, Election(3, "refine", None, {"max_new_tokens": 5}), Prompt("hello", "it"))
    assert session.text is not None
    one, two, three = (session.text.decode(ids) for ids in asked)
    assert one == "u:hello\na:"
    assert two == f"{one}{found[0].text}\nu:{ASK_AGAIN}\na:".replace("a:", "a:", 1)
    assert three == f"{two}{found[1].text}\nu:{ASK_AGAIN}\na:"
    plain = letters(chats=False)
    [first, _] = ballots_of_refinements(
        plain, Election(2, "refine", None, {"max_new_tokens": 5}), Prompt("hello", "it")
    )
    assert first.text == letters(chats=False).generate("hello", max_new_tokens=5).read()


def test_of_refinements_the_last_ones_fit(letters: Letters) -> None:
    session, lengths = letters(context=160), list[int]()
    answer = session.answer
    session.answer = lambda ids, **options: (lengths.append(len(ids)), answer(ids, **options))[1]  # type: ignore[method-assign, assignment, func-returns-value]
    assert len(ballots_of_refinements(session, Election(5, "refine", None, SAMPLED), Prompt("hello", "it"))) == 5
    assert lengths[0] < lengths[1] == lengths[4] <= 155
    with pytest.raises(UserError, match="no answer fits beside it"):
        ballots_of_refinements(letters(context=60), Election(2, "refine", None, SAMPLED), Prompt("hello", "it"))
    with pytest.raises(UserError, match="is token ids"):
        ballots_of_refinements(session, Election(2, "refine", None, SAMPLED), Prompt([1, 2], "it"))


def test_what_it_costs_is_said_before(letters: Letters) -> None:
    session, election = letters(), Election(4, "chains", None, SAMPLED)
    assert expected_cost(session, election, 10) is None
    session.plan = some_plan(prediction=some_prediction(verify_step_s={1: 0.5}))
    cost = expected_cost(session, election, 10)
    assert cost is not None
    assert cost.chains_tokens == 10 + 4 * 6
    said = said_before(Prompt("x", "--prompt"), election, cost)
    assert said.startswith("--prompt: 4 answers of at most 6 tokens are predicted to take ")
    short = expected_cost(session, election, 10, 3)
    assert short is not None
    assert 0.4 * cost.chains_s < short.chains_s < 0.6 * cost.chains_s
    after = said_after(session, election, [[1] * 10], [[Ballot("a", "a", 1.0, tokens) for tokens in (2, 6, 3, 1)]], 7.0)
    assert after == f"12 tokens took 7 s, {short.chains_s:.3g} s are predicted for answers of their mean length"
    near_the_end = expected_cost(session, election, session.context - 1)
    assert near_the_end is not None
    assert near_the_end.chains_tokens == session.context - 1 + 4 * 2  # the context ends them


def test_the_command(tiny_slots: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = "--votes 7 --temperature 1.1 --seed 3 --max-new-tokens 5 --answer-pattern [a-z]".split()
    assert main(tiny_slots, ["--prompt", "one two", "--json", *options]) == 0
    said = capfd.readouterr()
    found = json.loads(said.out)
    assert len(found["votes"]) == 7
    assert found["answer"] == max(found["answers"], key=lambda one: one["weight"])["says"]
    assert sum(one["ballots"] for one in found["answers"]) == sum(vote["says"] is not None for vote in found["votes"])
    assert "run.py: note: --prompt: 7 answers of at most 5 tokens are predicted to take" in said.err
    assert "s are predicted for answers of their mean length" in said.err
    assert main(tiny_slots, ["--prompt", "one two", *options]) == 0
    assert capfd.readouterr().out == f"{found['answer']}\n"
    assert main(tiny_slots, ["--prompt", "one two", *options, "--votes-by", "refine", "--answer-pattern", "#{9}"]) == 0
    said = capfd.readouterr()
    assert said.out == "\n"
    assert "no answer says anything by the pattern" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--votes 3 --temperature 1", "--votes needs a prompt"),
        ("--votes 3 --prompt x", "--votes needs --temperature"),
        ("--votes 1 --prompt x --temperature 1", "not a whole number from 2 to 64"),
        ("--votes-by refine --prompt x", "--votes-by belongs to --votes"),
        ("--answer-pattern x --prompt x", "--answer-pattern belongs to --votes"),
        ("--votes 3 --prompt x --temperature 1 --answer-pattern (", "is no regular expression"),
        ("--votes 3 --prompt x --temperature 1 --stats", "--stats contradicts --votes"),
        ("--votes 3 --temperature 1 --serve", "--serve contradicts --votes"),
    ],
)
def test_what_contradicts_is_refused(arguments: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse_options(arguments.split())
    assert parse_options("--votes 3 --prompt x --votes-by refine".split()).votes == 3
