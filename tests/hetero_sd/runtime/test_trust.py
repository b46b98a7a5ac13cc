"""run.py compares a bundle's code with its manifest, and that with its signature, before it imports any of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hetero_sd.compile.sign import read_private_key, sign
from hetero_sd.runtime.launcher import launcher
from hetero_sd.runtime.manifest import write_manifest
from hetero_sd.runtime.trust import BundleRefused, check_code, check_signature, stated_keys
from targets.opencl.runtime import machine

RUN = "def main(folder): print('imported'); return 0"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    for name, text in {
        "python/hetero_sd/__init__.py": "",
        "python/hetero_sd/runtime/__init__.py": "import helper",
        "python/hetero_sd/runtime/run.py": RUN,
        "site/helper.py": "",
        "run.py": launcher(machine(), "host"),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_manifest(folder)
    return folder


def run(bundle: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | (env or {})
    command = [sys.executable, str(bundle / "run.py"), *arguments]
    done = subprocess.run(command, env=settings, cwd="/", capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


EVIL = "print('evil')"


def change(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).write_text(EVIL) and None


def as_link(bundle: Path) -> None:
    (bundle.parent / "elsewhere").mkdir()
    (bundle.parent / "elsewhere" / "x.py").write_text(EVIL)
    (bundle / "python/linked").symlink_to(bundle.parent / "elsewhere")


def same_size(bundle: Path) -> None:
    (bundle / "python/hetero_sd/runtime/run.py").write_text(RUN.replace("0", "1"))


def without(name: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).unlink()


def unreadable(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"files": {"python/x": 7}}')


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (change("python/hetero_sd/runtime/run.py"), "run.py does not match its SHA-256 in manifest.json"),
        (same_size, "run.py does not match its SHA-256 in manifest.json"),
        (change("site/helper.py"), "helper.py does not match its SHA-256 in manifest.json"),
        (change("site/json.py"), "site/json.py is not listed in manifest.json: remove it"),
        (change("python/hetero_sd/runtime/run.so"), "run.so is not listed in manifest.json"),
        (change("python/numpy.pyc"), "numpy.pyc is not listed in manifest.json"),
        (as_link, "python/linked is not listed in manifest.json"),
        (without("site/helper.py"), "site/helper.py is listed in manifest.json but is not there"),
        (without("manifest.json"), "manifest.json: No such file or directory"),
        (unreadable, "manifest.json is not a manifest"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "attack",
)
def test_changed_code_is_not_imported(bundle: Path, attack: Callable[[Path], None], said: str) -> None:
    assert run(bundle) == (0, "imported\n", "")
    attack(bundle)
    code, out, err = run(bundle)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("run.py: error: ")
    assert said in err


def test_neither_the_folder_itself_nor_cached_code_is_imported(bundle: Path) -> None:
    for name in ("json", "platform", "hashlib", "os", "shlex"):
        (bundle / f"{name}.py").write_text(EVIL)
    evil = bundle.parent / "evil.py"
    evil.write_text("def main(folder): print('evil'); return 0")
    import py_compile

    tag = sys.implementation.cache_tag
    cached = bundle / f"python/hetero_sd/runtime/__pycache__/run.{tag}.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), str(cached), invalidation_mode=mode)
    assert run(bundle) == (0, "imported\n", "")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); import hetero_sd.runtime.run as r; "
    )
    command = [sys.executable, "-c", code + "r.main(0)", str(bundle / "python"), str(bundle / "site")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout == "evil\n"  # the negative control: Python alone takes what is cached


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made, none = Ed25519PrivateKey.generate(), serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(made.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def refusal(folder: Path, key: Path) -> str:
    with pytest.raises(BundleRefused) as caught:
        check_signature(folder, str(key))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_signature(bundle: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path, "ours")
    _, other = keys(tmp_path, "other")
    assert "is not signed" in refusal(bundle, public)
    sign(bundle / "manifest.json", read_private_key(private))
    first = (bundle / "manifest.json.sig").read_bytes()
    sign(bundle / "manifest.json", read_private_key(private))
    assert (len(first), (bundle / "manifest.json.sig").read_bytes()) == (64, first)
    check_signature(bundle, str(public))
    assert "was not signed with the key of" in refusal(bundle, other)
    assert "not a public Ed25519 key in PEM" in refusal(bundle, private)
    assert "cannot read" in refusal(bundle, tmp_path / "none")
    assert run(bundle, "--verify-key", str(public)) == (0, "imported\n", "")
    code, out, err = run(bundle, f"--verify-key={other}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    check_code(bundle)  # what it says is the same, its bytes are not
    assert "or changed since" in refusal(bundle, public)
    (bundle / "manifest.json.sig").write_bytes(first[:-1])
    assert "or changed since" in refusal(bundle, public)


def test_a_machine_without_the_package_says_so(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ImportError")
    code, out, err = run(bundle, "--verify-key", "any", env={"PYTHONPATH": str(tmp_path)})
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--verify-key needs the package cryptography" in err


def test_keys_of_a_command_line() -> None:
    assert stated_keys(["--verify-key", "a", "--verify-key=b", "--verify-key"]) == ["a", "b"]
    assert stated_keys(["--prompt", "x"]) == []
