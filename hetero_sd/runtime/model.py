"""The compiled decoder: a TVM library, memory-mapped weights, and KV caches written in place.

A library has an entry point for each compiled width (passes/make_entries.py); any number of tokens is fed by a
sequence of them. TVM is imported here only, after the number of threads has been set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.interface import ContextFull, Models
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model_facts import ModelFacts, read_model_facts
from hetero_sd.runtime.weights import Weights
from targets.errors import UserError


class CompiledModel:
    """One model of a bundle on one processor; implements the Model protocol."""

    def __init__(self, name: str, bundle: Bundle, huge_pages: bool = False) -> None:
        """Load the library and map the weights of ``bundle.models[name]``.

        Raises:
            UserError: the library or the weights do not fit the description in the manifest.
        """
        import tvm
        from tvm.runtime.vm import VirtualMachine

        facts = read_model_facts(name, bundle.models[name])
        self.name, self.vocab, self.context = name, facts.vocab, facts.context
        self._widths, self._chunk = facts.widths, facts.prefill_width
        self.widths = tuple(facts.widths)
        library = bundle.path(facts.library)
        self._gpu = _opencl_device(bundle, facts) if facts.processor == "gpu" else None
        device = self._gpu or tvm.cpu()
        try:
            self._vm = VirtualMachine(
                tvm.runtime.load_module(str(library)), [device, tvm.cpu()] if self._gpu else device
            )
            self._steps = {n: self._vm[f"step_{n}"] for n in self._widths}
            self._prefill = self._vm[f"prefill_{self._chunk}"]
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"cannot load {library}: {reason}; was the bundle compiled for this machine?") from None
        self._tensor = tvm.runtime.tensor
        self._inputs = {n: _shared_ids(n) for n in {*self._widths, self._chunk}}

        weights = Weights(bundle.path(facts.weights, hashed=False), huge_pages)
        if self._gpu is None:
            self._keep_mapped = weights
        try:
            params = [self._param(_named(weights, p)) for p in facts.params]
            caches = [tvm.runtime.empty(shape, "float32", device) for shape in facts.cache_shapes]
            self._fixed = [*caches, *params]
            self._steps[1](self._ids([0], 1), 0, *self._fixed)[1].numpy()  # TVM compares every shape and type
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            problem = "cannot run on the GPU" if self._gpu else f"and {facts.weights} do not fit each other"
            raise UserError(f"{library} {problem}: {reason}") from None

    def forward(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.float32]:
        """Logits, float32 [n, vocab]; see :class:`hetero_sd.runtime.interface.Model`."""
        self._check(len(ids), pos)
        rows = [self._host(self._step(part, at)[0])[0, : len(part)] for part, at in self._parts(ids, pos)]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def argmax(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.int64]:
        """Best id of each row, int64 [n]."""
        self._check(len(ids), pos)
        rows = [self._host(self._step(part, at)[1])[0, : len(part)] for part, at in self._parts(ids, pos)]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def extend(self, ids: Sequence[int], pos: int) -> int:
        """Feed a prompt and return the best id after its last token; the head runs once per chunk."""
        self._check(len(ids), pos)
        best, done = 0, 0
        while done < len(ids):
            part = list(ids[done : done + self._chunk])
            at = pos + done
            if len(part) <= self._widths[-1] or at + self._chunk > self.context:
                part = part[: self._widths[-1]]
                best = int(self._host(self._step(part, at)[1])[0, len(part) - 1])
            else:
                out = self._prefill(self._ids(part, self._chunk), at, len(part) - 1, *self._fixed)
                best = int(out[1].numpy()[0, 0])
            done += len(part)
        return best

    def _check(self, n: int, pos: int) -> None:
        if n < 1 or pos < 0 or pos + n > self.context:
            raise ContextFull(f"{self.name}: rows {pos} to {pos + n} do not fit a context of {self.context}")

    def _parts(self, ids: Sequence[int], pos: int) -> list[tuple[Sequence[int], int]]:
        """The ids cut into steps of at most the largest width, each with its position."""
        most = self._widths[-1]
        return [(ids[i : i + most], pos + i) for i in range(0, len(ids), most)]

    def _step(self, ids: Sequence[int], pos: int) -> Any:
        """Run the narrowest width that holds ``ids``; where its padding would leave the context, a narrower one."""
        n = next(w for w in self._widths if w >= len(ids))
        if pos + n > self.context:
            return self._single_steps(ids, pos)
        return self._steps[n](self._ids(ids, n), pos, *self._fixed)

    def _single_steps(self, ids: Sequence[int], pos: int) -> Any:
        outs = [self._steps[1](self._ids([token], 1), pos + i, *self._fixed) for i, token in enumerate(ids)]
        return [self._tensor(np.concatenate([o[k].numpy() for o in outs], axis=1)) for k in (0, 1)]

    def _ids(self, ids: Sequence[int], width: int) -> Any:
        """Token ids [1, width] as a tensor, padded with zeros: rows beyond the ids are computed and not used."""
        if min(ids) < 0 or max(ids) >= self.vocab:
            raise ValueError(f"token ids must be 0 to {self.vocab - 1}: {list(ids)}")
        row, tensor = self._inputs[width]
        row[: len(ids)] = ids
        row[len(ids) :] = 0
        return tensor if self._gpu is None else self._tensor(row.reshape(1, width), self._gpu)

    def _host(self, tensor: Any) -> npt.NDArray[Any]:
        """A result as a numpy array: without a copy on the CPU, after waiting for the kernels on the GPU."""
        array: npt.NDArray[Any] = np.from_dlpack(tensor) if self._gpu is None else tensor.numpy()
        return array

    def _param(self, array: npt.NDArray[Any]) -> Any:
        """A weight as the kernels take it: the mapped file on the CPU, a copy on the GPU, float16 there as its bits."""
        import tvm

        if self._gpu is None:
            return tvm.runtime.from_dlpack(array)
        return self._tensor(array.view(np.uint16) if array.dtype == np.float16 else array, self._gpu)


def _shared_ids(width: int) -> tuple[npt.NDArray[np.int64], Any]:
    """A numpy row of ids and the tensor [1, width] over the same memory; making a tensor each time takes 25 us."""
    import tvm

    memory = np.zeros(width + 8, np.int64)
    start = -memory.ctypes.data % 64 // 8  # zero-copy import demands 64 bytes of alignment
    row = memory[start : start + width]
    return row, tvm.runtime.from_dlpack(row.reshape(1, width))


def _opencl_device(bundle: Bundle, facts: ModelFacts) -> Any:
    """TVM's device `opencl`, with the runtime that the bundle carries.

    Raises:
        UserError: the runtime cannot be loaded, or there is no OpenCL loader, driver or device.
    """
    import tvm

    from targets.mali import opencl, opencl_runtime

    assert facts.opencl_runtime is not None
    if opencl_runtime.load(bundle.path(facts.opencl_runtime)) == "ours":
        try:
            opencl.devices()
        except opencl_runtime.OpenCLError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"this bundle runs on the GPU by OpenCL: {reason}; `run.py --doctor` says what mends it"
            ) from None
    return tvm.opencl()


def _named(weights: Weights, name: str) -> Any:
    if name not in weights:
        raise UserError(f"the weights have no tensor {name!r}, which the manifest lists: build the bundle again")
    return weights[name]


def load_models(bundle: Bundle, huge_pages: bool = False) -> Models:
    """Load the target and, where the bundle has one, the drafter.

    Raises:
        UserError: a file of the bundle is missing, altered or for another machine.
    """
    draft = CompiledModel("draft", bundle, huge_pages) if bundle.models.get("draft") else None
    return Models(CompiledModel("target", bundle, huge_pages), draft)
