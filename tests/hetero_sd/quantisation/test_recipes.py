"""Recipes from options and files, and the same ones from a manifest; one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.schema.model import QuantisedFacts
from hetero_sd.quantisation.recipes import export_sha256, facts_of, recipe_of, recipes_of
from passes.onnx.quantise.recipe import BLOCKS, Recipe, block_format
from targets.errors import UserError

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
PAIR = ("target", "draft")
LLAMA = EXPORTS / "llama-dynamo-fp32" / "model.onnx"


@pytest.mark.parametrize(
    ("quantise", "head", "draft", "target_text", "draft_text"),
    [
        ("int4", None, None, "int4:32, head and embedding int8:32", "int4:32, head and embedding int8:32"),
        ("int4:128", None, None, "int4:128, head and embedding int8:32", "int4:128, head and embedding int8:32"),
        ("int4:16", None, None, "int4:16, head and embedding int8:16", "int4:16, head and embedding int8:16"),
        ("int8", "float", None, "int8:32, head and embedding float", "int8:32, head and embedding float"),
        ("int8", "int4:64", "float", "int8:32, head and embedding int4:64", None),
        ("int4", None, "int8:64", "int4:32, head and embedding int8:32", "int8:64, head and embedding int8:32"),
        (None, None, "int8", None, "int8:32, head and embedding int8:32"),
        (None, None, None, None, None),
    ],
)
def test_options(quantise, head, draft, target_text, draft_text) -> None:
    found = {role: recipe.text for role, recipe in recipes_of(quantise, head, draft, PAIR).items()}
    expected = {"target": target_text, "draft": draft_text}
    assert found == {role: text for role, text in expected.items() if text is not None}


def written(folder: Path, text: str) -> str:
    (folder / "formats.toml").write_text(text)
    return str(folder / "formats.toml")


FILE = """
matrices = "int4:64"
embedding = "float"
[names]
"*down_proj*" = "int8"
"*layers.0.*" = "float"
"""


def test_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, FILE)
    int8 = block_format("int8", 32)
    expected = Recipe(block_format("int4", 64), int8, None, (("*down_proj*", int8), ("*layers.0.*", None)))
    assert recipes_of(file, None, None, ("target",)) == {"target": expected}
    (recipe,) = recipes_of(file, "float", None, ("target",)).values()
    assert (recipe.head, recipe.embedding) == (None, None)
    (recipe,) = recipes_of(written(tmp_path, 'head = "int8:64"'), None, None, ("target",)).values()
    assert recipe == Recipe(None, block_format("int8", 64), block_format("int8", 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrices = ", "not valid TOML"),
        ('layers = "int4"', "'layers' is not known; keys: matrices, head, embedding, names"),
        ("matrices = 4", "matrices is 4, not a format in quotes"),
        ('matrices = "int5"', "matrices = 'int5' is not a format"),
        ('names = "int4"', "names is not a table"),
        ('[names]\n"*q*" = "int4:20"', r"names\.\*q\* = 'int4:20' is not a format"),
        ("", "nothing in it has a format"),
        ('matrices = "float"\nhead = "float"', "nothing in it has a format"),
    ],
)
def test_a_bad_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipes_of(written(tmp_path, text), None, None, ("target",))
    assert "formats.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("int5", None, None), "--quantise 'int5' is neither a format .* nor a file"),
        (("int4:48", None, None), "--quantise 'int4:48' is not a format: int8 or int4, with blocks of 16, 32, 64"),
        (("float", None, None), "nothing would be quantised"),
        (("int4", "int3", None), "--quantise-head 'int3' is not a format"),
        ((None, "int8", None), "--quantise-head int8: nothing is quantised; add --quantise"),
        (("int4", None, "q4"), "--quantise-draft 'q4' is neither"),
    ],
)
def test_bad_options(given: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipes_of(*given, PAIR)


def test_without_a_drafter() -> None:
    with pytest.raises(UserError, match="--quantise-draft int8: there is no drafter"):
        recipes_of("int4", None, "int8", ("target",))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        recipes_of(str(tmp_path), None, None, ("target",))
    (tmp_path / "f.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        recipes_of(str(tmp_path / "f.toml"), None, None, ("target",))
    (tmp_path / "f.toml").write_bytes(b"#" * (1 << 19))
    with pytest.raises(UserError, match="larger than"):
        recipes_of(str(tmp_path / "f.toml"), None, None, ("target",))


FORMATS = st.none() | st.builds(block_format, st.sampled_from(["int4", "int8"]), st.sampled_from(BLOCKS))


@settings(deadline=None, max_examples=50, database=None)
@given(FORMATS, FORMATS, FORMATS, st.lists(st.tuples(st.text(max_size=5), FORMATS), max_size=3).map(tuple))
def test_what_the_manifest_says_is_the_same_recipe(matrices, head, embedding, by_name) -> None:
    recipe = Recipe(matrices, head, embedding, by_name)
    text = json.dumps(facts_of(recipe, LLAMA).to_json())
    assert recipe_of(QuantisedFacts.from_json(json.loads(text)), LLAMA) == recipe


def test_another_export_is_noticed(tmp_path: Path) -> None:
    facts = facts_of(Recipe(block_format("int4", 32), None, None), LLAMA)
    other = tmp_path / "model.onnx"
    content = bytearray(LLAMA.read_bytes())
    other.write_bytes(content)
    assert recipe_of(facts, other)
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(UserError, match="not the file that the bundle's weights were quantised from"):
        recipe_of(facts, other)


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    source = EXPORTS / "qwen2-genai-fp32"
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    before = export_sha256(tmp_path / "model.onnx")
    assert before == export_sha256(source / "model.onnx")
    content = bytearray((tmp_path / "model.onnx.data").read_bytes())
    content[100] ^= 1
    (tmp_path / "model.onnx.data").write_bytes(content)
    assert export_sha256(tmp_path / "model.onnx") != before


def test_a_manifest_with_an_unknown_format() -> None:
    facts = QuantisedFacts("0" * 64, "int4:32", "int2:32", "float", ())
    with pytest.raises(UserError, match=r"manifest\.json: quantised to 'int2:32' is not a format"):
        recipe_of(facts, LLAMA)
