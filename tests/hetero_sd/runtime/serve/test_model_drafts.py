"""A draft model for all texts of a batch: the texts stay those of single runs, and its rows those of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import (
    CALLS,
    MIXED,
    Client,
    Letters,
    ToySlots,
    counts_of,
    engine_of,
    join_and_leave,
    rows_s,
    run_all,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.schema.batch import BatchPrediction
from hetero_sd.cli import main
from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Outputs, Row
from hetero_sd.runtime.model.shared_rows import SharedRows
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.batch_times import BatchTimes
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, GenerationRequest

EXPORTS = Path(__file__).resolve().parents[3] / "data" / "exports"


def drafter_of(engine: BatchEngine) -> ToySlots:
    drafter = engine._drafts._drafter
    assert drafter is not None
    toys = drafter._slots
    assert isinstance(toys, ToySlots)
    return toys


def mixed(engine: BatchEngine) -> list[Client]:
    return run_all(engine, *(GenerationRequest(prompt, options) for prompt, options in MIXED))


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize(("slots", "bound_s"), [(1, 40.0), (3, 9.0), (8, 40.0)])
def test_texts_are_those_of_single_runs_at_every_load(
    letters: Letters, slots: int, bound_s: float, found: bool
) -> None:
    expected = [letters(chats=False).generate(prompt, **options).read() for prompt, options in MIXED]
    engine = engine_of(letters, slots, between_tokens_s=bound_s, drafts=found, calls=CALLS, draft_noise=0.5)
    clients = mixed(engine)
    assert [client.text() for client in clients] == expected
    assert all(client.last == Ended() for client in clients)
    tokens, counts = engine.snapshot().tokens, counts_of(engine)
    assert 0 < tokens.accepted < tokens.drafted
    assert counts.drafting_s > 0
    assert len(set(expected)) == 8  # the negative control: they are not all alike
    ended = [event.counts for client in clients for event in client.events if isinstance(event, ChoiceEnded)]
    assert sum(of.drafted for of in ended) == tokens.drafted  # what each request's usage says


@settings(max_examples=25, deadline=None)
@given(
    starts=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 60)), min_size=1, max_size=10),
    slots=st.integers(1, 4),
    cancelled=st.sets(st.integers(0, 9)),
    found=st.booleans(),
    noise=st.sampled_from([0.0, 0.4, 2.0]),
)
def test_requests_that_join_and_leave_at_any_time(
    session_letters: Letters,
    starts: list[tuple[int, int]],
    slots: int,
    cancelled: set[int],
    found: bool,
    noise: float,
) -> None:
    engine = engine_of(session_letters, slots, drafts=found, calls=CALLS, draft_noise=noise)
    join_and_leave(engine, session_letters, starts, cancelled)
    drafter = engine._drafts._drafter
    assert drafter is not None  # it was not lost
    assert drafter._pool is not None
    assert engine._pool.free == drafter._pool.free == slots


def test_a_drafter_that_is_the_target_is_always_right(letters: Letters) -> None:
    """Greedy: so its rows are those of the text after every acceptance, rejection, join and reading in pieces."""
    greedy = [(prompt, {**options, "temperature": 0.0}) for prompt, options in MIXED]
    for noise, right in ((0.0, True), (2.0, False)):
        engine = engine_of(letters, 4, calls=CALLS, between_tokens_s=40.0, draft_noise=noise)
        run_all(engine, *(GenerationRequest(prompt, options) for prompt, options in greedy))
        tokens = engine.snapshot().tokens
        assert tokens.drafted > (50 if right else 5)
        assert (tokens.accepted == tokens.drafted) == right


def test_one_step_drafts_for_all_texts_that_run(letters: Letters) -> None:
    """Three texts: the drafter's calls have a row of each, beyond the first step of a round."""
    engine = engine_of(letters, 3, calls=CALLS, between_tokens_s=40.0, draft_noise=0.0)
    run_all(engine, *(GenerationRequest(text, {"max_new_tokens": 40}) for text in "abc"))
    calls = [call for call in drafter_of(engine).calls if isinstance(call, list)]
    assert max(len(set(call)) for call in calls) == 3
    rounds = counts_of(engine).rounds
    assert len(calls) < 3 * rounds  # not one call for each text
    tokens = engine.snapshot().tokens
    assert tokens.accepted > rounds  # more than a token of a text each round


def test_a_text_drafts_less_beside_others_and_the_batch_is_faster_for_it(letters: Letters) -> None:
    each, gains = [], []
    for texts in (1, 2, 8):
        asked = [GenerationRequest(text, {"max_new_tokens": 60}) for text in "abcdefgh"[:texts]]
        plain, drafting = (
            engine_of(letters, texts, calls=CALLS, between_tokens_s=40.0, draft_noise=noise) for noise in (None, 0.0)
        )
        assert [c.text() for c in run_all(plain, *asked)] == [c.text() for c in run_all(drafting, *asked)]
        tokens = drafting.snapshot().tokens
        each.append(tokens.drafted / tokens.generated)
        gains.append(counts_of(plain).busy_s / counts_of(drafting).busy_s)
    assert each == sorted(each, reverse=True)
    assert gains == sorted(gains, reverse=True)
    assert (gains[0] > 1.5, each[-1], gains[-1]) == (True, 0.0, 1.0)


def test_prompts_are_read_for_the_drafter_where_an_answer_is_long_enough(letters: Letters) -> None:
    for new, reads in ((3, 0), (90, 80)):
        engine = engine_of(letters, 1, calls=CALLS, between_tokens_s=40.0, draft_noise=0.3)
        run_all(engine, GenerationRequest("a" * 80, {"max_new_tokens": new}))
        pieces = [call for call in drafter_of(engine).calls if isinstance(call, tuple)]
        assert sum(tokens for _, tokens in pieces) == reads
        assert (engine.snapshot().tokens.drafted > 0) == (reads > 0)
    assert counts_of(engine).late_gaps == 0


def test_what_a_drafters_slots_hold_is_not_read_again(letters: Letters) -> None:
    engine = engine_of(letters, 1, calls=CALLS, between_tokens_s=40.0, draft_noise=0.3)
    asked = [GenerationRequest("a" * 80 + end, {"max_new_tokens": 90}) for end in "bcd"]
    run_all(engine, *asked)
    pieces = [tokens for call in drafter_of(engine).calls if isinstance(call, tuple) for tokens in call[1:]]
    assert 80 <= sum(pieces) < 100


class Failing(ToySlots):
    """A draft model that fails after some calls: NaN, or an error."""

    def __init__(self, toys: ToySlots, error: Exception | None) -> None:
        self.__dict__ = toys.__dict__
        self.error, self.left = error, 3

    def rows(self, rows: Sequence[Row]) -> Outputs:
        made = super().rows(rows)
        self.left -= 1
        if self.left > 0:
            return made
        if self.error is not None:
            raise self.error
        return {LOGITS: made[LOGITS], CHOICE: np.full(len(rows), -1)}


@pytest.mark.parametrize(
    ("error", "said"),
    [(None, "the draft computed logits that are not finite"), (RuntimeError("lost"), "drafting with the draft model")],
)
def test_without_a_drafter_that_fails_the_batch_goes_on(
    letters: Letters, error: Exception | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [letters(chats=False).generate(prompt, **options).read() for prompt, options in MIXED]
    engine = engine_of(letters, 3, calls=CALLS, between_tokens_s=40.0, draft_noise=0.5)
    drafter = engine._drafts._drafter
    assert drafter is not None
    drafter._slots = Failing(drafter_of(engine), error)
    assert [client.text() for client in mixed(engine)] == expected
    assert engine._drafts._drafter is None
    heard = capsys.readouterr().err
    assert said in heard
    assert heard.count("\n") == 1


def test_the_clock_of_the_drafters_calls_is_counted(letters: Letters) -> None:
    """On the clock of the calls: what its rows and pieces take, and nothing else."""
    engine = engine_of(letters, 2, calls=CALLS, between_tokens_s=40.0, draft_noise=0.3)
    asked: list[Any] = [GenerationRequest(text * 30, {"max_new_tokens": 60}) for text in "ab"]
    run_all(engine, *asked)
    calls, counts = drafter_of(engine).calls, counts_of(engine)
    rows = sum(0.1 * rows_s(len(call)) for call in calls if isinstance(call, list))
    pieces = sum(0.5 if call[1] > 1 else 0.2 for call in calls if isinstance(call, tuple))
    assert counts.drafting_s == pytest.approx(rows + pieces)
    assert counts.busy_s == pytest.approx(counts.calls_s + counts.drafting_s)


@pytest.mark.parametrize("draft", ["drafter", "early-exit:1"])
def test_a_compiled_pair_under_load(draft: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed lengths in slots of a target and a drafter: tokens are those of single runs, drafts are accepted."""
    monkeypatch.setattr(BatchTimes, "_observe", lambda self, call, seconds, predicted_s: predicted_s)  # no real times
    target, out = EXPORTS / "llama-dynamo-fp32", tmp_path / "bundle"
    given = EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx" if draft == "drafter" else draft
    options = ["--tokenizer", target, "--board", "host", "--context", "64", "--slots", "3", "--out", out]
    assert main([*map(str, ["compile", target / "model.onnx", "--draft", given, *options])]) == 0
    rng = np.random.default_rng(1)
    asked: list[tuple[list[int], Any]] = [
        (rng.integers(0, 500, (1, 33, 50, 7)[i % 4]).tolist(), {"max_new_tokens": 4 + 7 * i % 30, "seed": i})
        for i in range(9)
    ]
    for i, (_, settings_of) in enumerate(asked):
        settings_of["temperature"] = 0.9 * (i % 3 == 0)
    with load_folder(out, {"mode": "off"}) as session:
        expected = [session.answer(list(ids), **options).read() for ids, options in asked]
        assert session.slots is not None
        assert session.draft_slots is not None
        assert isinstance(session.models.draft, SharedRows) == (draft != "drafter")  # first layers read no prompts
        assert session.plan is not None
        planned = session.plan.prediction
        for name, seconds in (("slot_calls", 1.0), ("draft_slot_calls", 0.1)):
            calls = getattr(planned, name)
            told = BatchPrediction(
                {n: (seconds, 0.0) for n in calls.row_calls}, {n: (seconds, 0.0) for n in calls.read_calls}
            )
            planned = replace(planned, **{name: told})
        session.plan = replace(session.plan, prediction=planned)
        engine = BatchEngine(session, session.slots, 16, 60.0, drafter=session.draft_slots)
        clients = run_all(engine, *(GenerationRequest(ids, options) for ids, options in asked))
        assert [client.text() for client in clients] == expected
        tokens = engine.snapshot().tokens
        assert 0 < tokens.accepted < tokens.drafted
    assert len(set(expected)) > 5
