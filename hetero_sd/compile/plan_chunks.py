"""In which chunks a bundle reads a prompt: narrow ones always, and wide ones where that is worth their compilation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from costmodel.decoder import DecoderSpec
from costmodel.memory import available_bytes, rows_bytes
from costmodel.prompt_chunks import CHUNK
from costmodel.question import Variant
from costmodel.search import Search
from hetero_sd.predict.answer_time import long_chunk, prompt_s
from hetero_sd.predict.sentences import wait
from targets.errors import UserError


@dataclass(frozen=True)
class PlannedChunks:
    """Widths of prompt chunks; `long` is None without a wide one.

    `activation_bytes` is what the wide one computes with, beyond what the memory of a variant has for a narrow one;
    `reasons` has a sentence where the plan chose it.
    """

    narrow: int
    long: int | None = None
    activation_bytes: int = 0
    reasons: tuple[str, ...] = ()


def plan_chunks(
    search: Search, best: Variant, specs: Iterable[DecoderSpec], context: int, given: Sequence[int]
) -> PlannedChunks:
    """The chunks of a bundle.

    Args:
        search: prices them.
        best: the plan's variant.
        specs: the models of the bundle.
        context: rows of the KV caches.
        given: widths that the user gives, ascending, or none.

    Raises:
        UserError: a chunk is longer than the context.
    """
    if given and given[-1] > context:
        raise UserError(f"--prompt-chunk {given[-1]}: the context has {context} tokens")
    long = long_chunk(search, best.target, best.target_placement, context) if not given else None
    long = given[1] if len(given) > 1 else long
    narrow = given[0] if given else CHUNK
    if long is None:
        return PlannedChunks(narrow)
    more = sum(rows_bytes(spec, long) - rows_bytes(spec, CHUNK) for spec in specs)
    if given:
        return PlannedChunks(narrow, long, more)
    if more > available_bytes(search.question.board) - best.memory.total_bytes:
        return PlannedChunks(narrow)
    tokens, widths = context // 2, ((CHUNK,), (CHUNK, long))
    slow_s, fast_s = (prompt_s(search, best.target, best.target_placement, tokens, w) for w in widths)
    why = f"prompts are read {long} tokens at a time and what is left {CHUNK} at a time, {tokens} in {wait(fast_s)}"
    return PlannedChunks(narrow, long, more, (f"{why}; {CHUNK} at a time alone they take {wait(slow_s)}",))
