from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from requirements import missing

from hetero_sd.compile import vendor
from hetero_sd.compile.vendor import unpack_wheel, vendor_wheels
from targets.errors import UserError

ROOM = 1 << 20


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_the_device_needs_is_kept_and_the_rest_dropped(tmp_path: Path) -> None:
    made = wheel(
        tmp_path / "tvm.whl",
        {
            "tvm/__init__.py": b"x = 1\n",
            "tvm/lib/libtvm_runtime.so": b"runtime",
            "tvm/lib/libtvm_compiler.so": b"compiler",
            "tvm/include/tvm/a.h": b"",
            "tvm-1.dist-info/METADATA": b"Name: tvm\n",
            "tvm-1.dist-info/RECORD": b"",
            "tvm-1.dist-info/licenses/LICENSE": b"",
        },
    )
    written = unpack_wheel(made, tmp_path / "site", ROOM)
    kept = [
        "tvm-1.dist-info/METADATA",
        "tvm-1.dist-info/licenses/LICENSE",
        "tvm/__init__.py",
        "tvm/lib/libtvm_runtime.so",
    ]
    assert sorted(contents(tmp_path / "site")) == sorted(kept)
    assert written == len(b"x = 1\n" + b"runtime" + b"Name: tvm\n")


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py", "a\\evil.py", "c:/evil.py"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    made = wheel(tmp_path / "bad.whl", {name: b"x"})
    with pytest.raises(UserError, match=r"bad\.whl: .* is not a plain path inside the wheel"):
        unpack_wheel(made, tmp_path / "site", ROOM)
    assert not list(tmp_path.rglob("evil.py"))


def test_a_link_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("package/link.py")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="is not a plain path"):
        unpack_wheel(tmp_path / "bad.whl", tmp_path / "site", ROOM)


def test_a_wheel_that_grows_too_large_is_refused_before_it_is_written(tmp_path: Path) -> None:
    made = wheel(tmp_path / "bomb.whl", {"package/zeros.bin": bytes(ROOM + 1)})
    assert made.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"bomb\.whl: unpacks to more than"):
        unpack_wheel(made, tmp_path / "site", ROOM)
    assert not list(tmp_path.rglob("zeros.bin"))
    assert unpack_wheel(made, tmp_path / "site", ROOM + 1) == ROOM + 1


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path / "bad.whl", {"package": b"x", "package/a.py": b"x"})
    with pytest.raises(UserError, match=r"package/a\.py is there already"):
        unpack_wheel(made, tmp_path / "site", ROOM)


def test_two_wheels_with_one_file_are_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path / "twice.whl", {"package/a.py": b"x"})
    unpack_wheel(made, tmp_path / "site", ROOM)
    with pytest.raises(UserError, match=r"package/a\.py is there already"):
        unpack_wheel(made, tmp_path / "site", ROOM)


@pytest.mark.parametrize("content", [b"no zip at all", b"PK\x05\x06"])
def test_a_file_that_is_no_wheel(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.whl").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.whl: not a valid wheel"):
        unpack_wheel(tmp_path / "bad.whl", tmp_path / "site", ROOM)


def test_a_damaged_wheel(tmp_path: Path) -> None:
    made = wheel(tmp_path / "bad.whl", {"package/a.py": b"x = 1\n" * 100})
    data = bytearray(made.read_bytes())
    data[30 + len("package/a.py") + 2] ^= 0xFF  # in the compressed bytes, behind the local header
    made.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"bad\.whl: not a valid wheel"):
        unpack_wheel(made, tmp_path / "site", ROOM)


def test_unknown_pythons_and_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Python '3\.9' of the device is not supported; there are wheels for 3\.10"):
        vendor_wheels(tmp_path / "site", "3.9")
    with pytest.raises(UserError, match="architecture 'riscv64' is not supported; there are wheels for aarch64"):
        vendor_wheels(tmp_path / "site", "3.12", "riscv64")
    with pytest.raises(UserError, match="exists already"):
        vendor_wheels(tmp_path)


def test_without_a_network_one_line_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(
        UserError, match=r"no wheel of .* for Python 3\.12 on aarch64 was found; is the network"
    ) as caught:
        vendor_wheels(tmp_path / "site")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_device_gets_the_tvm_that_compiles() -> None:
    for name in ("apache-tvm", "apache-tvm-ffi"):
        assert vendor._VERSIONS[name] == importlib.metadata.version(name)


@pytest.mark.slow
def test_the_same_bytes_twice_and_enough_to_import(tmp_path: Path) -> None:
    """For this machine's own Python; the virtual board imports the aarch64 packages."""
    python, arch = f"3.{sys.version_info.minor}", os.uname().machine
    try:
        packages = vendor_wheels(tmp_path / "site", python, arch)
    except UserError as error:
        missing(f"cannot fetch the packages: {error}", "let pip reach PyPI")
    assert packages == vendor_wheels(tmp_path / "again", python, arch)
    files = contents(tmp_path / "site")
    assert files == contents(tmp_path / "again")
    assert "tvm/lib/libtvm_runtime.so" in files
    assert not [name for name in files if name.endswith(".pyc") or "libtvm_compiler" in name or "cuda.so" in name]
    script = (
        "import sys, tvm, tokenizers, jinja2, numpy; from tvm.runtime.vm import VirtualMachine\n"
        "for module in (tvm, tokenizers, jinja2, numpy): assert module.__file__.startswith(sys.argv[1]), module\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "TVM_USE_RUNTIME_LIB": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-c", script, str(tmp_path / "site")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "site") == files


def test_every_wheel_that_a_device_can_need_has_a_hash() -> None:
    """One for each package, Python and architecture; a package without one would be refused by pip."""
    known = vendor.known_wheels()
    for python in vendor.PYTHONS:
        for arch in vendor.ARCHITECTURES:
            tag = f"cp{python.replace('.', '')}"
            for name, version in vendor._VERSIONS.items():
                start = f"{name.replace('-', '_')}-{vendor._OLDER.get((name, python), version)}-"
                fits = [
                    wheel
                    for wheel in known
                    if wheel.startswith(start)
                    and (f"-{tag}-{tag}-" in wheel or "-py3-" in wheel or "-abi3-" in wheel)
                    and (arch in wheel or wheel.endswith("-any.whl"))
                ]
                assert len(fits) == 1, (name, python, arch)
    assert all(len(digest) == 64 for digest in known.values())


def test_a_wheel_that_pypi_did_not_publish_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "jinja2-3.1.6-py3-none-any.whl", "w") as wheel:
        wheel.writestr("jinja2-3.1.6.dist-info/METADATA", "Metadata-Version: 2.1\nName: jinja2\nVersion: 3.1.6\n")
        wheel.writestr("jinja2-3.1.6.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("jinja2-3.1.6.dist-info/RECORD", "")
        wheel.writestr("jinja2/__init__.py", "planted = True")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UserError, match=r"gave a wheel of jinja2==3\.1\.6 that is not the one PyPI published"):
        vendor._download(["jinja2==3.1.6"], tmp_path / "wheels", "3.12", "aarch64")
    assert not list(tmp_path.rglob("wheels/*.whl"))
    digest = hashlib.sha256((index / "jinja2-3.1.6-py3-none-any.whl").read_bytes()).hexdigest()
    known = {"jinja2-3.1.6-py3-none-any.whl": digest}  # the negative control: the hash alone decides
    monkeypatch.setattr(vendor, "known_wheels", lambda: known)
    vendor._download(["jinja2==3.1.6"], tmp_path / "again", "3.12", "aarch64")
    assert [p.name for p in (tmp_path / "again").glob("*.whl")] == list(known)
