"""Bytes that the kernels of a PrimFunc move, read off their loops: what is issued, beside what would be enough.

    moved    every load and store of a parameter, times the iterations that execute it
    needed   each byte that is touched, once; nothing for scratch, nor for reading back what the kernel wrote itself

Loads are counted as a compiler issues them: once for a vector loop, an unrolled loop or an innermost serial loop that
the address does not depend on (the value stays in a register), once for equal addresses in one statement. Where a
branch depends on data, it counts as taken. Caches are not modelled: what is read again may come from one.

Loop variables that no extent, condition or guard depends on are multiplied, the others are enumerated, so counts are
exact for ragged edges and for causal bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_PARALLEL, _VECTORIZED, _UNROLLED, _THREAD = 1, 2, 3, 4  # tvm.tirx.ForKind
_PYTHON = ("Add", "Sub", "Mul", "FloorDiv", "LT", "LE", "GT", "GE", "EQ", "NE")
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{name: getattr(operator, name.lower()) for name in _PYTHON},
    **{"FloorMod": operator.mod, "Min": np.minimum, "Max": np.maximum, "And": np.logical_and, "Or": np.logical_or},
}
_CHILDREN = {
    **dict.fromkeys((*_BINARY, "Div", "Mod", "LShift", "RShift", "BitwiseAnd", "BitwiseOr"), ("a", "b")),
    **{"Not": ("a",), "Cast": ("value",), "Broadcast": ("value",), "Ramp": ("base", "stride"), "Call": ("args",)},
    **{"Select": ("condition", "true_value", "false_value"), "TensorLoad": ("indices",)},
}


@dataclass(frozen=True)
class Traffic:
    """Bytes of one parameter of a PrimFunc.

    Attributes:
        name: the parameter's name in the kernel.
        read_bytes: loads that are issued.
        written_bytes: stores that are issued.
        needed_read_bytes: different bytes among those loads; 0 for what the PrimFunc wrote itself.
        needed_written_bytes: different bytes among those stores; 0 for scratch.
    """

    name: str
    read_bytes: int
    written_bytes: int
    needed_read_bytes: int
    needed_written_bytes: int


@dataclass
class Kernel:
    """One kernel of a PrimFunc: an OpenCL kernel, or the whole PrimFunc on a CPU.

    Attributes:
        name: of its block.
        launches: times that one call of the PrimFunc starts it.
        work_items: work-items of one launch; 0 on a CPU.
        group: work-items of a work-group; 0 on a CPU.
        tasks: iterations of its parallel loop; 1 runs on one thread. 0 on a GPU.
        moved_bytes: loads and stores of all launches.
        vector_lanes, vector_bits: values that are moved at once where the most different bytes are, and bits of one.
        register_tile: shape of the largest array that a work-item, or a CPU thread, keeps in registers.
    """

    name: str = ""
    launches: int = 1
    work_items: int = 0
    group: int = 0
    tasks: int = 0
    moved_bytes: int = 0
    vector_lanes: int = 1
    vector_bits: int = 0
    register_tile: tuple[int, ...] = ()
    most_bits: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Counted:
    """What a call of a PrimFunc moves."""

    kernels: tuple[Kernel, ...]
    traffic: tuple[Traffic, ...]

    @property
    def moved_bytes(self) -> int:
        """Bytes that are loaded and stored."""
        return sum(t.read_bytes + t.written_bytes for t in self.traffic)

    @property
    def needed_bytes(self) -> int:
        """Bytes that have to be loaded and stored at least."""
        return sum(t.needed_read_bytes + t.needed_written_bytes for t in self.traffic)


def count_traffic(func: Any, scalar: int = 0, outputs: int = 1, scratch: Iterable[int] = ()) -> Counted:
    """Count a PrimFunc with static shapes.

    Args:
        func: the PrimFunc.
        scalar: value of its integer parameters: the position, or the row that is taken.
        outputs: how many of the last parameters are outputs.
        scratch: which parameters, by number, are only passed from one of its kernels to the next.
    """
    walk = _Walk(func, scalar)
    walk.statement(func.body, _Scope({}, np.ones(1, np.int64), ()))
    first_output = len(func.params) - outputs
    thrown_away, traffic = set(scratch), []
    for i, param in enumerate(func.params):
        seen = walk.touched.get(_key(param))
        if seen is not None:
            own = i >= first_output
            traffic.append(seen.traffic(str(param.name), own=own, scratch=i in thrown_away))
    return Counted(tuple(walk.kernels), tuple(traffic))


def _key(var: Any) -> int:
    """Variables are the same if they are the same object in TVM."""
    return int(var.__chandle__())


@dataclass(frozen=True)
class _Scope:
    """Where a statement stands.

    Attributes:
        lanes: values of the enumerated variables, arrays of one length.
        weight: how many iterations each of them stands for.
        loops: the loops around, from the outermost, (variable, extent, kind); extent 0: its variable is enumerated.
        known: texts of the loads that an enclosing condition has made already.
    """

    lanes: dict[int, Ints]
    weight: Ints
    loops: tuple[tuple[int, int, int], ...]
    known: frozenset[str] = frozenset()

    def kept(self, mask: npt.NDArray[np.bool_]) -> _Scope:
        """The iterations where `mask` holds."""
        return _Scope({k: v[mask] for k, v in self.lanes.items()}, self.weight[mask], self.loops, self.known)


class _Touched:
    """What was loaded from and stored to one parameter."""

    def __init__(self, shape: tuple[int, ...], bits: int) -> None:
        self.shape, self.bits = shape, bits
        self.moved = {"load": 0, "store": 0}
        self.where: dict[str, list[set[int] | int]] = {kind: [set() for _ in shape] for kind in self.moved}

    def add(self, kind: str, count: int, where: list[Ints | int]) -> None:
        """`count` values at every combination of the positions `where`; a number counts positions that data give."""
        self.moved[kind] += count
        for d, found in enumerate(where):
            before = self.where[kind][d]
            if isinstance(found, int) or isinstance(before, int):
                sizes = [x if isinstance(x, int) else len(x) for x in (before, found)]
                self.where[kind][d] = min(max(sizes), self.shape[d])
            else:
                before.update(found.tolist())

    def traffic(self, name: str, own: bool, scratch: bool) -> Traffic:
        different = {}
        for kind, moved in self.moved.items():
            sizes = [x if isinstance(x, int) else len(x) for x in self.where[kind]]
            different[kind] = min(moved, int(np.prod(sizes, dtype=np.int64)))
        read, written = self.moved["load"], self.moved["store"]
        needed_read = 0 if own or scratch else different["load"]
        needed_written = 0 if scratch else different["store"]
        return Traffic(name, *(count * self.bits // 8 for count in (read, written, needed_read, needed_written)))


class _Walk:
    """Visits each statement once, with the iterations that reach it."""

    def __init__(self, func: Any, scalar: int) -> None:
        self.kernels: list[Kernel] = []
        self.touched: dict[int, _Touched] = {}
        self.scalars: dict[int, int] = {}
        for param in func.params:
            shape = getattr(param.ty, "shape", None)
            if shape is None:
                self.scalars[_key(param)] = scalar
            else:
                bits = _bits(param.ty.dtype)
                self.touched[_key(param)] = _Touched(tuple(int(d) for d in shape), bits)
        self.extents: dict[int, int] = {}
        self.control = _control_variables(func.body)
        self.stored = _stored(func.body)
        self.open: Kernel | None = None

    def statement(self, node: Any, scope: _Scope) -> None:
        kind = type(node).__name__
        if not scope.weight.any():
            return
        if kind == "SeqStmt":
            for part in node.seq:
                self.statement(part, scope)
        elif kind == "For":
            self._loop(node, scope)
        elif kind == "SBlockRealize":
            self._block(node, scope)
        elif kind == "IfThenElse":
            self._branch(node, scope)
        elif kind == "BufferStore":
            self._loads([node.value, *node.indices], scope)
            self._access("store", node.buffer, node.indices, _lanes(node.value), scope)
        elif kind == "Evaluate":
            self._loads([node.value], scope)
        else:
            raise NotImplementedError(f"count_traffic does not know the statement {kind}")

    def _loop(self, node: Any, scope: _Scope) -> None:
        kind, var, extent = int(node.kind), _key(node.loop_var), node.extent
        outermost_thread = kind == _THREAD and self.open is None
        if outermost_thread:
            self.open = Kernel(launches=int(scope.weight.sum()), work_items=1, group=1)
            self.open.launches *= int(np.prod([e for _, e, _ in scope.loops if e], dtype=np.int64))
            self.kernels.append(self.open)
        if kind == _THREAD and self.open is not None:
            self.open.work_items *= int(extent)
            if str(node.thread_binding.thread_tag).startswith("threadIdx"):
                self.open.group *= int(extent)
        elif kind == _PARALLEL and self.open is not None:
            self.open.tasks *= int(extent)
        if var in self.control or type(extent).__name__ != "IntImm":
            sizes = np.broadcast_to(self.value(extent, scope), scope.weight.shape).astype(np.int64)
            sizes = np.maximum(sizes, 0)
            lanes = {k: np.repeat(v, sizes) for k, v in scope.lanes.items()}
            starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
            lanes[var] = np.arange(int(sizes.sum()), dtype=np.int64) - starts
            inner = _Scope(lanes, np.repeat(scope.weight, sizes), (*scope.loops, (var, 0, kind)), scope.known)
            self.extents[var] = int(sizes.max(initial=0))
        else:
            self.extents[var] = int(extent)
            inner = _Scope(scope.lanes, scope.weight, (*scope.loops, (var, int(extent), kind)), scope.known)
        self.statement(node.body, inner)
        if outermost_thread:
            self.open = None

    def _block(self, node: Any, scope: _Scope) -> None:
        block = node.block
        if str(block.name_hint) == "root":
            if not any(int(loop.kind) == _THREAD for loop in _loops(block.body)):
                self.open = Kernel(name="", tasks=1)
                self.kernels.append(self.open)
            self.statement(block.body, scope)
            return
        if self.open is not None and not self.open.name:
            self.open.name = str(block.name_hint)
        if self.open is not None:
            for buffer in block.alloc_buffers:
                shape = tuple(int(d) for d in buffer.ty.shape)
                larger = np.prod(shape) > np.prod(self.open.register_tile or (0,))
                if str(buffer.ty.storage_scope) == "local" and larger:
                    self.open.register_tile = shape
        if type(node.predicate).__name__ != "IntImm":
            mask = np.broadcast_to(self.value(node.predicate, scope), scope.weight.shape)
            scope = scope.kept(np.asarray(mask, bool))
        lanes, bound = {}, set()
        for iter_var, value in zip(block.iter_vars, node.iter_values, strict=True):
            var = _key(iter_var.var)
            if var in self.control:
                lanes[var] = np.broadcast_to(self.value(value, scope), scope.weight.shape).astype(np.int64)
            else:
                self.extents[var] = int(iter_var.dom.extent)
            bound |= _variables(value)
        # Loops that the block's variables stand for end here; loops of the host around a kernel go on.
        weight = scope.weight * int(np.prod([e for v, e, _ in scope.loops if e and v in bound], dtype=np.int64))
        rest = tuple(loop for loop in scope.loops if loop[0] not in bound)
        alive = {k: v for k, v in scope.lanes.items() if k not in bound}
        whole = _collapsed(_Scope({**alive, **lanes}, weight, rest, scope.known))
        self.statement(block.body, whole)

    def _branch(self, node: Any, scope: _Scope) -> None:
        known = scope.known | self._loads([node.condition], scope)
        scope = _Scope(scope.lanes, scope.weight, scope.loops, known)
        if _has_load(node.condition):
            taken, other = scope, scope
        else:
            mask = np.asarray(np.broadcast_to(self.value(node.condition, scope), scope.weight.shape), bool)
            taken, other = scope.kept(mask), scope.kept(~mask)
        self.statement(node.then_case, taken)
        if node.else_case is not None:
            self.statement(node.else_case, other)

    def _loads(self, expressions: list[Any], scope: _Scope) -> frozenset[str]:
        """Count the loads in one statement, equal ones once; returns their texts."""
        seen = set(scope.known)

        def visit(node: Any, lanes: int = 1) -> None:
            kind = type(node).__name__
            if kind == "Call" and "vload" in str(node.args[0]) and node.args:
                lanes = _lanes(node)
            if kind == "TensorLoad":
                text = f"{_key(node.source)} {list(node.indices)}"
                if text not in seen:
                    seen.add(text)
                    self._access("load", node.source, node.indices, lanes, scope)
            for child in _children(node):
                visit(child, lanes)

        for expression in expressions:
            visit(expression)
        return frozenset(seen)

    def _access(self, kind: str, buffer: Any, indices: Any, lanes: int, scope: _Scope) -> None:
        touched = self.touched.get(_key(buffer))
        if touched is None:
            return  # local to the kernel
        used = set().union(*(_variables(i) for i in indices))
        held = self._held(used, scope, _key(buffer) in self.stored) if kind == "load" else set()
        times = int(np.prod([e for v, e, _ in scope.loops if e and v not in held], dtype=np.int64))
        vector = next((v for v, _, loop in reversed(scope.loops) if loop == _VECTORIZED and v in used), None)
        count = _iterations(scope, held) * times * lanes
        where = [self._positions(i, scope) for i in indices]
        if lanes > 1 and not isinstance(where[-1], int):
            where[-1] = np.unique(where[-1][:, None] + np.arange(lanes))
        touched.add(kind, count, where)
        if self.open is not None:
            moved = count * touched.bits // 8
            self.open.moved_bytes += moved
            if vector is not None and self._stride(indices[-1], vector) == 1:
                lanes = self.extents.get(vector, 1)
            sizes = [p if isinstance(p, int) else len(p) for p in where]
            different = touched.bits * min(count, int(np.prod(sizes, dtype=np.int64)))
            if different > self.open.most_bits:
                self.open.most_bits = different
                self.open.vector_lanes, self.open.vector_bits = lanes, touched.bits

    def _held(self, used: set[int], scope: _Scope, stored: bool) -> set[int]:
        """Loops that a load is not repeated in, because its address stays; serial ones only if nothing stores there."""
        straight = [v for v, _, loop in scope.loops if loop in (_VECTORIZED, _UNROLLED)]
        held = {v for v in straight if v not in used}
        for var, _, loop in reversed(scope.loops):
            if var in straight:
                continue
            if var in used or stored or loop in (_PARALLEL, _THREAD):
                break
            held.add(var)
        return held

    def _positions(self, index: Any, scope: _Scope) -> Ints | int:
        """The different values of an index; where it depends on data, how many there may be."""
        used = _variables(index)
        free = [v for v in used if v not in scope.lanes and v not in self.scalars]
        lanes = _collapsed(_Scope({v: scope.lanes[v] for v in used if v in scope.lanes}, scope.weight, ())).lanes
        rows = len(next(iter(lanes.values()))) if lanes else 1
        values = {v: a.reshape(-1, *[1] * len(free)) for v, a in lanes.items()}
        for axis, var in enumerate(free):
            shape = [1] * (1 + len(free))
            shape[1 + axis] = -1
            values[var] = np.arange(self.extents[var], dtype=np.int64).reshape(shape)
        if _has_load(index):
            return rows * int(np.prod([self.extents[v] for v in free], dtype=np.int64))
        return np.unique(self._evaluate(index, values))

    def _stride(self, index: Any, var: int) -> int:
        at = {v: np.int64(0) for v in _variables(index)}
        if _has_load(index):
            return 0
        return int(self._evaluate(index, {**at, var: np.int64(1)}) - self._evaluate(index, at))

    def value(self, expression: Any, scope: _Scope) -> Any:
        """An expression in every lane."""
        return self._evaluate(expression, scope.lanes)

    def _evaluate(self, node: Any, values: Any) -> Any:
        kind = type(node).__name__
        if kind == "Var":
            key = _key(node)
            return self.scalars[key] if key in self.scalars else values[key]
        if kind == "IntImm":
            return np.int64(int(node))
        if kind in _BINARY:
            return _BINARY[kind](self._evaluate(node.a, values), self._evaluate(node.b, values))
        if kind == "Cast":
            return self._evaluate(node.value, values)
        if kind == "Ramp":
            return self._evaluate(node.base, values)
        if kind == "Not":
            return np.logical_not(self._evaluate(node.a, values))
        raise NotImplementedError(f"count_traffic does not know {kind} in an index")


def _bits(dtype: Any) -> int:
    import tvm

    return int(tvm.DataType(str(dtype)).bits)


def _lanes(node: Any) -> int:
    import tvm

    return int(tvm.DataType(str(node.ty.dtype)).lanes)


def _children(node: Any) -> list[Any]:
    found: list[Any] = []
    for name in _CHILDREN.get(type(node).__name__, ()):
        child = getattr(node, name)
        found += list(child) if name in ("indices", "args") else [child]
    return found


def _variables(node: Any) -> set[int]:
    if type(node).__name__ == "Var":
        return {_key(node)}
    return set().union(*(_variables(child) for child in _children(node)))


def _has_load(node: Any) -> bool:
    return type(node).__name__ == "TensorLoad" or any(_has_load(child) for child in _children(node))


def _loops(node: Any) -> list[Any]:
    kind = type(node).__name__
    if kind == "For":
        return [node, *_loops(node.body)]
    if kind == "SeqStmt":
        return [loop for part in node.seq for loop in _loops(part)]
    if kind == "SBlockRealize":
        return _loops(node.block.body)
    if kind == "IfThenElse":
        return _loops(node.then_case) + (_loops(node.else_case) if node.else_case is not None else [])
    return []


def _iterations(scope: _Scope, held: set[int]) -> int:
    """Iterations of the enumerated variables, those of `held` counted once."""
    if not held & scope.lanes.keys():
        return int(scope.weight.sum())
    left = {v: a for v, a in scope.lanes.items() if v not in held}
    one_each = _collapsed(_Scope(left, np.ones_like(scope.weight), ()))
    together = _collapsed(_Scope(left, scope.weight, ()))
    # Iterations that differ in a held variable only have equal weights, so their mean is one of them.
    return int((together.weight // one_each.weight).sum())


def _stored(body: Any) -> set[int]:
    """Buffers that are stored to."""
    kind = type(body).__name__
    if kind == "BufferStore":
        return {_key(body.buffer)}
    inner = {
        "SeqStmt": lambda: list(body.seq),
        "For": lambda: [body.body],
        "SBlockRealize": lambda: [body.block.body],
        "IfThenElse": lambda: [body.then_case] + ([body.else_case] if body.else_case is not None else []),
    }.get(kind, list)()
    return set().union(*(_stored(part) for part in inner))


def _control_variables(body: Any) -> set[int]:
    """Variables that decide how often something runs: those of extents, guards and conditions, and what binds them."""
    control: set[int] = set()
    bindings: dict[int, set[int]] = {}

    def visit(node: Any) -> None:
        kind = type(node).__name__
        if kind == "SeqStmt":
            for part in node.seq:
                visit(part)
        elif kind == "For":
            control.update(_variables(node.extent))
            visit(node.body)
        elif kind == "IfThenElse":
            if not _has_load(node.condition):
                control.update(_variables(node.condition))
            visit(node.then_case)
            if node.else_case is not None:
                visit(node.else_case)
        elif kind == "SBlockRealize":
            control.update(_variables(node.predicate))
            for iter_var, value in zip(node.block.iter_vars, node.iter_values, strict=True):
                bindings[_key(iter_var.var)] = _variables(value)
            visit(node.block.body)

    visit(body)
    while True:
        more = set().union(*(bindings[v] for v in control if v in bindings)) - control
        if not more:
            return control
        control |= more


def _collapsed(scope: _Scope) -> _Scope:
    """Equal lanes as one, with their weights added."""
    if not scope.lanes:
        return _Scope({}, np.array([scope.weight.sum()], np.int64), scope.loops, scope.known)
    if not scope.weight.size:
        return scope
    mixed = np.zeros(scope.weight.shape, np.int64)
    for values in scope.lanes.values():
        low = int(values.min())
        mixed = mixed * (int(values.max()) - low + 1) + (values - low)
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    weight = np.bincount(inverse, scope.weight).astype(np.int64)
    return _Scope({k: v[first] for k, v in scope.lanes.items()}, weight, scope.loops, scope.known)
