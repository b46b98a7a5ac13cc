"""What a library was compiled for, kept inside it: the manifest's entry of its model and the types of its weights.

The kernels assume these numbers and do not check them again, and whoever edits the manifest does not recompile. The
library has a function ``facts`` that returns them as JSON; they are compared with the manifest, and with the header
of the weights, before a kernel runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hetero_sd.runtime.model.weights import Weights
from targets.errors import UserError

ENTRY = "facts"
_FILES = ("libraries", "weights", "opencl_runtime")  # paths: the manifest's table of files is their check


def facts_json(
    role: str,
    table: Mapping[str, Any],
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    tokenizer: Mapping[str, Any] | None,
) -> str:
    """Return the facts of a library.

    Args:
        role: "target" or "draft".
        table: the entry under ``models`` of the manifest.
        tensors: (name, dtype, shape) of every stored weight.
        tokenizer: the manifest's ``tokenizer``, whose ids end the text; None where the bundle is built without one.
    """
    weights = {name: [dtype, *shape] for name, dtype, shape in tensors}
    facts = {**_stated(role, table), "tensors": weights, **({"tokenizer": tokenizer} if tokenizer is not None else {})}
    return json.dumps(facts, sort_keys=True, allow_nan=False)


def check_library(
    library: str, text: str, role: str, table: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Compare the facts of a library with the manifest, and return the types of its weights, {name: [dtype, *shape]}.

    Raises:
        UserError: they differ; the message names the first number that does.
    """
    facts = json.loads(text)
    tensors: dict[str, list[Any]] = facts.pop("tensors")
    stated = {**_stated(role, table), **({"tokenizer": dict(tokenizer)} if "tokenizer" in facts else {})}
    for path, ours, compiled in _differences(stated, facts):
        where = path.replace("model.", f"models.{role}.", 1) if path.startswith("model.") else path
        raise UserError(
            f"manifest.json: {where} is {_short(ours)}, {library} was compiled with {_short(compiled)}: "
            "copy or build the bundle again"
        )
    return tensors


def check_weights(weights: Weights, name: str, tensors: Mapping[str, list[Any]], params: Iterable[str]) -> None:
    """Compare the header of the weights file ``name`` with the types that a library expects of ``params``.

    Raises:
        UserError: a tensor is missing, or of another type or shape.
    """
    for param in params:
        if param not in weights or param not in tensors:
            raise UserError(f"{name} has no tensor {param!r}, which the manifest lists: build the bundle again")
        entry = weights.entry(param)
        found = [entry.dtype, *entry.shape]
        if found != tensors[param]:
            raise UserError(
                f"{name}: tensor {param!r} is {_type(found)}, its kernels take {_type(tensors[param])}: "
                "copy or build the bundle again"
            )


def _stated(role: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's side of the comparison."""
    model = {key: value for key, value in table.items() if key not in _FILES}
    return {"role": role, "processors": sorted(table["libraries"]), "model": model}


def _differences(ours: Any, compiled: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, ours, compiled) where two JSON values differ; 1, 1.0 and true are different."""
    if isinstance(ours, dict) and isinstance(compiled, dict):
        for key in sorted({*ours, *compiled}):
            yield from _differences(ours.get(key, _MISSING), compiled.get(key, _MISSING), f"{path}.{key}".lstrip("."))
    elif isinstance(ours, list) and isinstance(compiled, list) and len(ours) == len(compiled):
        for i, pair in enumerate(zip(ours, compiled, strict=True)):
            yield from _differences(*pair, f"{path}.{i}")
    elif type(ours) is not type(compiled) or ours != compiled:
        yield path, ours, compiled


class _Missing:
    def __str__(self) -> str:
        return "missing"


_MISSING = _Missing()


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, _Missing) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type(entry: list[Any]) -> str:
    return f"{entry[0]} {entry[1:]}"
