"""The paths by HTTP, and what a client is told when it asks in a wrong way."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_check import CHECK, dom_of, what_was_seen
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hetero_sd.runtime.serve.limits import Limits
from hetero_sd.runtime.session import Session

Serve = Callable[..., Any]


def test_health_and_models(serve: Serve) -> None:
    with serve() as served:
        assert served.ask("/health").json == {"status": "ok"}
        card = {"id": "toy", "object": "model", "created": 1700000000, "owned_by": "hetero-sd"}
        assert served.ask("/v1/models").json == {"object": "list", "data": [card]}
        assert served.ask("/v1/models/toy").json == card
        assert served.ask("/v1/models/gpt").error["code"] == "model_not_found"


def test_wrong_requests_are_told_in_openais_form(serve: Serve) -> None:
    with serve(limits=Limits(body_bytes=1000)) as served:
        for path, body, more, status, said in (
            ("/nothing", None, {}, 404, "there is no such path"),
            ("/v1/completions", None, {}, 405, "this path does not take that method"),
            ("/health", b"", {}, 405, "this path does not take that method"),
            ("/v1/completions", b"{", {}, 400, "the body is not valid JSON"),
            ("/v1/completions", {"prompt": "a", "foo": 1}, {}, 400, "foo is not supported"),
            ("/v1/completions", {"prompt": ""}, {}, 400, "the prompt is empty"),
            ("/v1/completions", {"prompt": "", "stream": True}, {}, 400, "the prompt is empty"),
            ("/v1/completions", {"prompt": "a" * 2000}, {}, 413, "the body has more than 1000 bytes"),
            ("/v1/completions", {"prompt": "a"}, {"content-type": "text/plain"}, 415, "not announced as JSON"),
            ("/v1/completions", {"prompt": "a"}, {"host": "evil.example"}, 403, "answers to localhost"),
            ("/v1/completions", {"prompt": "a", "model": "gpt"}, {}, 404, "there is no model 'gpt'"),
        ):
            reply = served.ask(path, body, headers=more)
            assert reply.status == status, (path, body)
            assert said in reply.error["message"]
            assert reply.error["type"] == "invalid_request_error"
        assert served.complete().status == 200  # and it goes on


def test_a_body_without_a_length_is_bounded_too(serve: Serve) -> None:
    with serve(limits=Limits(body_bytes=1000)) as served:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client = served.open_connection(
            head + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
        client.close()
        client = served.open_connection(head + b"Content-Length: " + b"9" * 50 + b"\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 4")
        client.close()


def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve, to_the_end: Any) -> None:
    with serve(limits=Limits(body_s=0.5)) as served:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client = served.open_connection(head + b'Content-Length: 50\r\n\r\n{"prompt"')
        said = to_the_end(client)  # which comes: the connection is closed
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 0.5 s" in said
        assert served.complete().status == 200


def test_a_token_is_asked_for(serve: Serve) -> None:
    with serve(token="secret") as served:
        reply = served.complete()
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert (reply.error["type"], reply.error["code"]) == ("authentication_error", "invalid_api_key")
        right, wrong = {"authorization": "Bearer secret"}, {"authorization": "Bearer Secret"}
        assert served.ask("/metrics", headers=wrong).status == 401
        assert served.ask("/metrics", headers=right).status == 200
        assert served.ask("/v1/completions", {"prompt": "hello"}, headers=right).status == 200
        assert (served.ask("/").status, served.ask("/health").status) == (200, 200)


def test_a_fault_is_told_without_a_traceback(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve() as served:

        def fail() -> None:
            raise ValueError("/home/secret")

        monkeypatch.setattr(served.engine, "snapshot", fail)
        reply = served.ask("/metrics")
        assert (reply.status, reply.error["type"]) == (500, "server_error")
        assert "secret" not in reply.text
        assert served.complete().status == 200
    said = capsys.readouterr().err
    assert "internal error (answering a request): ValueError: /home/secret" in said
    assert "Traceback" not in said


def test_the_page_is_whole_and_may_ask_this_server_alone(serve: Serve) -> None:
    with serve() as served:
        reply = served.ask("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", policy)
    assert re.findall(r"https?://|//[a-z]|@import|url\(", reply.text) == []
    assert len(re.findall("<script", reply.text)) == 1
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", reply.text)


def test_the_defaults_are_the_servers(serve: Serve, letters: Callable[..., Session]) -> None:
    with serve(defaults={"max_new_tokens": 3, "stop": ("x",)}) as served:
        reply = served.ask("/v1/completions", {"prompt": "hello"})
    assert reply.json["usage"]["completion_tokens"] == 3


# A page around the page: it asks a question as a person does, waits for the end of the answer, and looks at it.
DRIVER = """<!doctype html><style>:root{color-scheme:light dark}</style><body>
<iframe id="frame" src="/" style="border:0;width:WIDTHpx;height:9000px"></iframe>
<script>
const wait = ms => new Promise(done => setTimeout(done, ms));
const until = async holds => { while (!holds()) await wait(20); };
frame.onload = async () => {
  const page = frame.contentDocument, at = id => page.getElementById(id);
  const state = document.createElement("pre");
  await until(() => at("model").textContent === "toy" && at("numbers").children.length === 8);
  at("most").value = "30";
  at("text").value = "a <b>question</b>";
  at("ask").requestSubmit();
  await until(() => page.querySelector(".note") && at("numbers").textContent.includes("answers1"));
  state.id = "state";
  state.textContent = JSON.stringify({
    turns: [...page.querySelectorAll(".turn")].map(turn => turn.textContent),
    note: page.querySelector(".note").textContent, wrong: at("wrong").textContent,
    numbers: Object.fromEntries([...at("numbers").children].map(row => [...row.children].map(e => e.textContent))),
  });
  document.body.append(state);
  const check = page.createElement("script");
  check.textContent = CHECK;
  page.body.append(check);
};
</script></body>"""


def with_driver(width: int) -> Callable[[ASGIApp], ASGIApp]:
    """The server with a driver at /driver, and a page that may stand in its frame."""
    page = DRIVER.replace("WIDTH", str(width)).replace("CHECK", json.dumps(CHECK.read_text("utf-8")))

    def around(app: ASGIApp) -> ASGIApp:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            async def without_policy(message: Message) -> None:
                refused = (b"content-security-policy", b"x-frame-options")
                kept = [header for header in message.get("headers", []) if header[0] not in refused]
                await send({**message, **({"headers": kept} if "headers" in message else {})})

            if scope["path"] == "/driver":
                await HTMLResponse(page)(scope, receive, send)
            else:
                await app(scope, receive, without_policy)

        return application

    return around


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1300, False)])
def test_the_page_as_a_person_uses_it(
    browser: str, serve: Serve, letters: Callable[..., Session], tmp_path: Path, width: int, dark: bool
) -> None:
    expected = letters().chat([{"role": "user", "content": "a <b>question</b>"}], max_new_tokens=30).read()
    with serve(drafts=True, around=with_driver(width)) as served:
        dom = dom_of(browser, f"{served.url}/driver", tmp_path, dark, virtual_s=60)
    seen = what_was_seen(dom)
    assert seen["found"] == []
    assert (seen["width"], seen["dark"]) == (width, dark)
    assert seen["ground"] == ("rgb(18, 23, 28)" if dark else "rgb(255, 255, 255)")
    state = re.search(r'<pre id="state">(.*?)</pre>', dom, re.DOTALL)
    assert state
    found = json.loads(html.unescape(state[1]))
    assert found["turns"] == ["a <b>question</b>", expected]
    assert re.fullmatch(r"30 tokens, \d+ of \d+ drafted ones accepted", found["note"])
    assert (found["wrong"], found["numbers"]["tokens generated"]) == ("", "30")
    assert re.fullmatch(r"\d+ of 400", found["numbers"]["cache rows used"])


@pytest.mark.slow
def test_the_page_runs_under_its_own_policy(browser: str, serve: Serve, tmp_path: Path) -> None:
    """Its script runs and asks; and a script that is not its own does not (the negative control)."""
    with serve(token="secret") as served:
        dom = dom_of(browser, served.url, tmp_path, False, virtual_s=5)
        assert "the token is missing or wrong" in dom
    with serve() as served:
        assert "<title>toy</title>" in dom_of(browser, served.url, tmp_path, False, virtual_s=5)

    def changed(app: ASGIApp) -> ASGIApp:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            async def more(message: Message) -> None:
                if message["type"] == "http.response.body" and scope["path"] == "/":
                    message["body"] = message["body"].replace(b'"use strict";', b'"use strict"; ')
                headers = [h for h in message.get("headers", []) if h[0] != b"content-length"]
                await send({**message, **({"headers": headers} if "headers" in message else {})})

            await app(scope, receive, more)

        return application

    with serve(around=changed) as served:
        assert "<title>hetero_sd</title>" in dom_of(browser, served.url, tmp_path, False, virtual_s=5)
