"""Runs compiled kernels on the virtual board: one library and one process for many calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from targets.cpu.linker import link_function
from targets.cpu.target import tvm_target
from targets.device import Core

Array = npt.NDArray[Any]

_RUN = """
import json
import numpy as np
import tvm

arrays, made = np.load("/job/inputs.npz"), {}
module = tvm.runtime.load_module("/job/kernels.so")
for name, call in json.load(open("/job/calls.json")).items():
    outputs = [tvm.runtime.tensor(np.full(shape, 77, dtype)) for shape, dtype in call["outputs"]]
    module[call["kernel"]](*(tvm.runtime.tensor(arrays[given]) for given in call["inputs"]), *outputs)
    made.update({f"{name}.{i}": output.numpy() for i, output in enumerate(outputs)})
np.savez("/out/outputs.npz", **made)
"""


@dataclass(frozen=True)
class Call:
    """One call of a kernel whose outputs are its last parameters.

    Attributes:
        kernel: name of the function.
        inputs: its arguments.
        outputs: shape and type of each output.
    """

    kernel: str
    inputs: tuple[Array, ...]
    outputs: tuple[tuple[tuple[int, ...], str], ...]


def run_on_board(
    virtual_board: Any, folder: Path, core: Core, cpu: str, kernels: Mapping[str, Any], calls: Mapping[str, Call]
) -> dict[str, list[Array]]:
    """Compile PrimFuncs for a core, run the calls on the emulated `cpu`, and return the outputs of each call."""
    inputs, outputs = folder / "job", folder / "out"
    inputs.mkdir()
    outputs.mkdir()
    named = {name: func.with_attr("global_symbol", name) for name, func in kernels.items()}
    tvm.compile(tvm.IRModule(named), target=tvm_target(core)).export_library(
        str(inputs / "kernels.so"), fcompile=link_function(core, prefer="zig")
    )
    arrays: dict[str, Array] = {}
    plan = {}
    for name, call in calls.items():
        given = {f"{name}.{i}": np.ascontiguousarray(value) for i, value in enumerate(call.inputs)}
        arrays.update(given)
        plan[name] = {"kernel": call.kernel, "inputs": list(given), "outputs": call.outputs}
    np.savez(inputs / "inputs.npz", **arrays)  # type: ignore[arg-type]
    (inputs / "calls.json").write_text(json.dumps(plan), "utf-8")
    (inputs / "run.py").write_text(_RUN, "utf-8")
    mounts = {inputs: ("/job", True), outputs: ("/out", False)}
    done = virtual_board.run(["/usr/bin/python3", "/job/run.py"], mounts=mounts, cpu=cpu)
    assert done.returncode == 0, done.stderr
    with np.load(outputs / "outputs.npz") as made:
        return {name: [made[f"{name}.{i}"] for i in range(len(call.outputs))] for name, call in calls.items()}
