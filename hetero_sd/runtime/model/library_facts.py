"""What a library was compiled for, kept inside it: the manifest's entry of its model and the types of its weights.

The kernels assume these numbers and do not check them again, and whoever edits the manifest does not recompile. The
library has a function ``facts`` that returns them as JSON; they are compared with the manifest, and with the header
of the weights, before a kernel runs. First layers in the libraries of their target have facts of their own there, by a
function ``exit_<k>_facts``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from costmodel.schema.manifest import LibraryFacts, TokenizerFacts
from costmodel.schema.model import ModelFacts, WeightSlice
from costmodel.schema.record import SchemaError
from hetero_sd.runtime.model.weights import Weights
from targets.errors import UserError

ENTRY = "facts"


def facts_json(
    model: ModelFacts, tensors: Iterable[tuple[str, str, tuple[int, ...]]], tokenizer: TokenizerFacts | None
) -> str:
    """Return the facts of a library.

    Args:
        model: what the manifest says of its model.
        tensors: (name, dtype, shape) of every stored weight.
        tokenizer: whose ids end the text; None where the bundle is built without one.
    """
    facts = LibraryFacts.of(model, {name: (dtype, *shape) for name, dtype, shape in tensors}, tokenizer)
    return json.dumps(facts.to_json(), sort_keys=True, allow_nan=False)


def check_library(
    library: str, text: str, model: ModelFacts, tokenizer: TokenizerFacts | None
) -> dict[str, tuple[str | int, ...]]:
    """Compare the facts of a library with the manifest, and return the types of its weights, {name: (dtype, *shape)}.

    Raises:
        UserError: they differ; the message names the first number that does.
    """
    try:
        facts = LibraryFacts.from_json(json.loads(text))
    except (SchemaError, ValueError, RecursionError):
        raise UserError(f"{library} was compiled by another version of hetero-sd: build the bundle again") from None
    stated = LibraryFacts.of(model, facts.tensors, None if facts.tokenizer is None else tokenizer)
    for path, ours, compiled in _differences(stated.to_json(), facts.to_json()):
        where = path.replace("model.", f"models.{model.role}.", 1) if path.startswith("model.") else path
        raise UserError(
            f"manifest.json: {where} is {_short(ours)}, {library} was compiled with {_short(compiled)}: "
            "copy or build the bundle again"
        )
    return facts.tensors


def check_weights(
    weights: Weights, name: str, tensors: Mapping[str, tuple[str | int, ...]], params: Iterable[str | WeightSlice]
) -> None:
    """Compare the header of the weights file ``name`` with the types that a library expects of ``params``.

    Raises:
        UserError: a tensor is missing, or of another type or shape, or does not have the part that is wanted of it.
    """
    for use in params:
        param = use if isinstance(use, str) else use.name
        if param not in weights or param not in tensors:
            raise UserError(f"{name} has no tensor {param!r}, which the manifest lists: build the bundle again")
        entry = weights.entry(param)
        found: tuple[str | int, ...] = (entry.dtype, *entry.shape)
        if found != tensors[param]:
            raise UserError(
                f"{name}: tensor {param!r} is {_type(found)}, its kernels take {_type(tensors[param])}: "
                "copy or build the bundle again"
            )
        if isinstance(use, WeightSlice) and use.end > (*entry.shape, *(0,) * 8)[use.axis]:
            raise UserError(
                f"{name}: tensor {param!r} is {_type(found)} and has no part {use.start} to {use.end} of axis "
                f"{use.axis}: build the bundle again"
            )


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


def _type(entry: tuple[str | int, ...]) -> str:
    return f"{entry[0]} {list(entry[1:])}"
