"""Lowered decoders of the CPU, built and loaded here; their kernels are compiled once for all tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from passes.lower.lowered import LoweredDecoder
from targets.backend import HOST, Kernels, backend
from targets.device import Core


def kernels_of(core: Core) -> dict[str, Kernels | None]:
    """For `lower_decoder`: the kernels of the user's cache."""
    return {HOST: backend(HOST).kernels(core)}


def virtual_machine(lowered: LoweredDecoder, core: Core, kernels: dict[str, Kernels | None]) -> Any:
    """The loaded library of a decoder that was lowered with `kernels`."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "decoder.so"
        backend(HOST).build(lowered.mod, core, library, kernels[HOST], lambda *_: None)
        return relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
