"""A GPU as TVM's target: OpenCL kernels for Mali, and host code for the board's CPU that launches them."""

from __future__ import annotations

from typing import Any

from targets.cpu.target import tvm_target
from targets.device import Core


def opencl_target(core: Core) -> Any:
    """The ``tvm.target.Target`` for OpenCL on Mali, launched from `core`.

    Raises:
        UserError: the LLVM inside this tvm does not know the core.
    """
    from tvm.target import Target

    return Target({"kind": "opencl", "device": "mali"}, host=tvm_target(core))
