"""Makes the answers that are voted on: side by side, in slots where the target has any, or each a refinement."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from costmodel.votes import Asked, VoteCost, votes_cost
from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.decode.logprobs import MOST_TOP, TokenLogprob, entropy_bits
from hetero_sd.runtime.serve.batch_engine import BatchEngine, slots_at_a_time
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, Event, Failed, GenerationRequest, TextPiece
from hetero_sd.runtime.serve.session_engine import SessionEngine
from hetero_sd.runtime.session import PromptTooLong, Session
from hetero_sd.runtime.text.chat_template import ASSISTANT, USER, Chat
from hetero_sd.runtime.text.prompts import Prompt
from hetero_sd.runtime.voting.ballots import Ballot, what_it_says
from hetero_sd.runtime.voting.options import CHAINS
from targets.errors import UserError

ASK_AGAIN = "Find errors and gaps in your answer, and answer the question again."


@dataclass(frozen=True)
class Election:
    """How answers are made.

    Attributes:
        votes: answers to each prompt.
        way: one of options.WAYS.
        pattern: of what an answer says; None is its last line.
        options: of every answer; each has the seed after the one before.
    """

    votes: int
    way: str
    pattern: re.Pattern[str] | None
    options: Options


@dataclass
class _Heard:
    """The answers to a prompt, as they come."""

    texts: list[str]
    logprobs: list[Sequence[TokenLogprob]]
    ended: bool = False
    failed: list[str] = field(default_factory=list)


def expected_cost(
    session: Session, election: Election, prompt_tokens: int, new_tokens: int | None = None
) -> VoteCost | None:
    """What it takes by the plan, for answers of `new_tokens` or else as long as they may be; None without steps."""
    plan = session.plan
    if plan is None or (plan.prediction.slot_calls is None and 1 not in plan.prediction.verify_step_s):
        return None
    slots = slots_at_a_time(session)
    most = min(election.options["max_new_tokens"], session.context - prompt_tokens + 1)
    new = most if new_tokens is None else new_tokens
    added = len(session.text.encode(ASK_AGAIN)) if session.text is not None else 0
    asked = Asked(election.votes, prompt_tokens, max(1, new), max(1, added))
    return votes_cost(asked, plan.prediction, plan.prefill_width, 1 if slots is None else slots.slots)


def ballots_of_chains(session: Session, election: Election, prompts: Sequence[list[int]]) -> Iterator[list[Ballot]]:
    """The answers to each prompt, all made side by side where there are slots; in order.

    Raises:
        UserError: an answer failed.
    """
    slots = slots_at_a_time(session)
    engine: BatchEngine | SessionEngine
    if slots is None:
        engine = SessionEngine(session, len(prompts), math.inf)
    else:
        engine = BatchEngine(session, slots, len(prompts), math.inf, between_tokens_s=math.inf)
    heard = [_Heard([""] * election.votes, [()] * election.votes) for _ in prompts]

    def hear(of: _Heard, event: Event) -> None:
        if isinstance(event, TextPiece):
            of.texts[event.choice] += event.text
        elif isinstance(event, ChoiceEnded):
            of.logprobs[event.choice] = event.logprobs
        elif isinstance(event, (Ended, Failed)):
            of.ended = True
            of.failed += [event.message] if isinstance(event, Failed) else []
            if of.failed or all(one.ended for one in heard):
                engine.stop()

    options: Options = {**election.options, "logprobs": MOST_TOP}
    for ids, of in zip(prompts, heard, strict=True):
        engine.submit(GenerationRequest(ids, options, election.votes), lambda event, of=of: hear(of, event))  # type: ignore[misc]
    engine.run()
    for of in heard:
        if of.failed:
            raise UserError(of.failed[0])
        yield [_ballot(session, election, *made) for made in zip(of.texts, of.logprobs, strict=True)]


def ballots_of_refinements(session: Session, election: Election, prompt: Prompt) -> list[Ballot]:
    """Answers to a prompt, each with those before it in view, as many of the last as the context has room for.

    Raises:
        UserError: the prompt is token ids, or not even one answer fits behind it.
    """
    if isinstance(prompt.given, list):
        raise UserError(
            f"{prompt.where} is token ids, to which no answer is added: give a text, or --votes-by {CHAINS}"
        )
    found: list[Ballot] = []
    room = election.options["max_new_tokens"]
    for step in range(election.votes):
        options: Options = {**election.options, "logprobs": MOST_TOP}
        seed = options.get("seed")
        if seed is not None:
            options["seed"] = seed + step
        answer = session.answer(_with_answers(session, prompt, found, room), **options)
        found.append(_ballot(session, election, answer.read(), answer.logprobs))
    return found


def _with_answers(session: Session, prompt: Prompt, ballots: Sequence[Ballot], room: int) -> list[int]:
    """The ids of a prompt with the last answers behind it."""
    for first in range(len(ballots)):
        try:
            ids = session.encode(Prompt(_asked_again(session, prompt, ballots[first:]), prompt.where))
        except PromptTooLong:
            continue
        if len(ids) + room <= session.context + 1:
            return ids
    if ballots:
        raise UserError(f"{prompt.where}: no answer fits beside it into the context of {session.context}")
    return session.encode(prompt)


def _asked_again(session: Session, prompt: Prompt, ballots: Sequence[Ballot]) -> str | Chat:
    given = prompt.given
    assert not isinstance(given, list)
    if session.text is not None and session.text.has_template and session.template:
        chat = Chat([{"role": USER, "content": given}]) if isinstance(given, str) else given
        turns = [
            turn
            for ballot in ballots
            for turn in ({"role": ASSISTANT, "content": ballot.text}, {"role": USER, "content": ASK_AGAIN})
        ]
        return Chat([*chat.messages, *turns], chat.tools)
    return "\n".join([str(given), *(line for ballot in ballots for line in (ballot.text, ASK_AGAIN))]) + "\n"


def _ballot(session: Session, election: Election, text: str, logprobs: Sequence[TokenLogprob]) -> Ballot:
    known = [one for one in logprobs if one.token not in session.request.eos_ids]
    return Ballot(text, what_it_says(text, election.pattern), entropy_bits(known), len(known))
