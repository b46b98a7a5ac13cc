"""Tells Git LFS pointers, short texts that stand in for a file that was not downloaded, from the files themselves."""

from __future__ import annotations

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"
_LONGEST_BYTES = 1024  # the specification's own limit


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a pointer; False where it cannot be read, or is no regular file: opening a pipe would wait."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            content = file.read(_LONGEST_BYTES + 1)
    except OSError:
        return False
    return len(content) <= _LONGEST_BYTES and content.startswith(_START)


def lfs_reason(path: Path) -> str:
    """What to say of a pointer."""
    return f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"
