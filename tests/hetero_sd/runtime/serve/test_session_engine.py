"""The engine alone: order, bounds, cancellation, and how every request ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hetero_sd.runtime.model.protocol import NotFiniteError
from hetero_sd.runtime.serve.engine import (
    ENDING,
    FAULT,
    PROMPT_TOO_LONG,
    REFUSED,
    TOOK_TOO_LONG,
    ChoiceEnded,
    Ended,
    EngineEnding,
    Event,
    Failed,
    GenerationRequest,
    QueueFull,
    Started,
    TextPiece,
)
from hetero_sd.runtime.serve.session_engine import SessionEngine
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.chat_template import Chat
from targets.opencl.runtime import OpenCLError


def run_all(engine: SessionEngine, *requests: GenerationRequest) -> list[list[Event]]:
    """The events of requests that wait before the engine runs, in one thread: it stops with the last one's end."""
    events: list[list[Event]] = [[] for _ in requests]

    def deliver_to(number: int) -> Callable[[Event], None]:
        def deliver(event: Event) -> None:
            events[number].append(event)
            if number == len(requests) - 1 and isinstance(event, (Ended, Failed)):
                engine.stop()

        return deliver

    for number, request in enumerate(requests):
        engine.submit(request, deliver_to(number))
    engine.run()
    return events


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, TextPiece) and e.choice == choice)


def test_the_text_is_that_of_the_session(letters: Callable[..., Session]) -> None:
    expected = letters(chats=False).generate("hello", max_new_tokens=8)
    engine = SessionEngine(letters(), 4, 60.0)
    [events] = run_all(engine, GenerationRequest("hello", {"max_new_tokens": 8}))
    assert text_of(events) == expected.read()
    assert len(expected.text) == 8
    assert events[0] == Started(len(expected.prompt_ids))
    assert isinstance(events[-2], ChoiceEnded)
    assert (events[-2].reason, events[-2].counts.generated, events[-1]) == ("length", 8, Ended())
    [other] = run_all(SessionEngine(letters(), 4, 60.0), GenerationRequest("hell", {"max_new_tokens": 8}))
    assert text_of(other) != expected.text  # the negative control


def test_a_conversation_goes_through_the_template(letters: Callable[..., Session]) -> None:
    messages = [{"role": "user", "content": "hello"}]
    expected = letters().chat(messages, max_new_tokens=8).read()
    [events] = run_all(SessionEngine(letters(), 4, 60.0), GenerationRequest(Chat(messages), {"max_new_tokens": 8}))
    assert text_of(events) == expected
    assert expected != letters(chats=False).generate("hello", max_new_tokens=8).read()


def test_choices_have_seeds_that_follow(letters: Callable[..., Session]) -> None:
    options: Any = {"max_new_tokens": 12, "temperature": 1.5, "seed": 3}
    [events] = run_all(SessionEngine(letters(), 4, 60.0), GenerationRequest("hello", options, choices=3))
    alone = [letters(chats=False).generate("hello", **{**options, "seed": 3 + i}).read() for i in range(3)]
    assert [text_of(events, i) for i in range(3)] == alone
    assert len(set(alone)) == 3
    assert [e.choice for e in events if isinstance(e, ChoiceEnded)] == [0, 1, 2]


def test_requests_are_answered_in_order(letters: Callable[..., Session]) -> None:
    session = letters()
    engine, order = SessionEngine(session, 4, 60.0), list[str]()
    answer = session.answer
    session.answer = lambda ids, **more: (order.append(session.text.decode(ids)), answer(ids, **more))[1]  # type: ignore
    run_all(engine, *(GenerationRequest(text) for text in ("c", "a", "b")))
    assert order == ["c", "a", "b"]


def test_a_full_queue_refuses_and_a_cancelled_request_frees_its_place(letters: Callable[..., Session]) -> None:
    engine = SessionEngine(letters(), 1, 60.0)
    events: list[Event] = []
    first = engine.submit(GenerationRequest("a"), events.append)
    engine.submit(GenerationRequest("b"), events.append)
    with pytest.raises(QueueFull):
        engine.submit(GenerationRequest("c"), events.append)
    assert engine.snapshot().waiting == 2
    first.cancel()
    first.cancel()
    assert (engine.snapshot().waiting, engine.snapshot().outcomes["cancelled"]) == (1, 1)
    [last] = run_all(engine, GenerationRequest("c"))
    assert isinstance(last[-1], Ended)
    assert engine.snapshot().outcomes == {"answered": 2, "cancelled": 1, "refused": 0, "failed": 0, "queue_full": 1}
    with pytest.raises(EngineEnding):
        engine.submit(GenerationRequest("d"), events.append)


def test_a_cancelled_answer_ends_after_the_token_that_is_made(letters: Callable[..., Session]) -> None:
    engine = SessionEngine(letters(), 4, 60.0)
    events: list[Event] = []

    def deliver(event: Event) -> None:
        events.append(event)
        if len(text_of(events)) == 3:
            job.cancel()
        if isinstance(event, (Ended, Failed)):
            engine.stop()

    job = engine.submit(GenerationRequest("hello", {"max_new_tokens": 100}), deliver)
    engine.run()
    assert len(text_of(events)) == 3
    assert engine.snapshot().tokens.generated == 4
    assert engine.snapshot().outcomes == {"answered": 0, "cancelled": 1, "refused": 0, "failed": 0, "queue_full": 0}
    assert engine.snapshot().recent is None  # speeds are of whole answers


def test_an_answer_may_take_so_long_and_no_longer(letters: Callable[..., Session]) -> None:
    [events] = run_all(SessionEngine(letters(), 4, -1.0), GenerationRequest("hello", {"max_new_tokens": 100}))
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == TOOK_TOO_LONG


def test_stopping_tells_those_that_run_and_those_that_wait(letters: Callable[..., Session]) -> None:
    engine = SessionEngine(letters(), 4, 60.0)
    running: list[Event] = []
    waiting: list[Event] = []

    def deliver(event: Event) -> None:
        running.append(event)
        if isinstance(event, TextPiece):
            engine.stop()

    engine.submit(GenerationRequest("hello", {"max_new_tokens": 100}), deliver)
    engine.submit(GenerationRequest("hello"), waiting.append)
    engine.run()
    assert isinstance(running[-1], Failed)
    assert running[-1].kind == ENDING
    assert waiting == [running[-1]]
    assert engine.snapshot().tokens.generated < 5


@pytest.mark.parametrize(
    ("prompt", "chats", "said"),
    [
        ("", True, "the prompt is empty"),
        ([99999], True, "the prompt has token id 99999"),
        ("a" * 500, True, "the prompt has 500 tokens, the target's context is 400: shorten it"),
        (Chat([{"role": "user", "content": "x"}]), False, "a conversation needs a chat template"),
    ],
)
def test_what_cannot_be_answered_is_refused_alone(
    letters: Callable[..., Session], prompt: Any, chats: bool, said: str
) -> None:
    engine = SessionEngine(letters(chats=chats), 4, 60.0)
    first, second = run_all(engine, GenerationRequest(prompt), GenerationRequest("hello"))
    [failed] = first
    assert isinstance(failed, Failed)
    assert failed.kind == (PROMPT_TOO_LONG if "the target's context" in said else REFUSED)
    assert failed.message.startswith(said)
    assert isinstance(second[-1], Ended)
    outcomes = engine.snapshot().outcomes
    assert (outcomes["refused"], outcomes["answered"], outcomes["failed"]) == (1, 1, 0)


def test_a_fault_is_told_without_its_text_and_the_next_is_answered(
    letters: Callable[..., Session], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = letters()
    engine = SessionEngine(session, 4, 60.0)
    answer, failures = session.answer, [ValueError("/home/secret"), NotFiniteError("target")]

    def failing(ids: list[int], **more: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return answer(ids, **more)

    monkeypatch.setattr(session, "answer", failing)
    first, second, third = run_all(engine, *(GenerationRequest("hello") for _ in range(3)))
    assert isinstance(first[-1], Failed)
    assert first[-1].kind == FAULT
    assert "secret" not in first[-1].message
    assert "internal error (answering a request): ValueError: /home/secret" in capsys.readouterr().err
    assert isinstance(second[-1], Failed)
    assert second[-1].kind == FAULT
    assert "not finite" in second[-1].message
    assert isinstance(third[-1], Ended)


def test_a_gpu_that_fails_ends_the_engine(letters: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session = letters()
    engine = SessionEngine(session, 4, 60.0)
    running: list[Event] = []
    waiting: list[Event] = []

    def failing(ids: list[int], **more: Any) -> Any:
        raise OpenCLError("device lost")

    monkeypatch.setattr(session, "answer", failing)
    engine.submit(GenerationRequest("hello"), running.append)
    engine.submit(GenerationRequest("hello"), waiting.append)
    with pytest.raises(OpenCLError, match="device lost"):
        engine.run()
    assert [type(event) for event in (*running, *waiting)] == [Failed, Failed]
    assert [event.kind for event in (*running, *waiting) if isinstance(event, Failed)] == [FAULT, ENDING]
    with pytest.raises(EngineEnding):
        engine.submit(GenerationRequest("hello"), running.append)


def test_the_engine_waits_for_requests_and_a_signal_ends_the_wait(letters: Callable[..., Session]) -> None:
    engine = SessionEngine(letters(), 0, 60.0)
    thread = threading.Thread(target=engine.run)
    thread.start()
    done = threading.Event()
    engine.submit(GenerationRequest("hello"), lambda event: done.set() if isinstance(event, Ended) else None)
    assert done.wait(60)
    engine.stop()
    thread.join(60)
    assert not thread.is_alive()
