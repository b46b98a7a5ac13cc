"""The OpenCL runtime, cross-compiled, runs cross-compiled kernels on an AArch64 machine as a bundle finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.cpu import core
from targets.cpu.linker import link_function
from targets.opencl import runtime as opencl_runtime

pytestmark = [pytest.mark.deep, pytest.mark.virtual_board]

_ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import platform
from pathlib import Path
import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine
from targets.opencl import interface as opencl, runtime as opencl_runtime

assert platform.machine() == "aarch64"
assert opencl_runtime.load(Path("/job/libhetero_sd_opencl.so")) == "ours"
device = tvm.opencl()
vm = VirtualMachine(tvm.runtime.load_module("/job/module.so"), [device, tvm.cpu()])
arrays = np.load("/job/inputs.npz")
x, w = (tvm.runtime.tensor(arrays[name], device) for name in ("x", "w"))
np.save("/out/y.npy", vm["main"](x, w).numpy())
view = opencl.host_view(x)
np.testing.assert_array_equal(view.numpy(), arrays["x"])
try:
    tvm.runtime.empty((1 << 40,), "float32", device)
except opencl_runtime.OpenCLError as error:
    print(error)
"""


def test_kernels_run_through_the_cross_compiled_runtime(opencl_board: Any, tmp_path: Path) -> None:
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    outputs.mkdir()
    opencl_runtime.build(inputs, target="aarch64")
    x = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    w = np.random.default_rng(1).standard_normal((64, 48), dtype=np.float32)
    np.savez(inputs / "inputs.npz", x=x, w=w)
    (inputs / "run.py").write_text(_RUN)
    _matmul_relu().export_library(str(inputs / "module.so"), fcompile=link_function(core("cortex-a76")))

    done = opencl_board.run(
        ["/usr/bin/python3", "/job/run.py"],
        mounts={inputs: ("/job", True), outputs: ("/out", False), _ROOT / "targets": ("/python/targets", True)},
        env={"PYTHONPATH": "/site:/python", "HSD_OPENCL_CACHE": ""},
    )

    assert done.returncode == 0, done.stderr
    assert "is larger than CL_DEVICE_MAX_MEM_ALLOC_SIZE = " in done.stdout
    y = np.load(outputs / "y.npy")
    # 64 products of about 1 each, summed in float32 in another order.
    assert np.abs(y - np.maximum(x @ w, 0)).max() < 1e-4
    assert np.abs(y - np.maximum(x @ (w * 1.001), 0)).max() > 1e-4  # the check sees a wrong weight


def _matmul_relu() -> Any:
    """``relu(x @ w)`` scheduled by dlight for Mali, with host code for the board's core."""
    import tvm
    import tvm.s_tir.dlight as dl
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((5, 64), "float32"))
    w = relax.Var("w", relax.TensorType((64, 48), "float32"))
    with builder.function("main", [x, w]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(relax.op.matmul(x, w))))
    host = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
    target = tvm.target.Target({"kind": "opencl", "device": "mali", "host": host})
    with target:
        module = relax.get_pipeline("zero")(builder.get())
        module = dl.ApplyDefaultSchedule(dl.gpu.Matmul(), dl.gpu.Fallback())(module)
    return relax.build(module, target)
