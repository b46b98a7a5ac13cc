"""What doctor says of whole machines: a driver that is missing, old, refused or broken, on a fake OpenCL library."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import some_model
from golden import Golden

from hetero_sd.runtime.doctor import doctor, kernel_check, machine, opencl_probe
from hetero_sd.runtime.doctor.bundle_findings import cache_findings, kernel_findings
from hetero_sd.runtime.doctor.finding import Finding, report_text
from hetero_sd.runtime.doctor.opencl_findings import opencl_findings
from hetero_sd.runtime.manifest import Bundle, write_manifest
from targets.cpu.linker import host_link
from targets.opencl import runtime as opencl_runtime

ROOT = Path(__file__).resolve().parents[3]
SUBJECTS = ("gpu", "opencl", "folder", "kernels", "bundle")
G610 = {
    "FAKE_PLATFORM": "ARM Platform",
    "FAKE_NAME": "Mali-G610 r0p0",
    "FAKE_VERSION": "OpenCL 3.0 v1.g13p0-01eac0.0",
    "FAKE_DRIVER": "3.0",
    "FAKE_EXTENSIONS": "cl_khr_fp16 cl_arm_integer_dot_product_int8 cl_khr_subgroups",
}
KBASE = {"dev/mali0": "", "sys/module/mali_kbase/version": "g13p0-01eac0 (UK version 11.38.0)"}
PANTHOR = {"dev/dri/renderD128": "", "sys/drivers/panthor/x": ""}
MACHINES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {  # files, the driver, mount of the folder
    "a board as it should be": (KBASE, G610, "ext4 rw"),
    "loader without a driver": (KBASE, {"FAKE_PLATFORMS": "0"}, ""),
    "user space of another release": (KBASE | {"sys/module/mali_kbase/version": "g6p0-01eac0"}, G610, ""),
    "panthor without OpenCL": (PANTHOR, {"FAKE_PLATFORMS": "0"}, ""),
    "rusticl not enabled": (PANTHOR, {"FAKE_PLATFORM": "rusticl", "FAKE_DEVICES": "0"}, ""),
    "no permission": (KBASE | {"not usable": ""}, G610, ""),
    "no GPU at all": ({}, {"FAKE_PLATFORMS": "0"}, ""),
    "noexec": (KBASE, G610, "ext4 rw,noexec"),
    "FAT": (KBASE, G610, "vfat rw"),
    "read-only root": (KBASE, G610, "ext4 ro"),
}


def make_root(root: Path, files: dict[str, str], folder: Path, mount: str) -> None:
    mounts = {"proc/mounts": f"/dev/root {folder} {mount} 0 0\n"} if mount else {}
    for name, text in (files | mounts).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if "dev/dri/renderD128" in files:
        device = root / "sys/class/drm/renderD128/device"
        device.mkdir(parents=True)
        (device / "driver").symlink_to(root / "sys/drivers/panthor")


def said(findings: list[Finding], *paths: object) -> str:
    """The findings about the GPU and the folder; the runtime's place on this machine is not the driver's doing."""
    kept = [f for f in findings if f.subject in SUBJECTS and not re.match("runtime |the runtime |no C", f.text)]
    text = report_text(kept)
    pairs = sorted(zip(map(str, paths), ("ROOT", "FOLDER", "LIBRARY"), strict=False), key=lambda p: -len(p[0]))
    for path, name in pairs:
        text = text.replace(path, name)
    return text.replace(f"{getpass.getuser()} may not", "USER may not").replace(f" {getpass.getuser()},", " USER,")


def test_machines(fake_opencl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    monkeypatch.delenv("RUSTICL_ENABLE", raising=False)
    monkeypatch.setattr(machine, "_group", lambda path: "render")
    blocks = []
    for number, (name, (files, driver, mount)) in enumerate(MACHINES.items()):
        root, folder = tmp_path / f"root{number}", tmp_path / f"folder{number}"
        folder.mkdir()
        make_root(root, files, folder, mount)
        usable = "not usable" not in files
        with monkeypatch.context() as patch:
            patch.setattr(machine.os, "access", lambda path, mode, usable=usable: usable)
            for variable, value in driver.items():
                patch.setenv(variable, value)
            findings = doctor.examine(folder, fake_opencl, root)
        blocks.append(f"== {name}\n{said(findings, root, folder, fake_opencl)}\n")
    golden("hetero_sd/runtime/doctor_machines.txt", "\n".join(blocks))


def test_no_loader_names_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("libOpenCL.so.1", "libOpenCL.so", "libmali.so.1")
    assert names == opencl_probe.LIBRARIES
    monkeypatch.setattr(opencl_probe, "LIBRARIES", tuple(f"absent-{name}" for name in names))
    monkeypatch.delenv("HSD_OPENCL_LIB", raising=False)
    node = machine.GpuNode("/dev/mali0", "mali", "render", True)
    finding = opencl_findings(opencl_probe.probe(), [node], "")[-1]
    assert finding.level == "problem"
    assert all(f"absent-{name}: " in finding.text for name in names)
    assert finding.fix == "sudo apt-get install ocl-icd-libopencl1"
    stated = opencl_findings(opencl_probe.probe(str(tmp_path / "libmali.so")), [node], "")[-1]
    assert stated.text.count("No such file") == 1
    assert str(tmp_path / "libmali.so") in stated.text


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with two OpenCL kernels, `double_it` and `halve_it`."""
    import tvm
    from tvm import relax, te
    from tvm.s_tir import dlight

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((64,), "float32"))
    with builder.function("main", [x]):
        y: Any = x
        for name, factor in (("double_it", 2.0), ("halve_it", 0.5)):

            def times(a: Any, factor: float = factor) -> Any:
                return te.compute(a.shape, lambda i: a[i] * factor, name="y")

            y = builder.emit_te(times, y, primfunc_name_hint=name)
        builder.emit_func_output(y)
    target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})
    with target:
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(builder.get())
    path = tmp_path_factory.mktemp("kernels") / "target_gpu.so"
    relax.build(module, target).export_library(str(path), fcompile=host_link())
    return path


@pytest.fixture
def gpu_bundle(tmp_path: Path, kernels: Path, runtime_library: Path) -> Path:
    folder = tmp_path / "bundle"
    runtime = folder / "python/targets/opencl/runtime/lib" / opencl_runtime.machine() / opencl_runtime.LIBRARY
    for path, source in ((folder / "lib/target_gpu.so", kernels), (runtime, runtime_library)):
        path.parent.mkdir(parents=True)
        shutil.copyfile(source, path)
    describe(folder)
    return folder


def describe(folder: Path, **more: Any) -> None:
    name = f"python/targets/opencl/runtime/lib/{opencl_runtime.machine()}/{opencl_runtime.LIBRARY}"
    target = some_model(processor="gpu", opencl_runtime=name, **more)
    for file in target.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    write_manifest(folder, {"target": target})


Said = Callable[..., str]


@pytest.fixture
def of_bundle(fake_opencl: str, gpu_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What doctor says of the bundle's kernels, with a driver of these properties."""
    monkeypatch.setenv("HSD_OPENCL_CACHE", "")

    def said_of(**driver: str) -> str:
        with monkeypatch.context() as patch:
            for variable, value in driver.items():
                patch.setenv(variable, value)
            findings = doctor.examine(gpu_bundle, fake_opencl, tmp_path)
        return said([f for f in findings if f.subject in ("kernels", "bundle")], tmp_path, gpu_bundle)

    return said_of


def test_gpu_libraries_are_found_by_name(gpu_bundle: Path) -> None:
    assert kernel_check.gpu_libraries(Bundle(gpu_bundle)) == ["lib/target_gpu.so"]


@pytest.mark.slow
def test_every_kernel_of_a_bundle_is_built(of_bundle: Said) -> None:
    assert of_bundle() == "ok       kernels  lib/target_gpu.so: all 2 kernels build"
    fix = "-> install another release of the driver; until then compile with --place cpu"
    assert of_bundle(FAKE_REFUSES="e-01f").splitlines() == [
        "PROBLEM  kernels  lib/target_gpu.so: kernel halve_it_kernel does not build: line 1: #error",
        f"{'':20}{fix}",
    ]
    assert of_bundle(FAKE_CRASHES="e-01f").splitlines()[0] == (
        "PROBLEM  kernels  lib/target_gpu.so: the driver crashed (SIGABRT) while it built kernel halve_it_kernel"
    )


@pytest.mark.slow
def test_every_kernel_builds_on_pocl(
    opencl: Any, gpu_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("HSD_OPENCL_CACHE", str(cache))
    [check] = kernel_check.check_kernels(gpu_bundle)
    assert (check.library, check.kernels, check.failed, check.problem) == ("lib/target_gpu.so", 2, (), "")
    assert len(list(cache.iterdir())) == 2  # the first start finds them


@pytest.mark.slow
def test_an_altered_library_is_not_loaded(of_bundle: Said, gpu_bundle: Path) -> None:
    path = gpu_bundle / "lib/target_gpu.so"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "target_gpu.so does not match its SHA-256 in manifest.json" in of_bundle()


def test_without_a_device_the_cpu_variant_counts(of_bundle: Said, gpu_bundle: Path) -> None:
    assert of_bundle(FAKE_PLATFORMS="0").startswith(
        "PROBLEM  kernels  the target of the bundle cannot run here: no OpenCL device"
    )
    describe(gpu_bundle, fallback=True)
    assert of_bundle(FAKE_PLATFORMS="0").startswith(
        "note     kernels  no OpenCL device: the bundle's models run on the"
    )
    (gpu_bundle / "manifest.json").write_text("{")
    assert of_bundle().startswith("PROBLEM  bundle  FOLDER/manifest.json is not valid JSON")


def test_long_lists_are_cut_and_timeouts_named() -> None:
    check = kernel_check.KernelCheck("lib/a_gpu.so", 9, tuple((f"k{i}", "status -11") for i in range(7)))
    findings = kernel_findings([check])
    assert len(findings) == 6
    assert findings[-1].text == "lib/a_gpu.so: and 2 more"
    lines = ['{"library": "a"}', "the driver says hello", '{"kernel": "slow_one"}']
    [stopped] = kernel_check._read(["a"], lines, "did not answer within 2 s")
    assert stopped.problem == "the driver did not answer within 2 s while it built kernel slow_one"


def test_where_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSD_OPENCL_CACHE", str(tmp_path / "cache"))
    assert [f.level for f in cache_findings()] == ["ok"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HSD_OPENCL_CACHE", str(tmp_path / "file" / "cache"))
    [finding] = cache_findings()
    assert (finding.level, finding.fix) == ("note", "run.py --cache-dir FOLDER")
    monkeypatch.setenv("HSD_OPENCL_CACHE", "")
    [finding] = cache_findings()
    assert finding.text == "there is no folder to keep compiled kernels in: every start compiles them"
