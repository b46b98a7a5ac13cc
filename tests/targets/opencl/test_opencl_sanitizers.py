"""The runtime below TVM, on a fake driver and on PoCL, under AddressSanitizer (with UBSan) and ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from requirements import need_program

from targets.opencl.runtime import SOURCES

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
CORE = ("api", "device", "buffer", "program", "binary_cache", "sha256")


@dataclass
class UnitTest:
    program: Path
    driver: Path
    link: list[str | Path]  # the command that links the runtime to another program

    def run(self, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "HSD_OPENCL_CACHE": "", "HSD_OPENCL_LIB": str(self.driver), **env}
        return subprocess.run([self.program], env=settings, capture_output=True, text=True, timeout=120, check=False)


def build(folder: Path, sanitizer: str, sources: Path = SOURCES) -> UnitTest:
    flags = [need_program("g++"), "-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    flags += [f"-fsanitize={sanitizer}", f"-I{sources}"]
    driver, program = folder / "fake_opencl.so", folder / "unit_test"
    core = [sources / f"{name}.cc" for name in CORE]
    subprocess.run([*flags, "-fPIC", "-shared", HERE / "fake_opencl.cc", "-o", driver], check=True)
    subprocess.run([*flags, "-c", *core], check=True, cwd=folder)
    link = [*flags, *(folder / f"{name}.o" for name in CORE), "-ldl", "-lpthread"]
    subprocess.run([*link, HERE / "runtime_unit_test.cc", "-o", program], check=True)
    return UnitTest(program, driver, link)


@pytest.fixture(scope="module")
def with_addresses(tmp_path_factory: pytest.TempPathFactory) -> UnitTest:
    return build(tmp_path_factory.mktemp("addresses"), "address,undefined")


@pytest.mark.parametrize("driver", [{}, {"FAKE_UNIFIED": "0"}, {"FAKE_MOVES": "1"}, {"FAKE_ARM": "1"}], ids=str)
def test_clean_of_address_errors_and_leaks(with_addresses: UnitTest, driver: dict[str, str]) -> None:
    done = with_addresses.run(**driver)
    assert (done.returncode, done.stdout) == (0, "all passed\n"), done.stderr


def test_clean_with_a_cache(with_addresses: UnitTest, tmp_path: Path) -> None:
    count = 0
    for driver in ({}, {"FAKE_DRIVER": "2"}, {"FAKE_VERSION": "OpenCL 1.2 v2"}):  # binaries are no other driver's
        done = with_addresses.run(HSD_OPENCL_CACHE=str(tmp_path), **driver)
        assert (done.returncode, done.stdout) == (0, "all passed\n"), done.stderr
        before, count = count, len(list(tmp_path.iterdir()))
        assert count > before


def test_a_leak_would_be_seen(with_addresses: UnitTest) -> None:
    done = with_addresses.run(HSD_OPENCL_FAULT="clReleaseMemObject:1:CL_OUT_OF_RESOURCES")
    assert done.returncode != 0
    assert "LeakSanitizer: detected memory leaks" in done.stderr


@pytest.fixture(scope="module")
def with_threads(tmp_path_factory: pytest.TempPathFactory) -> UnitTest:
    return build(tmp_path_factory.mktemp("threads"), "thread")


def test_clean_of_races(with_threads: UnitTest) -> None:
    done = with_threads.run()
    assert (done.returncode, done.stdout) == (0, "all passed\n"), done.stderr


def test_a_race_would_be_seen(tmp_path: Path) -> None:
    sources = tmp_path / "src"
    shutil.copytree(SOURCES, sources)
    text = (sources / "program.cc").read_text()
    unlocked = text.replace("std::lock_guard<std::mutex> lock(mutex_);  // arguments", "// arguments")
    assert unlocked != text
    (sources / "program.cc").write_text(unlocked)
    done = build(tmp_path, "thread", sources).run()
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr


# What drivers do among themselves, without our sanitizers in them, is not judged.
NOT_OURS = {
    "LSAN": ["leak:libpocl", "leak:libLLVM", "leak:libclang", "leak:libOpenCL", "leak:libhwloc"],
    "TSAN": ["race:libpocl", "race:libLLVM", "race:libclang", "mutex:libpocl", "mutex:libLLVM"],
}


def on_pocl(unit: UnitTest, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = folder / "pocl_test"
    if not program.exists():
        subprocess.run([*unit.link, HERE / "pocl_test.cc", "-o", program], check=True)
    settings = {**os.environ, "HSD_OPENCL_CACHE": "", "ASAN_OPTIONS": "detect_odr_violation=0"}
    for name, lines in NOT_OURS.items():
        (folder / name).write_text("\n".join(lines))
        settings[f"{name}_OPTIONS"] = f"suppressions={folder / name}:print_suppressions=0"
    return subprocess.run([program, *words], env=settings, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.deep
@pytest.mark.usefixtures("opencl")  # a driver, or a reason
def test_clean_on_a_real_driver(with_addresses: UnitTest, with_threads: UnitTest, tmp_path: Path) -> None:
    for unit, wrong, found in (
        (with_addresses, "overrun", "AddressSanitizer: heap-buffer-overflow"),
        (with_threads, "race", "ThreadSanitizer: data race"),
    ):
        folder = tmp_path / wrong
        folder.mkdir()
        done = on_pocl(unit, folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("\nall passed\n")
        assert "Sanitizer" not in done.stderr
        assert found in on_pocl(unit, folder, wrong).stderr
