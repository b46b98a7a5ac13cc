"""The segments of a model, loaded: TVM libraries by processor, caches, weights, and what crosses between processors.

How a value gets from one processor to another, and a weight to its own, is the backend's (targets/backend.py): between
two of them the host sees the value on the first, then hands it to the second. What the host sees of a value ends before
the processor that has it uses it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.schema.model import ModelFacts, SegmentFacts, WeightSlice
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model import library_facts
from hetero_sd.runtime.model.cache_pages import CachePages
from hetero_sd.runtime.model.library_facts import check_library, check_weights
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS
from hetero_sd.runtime.model.weights import Weights
from targets import elf
from targets.backend import HOST, Backend, ProcessorFailed, backend
from targets.errors import UserError, last_line

FILL = "fill_"  # with a width, the entry point that writes caches only
_TVM_LIBRARY = "__tvm_ffi__library_bin"  # the symbol under which TVM finds what is packed into a library


class Chain:
    """The segments of one placement; calls run them in order."""

    def __init__(self, bundle: Bundle, facts: ModelFacts, segments: Sequence[SegmentFacts], weights: Weights) -> None:
        """Load the libraries that the segments need.

        Raises:
            UserError: a library does not load, or does not fit the weights or the manifest.
            ProcessorFailed: another processor than the CPU is needed and cannot be used.
        """
        self.devices = {p: _open(bundle, facts, backend(p)) for p in dict.fromkeys(s.processor for s in segments)}
        self.accelerators = tuple(p for p in self.devices if p != HOST)
        self.segments = segments
        self.copied_s = 0.0  # of copies between processors so far, without waiting for the kernels before them
        self._keep_mapped = weights
        machines = {s.processor: self._load(bundle, facts, s.processor) for s in segments}
        for segment in segments:
            tensors = _checked(bundle, facts, segment.processor, machines[segment.processor])
            check_weights(weights, facts.weights, tensors, segment.params)
        self.pages: CachePages | None = None  # the caches, where they have several slots and all are on the CPU
        cached = max(i for i, s in enumerate(segments) if s.layers)
        self._segments = [
            _Loaded(s, facts, machines[s.processor], self._fixed(s, facts, weights), i == cached)
            for i, s in enumerate(segments)
        ]
        self._filled = self._segments[: cached + 1]
        self._kept: dict[tuple[str, str, str], Any] = {}
        self.alone = self._segments[0] if len(self._segments) == 1 and not self.accelerators else None
        self._own_rows = [segment.caches for segment in self._segments]

    def run(self, entry: str, ids: Any, pos: int, row: int | None = None, slot: int = 0) -> tuple[Any, ...]:
        """Run an entry point, for example "step_4".

        Args:
            entry: its name, without the prefix of a segment.
            ids: tensor int64 [1, n] on the CPU.
            pos: rows of the caches before.
            row: for a prefill, the row to compute logits for.
            slot: of the caches.

        Returns:
            (logits, choice) as tensors of the processor that computed them; of fill_<n> one tensor, to wait for.
        """
        if self.alone is not None:
            return tuple(self.alone.step(entry, (ids,), pos, slot, () if row is None else (row,)))

        def step(segment: _Loaded, arguments: Sequence[Any]) -> Any:
            more = () if row is None or not segment.facts.chooses else (row,)
            return segment.step(entry, arguments, pos, slot, more)

        return self._through(entry, ids, step)

    def run_rows(self, entry: str, ids: Any, slots: Any, positions: Any) -> tuple[Any, ...]:
        """Run an entry point whose rows are each at a position of a slot, tensors int64 [n] on the CPU; as `run`."""
        if self.alone is not None:
            return tuple(self.alone.entries[entry](ids, slots, positions, *self.alone.every))
        where: dict[str, list[Any]] = {HOST: [slots, positions]}

        def rows(segment: _Loaded, arguments: Sequence[Any]) -> Any:
            here = segment.facts.processor
            if here not in where:
                given = (("slot", slots), ("pos", positions))
                where[here] = [self._to_device(name, entry, tensor, here) for name, tensor in given]
            return segment.entries[entry](*arguments, *where[here], *segment.every)

        return self._through(entry, ids, rows)

    def _through(self, entry: str, ids: Any, call: Callable[[_Loaded, Sequence[Any]], Any]) -> tuple[Any, ...]:
        """What the segments compute one after the other; `call` calls one with its inputs on its processor."""
        values: dict[str, tuple[str, Any]] = {"input_ids": (HOST, ids)}
        crossed: dict[tuple[str, str], Any] = {}
        lent: dict[str, tuple[Backend, Any]] = {}  # by name: values that the host sees on the processor that has them
        fills = entry.startswith(FILL)
        segments, results = (self._filled, (FILL,)) if fills else (self._segments, (LOGITS, CHOICE))
        try:
            for segment in segments:
                here, arguments = segment.facts.processor, []
                for name in segment.facts.inputs:
                    home, tensor = values[name]
                    if home == here and name in lent:
                        owner, _ = lent.pop(name)
                        owner.end_view(tensor)
                        crossed.pop((name, HOST), None)
                    if home != here and (name, here) not in crossed:
                        view = backend(home).host_view(tensor)
                        lent[name] = backend(home), tensor
                        crossed[name, here] = view if here == HOST else self._to_device(name, entry, view, here)
                    arguments.append(tensor if home == here else crossed[name, here])
                made = call(segment, arguments)
                names = results if fills and segment is segments[-1] else segment.facts.outputs
                values.update((name, (here, t)) for name, t in zip(names, made, strict=True))
        finally:
            for owner, tensor in lent.values():
                owner.end_view(tensor)
        return tuple(values[name][1] for name in results)

    def share_rows(self, other: Chain | None) -> bool:
        """Write into another chain's caches of the layers that both have, or with None into its own again.

        False where the other one has a layer elsewhere, or its caches differ: then nothing changes.
        """
        taken = self._own_rows
        if other is not None:
            rows = {(s.facts.processor, layer): s.caches_of(layer) for s in other._segments for layer in s.facts.layers}
            taken = [
                [cache for layer in s.facts.layers for cache in rows.get((s.facts.processor, layer), ())]
                for s in self._segments
            ]
            if [_shapes(rows) for rows in taken] != [_shapes(rows) for rows in self._own_rows]:
                return False
        for segment, caches in zip(self._segments, taken, strict=True):
            segment.caches = caches
        return True

    @property
    def caches(self) -> list[Any]:
        """Keys and values of each layer, in order; of the first slot, where there are several."""
        return [cache for segment in self._segments for cache in segment.caches]

    def host(self, tensor: Any) -> npt.NDArray[Any]:
        """A result as a numpy array: without a copy on the CPU, after waiting for the kernels elsewhere."""
        if self.is_on_cpu(tensor):
            seen: npt.NDArray[Any] = np.from_dlpack(tensor)
            return seen
        tensor.device.sync()
        begin = time.perf_counter()
        array: npt.NDArray[Any] = tensor.numpy()
        self.copied_s += time.perf_counter() - begin
        return array

    def is_on_cpu(self, tensor: Any) -> bool:
        """Whether `host` gives its own memory."""
        return not self.accelerators or str(tensor.device).startswith("cpu")

    def wait(self, tensor: Any) -> None:
        """Wait for the kernels that make a result."""
        if self.accelerators:
            tensor.device.sync()

    def _to_device(self, name: str, entry: str, tensor: Any, processor: str) -> Any:
        """The host's value on another processor, in the memory that is kept for it."""
        key, device = (name, entry, processor), self.devices[processor]
        begin = time.perf_counter()
        self._kept[key] = backend(processor).to_device(tensor, device, self._kept.get(key))
        self.copied_s += time.perf_counter() - begin
        return self._kept[key]

    def _load(self, bundle: Bundle, facts: ModelFacts, processor: str) -> Any:
        from tvm.runtime.vm import VirtualMachine

        library = bundle.folder / facts.libraries[processor]
        with bundle.opened(facts.libraries[processor]) as opened:
            elf.check_loadable(Path(opened), library)
            if _TVM_LIBRARY not in elf.defined_symbols(Path(opened)):
                raise UserError(f"{library} has no kernels of ours: copy or build the bundle again")
            try:
                module = load_module(opened)
            except Exception as error:
                raise _not_loaded(library, error) from None
        try:
            return VirtualMachine(module, backend(processor).vm_devices(self.devices[processor]))
        except Exception as error:
            raise _not_loaded(library, error) from None

    def _fixed(self, segment: SegmentFacts, facts: ModelFacts, weights: Weights) -> list[Any]:
        """Caches and weights of a segment, in call order."""
        import tvm

        kind, device = backend(segment.processor), self.devices[segment.processor]
        shapes = [facts.caches.key_shape[segment.processor], facts.caches.value_shape] * len(segment.layers)
        try:
            dtype = kind.parameter_type(facts.caches.dtype)
            if facts.slots > 1 and segment.processor == HOST and len(self.segments) == 1:
                self.pages = CachePages(shapes, dtype, facts.context)
                caches = [tvm.runtime.from_dlpack(array) for array in self.pages.arrays]
            else:
                caches = [tvm.runtime.empty(shape, dtype, device) for shape in shapes]

            def imported(use: str | WeightSlice) -> Any:
                return kind.import_weight(weights.part(use), use if isinstance(use, str) else use.name, device)

            return [*caches, *(weights.on_processor(segment.processor, use, imported) for use in segment.params)]
        except Exception as error:
            if segment.processor != HOST:
                raise ProcessorFailed(last_line(error)) from None
            raise UserError(f"{facts.weights} cannot be used: {last_line(error)}") from None


class _Loaded:
    """A segment with its entry points, caches and weights."""

    def __init__(self, facts: SegmentFacts, model: ModelFacts, machine: Any, fixed: list[Any], fills: bool) -> None:
        """Find the entry points; the last segment with layers `fills`, those before it do what they do in a prefill."""
        kind, caches = backend(facts.processor), 2 * len(facts.layers)
        self.facts, self.every = facts, fixed  # with the caches of all slots
        self._told_slot, self._slots = model.slots > 1 and not kind.slot_views, [fixed]
        if model.slots > 1 and kind.slot_views:
            views = [[kind.slot_view(cache, slot) for cache in fixed[:caches]] for slot in range(model.slots)]
            self._slots = [[*of_slot, *fixed[caches:]] for of_slot in views]
        self.fixed = self._slots[0]
        chunks = {f"{FILL}{n}": f"prefill_{n}" for n in model.prefill_widths}
        names = [*(f"step_{n}" for n in model.widths), *(f"rows_{n}" for n in model.row_widths), *chunks.values()]
        try:
            self.entries = {name: machine[facts.prefix + name] for name in names}
            for fill, prefill in chunks.items():
                self.entries[fill] = machine[facts.prefix + fill] if fills else self.entries[prefill]
        except Exception as error:
            library = model.libraries[facts.processor]
            raise UserError(
                f"{library} does not fit the manifest: {last_line(error)}: build the bundle again"
            ) from None

    def step(self, entry: str, arguments: Sequence[Any], pos: int, slot: int, more: Sequence[int]) -> Any:
        """Call an entry point of one sequence."""
        if self._told_slot:
            return self.entries[entry](*arguments, slot, pos, *more, *self.fixed)
        return self.entries[entry](*arguments, pos, *more, *self._slots[slot])

    @property
    def caches(self) -> list[Any]:
        """Keys and values of each layer, in order."""
        return self.fixed[: 2 * len(self.facts.layers)]

    @caches.setter
    def caches(self, tensors: list[Any]) -> None:
        self.fixed[: len(tensors)] = tensors

    def caches_of(self, layer: int) -> list[Any]:
        """Keys and values of one of its layers."""
        first = 2 * self.facts.layers.index(layer)
        return self.fixed[first : first + 2]


def _shapes(tensors: Sequence[Any]) -> list[Any]:
    return [tensor.shape for tensor in tensors]


def load_module(opened: str) -> Any:
    """The TVM module in a library, by a path that `Bundle.opened` gave.

    TVM's own function takes the path's end for the kind of the file, and the real path for the file.
    """
    import tvm_ffi

    if opened.endswith(".so"):  # a system without /proc
        return tvm_ffi.load_module(opened)
    module = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(opened, "so")
    tvm_ffi.get_global_func("ffi.ModuleGlobalsAdd")(module)  # as load_module: its code stays as long as the process
    return module


def _not_loaded(library: Path, error: Exception) -> UserError:
    return UserError(f"cannot load {library}: {last_line(error)}; was the bundle compiled for this machine?")


def _open(bundle: Bundle, facts: ModelFacts, kind: Backend) -> Any:
    """TVM's device for a kind of processor, with the runtime that the bundle carries for it."""
    if not kind.carries_runtime:
        return kind.open(None)
    assert facts.opencl_runtime is not None
    with bundle.opened(facts.opencl_runtime) as opened:
        return kind.open(Path(opened))


def _checked(bundle: Bundle, facts: ModelFacts, processor: str, machine: Any) -> dict[str, tuple[str | int, ...]]:
    """The types of the weights that a loaded library expects, after its facts were compared with the manifest."""
    library = facts.libraries[processor]
    try:
        text = str(machine[facts.entries + library_facts.ENTRY]())
    except Exception:
        raise UserError(f"{library} does not say what it was compiled for: build the bundle again") from None
    return check_library(library, text, facts, bundle.tokenizer)
