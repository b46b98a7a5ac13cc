"""A GPU by OpenCL as a kind of processor.

From the host a value is written into a buffer that is kept for it, without waiting; the host sees a value's bytes where
memory is unified (targets/opencl/interface.py), after the kernels before have finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets import elf
from targets.backend import Backend, ProcessorFailed
from targets.cpu.dot import STEP, takes_codes
from targets.device import Board, Core, Gpu
from targets.errors import UserError, last_line
from targets.opencl.tile import GpuTile, gpu_tile

if TYPE_CHECKING:
    import numpy.typing as npt


class OpenClBackend(Backend):
    """Kernels in OpenCL C, launched from the board's CPU."""

    name = "gpu"
    half_as_bits = True
    carries_runtime = True

    def title(self, model: str = "") -> str:
        """The GPU's name."""
        return f"{model or 'the GPU'} by OpenCL"

    def missing_on(self, board: Board) -> str:
        """Not every board has a GPU."""
        return f"board {board.name} has no GPU" if board.gpu is None else ""

    def tile(self, core: Core, gpu: Gpu | None) -> GpuTile:
        """The tile of the GPU."""
        assert gpu is not None, "a placement on the GPU needs one"
        return gpu_tile(gpu)

    def makers(self) -> Mapping[str, Any]:
        """The kernels of targets/opencl/kernels."""
        from targets.opencl.kernels.table import MAKERS

        return MAKERS

    def weight_type(self, dtype: str) -> str:
        """float32, or float16 of which the parameter has the bits."""
        if dtype not in ("float32", "uint16"):
            raise UserError(
                f"{dtype} weights have no GPU kernel: export the model in float32 or float16, or use --place cpu"
            )
        return "float16" if dtype == "uint16" else dtype

    def activation_codes(self, tile: Any, bits: int, block: int, k: int) -> tuple[int, str] | None:
        """As many values as the CPU's kernels add at a time, so that sums are scaled alike; four codes are a word."""
        return (STEP, "uint32") if takes_codes(block, k) else None

    def tvm_target(self, core: Core) -> Any:
        """OpenCL for Mali."""
        from targets.opencl.target import opencl_target

        return opencl_target(core)

    def open(self, runtime: Path | None) -> Any:
        """TVM's device `opencl`, with the runtime that the bundle carries."""
        import tvm

        from targets.opencl import interface as opencl
        from targets.opencl import runtime as opencl_runtime

        assert runtime is not None, "a bundle for a GPU carries the OpenCL runtime"
        elf.check_loadable(runtime)
        if opencl_runtime.load(runtime) == "ours":
            try:
                opencl.devices()
            except opencl_runtime.OpenCLError as error:
                raise ProcessorFailed(last_line(error)) from None
        return tvm.opencl()

    def host_view(self, tensor: Any) -> Any:
        """The same bytes where memory is unified."""
        from targets.opencl import interface as opencl

        return opencl.host_view(tensor)

    def end_view(self, tensor: Any) -> None:
        """Hand the tensor back."""
        from targets.opencl import interface as opencl

        opencl.to_device(tensor)

    def import_weight(self, array: npt.NDArray[Any], name: str, device: Any) -> Any:
        """The mapped file where the GPU can read it there, else a copy."""
        from targets.opencl import interface as opencl

        return opencl.import_host(array, name)
