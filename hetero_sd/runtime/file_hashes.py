"""How the contents of a bundle's files are known again: their SHA-256, and hashes of blocks of long ones."""

from __future__ import annotations

import hashlib
import os
import random
from io import FileIO
from pathlib import Path

from costmodel.schema.manifest import BLOCK_BYTES
from targets.errors import UserError

_CHUNK_BYTES = 1 << 20
_SAMPLED_BLOCKS = 16


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading a chunk at a time."""
    try:
        with path.open("rb", buffering=0) as file:
            return sha256_of(file, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def sha256_of(file: FileIO, path: Path) -> str:
    """The SHA-256 of an open file, a chunk at a time."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def block_hashes(path: Path) -> tuple[str, ...]:
    """Return what `BlockHashes` holds of a file."""
    with path.open("rb") as file:
        return tuple(_block(block) for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def check_blocks(path: Path, hashes: tuple[str, ...], most: int = _SAMPLED_BLOCKS) -> None:
    """Compare blocks of a file with their hashes: all where there are no more than `most`, else as many by lot.

    Raises:
        UserError: one differs, or the file cannot be read.
    """
    every = range(len(hashes))
    chosen = every if len(every) <= most else sorted(random.SystemRandom().sample(every, most))
    try:
        with path.open("rb", buffering=0) as file:
            for index in chosen:
                block = os.pread(file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES)
                if _block(block) != hashes[index]:
                    raise UserError(
                        f"{path}: bytes {index * BLOCK_BYTES} to {index * BLOCK_BYTES + len(block)} are not those that "
                        f"were written (its storage may be failing): copy or build the bundle again"
                    )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _block(block: bytes) -> str:
    return hashlib.blake2b(block, digest_size=16).hexdigest()
