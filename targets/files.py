"""Files of other people and for other people: JSON read with a limit, files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets.errors import UserError

_PIECE_BYTES = 1 << 20


class TooLargeError(ValueError):
    """A file is larger than what is expected there."""


def read_json(path: Path, most_bytes: int, finite: bool = False) -> Any:
    """The JSON value in a file.

    Python reads NaN and infinities, which are no JSON, and 1e999 as an infinity; `finite` refuses all of them. A whole
    number is read in full, so that it may be beyond float64 all the same.

    Raises:
        OSError: it cannot be read.
        TooLargeError: it has more than `most_bytes`; nothing is parsed then.
        ValueError: not JSON, nested too deep, or a whole number of more than 4300 digits.
    """
    content = _read(path, most_bytes)
    if len(content) > most_bytes:
        raise TooLargeError(f"larger than {most_bytes} bytes")
    hooks: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        return json.loads(content, **hooks)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _read(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file, or more than `most_bytes`; in pieces, since one read asks for memory for all of them."""
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
        return b"".join(itertools.islice(pieces, most_bytes // _PIECE_BYTES + 1))


def read_object(path: Path, what: str, most_bytes: int = 1 << 20) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        what: what it should be, with its article, for messages.
        most_bytes: a larger file is refused before it is parsed.

    Raises:
        UserError: unreadable, too large, or not a JSON object.
    """
    try:
        data = read_json(path, most_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except TooLargeError:
        raise UserError(f"{path}: larger than {most_bytes >> 20} MiB, so this is not {what}") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON, so this is not {what}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object, so this is not {what}")
    return data


def read_toml(path: Path, most_bytes: int, what: str = "a board file") -> dict[str, Any]:
    """The tables in a file, which is meant to be `what`.

    Raises:
        UserError: unreadable, larger than `most_bytes`, or not TOML.
    """
    try:
        import tomllib
    except ModuleNotFoundError:
        raise UserError(f"{path}: {what} needs Python 3.11 or newer") from None
    try:
        content = _read(path, most_bytes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > most_bytes:
        raise UserError(f"{path}: larger than {most_bytes} bytes, so this is not {what}")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so this is not {what}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number of more than 4300 digits
        message = str(error).splitlines()[0]
        raise UserError(f"{path}: not valid TOML: {message}") from None


def check_writable(path: Path) -> None:
    """Refuse, before any work, a file that `write_text` could not write.

    Raises:
        UserError: it cannot be written.
    """
    try:
        part = _part(path)
        part.touch()
        part.unlink()
    except OSError as error:
        raise _refusal(path, error) from None


def refuse_no_file(path: Path, what: str = "") -> None:
    """Refuse, before any work, an ONNX file that is not there; `what` stands before its path.

    Raises:
        UserError: there is none.
    """
    if not path.is_file():
        reason = "this is a folder; give the .onnx file in it" if path.is_dir() else "there is no such file"
        raise UserError(f"{what}{path}: {reason}")


def refuse_no_folder(path: Path, what: str) -> None:
    """Refuse, before any work, a folder that is to be made or filled and that something else is in the place of.

    Raises:
        UserError: it, or the first one above it that is there, is no folder that can be written.
    """
    there = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"{what} {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{what} {path}: {there} cannot be written")


def cache_folder(name: str) -> Path:
    """Where a user's files that can be made again are kept: $XDG_CACHE_HOME, else ~/.cache, then hetero_sd/`name`."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(stated) if stated.startswith("/") else Path(os.path.expanduser("~")) / ".cache"
    return base / "hetero_sd" / name


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, which nobody but the user may enter, whatever the umask.

    Raises:
        OSError: one of them cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_mode & 0o700 != 0o700:  # a umask that takes the owner's own rights
            path.chmod(0o700)


def not_private(folder: Path) -> str | None:
    """Why what lies in `folder` may come from another user, in a few words; None where it is the user's or root's.

    Raises:
        OSError: it is not there.
    """
    facts = folder.stat()
    if facts.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    return f"{folder} can be written by others" if facts.st_mode & 0o022 else None


def make_library_folder(folder: Path) -> None:
    """Make a folder for libraries that this user builds once and uses again, which is to be the user's alone.

    Raises:
        UserError: it cannot be made, or a library in it may come from another user.
    """
    try:
        make_private(folder)
        reason = not_private(folder)
    except OSError as error:
        raise UserError(f"{folder}: the library cannot be built there: {error.strerror}") from None
    if reason is not None:
        raise UserError(f"{reason}, who could change the libraries in it: remove it, it is made again")


@contextlib.contextmanager
def replacing(path: Path, own: bool = False) -> Iterator[Path]:
    """A file to write beside `path`; it takes its place when the block ends without an exception, else it is gone.

    `own`: under a name that no other process takes, where several may write `path` at once.

    Raises:
        OSError: it cannot be put there.
    """
    part = _part(path)
    part = part.with_name(f"{part.name}.{os.getpid()}") if own else part
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing(path) as part:
            part.write_text(text, "utf-8")
    except OSError as error:
        raise _refusal(path, error) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond float64")
    return value


def _part(path: Path) -> Path:
    """The file beside `path` that takes its place when it is whole.

    Raises:
        OSError: `path` is a folder (so are "." and ".."), or something else that a file must not replace.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")
    return path.with_name(f".{path.name}.part")


def _refusal(path: Path, error: OSError) -> UserError:
    parent = path.absolute().parent
    missing = isinstance(error, FileNotFoundError) and not parent.is_dir()
    return UserError(f"{path}: cannot be written: {f'there is no folder {parent}' if missing else error.strerror}")
