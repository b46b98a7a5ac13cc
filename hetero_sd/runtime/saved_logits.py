"""The file of --save-logits: the target's teacher-forced logits, read again by ``hetero-sd verify --from FILE``.

safetensors, for prompt i: ``token_ids.i`` int64 [n] (prompt, then generated) and ``logits.i`` float32 [n, vocab],
whose row r follows token r. The metadata holds the length of each prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.model.protocol import Model
from hetero_sd.runtime.model.weights import Tensor, Weights, write_weights
from targets.errors import UserError

FORMAT = "hetero_sd logits 1"
_CHUNK_ROWS = 32


@dataclass(frozen=True)
class SavedLogits:
    """One sequence: ids [n], of which the first ``prompt_tokens`` were the prompt, and logits [n, vocab]."""

    token_ids: list[int]
    prompt_tokens: int
    logits: npt.NDArray[np.float32]


def save_logits(path: Path, target: Model, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Feed every (prompt ids, generated ids) to the target and write ids and logits, a few rows at a time.

    A sequence is cut at the target's context.

    Raises:
        UserError: the file cannot be written.
    """
    tensors: list[Tensor] = []
    for index, (prompt, generated) in enumerate(sequences):
        ids = np.array([*prompt, *generated][: target.context], np.int64)
        tensors.append((f"token_ids.{index}", "int64", ids.shape, partial(np.copy, ids)))
        tensors.append((f"logits.{index}", "float32", (len(ids), target.vocab), partial(_rows, target, ids.tolist())))
    lengths = json.dumps([len(prompt) for prompt, _ in sequences])
    try:
        write_weights(path, tensors, {"format": FORMAT, "model": target.name, "prompt_tokens": lengths})
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def read_logits(path: Path) -> list[SavedLogits]:
    """Return the sequences of a file, the logits memory-mapped.

    Raises:
        UserError: the file is not one of :func:`save_logits`.
    """
    tensors = Weights(path)
    try:
        if tensors.metadata["format"] != FORMAT:
            raise ValueError
        lengths = json.loads(tensors.metadata["prompt_tokens"])
        if not all(type(n) is int and n > 0 for n in lengths):
            raise ValueError
        out = [
            SavedLogits([int(t) for t in tensors[f"token_ids.{i}"]], n, tensors[f"logits.{i}"])
            for i, n in enumerate(lengths)
        ]
        if any(tensors.dtype(f"logits.{i}") != "float32" for i in range(len(out))):
            raise ValueError
        if any(saved.logits.shape[0] != len(saved.token_ids) or saved.logits.ndim != 2 for saved in out):
            raise ValueError
    except (KeyError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path} was not written by --save-logits") from None
    return out


def _rows(target: Model, ids: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the logits of ``ids`` in chunks of rows."""
    for pos in range(0, len(ids), _CHUNK_ROWS):
        yield target.forward(ids[pos : pos + _CHUNK_ROWS], pos)
