"""When two vocabularies are one: heads are padded to round sizes, so a target and its drafter may differ.

Qwen2.5's tokenizer has 151,665 ids, its 0.5B model 151,936 rows and its 7B model 152,064; Phi-3's 32,011 and 32,064.
"""

from __future__ import annotations

_SHARE, _ROWS = 0.01, 256  # padding seen in published models is below both or the first


def only_padding(rows: int, ids: int) -> bool:
    """Whether `rows` of a head over `ids` known ids can be padding: up to 256 rows or 1 % beyond them."""
    return ids <= rows <= ids + max(_ROWS, int(_SHARE * ids))


def one_vocabulary(target: int, draft: int, ids: int | None = None) -> bool:
    """Whether heads of these sizes can belong to one tokenizer, whose number of ids is given if it is known.

    With equal sizes always; else what lies beyond the tokenizer's ids (beyond the smaller head, where they are not
    known) must be padding in both.
    """
    known = min(target, draft) if ids is None else ids
    return target == draft or (only_padding(target, known) and only_padding(draft, known))
