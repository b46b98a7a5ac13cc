"""benchmarks/decode.py runs to its end, with peers that are there; what it measures decides nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = """#!/bin/sh
test "$2" = model.gguf -a "$4" = 2 -a "$8" = 5 || exit 3
echo '[{"n_prompt": '${12}', "n_gen": 0, "n_depth": '${14}', "samples_ns": [2000000, 1000000, 3000000]}]'
"""
MODEL = ROOT / "tests" / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"


@pytest.mark.slow
def test_it_measures_each_width(tmp_path: Path) -> None:
    bench = tmp_path / "llama-bench"
    bench.write_text(BENCH)
    bench.chmod(0o755)
    command = [sys.executable, "benchmarks/decode.py", "--repeats", "1", "--model", str(MODEL), "--json"]
    command += ["--threads", "2", "--gguf", "model.gguf", "--peer", "onnxruntime", "--peer", f"llama-bench={bench}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [measured["n"] for measured in found["rounds"]] == ["1", "4", "8", "prompt 128"]
    names = {"ours", "onnxruntime", "no spinning", "llama.cpp"}
    assert all(set(measured["times_s"]) == names for measured in found["rounds"])
    assert all(min(seconds) > 0 for measured in found["rounds"] for seconds in measured["times_s"].values())
    for line in found["table"]:
        assert line["ms"]["llama.cpp"] == 2.0
        assert line["ratio"]["ours"] == line["least_ratio"]["ours"] == 1.0


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_peers_that_are_missing_say_how_they_are_installed(tmp_path: Path) -> None:
    from peers import LlamaBench, peers_of

    found, missing = peers_of(("llama-bench",), MODEL, 1, tmp_path, None)
    assert not found
    assert missing == ["without llama.cpp: build it for this machine, then --peer llama-bench=PATH --gguf FILE"]
    with pytest.raises(SystemExit, match="--peer gguf: there is no such peer"):
        peers_of(("gguf",), MODEL, 1, tmp_path, None)
    broken = tmp_path / "llama-bench"
    broken.write_text("#!/bin/sh\necho first >&2; echo no model >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SystemExit, match="llama-bench failed: no model"):
        LlamaBench(broken, Path("x"), 1).times("1")


def test_what_genai_is_told_of_a_file() -> None:
    from peers import genai_config

    config = genai_config(MODEL, 3)["model"]
    decoder = config["decoder"]
    assert decoder["session_options"]["intra_op_num_threads"] == 3
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 32)
    assert decoder["inputs"]["position_ids"] == "position_ids"
