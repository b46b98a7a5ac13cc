"""The tokenizer beside a model: which files go into a bundle, and which ids end a text."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from costmodel.schema.manifest import TokenizerFacts
from costmodel.vocabulary import one_vocabulary
from hetero_sd.runtime.text.tokenizer import (
    FILES,
    MOST_BYTES,
    generation_eos,
    more_templates,
    read_config,
    tokenizer_eos,
)
from targets.errors import UserError
from targets.lfs import is_lfs_pointer, lfs_reason

_MOST_DIFFERING = 0.01  # of the tokens: a few special ones are renamed between members of a family


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's files and facts.

    Attributes:
        folder: where tokenizer.json lies.
        vocab: the largest id, of added tokens too, and one.
        eos_ids: ids that end a text, sorted.
        eos_source: where they come from, for the report.
    """

    folder: Path
    vocab: int
    eos_ids: tuple[int, ...]
    eos_source: str

    @property
    def facts(self) -> TokenizerFacts:
        """What the manifest says of it."""
        return TokenizerFacts(self.eos_ids, self.vocab)

    def copy_to(self, folder: Path) -> None:
        """Copy what the device needs."""
        folder.mkdir(parents=True)
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        for path in more_templates(self.folder):
            copy = folder / path.relative_to(self.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def find_tokenizer(path: Path | None, models: Sequence[Path], eos: Sequence[int]) -> TokenizerFiles:
    """Read the tokenizer at `path` (tokenizer.json or its folder) and find its end-of-text ids.

    None: the one beside the first model, where onnxruntime-genai's builder and optimum write it, or one folder up.

    They come from `eos` if given, else from generation_config.json, genai_config.json or tokenizer_config.json
    beside the tokenizer or beside one of the ONNX files.

    Raises:
        UserError: no tokenizer there, it cannot be read, or nothing states an end-of-text id.
    """
    path = _beside(models[0]) if path is None else path
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: there is no tokenizer; --tokenizer takes a tokenizer.json or the folder that has it")
    tokenizer = _read_tokenizer(file)
    vocab = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if vocab == 0:
        raise UserError(f"{file}: this tokenizer has no tokens")
    for model in models:
        _check_beside(file, tokenizer, model.parent / "tokenizer.json")
    ids, source = (sorted(set(eos)), "--eos") if eos else _stated_eos(tokenizer, [file.parent, *_folders(models)])
    if not ids:
        raise UserError(
            f"{file.parent}: no generation_config.json, genai_config.json or tokenizer_config.json states the "
            "end-of-text id; give it with --eos ID"
        )
    strange = [i for i in ids if not 0 <= i < vocab]
    if strange:
        raise UserError(f"{source}: end-of-text id {strange[0]} is not one of the ids 0 to {vocab - 1} of {file}")
    return TokenizerFiles(file.parent, vocab, tuple(ids), source)


def _beside(model: Path) -> Path:
    folders = (model.absolute().parent, model.absolute().parent.parent)  # a hub's layout has onnx/model.onnx
    found = next((f for f in folders if (f / "tokenizer.json").is_file()), None)
    if found is None:
        raise UserError(f"{model}: there is no tokenizer.json beside it; say where it is with --tokenizer FILE or DIR")
    return found


def check_pair(target: Path, target_vocab: int, draft: Path, draft_vocab: int, tokenizer: TokenizerFiles) -> None:
    """Check that a target and its drafter can share a tokenizer: what their heads have beyond its ids is padding.

    Raises:
        UserError: they have other vocabularies, or fewer rows than the tokenizer has ids.
    """
    for path, vocab in ((target, target_vocab), (draft, draft_vocab)):
        if vocab < tokenizer.vocab:
            raise UserError(
                f"{path} knows {vocab} token ids, the tokenizer in {tokenizer.folder} has {tokenizer.vocab}: they do "
                "not belong together"
            )
    if not one_vocabulary(target_vocab, draft_vocab, tokenizer.vocab):
        raise UserError(
            f"the vocabularies differ: {target} has {target_vocab} token ids, {draft} has {draft_vocab}, the tokenizer "
            f"in {tokenizer.folder} {tokenizer.vocab}; a drafter needs the target's tokenizer"
        )


def _read_tokenizer(file: Path) -> Any:
    """The tokenizer in a file.

    Raises:
        UserError: too large, or not one of the tokenizers library.
    """
    if is_lfs_pointer(file):
        raise UserError(f"{file}: {lfs_reason(file)}")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file}: larger than {MOST_BYTES} bytes, so this is not a tokenizer")
        return Tokenizer.from_str(file.read_text("utf-8"))
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the library raises plain Exception, and Rust panics are no Exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file}: not a tokenizer of the tokenizers library ({reason})") from None


def _check_beside(file: Path, tokenizer: Any, other: Path) -> None:
    """Refuse a model whose own tokenizer, beside it, gives other ids to the same tokens."""
    if not other.is_file() or other.resolve() == file.resolve():
        return
    if other.stat().st_size == file.stat().st_size and other.read_bytes() == file.read_bytes():
        return
    ours, theirs = (t.get_vocab(with_added_tokens=True) for t in (tokenizer, _read_tokenizer(other)))
    wrong = [(i, token) for token, i in ours.items() if theirs.get(token, -1) != i]
    if len(wrong) > _MOST_DIFFERING * len(ours):
        i, token = min(wrong)
        raise UserError(
            f"{file} and {other}, beside the model, are different tokenizers: {len(wrong)} of {len(ours)} tokens have "
            f"other ids, the first is {token[:40]!r} with id {i}; drafter and target need the same one"
        )


def _folders(models: Sequence[Path]) -> list[Path]:
    return list(dict.fromkeys(m.parent for m in models))


def _stated_eos(tokenizer: Any, folders: Sequence[Path]) -> tuple[list[int], str]:
    for folder in dict.fromkeys(folders):
        for name, key in (("generation_config.json", None), ("genai_config.json", "model")):
            table = _config(folder / name)
            ids = generation_eos(table.get(key) or {} if key else table)
            if ids:
                return sorted(set(ids)), str(folder / name)
        ids = tokenizer_eos(tokenizer, _config(folder / "tokenizer_config.json"))
        if ids:
            return ids, str(folder / "tokenizer_config.json")
    return [], ""


def _config(path: Path) -> dict[str, Any]:
    return read_config(path if path.is_file() else None)
