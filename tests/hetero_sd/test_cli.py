from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from hetero_sd.cli import main

WRITING = {
    "acceptance": "acceptance none.onnx none.onnx --prompts none.txt --out",
    "predict --report": "predict none.json --board none --report",
    "predict --trace": "predict none.json --board none --trace",
    "sweep": "sweep --pair none.json --board none --out",
    "calibrate": "calibrate none.json --target none.json --board none --out",
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize(
    ("out", "message"),
    [("folder.toml", "it is a folder"), ("missing/f.toml", "there is no folder"), ("folder.toml/f.toml", None)],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, out: str, message: str | None
) -> None:
    """The other files are not there either, which is said only where the one to be written is right."""
    (tmp_path / "folder.toml").mkdir()
    assert main([*WRITING[command].split(), str(tmp_path / out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{out}: cannot be written: {message}" in err if message else "none" in err and "written" not in err
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder.toml"]


def test_both_files_of_a_calibration_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.factors.json").mkdir()
    assert main([*WRITING["calibrate"].split(), str(tmp_path / "mine.toml")]) == 2
    assert "mine.factors.json: cannot be written: it is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">&-", "standard output is closed: give a terminal, a file or a pipe"),
        (">/dev/full", "No space left on device (standard output)"),
        ("<&- 2>&-", ""),
    ],
)
def test_streams_that_cannot_be_used_give_one_line(redirection: str, said: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m hetero_sd --help {redirection}"
    root = Path(__file__).resolve().parents[2]
    # PYTHONUNBUFFERED among them, with which argparse says nothing of what it cannot print
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(["sh", "-c", line], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2 if said else 0, f"hetero-sd: error: {said}\n" if said else "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compile --quantize int4 m.onnx --board host --out o", "unknown option --quantize: did you mean --quantise?"),
        ("compile m.onnx --board=host --out o --bored", "unknown option --bored: did you mean --board?"),
        ("run bundle --on board --stats", "unknown option --stats: options of run.py stand behind --"),
        ("predict m.json --xyz=3", "unknown option --xyz=3"),
        ("compile m.onnx more --board host --out o", "unknown argument more"),
    ],
)
def test_an_unknown_option_is_told_with_the_nearest_and_its_command(
    command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    help_of = f"`hetero-sd {command.split()[0]} --help` lists the options"
    assert capsys.readouterr().err == f"hetero-sd: error: {said} ({help_of})\n"


def test_a_command_that_does_not_exist_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    help_of = "(`hetero-sd --help` lists the options)"
    assert main(["comple", "m.onnx"]) == 2
    error = capsys.readouterr().err
    assert error == f"hetero-sd: error: argument COMMAND: invalid choice: 'comple': did you mean compile? {help_of}\n"
    assert main(["xyz"]) == 2
    assert "invalid choice: 'xyz' (choose from" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"hetero-sd {stated}\n"
