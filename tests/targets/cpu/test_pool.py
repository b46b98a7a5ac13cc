"""The thread pool's C library: the same bytes everywhere, no lost or repeated task under stress, no data race."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from requirements import need

from targets import elf
from targets.cpu import pool
from targets.cpu.pool.building import build, build_key
from targets.errors import UserError

STRESS = Path(__file__).with_name("pool_stress.c")
INCLUDE = '"../../../targets/cpu/pool/src/pool.h"'


def compiler() -> list[str]:
    return ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc"]


def stress(folder: Path, *flags: str, change: tuple[str, str, str] = ("", "", "")) -> Path:
    """The stress program with the pool's sources in it; `change` is (file, before, after), a planted defect."""
    sources = folder / "src"
    shutil.copytree(pool.SOURCES, sources)
    (sources / "stress.c").write_text(STRESS.read_text().replace(INCLUDE, '"pool.h"'))
    if change[0]:
        text = (sources / change[0]).read_text()
        assert text.count(change[1]) == 1
        (sources / change[0]).write_text(text.replace(change[1], change[2]))
    program = folder / "stress"
    command = [*compiler(), "-std=c11", "-O2", "-g", *flags, "-pthread", *map(str, sources.glob("*.c"))]
    subprocess.run([*command, "-o", str(program)], check=True, capture_output=True)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, timeout=3000)


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ThreadSanitizer's flag, where it compiles and its programs start."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "a.c").write_text("int main(void) { return 0; }\n")
    command = [*compiler(), "-fsanitize=thread", str(folder / "a.c"), "-o", str(folder / "a")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    reason = made.stderr.strip().splitlines()[:1] or ["its program does not start"]
    need(made.returncode == 0 and run(folder / "a").returncode == 0, f"no ThreadSanitizer ({reason[0]})")
    return "-fsanitize=thread"


@pytest.mark.parametrize("isa", ["x86-64", "aarch64"])
def test_the_same_bytes_in_another_folder(isa: str, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "src"
    shutil.copytree(pool.SOURCES, other)
    built = build(isa, other, tmp_path / "deeper" / "down" / "thread_pool.so")
    kept = pool.ensure(isa)
    assert hashlib.sha256(built.read_bytes()).digest() == hashlib.sha256(kept.read_bytes()).digest()
    assert elf.machine(built) == isa
    assert elf.newest_glibc(built) <= (2, 28)
    assert str(tmp_path).encode() not in built.read_bytes()
    assert not [path for path in built.parent.iterdir() if path != built]


def test_changed_sources_are_built_again(tmp_path: Path) -> None:
    shutil.copytree(pool.SOURCES, tmp_path / "src")
    assert build_key("aarch64", tmp_path / "src") == build_key("aarch64", pool.SOURCES)
    (tmp_path / "src" / "region.c").write_text("int x;\n")
    assert build_key("aarch64", tmp_path / "src") != build_key("aarch64", pool.SOURCES)


def test_what_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "broken.c").write_text("int f(void) { return x; }\n")
    with pytest.raises(UserError, match=r"failed to build the thread pool: .*error: .*x") as caught:
        build("x86-64", tmp_path / "src", tmp_path / "out" / "thread_pool.so")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "thread_pool.so").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the thread pool cannot be built there"):
        build("x86-64", pool.SOURCES, tmp_path / "file" / "thread_pool.so")


@pytest.mark.slow
def test_twenty_thousand_regions(tmp_path: Path) -> None:
    done = run(stress(tmp_path), "20000", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    assert int(words[1]) > 5000  # regions with workers
    assert int(words[3]) > int(words[1])  # tasks


@pytest.mark.deep
def test_a_million_regions(tmp_path: Path) -> None:
    done = run(stress(tmp_path), "2400000", "11")  # others run on one thread, as drawn, or beside another caller
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) >= 1_000_000


REPEATED = (
    "crew.c",
    "crew->tasks - (int32_t)hsd_unclaimed(ticket)",
    "crew->tasks - 1 - (int32_t)hsd_unclaimed(atomic_load(&crew->ticket))",
)
UNORDERED = (
    "crew.c",
    "ticket - 1, memory_order_acquire,\n                                               memory_order_relaxed",
    "ticket - 1, memory_order_relaxed,\n                                               memory_order_relaxed",
)
OVERLAPPING = ("workspace.c", "    s->top = (char*)s->last;\n", "    s->top = (char*)s->last - 64;\n")


@pytest.mark.parametrize("defect", [REPEATED, OVERLAPPING], ids=["a task claimed twice", "blocks that overlap"])
def test_stress_notices_a_planted_defect(defect: tuple[str, str, str], tmp_path: Path) -> None:
    """Negative control: the defect ends the program, or tears it up."""
    assert run(stress(tmp_path, change=defect), "200000", "1").returncode != 0


@pytest.mark.slow
def test_no_data_race(sanitizer: str, tmp_path: Path) -> None:
    done = run(stress(tmp_path, sanitizer), "600", "3", "nofork")
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert "ThreadSanitizer" not in done.stderr


@pytest.mark.deep
def test_no_data_race_in_many_regions(sanitizer: str, tmp_path: Path) -> None:
    done = run(stress(tmp_path, sanitizer), "20000", "5", "nofork")
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert "ThreadSanitizer" not in done.stderr


@pytest.mark.slow
def test_a_missing_order_is_a_data_race(sanitizer: str, tmp_path: Path) -> None:
    """Negative control: a claim that does not acquire what the launching thread wrote."""
    done = run(stress(tmp_path, sanitizer, change=UNORDERED), "1000", "3", "nofork")
    assert "data race" in done.stderr
