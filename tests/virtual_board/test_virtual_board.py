"""Cross-compiled code computes the right numbers on an AArch64 machine that has only what a bundle carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.cpu import core
from targets.cpu.linker import link_function

pytestmark = [pytest.mark.slow, pytest.mark.virtual_board]

_PYTHON = "/usr/bin/python3"
_RUN_MODULE = """
import platform, sys
import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

assert platform.machine() == "aarch64"
arrays = np.load("/job/inputs.npz")
vm = VirtualMachine(tvm.runtime.load_module("/job/module.so"), tvm.cpu())
x, w = (tvm.runtime.tensor(arrays[name]) for name in ("x", "w"))
np.save("/out/y.npy", vm["main"](x, w).numpy())
"""


def test_it_is_aarch64_with_the_packages_of_a_bundle(virtual_board: Any) -> None:
    script = (
        "import json, platform, sys, tvm, tokenizers, jinja2, numpy; from tvm.runtime.vm import VirtualMachine;"
        "print(json.dumps([platform.machine(), tvm.__version__, tokenizers.__version__, tvm.__file__]))"
    )
    done = virtual_board.run([_PYTHON, "-c", script])
    assert done.returncode == 0, done.stderr
    machine, tvm_version, tokenizers_version, path = json.loads(done.stdout)
    assert (machine, tvm_version, tokenizers_version) == ("aarch64", "0.27.0.post1", "0.23.3")
    assert path.startswith("/site/")


@pytest.mark.parametrize(("core_name", "cpu"), [("cortex-a55", "cortex-a76"), ("cortex-a53", "cortex-a53")])
def test_a_module_linked_by_zig_runs_from_a_read_only_folder(
    virtual_board: Any, tmp_path: Path, core_name: str, cpu: str
) -> None:
    from targets.cpu.target import tvm_target

    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 64), dtype=np.float32)
    w = rng.standard_normal((64, 48), dtype=np.float32)
    np.savez(inputs / "inputs.npz", x=x, w=w)
    (inputs / "run.py").write_text(_RUN_MODULE)
    _matmul_relu_exp(tvm_target(core(core_name))).export_library(
        str(inputs / "module.so"), fcompile=link_function(core(core_name), prefer="zig")
    )

    done = virtual_board.run(
        [_PYTHON, "/job/run.py"], mounts={inputs: ("/job", True), outputs: ("/out", False)}, cpu=cpu
    )

    assert done.returncode == 0, done.stderr
    y = np.load(outputs / "y.npy")
    # 64 products of about 1 each, summed in float32 in another order: 64 * 2^-24 * |sum| with room; exp multiplies it.
    expected = np.exp(-np.maximum(x @ w, 0))
    assert np.abs(y - expected).max() < 1e-5
    assert np.abs(y - np.exp(-np.maximum(x @ (w * 1.001), 0))).max() > 1e-5  # the check sees a wrong weight


def test_a_read_only_mount_cannot_be_written(virtual_board: Any, tmp_path: Path) -> None:
    done = virtual_board.run(["/bin/touch", "/job/file"], mounts={tmp_path: ("/job", True)})
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())
    done = virtual_board.run(["/bin/touch", "/job/file"], mounts={tmp_path: ("/job", False)})
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_of_the_board_stays_mounted_or_written(virtual_board: Any, tmp_path: Path) -> None:
    virtual_board.run(["/bin/true"], mounts={tmp_path: ("/job", True)})
    assert str(virtual_board.root) not in Path("/proc/mounts").read_text()
    assert virtual_board.run(["/bin/touch", "/etc/file"]).returncode != 0
    assert virtual_board.run(["/bin/touch", "/tmp/file"]).returncode == 0
    assert not list((virtual_board.root / "tmp").iterdir())
    assert not list((virtual_board.root / "work").iterdir())


def test_the_board_sees_no_variable_of_the_caller(virtual_board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSD_SECRET", "value")
    done = virtual_board.run(["/usr/bin/env"], env={"GIVEN": "yes"})
    assert "GIVEN=yes" in done.stdout
    assert "HSD_SECRET" not in done.stdout


def _matmul_relu_exp(target: Any) -> Any:
    """``exp(-relu(x @ w))`` with stock operators, compiled for the target."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((5, 64), "float32"))
    w = relax.Var("w", relax.TensorType((64, 48), "float32"))
    with builder.function("main", [x, w]):
        y = builder.emit(relax.op.exp(relax.op.negative(relax.op.nn.relu(relax.op.matmul(x, w)))))
        builder.emit_func_output(y)
    return relax.build(builder.get(), target)
