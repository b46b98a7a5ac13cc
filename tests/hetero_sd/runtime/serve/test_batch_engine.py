"""Several answers at a time: texts that are those of single runs, who waits for whom, and how every request ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batches import (
    CALLS,
    MIXED,
    Client,
    Letters,
    counts_of,
    engine_of,
    join_and_leave,
    run_all,
    toys_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.batch import BOUND_STEPS
from costmodel.batch_throughput import Requests, throughput
from costmodel.draft_rows import Offer
from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.drafters.ngram_pool import Match
from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import CHOICE, Model, Outputs, Pending, Row, Slots
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.engine import (
    ENDING,
    FAULT,
    PROMPT_TOO_LONG,
    REFUSED,
    TOOK_TOO_LONG,
    ChoiceEnded,
    Ended,
    EngineEnding,
    Failed,
    GenerationRequest,
    QueueFull,
    Started,
    TextPiece,
)
from hetero_sd.runtime.serve.text_drafts import TextDrafts
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.chat_template import Chat


@pytest.mark.parametrize("bound_s", [2.8, 9.0, 40.0])  # prompts are read as rows beside texts, or in chunks
@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_texts_are_those_of_single_runs_at_every_load(
    letters: Letters, slots: int, drafts: bool, bound_s: float
) -> None:
    answers = [letters(chats=False).generate(prompt, **options) for prompt, options in MIXED]
    expected = [(answer.read(), answer.stop_reason, len(answer.token_ids)) for answer in answers]
    engine = engine_of(letters, slots, between_tokens_s=bound_s, drafts=drafts, calls=CALLS)
    clients = run_all(engine, *(GenerationRequest(prompt, options) for prompt, options in MIXED))
    found = []
    for client, answer in zip(clients, answers, strict=True):
        ended = client.events[-2]
        assert isinstance(ended, ChoiceEnded)
        assert (client.events[0], client.last) == (Started(len(answer.prompt_ids)), Ended())
        found.append((client.text(), ended.reason, ended.counts.generated))
    assert found == expected
    assert {reason for _, reason, _ in found} == {"length", "stop", "context"}
    most = max(len(set(call)) for call in toys_of(engine).calls if isinstance(call, list))
    assert min(slots, 4) <= most <= slots
    snapshot = engine.snapshot()
    assert (snapshot.outcomes["answered"], snapshot.running, snapshot.waiting) == (8, 0, 0)
    assert snapshot.tokens.generated == sum(n for _, _, n in expected)
    assert (snapshot.tokens.drafted > 0, snapshot.tokens.accepted > 0) == (drafts, drafts)
    if slots == 8:
        assert (counts_of(engine).riding_tokens > 100) == (bound_s == 2.8)
    assert len({text for text, _, _ in found}) == 8  # the negative control: they are not all alike


@settings(max_examples=15, deadline=None)
@given(
    starts=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 60)), min_size=1, max_size=10),
    slots=st.integers(1, 4),
    cancelled=st.sets(st.integers(0, 9)),
    drafts=st.booleans(),
)
def test_requests_that_join_and_leave_at_any_time(
    session_letters: Letters, starts: list[tuple[int, int]], slots: int, cancelled: set[int], drafts: bool
) -> None:
    engine = engine_of(session_letters, slots, drafts=drafts)
    join_and_leave(engine, session_letters, starts, cancelled)
    assert engine._pool.free == slots


def beside_a_prompt(
    letters: Letters, bound_s: float | None, chunk_s: float = 6.0, calls: BatchPrediction | None = CALLS
) -> BatchEngine:
    """While three texts are written a prompt of 100 tokens comes."""
    engine = engine_of(letters, 4, between_tokens_s=bound_s, chunk_s=chunk_s, calls=calls)
    clients: list[Client] = []

    def ask(text: str, new: int) -> None:
        clients.append(Client(heard))
        engine.submit(GenerationRequest(text, {"max_new_tokens": new}), clients[-1])

    def heard(client: Client) -> None:
        if client is clients[0] and len(client.text()) == 5 and len(clients) == 3:
            ask("d" * 100, 2)
        if all(isinstance(one.last, Ended) for one in clients if one.events) and len(clients) == 4:
            engine.stop()

    for text in "abc":
        ask(text, 110)
    engine.run()
    return engine


@pytest.mark.parametrize(
    ("bound_s", "read_at_once", "longest_s"),
    [(9.0, 8, 8.5), (15.0, 16, 14.5), (3.0, 1, 2.75), (2.5, 1, 2.5)],  # with a chunk, with two, with rows alone
)
def test_no_running_text_waits_longer_than_the_bound(
    letters: Letters, bound_s: float, read_at_once: int, longest_s: float
) -> None:
    engine = beside_a_prompt(letters, bound_s)
    counts, calls = counts_of(engine), toys_of(engine).calls
    assert (counts.late_gaps, counts.gaps, counts.longest_gap_s) == (0, 3 * 109 + 1, longest_s)
    assert counts.read_tokens + counts.riding_tokens in (99, 100)  # the last token may be a row as any other
    between = [[n for _, n in group] for rows, group in groupby(calls, lambda c: isinstance(c, list)) if not rows]
    assert max(map(sum, between), default=1) == read_at_once
    assert counts_of(beside_a_prompt(letters, 50.0)).longest_gap_s > bound_s  # the negative control


def test_times_that_are_seen_correct_those_of_the_plan(letters: Letters) -> None:
    """The plan has chunks in a twelfth of their time: one round is late, and no other."""
    wrong = replace(CALLS, read_calls={1: (2.0, 0.0), 8: (0.5, 0.0)})
    counts = counts_of(beside_a_prompt(letters, 9.0, calls=wrong))
    assert (counts.late_gaps, counts.longest_gap_s) == (3, 2.5 + 13 * 6.0)  # 13 pieces were thought to fit
    assert counts.predicted_s < counts.calls_s
    counts = counts_of(beside_a_prompt(letters, 9.0))
    assert counts.predicted_s == pytest.approx(counts.calls_s)


@pytest.mark.parametrize("calls", [CALLS, None])
def test_the_bound_is_some_steps_of_one_text_where_nobody_gives_it(
    letters: Letters, calls: BatchPrediction | None
) -> None:
    engine = engine_of(letters, 2, calls=calls)
    run_all(engine, GenerationRequest("a", {"max_new_tokens": 60}))
    assert counts_of(engine).bound_s == pytest.approx(BOUND_STEPS * 2.0)


def test_a_text_that_ends_gives_its_row_back_at_once(letters: Letters) -> None:
    engine = engine_of(letters, 3)
    run_all(engine, *(GenerationRequest(text, {"max_new_tokens": n}) for text, n in (("a", 4), ("b", 9), ("c", 9))))
    rows = [len(call) for call in toys_of(engine).calls if isinstance(call, list)]
    assert rows == [3] * 4 + [2] * 5


def test_no_more_texts_are_begun_than_the_bound_allows(letters: Letters) -> None:
    """Two rows take 2.25 s, three 2.5: with a bound between them the third text waits in the queue."""
    requests = [GenerationRequest(text, {"max_new_tokens": 9}) for text in "abcde"]
    for bound_s, most in ((2.3, 2), (2.6, 4)):
        engine = engine_of(letters, 5, between_tokens_s=bound_s, calls=CALLS)
        assert all(client.last == Ended() for client in run_all(engine, *requests))
        assert max(len(call) for call in toys_of(engine).calls if isinstance(call, list)) == most


def test_a_text_that_a_slot_holds_is_not_read_again(letters: Letters) -> None:
    engine = engine_of(letters, 2)
    first, other = "hello" * 10, "b" * 30

    def ask(*prompts: str) -> list[int]:
        engine._jobs.stopping = False
        clients = run_all(engine, *(GenerationRequest(prompt, {"max_new_tokens": 4}) for prompt in prompts))
        return [e.counts.kept for client in clients for e in client.events if isinstance(e, ChoiceEnded)]

    assert ask(first, other) == [0, 0]
    length = len(letters(chats=False).generate(first).prompt_ids)
    assert ask(other + "c", first) == [30, length - 1]  # each in its own slot, and the last token gives the next
    assert ask("d") == [0]


def test_choices_have_seeds_that_follow(letters: Letters) -> None:
    options: Any = {"max_new_tokens": 12, "temperature": 1.5, "seed": 3}
    [client, _] = run_all(
        engine_of(letters), GenerationRequest("hello", options, choices=3), GenerationRequest("abc", options)
    )
    alone = [letters(chats=False).generate("hello", **{**options, "seed": 3 + i}).read() for i in range(3)]
    assert [client.text(i) for i in range(3)] == alone
    assert len(set(alone)) == 3
    assert [e.choice for e in client.events if isinstance(e, ChoiceEnded)] == [0, 1, 2]


def test_a_conversation_goes_through_the_template(letters: Letters) -> None:
    messages = [{"role": "user", "content": "hello"}]
    expected = letters().chat(messages, max_new_tokens=8).read()
    [client] = run_all(engine_of(letters), GenerationRequest(Chat(messages), {"max_new_tokens": 8}))
    assert client.text() == expected


def test_full_slots_and_a_full_queue(letters: Letters) -> None:
    """Two at work and one that waits; a request that is cancelled at work gives its slot to that one."""
    engine = engine_of(letters, 2, waiting=1)
    third = Client()

    def leave(client: Client) -> None:
        if len(client.text()) == 5:
            job.cancel()
            assert engine.snapshot().waiting == 1
        if isinstance(client.last, Failed):
            assert len(client.text()) == 5

    def end(client: Client) -> None:
        if isinstance(client.last, Ended):
            engine.stop()

    job = engine.submit(GenerationRequest("hello", {"max_new_tokens": 390}), Client(leave))
    engine.submit(GenerationRequest("abc", {"max_new_tokens": 100}), Client(end))
    engine.submit(GenerationRequest("b", {"max_new_tokens": 10}), third)
    with pytest.raises(QueueFull):
        engine.submit(GenerationRequest("c"), Client())
    engine.run()
    assert third.text() == letters(chats=False).generate("b", max_new_tokens=10).read()
    outcomes = {"answered": 2, "cancelled": 1, "refused": 0, "failed": 0, "queue_full": 1}
    assert engine.snapshot().outcomes == outcomes
    with pytest.raises(EngineEnding):
        engine.submit(GenerationRequest("d"), Client())


def test_an_answer_may_take_so_long_and_no_longer(letters: Letters) -> None:
    [client] = run_all(engine_of(letters, answer_s=-1.0), GenerationRequest("hello", {"max_new_tokens": 100}))
    assert client.failed.kind == TOOK_TOO_LONG


def test_stopping_tells_those_that_run_and_those_that_wait(letters: Letters) -> None:
    engine = engine_of(letters, 2)
    clients = [Client(lambda client: engine.stop() if isinstance(client.last, TextPiece) else None) for _ in range(3)]
    for client in clients:
        engine.submit(GenerationRequest("hello", {"max_new_tokens": 100}), client)
    engine.run()
    assert [client.failed.kind for client in clients] == [ENDING] * 3
    assert engine.snapshot().outcomes["failed"] == 3


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("", {}, "the prompt is empty"),
        ([99999], {}, "the prompt has token id 99999"),
        ("a" * 500, {}, "the prompt has 500 tokens, the target's context is 400: shorten it"),
        (Chat([{"role": "user", "content": "x"}]), {}, "a conversation needs a chat template"),
        ("a", {"top_p": 0.0}, "top_p must be above 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_alone(letters: Letters, prompt: Any, options: Any, said: str) -> None:
    engine = engine_of(letters, chats=False)
    first, second = run_all(engine, GenerationRequest(prompt, options), GenerationRequest("hello"))
    assert first.events == [first.failed]
    assert first.failed.kind == (PROMPT_TOO_LONG if "the target's context" in said else REFUSED)
    assert first.failed.message.startswith(said)
    assert second.last == Ended()
    assert engine._pool.free == 3


def test_a_row_that_is_not_finite_ends_its_own_text_alone(letters: Letters, capsys: pytest.CaptureFixture[str]) -> None:
    poison = 70
    bad, good = run_all(
        engine_of(letters, poison=poison),
        GenerationRequest([poison], {"max_new_tokens": 9}),
        GenerationRequest("hello", {"max_new_tokens": 20}),
    )
    assert bad.failed.kind == FAULT
    assert "not finite after 1 tokens" in bad.failed.message
    assert bad.failed.message in capsys.readouterr().err
    assert good.text() == letters(chats=False).generate("hello", max_new_tokens=20).read()


def test_a_fault_is_told_without_its_text_and_the_next_are_answered(
    letters: Letters, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = engine_of(letters, 2)
    toys_of(engine).fault = ValueError("/home/secret")
    first, second, third = run_all(engine, *(GenerationRequest(text, {"max_new_tokens": 5}) for text in "abc"))
    for client in (first, second):
        assert client.failed.kind == FAULT
        assert "secret" not in client.failed.message
    assert capsys.readouterr().err.count("internal error (answering a request): ValueError: /home/secret") == 1
    assert third.text() == letters(chats=False).generate("c", max_new_tokens=5).read()


def test_the_engine_waits_for_requests_and_a_signal_ends_the_wait(letters: Letters) -> None:
    engine = engine_of(letters, 2, waiting=0)
    thread = threading.Thread(target=engine.run)
    thread.start()
    for _ in range(3):
        done = threading.Event()
        client = Client(lambda client, done=done: done.set() if client.last == Ended() else None)  # type: ignore[misc]
        engine.submit(GenerationRequest("hello", {"max_new_tokens": 5}), client)
        assert done.wait(60)
    engine.stop()
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def compiled(tiny_slots: Path) -> Iterator[Session]:
    with load_folder(tiny_slots, {"mode": "off"}) as session:
        yield session


def test_a_compiled_target_under_load(compiled: Session) -> None:
    """Eighteen texts of mixed lengths in six slots have the tokens of single runs."""
    rng = np.random.default_rng(1)
    vocab = compiled.models.target.vocab
    asked: list[tuple[list[int], Any]] = []
    for i in range(18):
        length = (1, 33, 60, 7, 32, 12)[i % 6]
        sampled = {"temperature": 0.9, "seed": i} if i % 3 == 0 else {}
        asked.append((rng.integers(0, vocab, length).tolist(), {"max_new_tokens": 2 + 7 * i % 30, **sampled}))
    expected = []
    for ids, options in asked:
        answer = compiled.answer(ids, **options)
        expected.append((answer.read(), answer.stop_reason, len(answer.token_ids)))
    assert compiled.slots is not None
    engine = BatchEngine(compiled, compiled.slots, 16, 60.0, drafts=True)
    found = []
    for client in run_all(engine, *(GenerationRequest(ids, options) for ids, options in asked)):
        ended = client.events[-2]
        assert isinstance(ended, ChoiceEnded)
        found.append((client.text(), ended.reason, ended.counts.generated))
    assert found == expected
    assert len({text for text, _, _ in expected}) > 10
    counts = counts_of(engine)
    assert counts.predicted_s > 0  # the plan has the very calls of the model
    assert counts.tokens == sum(n for _, _, n in expected)


def test_logprobs_under_load_are_those_of_single_runs(compiled: Session) -> None:
    rng = np.random.default_rng(2)
    asked: list[tuple[list[int], Any]] = [
        (
            rng.integers(0, 500, 5 + 13 * i % 40).tolist(),
            {"max_new_tokens": 7, "logprobs": 2, "temperature": 0.9 * (i % 2), "seed": i},
        )
        for i in range(9)
    ]
    expected = []
    for ids, options in asked:
        answer = compiled.answer(list(ids), **options)
        text = answer.read()
        expected.append((text, [one.logprob for one in answer.logprobs]))
    assert compiled.slots is not None
    engine = BatchEngine(compiled, compiled.slots, 16, 60.0)
    clients = run_all(engine, *(GenerationRequest(ids, options, show_tokens=True) for ids, options in asked))
    for client, (text, logprobs) in zip(clients, expected, strict=True):
        told = [token for event in client.events if isinstance(event, TextPiece) for token in event.tokens]
        assert client.text() == text
        assert [token.logprob for token in told] == logprobs[: len(told)]  # the same bits
        assert len(told) >= len(logprobs) - 1  # of the end of text none is told
        assert all(len(token.top) == 2 for token in told)
    assert expected[0][1] != expected[2][1]


class Counting(Slots):
    """Slots that count what is fed: tokens in chunks, and rows."""

    def __init__(self, slots: Slots) -> None:
        self._slots, self.cache = slots, slots.cache
        self.vocab, self.context, self.name = slots.vocab, slots.context, slots.name
        self.slots, self.row_widths, self.read_widths = slots.slots, slots.row_widths, slots.read_widths
        self.prefill_widths = slots.prefill_widths
        self.read, self.written = 0, 0

    def slot(self, slot: int) -> Model:
        return _CountedSlot(self, self._slots.slot(slot))

    def rows(self, rows: Sequence[Row]) -> Outputs:
        self.written += len(rows)
        return self._slots.rows(rows)


class _CountedSlot(Model):
    def __init__(self, counts: Counting, model: Model) -> None:
        self._counts, self._model = counts, model
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        self._counts.read += len(ids)
        return self._model.submit(ids, pos, outputs, last)


def alone(session: Session, ids: list[int], options: Any) -> str:
    return session.answer(ids, **options).read()


def forget(session: Session) -> None:
    """An engine would begin with what the session has read."""
    assert isinstance(session.models.target, KeptPrefix)
    session.models.target.forget(0)


def test_a_beginning_in_common_is_read_once_and_changes_no_bit(compiled: Session) -> None:
    """Twelve requests of 45 tokens in common and two of their own, in six slots: 45 + 12 * 2 are fed, not 12 * 47."""
    rng = np.random.default_rng(5)
    shared = rng.integers(0, 500, 45).tolist()
    asked: list[tuple[list[int], Any]] = [
        ([*shared, i, i], {"max_new_tokens": 9, "temperature": 0.8 * (i % 2), "seed": i}) for i in range(12)
    ]
    expected = [alone(compiled, ids, options) for ids, options in asked]
    forget(compiled)
    assert compiled.slots is not None
    slots = Counting(compiled.slots)
    engine = BatchEngine(compiled, slots, 16, 60.0)
    clients = run_all(engine, *(GenerationRequest(ids, options) for ids, options in asked))
    assert [client.text() for client in clients] == expected
    ended = [event for client in clients for event in client.events if isinstance(event, ChoiceEnded)]
    assert [event.counts.kept for event in ended] == [0] + [45] * 11
    assert slots.read + slots.written == 45 + 12 * 2 + sum(event.counts.generated - 1 for event in ended)
    assert engine.snapshot().cache_rows_used < 6 * (47 + 8) - 4 * 32  # a block of 32 rows lies in memory once
    without = Counting(compiled.slots)
    without.cache = None  # the negative control: rows cannot be had from other slots
    run_all(BatchEngine(compiled, without, 16, 60.0), *(GenerationRequest(ids, options) for ids, options in asked))
    assert without.read + without.written - slots.read - slots.written >= 5 * 45


def test_the_answers_to_one_request_read_its_prompt_once(compiled: Session) -> None:
    """Nine choices in six slots."""
    prompt, options = np.random.default_rng(6).integers(0, 500, 40).tolist(), {"max_new_tokens": 6, "temperature": 0.9}
    expected = [alone(compiled, prompt, {**options, "seed": 3 + i}) for i in range(9)]
    forget(compiled)
    assert compiled.slots is not None
    slots = Counting(compiled.slots)
    [client] = run_all(
        BatchEngine(compiled, slots, 16, 60.0), GenerationRequest(prompt, {**options, "seed": 3}, choices=9)
    )
    assert [client.text(i) for i in range(9)] == expected
    assert len(set(expected)) > 3
    assert slots.read + slots.written == 40 + 8 + 9 * 5  # the last token of the prompt gives each its own first one
    assert [isinstance(event, Started) for event in client.events].count(True) == 1


def test_a_choice_that_fails_ends_its_request_and_no_other(letters: Letters) -> None:
    engine = engine_of(letters, 4, poison=70)
    bad, good = run_all(
        engine,
        GenerationRequest([70], {"max_new_tokens": 9}, choices=3),
        GenerationRequest("b" * 30, {"max_new_tokens": 5}),
    )
    assert bad.failed.kind == FAULT
    assert sum(isinstance(event, (Ended, Failed)) for event in bad.events) == 1
    assert good.text() == letters(chats=False).generate("b" * 30, max_new_tokens=5).read()
    assert engine._pool.free == 4


def test_a_cancelled_request_begins_no_more_choices(letters: Letters) -> None:
    engine = engine_of(letters, 2)

    def leave(client: Client) -> None:
        if len(client.text()) == 3:
            job.cancel()
        if isinstance(client.last, Failed):
            engine.stop()

    client = Client(leave)
    job = engine.submit(GenerationRequest("hello", {"max_new_tokens": 50}, choices=5), client)
    engine.run()
    assert {event.choice for event in client.events if isinstance(event, TextPiece)} <= {0, 1}
    assert engine.snapshot().outcomes["cancelled"] == 1
    assert engine._pool.free == 2


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_requests(tiny_slots: Path) -> None:
    """In a process of its own: what other tests left behind comes and goes in the memory of this one."""
    root = Path(__file__).resolve().parents[4]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests/support'}", "PYTHONMALLOC": "malloc"}
    script = Path(__file__).with_name("many_requests.py")
    done = subprocess.run([sys.executable, str(script), str(tiny_slots)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["answered"] + seen["cancelled"], seen["failed"]) == (2300, 0)
    assert seen["heap_bytes"] < 500_000  # 250 bytes a request
    assert seen["control_heap_bytes"] > 1_900_000  # the negative control: 1,000 bytes kept of each


@pytest.mark.parametrize(
    ("asked", "slots", "bound_s"),
    [
        (Requests(8, 30, 20), 8, 9.0),
        (Requests(7, 33, 12), 3, 20.0),
        (Requests(5, 1, 9), 5, 2.6),
        (Requests(4, 100, 6), 4, None),
        (Requests(8, 60, 12, 48), 8, 20.0),
        (Requests(8, 60, 12, 44), 3, None),  # a chunk has rows of the first one's own
        (Requests(6, 41, 7, 41), 6, 12.0),  # one prompt: its last token is read by each
        (Requests(4, 20, 5, 7), 4, 30.0),  # too few rows to be copied
    ],
)
def test_rounds_take_what_the_cost_model_counts_out(
    letters: Letters, asked: Requests, slots: int, bound_s: float | None
) -> None:
    """On the clock of the calls the engine takes exactly as long as predicted; with other calls it does not."""
    engine = engine_of(letters, slots, between_tokens_s=bound_s, calls=CALLS, rows_to_share=True)
    own = asked.prompt_tokens - asked.shared_tokens
    prompts = [[69] * asked.shared_tokens + [70 + i] * own for i in range(asked.count)]
    run_all(engine, *(GenerationRequest(ids, {"max_new_tokens": asked.new_tokens}) for ids in prompts))
    counts, found = counts_of(engine), throughput(asked, slots, CALLS, bound_s)
    assert counts.tokens == asked.count * asked.new_tokens
    tokens = engine.snapshot().tokens
    assert tokens.prompt - tokens.kept == asked.read_tokens
    assert counts.busy_s == pytest.approx(found.seconds)
    assert counts.longest_gap_s == pytest.approx(found.longest_gap_s)
    assert counts.rows / counts.computed_rows == pytest.approx(found.rows_filled)
    slower = BatchPrediction(
        {n: (1.1 * s, 0.0) for n, (s, _) in CALLS.row_calls.items()},
        {n: (1.1 * s, 0.0) for n, (s, _) in CALLS.read_calls.items()},
    )
    again = throughput(asked, slots, slower, None if bound_s is None else 1.1 * bound_s)
    assert again.seconds == pytest.approx(1.1 * counts.busy_s)  # the negative control


def test_drafts_make_fewer_rounds_where_rows_are_to_spare(letters: Letters) -> None:
    """A text that repeats itself: alone it drafts, and beside seven others there is no row to spare."""
    request = GenerationRequest("hello", {"max_new_tokens": 120})
    for texts, drafting in ((1, True), (8, False)):
        plain, with_drafts = (engine_of(letters, texts, calls=CALLS, drafts=drafts) for drafts in (False, True))
        found = [[client.text() for client in run_all(e, *[request] * texts)] for e in (plain, with_drafts)]
        assert found[0] == found[1]
        counts, tokens = counts_of(with_drafts), with_drafts.snapshot().tokens
        assert (tokens.accepted > 30) == drafting
        assert (counts.busy_s < 0.9 * counts_of(plain).busy_s) == drafting
        assert tokens.rounds + tokens.accepted == tokens.generated - texts


class Guesses(TextDrafts):
    """Drafts anything at all."""

    rng = np.random.default_rng(0)

    def offer(self, tokens: Sequence[int], most: int, branches: bool = False) -> Offer:
        self._match = Match(2, self.rng.choice([*range(64, 70), tokens[-1]], max(0, min(most, 5))).tolist())
        self._acceptances("ngram-2", 0)
        return Offer(0.9, len(self._match.tokens))


def test_whatever_is_drafted_a_seed_gives_the_text_of_the_target_alone(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the law of the samples is the target's, too: each token is drawn from its distribution, with that seed."""
    monkeypatch.setattr("hetero_sd.runtime.serve.round_drafts.TextDrafts", Guesses)
    asked: list[Any] = [{"max_new_tokens": 25, "temperature": 1.2, "seed": seed} for seed in range(12)]
    alone = [letters(chats=False).generate("hello", **options).read() for options in asked]
    engine = engine_of(letters, 2, calls=CALLS, drafts=True)
    assert [client.text() for client in run_all(engine, *(GenerationRequest("hello", o) for o in asked))] == alone
    tokens = engine.snapshot().tokens
    assert 0 < tokens.accepted < tokens.drafted
    assert len(set(alone)) == 12  # the negative control: other seeds give other texts
