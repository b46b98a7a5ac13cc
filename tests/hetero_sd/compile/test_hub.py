"""hf:ORG/NAME against a server on this machine that answers as the hub does."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from tokenizers import Tokenizer

from hetero_sd.cli import main
from hetero_sd.compile import hub
from hetero_sd.compile.hub import choose_file, fetch
from hetero_sd.compile.hub_name import HubSource
from hetero_sd.compile.tokenizer_files import find_tokenizer
from hetero_sd.progress import Progress
from hetero_sd.reference import Cache, ReferenceModel
from passes.onnx import canonicalise
from targets.errors import UserError

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
REPO, COMMIT = "maker/tiny-llama", "0123456789abcdef0123456789abcdef01234567"
QUIET = Progress(quiet=True)


class Server(ThreadingHTTPServer):
    """A hub with one repository; `stated` are sizes that it lies about, `asked` the files that were fetched.

    `gated` is the part of the addresses where it asks for consent first, `status` what it answers to everything.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.stated, self.asked = files, dict[str, int](), list[str]()
        self.gated, self.status, self.commit = "", 0, COMMIT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, files = self.path.partition("?")[0], self.server.files
        if self.server.status:
            return self.send(self.server.status, b'{"error": "come back\\nlater"}', {}, body)
        if self.server.gated and self.server.gated in path:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "agree first"}, body)
        resolve = next((r for v in ("main", "v1") if path.startswith(r := f"/{REPO}/resolve/{v}/")), None)
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/v1"):
            listed = [{"rfilename": n, "size": self.server.stated.get(n, len(x))} for n, x in files.items()]
            return self.send(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": listed}).encode(), {}, body)
        if path.startswith(f"/api/models/{REPO}/revision/"):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        if resolve is None:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        name = path.removeprefix(resolve)
        if body:
            self.server.asked.append(name)
        tag = hashlib.sha1(files[name]).hexdigest()
        return self.send(200, files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": self.server.commit}, body)

    def send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def repository() -> dict[str, bytes]:
    """As hubs have it: the tokenizer outside, the models in onnx/, one of them with its weights beside it."""
    plain, int4 = EXPORTS / "llama-drafter-dynamo-fp32", EXPORTS / "llama-genai-int4"
    files = {n: (plain / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")}
    files["onnx/model.onnx"] = (plain / "model.onnx").read_bytes()
    files["onnx/model_q4.onnx"] = (int4 / "model.onnx").read_bytes()
    files["onnx/model.onnx.data"] = (int4 / "model.onnx.data").read_bytes()
    return {**files, "additional_chat_templates/tools.jinja": b"{{ messages }}", "pytorch_model.bin": b"not fetched"}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(repository())
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def get(server: Server, cache: Path, text: str = f"hf:{REPO}", variant: str | None = None) -> Path:
    return fetch(text, variant, QUIET, endpoint=server.url, cache=cache)


def test_the_model_and_what_lies_beside_it(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path)
    assert path.read_bytes() == server.files["onnx/model.onnx"]
    assert canonicalise(path, 32).facts.layers == 1
    assert find_tokenizer(None, [path], ()).eos_ids == (1,)
    assert sorted(server.asked) == sorted(
        server.files.keys() - {"pytorch_model.bin", "onnx/model_q4.onnx", "onnx/model.onnx.data"}
    )


def test_a_variant_with_its_weights_and_again_without_the_hub(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = get(server, tmp_path, variant="q4")
    facts = canonicalise(path, 32).facts
    assert (facts.weight_dtype, facts.layers) == ("int4", 2)
    assert "onnx/model.onnx.data" in server.asked
    before = list(server.asked)
    assert get(server, tmp_path, variant="q4") == path
    assert server.asked == before  # the cache has it
    server.shutdown()
    server.server_close()
    assert get(server, tmp_path, variant="q4") == path
    with pytest.raises(
        UserError, match=r"no model\.onnx in the cache \(no connection .*\); it has onnx/model_q4\.onnx$"
    ):
        get(server, tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert get(server, tmp_path, variant="q4") == path
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and it is not in the cache$"):
        get(server, tmp_path / "another")
    (path.parent / "model.onnx.data").unlink()
    said = r"onnx/model\.onnx\.data are not in the cache \(HF_HUB_OFFLINE is set\)$"
    with pytest.raises(UserError, match=said):
        get(server, tmp_path, variant="q4")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hf:maker/other", "the hub has no such repository, or it is private: `hf auth login`"),
        (f"hf:{REPO}@v2", "the repository has no revision v2"),
        (f"hf:{REPO}/onnx/none.onnx", r"there is no onnx/none\.onnx; it has onnx/model\.onnx, onnx/model_q4\.onnx"),
    ],
)
def test_what_is_not_there(server: Server, tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^{text}: {reason}$"):
        get(server, tmp_path, text)
    assert server.asked == []


def test_a_revision_and_a_gated_repository(server: Server, tmp_path: Path) -> None:
    assert COMMIT in str(get(server, tmp_path, f"hf:{REPO}/onnx/model.onnx@v1"))
    for server.gated in ("/api/", "/resolve/"):  # the hub itself lists a gated repository's files to everybody
        with pytest.raises(
            UserError, match=rf"^hf:{REPO}: its makers ask you to agree to terms first, .*; then `hf auth login`$"
        ):
            get(server, tmp_path / "another")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, r"the hub answers with status 500 \(come back later\)"),
        (429, r"the hub answers with status 429 \(come back later\)"),
        (401, r"the hub answers with status 401 \(come back later\): `hf auth login`"),
    ],
)
def test_a_hub_that_does_not_want_to(server: Server, tmp_path: Path, status: int, said: str) -> None:
    server.status = status
    with pytest.raises(UserError, match=f"^hf:{REPO}: {said}$"):
        get(server, tmp_path)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/x", "onnx/../../x", "a\\b", "new\nline"])
def test_a_name_that_leads_out_of_the_repository(server: Server, tmp_path: Path, name: str) -> None:
    server.files[name] = b"{}"
    with pytest.raises(UserError, match=r"which leads out of its folder$"):
        get(server, tmp_path)
    assert server.asked == []


def test_sizes_are_those_that_the_hub_states(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stated["onnx/model.onnx"] = 1
    with pytest.raises(UserError, match=r"onnx/model\.onnx.*(has \d+ bytes, the hub states 1|[Cc]onsistency)"):
        get(server, tmp_path)
    server.stated["onnx/model.onnx"] = 1 << 60
    with pytest.raises(UserError, match=rf"{1 << 60} bytes to fetch, \d+ are free in .*: set HF_HOME to another disk$"):
        get(server, tmp_path / "another")
    server.stated = {"tokenizer.json": 1 << 40}
    with pytest.raises(UserError, match=r"tokenizer\.json has \d+ bytes, which no tokenizer has$"):
        get(server, tmp_path / "third")


def test_a_repository_that_changes_meanwhile(server: Server, tmp_path: Path) -> None:
    server.commit = "f" * 40
    with pytest.raises(UserError, match="was changed while it was fetched: run the command again"):
        get(server, tmp_path)


def test_weights_that_were_not_published(server: Server, tmp_path: Path) -> None:
    del server.files["onnx/model.onnx.data"]
    with pytest.raises(UserError, match=r"its weights onnx/model\.onnx\.data are not in the repository"):
        get(server, tmp_path, variant="q4")


def test_which_file_is_meant() -> None:
    source = HubSource("a/b", None, None)
    names = ["onnx/decoder_model.onnx", "onnx/decoder_model_merged.onnx", "onnx/decoder_model_merged_q4.onnx"]
    assert choose_file(names, source, None, "x") == "onnx/decoder_model_merged.onnx"
    assert choose_file(names, source, "q4", "x") == "onnx/decoder_model_merged_q4.onnx"
    assert choose_file([*names, "model.onnx"], source, None, "x") == "model.onnx"
    with pytest.raises(UserError, match=r"^x: there is no variant int8; it has onnx/decoder_model\.onnx, "):
        choose_file(names, source, "int8", "x")
    with pytest.raises(UserError, match=r"leave --variant out$"):
        choose_file(names, HubSource("a/b", names[0], None), "q4", "x")
    with pytest.raises(UserError, match="it has no ONNX file at all"):
        choose_file(["model.safetensors"], source, None, "x")


def test_the_command_takes_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The names reach the client; what it gives back is compiled as any other path is."""
    asked: list[tuple[str, str | None]] = []

    def instead(text: str, variant: str | None, progress: Progress) -> Path:
        asked.append((text, variant))
        return tmp_path / "none.onnx"

    monkeypatch.setattr(hub, "fetch", instead)
    command = [
        "compile",
        "hf:a/b",
        "--draft",
        "hf:c/d",
        "--variant",
        "q4",
        "--board",
        "rpi4",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2
    assert asked == [("hf:a/b", "q4"), ("hf:c/d", "q4")]
    assert "none.onnx" in capsys.readouterr().err
    assert main(["compile", "a.onnx", "--variant", "q4", "--board", "rpi4", "--out", str(tmp_path / "o")]) == 2
    assert "no model here is hf:ORG/NAME" in capsys.readouterr().err


NAMED = {  # the other commands that take models: what is refused of a file that is none says what was opened
    "verify": ["verify", "BUNDLE", "--against", "MODEL"],
    "inspect": ["inspect", "MODEL"],
    "explain": ["explain", "MODEL", "--board", "rpi4"],
    "predict": ["predict", "MODEL", "--board", "rpi4"],
    "predict the drafter": ["predict", "config.json", "--draft", "MODEL", "--board", "rpi4"],
    "sweep": ["sweep", "--pair", "config.json,MODEL", "--board", "rpi4", "--out", "BUNDLE.csv"],
    "acceptance": ["acceptance", "MODEL", "early-exit:1", "--prompts", "p.txt"],
    "acceptance of the drafter": ["acceptance", "config.json", "MODEL", "--prompts", "p.txt"],
    "calibrate": ["calibrate", "m.json", "--target", "MODEL", "--board", "rpi4", "--out", "BUNDLE.toml"],
}


@pytest.mark.parametrize("command", NAMED)
def test_every_other_command_takes_them(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The name and the variant reach the client; a file does not, and there a variant is refused."""
    asked: list[tuple[str, str | None]] = []

    def instead(text: str, variant: str | None, progress: Progress) -> Path:
        asked.append((text, variant))
        raise UserError("as the client says")

    monkeypatch.setattr(hub, "fetch", instead)
    for model, more, said in (
        ("hf:a/b", ["--variant", "q4"], "as the client says"),
        ("hf:a/b/x.onnx@v1", [], "as the client says"),
        ("a.onnx", ["--variant", "q4"], "no model here is hf:ORG/NAME"),
        ("a.onnx", [], ""),
    ):
        words = [w.replace("MODEL", model).replace("BUNDLE", str(tmp_path / "b")) for w in NAMED[command]]
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert asked == [("hf:a/b", "q4"), ("hf:a/b/x.onnx@v1", None)]


def test_a_config_is_fetched_alone_and_priced_by_the_repositorys_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And so is an ONNX file of the cache; the command to compile it names the hub, not the cache."""
    monkeypatch.setattr(hub, "fetch", functools.partial(fetch, endpoint=server.url, cache=tmp_path))
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    server.files["config.json"] = json.dumps({**config, "vocab_size": 100, "num_hidden_layers": 2}).encode()
    assert main(["predict", f"hf:{REPO}/config.json", "--board", "rpi4"]) == 0
    printed = capsys.readouterr().out
    assert server.asked == ["config.json"]
    assert f"hetero-sd compile hf:{REPO} --board rpi4" in printed
    assert "tiny-llama float16" in printed
    assert main(["predict", f"hf:{REPO}", "--variant", "q4", "--board", "rpi4", "--context", "128"]) == 0
    printed = capsys.readouterr().out
    assert f"hetero-sd compile hf:{REPO}/onnx/model_q4.onnx --board rpi4" in printed
    assert "tiny-llama/model_q4.onnx" in printed
    assert str(tmp_path) not in printed


def test_what_needs_no_model_is_refused_before_any_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("fetched"))
    for words, said in (
        (["compile", "hf:a/b", "--board", "rpi9", "--out", str(tmp_path / "o")], "board 'rpi9' is not known"),
        (["compile", "hf:a/b", "--board", "rpi4", "--out", str(tmp_path)], "already exists"),
        (["predict", "hf:a/b"], "--board is missing"),
        (["predict", "hf:a/b", "--board", "rpi4", "--weights", "int8"], "--weights: an ONNX file says"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_name_to_an_answer(server: Server, tmp_path: Path) -> None:
    """The commands of a user, with the settings of the hub's client: compiled by name, run when the hub is gone."""
    settings = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    out, prompts = tmp_path / "bundle", tmp_path / "p.jsonl"

    def command(*words: str | Path) -> str:
        given = [sys.executable, *map(str, words)]
        return subprocess.run(given, env=settings, capture_output=True, text=True, check=True).stdout

    command("-m", "hetero_sd", "compile", f"hf:{REPO}", "--board", "host", "--context", "32", "--out", out)
    assert "onnx/model.onnx" in server.asked
    server.shutdown()
    server.server_close()
    asked = [40, 41, 42]
    prompts.write_text(json.dumps({"token_ids": asked}))
    line = json.loads(command(out / "run.py", "--prompts", prompts, "--max-new-tokens", "4", "--json"))
    ids = line["token_ids"]
    reference = ReferenceModel(EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx", threads=1)
    chosen = reference.forward([*asked, *ids[:-1]], Cache()).argmax(-1).tolist()
    assert ids == chosen[2:]
    assert ids != chosen[1:-1]  # a token off is another text
    tokenizer = Tokenizer.from_str(server.files["tokenizer.json"].decode())
    assert line["text"] == tokenizer.decode(ids)
