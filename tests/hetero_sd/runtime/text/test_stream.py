"""Streaming: the pieces are the text, characters are whole, and nothing leaks from a stop string on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.text.stream import REPLACEMENT, Detokeniser, StopScanner

KINDS = ["byte level", "byte fallback"]
TEXTS = ["hello world", "héllo wörld, naïve", "日本語のテキスト", "a👩‍👩‍👧b\n\n😀😀", "  a  b ", "ab\n😀\t\x00é"]


def decoder(tokenizer):
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def pieces(decode, ids, cut=False):
    detokeniser = Detokeniser(decode)
    return [detokeniser.feed(i) for i in ids], detokeniser.flush(cut)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_without_half_characters(tokenizers_by_kind, kind, text):
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    got, rest = pieces(decoder(tokenizer), ids)
    assert "".join(got) + rest == tokenizer.decode(ids) == text
    assert not any(REPLACEMENT in piece for piece in got)
    assert rest == ""


@settings(deadline=None)
@given(text=st.text(), kind=st.sampled_from(KINDS))
def test_pieces_of_any_text_are_what_the_tokenizer_decodes(tokenizers_by_kind, text, kind):
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    got, rest = pieces(decoder(tokenizer), ids)
    assert "".join(got) + rest == tokenizer.decode(ids)


def test_text_comes_as_early_as_it_is_complete(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["byte level"]
    ids = tokenizer.encode("é!", add_special_tokens=False).ids  # two bytes and one
    assert pieces(decoder(tokenizer), ids) == (["", "é", "!"], "")


def test_an_unfinished_character_at_the_end_shows_as_replacement(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["byte level"]
    ids = tokenizer.encode("a😀", add_special_tokens=False).ids[:-1]
    got, rest = pieces(decoder(tokenizer), ids)
    assert (got, rest) == (["a", "", "", ""], REPLACEMENT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_unfinished_character_of_a_text_that_is_cut_is_left_out(tokenizers_by_kind, kind, missing):
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode("a😀", add_special_tokens=False).ids
    got, rest = pieces(decoder(tokenizer), ids[:-missing], cut=True)
    assert "".join(got) + rest == "a"
    got, rest = pieces(decoder(tokenizer), ids, cut=True)
    assert "".join(got) + rest == "a😀"


def test_whole_characters_before_an_unfinished_one_are_shown():
    texts = {(1,): "b" + REPLACEMENT, (2,): "c"}  # the token ends within a character
    assert pieces(lambda ids: texts.get(tuple(ids), ""), [1], cut=True) == ([""], "b")
    assert pieces(lambda ids: texts.get(tuple(ids), ""), [2], cut=True) == (["c"], "")


def test_special_tokens_give_no_text_and_cost_no_context(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["byte fallback"]
    special = tokenizer.token_to_id("<s>")
    ids = [special, tokenizer.token_to_id("▁a"), *[special] * 20, tokenizer.token_to_id("▁b")]
    got, rest = pieces(decoder(tokenizer), ids)
    assert "".join(got) + rest == tokenizer.decode(ids) == "a b"


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_decodes_a_bounded_number_of_tokens(tokenizers_by_kind, kind):
    tokenizer = tokenizers_by_kind[kind]
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    half = tokenizer.encode("😀", add_special_tokens=False).ids[-2]  # a byte that never completes a character
    for ids in ([half] * 500, tokenizer.encode("hello 😀 " * 200, add_special_tokens=False).ids):
        pieces(decode, ids)
    assert longest <= 16


def scan(stops, texts):
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(text) for text in texts)
    return (shown if scanner.hit else shown + scanner.flush()), scanner.hit


@given(
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    texts=st.lists(st.text("ab.", max_size=5), max_size=12),
)
def test_stop_strings_are_found_across_pieces(stops, texts):
    whole = "".join(texts)
    found = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    expected = whole[: min(found)[1]] if found else whole  # the stop string that is complete first
    assert scan(stops, texts) == (expected, bool(found))


def test_what_cannot_begin_a_stop_string_is_shown_at_once():
    scanner = StopScanner(["END", "\n\n"])
    assert [scanner.feed(piece) for piece in ["abE", "N", "x\n", "y", "EN"]] == ["ab", "", "ENx", "\ny", ""]
    assert scanner.flush() == "EN"


def test_nothing_is_shown_after_the_stop_string():
    scanner = StopScanner(["END"])
    assert [scanner.feed(piece) for piece in ["aE", "ND b", "c"]] == ["a", "", ""]
    assert scanner.hit
    assert scanner.flush() == ""


def test_no_stop_strings_pass_everything_through():
    assert scan([], ["a", "b"]) == ("ab", False)
