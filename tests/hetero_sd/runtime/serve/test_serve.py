"""`run.py --serve` on a compiled bundle: the official client, texts that are run.py's, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from requirements import only_where

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.manifest import read_manifest, write_manifest
from hetero_sd.runtime.run import main
from hetero_sd.runtime.serve.batch_engine import slots_at_a_time
from hetero_sd.runtime.serve.serve import ServeRequest, bind, serve
from hetero_sd.runtime.session import Session
from targets.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
TEXT = "The quick brown fox"
_RUN = "import sys; from hetero_sd.runtime.run import main; sys.exit(main(sys.argv[1], sys.argv[2:]))"


@pytest.fixture(scope="module")
def bundle(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair with a chat template."""
    folder = tmp_path_factory.mktemp("served") / "pair"
    shutil.copytree(tiny_pair, folder)
    (folder / "tokenizer/chat_template.jinja").write_text(TEMPLATE)
    found = read_manifest(folder / "manifest.json")
    write_manifest(folder, found.models, found.plan, found.tokenizer, found.board)
    return folder


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[openai.OpenAI]:
    """The official client of a server that Ctrl-C ends well."""
    arguments = [str(bundle), "--serve", "--port", "0", "--token", "secret", "--max-new-tokens", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", _RUN, *arguments], stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    found = re.fullmatch(r"run\.py: pair is served at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", said)
    assert found, said + process.stderr.read().decode()
    with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="secret", max_retries=0) as client:
        yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
        process.stderr.close()


@pytest.fixture(scope="module")
def expected(bundle: Path, worker: Any) -> Callable[..., str]:
    """What `run.py` answers."""

    def ask(*more: str) -> str:
        done = worker.run(bundle, "--prompt", TEXT, "--json", "--max-new-tokens", "12", *more)
        assert done["code"] == 0, done["err"]
        text: str = json.loads(done["out"])["text"]
        return text

    return ask


def test_greedy_completions_are_those_of_run(client: openai.OpenAI, expected: Callable[..., str]) -> None:
    text = expected("--no-chat-template")
    whole = client.completions.create(model="pair", prompt=TEXT, temperature=0)
    assert whole.choices[0].text == text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    pieces = client.completions.create(model="pair", prompt=TEXT, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text
    assert text != client.completions.create(model="pair", prompt=f"{TEXT} x").choices[0].text  # the negative control


def test_greedy_chats_are_those_of_run(client: openai.OpenAI, expected: Callable[..., str]) -> None:
    text = expected()
    messages: Any = [{"role": "user", "content": TEXT}]
    whole = client.chat.completions.create(model="pair", messages=messages)
    assert whole.choices[0].message.content == text
    usage = {"include_usage": True}
    pieces = list(client.chat.completions.create(model="pair", messages=messages, stream=True, stream_options=usage))  # type: ignore[call-overload]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == text
    assert pieces[-1].usage.completion_tokens == 12
    assert pieces[-1].usage.speculation["drafted_tokens"] >= pieces[-1].usage.speculation["accepted_tokens"]
    assert text != expected("--no-chat-template")


def test_samples_with_a_seed_are_those_of_run(client: openai.OpenAI, expected: Callable[..., str]) -> None:
    texts = [expected("--no-chat-template", "--temperature", "1.2", "--top-p", "0.9", "--seed", s) for s in ("7", "8")]
    options: Any = {"temperature": 1.2, "top_p": 0.9, "seed": 7, "n": 2}
    reply = client.completions.create(model="pair", prompt=TEXT, **options)
    assert [choice.text for choice in reply.choices] == texts
    assert texts[0] != texts[1]


def test_the_client_has_logprobs(client: openai.OpenAI, bundle: Path) -> None:
    """Those of the target's logits, for drafted tokens, too; the texts of the tokens are the text."""
    reply = client.completions.create(model="pair", prompt=TEXT, logprobs=3, n=2, temperature=1.2, seed=7)
    assert reply.usage is not None
    assert reply.usage.speculation["drafted_tokens"] > 0  # type: ignore[attr-defined]
    with load_folder(bundle, {}) as session:
        assert session.text is not None
        prompt = session.text.encode(TEXT)
        for choice in reply.choices:
            answer = session.answer(list(prompt), max_new_tokens=12, temperature=1.2, seed=7 + choice.index)
            assert (answer.read(), len(answer.token_ids)) == (choice.text, 12)
            told = choice.logprobs
            assert told is not None
            assert told.tokens is not None
            count = len(told.tokens)
            assert "\ufffd" in session.text.decode(answer.token_ids[-1:]) or count == 12  # else it ends in a character
            assert count > 8
            assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(count)]
            logits = session.models.target.forward([*prompt, *answer.token_ids], 0)[len(prompt) - 1 : -1]
            expected = logits.astype(np.float64)
            expected -= np.log(np.exp(expected).sum(1, keepdims=True))
            shown = answer.token_ids[:count]
            np.testing.assert_allclose(told.token_logprobs, expected[range(count), shown], atol=1e-9)
            assert told.top_logprobs is not None
            for token, top, row in zip(shown, told.top_logprobs, expected[:count], strict=True):
                assert max(top.values()) == pytest.approx(row.max())  # texts that are no characters are one key
                assert set(np.round([*top.values()], 6)) <= set(np.round([*np.sort(row)[-3:], row[token]], 6))
    messages: Any = [{"role": "user", "content": TEXT}]
    asked: Any = {"model": "pair", "messages": messages, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked).choices[0]
    pieces = [piece.choices[0] for piece in client.chat.completions.create(**asked, stream=True)]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    streamed = [token for piece in pieces if piece.logprobs for token in piece.logprobs.content]
    assert streamed == whole.logprobs.content
    assert bytes(b for token in streamed for b in token.bytes or []).decode(errors="replace") == whole.message.content
    assert all(token.top_logprobs[0].logprob == token.logprob for token in streamed)  # greedy takes the best
    assert client.completions.create(model="pair", prompt=TEXT).choices[0].logprobs is None


def test_the_client_understands_the_errors(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["pair"]
    with pytest.raises(openai.BadRequestError, match="logprobs is not a whole number from 0 to 5") as caught:
        client.completions.create(model="pair", prompt=TEXT, logprobs=6)
    assert caught.value.param == "logprobs"
    with pytest.raises(openai.BadRequestError, match="the target's context is 64") as too_long:
        client.completions.create(model="pair", prompt="x " * 100)
    assert (caught.value.code, too_long.value.code) == (None, "context_length_exceeded")
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.completions.create(model="gpt", prompt=TEXT)
    with pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"):
        client.with_options(api_key="other").models.list()


def test_slots_are_for_sessions_that_draft_nothing(letters: Callable[..., Session]) -> None:
    slots: Any = object()
    assert slots_at_a_time(letters(slots=slots)) is slots
    assert slots_at_a_time(letters(slots=slots, drafts=True)) is None
    assert slots_at_a_time(letters()) is None


@pytest.mark.slow
def test_eight_clients_at_a_time_have_the_texts_of_run(tiny_slots: Path, worker: Any) -> None:
    """On loopback, in six slots: whole and streamed, greedy and sampled, of mixed lengths; then Ctrl-C."""
    arguments = [str(tiny_slots), "--serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", _RUN, *arguments], stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    url = re.fullmatch(r"run\.py: bundle is served at (\S+), 6 requests at a time \(Ctrl-C ends it\)\n", said)
    assert url, said + process.stderr.read().decode()
    prompts = [f"{TEXT} {'jumps ' * (3 * i)}" for i in range(8)]
    options: list[Any] = [
        {"max_tokens": 5 + 3 * i, **({"temperature": 1.1, "seed": i} if i % 3 == 2 else {})} for i in range(8)
    ]
    found: dict[int, str] = {}
    with openai.OpenAI(base_url=f"{url[1]}/v1", api_key="none", max_retries=0) as client:

        def ask(i: int) -> None:
            if i % 2:
                whole = client.completions.create(model="bundle", prompt=prompts[i], **options[i])
                found[i] = whole.choices[0].text
            else:
                pieces = client.completions.create(model="bundle", prompt=prompts[i], stream=True, **options[i])
                found[i] = "".join(piece.choices[0].text for piece in pieces)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    expected = {}
    for i, (prompt, option) in enumerate(zip(prompts, options, strict=True)):
        more = ["--temperature", "1.1", "--seed", str(i)] if "seed" in option else []
        more += ["--max-new-tokens", str(option["max_tokens"]), "--no-chat-template"]
        done = worker.run(tiny_slots, "--prompt", prompt, "--json", "--mode", "off", *more)
        assert done["code"] == 0, done["err"]
        expected[i] = json.loads(done["out"])["text"]
    assert found == expected
    assert len({*expected.values()}) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs(letters: Callable[..., Session], number: signal.Signals) -> None:
    request = ServeRequest("127.0.0.1", 0, None, 4, "toy", 0, Options(max_new_tokens=390))
    received: list[str] = []
    kept = signal.getsignal(number)
    with bind(request) as bound:
        port = bound.getsockname()[1]

        def ask() -> None:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client:
                try:
                    for piece in client.completions.create(model="toy", prompt="a" * 10, stream=True, n=16):
                        if not received:
                            os.kill(os.getpid(), number)
                        received.append(piece.choices[0].text)
                except openai.APIError as error:
                    if not received:
                        os.kill(os.getpid(), number)
                    received.append(error.message)

        thread = threading.Thread(target=ask)
        thread.start()
        serve(letters(), request, bound)
    thread.join(60)
    assert received[-1] == "the server ends: ask again later"
    assert 1 < len(received) < 16 * 390
    assert [t.name for t in threading.enumerate() if t.name == "http"] == []
    assert signal.getsignal(number) is kept


def test_an_address_that_cannot_be_had_is_refused_before_the_models_are_loaded(
    bundle: Path, tiny_slots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(bundle, ["--serve", "--port", port]) == 2
    said = capsys.readouterr().err
    assert said == f"run.py: error: --host 127.0.0.1 --port {port}: Address already in use\n"
    for folder, more in ((bundle, ()), (tiny_slots, ("--gamma", "3"))):  # of the second nothing is noted before it
        assert main(folder, ["--serve", "--host", "0.0.0.0", *more]) == 2
        said = capsys.readouterr().err
        assert said == (
            "run.py: error: --host 0.0.0.0 is reached from other machines: give --token, too, or leave it out\n"
        )


def test_other_machines_are_served_with_a_token() -> None:
    with bind(ServeRequest("0.0.0.0", 0, "secret", 4, "toy", 0, Options())) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    with pytest.raises(UserError, match="--host no such host --port 0: Name or service not known"):
        bind(ServeRequest("no such host", 0, "secret", 4, "toy", 0, Options()))


def test_http_does_not_stay_where_the_models_are_kept(letters: Callable[..., Session]) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    only_where(len(cpus) > 1, "one CPU")
    seen: list[set[int]] = []

    def look() -> None:
        while not (found := [t.native_id for t in threading.enumerate() if t.name == "http" and t.native_id]):
            time.sleep(0.01)
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            client.request("GET", "/health")
            client.getresponse()  # it runs, and so has chosen its CPUs
            client.close()
            seen.append(os.sched_getaffinity(found[0]))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    for given in (cpus, []):  # without them it stays: the negative control
        request = ServeRequest("127.0.0.1", 0, None, 4, "toy", 0, Options(), given)
        with bind(request) as bound:
            port = bound.getsockname()[1]
            thread = threading.Thread(target=look)
            thread.start()
            os.sched_setaffinity(0, cpus[:1])
            try:
                serve(letters(), request, bound)
            finally:
                os.sched_setaffinity(0, cpus)
        thread.join(60)
    assert seen == [set(cpus), set(cpus[:1])]


def test_an_http_thread_that_fails_ends_the_engine(
    letters: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(server: Any, sockets: Any = None) -> None:
        raise ValueError("no loop")

    monkeypatch.setattr("uvicorn.Server.serve", fail)
    request = ServeRequest("127.0.0.1", 0, None, 4, "toy", 0, Options())
    with bind(request) as bound, pytest.raises(ValueError, match="no loop"):
        serve(letters(), request, bound)


def test_a_bundle_without_text_is_not_served(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    shutil.rmtree(folder / "tokenizer")
    found = read_manifest(folder / "manifest.json")
    write_manifest(folder, found.models, found.plan, None, found.board)
    assert main(folder, ["--serve"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "run.py: error: the bundle has no tokenizer, so there is no text to serve: compile it with --tokenizer\n"
    )


def test_without_the_libraries_the_extra_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("hetero_sd.runtime.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(bundle, ["--serve"]) == 2
    said = capsys.readouterr().err
    needed = "pip install 'hetero-sd[serve]', or on a board pip install starlette uvicorn"
    assert said == f"run.py: error: --serve needs the package uvicorn: {needed}\n"
