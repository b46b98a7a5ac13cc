"""Writing a bundle: a folder that runs on the device with Python, numpy, TVM's runtime and tokenizers.

    manifest.json         every file's size and SHA-256, the models, the plan
    manifest.json.sig     with --sign: the manifest's signature
    run.py                the command
    lib/, weights/        one library per processor and model, its weights as safetensors; the thread pool
    tokenizer/            the tokenizer's files
    python/               the part of our packages the device needs, import paths unchanged
    site/                 with --vendor-wheels: TVM's runtime, numpy, tokenizers for AArch64
    requirements.txt      what to pip install on the device otherwise

A bundle is built beside its place, written through to the disk and renamed at the end, so a failed build leaves
nothing. What a killed one left is removed by the next build to the same place: a build holds a lock on its folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hetero_sd.runtime.launcher import launcher
from hetero_sd.runtime.manifest import MANIFEST
from hetero_sd.runtime.model.thread_pool import LIBRARY
from hetero_sd.runtime.trust import SIGNATURE
from targets.errors import UserError
from targets.files import refuse_no_folder

_ROOT = Path(__file__).resolve().parents[2]
_DEVICE_PACKAGES = ("hetero_sd/__init__.py", "hetero_sd/runtime", "costmodel", "targets")
_HOST_ONLY = (
    *("targets/cpu/kernels", "targets/cpu/linker.py", "targets/cpu/target.py"),
    *("targets/kernels", "targets/cpu/pool"),
    *("targets/opencl/kernels", "targets/opencl/target.py"),
)
_SUFFIXES = (".py", ".toml", ".typed", ".html")
_MADE = ("lib", "weights", "tokenizer", "python", "site", "run.py", "requirements.txt", MANIFEST, SIGNATURE)
_CANNOT_SYNC = (errno.EINVAL, errno.EROFS, errno.ENOTSUP)  # a file system that has no such thing


def refuse_existing(out: Path) -> None:
    """Refuse a folder that is there, before any work.

    Raises:
        UserError: `out` exists, if only as a link to nothing, or its parent is no folder.
    """
    if os.path.lexists(out):
        raise UserError(f"--out {out}: already exists; give a new folder or remove it")
    refuse_no_folder(out, "--out")


@contextlib.contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """A folder to fill; it replaces nothing and becomes `out` when the block ends without an exception.

    Raises:
        UserError: `out` exists, or its parent cannot be written.
    """
    refuse_existing(out)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        work, lock = _locked_folder(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    try:
        work.chmod(0o755)
        yield work
        try:
            _sync(work)
            os.rename(work, out)
        except OSError as error:
            reason = "another compile wrote it meanwhile" if os.path.lexists(out) else error.strerror
            raise UserError(f"--out {out}: cannot be written: {reason}; give a new folder") from None
        with contextlib.suppress(OSError):  # the bundle is whole already
            _sync_one(parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _locked_folder(out: Path) -> tuple[Path, int]:
    """A folder beside `out`, and the descriptor whose lock says that a build works in it."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.new.", dir=out.absolute().parent))
        try:
            lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another build took it for a leftover before it was locked
            continue
        except OSError:
            work.rmdir()
            raise
        with contextlib.suppress(OSError):  # a file system without locks, on which nothing is removed either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if work.is_dir():
            return work, lock
        os.close(lock)


def remove_leftovers(out: Path) -> None:
    """Remove what builds to the same place left that were killed: nobody has a lock on it."""
    ours = re.compile(re.escape(f".{out.name}.new.") + r"[a-z0-9_]{8}")
    for path in out.absolute().parent.iterdir():
        if not ours.fullmatch(path.name):
            continue
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # no folder, or another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if all(name in _MADE or name.startswith(".") for name in os.listdir(lock)):  # else it is no build's
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # a build works in it
        finally:
            os.close(lock)


def _sync(folder: Path) -> None:
    """Write every file and folder through to the disk, so that after a power failure `out` is whole or not there."""
    for parent, _, names in os.walk(folder, topdown=False):
        for path in (*(os.path.join(parent, name) for name in names), parent):
            _sync_one(path)


def _sync_one(path: str | Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(opened)


def copy_device_python(folder: Path) -> None:
    """Copy the part of our packages that runs on the device."""
    for name in _DEVICE_PACKAGES:
        source = _ROOT / name
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            relative = path.relative_to(_ROOT).as_posix()
            if path.suffix in _SUFFIXES and not relative.startswith(_HOST_ONLY):
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / relative)


def copy_opencl_runtime(folder: Path, isa: str) -> Path:
    """Copy the OpenCL runtime for a board's instruction set to where the device's Python looks for it; its new path.

    Raises:
        UserError: there is none for that instruction set and it cannot be built here.
    """
    from targets.opencl import runtime as opencl_runtime

    library = opencl_runtime.ensure(isa)
    copy = folder / "targets" / "opencl" / "runtime" / "lib" / isa / opencl_runtime.LIBRARY
    copy.parent.mkdir(parents=True)
    shutil.copyfile(library, copy)
    return copy


def copy_thread_pool(folder: Path, isa: str) -> None:
    """Put the thread pool for an instruction set into a bundle, once.

    Raises:
        UserError: it cannot be built here.
    """
    from targets.cpu import pool

    copy = folder / LIBRARY
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pool.ensure(isa), copy)


def write_launcher(folder: Path, isa: str, board: str) -> None:
    """Write run.py, for a board and its instruction set."""
    path = folder / "run.py"
    path.write_text(launcher(isa, board), "utf-8")
    path.chmod(0o755)


def write_requirements(folder: Path, tvm_version: str, chat: bool) -> None:
    """Write requirements.txt for devices that install packages; jinja2 only where there is a chat template."""
    lines = [f"apache-tvm=={tvm_version}", "numpy>=1.26", "tokenizers>=0.20", *(["jinja2>=3.1"] if chat else [])]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
