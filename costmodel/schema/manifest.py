"""manifest.json of a bundle: its files, the models, the plan, the board and the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from costmodel.schema.model import ModelFacts, Role, Size
from costmodel.schema.plan import Plan
from costmodel.schema.record import Entries, Record, SchemaError, Within, check_sha256

FORMAT_VERSION = 7
BLOCK_BYTES = 1 << 20
_BLOCK_DIGITS = 32
TokenId = Annotated[int, Within(0, (1 << 31) - 1)]


@dataclass(frozen=True)
class FileFacts(Record):
    """Size and SHA-256 of a file."""

    bytes: Annotated[int, Within(0)]
    sha256: str

    def __post_init__(self) -> None:
        """Refuse what is no SHA-256 in hex digits."""
        check_sha256("sha256", self.sha256)


@dataclass(frozen=True)
class BlockHashes(Record):
    """BLAKE2b, 16 bytes of it, of every block of BLOCK_BYTES of a file, the last one shorter."""

    blake2b: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is no such hash in hex digits."""
        if any(len(digits) != _BLOCK_DIGITS or set(digits) - set("0123456789abcdef") for digits in self.blake2b):
            raise SchemaError(f"blake2b has an entry that is not {_BLOCK_DIGITS} hex digits")


@dataclass(frozen=True)
class TokenizerFacts(Record):
    """What the manifest says of the tokenizer.

    Attributes:
        eos_ids: ids that end a text, sorted.
        vocab: the largest id, of added tokens too, and one.
    """

    unknown_keys_refused: ClassVar[bool] = True
    eos_ids: Annotated[tuple[TokenId, ...], Entries(0, 1 << 16)]
    vocab: Size

    def __post_init__(self) -> None:
        """Refuse ids that the tokenizer does not have."""
        if strange := [i for i in self.eos_ids if i >= self.vocab]:
            raise SchemaError(f"eos_ids has {strange[0]}, which is not an id from 0 to {self.vocab - 1}")


@dataclass(frozen=True)
class LibraryFacts(Record):
    """What a library was compiled for, which it keeps itself (hetero_sd/runtime/model/library_facts.py).

    Attributes:
        processors: that the model was compiled for.
        model: `ModelFacts.compiled_json`.
        tensors: [dtype, *shape] of every stored weight, by name.
        tokenizer: whose ids end the text; None where the bundle was built without one.
    """

    processors: tuple[str, ...]
    model: dict[str, Any]
    tensors: dict[str, tuple[str | int, ...]]
    tokenizer: TokenizerFacts | None

    @staticmethod
    def of(
        model: ModelFacts, tensors: Mapping[str, tuple[str | int, ...]], tokenizer: TokenizerFacts | None
    ) -> LibraryFacts:
        """The facts that the libraries of a model have."""
        return LibraryFacts(tuple(sorted(model.libraries)), model.compiled_json(), dict(tensors), tokenizer)


@dataclass(frozen=True)
class Manifest(Record):
    """What a bundle holds.

    Attributes:
        files: size and hash by path in the bundle.
        models: description by role.
        plan: what `compile` decided; None in a bundle that was built without a plan.
        tokenizer: facts about it; None where the bundle was built without one.
        board: the board that it was compiled for, as targets.device.Board reads it.
        blocks: hashes of the blocks of each file with weights, of which a sample is compared when it is loaded.
        format_version: of this schema.
    """

    files: dict[str, FileFacts]
    models: dict[Role, ModelFacts] = field(default_factory=dict)
    plan: Plan | None = None
    tokenizer: TokenizerFacts | None = None
    board: dict[str, Any] | None = None
    blocks: dict[str, BlockHashes] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Hold plan, models and tokenizer against each other.

        Raises:
            SchemaError: two of them state a number or a name differently.
        """
        for name, hashes in self.blocks.items():
            blocks = -(-self.files[name].bytes // BLOCK_BYTES) if name in self.files else 0
            if len(hashes.blake2b) != blocks:
                raise SchemaError(f"blocks has {len(hashes.blake2b)} hashes of {ascii(name)[:60]}, not {blocks}")
        for role, model in self.models.items():
            if model.role != role:
                raise SchemaError(f"models.{role}.role is {model.role!r}")
            if self.plan is not None:
                _check_model(self.plan, model)
        if self.plan is not None and self.models and set(self.plan.places) != set(self.models):
            raise SchemaError(f"plan.places has {', '.join(self.plan.places)}, models {', '.join(self.models)}")
        target = self.models.get("target")
        for role, model in self.models.items():
            if model.early_exit and (target is None or not _leaves(model, target)):
                raise SchemaError(f"models.{role} is an early exit, and not of models.target: files or sizes differ")
        if self.tokenizer is not None and target is not None and self.tokenizer.vocab > target.vocab:
            raise SchemaError(f"tokenizer.vocab is {self.tokenizer.vocab}, not a whole number from 1 to {target.vocab}")

    def to_text(self) -> str:
        """The file's content; the same manifest gives the same bytes.

        Raises:
            ValueError: a number is not finite.
        """
        return json.dumps(self.to_json(), sort_keys=True, indent=1, allow_nan=False) + "\n"


def refused_version(value: Any) -> str | None:
    """What to do about a manifest of another format, or None; `value` is the JSON object, its other keys unread."""
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is int and version == FORMAT_VERSION:
        return None
    return (
        f"has format_version {str(version)[:20]}, this version of hetero-sd reads {FORMAT_VERSION}: "
        "build the bundle again with this version of hetero-sd"
    )


def _leaves(exit_: ModelFacts, target: ModelFacts) -> bool:
    """Whether first layers are in a target's libraries and read its weights."""
    within = exit_.libraries.items() <= target.libraries.items() and exit_.weights == target.weights
    sizes = [(m.vocab, m.context, m.slots, m.early_exit) for m in (exit_, target)]
    return within and sizes[0][:3] == sizes[1][:3] and not sizes[1][3] and exit_.layers < target.layers


def _check_model(plan: Plan, model: ModelFacts) -> None:
    """What the plan and a model both state must be the same."""
    role = model.role
    pairs = {
        "context": (plan.context, model.context),
        "prefill_width": (plan.prefill_width, model.prefill_width),
        "long_prefill_width": (plan.long_prefill_width, model.long_prefill_width),
        f"{role}_widths": (plan.widths[role], model.widths),
        f"slots of the {role}": (plan.slots, model.slots),
        f"places.{role}": (plan.places[role].place.text if role in plan.places else None, model.place.text),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise SchemaError(f"plan.{key} is {str(ours)[:60]}, models.{role} has {str(theirs)[:60]}")
