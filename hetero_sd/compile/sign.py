"""Signing a bundle: Ed25519 over the bytes of manifest.json, which has the SHA-256 of every other file.

The signature is 64 bytes in a file beside the manifest, as `openssl pkeyutl -verify -rawin` reads it, too. Ed25519 has
no random part: the same key and the same manifest give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hetero_sd.runtime.trust import SIGNATURE
from targets.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MOST_KEY_BYTES = 1 << 16


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file without a password, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        UserError: it cannot be read, is another kind of key, or the package cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise UserError("--sign needs the package cryptography: pip install cryptography") from None
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_KEY_BYTES)
    except OSError as error:
        raise UserError(f"--sign {path}: cannot be read: {error.strerror}") from None
    try:
        key = load_pem_private_key(text, None)
    except Exception:  # the library raises several classes for what is no key, or has a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            f"--sign {path}: not a private Ed25519 key in PEM without a password; "
            "`openssl genpkey -algorithm ed25519 -out KEY` makes one"
        )
    return key


def sign(manifest: Path, key: Ed25519PrivateKey) -> None:
    """Write the signature beside a manifest."""
    manifest.with_name(SIGNATURE).write_bytes(key.sign(manifest.read_bytes()))
