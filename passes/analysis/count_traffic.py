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
from typing import Any

import numpy as np

from passes.analysis import tir_tree as tir
from passes.analysis.loop_scope import Ints, Scope, collapsed, iterations
from passes.analysis.traffic import Counted, Kernel, Touched

_PARALLEL, _VECTORIZED, _UNROLLED, _THREAD = 1, 2, 3, 4  # tvm.tirx.ForKind
_PYTHON = ("Add", "Sub", "Mul", "FloorDiv", "LT", "LE", "GT", "GE", "EQ", "NE")
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{name: getattr(operator, name.lower()) for name in _PYTHON},
    **{"FloorMod": operator.mod, "Min": np.minimum, "Max": np.maximum, "And": np.logical_and, "Or": np.logical_or},
}


def count_traffic(func: Any, scalar: int = 0, outputs: int = 1, scratch: Iterable[int] = ()) -> Counted:
    """Count a PrimFunc with static shapes.

    Args:
        func: the PrimFunc.
        scalar: value of its integer parameters: the position, or the row that is taken.
        outputs: how many of the last parameters are outputs.
        scratch: which parameters, by number, are only passed from one of its kernels to the next.

    Raises:
        TypeError: it has a TIR node that our kernels have not used so far, and that has no rule here.
    """
    walk = _Walk(func, scalar)
    walk.statement(func.body, Scope({}, np.ones(1, np.int64), ()))
    first_output = len(func.params) - outputs
    thrown_away, traffic = set(scratch), []
    for i, param in enumerate(func.params):
        seen = walk.touched.get(tir.key(param))
        if seen is not None:
            own = i >= first_output
            traffic.append(seen.traffic(str(param.name), own=own, scratch=i in thrown_away))
    return Counted(tuple(walk.kernels), tuple(traffic))


class _Walk:
    """Visits each statement once, with the iterations that reach it."""

    def __init__(self, func: Any, scalar: int) -> None:
        self.kernels: list[Kernel] = []
        self.touched: dict[int, Touched] = {}
        self.scalars: dict[int, int] = {}
        for param in func.params:
            shape = getattr(param.ty, "shape", None)
            if shape is None:
                self.scalars[tir.key(param)] = scalar
            else:
                bits = tir.bits(param.ty.dtype)
                self.touched[tir.key(param)] = Touched(tuple(int(d) for d in shape), bits)
        self.extents: dict[int, int] = {}
        self.bound = tir.bound_integers(func.body)
        self.control = tir.control_variables(func.body, self.bound)
        self.stored = tir.stored(func.body)
        self.open: Kernel | None = None

    def statement(self, node: Any, scope: Scope) -> None:
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
            self._access("store", node.buffer, node.indices, tir.lanes(node.value), scope)
        elif kind == "Bind" or (kind == "Evaluate" and not tir.is_prefetch(node.value)):
            self._loads([node.value], scope)
        elif kind != "Evaluate":
            raise TypeError(f"a kernel with the TIR statement {kind}, which has no rule in count_traffic")

    def _loop(self, node: Any, scope: Scope) -> None:
        kind, var, extent = int(node.kind), tir.key(node.loop_var), node.extent
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
            self.open.tasks *= int(np.max(self.value(extent, scope), initial=0))
        if var in self.control or type(extent).__name__ != "IntImm":
            sizes = np.broadcast_to(self.value(extent, scope), scope.weight.shape).astype(np.int64)
            sizes = np.maximum(sizes, 0)
            lanes = {k: np.repeat(v, sizes) for k, v in scope.lanes.items()}
            starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
            lanes[var] = np.arange(int(sizes.sum()), dtype=np.int64) - starts
            inner = Scope(lanes, np.repeat(scope.weight, sizes), (*scope.loops, (var, 0, kind)), scope.known)
            self.extents[var] = int(sizes.max(initial=0))
        else:
            self.extents[var] = int(extent)
            inner = Scope(scope.lanes, scope.weight, (*scope.loops, (var, int(extent), kind)), scope.known)
        self.statement(node.body, inner)
        if outermost_thread:
            self.open = None

    def _block(self, node: Any, scope: Scope) -> None:
        block = node.block
        if str(block.name_hint) == "root":
            if not any(int(loop.kind) == _THREAD for loop in tir.loops(block.body)):
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
            var = tir.key(iter_var.var)
            if var in self.control:
                lanes[var] = np.broadcast_to(self.value(value, scope), scope.weight.shape).astype(np.int64)
            else:
                self.extents[var] = int(iter_var.dom.extent)
            bound |= tir.variables(value, self.bound)
        # Loops that the block's variables stand for end here; loops of the host around a kernel go on.
        weight = scope.weight * int(np.prod([e for v, e, _ in scope.loops if e and v in bound], dtype=np.int64))
        rest = tuple(loop for loop in scope.loops if loop[0] not in bound)
        alive = {k: v for k, v in scope.lanes.items() if k not in bound}
        whole = collapsed(Scope({**alive, **lanes}, weight, rest, scope.known))
        self.statement(block.body, whole)

    def _branch(self, node: Any, scope: Scope) -> None:
        known = scope.known | self._loads([node.condition], scope)
        scope = Scope(scope.lanes, scope.weight, scope.loops, known)
        if tir.has_load(node.condition):
            taken, other = scope, scope
        else:
            mask = np.asarray(np.broadcast_to(self.value(node.condition, scope), scope.weight.shape), bool)
            taken, other = scope.kept(mask), scope.kept(~mask)
        self.statement(node.then_case, taken)
        if node.else_case is not None:
            self.statement(node.else_case, other)

    def _loads(self, expressions: list[Any], scope: Scope) -> frozenset[str]:
        """Count the loads in one statement, equal ones once; returns their texts."""
        seen = set(scope.known)

        def visit(node: Any, lanes: int = 1) -> None:
            kind = type(node).__name__
            if kind == "Call" and "vload" in str(node.args[0]) and node.args:
                lanes = tir.lanes(node)
            if kind == "TensorLoad":
                lanes = max(lanes, tir.lanes(node))
                text = f"{tir.key(node.source)} {list(node.indices)}"
                if text not in seen:
                    seen.add(text)
                    self._access("load", node.source, node.indices, lanes, scope)
            for child in tir.children(node):
                visit(child, lanes)

        for expression in expressions:
            visit(expression)
        return frozenset(seen)

    def _access(self, kind: str, buffer: Any, indices: Any, lanes: int, scope: Scope) -> None:
        touched = self.touched.get(tir.key(buffer))
        if touched is None:
            return  # local to the kernel
        used = set().union(*(tir.variables(i, self.bound) for i in indices))
        held = self._held(used, scope, tir.key(buffer) in self.stored) if kind == "load" else set()
        times = int(np.prod([e for v, e, _ in scope.loops if e and v not in held], dtype=np.int64))
        vector = next((v for v, _, loop in reversed(scope.loops) if loop == _VECTORIZED and v in used), None)
        count = iterations(scope, held) * times * lanes
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

    def _held(self, used: set[int], scope: Scope, stored: bool) -> set[int]:
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

    def _positions(self, index: Any, scope: Scope) -> Ints | int:
        """The different values of an index; where it depends on data, how many there may be."""
        used = tir.variables(index, self.bound)
        free = [v for v in used if v not in scope.lanes and v not in self.scalars]
        lanes = collapsed(Scope({v: scope.lanes[v] for v in used if v in scope.lanes}, scope.weight, ())).lanes
        rows = len(next(iter(lanes.values()))) if lanes else 1
        values = {v: a.reshape(-1, *[1] * len(free)) for v, a in lanes.items()}
        for axis, var in enumerate(free):
            shape = [1] * (1 + len(free))
            shape[1 + axis] = -1
            values[var] = np.arange(self.extents[var], dtype=np.int64).reshape(shape)
        if tir.has_load(index):
            return rows * int(np.prod([self.extents[v] for v in free], dtype=np.int64))
        return np.unique(self._evaluate(index, values))

    def _stride(self, index: Any, var: int) -> int:
        at = {v: np.int64(0) for v in tir.variables(index, self.bound)}
        if tir.has_load(index):
            return 0
        return int(self._evaluate(index, {**at, var: np.int64(1)}) - self._evaluate(index, at))

    def value(self, expression: Any, scope: Scope) -> Any:
        """An expression in every lane."""
        return self._evaluate(expression, scope.lanes)

    def _evaluate(self, node: Any, values: Any) -> Any:
        kind = type(node).__name__
        if kind == "Var":
            key = tir.key(node)
            if key in self.bound:
                return self._evaluate(self.bound[key], values)
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
        raise TypeError(f"a kernel with {kind} in an index, which has no rule in count_traffic")
