"""The program cache keeps what is the user's own, and reads nothing that another could have put there."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from requirements import need_program

from hetero_sd.runtime.model.program_cache import why_not_usable
from targets.opencl.runtime import SOURCES

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("program_cache") / "program_cache_test"
    sources = [HERE / "program_cache_test.cc", SOURCES / "binary_cache.cc", SOURCES / "sha256.cc"]
    flags = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", f"-I{SOURCES}"]
    subprocess.run([need_program("g++"), *flags, *sources, "-o", built], check=True)
    return built


def use(program: Path, folder: Path, *words: str, umask: int = -1) -> str:
    done = subprocess.run([program, folder, *words], capture_output=True, text=True, check=False, umask=umask)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("umask", [0, 0o002, 0o077, 0o777])
def test_folder_and_entries_are_the_users_alone_whatever_the_umask(program: Path, tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "a" / "b"
    assert use(program, folder, "write", "k", "text", umask=umask) == "damaged 0 written 1"
    assert use(program, folder, "read", "k") == "text damaged 0 written 0"
    assert [oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "a", folder)] == ["0o700", "0o700"]
    assert [(path.name, oct(path.stat().st_mode & 0o7777)) for path in folder.iterdir()] == [("k.clbin", "0o600")]
    made = tmp_path / "c" / "d"
    before = os.umask(umask)
    try:
        assert why_not_usable(made) is None
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "c", made)] == ["0o700", "0o700"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(program: Path, tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    use(program, folder, "write", "k", "text")
    folder.chmod(mode)
    assert use(program, folder, "read", "k", "write", "l", "more") == "- damaged 0 written 0"
    assert why_not_usable(folder) == f"{folder} can be written by others and is not used"
    folder.chmod(0o755)  # read by others: nothing in it is secret
    assert use(program, folder, "read", "k") == "text damaged 0 written 0"
    assert why_not_usable(folder) is None


def test_a_folder_of_another_user_is_not_used(program: Path, tmp_path: Path) -> None:
    folder = Path("/")
    if os.geteuid() == 0:
        folder = tmp_path / "cache"
        use(program, folder, "write", "k", "text")
        os.chown(folder, 1, 1)
    assert use(program, folder, "read", "k", "write", "l", "more") == "- damaged 0 written 0"
    assert why_not_usable(folder) == f"{folder} belongs to another user and is not used"


def test_only_plain_files_of_the_user_are_entries(program: Path, tmp_path: Path) -> None:
    use(program, tmp_path / "other", "write", "k", "text")
    folder = tmp_path / "cache"
    use(program, folder, "write", "mine", "text", "write", "loose", "text")
    (folder / "link.clbin").symlink_to(tmp_path / "other" / "k.clbin")
    os.mkfifo(folder / "pipe.clbin")
    (folder / "folder.clbin").mkdir()
    (folder / "loose.clbin").chmod(0o666)
    words = [word for key in ("link", "pipe", "folder", "loose", "mine", "none") for word in ("read", key)]
    assert use(program, folder, *words) == "- - - - text - damaged 4 written 0"
    kept = (tmp_path / "other" / "k.clbin").read_bytes()
    assert use(program, folder, "write", "link", "new", "read", "link") == "new damaged 0 written 1"
    assert (tmp_path / "other" / "k.clbin").read_bytes() == kept


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    use(program, folder, "write", "k", "text")
    left, used = folder / ".left.tmp", folder / ".used.tmp"
    left.write_text("half")
    with used.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert use(program, folder, "read", "k") == "text damaged 0 written 0"
        assert sorted(path.name for path in folder.iterdir()) == [".used.tmp", "k.clbin"]
    use(program, folder, "read", "k")
    assert [path.name for path in folder.iterdir()] == ["k.clbin"]
