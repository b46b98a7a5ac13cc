"""An early exit drafts from the target's rows: nothing is read for it, whatever happened since its last draft."""

from __future__ import annotations

from typing import Any

from hetero_sd.runtime.decode.drafters import MODEL, Offer
from hetero_sd.runtime.decode.drafters.early_exit import EarlyExitDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.sampling import Rng, Sampling
from hetero_sd.runtime.decode.trace import Stopwatch

WATCH = Stopwatch()
TEXT = [1, 2, 3, 4, 5, 0, 1, 2, 3]


def test_a_draft_begins_with_the_last_token(pair: Any) -> None:
    target, draft = pair(3)
    draft.rows = target.rows
    drafter = EarlyExitDrafter(draft, 6, Sampling())
    target.submit(TEXT[:-1], 0)
    assert drafter.offers(TEXT, WATCH) == [Offer(MODEL, draft.context - len(TEXT) + 1, 0, confident=True)]
    tokens = drafter.propose(TEXT, MODEL, 3, WATCH, Rng(0)).tokens
    assert draft.fed == [(8, 1), (9, 1), (10, 1)]
    drafter.keep(len(TEXT) + 3)
    longer = [*TEXT, *tokens, 4]
    target.submit(longer[8:-1], 8)
    draft.fed.clear()
    assert drafter.offers(longer, WATCH)[0].unread == 0
    drafter.propose(longer, MODEL, 1, WATCH, Rng(0))
    assert draft.fed == [(12, 1)]  # after full acceptance, too


def test_a_draft_model_has_the_text_to_read(pair: Any) -> None:
    _, draft = pair(3)
    assert ModelDrafter(draft, 6, Sampling()).offers(TEXT, WATCH)[0].unread == len(TEXT) - 1
    assert EarlyExitDrafter(draft, 6, Sampling()).offers(TEXT, WATCH)[0].unread == 0


def test_it_ends_with_the_context(pair: Any) -> None:
    target, draft = pair(3)
    draft.rows = target.rows
    drafter = EarlyExitDrafter(draft, 6, Sampling())
    target.submit([1] * 63, 0)
    assert drafter.offers([1] * 64, WATCH)[0].most == 1
    assert drafter.offers([1] * 65, WATCH) == []
