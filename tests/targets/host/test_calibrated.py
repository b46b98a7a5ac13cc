from __future__ import annotations

from pathlib import Path

import pytest

from hetero_sd.calibrate import to_toml
from hetero_sd.cli import main
from hetero_sd.runtime.doctor.doctor import examine
from targets.boards import load_board
from targets.host import calibrated
from targets.host.calibrated import find, made_here

RATE = 7.25  # GB/s of the calibration, which this machine does not say of itself


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration of this machine."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = calibrated.calibrated_path()
    assert path == tmp_path / "hetero_sd" / "host.toml"
    path.parent.mkdir()
    write(path)
    return path


def write(path: Path, **changes: str) -> None:
    text = to_toml(load_board("host", measure=False, calibrated=False)).replace("= 8.0,", f"= {RATE},", 1)
    made = ", ".join(f'{key} = "{value}"' for key, value in {**made_here("2026-01-02"), **changes}.items())
    path.write_text(f"made = {{ {made} }}\n{text}")


def rate() -> float:
    return load_board("host", measure=False).clusters[0].bandwidth_one_thread_gb_per_s


def test_board_host_takes_it(file: Path) -> None:
    assert rate() == RATE
    assert load_board("host", measure=False, calibrated=False).clusters[0].bandwidth_one_thread_gb_per_s != RATE
    assert load_board(file).clusters[0].bandwidth_one_thread_gb_per_s == RATE  # a board file like others
    file.unlink()
    assert rate() != RATE


def test_memory_is_that_of_now(file: Path) -> None:
    total = load_board("host", measure=False, calibrated=False).dram.capacity_bytes
    file.write_text(file.read_text().replace(f"value = {total},", f"value = {total // 2},"))
    assert load_board(file).dram.capacity_bytes == total // 2
    assert load_board("host", measure=False).dram.capacity_bytes == total


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cpu": "4 x cortex-a76"}, "it was made for 4 x cortex-a76, this is"),
        ({"kernels": "0" * 16}, "it was made with other kernels than this version's"),
    ],
)
def test_what_no_longer_holds_is_ignored_in_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], why: str
) -> None:
    write(file, **changes)
    assert rate() != RATE
    found = find()
    assert found is not None
    assert why in found.ignored
    assert "\n" not in found.ignored
    assert main(["explain", "missing.onnx", "--board", "host"]) == 2
    assert f"hetero-sd: note: {file} is ignored: {why}" in capsys.readouterr().err
    (shown,) = [f for f in examine() if f.subject == "board host"]
    assert (shown.level, shown.text) == ("note", found.ignored)


@pytest.mark.parametrize("content", [b"\xff", b"made = 3\n", b"[", b"#" * (1 << 19), b"made = { cpu = 1 }\n"])
def test_a_damaged_file_is_ignored(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert rate() != RATE
    found = find()
    assert found is not None
    assert found.board is None
    assert "is ignored" in found.ignored


def test_one_that_holds_says_nothing_but_to_the_doctor(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "missing.onnx", "--board", "host"]) == 2
    assert "note" not in capsys.readouterr().err
    (shown,) = [f for f in examine() if f.subject == "board host"]
    assert (shown.level, shown.text) == ("ok", f"calibrated on 2026-01-02: {file}")
    file.unlink()
    assert [f for f in examine() if f.subject == "board host"] == []


def test_a_bundle_has_no_board_host(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find() is not None
    monkeypatch.setattr(calibrated, "_KERNELS", tmp_path)  # its copy of targets/ has no kernels
    assert find() is None


def test_another_kernel_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = calibrated.kernels_version()
    assert before == calibrated.kernels_version()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "linear.py").write_text("x")
    monkeypatch.setattr(calibrated, "_KERNELS", tmp_path)
    small = calibrated.kernels_version()
    (tmp_path / "kernels" / "linear.py").write_text("y")
    assert len({before, small, calibrated.kernels_version()}) == 3
