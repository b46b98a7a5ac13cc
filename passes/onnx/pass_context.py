"""What the import passes hand on to each other, and how a pass says what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

if TYPE_CHECKING:
    from passes.onnx.prove.prove_rope import Rope
    from passes.onnx.quantise.recipe import Recipe

WRITTEN = "written by a pass"  # in the `meta` of nodes that are canonical by construction


class Declined(Exception):
    """A pass found the shape of what it looks for but could not prove it; the message is the sentence why."""


@dataclass(frozen=True)
class PassLog:
    """What one pass did.

    Attributes:
        name: of the pass.
        matched: how often it matched.
        notes: sentences about what it saw or declined.
        replaced: the nodes that are gone after it, as "Operator name"; `run_pass` fills it in.
    """

    name: str
    matched: int
    notes: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}: {self.matched}" + "".join(f"; {note}" for note in self.notes)


@dataclass
class ImportFacts:
    """What a pass proved or made and a later one, or `DecoderFacts`, needs.

    Attributes:
        layers: key inputs of the cache; 0: none yet.
        copies: layers whose cache is a copy of another layer's, whose keys and values they read.
        batch: fixed batch size, or None if it is free.
        kv_heads: key/value heads of the cache; 0: there is no cache yet.
        head_dim: elements of a head; 0: the file leaves it symbolic and no pass has found it yet. While a pass looks
            for it, it is 1.
        no_cache: the file has no cache inputs: its graph computes a whole text from the first token on.
        padding: what attention_mask may hide: "left and right", or "right" where the export takes lengths.
        single_token_decode: after a past, the export itself takes one token at a time.
        int8_activations: every block-quantised matrix multiplication of the file allows int8 activations; until
            exact_quantised has looked at all of them: the file rounds activations to 8 bits itself.
        rounded_constants: numbers and vectors of the file are rounded to 8 bits, not only matrices.
        longest_context: tokens of the longest context known to be possible; None: no limit is known.
        mask_notes: sentences about the masks that were proven.
        ropes: rotations proven before GroupQueryAttention nodes; None: no rotation.
        tables: (cos, sin, positions) values written for a rotation, by the rotation, in the order they were written.
        positions: values [B, S] written for positions, by where they come from ("past" or "mask").
        masks: CausalMask and Alibi values written, by (window, padding, slopes).
    """

    layers: int = 0
    copies: dict[int, int] = field(default_factory=dict)
    batch: int | None = None
    kv_heads: int = 0
    head_dim: int = 0
    no_cache: bool = False
    padding: str = "left and right"
    single_token_decode: bool = False
    int8_activations: bool = False
    rounded_constants: bool = False
    longest_context: int | None = None
    mask_notes: set[str] = field(default_factory=set)
    ropes: list[Rope | None] = field(default_factory=list)
    tables: list[tuple[Rope, tuple[Any, Any, Any]]] = field(default_factory=list)
    positions: dict[str, Any] = field(default_factory=dict)
    masks: dict[tuple[int, bool, tuple[float, ...]], Any] = field(default_factory=dict)


@dataclass
class Importing:
    """A model on its way to the canonical form.

    Attributes:
        model: the `onnx_ir.Model`, changed in place by each pass.
        context: positions the rope tables must cover.
        log: one entry per pass so far.
        facts: what the passes so far proved.
        remembered: what passes/onnx/shapes.py has inferred so far.
        recipe: the formats that float weights get; None leaves them as they are.
        scales: those that were searched so far, by weight and format.
        largest_bytes: a value larger than this is not computed: a small file must not take much memory.
    """

    model: Any
    context: int
    log: list[PassLog] = field(default_factory=list)
    facts: ImportFacts = field(default_factory=ImportFacts)
    largest_bytes: int = 128 << 20
    recipe: Recipe | None = None
    scales: dict[Any, np.ndarray] = field(default_factory=dict)
    remembered: dict[Any, Any] = field(default_factory=dict)

    @property
    def graph(self) -> Any:
        """The main graph."""
        return self.model.graph

    def input(self, name: str) -> Any:
        """The graph input of that (normalised) name, or None."""
        return next((v for v in self.graph.inputs if v.name == name), None)


Pass = Callable[[Importing], PassLog]


# the passes that may change which inputs and outputs the graph has
_NAMING = ("unstack_caches", "plain_inputs", "cache_axes", "normalise_io_names", "add_cache", "unshare_caches")


def run_pass(run: Pass, imp: Importing) -> PassLog:
    """Run a pass, log it, and drop the nodes it left without users.

    Raises:
        AssertionError: the graph's outputs have other names or another order than before; inputs likewise.
    """
    before, names = list(imp.graph), interface_names(imp.graph)
    entry = run(imp)
    assert run.__name__ in _NAMING or interface_names(imp.graph) == names, (
        f"{run.__name__} changed inputs or outputs from {names} to {interface_names(imp.graph)}"
    )
    if entry.matched or entry.notes or not imp.log:  # the first pass finds what the file itself does not use
        common.RemoveUnusedNodesPass()(imp.model)
    gone = (node for node in before if node.graph is None)
    entry = replace(entry, replaced=tuple(f"{node.op_type} {node.name}" for node in gone))
    imp.log.append(entry)
    return entry


def interface_names(graph: Any) -> tuple[list[str], list[str]]:
    """Names of the inputs and of the outputs, in order."""
    return [v.name for v in graph.inputs], [v.name for v in graph.outputs]


def describe(node: Any) -> str:
    """Operator and node as messages name them."""
    return f"{node.domain or 'ai.onnx'}.{node.op_type} (node {node.name!r})"


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Value of an attribute, or the default."""
    return node.attributes[name].value if name in node.attributes else default


def constant(value: Any, most: int = 4096) -> np.ndarray | None:
    """The numbers of an initialiser of at most `most` elements; None for anything else."""
    if value is None or value.producer() is not None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy() if value.const_value.size <= most else None


def scalar(value: Any) -> float | None:
    """The number of a one-element initialiser; None for anything else."""
    numbers = constant(value, 1)
    return float(numbers.reshape(-1)[0]) if numbers is not None and numbers.size == 1 else None


def add_initializer(graph: Any, name: str, numbers: np.ndarray) -> Any:
    """Register a constant under a name not yet taken, and return its value."""
    taken, unique, k = graph.initializers, name, 0
    while unique in taken:
        k += 1
        unique = f"{name}_{k}"
    value = ir.Value(name=unique, const_value=ir.tensor(numbers, name=unique))
    value.shape, value.type = ir.Shape(numbers.shape), ir.TensorType(value.const_value.dtype)
    graph.register_initializer(value)
    return value


def replace_uses(old: Any, new: Any) -> None:
    """Let everything read `new` instead of `old`; where `old` is an output of the graph, `new` takes its name.

    `new` gets the type and the shape of `old` then, and where it has none of its own. A value that is an input, a
    constant or another output keeps its name: an Identity of it becomes the output.
    """
    if old.is_graph_output():
        if new.producer() is None or new.is_graph_output():
            new = emit(old.producer(), "Identity", [new], outputs=[f"{old.name}.same"]).outputs[0]
        new.name, old.name = old.name, f"{old.name}.replaced"
        new.type, new.shape = old.type, old.shape
    new.type = old.type if new.type is None else new.type
    new.shape = old.shape if new.shape is None else new.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def emit(before: Any, op_type: str, inputs: list[Any], attributes: dict[str, Any] | None = None, **more: Any) -> Any:
    """Insert a node before another one and return it; `name` and `domain` and `num_outputs` as keywords."""
    names = more.pop("outputs", None)
    node = ir.node(op_type, inputs, attributes or {}, **more)
    for output, name in zip(node.outputs, names or (), strict=False):
        output.name = name
    before.graph.insert_before(before, node)
    return node
