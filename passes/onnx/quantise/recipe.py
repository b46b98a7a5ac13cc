"""Which matrices of an export become int8 or int4, and in which blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from costmodel.format import Format
from targets.errors import UserError

LAYER, HEAD, EMBEDDING = "layer", "head", "embedding"
BLOCKS = (16, 32, 64, 128, 256)
SCALE_DTYPE = "float16"
KEPT = "float"


def block_format(dtype: str, block: int) -> Format:
    """Weights of `dtype` ("int4" or "int8"), each `block` of a column's with one float16 scale and no zero point."""
    return Format(dtype, block=block, scale_dtype=SCALE_DTYPE)


def format_name(kept: Format | None) -> str:
    """``int4:32``; ``float`` for what stays as it is."""
    return KEPT if kept is None else f"{kept.dtype}:{kept.block}"


@dataclass(frozen=True)
class Recipe:
    """A format for each matrix; None leaves it as it is stored.

    Attributes:
        matrices: of the matrix multiplications of the layers.
        head: of the head, and of an embedding that is the same matrix.
        embedding: of an embedding that is a matrix of its own.
        by_name: (pattern, format): what a pattern of the shell's kind matches in the name of the node or of its weight
            has that format, whatever it is; the first that matches counts.
    """

    matrices: Format | None
    head: Format | None
    embedding: Format | None
    by_name: tuple[tuple[str, Format | None], ...] = ()

    @property
    def text(self) -> str:
        """For people: ``int4:32, head and embedding int8:32``."""
        head, embedding = format_name(self.head), format_name(self.embedding)
        tables = [f"head and embedding {head}"] if head == embedding else [f"head {head}", f"embedding {embedding}"]
        parts = [format_name(self.matrices), *tables]
        parts += [f"{pattern} {format_name(kept)}" for pattern, kept in self.by_name]
        return ", ".join(parts)

    def pattern_of(self, names: Iterable[str]) -> int | None:
        """Which of `by_name` decides about a matrix with those names."""
        found = [i for i, (p, _) in enumerate(self.by_name) if any(fnmatchcase(name, p) for name in names)]
        return min(found, default=None)

    def format_of(self, roles: Iterable[str], names: Iterable[str]) -> Format | None:
        """The format of a matrix.

        Args:
            roles: LAYER, HEAD or EMBEDDING; HEAD and EMBEDDING where one matrix is both.
            names: of its weight and of the nodes that read it.

        Raises:
            UserError: one matrix is head and embedding, and these have different formats.
        """
        named = self.pattern_of(names)
        if named is not None:
            return self.by_name[named][1]
        if {HEAD, EMBEDDING} <= set(roles) and self.head != self.embedding:
            raise UserError(
                f"embedding and head are one matrix here, which cannot be {format_name(self.embedding)} and "
                f"{format_name(self.head)}: give both one format"
            )
        return self.head if HEAD in roles else self.embedding if EMBEDDING in roles else self.matrices
