"""What runs on the board while a bundle is copied there: its Python reads this text from standard input.

Each answer is one line that begins with MARK, so that what a login shell prints before is not taken for one. Data of a
file goes into one named by its SHA-256 in NAME.parts, beside the bundle, which gets its own name when it is whole:
after a lost connection the rest is sent. Only the standard library, on any Python from 3.8.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from typing import Any

MARK = "hsd-on-board-1 "
CLOSED = ("lib", "weights", "tokenizer", "python", "site")  # folders in which only listed files may be
OLDEST_PYTHON = [3, 10]  # of run.py
_CHUNK_BYTES = 1 << 20


def say(**answer: Any) -> None:
    """Send an answer."""
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()


def hashed(path: str) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


def known_hashes(record: str) -> dict[str, Any]:
    """What was hashed before: name -> size, time of change in ns, SHA-256."""
    try:
        with open(record, encoding="utf-8") as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def present(folder: str, files: dict[str, list[Any]], record: str) -> list[str]:
    """The files that are there as they should be; one whose size and time are those of its last hash is not read."""
    known, now = known_hashes(record), {}
    for name in files:
        path = os.path.join(folder, name)
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        facts = os.stat(path)
        seen = known.get(name, [])
        same = seen[:2] == [facts.st_size, facts.st_mtime_ns]
        now[name] = seen if same else [facts.st_size, facts.st_mtime_ns, hashed(path)]
    with open(record + ".new", "w", encoding="utf-8") as file:
        json.dump(now, file)
    os.replace(record + ".new", record)
    return [name for name in now if now[name][2] == files[name][1]]


def remove_others(folder: str, files: dict[str, list[Any]]) -> None:
    """Remove what an older bundle left where only listed files may be."""
    for part in CLOSED:
        for above, _, names in os.walk(os.path.join(folder, part)):
            for name in names:
                path = os.path.join(above, name)
                if os.path.relpath(path, folder).replace(os.sep, "/") not in files:
                    os.remove(path)


def receive(stream: Any, part: str, begun: int, size: int) -> None:
    """Write what is missing of a file to `part`.

    Each byte has its place, so that what an earlier connection left and what still comes of it do no harm.
    """
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        file.seek(begun)
        while begun < size:
            block = stream.read(min(_CHUNK_BYTES, size - begun))
            if not block:
                sys.exit(1)  # the connection is gone; what came stays for the next time
            file.write(block)
            begun += len(block)
        file.flush()
        os.fsync(file.fileno())


def copy(stream: Any, asked: dict[str, Any]) -> None:
    """Answer what is missing, then take each file that is announced.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder = os.path.join(os.path.expanduser("~"), "hetero_sd", asked["name"])
    files, parts, record = asked["listed"], folder + ".parts", folder + ".hashes.json"
    os.makedirs(os.path.dirname(folder), 0o700, exist_ok=True)
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.isfile(record):
        say(error=folder + " holds something else: move it away, or rename the bundle")
        return
    for made in (folder, parts):
        os.makedirs(made, 0o700, exist_ok=True)
    have = present(folder, files, record)
    missing = {name: facts for name, facts in files.items() if name not in have}
    begun = {name: os.path.join(parts, facts[1]) for name, facts in missing.items()}
    sizes = {name: os.path.getsize(path) if os.path.exists(path) else 0 for name, path in begun.items()}
    for name, size in sizes.items():
        if size > missing[name][0]:
            os.remove(begun[name])
            sizes[name] = 0
    need, free = sum(facts[0] - sizes[name] for name, facts in missing.items()), shutil.disk_usage(folder).free
    if need > free:
        say(error=f"{folder} needs {need / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free")
        return
    say(folder=folder, missing=sizes)
    for line in iter(stream.readline, b""):
        name = json.loads(line)
        if name == "":
            remove_others(folder, files)
            shutil.rmtree(parts)
            say(done=True)
            return
        size, sha256 = missing[name]
        receive(stream, begun[name], sizes[name], size)
        if hashed(begun[name]) != sha256:
            os.remove(begun[name])
            say(error=name + " did not arrive as it was sent: try again")
            return
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        os.replace(begun[name], os.path.join(folder, name))
        say(took=name)


def main() -> None:
    """Read what is asked, and copy; what the system refuses is an answer, too."""
    version = list(sys.version_info[:2])
    if version < OLDEST_PYTHON:
        say(error=f"its python3 is {version[0]}.{version[1]}, a bundle needs 3.10 or newer")
        return
    stream = sys.stdin.buffer
    try:
        copy(stream, json.loads(stream.readline()))
    except OSError as error:
        say(error=f"{error.filename or 'a file'}: {error.strerror}")
