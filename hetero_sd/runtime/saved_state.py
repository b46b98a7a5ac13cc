"""The file of --save-state: rows of the target's KV cache and their tokens, so that a text is not read again.

safetensors: ``token_ids`` int64 [n], and for each cache ``cache.<i>`` with the rows of these tokens, as the target's
processor has them. The metadata names the bundle by the SHA-256 of its manifest, and has that of all tensors. A file
comes from anywhere: it is held against the bundle before anything is allocated or written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.weights import Weights, write_weights
from targets.errors import UserError

FORMAT = "hetero_sd state 1"
Arrays = Sequence[npt.NDArray[Any]]


def save_state(path: Path, target: KeptPrefix, bundle_hash: str) -> None:
    """Write the rows that the target holds.

    Raises:
        UserError: it holds none, or the file cannot be written.
    """
    ids = np.array(target.tokens, np.int64)
    if not len(ids):
        raise UserError(f"{path} is not written: nothing was read that could be saved")
    arrays = [ids, *target.model.read_rows(len(ids))]
    tensors = [
        (name, str(a.dtype), a.shape, partial(np.copy, a)) for name, a in zip(_names(len(arrays)), arrays, strict=True)
    ]
    metadata = {"format": FORMAT, "bundle": bundle_hash, "tensors": _digest(arrays)}
    try:
        write_weights(path, tensors, metadata)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def load_state(path: Path, target: KeptPrefix, bundle_hash: str) -> int:
    """Put the rows of a file into the target's cache; how many there are.

    Raises:
        UserError: it is not one of :func:`save_state`, of another bundle or processor, or damaged.
    """
    tensors = Weights(path)
    if tensors.metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by --save-state")
    if tensors.metadata.get("bundle") != bundle_hash:
        raise UserError(f"{path} was saved with another bundle: read the text again, and save it with this one")
    names = list(tensors)
    lengths = tensors.entry("token_ids").shape if "token_ids" in tensors else ()
    if len(lengths) != 1 or not 1 <= lengths[0] <= target.context:
        raise UserError(f"{path} does not hold 1 to {target.context} tokens: save it again")
    found = [(tensors.dtype(name), tensors.entry(name).shape) for name in names]
    expected = [("int64", lengths), *target.model.rows_layout(lengths[0])]
    if names != _names(len(expected)) or found != expected:
        raise UserError(f"{path} has other rows than the target has on its processor: save it again here")
    arrays = [tensors[name] for name in names]
    if tensors.metadata.get("tensors") != _digest(arrays):
        raise UserError(f"{path} is damaged: copy or save it again")
    ids = [int(token) for token in arrays[0]]
    if not all(0 <= token < target.vocab for token in ids):
        raise UserError(f"{path} has a token that the target does not know: save it again")
    target.restore(ids, arrays[1:])
    return len(ids)


def _names(count: int) -> list[str]:
    return ["token_ids", *(f"cache.{i}" for i in range(count - 1))]


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
