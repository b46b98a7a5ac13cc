"""The whole path on a tiny pair, by the commands a user types: compile, run both ways, verify."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = ROOT / "tests" / "data" / "exports"
TARGET, DRAFT = EXPORTS / "llama-dynamo-fp32", EXPORTS / "llama-drafter-dynamo-fp32"


def command(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "bundle"
    pair = [TARGET / "model.onnx", "--draft", DRAFT / "model.onnx", "--tokenizer", TARGET]
    done = command(
        "-m", "hetero_sd", "compile", *pair, "--board", "host", "--context", "96", "--gamma", "4", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "gamma 4" in done.stdout
    return out


def answers(bundle: Path, prompts: Path, *options: str) -> list[dict[str, Any]]:
    done = command(bundle / "run.py", "--prompts", prompts, "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_speculation_gives_the_text_of_the_target(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The quick brown fox\nOnce upon a time there was\nx\n")
    # 90 tokens reach the context of 96 on some prompts, so the last rounds are short ones
    alone = answers(bundle, prompts, "--mode", "target-only", "--max-new-tokens", "90")
    for gamma in ("1", "4", "7"):
        drafted = answers(bundle, prompts, "--mode", "speculative", "--gamma", gamma, "--max-new-tokens", "90")
        assert [a["token_ids"] for a in drafted] == [a["token_ids"] for a in alone], f"gamma {gamma}"
        assert [a["text"] for a in drafted] == [a["text"] for a in alone]
        assert sum(a["stats"]["drafted"] for a in drafted) > 0
    assert len({tuple(a["token_ids"]) for a in alone}) == 3


def test_seeded_sampling_repeats(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"token_ids": [5, 6, 7]}\n')
    runs = [
        answers(bundle, prompts, "--temperature", "0.9", "--seed", seed, "--max-new-tokens", "20")[0]["token_ids"]
        for seed in ("1", "1", "2")
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
def test_verify_passes_and_notices_another_model(bundle: Path) -> None:
    done = command("-m", "hetero_sd", "verify", bundle, "--against", TARGET / "model.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    other = command("-m", "hetero_sd", "verify", bundle, "--against", EXPORTS / "qwen2-dynamo-fp32" / "model.onnx")
    assert other.returncode == 1
    assert other.stdout.startswith("FAIL")


def test_saved_logits_are_verified_elsewhere(bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "logits.safetensors"
    done = command(bundle / "run.py", "--prompt", "Once upon", "--max-new-tokens", "8", "--save-logits", saved)
    assert done.returncode == 0, done.stderr
    verify = ["-m", "hetero_sd", "verify", bundle, "--against", TARGET / "model.onnx", "--from"]
    assert command(*verify, saved).returncode == 0
    assert command(*verify, tmp_path / "missing").returncode == 2
