"""A board by its name for OpenSSH's client: commands there, as the user's own configuration of ssh reaches it.

Keys, ports and jump hosts stand in ~/.ssh/config. Passwords and unknown host keys are asked for by ssh itself, on the
terminal. Whatever is not ours to know is one line: ssh's own last one, or that the connection was lost.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any

from targets.errors import UserError

LOST = 255  # what ssh returns for its own failures, and for a command there that a signal ended
_OPTIONS = ("-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
_HOST = re.compile(r"(ssh://)?([A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_\[][\w.:\[\]%-]*", re.ASCII)
_LOST = "the connection was lost, or the command was killed there"
_LONGEST = 200  # characters of what a board says
_MOST_SAID_BYTES = 4 << 20
_ENDING_S = 20.0


class Board:
    """A board by its name for ssh, USER@BOARD, a name of ~/.ssh/config, or ssh://USER@BOARD:PORT."""

    def __init__(self, host: str) -> None:
        """Keep the name.

        Raises:
            UserError: ssh could take it for something else than a host.
        """
        if len(host) > _LONGEST or not _HOST.fullmatch(host):
            raise UserError(f"--on {shown(host)}: give USER@BOARD, a name of ~/.ssh/config, or ssh://USER@BOARD:PORT")
        self.host = host

    def run(self, command: Sequence[str], folder: str, terminal: bool = False) -> int:
        """Run a command in a folder there with this process's streams; its exit code.

        Args:
            command: its words; none of them is changed by a shell.
            folder: of the board.
            terminal: it gets one there.

        Raises:
            UserError: ssh is missing, or the connection failed or was lost.
        """
        code = _spawn(self._ssh("-q", *(["-t"] if terminal else []), there=_line(command, folder))).wait()
        if code == LOST:
            raise UserError(f"{self.host}: {_LOST}")
        return code

    def fetch(self, command: Sequence[str], folder: str, file: str, most_bytes: int) -> bytes:
        """Run a command in a folder there, and fetch the file that it writes.

        Raises:
            UserError: it failed, with what it said last, the file is larger than `most_bytes`, or as in `run`.
        """
        there = f"{_line(command, folder)} >&2 && exec cat -- {shlex.quote(file)}"
        with self._talk(there) as (_, back):
            found = back.read(most_bytes + 1)
            if len(found) > most_bytes:
                raise UserError(f"{self.host}: {file} is larger than {most_bytes >> 20} MiB")
        return found

    def talk(self, command: Sequence[str]) -> AbstractContextManager[tuple[IO[bytes], IO[bytes]]]:
        """Run a command there and talk with it, by what it reads and what it writes.

        The block may raise EOFError or BrokenPipeError where the command ended early.

        Raises:
            UserError: as in `run`, or the command failed, with what ssh or the command said last.
        """
        return self._talk(shlex.join(command))

    @contextmanager
    def _talk(self, there: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        with tempfile.TemporaryFile() as said:
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
            process = _spawn(self._ssh(there=there), **streams)
            assert process.stdin is not None
            assert process.stdout is not None
            ended = False
            try:
                yield process.stdin, process.stdout
            except (BrokenPipeError, EOFError):
                ended = True
            except BaseException:
                process.kill()
                raise
            finally:
                with suppress(OSError):
                    process.stdin.close()
                code = _wait(process)
            if ended or code != 0:
                said.seek(0)
                lines = said.read(_MOST_SAID_BYTES).decode("utf-8", "replace").strip().splitlines()
                raise UserError(f"{self.host}: {shown(lines[-1]) if lines else _LOST}")

    def _ssh(self, *more: str, there: str) -> list[str]:
        return ["ssh", *_OPTIONS, *more, "--", self.host, there]


def shown(text: str) -> str:
    """What a board or a user said, fit for a line: printable, and not too long."""
    return "".join(c if c.isprintable() else "?" for c in text.strip())[:_LONGEST]


def _line(command: Sequence[str], folder: str) -> str:
    return f"cd {shlex.quote(folder)} && {shlex.join(command)}"


def _spawn(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, **streams)
    except OSError as error:
        raise UserError(f"ssh cannot be started: {error.strerror}: install OpenSSH's client") from None


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code; what does not end by itself, as its input has, is killed."""
    try:
        return process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
