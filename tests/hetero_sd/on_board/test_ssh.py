from __future__ import annotations

from pathlib import Path

import pytest
from sshd import HOST, Sshd

from hetero_sd.cli import main
from hetero_sd.on_board.ssh import Board
from targets.errors import UserError


@pytest.mark.parametrize(
    "host",
    [
        *("-oProxyCommand=touch x", "pi@-oProxyCommand=touch", "pi@board;touch x", "pi@$(touch x)", "a b", "", "pi@"),
        *("board\n", "pi@`x`", "ssh://pi@board/../x", "é", "x" * 300, "%h"),
    ],
)
def test_what_ssh_could_take_for_something_else_is_no_host(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["run", "bundle"],
        ["doctor", "bundle"],
        ["calibrate", "bundle", "--target", "x", "--out", "x.toml"],
    ):
        assert main([*command, f"--on={host}"]) == 2
        err = capsys.readouterr().err
        assert "give USER@BOARD, a name of ~/.ssh/config, or ssh://USER@BOARD:PORT" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "host", ["pi@rpi5", "rpi5.local", "ssh://root@10.0.0.7:2222", "me_1@[fe80::1%eth0]", "10.0.0.7"]
)
def test_names_of_boards(host: str) -> None:
    assert Board(host).host == host


def test_a_file_is_fetched_up_to_a_size(board: Sshd) -> None:
    there = Board(HOST)
    write = ["python3", "-c", "open('a b', 'w').write('x' * 100); print('noise')"]
    assert there.fetch(write, str(board.home), "a b", 100) == b"x" * 100
    with pytest.raises(UserError, match="a b is larger than 0 MiB"):
        there.fetch(write, str(board.home), "a b", 99)
    with pytest.raises(UserError, match=r"^board: the reason$"):
        there.fetch(["sh", "-c", "echo noise; echo the reason >&2; exit 3"], str(board.home), "a b", 99)


def test_what_ssh_says_is_the_line(board: Sshd, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"ssh: connect to host 127\.0\.0\.1 port 1: Connection refused"):
        Board("ssh://127.0.0.1:1").fetch(["true"], "/", "x", 1)
    with pytest.raises(UserError, match="the connection was lost, or the command was killed there"):
        Board("ssh://127.0.0.1:1").run(["true"], "/")
    assert capfd.readouterr().err == ""


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ssh cannot be started: No such file or directory: install OpenSSH's client"):
        Board("board").run(["true"], "/")
