"""Python packages for the device: wheels of its architecture, unpacked into one folder for PYTHONPATH.

A bundle that carries them runs where there is neither pip nor a network. They are what the runtime imports and no
more: the TVM runtime without its compiler (230 of 275 MB), numpy, tokenizers, and jinja2 for chat templates.
``tokenizers`` needs huggingface-hub only to download, so it is left out. Found 2026-11: wheels for aarch64 exist for
Python 3.10 to 3.14 (apache-tvm and tokenizers one for all, apache-tvm-ffi, numpy, ml_dtypes and markupsafe one each),
all for glibc 2.28 or older.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from targets.errors import UserError

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
ARCHITECTURES = ("aarch64", "x86_64")

# Fixed versions, with the hashes of their wheels (device_wheels.txt), so that the same command makes the same folder
# next year, from whatever index. tvm and its ffi are the ones that compile
# (a test compares), because a library and its runtime must agree.
_VERSIONS = {
    "apache-tvm": "0.27.0.post1",
    "apache-tvm-ffi": "0.1.15.post2",
    "jinja2": "3.1.6",
    "markupsafe": "3.0.3",
    "ml_dtypes": "0.6.0",
    "numpy": "2.4.6",
    "tokenizers": "0.23.3",
    "typing_extensions": "4.16.0",
}
_OLDER = {("numpy", "3.10"): "2.2.6"}  # the last numpy with wheels for that Python
_GLIBC_TAGS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
)
_HASHES = Path(__file__).with_name("device_wheels.txt")
_LARGEST_UNPACKED_BYTES = 1 << 30  # all wheels together have 350 MB before the dropping

# What the device never imports, as patterns of paths inside the wheels. Licences and METADATA stay, and so does
# libtvm_ffi_testing.so, which tvm_ffi's core is linked against.
_DROPPED = (
    "*.data/*",
    "*.dist-info/RECORD",
    "*.dist-info/sboms/*",
    "*.pyi",
    "*.pyx",
    "*.pxd",
    "*.pxi",
    "*.pyc",
    "*.h",
    "*.a",
    "*/tests/*",
    "numpy/_core/_*_tests.*",
    "numpy/_core/_simd.*",
    "numpy/distutils/*",
    "numpy/f2py/*",
    "tvm/3rdparty/*",
    "tvm/backend/cuda/*",
    "tvm/backend/trn/*",
    "tvm/cmake/*",
    "tvm/contrib/*",
    "tvm/include/*",
    "tvm/lib/libtvm_compiler.so",
    "tvm/lib/libtvm_runtime_cuda.so",
    "tvm/relax/*",
    "tvm/s_tir/*",
    "tvm/src/*",
    "tvm/testing/*",
    "tvm/topi/*",
    "tvm/web/*",
    "tvm_ffi/3rdparty/*",
    "tvm_ffi/cython/*",
    "tvm_ffi/include/*",
    "tvm_ffi/share/*",
    "tvm_ffi/src/*",
    "tvm_ffi/stub/*",
    "tvm_ffi/testing/*",
)


def vendor_wheels(site: Path, python: str = "3.12", arch: str = "aarch64") -> list[str]:
    """Download the device's packages with pip and unpack them into ``site``, which must not exist yet.

    Same arguments, same bytes. Nothing is left behind when it fails.

    Args:
        site: the folder to make; the device puts it on PYTHONPATH.
        python: version of the device's Python, one of ``PYTHONS``.
        arch: architecture of the device, one of ``ARCHITECTURES``.

    Returns:
        The packages as ``name==version``, sorted.

    Raises:
        UserError: unknown Python or architecture, ``site`` exists, no network, no such wheel, or an unsafe wheel.
    """
    if python not in PYTHONS:
        raise UserError(f"Python {python!r} of the device is not supported; there are wheels for {', '.join(PYTHONS)}")
    if arch not in ARCHITECTURES:
        raise UserError(f"architecture {arch!r} is not supported; there are wheels for {', '.join(ARCHITECTURES)}")
    if site.exists():
        raise UserError(f"{site} exists already; give a folder that is to be made")
    packages = [f"{name}=={_OLDER.get((name, python), version)}" for name, version in sorted(_VERSIONS.items())]
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent, prefix=f".{site.name}-") as scratch:
        wheels, unpacked = Path(scratch, "wheels"), Path(scratch, "site")
        _download(packages, wheels, python, arch)
        unpacked.mkdir()
        room = _LARGEST_UNPACKED_BYTES
        for wheel in sorted(wheels.glob("*.whl")):
            room -= unpack_wheel(wheel, unpacked, room)
        try:
            os.replace(unpacked, site)
        except OSError as error:
            raise UserError(f"{site} cannot be made: {error.strerror}") from None
    return packages


def unpack_wheel(wheel: Path, folder: Path, room_bytes: int) -> int:
    """Unpack what the device needs of one wheel into ``folder`` and return the bytes written.

    Raises:
        UserError: not a wheel or a damaged one, a path that leaves the folder or is written twice, a link, or more
            than ``room_bytes``.
    """
    written = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = _safe_path(entry, wheel)
                if entry.is_dir() or any(fnmatchcase(entry.filename, pattern) for pattern in _DROPPED):
                    continue
                written += entry.file_size
                if written > room_bytes:
                    raise UserError(f"{wheel.name}: unpacks to more than {_LARGEST_UNPACKED_BYTES >> 20} MiB")
                _write(archive, entry, folder / path, wheel)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{wheel.name}: not a valid wheel: {error}") from None
    return written


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, wheel: Path) -> None:
    """Write one file; zipfile itself stops at the size that the entry declares and checks its CRC."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, path.open("xb") as target:
            shutil.copyfileobj(source, target)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{wheel.name}: {entry.filename} is there already, from this wheel or another") from None
    path.chmod(0o644)


def _safe_path(entry: zipfile.ZipInfo, wheel: Path) -> PurePosixPath:
    path = PurePosixPath(entry.filename)
    outside = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename
    if outside or not path.parts or stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{wheel.name}: {entry.filename!r} is not a plain path inside the wheel")
    return path


def known_wheels() -> dict[str, str]:
    """SHA-256 by file name of every wheel that a bundle may carry."""
    lines = _HASHES.read_text("utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines if not line.startswith("#"))}


def _with_hashes(package: str) -> str:
    """A line of a requirements file: the version, and the hashes of its wheels for any Python and architecture."""
    start = package.replace("-", "_").replace("==", "-") + "-"
    digests = [digest for name, digest in known_wheels().items() if name.startswith(start)]
    return package + "".join(f" --hash=sha256:{digest}" for digest in digests) + "\n"


def _download(packages: list[str], folder: Path, python: str, arch: str) -> None:
    """Let pip fetch the wheels; its settings (index, proxy, certificates) are the user's."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for tag in _GLIBC_TAGS:
        command += ["--platform", f"{tag}_{arch}"]
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(_with_hashes(package) for package in packages))
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise UserError(f"{sys.executable} has no pip, which fetches the device's packages; install pip")
    missing = re.search(r"No matching distribution found for (\S+)", done.stderr)
    if missing:
        raise UserError(
            f"no wheel of {missing[1]} for Python {python} on {arch} was found; is the network or the package index "
            "reachable?"
        )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        name = re.search(r"^ *([A-Za-z0-9_.-]+==\S+)", done.stderr.split("DO NOT MATCH THE HASHES")[1], re.MULTILINE)
        raise UserError(
            f"the package index gave a wheel of {name[1] if name else 'a package'} that is not the one PyPI published: "
            "use another index or mirror"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    raise UserError(
        f"pip could not fetch the device's packages: {errors[-1] if errors else 'exit code ' + str(done.returncode)}"
    )
