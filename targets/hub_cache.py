"""How the Hugging Face hub's client lays out its cache: models--ORG--NAME/snapshots/REVISION/FILE.

A file there is a link into ``blobs/`` beside ``snapshots``.
"""

from __future__ import annotations

from pathlib import Path

_REPOSITORY = "models--"
_SNAPSHOTS = "snapshots"


def repository_folder(cache: Path, repo: str) -> Path:
    """Where the cache keeps ORG/NAME, which need not exist."""
    return cache / f"{_REPOSITORY}{repo.replace('/', '--')}"


def repository_name(folder: Path) -> str:
    """ORG/NAME of such a folder."""
    return folder.name.removeprefix(_REPOSITORY).replace("--", "/")


def snapshot_folder(repository: Path, revision: str) -> Path:
    """The files of a revision: of a name that the cache has looked up before, or of a commit."""
    reference = repository / "refs" / revision
    return repository / _SNAPSHOTS / (reference.read_text().strip() if reference.is_file() else revision)


def snapshot_of(path: Path) -> Path | None:
    """The snapshot's folder that a folder or file lies in, or that it is; None for any other."""
    for parent in path.parents:
        inside = path.relative_to(parent).parts
        if parent.name.startswith(_REPOSITORY) and len(inside) >= 2 and inside[0] == _SNAPSHOTS:
            return parent / _SNAPSHOTS / inside[1]
    return None
