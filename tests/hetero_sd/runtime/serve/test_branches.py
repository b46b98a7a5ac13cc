"""Branches of drafts: texts that are those of single runs, whatever a branch has, and slots that come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import CALLS, MIXED, Client, Letters, counts_of, engine_of, join_and_leave, run_all
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.draft_rows import Offer
from costmodel.schema.batch import BatchPrediction
from hetero_sd.cli import main
from hetero_sd.runtime.decode.drafters.ngram_pool import Match
from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.model.cache_blocks import CacheBlocks
from hetero_sd.runtime.model.protocol import Row
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.batch_times import BatchTimes
from hetero_sd.runtime.serve.branches import Acceptances, SecondChoice
from hetero_sd.runtime.serve.engine import GenerationRequest
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.serve.text_drafts import TextDrafts

EXPORTS = Path(__file__).resolve().parents[3] / "data" / "exports"


class Told(TextDrafts):
    """Knows how texts go on: drafts and branches begin right or not, and go wrong somewhere."""

    texts: Sequence[Sequence[int]] = ()
    rng = np.random.default_rng(0)

    def offer(self, tokens: Sequence[int], most: int, branches: bool = False) -> Offer:
        so_far, most = list(tokens), min(most, 4)
        right = next((text[len(so_far) :] for text in self.texts if list(text[: len(so_far)]) == so_far), [])
        if not right or most < 1:
            self._match = None
            return Offer(0.0, 0)
        wrong = [token for token in (*so_far[-9:], 0, 1) if token != right[0]]
        begins = [[right[0], self.rng.choice(wrong)], [self.rng.choice(wrong), right[0]]]
        draft, branch = begins[int(self.rng.random() < 0.6)]
        rest = [int(t if self.rng.random() < 0.7 else self.rng.choice(wrong)) for t in right[1:]]
        self._match, self.branch = Match(2, [int(draft), *rest][:most]), [int(branch), *rest][: most * branches]
        self._acceptances("ngram-2", 0)
        return Offer(0.2, len(self._match.tokens), beta=0.95, most_in_branch=len(self.branch))


def told(monkeypatch: pytest.MonkeyPatch, answers: Sequence[Any]) -> None:
    """Have engines draft from what these answers, which were read, went on with."""
    monkeypatch.setattr(Told, "texts", [[*answer.prompt_ids, *answer.token_ids] for answer in answers])
    monkeypatch.setattr("hetero_sd.runtime.serve.round_drafts.TextDrafts", Told)


def answers_of(letters: Letters) -> list[Any]:
    answers = [letters(chats=False).generate(prompt, **options) for prompt, options in MIXED]
    for answer in answers:
        answer.read()
    return answers


def run_mixed(letters: Letters, slots: int) -> tuple[BatchEngine, list[Client]]:
    engine = engine_of(letters, slots, between_tokens_s=40.0, drafts=True, calls=CALLS, rows_to_share=True)
    return engine, run_all(engine, *(GenerationRequest(prompt, options) for prompt, options in MIXED))


@pytest.mark.parametrize("slots", [4, 6, 12])
def test_texts_are_those_of_single_runs_at_every_load(
    letters: Letters, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = answers_of(letters)
    told(monkeypatch, answers)
    engine, clients = run_mixed(letters, slots)
    assert [client.text() for client in clients] == [answer.read() for answer in answers]
    counts, tokens = counts_of(engine), engine.snapshot().tokens
    assert 0.3 * counts.branches < counts.branches_won < counts.branches
    assert counts.branches > 5
    assert tokens.accepted <= tokens.drafted
    assert engine._pool.free == slots
    assert sorted(slot.number for slot in engine._pool.every) == list(range(slots))


def test_a_branch_makes_fewer_rounds(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text: where its slot is the only one it has no branch, and waits for its tokens longer."""
    answer = letters(chats=False).generate("hello", max_new_tokens=200)
    answer.read()
    told(monkeypatch, [answer])
    rounds = []
    for slots in (1, 2):
        engine = engine_of(letters, slots, between_tokens_s=40.0, drafts=True, calls=CALLS, rows_to_share=True)
        run_all(engine, GenerationRequest("hello", {"max_new_tokens": 200}))
        assert (counts_of(engine).branches > 0) == (slots == 2)
        rounds.append(counts_of(engine).rounds)
    assert rounds[1] < 0.8 * rounds[0]


def without_root(rows: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
    """A planted error: the last token of the text is not fed in the branch's slot."""

    def made(self: RunningText, *arguments: Any) -> list[Row]:
        found = rows(self, *arguments)
        return [found[0] if row.slot != self.slot.number and row.pos == self.past else row for row in found]

    return made


def in_its_own_slot(rows: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
    """A planted error: a branch's rows are written over those of the drafts."""

    def made(self: RunningText, *arguments: Any) -> list[Row]:
        return [replace(row, slot=self.slot.number) for row in rows(self, *arguments)]

    return made


@pytest.mark.parametrize("planted", [without_root, in_its_own_slot])
def test_rows_in_the_wrong_place_would_change_texts(
    letters: Letters, monkeypatch: pytest.MonkeyPatch, planted: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answers_of(letters)
    told(monkeypatch, answers)
    monkeypatch.setattr(RunningText, "rows", planted(RunningText.rows))
    engine, clients = run_mixed(letters, 5)
    assert [client.text() for client in clients] != [answer.read() for answer in answers]
    assert engine._pool.free == 5  # they come back from rounds that failed, too


@settings(max_examples=15, deadline=None)
@given(
    starts=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 60)), min_size=1, max_size=10),
    slots=st.integers(2, 5),
    cancelled=st.sets(st.integers(0, 9)),
    noise=st.sampled_from([None, 0.4, 2.0]),
)
def test_requests_that_join_and_leave_at_any_time(
    session_letters: Letters, starts: list[tuple[int, int]], slots: int, cancelled: set[int], noise: float | None
) -> None:
    """With a draft model its second choice is the branch, and without one what n-grams have."""
    with pytest.MonkeyPatch.context() as patch:
        if noise is None:
            told(patch, answers_of(session_letters))
        engine = engine_of(
            session_letters, slots, drafts=noise is None, calls=CALLS, draft_noise=noise, rows_to_share=True
        )
        join_and_leave(engine, session_letters, starts, cancelled)
    assert engine._pool.free == slots
    assert sorted(slot.number for slot in engine._pool.every) == list(range(slots))


def test_the_second_choice_of_a_draft_model_is_a_branch(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more is believed of it than it deserves: it wins now and then."""
    monkeypatch.setattr(SecondChoice, "beta", 1.0)
    asked: list[Any] = [{"max_new_tokens": 100, "temperature": heat, "seed": 3} for heat in (0.0, 1.2)]
    expected = [letters(chats=False).generate("hello", **options).read() for options in asked]
    engine = engine_of(letters, 4, between_tokens_s=40.0, calls=CALLS, draft_noise=1.4, rows_to_share=True)
    clients = run_all(engine, *(GenerationRequest("hello", options) for options in asked))
    assert [client.text() for client in clients] == expected
    counts = counts_of(engine)
    assert 5 < counts.branches_won < counts.branches


def test_how_often_a_branch_is_right_is_learnt_where_the_draft_is_wrong() -> None:
    second = SecondChoice()
    seen, other = (Acceptances(0.5, 2.0, 0, second) for _ in range(2))
    alpha, beta = seen.alpha, seen.beta
    assert beta < 0.1  # of nothing seen little is believed
    assert seen.learn([1, 2], [3], [1, 2, 5], 10) == 2
    assert seen.alpha > alpha
    assert seen.beta < beta  # nothing is said of the branch, and the drafts leave less to it
    assert seen.learn([1, 2], [3], [3, 4], 12) == 0
    assert seen.beta > beta
    assert 0 < seen.beta < second.beta  # drafts may be accepted more often than it seems
    for at in range(13, 213):
        seen.learn([1, 2], [3], [3 if at % 5 < 2 else 4], at)
    assert 0.3 < second.beta < 0.4  # a standard deviation below two fifths
    assert seen.beta > other.beta > 0.1  # it is known of all texts, the drafts of each
    before = second.beta
    assert seen.learn([1], [], [4], 213) == 0
    assert second.beta == before


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Any]]:
    """Three texts, two greedy; and times that are not real."""
    monkeypatch.setattr(BatchTimes, "_observe", lambda self, call, seconds, predicted_s: predicted_s)
    rng = np.random.default_rng(2)
    return [
        (rng.integers(0, 500, length).tolist(), {"max_new_tokens": 30, "temperature": heat, "seed": 1})
        for length, heat in ((5, 0.0), (30, 0.0), (17, 0.9))
    ]


@pytest.mark.parametrize("planted", [False, True])
def test_a_compiled_target(
    tiny_slots: Path, asked: list[tuple[list[int], Any]], planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three texts in six slots have the tokens of single runs; not where branches lack the rows of the text."""
    with load_folder(tiny_slots, {"mode": "off"}) as session:
        answers, expected = list[Any](), list[str]()
        for ids, options in asked:
            answers.append(session.answer(list(ids), **options))
            expected.append(answers[-1].read())
        told(monkeypatch, answers)
        assert session.slots is not None
        assert session.plan is not None
        calls = session.plan.prediction.slot_calls
        alike = BatchPrediction({n: (1.0, 0.0) for n in calls.row_calls}, {n: (1.0, 0.0) for n in calls.read_calls})
        alike = replace(alike, chunks=calls.chunks)
        session.plan = replace(session.plan, prediction=replace(session.plan.prediction, slot_calls=alike))
        if planted:
            monkeypatch.setattr(CacheBlocks, "follow", lambda *arguments: None)
        engine = BatchEngine(session, session.slots, 16, 60.0, drafts=True)
        clients = run_all(engine, *(GenerationRequest(ids, options) for ids, options in asked))
        found = [client.text() for client in clients]
    assert (found == expected) != planted
    assert counts_of(engine).branches_won > (0 if planted else 5)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["drafter", "early-exit:1"])
def test_second_choices_of_compiled_drafters(
    draft: str, tmp_path: Path, asked: list[tuple[list[int], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First layers draft in the target's rows, which a text exchanges for those of its branch."""
    monkeypatch.setattr(SecondChoice, "beta", 1.0)
    asked = asked[::2]  # so few that rows are to spare
    target, out = EXPORTS / "llama-dynamo-fp32", tmp_path / "bundle"
    given = EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx" if draft == "drafter" else draft
    options = ["--tokenizer", target, "--board", "host", "--context", "64", "--slots", "6", "--out", out]
    assert main([*map(str, ["compile", target / "model.onnx", "--draft", given, *options])]) == 0
    with load_folder(out, {"mode": "off"}) as session:
        expected = [session.answer(list(ids), **options).read() for ids, options in asked]
        assert session.slots is not None
        assert session.plan is not None
        planned = session.plan.prediction
        for name, seconds in (("slot_calls", 1.0), ("draft_slot_calls", 0.01)):
            calls = getattr(planned, name)
            alike = BatchPrediction(
                {n: (seconds, 0.0) for n in calls.row_calls},
                {n: (seconds, 0.0) for n in calls.read_calls},
                chunks=calls.chunks,
            )
            planned = replace(planned, **{name: alike})
        session.plan = replace(session.plan, prediction=planned)
        engine = BatchEngine(session, session.slots, 16, 60.0, drafter=session.draft_slots)
        clients = run_all(engine, *(GenerationRequest(ids, options) for ids, options in asked))
        assert [client.text() for client in clients] == expected
    counts = counts_of(engine)
    assert 0 < counts.branches_won < counts.branches
