"""Files of other people and for other people: JSON read with a limit, text written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from targets.errors import UserError


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
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise UserError(f"{path}: larger than {most_bytes >> 20} MiB, so this is not {what}")
        data = json.loads(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON, so this is not {what}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object, so this is not {what}")
    return data


def check_writable(path: Path) -> None:
    """Refuse, before any work, a file that `write_text` could not write.

    Raises:
        UserError: it cannot be written.
    """
    part = _part(path)
    try:
        part.write_text("", "utf-8")
        part.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    part = _part(path)
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
