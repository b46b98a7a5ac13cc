"""A decoder is cut where the processor changes: one function per segment, chained by the session.

    main(ids, pos, pasts..., weights...) -> (logits, choice, presents...)
becomes, for a placement on two processors,
    s0(ids, pos, pasts of s0..., weights of s0...) -> (x0, presents of s0...)        module of the first processor
    s1(x0, pos, ...)                               -> (x1, ...)                      module of the second
    s2(x1, pos, ...)                               -> (logits, choice, ...)          module of the first

The segments form a graph without circles: what each reads is named, and it runs after whoever computes that. A value
crosses a border only where a segment of another processor reads it. Weights and caches never cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import bindings, rebuild_bindings
from targets.backend import HOST

WHOLE = "main"


@dataclass(frozen=True)
class Segment:
    """Operators that run on one processor, one after the other.

    Attributes:
        name: its function in the module of the processor; WHOLE where it is all of the model.
        processor: its kind, a name of targets/backend.py.
        inputs, outputs: values that come in and go out: "input_ids", "logits", "choice", or "x0", "x1", ... between.
        layers: whose KV caches it has, in the order of its parameters (key and value of each).
        chooses: it computes the logits' argmax, so its prefill entry takes the row to do it for.
    """

    name: str
    processor: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[int, ...]
    chooses: bool


@dataclass(frozen=True)
class Partition:
    """The segments, each after those it reads from, and the functions by processor and name."""

    segments: tuple[Segment, ...]
    functions: dict[str, dict[str, Any]]


def partition(func: Any, processors: Sequence[str], prefix: str = "s", whole: str = WHOLE) -> Partition:
    """Cut `main` (after DecoderInterface).

    Args:
        func: the straight-line decoder.
        processors: one per binding, in order.
        prefix: of the segments' names.
        whole: the name where there is one segment.
    """
    groups = _groups(func, processors)
    names = _Names(func)
    read_later: list[set[Any]] = [set() for _ in groups]
    needed = {names.logits, names.choice}
    for i in range(len(groups) - 1, -1, -1):
        read_later[i] = set(needed)
        needed |= {v for b in groups[i][1] for v in _reads(b.value)}
    segments, functions = list[Segment](), dict[str, dict[str, Any]]()
    for i, (processor, group) in enumerate(groups):
        name = whole if len(groups) == 1 else f"{prefix}{i}"
        segment, built = _segment(func, names, name, processor, group, read_later[i])
        segments.append(segment)
        functions.setdefault(processor, {})[name] = built
    return Partition(tuple(segments), functions)


class _Names:
    """What the variables of `main` are called at a border."""

    def __init__(self, func: Any) -> None:
        self.logits, self.choice, *presents = _outputs(func)
        self.presents = set(presents)
        self._of = {self.logits: "logits", self.choice: "choice", func.params[0]: "input_ids"}

    def __call__(self, var: Any) -> str:
        """The name of a value that crosses."""
        return self._of.setdefault(var, f"x{len(self._of) - 3}")


def _outputs(func: Any) -> list[Any]:
    """The fields of the tuple that a function returns."""
    body = func.body.body
    made = body if isinstance(body, relax.Tuple) else next(b.value for b in bindings(func) if b.var.same_as(body))
    return list(made.fields)


def _groups(func: Any, processors: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """The operators of each segment, in an order in which each segment comes after those it reads from.

    An operator's depth is the most borders on a way to it, where what follows a value that crosses counts as beyond a
    border on its own side, too. One segment has the operators of one processor and depth. So branches that do not read
    from one another are segments that may run at the same time, however their operators take turns in the file, and
    what they both read is ready before either begins. At one depth the CPU comes last: the others are only started.
    A part of a tuple stays where the tuple is made; the outputs' tuple is left out.
    """
    made = [(b, p) for b, p in zip(bindings(func), processors, strict=True) if not isinstance(b.value, relax.Tuple)]
    maker: dict[Any, Any] = {}
    home: dict[Any, str] = {}
    for binding, processor in made:
        part = isinstance(binding.value, relax.TupleGetItem)
        maker[binding.var] = maker[binding.value.tuple_value] if part else binding.var
        home.setdefault(maker[binding.var], processor)
    crosses = {
        maker[v] for b, _ in made for v in _reads(b.value) if v in maker and home[maker[v]] != home[maker[b.var]]
    }
    depth: dict[Any, int] = {}
    groups: dict[tuple[int, bool, str], list[Any]] = {}
    for binding, _ in made:
        var = maker[binding.var]
        if var not in depth:
            read = {maker[v] for v in _reads(binding.value) if v in maker}
            depth[var] = max((depth[v] + (v in crosses) for v in read), default=0)
        groups.setdefault((depth[var], home[var] == HOST, home[var]), []).append(binding)
    return [(key[-1], groups[key]) for key in sorted(groups)]


def _segment(
    func: Any, names: _Names, name: str, processor: str, group: list[Any], read_later: set[Any]
) -> tuple[Segment, Any]:
    made = [b.var for b in group]
    reads = [v for b in group for v in _reads(b.value)]
    _, pos, *rest = func.params
    own = [p for p in rest if p in set(reads)]
    inputs = [v for v in dict.fromkeys(reads) if v not in {pos, *rest, *made}]
    outputs = [v for v in made if v in read_later and v not in names.presents]
    presents = [v for v in made if v in names.presents]
    crossing = {v: relax.Var(names(v), v.ty) for v in inputs}
    built = rebuild_bindings(group, relax.Tuple([*outputs, *presents]), [*crossing.values(), pos, *own], crossing)
    caches = [p for p in own if p.name.startswith("past_key_values.")]
    counts = {"hsd.outputs": len(outputs), "hsd.caches": len(caches)}
    built = relax.utils.copy_with_new_vars(built).with_attr({"global_symbol": name, **counts})
    layers = dict.fromkeys(int(p.name.split(".")[1]) for p in caches)
    chooses = any(D.op_name(b.value) == "hsd.argmax" for b in group)
    described = Segment(name, processor, tuple(map(names, inputs)), tuple(map(names, outputs)), tuple(layers), chooses)
    return described, built


def weights_of(func: Any) -> list[Any]:
    """The weights among a segment's parameters: they come last."""
    pos = next(i for i, p in enumerate(func.params) if p.name == "pos")
    return list(func.params[pos + 1 + int(func.attrs["hsd.caches"]) :])


def _reads(value: Any) -> list[Any]:
    """Variables that a bound value reads."""
    if isinstance(value, relax.Var):
        return [value]
    if isinstance(value, relax.Tuple):
        return [v for f in value.fields for v in _reads(f)]
    if isinstance(value, relax.TupleGetItem):
        return _reads(value.tuple_value)
    if isinstance(value, relax.Call):
        return [v for a in value.args for v in _reads(a)]
    return []
