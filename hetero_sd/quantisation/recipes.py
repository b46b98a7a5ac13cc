"""Recipes from options, from a TOML file and from a bundle's manifest, and back into it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.format import Format
from costmodel.schema.model import QuantisedFacts
from passes.onnx.quantise.recipe import BLOCKS, KEPT, Recipe, block_format, format_name
from targets.errors import UserError
from targets.files import read_toml

DEFAULT_BLOCK = 32
_LARGEST_FILE_BYTES = 256 * 1024
_KEYS = ("matrices", "head", "embedding", "names")
_FORMAT = re.compile(r"(int8|int4)(?::([0-9]{1,6}))?")


@dataclass
class Quantisation:
    """How models are quantised.

    Attributes:
        recipes: of those that are, by role.
        scales: that were searched for so far, by role, weight and format.
    """

    recipes: dict[str, Recipe]
    scales: dict[str, dict[Any, Any]]

    @staticmethod
    def of(quantise: str | None, head: str | None, draft: str | None, roles: Iterable[str]) -> Quantisation:
        """What options say; see :func:`recipes_of`."""
        recipes = recipes_of(quantise, head, draft, tuple(roles))
        return Quantisation(recipes, {role: {} for role in recipes})


def recipes_of(quantise: str | None, head: str | None, draft: str | None, roles: Sequence[str]) -> dict[str, Recipe]:
    """The recipe of each model that is quantised.

    Args:
        quantise: of all models: a format or a file.
        head: format of heads, in place of the default and of a file's.
        draft: of the drafter, in place of `quantise`; "float" leaves it as it is.
        roles: the models.

    Raises:
        UserError: a value that is no format and no file, a file that is no recipe, options that say nothing.
    """
    if draft is not None and "draft" not in roles:
        raise UserError(f"--quantise-draft {draft}: there is no drafter; give one with --draft or leave it out")
    if quantise == KEPT:
        raise UserError(f"--quantise {KEPT}: nothing would be quantised; leave it out")
    asked = {"target": (quantise, "--quantise")}
    asked["draft"] = asked["target"] if draft is None else (draft, "--quantise-draft")
    found = {role: _recipe(*asked[role], head) for role in roles if asked[role][0] not in (None, KEPT)}
    if head is not None and not found:
        raise UserError(f"--quantise-head {head}: nothing is quantised; add --quantise")
    return found


def read_format(text: str, where: str) -> Format | None:
    """A format: int8 or int4, with :BLOCK, or float.

    Raises:
        UserError: it is none.
    """
    if text == KEPT:
        return None
    found = _FORMAT.fullmatch(text)
    block = int(found[2] or DEFAULT_BLOCK) if found else 0
    if found is None or block not in BLOCKS:
        blocks = ", ".join(map(str, BLOCKS))
        raise UserError(
            f"{where} {text!r} is not a format: int8 or int4, with blocks of {blocks} as in int4:64, or {KEPT}"
        )
    return block_format(found[1], block)


def _recipe(spec: str | None, option: str, head: str | None) -> Recipe:
    assert spec is not None
    own_head = None if head is None else (read_format(head, "--quantise-head"),)
    if not _FORMAT.fullmatch(spec):
        return _file(Path(spec), option, own_head)
    matrices = read_format(spec, option)
    chosen = own_head[0] if own_head is not None else _default_head(matrices)
    return Recipe(matrices, chosen, chosen)


def _default_head(matrices: Format | None) -> Format | None:
    """Int8: a head's errors go straight into the logits. In blocks that the model's sizes surely have."""
    return None if matrices is None else block_format("int8", min(DEFAULT_BLOCK, matrices.block))


def _file(path: Path, option: str, head: tuple[Format | None] | None) -> Recipe:
    table = _read(path, option)
    if strange := sorted(set(table) - set(_KEYS)):
        raise UserError(f"{path}: {strange[0]!r} is not known; keys: {', '.join(_KEYS)}")
    names = table.pop("names", {})
    if not isinstance(names, dict):
        raise UserError(f"{path}: names is not a table of patterns with their formats")
    formats = {key: _entry(path, key, text) for key, text in table.items()}
    matrices = formats.get("matrices")
    chosen = head[0] if head is not None else formats.get("head", _default_head(matrices))
    by_name = tuple((pattern, _entry(path, f"names.{pattern}", text)) for pattern, text in names.items())
    recipe = Recipe(matrices, chosen, formats.get("embedding", chosen), by_name)
    if not any((matrices, chosen, recipe.embedding, *(kept for _, kept in by_name))):
        raise UserError(f"{path}: nothing in it has a format other than {KEPT}")
    return recipe


def _entry(path: Path, key: str, text: Any) -> Format | None:
    if not isinstance(text, str):
        raise UserError(f"{path}: {key} is {str(text)[:60]}, not a format in quotes such as 'int4:64'")
    return read_format(text, f"{path}: {key} =")


def _read(path: Path, option: str) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{option} {str(path)!r} is neither a format (int8, int4, int4:64) nor a file")
    return read_toml(path, _LARGEST_FILE_BYTES, "a file of formats")


def facts_of(recipe: Recipe, export: Path) -> QuantisedFacts:
    """What the manifest says, so that `verify` can quantise the export again."""
    return QuantisedFacts(
        export_sha256=export_sha256(export),
        matrices=format_name(recipe.matrices),
        head_format=format_name(recipe.head),
        embedding_format=format_name(recipe.embedding),
        by_name=tuple((pattern, format_name(kept)) for pattern, kept in recipe.by_name),
    )


def recipe_of(facts: QuantisedFacts, export: Path) -> Recipe:
    """The recipe that a bundle was quantised by.

    Raises:
        UserError: a format that this version does not know, or an export with other bytes.
    """
    where = "the bundle's manifest.json: quantised to"
    matrices, head, embedding = (
        read_format(text, where) for text in (facts.matrices, facts.head_format, facts.embedding_format)
    )
    by_name = tuple((pattern, read_format(text, where)) for pattern, text in facts.by_name)
    if export_sha256(export) != facts.export_sha256:
        raise UserError(f"{export}: not the file that the bundle's weights were quantised from: its SHA-256 is another")
    return Recipe(matrices, head, embedding, by_name)


def export_sha256(path: Path) -> str:
    """SHA-256 of an export: of its bytes, or, with weights beside it, of the hashes of all its files.

    Raises:
        UserError: not a readable ONNX file.
    """
    from passes.onnx.load.load import load

    stored = (value.const_value for value in load(path).graph.initializers.values())
    beside = sorted({Path(t.path) for t in stored if hasattr(t, "location")})
    whole = hashlib.sha256()
    for file in (path, *beside):
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()
