from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hetero_sd.cli import main
from hetero_sd.sweep import COLUMNS

CONFIG = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> str:
    (tmp_path / "big.json").write_text(json.dumps(CONFIG))
    (tmp_path / "small.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2}))
    return f"{tmp_path / 'big.json'},{tmp_path / 'small.json'}"


def test_a_row_for_every_point(pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep.csv"
    values = ["--board", "rpi5,rk3566", "--alpha", "0.1,0.9", "--context", "64,1024", "--weights", "float32"]
    assert main(["sweep", "--pair", pair, *values, "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * 2
    assert capsys.readouterr() == (f"8 points in {out}\n", "")  # no bar without a terminal, and no trace of one
    fits = [r for r in rows if not r["problem"]]
    assert {r["board"] for r in fits} == {"rpi5"}  # 4.9 GB do not fit the other's 3.5
    assert all("fits no memory of board rk3566" in r["problem"] for r in rows if r["board"] == "rk3566")
    speed = {(r["alpha"], r["context"]): float(r["tokens_per_s"]) for r in fits}
    assert speed["0.9", "64"] > speed["0.1", "64"]
    assert speed["0.9", "64"] > speed["0.9", "1024"]
    assert all(float(r["low"]) < float(r["tokens_per_s"]) < float(r["high"]) for r in fits)


def test_a_kv_cache_of_half_the_bytes_is_faster_in_long_contexts(pair: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    values = ["--board", "rpi5", "--alpha", "0.5", "--context", "64,8192", "--weights", "int4"]
    values += ["--kv", "float32,float16"]
    assert main(["sweep", "--pair", pair, *values, "--out", str(out), "--quiet"]) == 0
    speed = {(r["kv"], r["context"]): float(r["tokens_per_s"]) for r in csv.DictReader(out.open())}
    assert len(speed) == 4
    assert speed["float16", "8192"] > 1.05 * speed["float32", "8192"]
    assert speed["float16", "64"] == pytest.approx(speed["float32", "64"], rel=0.02)


def test_an_early_exit_is_a_drafter(pair: str, tmp_path: Path) -> None:
    out, target = tmp_path / "sweep.csv", pair.partition(",")[0]
    values = ["--board", "rpi5", "--alpha", "0.9", "--weights", "int4,float16"]
    assert main(["sweep", "--pair", f"{target},early-exit:2", *values, "--out", str(out), "--quiet"]) == 0
    (row,) = csv.DictReader(out.open())
    assert row["draft"].endswith("first 2 of 16 layers")
    assert row["mode"] != "target-only"
    assert main(["sweep", "--pair", pair, *values, "--out", str(out), "--quiet"]) == 0
    (other,) = csv.DictReader(out.open())
    assert float(other["memory_gb"]) > float(row["memory_gb"])  # which has weights of its own
    assert [r["target"].endswith(" int4") for r in (row, other)] == [False, False]  # two formats were asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--alpha", "0.5,2"], "--alpha 2 must lie between 0 and 1"),
        (["--alpha", "x"], "--alpha 'x' is not a number"),
        (["--context", "0"], "--context 0 must lie between 1 and 1048576"),
        (["--context", "0.5"], "--context '0.5' is not a whole number"),
        (["--board", "rpi6"], "board 'rpi6' is not known"),
        (["--pair", "a,b,c"], "give TARGET or TARGET,DRAFT"),
        (["--pair", "a,early-exit:x"], "--pair: 'early-exit:x' names no layer: give early-exit:K"),
        (["--weights", "int3"], "--weights 'int3'"),
        (["--kv", "float32,int3"], "--kv 'int3' is not a type of KV cache"),
    ],
)
def test_mistakes_end_in_one_line(
    pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    out = tmp_path / "sweep.csv"
    assert main(["sweep", "--pair", pair, "--board", "rpi5", "--out", str(out), *change]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()
