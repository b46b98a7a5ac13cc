"""Replies, whole and streamed, and clients that leave or do not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hetero_sd.runtime.serve.limits import Limits
from hetero_sd.runtime.session import Session

Serve = Callable[..., Any]


def events(text: str) -> list[Any]:
    """Of a stream that ended well."""
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def test_a_stream_has_the_text_of_the_whole_reply(serve: Serve) -> None:
    with serve(drafts=True) as served:
        whole = served.complete(n=2, temperature=1.3, seed=5).json
        reply = served.complete(n=2, temperature=1.3, seed=5, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *pieces, last = events(reply.text)
    for choice in whole["choices"]:
        mine = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine] == [*[None] * (len(mine) - 1), choice["finish_reason"]]
    assert len({choice["text"] for choice in whole["choices"]}) == 2
    assert {piece["id"] for piece in pieces} == {last["id"]}
    assert all(piece["usage"] is None for piece in pieces)
    assert last["choices"] == []
    first, second = whole["usage"], last["usage"]
    assert first.pop("prompt_tokens_details") == {"cached_tokens": 0}
    assert second.pop("prompt_tokens_details") == {"cached_tokens": first["prompt_tokens"] - 1}
    assert first == second
    assert (first["completion_tokens"], first["total_tokens"]) == (16, 16 + first["prompt_tokens"])
    assert 0 < first["speculation"]["accepted_tokens"] <= first["speculation"]["drafted_tokens"]


def test_a_chat_has_messages(serve: Serve, letters: Callable[..., Session]) -> None:
    messages = [{"role": "user", "content": "hello"}]
    expected = letters().chat(messages, max_new_tokens=8).read()
    with serve() as served:
        body = {"messages": messages, "max_tokens": 8}
        whole = served.ask("/v1/chat/completions", body).json
        pieces = events(served.ask("/v1/chat/completions", {**body, "stream": True}).text)
    [choice] = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected}
    assert (whole["object"], choice["finish_reason"]) == ("chat.completion", "length")
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == expected
    assert deltas[-1] == {}
    assert "usage" not in pieces[-1]


def test_a_stop_text_ends_the_answer(serve: Serve) -> None:
    with serve() as served:
        text = served.complete().json["choices"][0]["text"]
        cut = served.complete(stop=[text[3:5]]).json["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(text[3:5])], "stop")


def test_a_full_queue_is_told_and_those_that_wait_are_answered(serve: Serve) -> None:
    with serve(most_waiting=1) as served:
        served.gate.shut()
        clients = [served.open_stream()]
        served.wait_until(lambda: served.engine.snapshot().running == 1)
        clients.append(served.open_stream())
        served.wait_until(lambda: served.engine.snapshot().waiting == 1)
        reply = served.complete()
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert reply.error["type"] == "rate_limit_error"
        assert 'requests_total{outcome="queue_full"} 1\n' in served.ask("/metrics").text
        served.gate.open()
        for client in clients:
            assert b'"finish_reason": "length"' in read_to_done(client)
        served.wait_until(lambda: served.engine.snapshot().running == 0)
        assert served.complete().status == 200


def read_to_done(client: Any) -> bytes:
    said = b""
    while b"[DONE]\n\n\r\n" not in said:
        part = client.recv(65536)
        assert part
        said += part
    client.close()
    return said


def test_a_client_that_vanishes_frees_the_engine(serve: Serve) -> None:
    with serve() as served:
        for after in ("the first text", "nothing"):
            served.gate.shut()
            steps = served.gate.steps
            client = served.open_stream(max_tokens=300)
            if after == "the first text":
                served.gate.permit(3)
                while b'"text"' not in client.recv(65536):
                    pass
            served.wait_until(lambda: served.engine.snapshot().running)
            job = served.engine._jobs._at_work[0]
            client.close()
            served.wait_until(lambda job=job: job.cancelled)
            served.gate.open()
            served.wait_until(lambda: not served.engine.snapshot().running)
            assert served.gate.steps - steps < 10
        outcomes = served.engine.snapshot().outcomes
        assert (outcomes["answered"], outcomes["cancelled"]) == (0, 2)
        steps = served.gate.steps
        assert served.complete(max_tokens=300).status == 200  # the negative control: a client that stays
        assert served.gate.steps - steps >= 299


def test_a_client_that_vanishes_while_it_waits_frees_its_place(serve: Serve) -> None:
    with serve() as served:
        served.gate.shut()
        first, second = served.open_stream(), None
        served.wait_until(lambda: served.engine.snapshot().running == 1)
        second = served.open_stream()
        served.wait_until(lambda: served.engine.snapshot().waiting == 1)
        second.close()
        served.wait_until(lambda: served.engine.snapshot().waiting == 0)
        served.gate.open()
        read_to_done(first)


def test_a_client_that_does_not_read_holds_nobody_up_and_is_left(serve: Serve, to_the_end: Any) -> None:
    with serve(limits=Limits(write_s=0.1)) as served:
        client = served.open_stream(max_tokens=390, n=16)
        served.wait_until(lambda: sum(served.engine.snapshot().outcomes.values()) == 1)
        assert served.complete().status == 200
        served.wait_until(lambda: served.connections == 0)
        received = to_the_end(client)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"[DONE]" not in received


def test_a_client_that_reads_late_has_it_all(serve: Serve) -> None:
    """The negative control of the one that does not read."""
    with serve() as served:
        client = served.open_stream(max_tokens=390, n=16)
        served.wait_until(lambda: served.engine.snapshot().outcomes["answered"] == 1)
        assert read_to_done(client).count(b'"finish_reason": "length"') == 16


def test_an_answer_that_takes_too_long_is_told(serve: Serve) -> None:
    with serve(limits=Limits(answer_s=0.0)) as served:
        reply = served.complete()
        assert (reply.status, reply.error["type"]) == (504, "server_error")
        *_, last = events(served.complete(stream=True).text)
        assert "the answer took more than 0 s" in last["error"]["message"]
