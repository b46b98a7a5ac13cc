"""What run.py does before it imports anything of its bundle: signature, and the code in python/ and site/.

run.py carries the text below this line (launcher.py), so it uses the standard library only, on any Python from 3.10.
Nothing here protects from a run.py that was replaced: who does not trust it checks the signature with OpenSSL first
(SECURITY.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

SIGNATURE = "manifest.json.sig"
FOLDERS = ("site", "python")  # from which Python imports
MOST_MANIFEST_BYTES = 64 << 20


class BundleRefused(Exception):
    """A bundle is not what it should be; the message is one line."""


def stated_keys(arguments: list[str]) -> list[str]:
    """The public keys that the command line asks to check with."""
    option, keys = "--verify-key", []
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            keys.append(arguments[i + 1])
        elif argument.startswith(f"{option}="):
            keys.append(argument[len(option) + 1 :])
    return keys


def check_signature(folder: Path, key: str) -> None:
    """Check the signature of the manifest in `folder` with the Ed25519 key in a PEM file.

    Raises:
        BundleRefused: it does not fit, there is none, or this machine cannot check it.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise BundleRefused(
            "--verify-key needs the package cryptography: apt-get install python3-cryptography, or pip install "
            "cryptography; no bundle carries it, because what checks a bundle must not come out of it"
        ) from None
    text, manifest = read_limited(Path(key)), read_limited(folder / "manifest.json")
    if not (folder / SIGNATURE).is_file():
        raise BundleRefused(f"{folder} is not signed: it has no {SIGNATURE}")
    signature = read_limited(folder / SIGNATURE)
    try:
        public = load_pem_public_key(text)
    except Exception:  # the library raises several classes for what is no key
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise BundleRefused(f"--verify-key {key}: not a public Ed25519 key in PEM")
    try:
        public.verify(signature, manifest)
    except InvalidSignature:
        raise BundleRefused(
            f"{folder / 'manifest.json'} was not signed with the key of {key}, or changed since"
        ) from None


def check_code(folder: Path) -> None:
    """Compare every file below python/ and site/ with the manifest; what Python may have cached there is not read.

    Raises:
        BundleRefused: a file changed, is missing or is not listed, or the manifest cannot be read.
    """
    path = folder / "manifest.json"
    try:
        files = json.loads(read_limited(path))["files"]
        listed = {name: (str(facts["sha256"]), int(facts["bytes"])) for name, facts in files.items()}
    except BundleRefused:
        raise
    except Exception:  # whatever a stranger's JSON may hold
        raise BundleRefused(f"{path} is not a manifest: copy or build the bundle again") from None
    found = {}
    for name in FOLDERS:
        for parent, folders, names in os.walk(folder / name):
            folders[:] = [inner for inner in folders if inner != "__pycache__"]
            links = [inner for inner in folders if os.path.islink(os.path.join(parent, inner))]
            for inner in (*names, *links):
                file = Path(parent, inner)
                found[file.relative_to(folder).as_posix()] = file
    if strange := sorted(set(found) - set(listed)):
        raise BundleRefused(f"{found[strange[0]]} is not listed in manifest.json: remove it or build the bundle again")
    for name, (digest, size) in sorted(listed.items()):
        if not name.startswith(tuple(f"{part}/" for part in FOLDERS)) or "__pycache__" in name:
            continue
        if name not in found:
            raise BundleRefused(f"{folder / name} is listed in manifest.json but is not there: copy the bundle again")
        if not found[name].is_file() or hash_of(found[name], size) != digest:
            raise BundleRefused(
                f"{found[name]} does not match its SHA-256 in manifest.json: copy or build the bundle again"
            )


def hash_of(path: Path, size: int) -> str:
    """The SHA-256 of a file of `size` bytes; of another size, "".

    Raises:
        BundleRefused: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return ""
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise BundleRefused(f"cannot read {path}: {error.strerror}") from None


def read_limited(path: Path) -> bytes:
    """The content of a file, which no manifest exceeds.

    Raises:
        BundleRefused: it cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleRefused(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MOST_MANIFEST_BYTES:
        raise BundleRefused(f"{path} is larger than {MOST_MANIFEST_BYTES} bytes")
    return content
