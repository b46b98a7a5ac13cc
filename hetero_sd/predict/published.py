"""Measurements that others published, one file a board: targets/boards/published/NAME.toml.

A file has a table of sources, by short names, and measurements; each may hold several numbers of threads of one model.
They are compared with predictions and never used to make them. Where measurements contradict each other, the file says
so in `contradictions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import targets.boards
from costmodel.engine import KERNELS
from targets.errors import UserError
from targets.provenance import expect_table, refuse_unknown

FOLDER = Path(targets.boards.__file__).parent / "published"
LARGEST_FILE_BYTES = 256 * 1024
_TEXTS = ("source", "engine", "model", "weights", "cluster")
_MORE = (
    "threads",
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "prompt_tokens",
    "new_tokens",
    "head",
    "kv",
    "kernels",
)
_NOTES = ("note", "reason")
_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class Published:
    """One measurement of one number of threads.

    Attributes:
        source, engine: where it stands, and what ran.
        model: a name of known_models.py.
        weights, head, kv: as the options of `predict` name them; a KV cache of float16 where nothing is said.
        cluster, threads: where it ran.
        prompt_tokens, new_tokens: of the benchmark; decoding starts with an empty cache.
        decode_tokens_per_s, prefill_tokens_per_s: what was measured; None where it was not.
        kernels: what its engine multiplies quantised weights with, a name of costmodel.engine.KERNELS, where known.
        note: what a reader must know.
        reason: why a prediction cannot be near it, where that is known.
    """

    source: str
    engine: str
    model: str
    weights: str
    cluster: str
    threads: int
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    prompt_tokens: int
    new_tokens: int
    head: str | None
    kv: str
    kernels: str | None
    note: str
    reason: str


def boards_with_measurements() -> list[str]:
    """Names of the boards that have a file, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def published_on(board: str) -> list[Published]:
    """The measurements of a board, in the file's order; empty where it has no file.

    Raises:
        UserError: the file is not of this form.
    """
    path = FOLDER / f"{board}.toml"
    return read_published(path) if board in boards_with_measurements() else []


def contradictions_on(board: str) -> list[str]:
    """What of a board's measurements contradicts others, each one sentence with both numbers.

    Raises:
        UserError: the file is not of this form.
    """
    path = FOLDER / f"{board}.toml"
    return list(_table(path).get("contradictions", [])) if board in boards_with_measurements() else []


def read_published(path: Path) -> list[Published]:
    """The measurements of a file.

    Raises:
        UserError: unreadable, or not of this form: what is wrong and where.
    """
    table = _table(path)
    sources = expect_table(table.get("sources"), "sources", str(path))
    entries = table.get("measurements")
    if not isinstance(entries, list):
        raise UserError(f"{path}: measurements must be a list of tables ([[measurements]])")
    return [row for i, entry in enumerate(entries) for row in _rows(entry, f"measurements[{i}]", str(path), sources)]


def _table(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise UserError(f"{path}: larger than {LARGEST_FILE_BYTES} bytes, so these are not measurements")
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {str(error).splitlines()[0]}") from None
    refuse_unknown(table, ("contradictions", "sources", "measurements"), "", str(path))
    texts = table.get("contradictions", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{path}: contradictions must be a list of texts")
    return table


def _rows(entry: object, at: str, where: str, sources: Mapping[str, Any]) -> list[Published]:
    table = expect_table(entry, at, where)
    refuse_unknown(table, (*_TEXTS, *_MORE, *_NOTES), at, where)
    for name in _TEXTS:
        if not isinstance(table.get(name), str) or not table[name].strip():
            raise UserError(f"{where}: {at}.{name} is missing; a measurement says {', '.join(_TEXTS)}")
    source = sources.get(table["source"])
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"{where}: {at}.source {table['source']!r} is none of the file's sources: {', '.join(sources)}")
    kernels = _text(table, "kernels", at, where) or None
    if kernels not in (None, *KERNELS):
        raise UserError(f"{where}: {at}.kernels {kernels!r} is none of {', '.join(KERNELS)}")
    threads = _numbers(table, "threads", at, where)
    speeds = {n: _numbers(table, n, at, where) for n in ("decode_tokens_per_s", "prefill_tokens_per_s") if n in table}
    if not speeds or any(len(values) != len(threads) for values in speeds.values()):
        raise UserError(f"{where}: {at} must have as many speeds as numbers of threads, of decoding, prefill or both")
    if any(t != int(t) for t in threads):
        raise UserError(f"{where}: {at}.threads must be whole numbers")
    prompt, new = (_tokens(table, name, at, where) for name in ("prompt_tokens", "new_tokens"))

    def speed(name: str, i: int) -> float | None:
        return speeds[name][i] if name in speeds else None

    return [
        Published(
            source=source,
            engine=table["engine"],
            model=table["model"],
            weights=table["weights"],
            cluster=table["cluster"],
            threads=int(t),
            decode_tokens_per_s=speed("decode_tokens_per_s", i),
            prefill_tokens_per_s=speed("prefill_tokens_per_s", i),
            prompt_tokens=prompt,
            new_tokens=new,
            head=_text(table, "head", at, where) or None,
            kv=_text(table, "kv", at, where) or "float16",
            kernels=kernels,
            note=_text(table, "note", at, where),
            reason=_text(table, "reason", at, where),
        )
        for i, t in enumerate(threads)
    ]


def _text(table: Mapping[str, Any], name: str, at: str, where: str) -> str:
    value = table.get(name, "")
    if not isinstance(value, str):
        raise UserError(f"{where}: {at}.{name} must be a text")
    return value


def _numbers(table: Mapping[str, Any], name: str, at: str, where: str) -> list[float]:
    values = table.get(name)
    if not isinstance(values, list) or not 1 <= len(values) <= 64:
        raise UserError(f"{where}: {at}.{name} must be a list of 1 to 64 numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise UserError(f"{where}: {at}.{name} must hold positive numbers")
    return [float(value) for value in values]


def _tokens(table: Mapping[str, Any], name: str, at: str, where: str) -> int:
    value = table.get(name, 128)
    if type(value) is not int or not 1 <= value <= _MOST_TOKENS:
        raise UserError(f"{where}: {at}.{name} must be a whole number from 1 to {_MOST_TOKENS}")
    return value
