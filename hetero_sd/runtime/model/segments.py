"""The segments of a model, loaded: TVM libraries by processor, caches, weights, and what crosses between processors.

From the CPU to the GPU a value is written into a buffer that is kept for it, without waiting; from the GPU to the CPU
the host sees the bytes where memory is unified (targets/opencl/interface.py), after the kernels before have finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.schema.model import ModelFacts, SegmentFacts
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model import library_facts
from hetero_sd.runtime.model.library_facts import check_library, check_weights
from hetero_sd.runtime.model.weights import Weights
from targets import elf
from targets.errors import UserError

_TVM_LIBRARY = "__tvm_ffi__library_bin"  # the symbol under which TVM finds what is packed into a library


class GpuFailed(Exception):
    """The GPU cannot be used, or failed while generating; the message is one line."""


class Chain:
    """The segments of one placement; calls run them in order."""

    def __init__(self, bundle: Bundle, facts: ModelFacts, segments: Sequence[SegmentFacts], weights: Weights) -> None:
        """Load the libraries that the segments need.

        Raises:
            UserError: a library does not load, or does not fit the weights or the manifest.
            GpuFailed: there is no usable GPU where one is needed.
        """
        self.gpu = _opencl_device(bundle, facts) if any(s.processor == "gpu" for s in segments) else None
        self.segments = segments
        self._keep_mapped = weights
        machines = {s.processor: self._load(bundle, facts, s.processor) for s in segments}
        for segment in segments:
            tensors = _checked(bundle, facts, segment.processor, machines[segment.processor])
            check_weights(weights, facts.weights, tensors, segment.params)
        self._segments = [_Loaded(s, facts, machines[s.processor], self._fixed(s, facts, weights)) for s in segments]
        self._inputs: dict[tuple[str, str], Any] = {}
        self.alone = self._segments[0] if len(self._segments) == 1 and self.gpu is None else None

    def run(self, entry: str, ids: Any, pos: int, row: int | None = None) -> tuple[Any, Any]:
        """Run an entry point, for example "step_4".

        Args:
            entry: its name, without the prefix of a segment.
            ids: tensor int64 [1, n] on the CPU.
            pos: rows of the caches before.
            row: for a prefill, the row to compute logits for.

        Returns:
            (logits, choice) as tensors of the processor that computed them.
        """
        if self.alone is not None:
            more = () if row is None else (row,)
            return tuple(self.alone.entries[entry](ids, pos, *more, *self.alone.fixed))
        from targets.opencl import interface as opencl

        values: dict[str, tuple[str, Any]] = {"input_ids": ("cpu", ids)}
        crossed: dict[tuple[str, str], Any] = {}
        lent = []
        try:
            for segment in self._segments:
                here, arguments = segment.facts.processor, []
                for name in segment.facts.inputs:
                    home, tensor = values[name]
                    if home != here and (name, here) not in crossed:
                        crossed[name, here] = self._to_gpu(name, entry, tensor) if here == "gpu" else _lend(tensor)
                        lent += [tensor] if here == "cpu" else []
                    arguments.append(tensor if home == here else crossed[name, here])
                more = () if row is None or not segment.facts.chooses else (row,)
                made = segment.entries[entry](*arguments, pos, *more, *segment.fixed)
                values.update((name, (here, t)) for name, t in zip(segment.facts.outputs, made, strict=True))
        finally:
            for tensor in lent:
                opencl.to_device(tensor)
        return values["logits"][1], values["choice"][1]

    def host(self, tensor: Any) -> npt.NDArray[Any]:
        """A result as a numpy array: without a copy on the CPU, after waiting for the kernels on the GPU."""
        on_cpu = self.gpu is None or str(tensor.device).startswith("cpu")
        array: npt.NDArray[Any] = np.from_dlpack(tensor) if on_cpu else tensor.numpy()
        return array

    def _to_gpu(self, name: str, entry: str, tensor: Any) -> Any:
        """The value in the GPU's buffer that is kept for it."""
        import tvm

        key = (name, entry)
        if key not in self._inputs:
            self._inputs[key] = tvm.runtime.empty(tuple(tensor.shape), str(tensor.dtype), self.gpu)
        self._inputs[key].copyfrom(tensor)
        return self._inputs[key]

    def _load(self, bundle: Bundle, facts: ModelFacts, processor: str) -> Any:
        import tvm
        from tvm.runtime.vm import VirtualMachine

        library = bundle.path(facts.libraries[processor])
        elf.check_loadable(library)
        if _TVM_LIBRARY not in elf.defined_symbols(library):
            raise UserError(f"{library} has no kernels of ours: copy or build the bundle again")
        try:
            module = tvm.runtime.load_module(str(library))
            return VirtualMachine(module, [self.gpu, tvm.cpu()] if processor == "gpu" else tvm.cpu())
        except Exception as error:
            raise UserError(
                f"cannot load {library}: {last_line(error)}; was the bundle compiled for this machine?"
            ) from None

    def _fixed(self, segment: SegmentFacts, facts: ModelFacts, weights: Weights) -> list[Any]:
        """Caches and weights of a segment, in call order."""
        import tvm

        device = self.gpu if segment.processor == "gpu" else tvm.cpu()
        shapes = [facts.caches.key_shape[segment.processor], facts.caches.value_shape] * len(segment.layers)
        try:
            caches = [tvm.runtime.empty(shape, facts.caches.dtype, device) for shape in shapes]
            return [
                *caches,
                *(
                    self._param(p if isinstance(p, str) else p.name, weights.part(p), segment.processor)
                    for p in segment.params
                ),
            ]
        except Exception as error:
            if segment.processor == "gpu":
                raise GpuFailed(last_line(error)) from None
            raise UserError(f"{facts.weights} cannot be used: {last_line(error)}") from None

    def _param(self, name: str, array: npt.NDArray[Any], processor: str) -> Any:
        """A weight as the kernels take it: the mapped file, copied where the GPU cannot read it there."""
        import tvm

        from targets.opencl import interface as opencl

        return tvm.runtime.from_dlpack(array) if processor == "cpu" else opencl.import_host(array, name)


class _Loaded:
    """A segment with its entry points, caches and weights."""

    def __init__(self, facts: SegmentFacts, model: ModelFacts, machine: Any, fixed: list[Any]) -> None:
        self.facts, self.fixed = facts, fixed
        names = [*(f"step_{n}" for n in model.widths), f"prefill_{model.prefill_width}"]
        try:
            self.entries = {name: machine[facts.prefix + name] for name in names}
        except Exception as error:
            library = model.libraries[facts.processor]
            raise UserError(
                f"{library} does not fit the manifest: {last_line(error)}: build the bundle again"
            ) from None


def _lend(tensor: Any) -> Any:
    from targets.opencl import interface as opencl

    return opencl.host_view(tensor)


def _opencl_device(bundle: Bundle, facts: ModelFacts) -> Any:
    """TVM's device `opencl`, with the runtime that the bundle carries."""
    import tvm

    from targets.opencl import interface as opencl
    from targets.opencl import runtime as opencl_runtime

    assert facts.opencl_runtime is not None
    library = bundle.path(facts.opencl_runtime)
    elf.check_loadable(library)
    if opencl_runtime.load(library) == "ours":
        try:
            opencl.devices()
        except opencl_runtime.OpenCLError as error:
            raise GpuFailed(last_line(error)) from None
    return tvm.opencl()


def _checked(bundle: Bundle, facts: ModelFacts, processor: str, machine: Any) -> dict[str, tuple[str | int, ...]]:
    """The types of the weights that a loaded library expects, after its facts were compared with the manifest."""
    library = facts.libraries[processor]
    try:
        text = str(machine[library_facts.ENTRY]())
    except Exception:
        raise UserError(f"{library} does not say what it was compiled for: build the bundle again") from None
    return check_library(library, text, facts, bundle.tokenizer)


def last_line(error: BaseException) -> str:
    """What an exception of TVM says, without its traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
