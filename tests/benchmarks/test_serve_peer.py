"""benchmarks/serve_peer.py: each sequence gets the tokens that follow its own rows; the bindings are a test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 11
LLAMA_CPP = '''
"""What benchmarks/serve_peer.py calls of llama-cpp-python: after the tokens of a sequence comes their weighted sum."""
import ctypes
from types import SimpleNamespace

GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1
llama_log_callback, llama_log_set = (lambda call: call), (lambda call, data: None)
llama_model_default_params, llama_context_default_params = SimpleNamespace, SimpleNamespace
llama_model_load_from_file = lambda path, facts: path if path == b"model.gguf" else None
llama_model_get_vocab, llama_vocab_n_tokens = (lambda model: model), (lambda vocab: 11)
llama_get_memory, llama_memory_clear = (lambda context: context.rows), (lambda rows, data: rows.clear())


def llama_init_from_model(model, facts):
    assert (facts.n_ctx, facts.n_seq_max, facts.type_k, facts.type_v) == (48, 3, 1, 1)
    assert (facts.n_threads, facts.n_threads_batch) == (2, 2)
    return SimpleNamespace(rows={}, logits={})


def llama_batch_init(n, embd, sequences):
    facts = {name: [0] * n for name in ("token", "pos", "n_seq_id", "logits")}
    return SimpleNamespace(**facts, seq_id=[[9] for _ in range(n)])


def llama_decode(context, batch):
    context.logits.clear()
    for i in range(batch.n_tokens):
        rows = context.rows.setdefault(batch.seq_id[i][0], [])
        assert batch.pos[i] == len(rows) and batch.n_seq_id[i] == 1
        rows.append(batch.token[i])
        if batch.logits[i]:
            numbers = (ctypes.c_float * 11)()
            numbers[sum(token * (at + 1) for at, token in enumerate(rows)) % 11] = 1.0
            context.logits[i] = numbers
    return 0


def llama_get_logits_ith(context, i):
    return context.logits[i]
'''


def test_each_sequence_gets_its_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    from serve_peer import LlamaCppSlots

    with pytest.raises(SystemExit, match="cannot load other"):
        LlamaCppSlots(Path("other.gguf"), 3, 16, "float16", 2)
    peer = LlamaCppSlots(Path("model.gguf"), 3, 16, "float16", 2)
    prompts = [[1, 2, 3], [4], [5, 6]]
    found = peer.answer(prompts, 4).tokens
    assert found == [followed(prompt, 4) for prompt in prompts]
    assert found != [followed(prompt, 4) for prompt in prompts[::-1]]
    assert peer.answer(prompts[1:], 4).tokens == found[1:]  # what was there before is forgotten
    monkeypatch.delitem(sys.modules, "llama_cpp")


def followed(prompt: list[int], new: int) -> list[int]:
    """What the bindings of the test make of a prompt."""
    tokens = [*prompt]
    for _ in range(new):
        tokens.append(sum(token * (at + 1) for at, token in enumerate(tokens)) % VOCAB)
    return tokens[len(prompt) :]
