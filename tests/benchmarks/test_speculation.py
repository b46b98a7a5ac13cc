"""benchmarks/speculation.py --keep: a run that was cut off goes on after its last whole turn; no model is run here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import speculation
from speculation_cases import Case

# Stands for benchmarks/speculation_worker.py: answers so many turns, and counts those that it was asked for.
WORKER = """
import json, sys
for turn, _ in enumerate(sys.stdin):
    if turn == {most}:
        sys.exit(3)
    with open({asked!r}, "a") as log:
        log.write(".")
    record = {{"texts": {texts}, "speed": 10.0 + turn, "predicted": None, "simulated": None, "accepted": None}}
    print(json.dumps({{"alone": record, "sequential 2": {{**record, "speed": 20.0}}}}), flush=True)
"""
PLAN = {"mode": "sequential", "gamma": 2, "tokens_per_s": 15.0, "overlapped_tokens_per_s": None}


class Bench:
    """The benchmark with one case; `compiled` counts bundles."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch, self.compiled = folder, patch, 0
        self.asked = folder / "asked"
        case = Case("One pair: beside", lambda out: None, ("a",), ("apart",), (2,))
        patch.setattr(speculation, "cases", lambda *given: [case])
        patch.setattr(speculation, "compile_case", self._compile)
        patch.setattr(speculation, "WORKER", folder / "worker.py")

    def _compile(self, case: Case, out: Path) -> dict[str, Any]:
        assert not out.exists()
        out.mkdir()
        self.compiled += 1
        return PLAN

    def run(self, most: int = 99, texts: str = "[[1, 2]]", keep: str = "kept") -> int:
        """Turns that the worker answered, of which the first one of a start warms up."""
        (self.folder / "worker.py").write_text(WORKER.format(most=most, asked=str(self.asked), texts=texts))
        self.asked.write_text("")
        kept = ["--keep", str(self.folder / keep)] if keep else []
        self._patch.setattr(sys, "argv", ["speculation.py", "--repeats", "3", "--json", *kept])
        assert speculation.main() == 0
        return len(self.asked.read_text())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_run_that_was_cut_off_goes_on(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    case = bench.folder / "kept" / "full" / "one-pair-beside"
    with pytest.raises(SystemExit, match="One pair: beside: the process for apart ended with 3"):
        bench.run(most=3)
    turns = json.loads((case / "turns.json").read_text())
    assert [r["speed"] for r in turns["alone"]] == [11.0, 12.0]
    assert not (case / "result-3.json").exists()
    assert bench.run() == 2  # one to warm up, one that is missing
    found = json.loads(capsys.readouterr().out)
    assert found[0]["plan"] == PLAN
    speeds = {row["way"]: (row["speed"], row["over alone"]) for row in found[0]["ways"]}
    assert speeds == {"alone": (11.0, 1.0), "sequential 2": (20.0, pytest.approx(20 / 11))}
    assert bench.run() == 0  # all is there
    assert json.loads(capsys.readouterr().out) == found
    assert bench.compiled == 1


def test_without_a_folder_nothing_is_kept(bench: Bench) -> None:
    assert [bench.run(keep=""), bench.run(keep="")] == [4, 4]
    assert bench.compiled == 2


def test_texts_of_two_starts_are_compared(bench: Bench) -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        bench.run(most=2)
    with pytest.raises(SystemExit, match="One pair: beside: the texts differ between the ways"):
        bench.run(texts="[[1, 3]]")
