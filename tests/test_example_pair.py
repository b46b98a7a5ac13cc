"""The example pair: what its files must hold whatever was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

PAIR = Path(__file__).resolve().parents[1] / "examples" / "translation"


@pytest.mark.parametrize("text", ["François § 10", "".join(map(chr, range(32, 0x250))), "😀 東京"])
def test_every_byte_has_a_token(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(PAIR / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
