"""The hashes of a bundle's files."""

from __future__ import annotations

import hashlib
import random

import pytest

from hetero_sd.runtime import file_hashes
from hetero_sd.runtime.file_hashes import block_hashes, check_blocks, hash_file
from targets.errors import UserError


def test_hash_is_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "_CHUNK_BYTES", 7)
    data = bytes(range(256)) * 3
    (tmp_path / "f").write_bytes(data)
    assert hash_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_sample_of_the_blocks_of_weights_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "BLOCK_BYTES", 10)
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(95)))
    hashes = block_hashes(path)
    assert len(hashes) == len(set(hashes)) == 10
    chosen = []

    class Lot(random.SystemRandom):
        def sample(self, population, k):
            return chosen[-1]

    monkeypatch.setattr(file_hashes.random, "SystemRandom", Lot)
    for damaged in range(95):
        data = bytearray(range(95))
        data[damaged] ^= 1
        path.write_bytes(data)
        for block in range(10):
            chosen.append([block])
            if block == damaged // 10:
                with pytest.raises(UserError, match=rf"bytes {10 * block} to {min(10 * block + 10, 95)} are not those"):
                    check_blocks(path, hashes, 1)
            else:
                check_blocks(path, hashes, 1)
        with pytest.raises(UserError, match="are not those that were written"):
            check_blocks(path, hashes, 10)
