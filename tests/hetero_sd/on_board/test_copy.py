from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

import pytest
from sshd import HOST, RELAYED, Sshd

from hetero_sd.cli import main
from hetero_sd.on_board.board_side import MARK
from hetero_sd.runtime.manifest import Bundle, write_manifest

LAUNCHER = "import os, sys\nprint([*sys.argv[1:], os.getcwd()])\nsys.exit(7 if '--fail' in sys.argv else 0)\n"
SIZE = 3_000_000
ODD = """it's "a" b$HOME"""


def made_bundle(folder: Path, seed: int = 0, size: int = SIZE) -> Path:
    """A bundle of the right form whose run.py prints its arguments."""
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/target.bin").write_bytes(random.Random(seed).randbytes(size))
    (folder / "weights/draft.bin").write_bytes(b"the same in every bundle" * 10_000)
    (folder / "run.py").write_text(LAUNCHER)
    write_manifest(folder)
    return folder


def test_a_bundle_runs_there_and_is_copied_once(board: Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names with quotes and spaces arrive as they are, and so does run.py's exit code."""
    bundle = made_bundle(tmp_path / ODD)
    assert main(["run", "--on", RELAYED, str(bundle), "--", "--prompt", ODD]) == 0
    there = board.home / "hetero_sd" / ODD
    assert capfd.readouterr().out == f"{['--prompt', ODD, str(there)]}\n"
    assert Bundle(there).verify_all() == Bundle(bundle).verify_all()
    assert board.relay.most_bytes is None
    assert main(["run", "--on", RELAYED, str(bundle), "--", "--fail"]) == 7
    assert board.relay.sent_bytes < 100_000  # nothing again

    (there / "weights/old.bin").write_bytes(b"of an older bundle, which run.py would refuse")
    (there / "measured.json").write_text("the user's")
    made_bundle(tmp_path / "new" / ODD, seed=1)
    assert main(["doctor", "--on", RELAYED, str(tmp_path / "new" / ODD)]) == 0
    assert "--doctor" in capfd.readouterr().out
    assert sorted(p.name for p in (there / "weights").iterdir()) == ["draft.bin", "target.bin"]
    assert (there / "measured.json").is_file()
    assert Bundle(there).path("weights/target.bin").read_bytes() == random.Random(1).randbytes(SIZE)
    assert not there.with_name(f"{ODD}.parts").exists()


def test_a_file_that_changed_there_is_sent_again(board: Sshd, tmp_path: Path) -> None:
    bundle = made_bundle(tmp_path / "changed", size=1000)
    there = board.home / "hetero_sd/changed"
    assert main(["run", "--on", HOST, str(bundle)]) == 0
    (there / "weights/target.bin").write_bytes(bytes(1000))
    assert main(["run", "--on", HOST, str(bundle)]) == 0
    assert Bundle(there).verify_all()


def test_after_a_lost_connection_the_rest_is_sent(
    board: Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = made_bundle(tmp_path / "lost", seed=2)
    content = (bundle / "weights/target.bin").read_bytes()
    there = board.home / "hetero_sd/lost"
    part = there.with_name("lost.parts") / hashlib.sha256(content).hexdigest()
    board.relay.most_bytes, board.relay.when = SIZE // 2, lambda: part.exists() and part.stat().st_size > SIZE // 4
    assert main(["run", "--on", RELAYED, str(bundle)]) == 2
    assert re.fullmatch(r"hetero-sd: error: relayed: .*(closed|lost|reset|[Bb]roken).*\n", capfd.readouterr().err)
    assert not (there / "manifest.json").exists()
    board.relay.most_bytes = None
    assert main(["run", "--on", RELAYED, str(bundle)]) == 0
    assert board.relay.sent_bytes < 0.8 * SIZE
    assert Bundle(there).path("weights/target.bin").read_bytes() == content


def test_what_was_half_sent_and_is_wrong_is_thrown_away(
    board: Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = made_bundle(tmp_path / "wrong", seed=3, size=1000)
    parts = board.home / "hetero_sd/wrong.parts"
    parts.mkdir(parents=True)
    name = hashlib.sha256((bundle / "weights/target.bin").read_bytes()).hexdigest()
    (parts / name).write_bytes(bytes(500))
    assert main(["run", "--on", HOST, str(bundle)]) == 2
    assert "weights/target.bin did not arrive as it was sent: try again" in capfd.readouterr().err
    assert main(["run", "--on", HOST, str(bundle)]) == 0


def test_a_folder_of_somebody_else_there_is_left_alone(
    board: Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = board.home / "hetero_sd/mine/weights/w.bin"
    other.parent.mkdir(parents=True)
    other.touch()
    assert main(["run", "--on", HOST, str(made_bundle(tmp_path / "mine", size=10))]) == 2
    err = capfd.readouterr().err
    assert "hetero_sd/mine holds something else" in err
    assert err.count("\n") == 1
    assert other.exists()


def test_the_board_s_login_may_print_something_first(board: Sshd, tmp_path: Path) -> None:
    """Bash reads ~/.bashrc also for commands that come by ssh."""
    (board.home / ".bashrc").write_text("echo welcome\n")
    try:
        assert main(["run", "--on", HOST, str(made_bundle(tmp_path / "banner", size=10))]) == 0
    finally:
        (board.home / ".bashrc").unlink()


OTHER = "answered something else than what was asked"
ANSWERS = {  # a script, and what is said of it
    "nothing": ("", "the connection was lost"),
    "its input": ("cat", OTHER),
    "no end": ("yes", OTHER),
    "a failure": ("echo 'no python3 here' >&2; exit 127", "no python3 here"),
}
MARKED = {  # a line that has the mark
    "an error": ('{"error": "\\u001b[2Jfull\\n"}', "board: ?[2Jfull\n"),
    "no JSON": ("{", OTHER),
    "deep JSON": ("[" * 100_000, OTHER),
    "a list": ("[]", OTHER),
    "no folder": ('{"folder": 3, "missing": {}}', OTHER),
    "another file": ('{"folder": "/", "missing": {"x": 0}}', OTHER),
    "too much": ('{"folder": "/", "missing": {"run.py": 999}}', OTHER),
    "the end": ('{"folder": "/", "missing": {"run.py": 0}}', "the connection was lost"),
}
ANSWERS |= {name: (f"printf '%s\\n' '{MARK}{line}'", said) for name, (line, said) in MARKED.items()}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_board_that_answers_something_else_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answer: str
) -> None:
    script, message = ANSWERS[answer]
    (tmp_path / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["run", "--on", "board", str(made_bundle(tmp_path / "bundle", size=10))]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
