"""The exports of the coverage table lie packed in tests/data/families.tar.xz; tests see them unpacked beside it."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from pathlib import Path


def unpack_families(data: Path) -> Path:
    """Unpack `data`/families.tar.xz to `data`/families unless that has been done; returns the folder."""
    archive, folder = data / "families.tar.xz", data / "families"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    mark = folder / ".sha256"
    if mark.is_file() and mark.read_text() == digest:
        return folder
    with tempfile.TemporaryDirectory(dir=data) as scratch:
        fresh = Path(scratch) / "families"
        with tarfile.open(archive) as content:
            content.extractall(fresh, filter="data")
        (fresh / ".sha256").write_text(digest)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        try:
            os.rename(fresh, folder)
        except OSError:  # another test session was quicker
            if not mark.is_file():
                raise
    return folder
