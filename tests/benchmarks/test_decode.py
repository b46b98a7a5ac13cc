"""benchmarks/decode.py runs to its end, with peers that are there; what it measures decides nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = '''
"""What benchmarks/peers.py calls of llama-cpp-python, and checks of what it is told: of steps all logits are wanted."""
from types import SimpleNamespace

llama_log_callback, llama_log_set = (lambda call: call), (lambda call, data: None)
llama_model_default_params, llama_context_default_params = SimpleNamespace, SimpleNamespace
llama_model_load_from_file = lambda path, facts: path if path == b"model.gguf" else None
llama_init_from_model = lambda model, facts: facts
llama_get_memory = lambda context: []


def llama_batch_init(n, embd, sequences):
    assert (embd, sequences) == (0, 1)
    facts = {name: [0] * n for name in ("token", "pos", "n_seq_id", "logits")}
    return SimpleNamespace(**facts, seq_id=[[9] for _ in range(n)])


def llama_memory_seq_rm(memory, sequence, first, end):
    assert (sequence, end) == (0, -1)
    del memory[first:]


def llama_decode(facts, batch):
    n = batch.n_tokens
    assert (facts.n_threads, facts.n_threads_batch) == (2, 2) and n <= facts.n_ctx
    assert batch.n_seq_id == [1] * n and batch.seq_id == [[0]] * n
    assert batch.pos == list(range(batch.pos[0], batch.pos[0] + n)) and sum(batch.logits) == (n if n <= 8 else 1)
    return 0
'''
MODEL = ROOT / "tests" / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"


@pytest.mark.slow
def test_it_measures_each_width(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    command = [sys.executable, "benchmarks/decode.py", "--repeats", "1", "--model", str(MODEL), "--json"]
    command += ["--threads", "2", "--gguf", "model.gguf", "--peer", "onnxruntime", "--peer", "llama.cpp"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [measured["n"] for measured in found["rounds"]] == ["1", "4", "8", "prompt 128", "prompt 512"]
    names = {"ours", "onnxruntime", "no spinning", "llama.cpp"}
    assert all(set(measured["times_s"]) == names for measured in found["rounds"])
    assert all(min(seconds) > 0 for measured in found["rounds"] for seconds in measured["times_s"].values())
    for line in found["table"]:
        assert line["ratio"]["ours"] == line["least_ratio"]["ours"] == 1.0


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_peers_that_are_missing_say_how_they_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peers import peers_of

    def asked() -> None:
        raise AssertionError("a file is made for a peer that is not there")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, missing = peers_of(("llama.cpp", "onnxruntime-genai"), MODEL, 1, tmp_path, asked)
    assert not found
    assert missing == [
        "without llama.cpp: it is not installed; pip install llama-cpp-python",
        "without onnxruntime-genai: it is not installed; pip install onnxruntime-genai",
    ]
    with pytest.raises(SystemExit, match="--peer gguf: there is no such peer"):
        peers_of(("gguf",), MODEL, 1, tmp_path, asked)


def test_llama_cpp_needs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peer_llama_cpp import LlamaCpp
    from peers import peers_of

    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    found, missing = peers_of(("llama.cpp",), MODEL, 2, tmp_path, lambda: None)
    assert not found
    assert missing == ["without llama.cpp: --gguf names the same model for it"]
    with pytest.raises(SystemExit, match="cannot load other"):
        LlamaCpp(Path("other.gguf"), 2)
    monkeypatch.delitem(sys.modules, "llama_cpp")


def test_what_genai_is_told_of_a_file() -> None:
    from peers import genai_config

    config = genai_config(MODEL, 3)["model"]
    decoder = config["decoder"]
    assert decoder["session_options"]["intra_op_num_threads"] == 3
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 32)
    assert decoder["inputs"]["position_ids"] == "position_ids"
