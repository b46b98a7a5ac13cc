"""What the manifest says of a model, checked: a bundle is untrusted input and its numbers size allocations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from targets.errors import UserError

_MOST = 1 << 31  # of any single size


@dataclass(frozen=True)
class ModelFacts:
    """One entry of the manifest's ``models``.

    Attributes:
        library: path of the library in the bundle.
        weights: path of the weights.
        vocab: token ids 0 to vocab - 1.
        context: rows of the KV caches.
        widths: entry points step_<n>, ascending; 1 is among them.
        prefill_width: entry point prefill_<n>.
        params: names of the weights in call order.
        cache_shapes: shapes of all caches in call order, float32.
        processor: "cpu" or "gpu".
        opencl_runtime: path in the bundle of the library that gives TVM the GPU; None on the CPU.
    """

    library: str
    weights: str
    vocab: int
    context: int
    widths: tuple[int, ...]
    prefill_width: int
    params: tuple[str, ...]
    cache_shapes: tuple[tuple[int, ...], ...]
    processor: str
    opencl_runtime: str | None

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches."""
        return 4 * sum(math.prod(shape) for shape in self.cache_shapes)


def read_model_facts(role: str, table: Mapping[str, Any]) -> ModelFacts:
    """Check and return an entry of ``models``.

    Raises:
        UserError: a key is missing or makes no sense, or the caches do not fit this machine's memory.
    """
    try:
        caches = table["caches"]
        shapes = [_sizes(caches[key]) for key in ("key_shape", "value_shape")]
        facts = ModelFacts(
            library=_text(table["library"]),
            weights=_text(table["weights"]),
            vocab=_size(table["vocab"]),
            context=_size(table["context"]),
            widths=tuple(sorted(_sizes(table["widths"]))),
            prefill_width=_size(table["prefill_width"]),
            params=tuple(_text(p) for p in table["params"]),
            cache_shapes=tuple(shapes * _size(caches["count"], 4096)),
            processor=_one_of(table.get("processor", "cpu"), ("cpu", "gpu")),
            opencl_runtime=_text(table["opencl_runtime"]) if table.get("processor") == "gpu" else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"manifest.json: models.{role}: {reason}: build the bundle again") from None
    if facts.widths[0] != 1 or caches.get("dtype") != "float32":
        raise UserError(f"manifest.json: models.{role}: no entry point for one token, or caches that are not float32")
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if facts.cache_bytes > available:
        raise UserError(
            f"the KV caches of the {role} need {facts.cache_bytes >> 20} MiB, this machine has {available >> 20} MiB: "
            "compile with a smaller --context"
        )
    return facts


def _size(value: Any, most: int = _MOST) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{value!r} is not a size from 1 to {most}")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 64:
        raise ValueError(f"{value!r} is not a list of sizes")
    return tuple(_size(v) for v in value)


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name")
    return value
