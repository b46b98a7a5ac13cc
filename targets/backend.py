"""The registry of processor kinds: what differs from one kind to another, under the name that placement rules use.

A new kind is a folder here with a subclass of Backend, and a line in REGISTRY. Whatever runs a model or compiles one
asks `backend(name)` and knows no kind by name but HOST, which every board has.

Importing this module and the classes it names imports neither tvm nor onnx nor numpy. The methods for compiling import
what only the host has (kernels, targets, the linker); a bundle carries the rest.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from targets.device import Board, Core, Gpu

if TYPE_CHECKING:
    import numpy.typing as npt

Progress = Callable[[str, int, int], None]
HOST = "cpu"  # runs what is placed nowhere else, launches the other kinds' kernels, and takes over where those fail
REGISTRY = {
    HOST: "targets.cpu.backend:CpuBackend",
    "gpu": "targets.opencl.backend:OpenClBackend",
}


class ProcessorFailed(Exception):
    """A processor cannot be used, or failed while generating; the message is one line."""


class Tile(Protocol):
    """How kernels are cut, as far as the layout of weights and caches depends on it; the rest is the backend's own."""

    @property
    def panel(self) -> int:
        """Columns of a packed weight panel."""

    @property
    def lanes(self) -> int:
        """Keys in one tile of the key cache."""


class Kernels(Protocol):
    """What makes kernels, and knows those that need not be compiled again."""

    def make(self, maker: str, name: str, tile: Any, sizes: dict[str, Any]) -> tuple[str, Any]:
        """The symbol and the PrimFunc, whole or declared only, of a kernel of `maker`, cut as `tile` says."""


class Backend(ABC):
    """One kind of processor: first for compiling, then for running.

    Attributes:
        name: in placement rules, manifests and names of libraries.
        half_as_bits: kernels get float16 weights and caches as uint16 of the same bits (passes/relax/half_as_bits.py).
        carries_runtime: a bundle that uses it carries the library that gives TVM the device, `opencl_runtime` in the
            manifest; only one kind can have one today.
        slot_views: a slot's part of a cache is a tensor of its own (`slot_view`); else steps are told the slot.
    """

    name: ClassVar[str]
    half_as_bits: ClassVar[bool] = False
    carries_runtime: ClassVar[bool] = False
    slot_views: ClassVar[bool] = False

    # compiling

    def title(self, model: str = "") -> str:
        """For people; `model` is what the board's GPU is called."""
        return f"the {self.name.upper()}"

    def missing_on(self, board: Board) -> str:
        """What keeps a board from using it, as a sentence without its end; "" where nothing does."""
        return ""

    @abstractmethod
    def tile(self, core: Core, gpu: Gpu | None) -> Tile:
        """How the kernels are cut for a board's core or GPU."""

    @abstractmethod
    def makers(self) -> Mapping[str, Any]:
        """Its makers, by the names of targets/kernels/signatures.py; a model that needs another is refused."""

    def weight_type(self, dtype: str) -> str:
        """The type that makers are told for a weight of a parameter's type.

        Raises:
            UserError: there is no kernel for it.
        """
        return dtype

    def activation_codes(self, tile: Any, bits: int, block: int, k: int) -> tuple[int, str] | None:
        """How activations are stored as integers for weights of `bits` with a scale for `block` of k values.

        Returns:
            (values that share a scale, type), or None: there is no kernel `linear_int` for such weights. The type is of
            one code, or uint32 for four of them, the first in the lowest byte.
        """
        return None

    @abstractmethod
    def tvm_target(self, core: Core) -> Any:
        """The ``tvm.target.Target`` for its kernels, launched from `core`."""

    def kernels(self, core: Core, bodies: bool = False) -> Kernels | None:
        """What makes kernels from what was compiled before, for one compilation; None: they are made by the makers.

        `bodies`: whole kernels, and no declarations of those that need not be compiled.
        """
        return None

    def build(self, mod: Any, core: Core, path: Path, kernels: Kernels | None, progress: Progress) -> None:
        """Compile a lowered module and write it as a shared library; what is made on the way lies beside it.

        Args:
            mod: from passes/lower.
            core: which it runs on, or which launches it.
            path: to write.
            kernels: what made its kernels.
            progress: called with (what, done, total).
        """
        from tvm import relax

        from targets.cpu.linker import link_function
        from targets.kernels import vm_code
        from targets.kernels.denied_memory import no_memory_denied

        with no_memory_denied():
            executable = relax.build(mod, self.tvm_target(core), relax_pipeline=vm_code.pipeline())
        path.parent.mkdir(parents=True, exist_ok=True)
        # beside the library, so that what a killed build leaves goes as a whole
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".objects-") as objects:
            executable.export_library(str(path), fcompile=link_function(core), workspace_dir=objects)

    # running

    @abstractmethod
    def open(self, runtime: Path | None) -> Any:
        """TVM's device.

        Args:
            runtime: the library in the bundle where `carries_runtime`, else None.

        Raises:
            UserError: the library does not load.
            ProcessorFailed: there is no usable device.
        """

    def vm_devices(self, device: Any) -> Any:
        """The devices of a VirtualMachine that runs its library."""
        import tvm

        return [device, tvm.cpu()]

    def to_device(self, tensor: Any, device: Any, kept: Any) -> Any:
        """A value of the host's on a device that is not HOST; does not wait.

        Args:
            tensor: on the host, the same shape and type in every call.
            device: from `open`.
            kept: what the call before returned; None at first. Its memory may be used again.
        """
        import tvm

        buffer = tvm.runtime.empty(tuple(tensor.shape), str(tensor.dtype), device) if kept is None else kept
        buffer.copyfrom(tensor)
        return buffer

    def host_view(self, tensor: Any) -> Any:
        """The host's tensor with a value of the device, after the kernels before; until `end_view` it is the host's."""
        import tvm

        return tensor.copyto(tvm.cpu())

    def end_view(self, tensor: Any) -> None:
        """Give a tensor back to the device, which writes it again."""
        return

    def slot_view(self, tensor: Any, slot: int) -> Any:
        """Of a cache [slots, ...] that of one slot, [1, ...] over the same memory; where there are `slot_views`."""
        raise AssertionError(f"steps on {self.name} are told the slot")

    def parameter_type(self, dtype: str) -> str:
        """The type in which kernels get weights and caches of `dtype`."""
        return "uint16" if self.half_as_bits and dtype == "float16" else dtype

    def import_weight(self, array: npt.NDArray[Any], name: str, device: Any) -> Any:
        """A weight as the kernels take it, without a copy where that can be.

        Args:
            array: of the mapped file; it stays mapped.
            name: of the tensor, for messages.
            device: from `open`.
        """
        import numpy as np
        import tvm

        stored = np.dtype(self.parameter_type(str(array.dtype)))
        return tvm.runtime.tensor(array if array.dtype == stored else array.view(stored), device)


def names() -> tuple[str, ...]:
    """The registered kinds, HOST first."""
    return tuple(REGISTRY)


def backend(name: str) -> Backend:
    """The kind of that name, which must be registered."""
    return _load(REGISTRY[name])


@functools.cache
def _load(where: str) -> Backend:
    module, _, cls = where.partition(":")
    made = getattr(importlib.import_module(module), cls)()
    assert isinstance(made, Backend)
    return made
