"""A float matrix of an export with its format: codes, scales and what they stand for, computed when asked for."""

from __future__ import annotations

import contextlib

import numpy as np

from costmodel.format import Format
from passes.onnx.pass_context import Importing
from passes.onnx.quantise.matrices import Matrix, matrices
from passes.onnx.quantise.recipe import BLOCKS, format_name
from passes.onnx.quantise.scales import Array, codes_of, floats_of, scales_of
from targets.errors import UserError


class QuantisedMatrix:
    """Scales are searched once and kept, in `remembered` also beyond this object; the rest is not kept.

    Attributes:
        matrix, format: what it is, and how it is stored.
        name: of the weight.
        axis: along which blocks run in what is stored: the transposed matrix where `matrix.by_rows`.
        shape, scale_shape: of what is stored.
    """

    def __init__(self, matrix: Matrix, kept: Format, remembered: dict[tuple[str, Format], Array]) -> None:
        """Nothing is read yet."""
        self.matrix, self.format, self._remembered = matrix, kept, remembered
        self.name = str(matrix.weight.name)
        self._tensor = matrix.weight.const_value
        rows, columns = (int(n) for n in self._tensor.shape)
        self.axis = 1 if matrix.by_rows else matrix.axis
        self.shape = (columns, rows) if matrix.by_rows else (rows, columns)
        self.scale_shape = tuple(n // kept.block if i == self.axis else n for i, n in enumerate(self.shape))

    def scales(self) -> Array:
        """Float16, of `scale_shape`.

        Raises:
            UserError: a weight is not finite, or too large for a float16 scale.
        """
        return self._stored(self._scales())

    def codes(self) -> Array:
        """Int8, of `shape`."""
        scales = self._scales()
        found = codes_of(self._tensor.numpy(), scales, self.format.bits, self.format.block, self.matrix.axis)
        self._release()
        return self._stored(found)

    def floats(self) -> Array:
        """What codes and scales stand for, float32, of `shape`."""
        return floats_of(self.codes(), self.scales(), self.format.block, self.axis)

    def _stored(self, array: Array) -> Array:
        return np.ascontiguousarray(array.T) if self.matrix.by_rows else array

    def _scales(self) -> Array:
        key = self.name, self.format
        if key not in self._remembered:
            found = scales_of(self._tensor.numpy(), self.format.bits, self.format.block, self.matrix.axis)
            self._release()
            if not np.isfinite(found).all():
                raise UserError(
                    f"weight {self.name!r} has numbers that are not finite or too large for float16 scales: it cannot "
                    f"be {format_name(self.format)}; keep it with a pattern of a --quantise file"
                )
            self._remembered[key] = found
        return self._remembered[key]

    def _release(self) -> None:
        if hasattr(self._tensor, "release"):
            with contextlib.suppress(BufferError):  # something still reads it
                self._tensor.release()  # unmaps the file, whose pages would count as ours


def quantised_matrices(imp: Importing) -> list[QuantisedMatrix]:
    """The matrices that the recipe of an import gives a format; none without a recipe.

    Those whose sums are shorter than any block stay as they are, unless a pattern names them.

    Raises:
        UserError: there is no float matrix, a pattern of the recipe matches none, or a block does not divide K.
    """
    if imp.recipe is None:
        return []
    found = matrices(imp)
    if not found:
        raise UserError("there are no float weights to quantise: leave --quantise out")
    seen, chosen = set[int | None](), []
    for matrix in found:
        stated = imp.recipe.pattern_of(matrix.names)
        seen.add(stated)
        kept = imp.recipe.format_of(matrix.roles, matrix.names)
        if kept is None:
            continue
        if stated is None and matrix.k < min(BLOCKS):  # such as the factors of AltUp's few streams
            continue
        if matrix.k % kept.block:
            raise UserError(_not_divided(matrix, kept))
        chosen.append(QuantisedMatrix(matrix, kept, imp.scales))
    for i, (pattern, _) in enumerate(imp.recipe.by_name):
        if i not in seen:
            raise UserError(f"{_unused(pattern, found)}; names are like {', '.join(map(repr, found[0].names[:2]))}")
    if not chosen:
        raise UserError("no matrix has a format other than float: leave --quantise out")
    return chosen


def _unused(pattern: str, found: list[Matrix]) -> str:
    from fnmatch import fnmatchcase

    if any(fnmatchcase(name, pattern) for matrix in found for name in matrix.names):
        return f"pattern {pattern!r} decides about no matrix: patterns before it match all that it matches"
    return f"pattern {pattern!r} matches no float weight and no node that reads one"


def _not_divided(matrix: Matrix, kept: Format) -> str:
    fitting = [block for block in BLOCKS if matrix.k % block == 0]
    advice = f"take {kept.dtype}:{max(fitting)}" if fitting else "no block does: keep it as it is"
    return (
        f"weight {str(matrix.weight.name)!r} has sums of {matrix.k} products, which blocks of {kept.block} do not "
        f"divide; {advice}, for this one with a pattern of a --quantise file"
    )
