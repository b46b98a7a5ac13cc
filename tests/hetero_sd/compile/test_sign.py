"""Which keys sign, and that OpenSSL reads the signature."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from requirements import need_program

from hetero_sd.compile.sign import read_private_key, sign
from targets.errors import UserError


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([need_program("openssl"), *map(str, arguments)], capture_output=True, check=False)


def test_openssl_makes_the_key_and_checks_the_signature(tmp_path: Path) -> None:
    private, public, manifest = tmp_path / "k", tmp_path / "k.pub", tmp_path / "manifest.json"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", private).returncode == 0
    assert openssl("pkey", "-in", private, "-pubout", "-out", public).returncode == 0
    manifest.write_text("{}")
    sign(manifest, read_private_key(private))
    check = ["pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", manifest]
    check += ["-sigfile", tmp_path / "manifest.json.sig"]
    assert openssl(*check).returncode == 0
    manifest.write_text("{ }")
    assert openssl(*check).returncode != 0


@pytest.mark.parametrize("kind", [["-algorithm", "x25519"], ["-algorithm", "ed25519", "-aes256", "-pass", "pass:x"]])
def test_other_keys_are_refused(tmp_path: Path, kind: list[str]) -> None:
    key = tmp_path / "k"
    assert openssl("genpkey", *kind, "-out", key).returncode == 0
    with pytest.raises(UserError, match="not a private Ed25519 key in PEM without a password"):
        read_private_key(key)
    key.write_bytes(b"\x00")
    with pytest.raises(UserError, match="not a private Ed25519 key"):
        read_private_key(key)
    with pytest.raises(UserError, match="cannot be read"):
        read_private_key(tmp_path / "none")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(UserError, match="--sign needs the package cryptography"):
        read_private_key(tmp_path / "k")
