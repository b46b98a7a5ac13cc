"""What shows only in a process of its own: loading, the program cache, missing drivers, Oclgrind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from requirements import need_program

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow  # five seconds of CPU a test: each starts processes that import TVM


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("opencl")
def test_runtime_library_alone(fresh_process: Run) -> None:
    out = fresh_process("print(tvm.base._RUNTIME_ONLY)", {"TVM_USE_RUNTIME_LIB": "1"})
    assert succeeded(out) == "True\n"


@pytest.mark.usefixtures("opencl")
def test_a_wrong_number_would_be_seen(fresh_process: Run) -> None:
    done = fresh_process("np.testing.assert_allclose(y, wanted * 1.001, rtol=1e-5)")
    assert done.returncode != 0
    assert "Not equal to tolerance" in done.stderr


@pytest.mark.usefixtures("opencl")
def test_program_cache(fresh_process: Run, tmp_path: Path) -> None:
    cache = tmp_path / "made" / "cache"
    env = {"HSD_OPENCL_CACHE": str(cache), "POCL_KERNEL_CACHE": "0"}
    code = "c = opencl.cache_counts(); print(c.loaded, c.built, c.damaged, c.written, first_s)"

    def counts() -> tuple[list[int], float]:
        *numbers, first_s = succeeded(fresh_process(code, env)).split()
        return [int(n) for n in numbers], float(first_s)

    first, first_s = counts()
    assert first == [0, 2, 0, 2]
    second, second_s = counts()
    assert second == [2, 0, 0, 0]
    assert second_s < first_s
    entries = sorted(cache.iterdir())
    assert len(entries) == 2

    kept = entries[0].read_bytes()
    entries[0].write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    entries[1].write_bytes(b"")
    assert counts()[0] == [0, 2, 2, 2]
    assert counts()[0] == [2, 0, 0, 0]
    assert sorted(cache.iterdir()) == entries


@pytest.mark.usefixtures("opencl")
def test_binary_that_the_driver_refuses_is_rebuilt(fresh_process: Run, tmp_path: Path) -> None:
    import hashlib

    env = {"HSD_OPENCL_CACHE": str(tmp_path)}
    succeeded(fresh_process("", env))
    for entry in tmp_path.iterdir():  # a sound entry, but of another driver
        entry.write_bytes(b"HSDOCL1\n" + hashlib.sha256(b"nonsense").digest() + b"nonsense")
    out = fresh_process("c = opencl.cache_counts(); print(c.loaded, c.built, c.damaged, c.written)", env)
    assert succeeded(out) == "0 2 2 2\n"


@pytest.mark.usefixtures("opencl")
def test_cache_folder_that_cannot_be_made(fresh_process: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = fresh_process("print(opencl.cache_counts().built)", {"HSD_OPENCL_CACHE": str(tmp_path / "file" / "cache")})
    assert succeeded(out) == "2\n"


@pytest.mark.slow
@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"HSD_OPENCL_CACHE": "/stated", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/stated"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/hetero_sd/opencl"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/hetero_sd/opencl"),
        ({"XDG_CACHE_HOME": "", "HOME": "relative"}, ""),
    ],
)
def test_where_the_cache_is(runtime_library: Path, env: dict[str, str], folder: str) -> None:
    """The runtime and doctor agree on it."""
    code = """
        import os, sys
        os.environ.pop("HSD_OPENCL_CACHE", None)
        os.environ.update(eval(sys.argv[1]))
        import tvm
        from targets.opencl import interface as opencl, runtime as opencl_runtime
        from hetero_sd.runtime.model.program_cache import cache_folder
        opencl_runtime.load()
        print([opencl.cache_counts().folder, str(cache_folder() or "")])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), repr(env)]
    root = Path(__file__).resolve().parents[3]
    settings = {**os.environ, "PYTHONPATH": str(root), "HSD_OPENCL_RUNTIME": str(runtime_library)}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert succeeded(done) == f"{[folder, folder]}\n"


DEVICES = """
    import tvm
    from targets.opencl import interface as opencl, runtime as opencl_runtime
    opencl_runtime.load()
    try:
        print(len(opencl.devices()), tvm.opencl().exist)
    except opencl_runtime.OpenCLError as error:
        print(error, tvm.opencl().exist)
"""


def test_no_loader(fresh_process: Run) -> None:
    out = succeeded(fresh_process(before=DEVICES, env={"HSD_OPENCL_LIB": "/nowhere/libOpenCL.so"}))
    assert out.startswith("OpenCL: no OpenCL library: /nowhere/libOpenCL.so: ")
    assert out.endswith("No such file or directory False\n")


def test_library_that_is_no_opencl(fresh_process: Run) -> None:
    out = succeeded(fresh_process(before=DEVICES, env={"HSD_OPENCL_LIB": "libc.so.6"}))
    assert out == "OpenCL: no OpenCL library: libc.so.6: no function clGetPlatformIDs False\n"


@pytest.mark.usefixtures("opencl")
def test_loader_without_driver(fresh_process: Run, tmp_path: Path) -> None:
    out = succeeded(fresh_process(before=DEVICES, env={"OCL_ICD_VENDORS": f"{tmp_path}/"}))
    assert "finds no driver: clGetPlatformIDs returned CL_PLATFORM_NOT_FOUND_KHR False\n" in out


@pytest.mark.usefixtures("opencl")
def test_device_by_name(fresh_process: Run, opencl: object) -> None:
    out = succeeded(fresh_process(before=DEVICES, env={"HSD_OPENCL_DEVICE": "no such name"}))
    assert out == "OpenCL: no OpenCL device matches HSD_OPENCL_DEVICE=no such name False\n"


@pytest.mark.usefixtures("opencl")
def test_failure_from_the_environment(fresh_process: Run) -> None:
    done = fresh_process(env={"HSD_OPENCL_FAULT": "clCreateContext:1:CL_DEVICE_NOT_AVAILABLE"})
    assert done.returncode == 1
    assert "OpenCLError: OpenCL: clCreateContext returned CL_DEVICE_NOT_AVAILABLE (-2) for " in done.stderr
    done = fresh_process(env={"HSD_OPENCL_FAULT": "clFinish"})
    assert "HSD_OPENCL_FAULT=clFinish: expected function:k:status[:forever]" in done.stderr


def test_tvms_own_runtime_is_left_alone(fresh_process: Run) -> None:
    own = """
        import tvm_ffi
        tvm_ffi.register_global_func("device_api.opencl", lambda: None)
        import tvm
        from targets.opencl import runtime as opencl_runtime
        print(opencl_runtime.load())
    """
    assert succeeded(fresh_process(before=own)) == "tvm\n"


@pytest.mark.usefixtures("opencl")
def test_tvm_loads_it_by_itself(fresh_process: Run, tmp_path: Path) -> None:
    """An installed hetero_sd declares the entry point; its metadata is enough for the test."""
    import tomllib

    root = Path(__file__).resolve().parents[3]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["tvm.backends"]
    info = tmp_path / "hetero_sd_here-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hetero-sd-here\nVersion: 0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in declared.items())
    (info / "entry_points.txt").write_text(f"[tvm.backends]\n{lines}\n")
    code = "import tvm; print(tvm.opencl().exist)"
    path = f"{root}{os.pathsep}{tmp_path}"
    assert succeeded(fresh_process(before=code, env={"PYTHONPATH": path})) == "True\n"
    off = {"PYTHONPATH": path, "TVM_DEVICE_BACKEND_AUTOLOAD": "0"}
    assert "True" not in fresh_process(before=code, env=off).stdout


OCLGRIND = ("oclgrind", "--data-races", "--uninitialized")


@pytest.fixture
def oclgrind() -> tuple[str, ...]:
    need_program("oclgrind")
    return OCLGRIND


def test_oclgrind_finds_nothing(fresh_process: Run, oclgrind: tuple[str, ...]) -> None:
    """Oclgrind is OpenCL 1.2 and has no unified memory, so hand-overs copy."""
    code = """
        assert opencl.devices()[0]["platform"] == "Oclgrind"
        t = tvm.runtime.tensor(x, device)
        view = opencl.host_view(t)
        np.testing.assert_array_equal(view.numpy(), x)
        view.copyfrom(x + 1)
        opencl.to_device(t)
        np.testing.assert_array_equal(t.numpy(), x + 1)
        opencl.to_host(t, "read")
        opencl.to_device(t)
        print(opencl.devices()[0]["version"])
    """
    done = fresh_process(code, under=oclgrind)
    assert succeeded(done).startswith("OpenCL 1.2 ")
    assert done.stderr == ""


def test_oclgrind_would_find_a_read_out_of_bounds(fresh_process: Run, oclgrind: tuple[str, ...]) -> None:
    small = """
        import ctypes, re
        def opencl_modules(m):
            return [m] if m.kind == "opencl" else [k for i in m.imports for k in opencl_modules(i)]
        [module] = opencl_modules(tvm.runtime.load_module(sys.argv[1]))
        name = re.search("// Function: (.*matmul.*)", module.inspect_source()).group(1)
        out, x_device = tvm.runtime.empty((7, 32), "float32", device), tvm.runtime.tensor(x, device)
        w_small = tvm.runtime.tensor(w[:, 1:].copy(), device)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (out, w_small, x_device)]
        module.get_function(name)(*pointers, 7, 1, 1, 8, 8)
        device.sync()
    """
    assert "Invalid read of size 4 at global memory" in fresh_process(small, under=oclgrind).stderr
