"""Answers every prompt of a run, and prints and saves what is made of the answers."""

from __future__ import annotations

import json
import sys

from hetero_sd.runtime.answer import Answer, run_stats
from hetero_sd.runtime.decode.chrome_trace import chrome_trace
from hetero_sd.runtime.decode.stats_text import stats_table
from hetero_sd.runtime.interactive import Interactive
from hetero_sd.runtime.internal_error import step
from hetero_sd.runtime.load import note
from hetero_sd.runtime.request import RunRequest
from hetero_sd.runtime.saved_logits import save_logits
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.prompts import Prompt
from targets.files import write_text


def answer_prompts(session: Session, given: list[Prompt] | None, options: RunRequest) -> None:
    """Answer every prompt, and print and save what is made of all answers."""
    answers: list[Answer] = []  # kept only where something is made of all of them afterwards
    kept = options.save_logits is not None or options.trace is not None or (options.stats and given is not None)
    session.spans = options.trace is not None

    def show(prompt: Prompt, answer: Answer) -> None:
        _show(prompt, answer, options)
        if answer.stop_reason == "context":
            end = f"the answer ends there, after {len(answer.token_ids)} tokens; compile --context N makes it longer"
            note(f"the context of {session.context} tokens is full: {end}")
        if kept:
            answers.append(answer)
        if options.stats and given is None:
            print(stats_table(run_stats([answer])), file=sys.stderr)

    if options.load_state is not None:
        session.load_state(options.load_state)
    if given is None:
        Interactive(session, options.when_full, options.answer_options(), show).run()
    else:
        for prompt, ids in [(prompt, session.encode(prompt)) for prompt in given]:  # all are checked first
            show(prompt, session.answer(ids, **options.answer_options()))
    if options.stats and given is not None:
        print(stats_table(run_stats(answers)), file=sys.stderr)
    if options.trace is not None:
        board = session.plan.board if session.plan is not None else "this machine"
        found = chrome_trace([answer.trace for answer in answers], board, session.lanes)
        write_text(options.trace, json.dumps(found))
    if options.save_state is not None:
        session.save_state(options.save_state)
    if options.save_logits is not None:
        sequences = [(answer.prompt_ids, answer.token_ids) for answer in answers]
        save_logits(options.save_logits, session.models.target, sequences)


def _show(prompt: Prompt, answer: Answer, options: RunRequest) -> None:
    """Generate an answer: streamed to the terminal, or as one JSON line."""
    with step("answering"):
        for piece in answer:
            if piece.text and not options.json:
                print(piece.text, end="", flush=True)
    if answer.trace.lost_drafter is not None:
        note(f"{answer.trace.lost_drafter}; it was left out")
    if not options.json:
        print(flush=True)
        return
    asked = {"messages": prompt.given.messages} if isinstance(prompt.given, Chat) else {"prompt": prompt.given}
    line = {**asked, "token_ids": answer.token_ids, "text": answer.text, "stats": answer.stats}
    print(json.dumps(line), flush=True)
