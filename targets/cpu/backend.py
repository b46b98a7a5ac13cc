"""The board's CPU as a kind of processor: the host itself, so that values and weights stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.backend import HOST, Backend, Kernels, Progress
from targets.cpu.dot import DOTS, STEP, takes_codes
from targets.cpu.tile import CpuTile, cpu_tile
from targets.device import Core, Gpu

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.cpu.objects import CpuKernels


class CpuBackend(Backend):
    """Kernels compiled by LLVM for one core."""

    name = HOST
    slot_views = True

    def tile(self, core: Core, gpu: Gpu | None) -> CpuTile:
        """The register tile of the core."""
        return cpu_tile(core)

    def makers(self) -> Mapping[str, Any]:
        """The kernels of targets/cpu/kernels."""
        from targets.cpu.kernels.table import MAKERS

        return MAKERS

    def activation_codes(self, tile: Any, bits: int, block: int, k: int) -> tuple[int, str] | None:
        """As many values as the integer kernels add at a time, in the type that the core multiplies."""
        return (STEP, DOTS[tile.dot].activations[bits]) if takes_codes(block, k) else None

    def tvm_target(self, core: Core) -> Any:
        """LLVM for the core."""
        from targets.cpu.target import tvm_target

        return tvm_target(core)

    def kernels(self, core: Core, bodies: bool = False) -> CpuKernels:
        """Those of the user's cache folder, and those compiled now."""
        from targets.cpu.objects import CpuKernels
        from targets.kernels.kernel_cache import KernelCache

        return CpuKernels(self.makers(), self.tvm_target(core), KernelCache.of_user(), bodies)

    def build(self, mod: Any, core: Core, path: Path, kernels: Kernels | None, progress: Progress) -> None:
        """Compile the kernels that are not in the cache, and link."""
        from targets.cpu.objects import CpuKernels, build_library

        assert isinstance(kernels, CpuKernels)
        build_library(mod, core, path, kernels, progress)

    def open(self, runtime: Path | None) -> Any:
        """The CPU is always there."""
        import tvm

        return tvm.cpu()

    def vm_devices(self, device: Any) -> Any:
        """The CPU alone."""
        return device

    def host_view(self, tensor: Any) -> Any:
        """The tensor itself."""
        return tensor

    def slot_view(self, tensor: Any, slot: int) -> Any:
        """Of the same memory."""
        import numpy as np
        import tvm

        return tvm.runtime.from_dlpack(np.from_dlpack(tensor)[slot : slot + 1])

    def import_weight(self, array: npt.NDArray[Any], name: str, device: Any) -> Any:
        """The mapped file itself."""
        import tvm

        return tvm.runtime.from_dlpack(array)
