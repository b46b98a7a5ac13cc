"""`--draft early-exit:K`: the target's own first K layers and its head draft; there is no second file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.early_exit import first_layers
from targets.errors import UserError

if TYPE_CHECKING:
    from costmodel.decoder import DecoderSpec
    from passes.onnx import Decoder

SCHEME = "early-exit:"
_MOST_DIGITS = 6


@dataclass(frozen=True)
class EarlyExit:
    """A drafter that is the target's first ``layers`` layers and its head."""

    layers: int

    def __str__(self) -> str:
        """As the user gives it."""
        return f"{SCHEME}{self.layers}"

    def spec(self, target: DecoderSpec) -> DecoderSpec:
        """The drafter's operators.

        Raises:
            UserError: the target has too few layers.
        """
        return first_layers(target, self.layers)

    def cut(self, target: tuple[Decoder, DecoderSpec]) -> tuple[Decoder, DecoderSpec]:
        """The drafter as a graph and as operators.

        Raises:
            UserError: the target has too few layers, or more than the residual stream leaves that one.
        """
        from passes.onnx.first_layers import first_layers as cut_graph

        decoder, spec = target
        short = self.spec(spec)  # which refuses layers that are not there
        return cut_graph(decoder, self.layers), short

    def refuse_formats(self, quantise_draft: str | None) -> None:
        """Refuse formats of its own.

        Raises:
            UserError: some are given.
        """
        if quantise_draft is not None:
            raise UserError(f"--quantise-draft {quantise_draft}: {self} reads the target's weights; leave it out")

    @staticmethod
    def named(text: str) -> EarlyExit | None:
        """The early exit of that name; None of a name that is no early exit's.

        Raises:
            ValueError: it says no number of layers.
        """
        if not f"{text}:".startswith(SCHEME):
            return None
        layers = text.removeprefix(SCHEME)
        if not (layers.isascii() and layers.isdecimal() and len(layers) <= _MOST_DIGITS and int(layers)):
            raise ValueError(f"{text!r} names no layer: give {SCHEME}K, the target's first K layers draft")
        return EarlyExit(int(layers))
