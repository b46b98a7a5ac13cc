"""JSON is read with a limit, files are written whole or not at all."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from targets.errors import UserError
from targets.files import TooLargeError, check_writable, read_json, read_object, replacing, write_text


@pytest.mark.parametrize("content", ["", "{", "[" * 200_000, "\udcff", "nan"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"(?s).+"):
        read_json(path, 1 << 20)
    with pytest.raises(UserError, match=r"f: not valid JSON, so this is not a board$"):
        read_object(path, "a board")


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in ("[NaN]", "[Infinity]", "[1e999]"):
        path.write_text(content)
        assert isinstance(read_json(path, 100), list)  # other people's files have them
        with pytest.raises(ValueError, match=r"is not JSON|beyond float64"):
            read_json(path, 100, finite=True)
    path.write_text("[1e300, 7]")
    assert read_json(path, 100, finite=True) == [1e300, 7]
    path.write_text(f"[1{'0' * 400}]")
    assert read_json(path, 1000, finite=True) == [10**400]  # whole numbers have no bound


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("{" * 11)  # no JSON either, which is not seen
    with pytest.raises(TooLargeError, match="larger than 10 bytes"):
        read_json(path, 10)
    path.write_text('{"a": 123}')
    assert read_json(path, 10) == {"a": 123}


def test_a_small_file_takes_little_memory_whatever_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"a": "' + "b" * (3 << 20) + '"}')
    tracemalloc.start()
    try:
        assert len(read_json(path, 1 << 30)["a"]) == 3 << 20
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 << 20


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as part:
        part.write_text("half of a text and \ud800", "utf-8")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "f"
    for refuse in (lambda: write_text(path, ""), lambda: check_writable(path)):
        with pytest.raises(UserError, match=r"f: cannot be written: there is no folder .*missing$"):
            refuse()
    check_writable(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder: cannot be written: it is a folder"),
        ("pipe", "pipe: cannot be written: it is a device or a pipe, not a file"),
        ("", ": cannot be written: it is a folder"),
        (".", ": cannot be written: it is a folder"),
        ("..", ": cannot be written: it is a folder"),
        ("file/f", "f: cannot be written: Not a directory"),
        ("f" * 250, "cannot be written: File name too long"),
    ],
)
def test_what_a_file_must_not_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    """Neither call leaves or removes anything; beside each stands a name that can be written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for refuse in (lambda: check_writable(Path(name)), lambda: write_text(Path(name), "")):
        with pytest.raises(UserError, match=rf"{message}$"):
            refuse()
    check_writable(Path("file"))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "kept"
