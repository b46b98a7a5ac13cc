"""A bundle to a board: what is there with the right hash is not sent again, and a file half sent is sent on.

It comes to lie in ~/hetero_sd/NAME there, NAME being the folder's here. The manifest goes last, so that a copy that was
interrupted is no bundle yet.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hetero_sd.on_board import board_side
from hetero_sd.on_board.ssh import Board, shown
from hetero_sd.progress import Progress
from hetero_sd.runtime.file_hashes import hash_file
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.trust import SIGNATURE
from targets.errors import UserError

_START = "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
_CHUNK_BYTES = 1 << 20
_MOST_LINE_BYTES = 8 << 20
_MOST_BANNER_LINES = 100


def copy_bundle(board: Board, bundle: Bundle, progress: Progress) -> str:
    """Copy a bundle to the board; its folder there, an absolute path.

    Raises:
        UserError: it cannot be read here or written there, the board answers something else, or ssh fails.
    """
    files = _files(bundle)
    name = bundle.folder.resolve().name
    if not name or not name.isprintable():
        raise UserError(f"{bundle.folder}: a folder without a name that can be shown is not copied: rename it")
    with progress.step(f"copy {bundle.folder} to {board.host}") as advance, board.talk(["python3", "-c", _START]) as io:
        talk = _Talk(board.host, *io)
        talk.start(name, files)
        answer = talk.answer("folder", "missing")
        folder, missing = answer["folder"], answer["missing"]
        if not isinstance(folder, str) or not isinstance(missing, dict) or not set(missing) <= set(files):
            raise talk.nonsense()
        total, done = sum(files[file][0] for file in missing), 0
        for file in sorted(missing, key=lambda n: (n == MANIFEST, n == SIGNATURE, n)):
            size, begun = files[file][0], missing[file]
            if not isinstance(begun, int) or not 0 <= begun <= size:
                raise talk.nonsense()
            talk.send(file, bundle.folder / file, begun, size, lambda sent, done=done: advance("", done + sent, total))
            done += size
        talk.line("")
        talk.answer("done")
    return folder


def _files(bundle: Bundle) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of all that a bundle consists of."""
    files = {name: (facts.bytes, facts.sha256) for name, facts in bundle.manifest.files.items()}
    for name in (MANIFEST, SIGNATURE):
        path = bundle.folder / name
        if path.is_file():
            files[name] = (path.stat().st_size, hash_file(path))
    return files


class _Talk:
    """The conversation with board_side.py."""

    def __init__(self, host: str, to: IO[bytes], back: IO[bytes]) -> None:
        self._host, self._to, self._back = host, to, back

    def start(self, name: str, files: dict[str, tuple[int, str]]) -> None:
        """Send the program and what is asked of it."""
        program = Path(board_side.__file__).read_bytes() + b"\n\nmain()\n"
        with suppress(BrokenPipeError):  # what it said before it left is its answer
            self._to.write(f"{len(program)}\n".encode() + program)
        self.line({"name": name, "listed": files})

    def line(self, value: Any) -> None:
        """Send a line, which is answered."""
        with suppress(BrokenPipeError):
            self._to.write(json.dumps(value).encode() + b"\n")
            self._to.flush()

    def send(self, name: str, path: Path, begun: int, size: int, sent: Any) -> None:
        """Send the rest of a file; one that became shorter is filled up, and refused there by its hash."""
        self.line(name)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(begun)
                while begun < size:
                    block = file.read(min(_CHUNK_BYTES, size - begun)) or bytes(min(_CHUNK_BYTES, size - begun))
                    self._to.write(block)
                    begun += len(block)
                    sent(begun)
        except BrokenPipeError:
            self.answer()  # it may have said why
            raise
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        self._to.flush()
        if self.answer("took")["took"] != name:
            raise self.nonsense()

    def answer(self, *keys: str) -> dict[str, Any]:
        """The next answer, which has `keys`.

        Raises:
            EOFError: there is none.
            UserError: it is an error, or no answer.
        """
        for _ in range(_MOST_BANNER_LINES):
            text = self._back.readline(_MOST_LINE_BYTES)
            if not text:
                raise EOFError
            if text.startswith(board_side.MARK.encode()):
                break
        else:
            raise self.nonsense()
        try:
            value = json.loads(text[len(board_side.MARK) :])
        except (ValueError, RecursionError):
            raise self.nonsense() from None
        if isinstance(value, dict) and isinstance(value.get("error"), str):
            raise UserError(f"{self._host}: {shown(value['error'])}")
        if not isinstance(value, dict) or any(key not in value for key in keys):
            raise self.nonsense()
        return value

    def nonsense(self) -> UserError:
        """What is said of an answer that is none."""
        return UserError(f"{self._host}: answered something else than what was asked: is it a board with python3?")
