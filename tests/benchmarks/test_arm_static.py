"""benchmarks/arm_static.py: what it counts, what it says without llvm-mca, and whether its table is of today."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from requirements import missing

from targets.cpu import core
from targets.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmark, which lies in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import arm_static

    yield arm_static
    for name in ("arm_static", "inner_loops"):
        del sys.modules[name]


def test_without_llvm_mca_one_line_says_so(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "FOLDERS", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["arm_static.py"])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("there is no llvm-mca here; 18 or later is needed: install LLVM's tools")
    assert said.err.count("\n") == 1
    old = tmp_path / "llvm-14" / "bin" / "llvm-mca"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho Debian LLVM version 14.0.6\n")
    old.chmod(0o755)
    with pytest.raises(UserError, match=r"^the newest llvm-mca here is 14; 18 or later is needed"):
        benchmark.find_llvm_mca()


def test_cycles_are_counted(benchmark: Any) -> None:
    try:
        program, _ = benchmark.find_llvm_mca()
    except UserError as error:
        missing(str(error))
    multiply = tuple(f"sdot v{i}.4s, v16.16b, v17.4b[0]" for i in range(8))
    loop = benchmark.Loop((*multiply, "b.ne .LBB0_1"))
    cycles = benchmark.cycles_of(program, "cortex-a76", loop)
    assert 4 <= cycles < 5  # two a cycle, and what begins and ends
    chain = benchmark.Loop(multiply[:1] * 8)
    assert benchmark.cycles_of(program, "cortex-a76", chain) > 1.5 * cycles  # each waits for the one before it
    with pytest.raises(UserError, match="cannot analyse the loop for cortex-a76"):
        benchmark.cycles_of(program, "cortex-a76", benchmark.Loop(("no such instruction",)))


def test_the_table_is_of_the_tiles_of_today(benchmark: Any) -> None:
    text = (BENCHMARKS / "arm_static.md").read_text("utf-8")
    rows = re.findall(r"^\| (cortex-\w+) \| (\d) \| (\d+) \| (\w+) (\d+) x (\d+) \|", text, re.MULTILINE)
    expected = []
    for name in benchmark.MODELS:
        for bits in (8, 4):
            for n in benchmark.ROWS:
                kernel = benchmark.Kernel(core(name), bits, n)
                numbers = (bits, n, kernel.dot, kernel.rows, 4 * kernel.vectors)
                expected.append((name, *map(str, numbers)))
    assert rows == expected, "write it again: python benchmarks/arm_static.py --write"
    assert text.endswith(benchmark.NOTES)
