"""Boards by name or by file: one TOML file a board, every number with its kind and source.

To add a board, copy one of the files here: no code changes. A number that nobody measured has kind = "assumed" and its
reasoning as source. ``host`` is this machine, described when it is asked for; ``host-split`` is the same machine with
its CPUs in two clusters, so that a drafter and a target can be placed on processors of their own.
"""

from __future__ import annotations

from pathlib import Path

from targets.cpu import core_tables
from targets.device import Board, read_board
from targets.errors import UserError

_FOLDER = Path(__file__).parent
LARGEST_FILE_BYTES = 256 * 1024  # the longest file here has 8 KB


def board_names() -> list[str]:
    """Names that ``load_board`` knows, sorted, ``host`` among them."""
    return sorted([path.stem for path in _FOLDER.glob("*.toml")] + ["host", "host-split"])


def load_board(name_or_path: str | Path, measure: bool = True) -> Board:
    """The board of that name, this machine for ``host``, or the one that a ``.toml`` file describes.

    Args:
        name_or_path: one of ``board_names()``, or a path ending in ``.toml``.
        measure: for ``host``: measure the DRAM bandwidth, about one second.

    Raises:
        UserError: unknown name (the known ones are listed), unreadable file, or a file that is no valid board.
    """
    text = str(name_or_path)
    if text in ("host", "host-split"):
        from targets.host import host_board

        return host_board(measure=measure, split=text == "host-split")
    if text.endswith(".toml"):
        return _read_file(Path(text))
    if text not in board_names():
        raise UserError(
            f"board {text!r} is not known; known boards: {', '.join(board_names())}; or give the path of a .toml file"
        )
    return _read_file(_FOLDER / f"{text}.toml")


def _read_file(path: Path) -> Board:
    import tomllib

    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE_BYTES:
        raise UserError(f"{path}: larger than {LARGEST_FILE_BYTES} bytes, so this is not a board file")
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so this is not a board file") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number of more than 4300 digits
        message = str(error).splitlines()[0]
        raise UserError(f"{path}: not valid TOML: {message}") from None
    return read_board(table, str(path), core_tables())
