"""What a decoder is made of: a list of operators, each with its part, sizes and weight format.

One entry is one kernel call of a step, whatever the number of new tokens. passes/analysis/count_work.py makes the list
from an ONNX file, costmodel/standard_decoder.py from the switches of a config.json; what a step costs (work.py), what
weights take, what runs where: all of it is read off this list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from costmodel.format import F32, FLOAT, INT8
from costmodel.operators import NONLINEARITIES, NORMS, STATISTICS, STREAMS, Operator
from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part
from targets.cpu.dot import takes_codes
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV, KV_FORMATS

_NEW_ROWS = (
    "attention",
    "add",
    "scale",
    "clip",
    "take",
    *("join_columns", "scale_columns"),
    *NORMS,
    *NONLINEARITIES,
    *STATISTICS,
    *STREAMS,
)  # what linears after them read is another's


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder.

    Attributes:
        name: for people.
        operators: in the order of a step.
        tied: embedding and head share one matrix.
        kv: how keys and values are stored, a name of targets/kv_format.py.
        whole: the decoder whose first layers it is, and whose weights it reads (costmodel/early_exit.py); None: it has
            weights of its own.
    """

    name: str
    operators: tuple[Operator, ...]
    tied: bool
    kv: str = DEFAULT_KV
    whole: DecoderSpec | None = None

    def __post_init__(self) -> None:
        """Refuse lists that are no decoder."""
        if not self.attentions:
            raise UserError(f"{self.name}: there are no layers")
        for kind, part in (("embedding", EMBEDDING), ("linear", HEAD), ("argmax", HEAD)):
            found = len([op for op in self.operators if op.kind == kind and op.part.kind == part])
            if found != 1 and (kind != "linear" or not found):
                raise UserError(f"{self.name}: {found} operators of kind {kind} in the {part}; a decoder has one")

    # -- sizes ----------------------------------------------------------------------------------------------------

    @cached_property
    def attentions(self) -> tuple[Operator, ...]:
        """The attention of each layer."""
        return tuple(op for op in self.operators if op.kind == "attention")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.attentions)

    @cached_property
    def embedding(self) -> Operator:
        """The table of the tokens."""
        return next(op for op in self.operators if op.kind == "embedding")

    @cached_property
    def head(self) -> Operator:
        """The matrix multiplication that makes the logits: one before it makes rows narrower, in opt-350m."""
        return next(op for op in reversed(self.operators) if op.kind == "linear" and op.part.kind == HEAD)

    @property
    def hidden(self) -> int:
        """Width of the residual stream, of one where there are several."""
        if self._predict is not None:
            return self._predict.columns // self._predict.groups
        return self.part(Part(EMBEDDING))[-1].columns

    @property
    def border(self) -> int:
        """Values of a row that cross from a layer to the next: all streams, and what later layers read of a token."""
        if self._predict is None:
            return self.hidden
        tables = (op for op in self.part(Part(EMBEDDING)) if op.kind == "embedding_by_layer")
        return self._predict.columns + sum(op.columns for op in tables)

    @cached_property
    def _predict(self) -> Operator | None:
        """What makes the streams that a layer reads; None where there is one."""
        return next((op for op in self.operators if op.kind == "altup_predict"), None)

    @property
    def vocab(self) -> int:
        """Logits of a row."""
        return self.head.columns

    @cached_property
    def ffn(self) -> int:
        """Values that the last matrix multiplication of the widest feed-forward part reads."""
        named = [op.k for i in range(self.layers) for op in self.linears(Part(FFN, i)) if op.name == "down"]
        return max(named or (self.linears(Part(FFN, i))[-1].k for i in range(self.layers)))

    def linears(self, part: Part) -> tuple[Operator, ...]:
        """The matrix multiplications of a part."""
        return tuple(op for op in self.part(part) if op.kind == "linear")

    def part(self, part: Part) -> tuple[Operator, ...]:
        """The operators of a part."""
        return self._by_part.get(part, ())

    @cached_property
    def _by_part(self) -> dict[Part, tuple[Operator, ...]]:
        found: dict[Part, list[Operator]] = {}
        for op in self.operators:
            found.setdefault(op.part, []).append(op)
        return {part: tuple(ops) for part, ops in found.items()}

    @cached_property
    def units(self) -> tuple[tuple[Operator, ...], ...]:
        """What a border may separate: the embedding, each layer, the head.

        Layers that cost the same are one and the same object, whose operators name layer 0; so each is counted and
        priced once.
        """
        alike: dict[tuple[Operator, ...], tuple[Operator, ...]] = {}
        found = [self.part(Part(EMBEDDING))]
        for i in range(self.layers):
            ops = (*self.part(Part(ATTENTION, i)), *self.part(Part(FFN, i)))
            ops = tuple(replace(op, part=Part(op.part.kind)) for op in ops) if i else ops
            found.append(alike.setdefault(ops, ops))
        return (*found, self.part(Part(HEAD)))

    @property
    def after_acceptance(self) -> int:
        """Tokens that it is fed for the first draft after full acceptance: two, with its own last one.

        One where it is the first layers of the target, which has read all of them in the cache that both write.
        """
        return 2 if self.whole is None else 1

    # -- activations ----------------------------------------------------------------------------------------------

    @cached_property
    def activations(self) -> str:
        """INT8 where any matrix multiplication reads codes."""
        return INT8 if any(op.activations == INT8 for op in self.operators) else FLOAT

    def with_int8_activations(self) -> DecoderSpec:
        """The same decoder, which makes int8 codes of what it multiplies with block-quantised weights."""
        made, last = list[Operator](), None
        for op in map(_with_codes, self.operators):
            if op.kind in _NEW_ROWS and (op.groups == 1 or op.kind in STREAMS):
                last = None
            elif op.activations == INT8:
                op = replace(op, makes_codes=(op.part, op.k) != last)
                last = op.part, op.k
            made.append(op)
        return replace(self, operators=tuple(made))

    # -- weights --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> int:
        """Number of weights, a tied matrix once."""
        return sum(op.matrix_values + op.small_values for op in self._stored)

    @property
    def _stored(self) -> tuple[Operator, ...]:
        """Operators with weights of their own: not the embedding that reads the head's."""
        return tuple(op for op in self.operators if not (self.tied and op.kind == "embedding"))

    @cached_property
    def unit_bytes(self) -> tuple[int, ...]:
        """Bytes of weights of each unit; a tied matrix counts with the head."""
        first, *rest = self.units
        tables = sum(op.weight_bytes for op in first if not (self.tied and op.kind == "embedding"))
        return (tables, *(sum(op.weight_bytes for op in unit) for unit in rest))

    def part_bytes(self, part: Part) -> int:
        """Bytes of weights of a part; a tied matrix counts with the head."""
        return sum(op.weight_bytes for op in self.part(part) if not (self.tied and op.kind == "embedding"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as they are mapped."""
        return sum(self.unit_bytes)

    @property
    def weight_bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all weights by the format of their matrix; norms and biases are float32."""
        sizes: dict[str, int] = {}
        for op in self._stored:
            for dtype, size in ((op.format.dtype, op.matrix_bytes), ("float32", F32 * op.small_values)):
                if size:
                    sizes[dtype] = sizes.get(dtype, 0) + size
        return dict(sorted(sizes.items()))

    @property
    def main_dtype(self) -> str:
        """The format with the most bytes."""
        sizes = self.weight_bytes_by_dtype
        return max(sizes, key=lambda k: sizes[k])

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the KV cache for that many tokens: keys and values of every layer."""
        stored = KV_FORMATS[self.kv]
        return tokens * sum(op.kv_heads * stored.token_bytes(op.head_dim) for op in self.attentions)


def _with_codes(op: Operator) -> Operator:
    kernel = op.kind == "linear" and op.format.integers and takes_codes(op.format.block, op.k)
    return replace(op, activations=INT8) if kernel else op
