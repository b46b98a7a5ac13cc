"""The wheel: both builds of the OpenCL runtime are in it, old systems load them, and nobody needs a compiler then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from requirements import missing

from targets import elf, zig
from targets.opencl import runtime as opencl_runtime
from targets.opencl.runtime import building

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "wheel_backend.py", "MANIFEST.in", "README.md", "LICENSE")
PACKAGES = ("hetero_sd", "passes", "costmodel", "targets")
LIBRARIES = {t: f"targets/opencl/runtime/lib/{t}/{opencl_runtime.LIBRARY}" for t in ("x86-64", "aarch64")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel of a copy of the project, and what building it said."""
    copy, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copyfile(ROOT / name, copy / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.part"))
    # without isolation: with it, a new copy of the compiler makes its C++ library again for both machines, in minutes
    options = ["--verbose", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    said = done.stdout + done.stderr
    if done.returncode != 0 and "No matching distribution" in said:
        missing("the build requirements of the wheel cannot be had", "let pip reach PyPI")
    assert done.returncode == 0, said[-3000:]
    [path] = out.glob("*.whl")
    return path, said


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "HSD_"))}
    return {**kept, **more}


@pytest.mark.slow
def test_the_wheel_has_the_runtime_for_both_machines(wheel: tuple[Path, str], tmp_path: Path) -> None:
    path, said = wheel
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert {name for name in names if name.endswith((".so", ".a", ".o"))} == set(LIBRARIES.values())
        assert "wheel_backend.py" not in names
        assert {"hetero_sd/predict/report.html.jinja", "hetero_sd/runtime/serve/page.html"} <= set(names)
        archive.extractall(tmp_path)
    for target, name in LIBRARIES.items():
        assert elf.machine(tmp_path / name) == target
        assert building.newer_than_oldest(tmp_path / name) == []
        assert f"compiling the OpenCL runtime for {target}" in said
    assert "this wheel has no OpenCL runtime" not in said


PROGRAM = """
import tvm, tvm_ffi
from pathlib import Path
from targets.opencl import runtime as opencl_runtime
assert tvm_ffi.get_global_func("hetero_sd.opencl.devices", allow_missing=True), "not loaded by import tvm"
assert opencl_runtime.load() == "ours"
for target in ("x86-64", "aarch64"):
    print(opencl_runtime.ensure(target).relative_to(Path(opencl_runtime.__file__).parent))
"""


@pytest.mark.slow
def test_an_installed_wheel_needs_no_compiler(wheel: tuple[Path, str], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel[0])]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, env=clean_environment())
    (site / "tvm_and_numpy.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # after the wheel's own packages
    env = clean_environment(PATH="/nowhere", XDG_CACHE_HOME=str(tmp_path / "cache"))
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"lib/{target}/{opencl_runtime.LIBRARY}" for target in LIBRARIES]
    assert not (tmp_path / "cache").exists()  # nothing was built
    (
        site / "hetero_sd-0.1.0.dist-info/entry_points.txt"
    ).unlink()  # the negative control: without the entry point it is not loaded
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert "not loaded by import tvm" in done.stderr


def test_without_a_compiler_the_wheel_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from setuptools import Distribution

    monkeypatch.syspath_prepend(str(ROOT))
    import wheel_backend

    monkeypatch.setattr(zig, "has_zig", lambda: False)
    command = wheel_backend.BuildWithRuntime(Distribution())
    command._build_runtime(tmp_path / "lib")
    said = capsys.readouterr().err
    for target in LIBRARIES:
        assert f"warning: this wheel has no OpenCL runtime for {target}: nothing compiles for {target} here" in said
    assert not (tmp_path / "lib").exists()
    monkeypatch.setenv("HSD_WHEEL_LIBRARIES", "require")
    with pytest.raises(SystemExit, match=r"error: nothing compiles for x86-64 here"):
        command._build_runtime(tmp_path / "lib")


def test_an_editable_install_asks_for_no_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from setuptools import build_meta

    import wheel_backend

    monkeypatch.setattr(build_meta, "get_requires_for_build_wheel", lambda settings: ["wheel"])
    requires = wheel_backend.get_requires_for_build_wheel()
    assert requires[0] == "wheel"
    assert [name.split("==")[0] for name in requires[1:]] == ["apache-tvm", "ziglang"]
    assert wheel_backend.get_requires_for_build_editable.__module__ == "setuptools.build_meta"
