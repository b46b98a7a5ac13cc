"""Toy models: their logits depend on the whole text in the cache, so a wrong rollback shows in the output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.policy import Choice, FixedGamma
from hetero_sd.runtime.decode.stopping import DraftLimit, Prices
from hetero_sd.runtime.manifest import read_manifest, write_manifest
from hetero_sd.runtime.model.kept_prefix import kept_prefixes
from hetero_sd.runtime.model.protocol import CHOICE, ContextFull, Done, Model, Models, NotFiniteError
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.tokenizer import FILES, Text
from targets.opencl import runtime as opencl_runtime
from targets.zig import zig, zig_environment

ROOT = Path(__file__).resolve().parents[3]
EXPORTS = ROOT / "tests" / "data" / "exports"


class TableModel(Model):
    """Logits = table[state]; the state is a hash of all tokens up to the row, read back from the KV rows."""

    def __init__(self, table: np.ndarray, context: int = 64, name: str = "toy") -> None:
        self.table = np.asarray(table, np.float32)  # [states, vocab]
        self.vocab = self.table.shape[1]
        self.context = context
        self.name = name
        self.rows: list[int] = []
        self.fed: list[tuple[int, int]] = []  # (pos, n) of every call

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Done:
        ids = [int(i) for i in ids]
        assert len(ids) >= 1
        assert 0 <= pos <= len(self.rows), "a gap in the KV cache"
        assert all(0 <= i < self.vocab for i in ids), "an id the model does not know"
        if pos + len(ids) > self.context:
            raise ContextFull(f"{pos} + {len(ids)} > {self.context}")
        self.fed.append((pos, len(ids)))
        self.rows[pos:] = ids
        logits = np.stack([self.table[self._state(pos + i + 1)] for i in range(len(ids))])
        if not np.isfinite(logits).all():
            raise NotFiniteError(self.name)
        return Done(logits[-1:] if last else logits)

    def _state(self, length: int) -> int:
        state = 0
        for token in self.rows[:length]:
            state = (5 * state + 3 * token + 1) % 10007
        return state % len(self.table)


def make_pair(
    seed: int,
    noise: float = 1.0,
    vocab: int = 6,
    states: int = 11,
    context: int = 64,
    draft_vocab: int | None = None,
    draft_context: int | None = None,
) -> tuple[TableModel, TableModel]:
    """Return a target and a drafter that agrees with it the more, the smaller the noise."""
    rng = np.random.default_rng(seed)
    draft_vocab = draft_vocab or vocab
    table = 2.0 * rng.standard_normal((states, max(vocab, draft_vocab)))
    noisy = table + noise * rng.standard_normal(table.shape)
    return (
        TableModel(table[:, :vocab], context, "target"),
        TableModel(noisy[:, :draft_vocab], draft_context or context, "draft"),
    )


@pytest.fixture(scope="session")
def pair() -> Callable[..., tuple[TableModel, TableModel]]:
    return make_pair


class ByConfidence(FixedGamma):
    """Ends drafts at confidences below a threshold, whatever that costs."""

    def __init__(self, gamma: int, least: float) -> None:
        super().__init__(gamma)
        self._least = least

    def choose(self, offers: Sequence[Offer]) -> Choice:
        made = DraftLimit(lambda c: float(c >= self._least), Prices(1.0, range(self.gamma + 1), 0.0), 1.5)
        return replace(super().choose(offers), limit=made)


@pytest.fixture(scope="session")
def by_confidence() -> type[ByConfidence]:
    return ByConfidence


@pytest.fixture(scope="session")
def table_model() -> type[TableModel]:
    return TableModel


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2 style: a token is one byte, or one of a few merged words; <|end|> is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ġw", "o")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|user|>"])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama-2 style: words with a leading mark for the space, other characters as <0x..> bytes."""
    words = ["<unk>", "<s>", "▁", "a", "b", "▁a", "▁b", "é"]
    vocab = {word: i for i, word in enumerate([*words, *(f"<0x{i:02X}>" for i in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers_by_kind() -> dict[str, Tokenizer]:
    return {"byte level": byte_level_tokenizer(), "byte fallback": byte_fallback_tokenizer()}


CHAT_TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"


@pytest.fixture
def letters(tmp_path: Path, tokenizers_by_kind: dict[str, Tokenizer]) -> Callable[..., Session]:
    """Makes sessions whose toy models choose among the letters a to d by the whole text before, four of them."""
    folder = tmp_path / "letters"
    folder.mkdir()
    tokenizers_by_kind["byte level"].save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    def make(context: int = 400, drafts: bool = False, chats: bool = True, **more: Any) -> Session:
        names = FILES if chats else FILES[:1]
        text = Text(lambda name: folder / name if name in names and (folder / name).exists() else None)
        table = np.full((11, text.vocab), -9.0)
        table[:, 64:68] = np.random.default_rng(3).standard_normal((11, 4))
        models = Models(TableModel(table, context, "target"), TableModel(table, context, "draft") if drafts else None)
        policy = FixedGamma(2) if drafts else None
        return Session(kept_prefixes(models), text, Request(4), policy=policy, **more)

    return make


@pytest.fixture(scope="session")
def fake_opencl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The stand-in for an OpenCL driver, tests/targets/opencl/fake_opencl.cc, compiled."""
    library = tmp_path_factory.mktemp("driver") / "libOpenCL.so"
    source = ROOT / "tests/targets/opencl/fake_opencl.cc"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", f"-I{opencl_runtime.SOURCES}"]
    command = [*zig("c++", opencl_runtime.machine()), *flags, str(source), "-o", str(library)]
    subprocess.run(command, check=True, env=zig_environment(str(library.parent)))
    return str(library)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled pair for this machine: a target of two layers, a drafter of one, a context of 64; without Python."""
    from hetero_sd.cli import main

    out = tmp_path_factory.mktemp("tiny_pair") / "bundle"
    target, draft = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32"
    options = ["--tokenizer", target, "--board", "host", "--context", "64", "--gamma", "1", "--out", out]
    assert main([*map(str, ["compile", target / "model.onnx", "--draft", draft / "model.onnx", *options])]) == 0
    shutil.rmtree(out / "python")
    found = read_manifest(out / "manifest.json")
    write_manifest(out, found.models, found.plan, found.tokenizer, found.board)
    return out


@pytest.fixture(scope="session")
def tiny_slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled target for this machine whose caches hold six sequences of 64 tokens; without Python."""
    from hetero_sd.cli import main

    out, target = tmp_path_factory.mktemp("tiny_slots") / "bundle", EXPORTS / "llama-dynamo-fp32"
    options = ["--tokenizer", target, "--board", "host", "--context", "64", "--slots", "6", "--out", out]
    assert main([*map(str, ["compile", target / "model.onnx", *options])]) == 0
    shutil.rmtree(out / "python")
    found = read_manifest(out / "manifest.json")
    write_manifest(out, found.models, found.plan, found.tokenizer, found.board)
    return out


class Worker:
    """A process of bundle_worker.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "bundle_worker.py")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TVM_NUM_THREADS": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def run(self, folder: Path, *arguments: str, without_facts: bool = False) -> dict[str, Any]:
        """How `run.py` ends on a bundle: {"code", "out", "err"}."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        question = {"folder": str(folder), "arguments": arguments, "without_facts": without_facts}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Runs bundles in processes of their own, one after another."""
    worker = Worker()
    yield worker
    worker.process.kill()
    worker.process.wait()
