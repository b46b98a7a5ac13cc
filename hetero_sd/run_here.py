"""What the commands share that run a bundle on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hetero_sd.runtime.load import load_text
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.protocol import Model
from hetero_sd.runtime.text.prompts import ids_of, read_prompts

_RANDOM_SEQUENCES = 4
_RANDOM_TOKENS = 48


def sequences(bundle: Bundle, target: Model, prompts: Path | None) -> Iterator[list[int]]:
    """Token ids of the prompts, or of random sequences that are the same every time.

    Raises:
        UserError: the file is unusable, or has a prompt without ids or with one that the target does not know.
    """
    known = min(target.vocab, bundle.tokenizer.vocab if bundle.tokenizer else target.vocab)
    if prompts is None:
        rng = np.random.default_rng(0)
        for _ in range(_RANDOM_SEQUENCES):
            yield rng.integers(0, known, min(_RANDOM_TOKENS, target.context)).tolist()
        return
    text = load_text(bundle)
    for prompt in read_prompts(prompts):
        yield ids_of(prompt, None if text is None else text.encode_prompt, known)
