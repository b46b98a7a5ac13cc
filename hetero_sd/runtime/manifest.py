"""The bundle's manifest: every file with its size and SHA-256, checked before anything of it is used.

manifest.json: ``{"format_version": 1, "files": {relative path: {"bytes": n, "sha256": hex}}, "models": {...}, ...}``.
The bundle may come from anywhere, so paths are kept inside it, sizes are compared when it is opened, and a file's
hash before its path is handed out; a library is therefore never loaded unverified.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from targets.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_FILE_KEYS = ("library", "weights", "file")
_COMPLETE = ("lib", "weights", "tokenizer")  # folders in which every file is listed
_FILE_SUFFIXES = (".so", ".safetensors")


class Bundle:
    """An opened bundle: its manifest as a dict, and verified paths of its files."""

    def __init__(self, folder: Path) -> None:
        """Read and check the manifest of ``folder``, the sizes of all files, and that its main folders hold no others.

        Raises:
            UserError: something is missing, malformed, unlisted, outside the folder or of another size.
        """
        self.folder = folder
        self._root = folder.resolve()
        self._verified: set[str] = set()
        self.manifest = self._read()
        self._files: dict[str, dict[str, Any]] = self.manifest["files"]
        for name, facts in self._files.items():
            _check_facts(name, facts)
            self._check_size(name, facts["bytes"])
        try:
            named = list(_named_files(self.manifest.get("models", {})))
        except RecursionError:
            raise UserError(f"{self.folder / MANIFEST}: `models` is nested too deep: build the bundle again") from None
        for name in named:
            if name not in self._files:
                raise UserError(f"{self.folder / MANIFEST}: models name {name!r}, which `files` does not list")
        for path in (p for part in _COMPLETE for p in _walk(self.folder / part)):
            name = path.relative_to(self.folder).as_posix()
            if name not in self._files:
                raise UserError(f"{path} is not listed in {MANIFEST}: remove it or build the bundle again")

    @property
    def models(self) -> dict[str, Any]:
        """The description of the models, {"target": ..., "draft": ...}."""
        return dict(self.manifest.get("models") or {})

    @property
    def plan(self) -> dict[str, Any]:
        """The plan the bundle was compiled for; empty where it has none."""
        return dict(self.manifest.get("plan") or {})

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Facts about the tokenizer, for example ``eos_ids``; empty where the manifest states none."""
        return dict(self.manifest.get("tokenizer") or {})

    def __contains__(self, name: str) -> bool:
        """True where the manifest lists ``name``."""
        return name in self._files

    def path(self, name: str, hashed: bool = True) -> Path:
        """Return the path of a file by its name in the manifest, its SHA-256 verified once.

        Args:
            name: relative path, as listed.
            hashed: False trusts a file after the check of its size: for weights, whose hash may take seconds and
                whose header is checked when they are read; never for code.

        Raises:
            UserError: not listed, or its contents changed.
        """
        if name not in self._files:
            raise UserError(f"{self.folder / MANIFEST} does not list {name!r}: build the bundle again")
        path = self.folder / name
        if hashed and name not in self._verified:
            if hash_file(path) != self._files[name]["sha256"]:
                raise UserError(f"{path} does not match its SHA-256 in {MANIFEST}: copy or build the bundle again")
            self._verified.add(name)
        return path

    def verify_all(self) -> None:
        """Verify the hash of every listed file.

        Raises:
            UserError: the first file that changed.
        """
        for name in self._files:
            self.path(name)

    def _read(self) -> dict[str, Any]:
        """Read manifest.json and check what does not need the other files."""
        path = self.folder / MANIFEST
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise UserError(f"{path} is larger than {_MAX_MANIFEST_BYTES} bytes: this is no bundle of ours")
            manifest = json.loads(path.read_text("utf-8"), parse_constant=_no_number, parse_float=_finite)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}: is {self.folder} a bundle?") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path} is not valid JSON: build the bundle again") from None
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise UserError(f"{path} has no object `files`: build the bundle again")
        version = manifest.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format_version {version!r}, this runtime reads {FORMAT_VERSION}: "
                "build the bundle with the same version of hetero_sd"
            )
        for key in ("models", "plan", "tokenizer"):
            if not isinstance(manifest.get(key) or {}, dict):
                raise UserError(f"{path}: `{key}` is not an object: build the bundle again")
        return manifest

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


def write_manifest(folder: Path, contents: Mapping[str, Any]) -> Path:
    """List every file of ``folder`` in its manifest.json; the same folder gives the same bytes.

    Args:
        folder: the finished bundle; caches (``__pycache__``) are left out.
        contents: further keys: models, plan, tokenizer, ...

    Returns:
        The path of the manifest.

    Raises:
        ValueError: the folder holds a link or the models name a file that is not there.
    """
    files = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or "__pycache__" in path.parts:
            continue
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a bundle holds only files")
        files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    missing = sorted(set(_named_files(contents.get("models", {}))) - set(files))
    if missing:
        raise ValueError(f"models name files that {folder} does not hold: {', '.join(missing)}")
    manifest = {**contents, "files": files, "format_version": FORMAT_VERSION}
    path = folder / MANIFEST
    part = folder / (MANIFEST + ".part")
    part.write_text(json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(part, path)
    return path


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading a chunk at a time."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond float64")
    return value


def _check_facts(name: str, facts: Any) -> None:
    """Refuse a path that could leave the bundle, and facts that are not a size and a hash."""
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or ".." in parts or name.startswith("/") or re.search(r"[\\:\x00]", name):
        raise UserError(f"{MANIFEST} lists {name!r}, which is not a plain path inside the bundle")
    if (
        not isinstance(facts, dict)
        or type(facts.get("bytes")) is not int
        or facts["bytes"] < 0
        or not isinstance(facts.get("sha256"), str)
        or not re.fullmatch(r"[0-9a-f]{64}", facts["sha256"])
    ):
        raise UserError(f"{MANIFEST}: the entry of {name!r} needs `bytes` and `sha256`: build the bundle again")


def _named_files(value: Any, key: str = "") -> Iterator[str]:
    """Yield every string in ``value`` that names a file, by its key or by its suffix."""
    if isinstance(value, Mapping):
        for inner_key, inner in value.items():
            yield from _named_files(inner, str(inner_key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _named_files(inner, key)
    elif isinstance(value, str) and (key in _FILE_KEYS or value.endswith(_FILE_SUFFIXES)):
        yield value


def _walk(folder: Path) -> list[Path]:
    """Return every file and link below ``folder``, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
