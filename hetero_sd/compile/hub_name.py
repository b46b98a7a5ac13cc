"""Names of models of the Hugging Face hub: hf:ORG/NAME[/FILE][@REVISION], read, and told of a file in the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from targets.errors import UserError
from targets.hub_cache import repository_name, snapshot_folder, snapshot_of

SCHEME = "hf:"
DEFAULT_REVISION = "main"
CONFIG = "config.json"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SOURCE = re.compile(rf"hf:({_NAME}/{_NAME})(?:/([^@]+))?(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?")


@dataclass(frozen=True)
class HubSource:
    """What a name asks for: the repository, a file in it or None, a revision or None."""

    repo: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        """The name."""
        file, revision = self.file and f"/{self.file}", self.revision and f"@{self.revision}"
        return f"{SCHEME}{self.repo}{file or ''}{revision or ''}"


def parse_source(text: str) -> HubSource:
    """The parts of hf:ORG/NAME[/FILE][@REVISION], where FILE is an ONNX file or a config.json.

    Raises:
        UserError: it is none.
    """
    found = _SOURCE.fullmatch(text)
    named = [part for part in (found[2], found[3]) if part] if found else []
    if found is None or any(map(leads_out, named)) or (found[2] and not _is_model(found[2])):
        raise UserError(
            f"{text}: a model of the hub is hf:ORG/NAME, hf:ORG/NAME/FILE.onnx, or either with @REVISION; predict "
            f"takes hf:ORG/NAME/{CONFIG}, too"
        )
    return HubSource(*found.groups())


def source_of(path: Path) -> HubSource | None:
    """What a file in the client's cache is named, None for any other file.

    The revision is left out where it is the one that the cache has under the default's name.
    """
    path = path.absolute()
    if (snapshot := snapshot_of(path)) is None or snapshot == path:
        return None
    repository = snapshot.parents[1]
    newest = snapshot_folder(repository, DEFAULT_REVISION) == snapshot
    return HubSource(
        repository_name(repository), path.relative_to(snapshot).as_posix(), None if newest else snapshot.name
    )


def folder_name(path: Path) -> str:
    """What a model is called by where its file lies: NAME of the hub's repository, or the file's folder."""
    source = source_of(path)
    return path.absolute().parent.name if source is None else source.repo.rpartition("/")[2]


def leads_out(name: str) -> bool:
    """Whether a name is not plainly one of a file below its folder."""
    parts = PurePosixPath(name).parts
    return (
        not parts or name.startswith("/") or "\\" in name or not name.isprintable() or {"..", "."} & set(parts) != set()
    )


def _is_model(name: str) -> bool:
    return name.endswith(".onnx") or PurePosixPath(name).name == CONFIG
