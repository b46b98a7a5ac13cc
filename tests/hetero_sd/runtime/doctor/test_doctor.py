from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from requirements import need

from hetero_sd.cli import main as command
from hetero_sd.runtime.doctor import doctor, machine
from hetero_sd.runtime.doctor.finding import Finding, report_json, report_text
from hetero_sd.runtime.doctor.opencl_findings import opencl_findings
from hetero_sd.runtime.doctor.opencl_probe import NO_PLATFORM, OpenCLDevice, OpenCLState, probe, probe_apart
from hetero_sd.runtime.run import main as run_py
from targets.opencl import runtime as opencl_runtime
from targets.zig import zig, zig_environment

MALI = OpenCLDevice(
    platform="ARM Platform",
    name="Mali-G610",
    version="OpenCL 3.0 v1.g13p0-01eac0.1",
    driver="3.0",
    kind="gpu",
    extensions=("cl_khr_fp16", "cl_arm_integer_dot_product_int8", "cl_khr_subgroups"),
    unified_memory=True,
    max_alloc_bytes=1 << 30,
    global_bytes=4 << 30,
    local_bytes=32 << 10,
    max_work_group=1024,
    compute_units=4,
)
KBASE = machine.GpuNode("/dev/mali0", "mali", "render", True)
PANTHOR = machine.GpuNode("/dev/dri/renderD128", "panthor", "render", True)


def state(*devices: OpenCLDevice, status: int = 0, platforms: Any = None) -> OpenCLState:
    named = platforms if platforms is not None else (("ARM Platform", "OpenCL 3.0", len(devices)),) if devices else ()
    return OpenCLState("libOpenCL.so.1", {}, status, named, devices)


def problems(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.text, finding.fix) for finding in findings if finding.level == "problem"]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """/proc and /sys of an RK3588 with 2 + 2 CPUs."""
    parts = ["0xd05", "0xd05", "0xd0b", "0xd0b"]
    blocks = [f"processor\t: {i}\nCPU implementer\t: 0x41\nCPU part\t: {part}" for i, part in enumerate(parts)]
    files = {"proc/cpuinfo": "\n\n".join(blocks) + "\n\nHardware\t: board\n"}
    files["proc/meminfo"] = "MemTotal:  8000000 kB\nMemAvailable:  6000000 kB\nSwapTotal: 0 kB\n"
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/cpu_capacity"] = "530" if cpu < 2 else "1024"
        files[f"{folder}/cpufreq/cpuinfo_min_freq"] = "408000"
        files[f"{folder}/cpufreq/cpuinfo_max_freq"] = "1800000" if cpu < 2 else "2256000"
        files[f"{folder}/cpufreq/scaling_governor"] = "ondemand" if cpu < 2 else "performance"
    write(tmp_path, files)
    return tmp_path


def test_clusters_fastest_first(board: Path) -> None:
    big, little = machine.clusters(board)
    assert big == machine.CpuCluster("Cortex-A76", (2, 3), (2, 3), 1024, 408, 2256, "performance")
    assert (little.name, little.cpus, little.capacity, little.max_mhz) == ("Cortex-A55", (0, 1), 530, 1800)


def test_cpu_findings(board: Path) -> None:
    big, little = (finding for finding in doctor.examine(root=board) if finding.subject == "cpu")
    assert big.text == "2 x Cortex-A76 (CPUs 2-3), 408 to 2256 MHz, capacity 1024; governor performance"
    assert little.level == "note"
    assert little.fix == (
        "echo performance | sudo tee /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor "
        "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"
    )


def test_another_makers_core_gets_no_arm_name(board: Path) -> None:
    text = (board / "proc/cpuinfo").read_text().replace("0x41", "0x51")
    (board / "proc/cpuinfo").write_text(text)
    assert {cluster.name for cluster in machine.clusters(board)} == {
        "core 0xd0b of maker 0x51",
        "core 0xd05 of maker 0x51",
    }


def test_memory(board: Path) -> None:
    assert machine.memory_bytes(board) == {"total": 8192000000, "available": 6144000000, "swap": 0}
    (board / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 100000 kB\n")
    [finding] = [finding for finding in doctor.examine(root=board) if finding.subject == "memory"]
    assert (finding.level, finding.fix) == ("note", "end other programs")


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("/dev/sda1 {} ext4 rw,relatime 0 0", "ok", "is on ext4 at"),
        ("/dev/sda1 {} ext4 ro,relatime 0 0", "ok", "read-only: the bundle writes nothing there"),
        ("/dev/sda1 {} ext4 rw,noexec 0 0", "problem", "mounted noexec: its libraries cannot be loaded"),
        ("/dev/sda1 {} vfat rw 0 0", "note", "files of at most 4 GB on FAT32"),
    ],
)
def test_folder(board: Path, tmp_path: Path, line: str, level: str, text: str) -> None:
    folder = tmp_path / "a bundle"
    folder.mkdir()
    mounts = ["/dev/root / ext4 rw 0 0", line.format(str(folder).replace(" ", "\\040")), "tmpfs /other tmpfs rw 0 0"]
    write(board, {"proc/mounts": "\n".join(mounts) + "\n"})
    [finding] = [finding for finding in doctor.examine(folder, root=board) if finding.subject == "folder"]
    assert finding.level == level
    assert text in finding.text
    if level == "problem":
        assert finding.fix == f"sudo mount -o remount,exec '{folder}'"  # it has a space


def test_a_good_gpu_has_no_problem() -> None:
    findings = opencl_findings(state(MALI), [KBASE], "g13p0-01eac0")
    assert problems(findings) == []
    text = " ".join(finding.text for finding in findings)
    assert "Mali-G610 (gpu, ARM Platform), OpenCL 3.0" in text
    assert "fp16, integer dot product, sub-groups, unified memory; 4 units, work-groups up to 1024" in text
    assert "buffers up to 1024 MiB of 4096, 32 KiB local" in text


def test_versions_that_disagree() -> None:
    [(text, fix)] = problems(opencl_findings(state(MALI), [KBASE], "g6p0-01eac0 (UK version 11.35)"))
    assert text == "libmali is g13p0 and the kernel driver g6p0: they must be of one release"
    assert fix == "install the libmali of release g6p0"


def test_an_old_opencl() -> None:
    old = dataclasses.replace(MALI, version="OpenCL 1.1 v1.r2p0-devrel")
    [(text, fix)] = problems(opencl_findings(state(old), [KBASE], ""))
    assert text == "Mali-G610 has OpenCL 1.1, kernels need 1.2"
    assert fix.endswith("--place cpu")


def test_no_loader() -> None:
    missing = OpenCLState(None, {"libOpenCL.so.1": "no such file"})
    [(text, fix)] = problems(opencl_findings(missing, [KBASE], ""))
    assert text == "no loader (libOpenCL.so.1: no such file)"
    assert fix == "sudo apt-get install ocl-icd-libopencl1"
    assert problems(opencl_findings(missing, [], "")) == []  # no GPU, nothing lost
    [(text, fix)] = problems(opencl_findings(missing, [], "", stated=True))
    assert text == "--opencl-lib cannot be opened (libOpenCL.so.1: no such file)"
    assert fix.endswith("or leave --opencl-lib out")
    [(_, fix)] = problems(opencl_findings(missing, [PANTHOR], ""))
    assert fix == "sudo apt-get install ocl-icd-libopencl1 mesa-opencl-icd"


@pytest.mark.parametrize(
    ("node", "fix"),
    [
        (KBASE, "install the board vendor's libmali and write its path into /etc/OpenCL/vendors/mali.icd"),
        (PANTHOR, "sudo apt-get install mesa-opencl-icd, then export RUSTICL_ENABLE=panfrost"),
    ],
)
def test_loader_without_driver(node: machine.GpuNode, fix: str) -> None:
    found = problems(opencl_findings(state(status=NO_PLATFORM), [node], ""))
    assert found == [("libOpenCL.so.1 finds no driver (CL_PLATFORM_NOT_FOUND_KHR)", fix)]


def test_rusticl_not_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSTICL_ENABLE", raising=False)
    found = opencl_findings(state(platforms=(("rusticl", "OpenCL 3.0", 0),)), [PANTHOR], "")
    assert problems(found) == [
        ("rusticl (OpenCL 3.0) has no device: it is not enabled", "export RUSTICL_ENABLE=panfrost")
    ]


def test_no_permission(tmp_path: Path) -> None:
    node = machine.GpuNode("/dev/mali0", "mali", "render", False)
    [(text, fix)] = problems(opencl_findings(state(MALI), [node], ""))
    assert "may not open /dev/mali0 (kernel driver mali)" in text
    assert fix.startswith("sudo usermod -aG render ")
    bare = machine.GpuNode("/dev/mali0", "mali", "root", False)
    fix = problems(opencl_findings(state(MALI), [bare], ""))[0][1]
    assert fix.startswith(
        """echo 'KERNEL=="mali0", GROUP="video", MODE="0660"' | sudo tee /etc/udev/rules.d/70-mali0.rules && """
    )
    assert "sudo usermod -aG video " in fix
    assert "666" not in fix  # whoever may write to the device may read what others compute on it


def test_the_fixes_of_two_devices_are_both_kept(tmp_path: Path) -> None:
    """Run in a shell, the folder of rules elsewhere, and what needs root only noted down."""
    nodes = [machine.GpuNode(f"/dev/{name}", "mali", "root", False) for name in ("mali0", "dri/renderD128")]
    fixes = [fix.removesuffix(", then log in again") for _, fix in problems(opencl_findings(state(MALI), nodes, ""))]
    noted, rules = tmp_path / "noted", tmp_path / "rules"
    rules.mkdir()
    stubs = f'sudo() {{ case $1 in tee) "$@";; *) echo "$@" >> {noted};; esac }}; '
    for fix in [*fixes, *fixes]:
        subprocess.run(["sh", "-c", stubs + fix.replace("/etc/udev/rules.d", str(rules))], check=True)
    found = {path.name: path.read_text() for path in rules.iterdir()}
    assert found == {
        f"70-{name}.rules": f'KERNEL=="{name}", GROUP="video", MODE="0660"\n' for name in ("mali0", "renderD128")
    }
    acts = noted.read_text().splitlines()
    assert [act.rpartition(" ")[0] for act in acts[:3]] == ["udevadm control", "udevadm", "usermod -aG video"]
    assert len(acts) == 4 * 3
    broken = subprocess.run(["sh", "-c", "sudo() { false; }; " + fixes[0]], capture_output=True, check=False)
    assert broken.returncode != 0  # the negative control: a step that fails ends the rest


def test_gpu_nodes(tmp_path: Path) -> None:
    write(tmp_path, {"dev/mali0": "", "dev/dri/renderD128": "", "sys/drivers/panthor/x": ""})
    device = tmp_path / "sys/class/drm/renderD128/device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(tmp_path / "sys/drivers/panthor")
    assert [(Path(n.path).name, n.driver, n.usable) for n in machine.gpu_nodes(tmp_path)] == [
        ("renderD128", "panthor", True),
        ("mali0", "mali", True),
    ]


def test_probe_says_why_nothing_opens() -> None:
    found = probe("/nowhere/libOpenCL.so")
    assert found.library is None
    assert "No such file" in found.tried["/nowhere/libOpenCL.so"]
    found = probe("libc.so.6")
    assert "clGetPlatformIDs" in found.tried["libc.so.6"]


def test_probe_agrees_with_the_runtime() -> None:
    found = probe()
    need(found.devices, "no OpenCL device")
    device = found.devices[0]
    assert device.name
    assert device.version.startswith("OpenCL ")
    assert device.max_alloc_bytes <= device.global_bytes
    assert device.max_work_group >= 1


def fake_driver(folder: Path, body: str) -> str:
    """Compile an OpenCL library whose first function does `body`."""
    source, library = folder / "driver.c", folder / "libOpenCL.so"
    source.write_text(
        f"#include <stdlib.h>\n#include <unistd.h>\nint clGetPlatformIDs(void) {{ {body} return -1001; }}\n"
    )
    command = [*zig("cc", opencl_runtime.machine()), "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True, env=zig_environment(str(folder)))
    return str(library)


@pytest.mark.parametrize(
    ("body", "crash"),
    [
        ("", ""),
        ("abort();", "crashed (SIGABRT)"),
        ("sleep(60);", "did not answer within 2 s"),
        ("_exit(3);", "ended the process with code 3"),
    ],
)
def test_a_driver_that_crashes_is_reported(tmp_path: Path, body: str, crash: str) -> None:
    found = probe_apart(fake_driver(tmp_path, body), timeout_s=2 if "sleep" in body else 60)
    assert found.crash == crash
    findings = opencl_findings(found, [KBASE], "")
    [(text, _)] = problems(findings)
    assert (f"the OpenCL driver {crash} when it was asked" if crash else "finds no driver") in text


def test_probing_apart_finds_the_same() -> None:
    def but_for_memory(found: OpenCLState) -> OpenCLState:
        """PoCL's device has as much memory as is free when it is asked."""
        devices = tuple(dataclasses.replace(device, global_bytes=0) for device in found.devices)
        return dataclasses.replace(found, devices=devices)

    assert but_for_memory(probe_apart()) == but_for_memory(probe())


@pytest.mark.parametrize("level", ["ok", "note", "problem"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_both_commands_report_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, level: str, flags: list[str]
) -> None:
    findings = [Finding("cpu", "ok", "there"), Finding("opencl", level, "no loader", "install it")]
    monkeypatch.setattr(doctor, "examine", lambda folder, opencl_lib: findings)
    expected = report_json(findings) if flags else report_text(findings)
    for run in (lambda: command(["doctor", *flags]), lambda: run_py(tmp_path, ["--doctor", *flags])):
        assert run() == (level == "problem")
        assert capsys.readouterr().out == expected + "\n"
    assert doctor.doctor_report(None, None, bool(flags)) == (expected, int(level == "problem"))


def test_text_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = command(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert code == int(any(finding["level"] == "problem" for finding in findings))
    assert {"cpu", "memory", "python", "glibc", "package", "opencl"} <= {finding["subject"] for finding in findings}
    assert all(set(finding) == {"subject", "level", "text", "fix"} for finding in findings)

    assert run_py(tmp_path, ["--doctor"]) in (0, 1)  # the folder need not even be a bundle
    assert " folder " in capsys.readouterr().out

    lines = report_text([Finding("opencl", "problem", "no loader", "install it")]).splitlines()
    assert lines == ["PROBLEM  opencl  no loader", "                   -> install it"]


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "none", "there is no such folder"),
        (tmp_path / "file", "there is no such folder"),
        (tmp_path, "it has no manifest.json"),
    ):
        assert command(["doctor", str(path)]) == 2
        assert capsys.readouterr() == ("", f"hetero-sd: error: {path} is no bundle: {reason}\n")
