from __future__ import annotations

import functools
import gc
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from targets.cpu.linker import host_link

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[3]


class Kernels:
    """Compiles PrimFuncs for Mali with the stock wheel and runs them on the OpenCL device."""

    def __init__(self, folder: Path) -> None:
        import tvm

        self.folder, self.loaded = folder, {}
        self.target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})
        self.device = tvm.opencl()
        self.after: list[Any] = []

    def source(self, func: Any) -> str:
        import tvm

        built = tvm.compile(func.with_attr("global_symbol", "main"), target=self.target)
        return "".join(str(m.inspect_source()) for m in built.mod.imports)

    def tensor(self, array: Array) -> Any:
        import tvm

        bits = array.view(np.uint16) if array.dtype == np.float16 else array
        return tvm.runtime.tensor(np.ascontiguousarray(bits), self.device)

    def __call__(
        self,
        func: Any,
        *args: Any,
        out: tuple[tuple[int, ...], str],
        scratch: Any = (),
        changed: dict[str, str] | None = None,
    ) -> Array:
        """Call a kernel whose output follows `args`, and whose scratch outputs follow that; all are kept in `after`.

        `changed`: what is replaced in its source.
        """
        import tvm

        key = id(func), str(changed)  # the kernels are cached by their arguments, so their identity is a key
        if key not in self.loaded:
            path = self.folder / f"{len(self.loaded)}.so"
            with source_changed(changed or {}):
                tvm.compile(func.with_attr("global_symbol", "main"), target=self.target).export_library(
                    str(path), fcompile=host_link()
                )
            self.loaded[key] = func, tvm.runtime.load_module(str(path))
        tensors = [self.tensor(a) if isinstance(a, np.ndarray) else a for a in args]
        self.after = [self.tensor(np.full(shape, 77, dtype)) for shape, dtype in (out, *scratch)]
        self.loaded[key][1]["main"](*tensors, *self.after)
        result: Array = self.after[0].numpy()
        return result


@contextmanager
def source_changed(changed: dict[str, str]) -> Iterator[None]:
    """Replace text in the OpenCL C of kernels that are compiled inside."""
    import tvm_ffi

    import targets.opencl.kernels.integer_dot  # noqa: F401  (registers the function)

    name = "tvm_callback_opencl_postproc"
    before = tvm_ffi.get_global_func(name)

    def change(source: str, target: Any) -> str:
        text = str(before(source, target))
        for old, new in changed.items():
            assert old in text, old
            text = text.replace(old, new)
        return text

    tvm_ffi.register_global_func(name, change, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(name, before, override=True)


USED = "HSD_TEST_KERNELS_USED"  # names a file: the fixture `run` writes there which kernels its tests made


@pytest.fixture(scope="session")
def factories() -> dict[str, Any]:
    """The kernels' makers, by module and name."""
    from targets.opencl.kernels.table import MAKERS

    return {f"{maker.__module__.rpartition('.')[2]}.{name}": maker for name, maker in MAKERS.items()}


@pytest.fixture(scope="module")
def run(
    opencl: Any, factories: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[Kernels]:
    """Runs kernels on the OpenCL device."""
    if USED in os.environ:
        _record(factories, Path(os.environ[USED]), request)
    kernels = Kernels(tmp_path_factory.mktemp("kernels"))
    yield kernels
    kernels.loaded.clear()
    gc.collect()


def _record(factories: dict[str, Any], file: Path, request: Any) -> None:
    """Tests import kernels when they run, so they get these."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)

    def recorded(name: str, function: Any) -> Any:
        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Any:
            with file.open("a") as out:
                out.write(name + "\n")
            return function(*args, **kwargs)

        return make

    for name, function in factories.items():
        patch.setattr(f"targets.opencl.kernels.{name}", recorded(name, function))


@pytest.fixture
def settled(opencl: Any) -> Iterator[None]:
    """The test before left no buffer behind (what it held is freed by now), and no failure is left injected."""
    import tvm_ffi

    gc.collect()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()  # give back the pools of machines that are gone
    assert opencl.memory()["buffers"] == 0
    yield
    opencl.inject_failure("*", 0, "CL_SUCCESS")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """relu(x @ w) and row sums of it, for any number of rows, compiled for Mali by the stock wheel."""
    import tvm
    import tvm.s_tir.dlight as dl
    from tvm import relax
    from tvm.script import ir as I
    from tvm.script import relax as R

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor(("n", 64), "float32"), w: R.Tensor((64, 32), "float32")):
            with R.dataflow():
                y = R.nn.relu(R.matmul(x, w))
                z = R.sum(y, axis=1)
                R.output(y, z)
            return (y, z)

    target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": {"kind": "llvm"}})
    with target:
        module = relax.get_pipeline("zero")(Module)
        schedules = [dl.gpu.Matmul(), dl.gpu.GEMV(), dl.gpu.Reduction(), dl.gpu.Fallback()]
        module = dl.ApplyDefaultSchedule(*schedules)(module)
    path = tmp_path_factory.mktemp("opencl") / "kernels.so"
    relax.build(module, target).export_library(str(path), fcompile=host_link())
    return path


RUN = """
    import time
    begin = time.perf_counter()
    import sys, numpy as np, tvm
    from tvm.runtime.vm import VirtualMachine
    from targets.opencl import interface as opencl, runtime as opencl_runtime
    assert opencl_runtime.load() == "ours"
    device = tvm.opencl()
    vm = VirtualMachine(tvm.runtime.load_module(sys.argv[1]), [device, tvm.cpu()])
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((7, 64)).astype("float32"), rng.standard_normal((64, 32)).astype("float32")
    start = time.perf_counter()
    y, z = vm["main"](tvm.runtime.tensor(x, device), tvm.runtime.tensor(w, device))
    y, z = y.numpy(), z.numpy()
    first_s = time.perf_counter() - start
    wanted = np.maximum(x @ w, 0)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z, wanted.sum(1), rtol=1e-5, atol=1e-5)
"""


@pytest.fixture(scope="session")
def fresh_process(runtime_library: Path, library: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the kernels in a process of their own and compare with numpy; then `code`."""

    def run(
        code: str = "", env: dict[str, str] | None = None, before: str = RUN, under: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "HSD_OPENCL_RUNTIME": str(runtime_library), "PYTHONPATH": str(ROOT)}
        settings |= {"HSD_OPENCL_CACHE": "", **(env or {})}
        script = textwrap.dedent(before) + textwrap.dedent(code)
        command = [*under, sys.executable, "-c", script, str(library)]
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def serialized() -> Callable[..., bytes]:
    """TVM's form of a module of OpenCL kernels: per name (type code, bits) of each argument, launch tags, source."""

    def text(string: str) -> bytes:
        return struct.pack("<Q", len(string.encode())) + string.encode()

    def make(kernels: dict[str, tuple[list[tuple[int, int]], list[str], str]], fmt: str = "cl") -> bytes:
        out = text(fmt) + struct.pack("<Q", len(kernels))
        for name, (types, tags, _) in kernels.items():
            out += text(name) + text(name) + struct.pack("<Q", len(types))
            out += b"".join(struct.pack("<BBH", code, bits, 1) for code, bits in types)
            out += struct.pack("<Q", len(tags)) + b"".join(text(tag) for tag in tags)
            out += struct.pack("<Q", len(types)) + b"\0\0\0\0" * len(types)
        return out + text("".join(f"// Function: {name}\n{source}\n" for name, (_, _, source) in kernels.items()))

    return make


@pytest.fixture(scope="session")
def load_kernels(opencl: Any, serialized: Callable[..., bytes]) -> Callable[..., Any]:
    """Load a module of hand-written kernels; see `serialized`."""
    import tvm_ffi

    loader = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")

    def load(
        kernels: dict[str, Any], fmt: str = "cl", cut: int | None = None, swap: tuple[bytes, bytes, int] | None = None
    ) -> Any:
        whole = serialized(kernels, fmt)
        return loader((whole.replace(*swap) if swap else whole)[:cut])

    return load
