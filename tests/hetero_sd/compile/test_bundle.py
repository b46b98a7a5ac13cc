"""Writing a bundle ends with the whole bundle or with nothing and one line, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hetero_sd.compile.bundle import copy_device_python, new_bundle, write_launcher, write_requirements
from hetero_sd.runtime.internal_error import report
from hetero_sd.runtime.manifest import Bundle, write_manifest
from targets.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
AUDITED = ("open", "os.rename", "os.mkdir", "os.chmod", "os.listdir", "os.scandir", "tempfile.mkdtemp")


class Injector:
    """Fails the k-th operation of the file system inside `below`, with "no space left"."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.below, self.left, self.count, self.failed = "", -1, 0, ""

        def fsync(descriptor: int) -> None:  # the disk itself is not waited for
            self("os.fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))

        patch.setattr(os, "fsync", fsync)
        sys.addaudithook(self)  # for the life of the process; it does nothing without `below`

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.below or event not in (*AUDITED, "os.fsync") or not arguments:
            return
        if not isinstance(arguments[0], (str, os.PathLike)) or not str(arguments[0]).startswith(self.below):
            return
        self.count += 1
        if self.count == self.left:
            self.failed = f"{event} {arguments[0]}"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    @contextmanager
    def watching(self, below: Path, left: int = -1) -> Iterator[None]:
        self.below, self.left, self.count, self.failed = str(below), left, 0, ""
        try:
            yield
        finally:
            self.below = ""


@pytest.fixture
def injector(monkeypatch: pytest.MonkeyPatch) -> Injector:
    return Injector(monkeypatch)


def write(out: Path) -> None:
    """A bundle without models, by the functions that compile calls."""
    with new_bundle(out) as folder:
        copy_device_python(folder / "python")
        write_launcher(folder, "x86-64", "host")
        write_requirements(folder, "0", False)
        write_manifest(folder)


def ends_well(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle is whole, or it is not there and one line says why; nothing lies beside it."""
    failure: Exception | None = None
    try:
        write(out)
    except (UserError, OSError) as error:
        failure = error
    if isinstance(failure, OSError):
        assert report("hetero-sd", "compile", failure) == 2
        said = capsys.readouterr().err
        assert (said.count("\n"), "No space left" in said or "File too large" in said) == (1, True)
    assert "\n" not in str(failure)


def check(out: Path, what: str) -> None:
    beside = sorted(path.name for path in out.parent.iterdir())
    assert beside in ([], [out.name]), (what, beside)
    if beside:
        Bundle(out).verify_all()


@pytest.mark.slow
def test_every_operation_fails_once(
    tmp_path: Path, injector: Injector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("hetero_sd/__init__.py", "hetero_sd/runtime/text", "costmodel/schema")
    monkeypatch.setattr("hetero_sd.compile.bundle._DEVICE_PACKAGES", few)
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    with injector.watching(out.parent):
        write(out)
    total = injector.count
    os.rename(out, tmp_path / "whole")
    refused = []
    for k in range(1, total + 1):
        with injector.watching(out.parent, k):
            ends_well(out, capsys)
        assert injector.failed, k
        check(out, injector.failed)
        if out.exists():  # what failed was not needed
            os.rename(out, tmp_path / f"whole{k}")
        else:
            refused.append(injector.failed.partition(" ")[0])
    assert {"open", "os.fsync", "os.rename", "os.mkdir", "os.chmod"} <= set(refused)
    assert len(refused) > 60
    write(out)
    assert (out / "manifest.json").read_bytes() == (tmp_path / "whole/manifest.json").read_bytes()


@pytest.mark.parametrize("most_bytes", [0, 100, 5000, 9000])
def test_a_file_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], most_bytes: int) -> None:
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        ends_well(out, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(out.parent.iterdir()) == []
    write(out)


def test_a_place_that_takes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (Path("/proc/self/out"), Path("/proc/out")):
        with pytest.raises(UserError, match=f"--out {out}: .*cannot be written"):
            write(out)


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_place_that_goes_away_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str], at_the_end: bool) -> None:
    """As when its file system is unmounted."""
    out = tmp_path / "here" / "out"

    def write_until_it_goes() -> None:
        with new_bundle(out) as folder:
            copy_device_python(folder / "python")
            shutil.rmtree(out.parent)
            if not at_the_end:
                write_launcher(folder, "x86-64", "host")

    with pytest.raises((UserError, OSError)) as caught:
        write_until_it_goes()
    said = str(caught.value)
    if isinstance(caught.value, OSError):
        assert report("hetero-sd", "compile", caught.value) == 2
        said = capsys.readouterr().err.removesuffix("\n")
    assert "No such file or directory" in said
    assert "\n" not in said
    assert not out.parent.exists()


def test_every_file_and_folder_is_written_through_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "rename", lambda *paths: done.append("rename") or rename(*paths))
    write(tmp_path / "out")
    end = done.index("rename")
    work = Path(done[end - 1])
    synced = {Path(path).relative_to(work).as_posix() for path in done[:end]}
    assert synced == {".", *(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))}
    assert done[end + 1 :] == [str(tmp_path)]


KILLED = """
import sys, time
from pathlib import Path
from hetero_sd.compile.bundle import new_bundle
with new_bundle(Path(sys.argv[1])) as folder:
    (folder / "weights").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_build_left_is_removed_and_what_is_in_work_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    started = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, alive = (Path(process.stdout.readline().strip()) for process in started)  # type: ignore[union-attr]
    started[0].kill()
    started[0].wait()
    kept = [tmp_path / ".out.new.abcdefgh", tmp_path / ".out.new.backup_2", tmp_path / ".out.new.x", tmp_path / ".out2"]
    kept[0].symlink_to(tmp_path / "nowhere")
    for folder in kept[1:]:
        folder.mkdir()
    (kept[1] / "mine").write_text("not of a build")
    assert killed.is_dir()
    write(out)
    assert sorted(tmp_path.iterdir()) == sorted([out, alive, *kept])
    started[1].kill()
    started[1].wait()
    os.rename(out, tmp_path / "first")
    write(out)
    assert not alive.exists()
    for process in started:
        process.stdout.close()  # type: ignore[union-attr]


def test_the_page_of_the_server_is_carried(tmp_path: Path) -> None:
    copy_device_python(tmp_path)
    assert (tmp_path / "hetero_sd/runtime/serve/page.html").is_file()
    assert not (tmp_path / "hetero_sd/compile").exists()
