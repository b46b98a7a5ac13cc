"""The bundle's manifest: every file with its size and SHA-256, checked before anything of it is used.

Its keys are the fields of costmodel.schema.manifest.Manifest. The bundle may come from anywhere, so every value is
checked when it is opened, paths are kept inside it, sizes are compared, and a file's hash before its path is handed
out. A library is loaded through the descriptor that was hashed, and of weights a sample of blocks is compared.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from costmodel.schema.manifest import BlockHashes, FileFacts, Manifest, TokenizerFacts, refused_version
from costmodel.schema.model import ModelFacts
from costmodel.schema.plan import Plan
from costmodel.schema.record import SchemaError
from hetero_sd.runtime.file_hashes import block_hashes, check_blocks, hash_file, sha256_of
from hetero_sd.runtime.trust import SIGNATURE
from targets.errors import UserError
from targets.files import TooLargeError, read_json, write_text

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20
_DESCRIPTORS = "/proc/self/fd"
_openings = itertools.count()
_COMPLETE = ("lib", "weights", "tokenizer")  # folders in which every file is listed


class Bundle:
    """An opened bundle: its manifest, checked, and verified paths of its files."""

    def __init__(self, folder: Path) -> None:
        """Read and check the manifest of ``folder``, the sizes of all files, and that its main folders hold no others.

        Raises:
            UserError: something is missing, malformed, unlisted, outside the folder or of another size.
        """
        self.folder = folder
        self._root = folder.resolve()
        self._verified: set[str] = set()
        self.manifest = read_manifest(folder / MANIFEST)
        for name, facts in self.manifest.files.items():
            _check_path(name)
            self._check_size(name, facts.bytes)
        for model in self.manifest.models.values():
            for name in model.files:
                if name not in self.manifest.files:
                    raise UserError(f"{self.folder / MANIFEST}: models name {name!r}, which `files` does not list")
        for path in (p for part in _COMPLETE for p in _walk(self.folder / part)):
            name = path.relative_to(self.folder).as_posix()
            if name not in self.manifest.files:
                raise UserError(f"{path} is not listed in {MANIFEST}: remove it or build the bundle again")

    @property
    def models(self) -> dict[str, ModelFacts]:
        """The description of the models, {"target": ..., "draft": ...}."""
        return self.manifest.models

    @property
    def target(self) -> ModelFacts:
        """The description of the target.

        Raises:
            UserError: there is none.
        """
        if "target" not in self.models:
            raise UserError(f"{MANIFEST}: models.target is missing: build the bundle again")
        return self.models["target"]

    @property
    def plan(self) -> Plan | None:
        """The plan the bundle was compiled for; None where it has none."""
        return self.manifest.plan

    @property
    def tokenizer(self) -> TokenizerFacts | None:
        """Facts about the tokenizer; None where the manifest states none."""
        return self.manifest.tokenizer

    def __contains__(self, name: str) -> bool:
        """True where the manifest lists ``name``."""
        return name in self.manifest.files

    def path(self, name: str, hashed: bool = True) -> Path:
        """Return the path of a file by its name in the manifest, its SHA-256 verified once.

        Args:
            name: relative path, as listed.
            hashed: False compares 16 blocks of it, others each time: for weights, whose hash may take seconds and
                whose header is checked when they are read; never for code. It finds a damaged storage sooner or
                later, not one changed byte for sure.

        Raises:
            UserError: not listed, or its contents changed.
        """
        path = self._listed(name)
        if name in self._verified:
            return path
        if not hashed:
            if name not in self.manifest.blocks:
                raise UserError(f"{MANIFEST}: blocks has no hashes of {name}: build the bundle again")
            check_blocks(path, self.manifest.blocks[name].blake2b)
            return path
        if hash_file(path) != self.manifest.files[name].sha256:
            raise _changed(path)
        self._verified.add(name)
        return path

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[str]:
        """A path that leads to the very file that was hashed, whatever its name leads to meanwhile: for loading code.

        It is one in /proc/self/fd, and no two are spelled alike: the loader takes a library that it knows by that
        name for the same one, and numbers of descriptors are used again. Where /proc is not mounted, it is the file's
        own, and who can rename files of the bundle meanwhile can have another one loaded.

        Raises:
            UserError: not listed, not readable, or its contents changed.
        """
        path = self._listed(name)
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        with file:
            if sha256_of(file, path) != self.manifest.files[name].sha256:
                raise _changed(path)
            number = str(file.fileno())
            unlike = "".join("/." if digit == "1" else "/" for digit in f"{next(_openings):b}")
            there = os.path.exists(f"{_DESCRIPTORS}/{number}")
            yield f"{_DESCRIPTORS}{unlike}/{number}" if there else str(path)

    def verify_all(self) -> int:
        """Verify the hash of every listed file, and that there are no others; the bytes that were read.

        Raises:
            UserError: the first file that changed or is not listed.
        """
        for path in _walk(self.folder):
            name = path.relative_to(self.folder).as_posix()
            if name not in self.manifest.files and name not in (MANIFEST, SIGNATURE):
                raise UserError(f"{path} is not listed in {MANIFEST}: remove it or build the bundle again")
        for name in self.manifest.files:
            self.path(name)
        return sum(facts.bytes for facts in self.manifest.files.values())

    def _listed(self, name: str) -> Path:
        """The path of a listed file."""
        if name not in self.manifest.files:
            raise UserError(f"{self.folder / MANIFEST} does not list {name!r}: build the bundle again")
        return self.folder / name

    def _check_size(self, name: str, size: int) -> None:
        """Refuse a file that is missing, outside the folder, no plain file, or of another size."""
        path = self.folder / name
        try:
            inside = path.resolve(strict=True).is_relative_to(self._root)
            actual = path.stat().st_size
        except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links, before Python 3.13
            raise UserError(f"{path} is listed in {MANIFEST} but cannot be read: copy the bundle again") from None
        if not inside:
            raise UserError(f"{path} is a link that leaves the bundle: replace it by the file")
        if not path.is_file():
            raise UserError(f"{path} is listed in {MANIFEST} but is not a file")
        if actual != size:
            raise UserError(f"{path} has {actual} bytes, {MANIFEST} says {size}: copy the bundle again")


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json and check what does not need the other files.

    Raises:
        UserError: it cannot be read, is of another format, or holds something that makes no sense.
    """
    try:
        value = read_json(path, _MAX_MANIFEST_BYTES, finite=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: is {path.parent} a bundle?") from None
    except TooLargeError as error:
        raise UserError(f"{path} is {error}: this is no bundle of ours") from None
    except ValueError:
        raise UserError(f"{path} is not valid JSON: build the bundle again") from None
    if (refusal := refused_version(value)) is not None:
        raise UserError(f"{path} {refusal}")
    try:
        return Manifest.from_json(value)
    except SchemaError as error:
        raise UserError(f"{MANIFEST}: {error}: build the bundle again") from None


def write_manifest(
    folder: Path,
    models: Mapping[str, ModelFacts] | None = None,
    plan: Plan | None = None,
    tokenizer: TokenizerFacts | None = None,
    board: dict[str, Any] | None = None,
) -> Path:
    """List every file of ``folder`` in its manifest.json; the same folder gives the same bytes.

    Args:
        folder: the finished bundle; caches (``__pycache__``) are left out.
        models: the description of the models, by role.
        plan: what was decided.
        tokenizer: facts about the tokenizer.
        board: the board, as its to_json gives it.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: the folder holds a link, the models name a file that is not there, or the parts contradict each
            other.
    """
    files, blocks = {}, {}
    weights = {model.weights for model in (models or {}).values()}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, SIGNATURE) or "__pycache__" in path.parts:
            continue
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a bundle holds only files")
        files[name] = FileFacts(path.stat().st_size, hash_file(path))
        if name in weights:
            blocks[name] = BlockHashes(block_hashes(path))
    if missing := sorted({name for model in (models or {}).values() for name in model.files} - set(files)):
        raise ValueError(f"models name files that {folder} does not hold: {', '.join(missing)}")
    manifest = Manifest(files, dict(models or {}), plan, tokenizer, board, blocks)
    path = folder / MANIFEST
    write_text(path, manifest.to_text())
    return path


def _changed(path: Path) -> UserError:
    return UserError(f"{path} does not match its SHA-256 in {MANIFEST}: copy or build the bundle again")


def _check_path(name: str) -> None:
    """Refuse a path that could leave the bundle."""
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or ".." in parts or name.startswith("/") or re.search(r"[\\:\x00]", name):
        raise UserError(f"{MANIFEST} lists {name!r}, which is not a plain path inside the bundle")


def _walk(folder: Path) -> list[Path]:
    """Return every file and link below ``folder``, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
