"""AltUp's residual streams, stacked along a first axis -> rows with the streams beside one another.

    Concat(Unsqueeze(x_0), ...) [S, batch, new, h]      ->  Concat(x_0, ...){axis -1} [batch, new, S * h]
    Transpose, MatMul with c, Transpose, Add            ->  hetero_sd::AltUpPredict(x, c)
    Sub, Tile, Mul with 1 + c, Add                      ->  hetero_sd::AltUpCorrect(x, a, c)
    Slice, Add, ScatterND                               ->  hetero_sd::AltUpAdd(x, a)
    Gather(stack, i){axis 0}                            ->  Split
    ReduceMean(stack){axis 0}                           ->  Add, ..., Mul by 1 / S

A stack is followed from where it is put together. Of each later value of its shape, what lies between it and the stack
before, and the rows that it reads, is run on numbers and must be one of the three functions; how it is spelled does
not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    constant,
    describe,
    emit,
    replace_uses,
    scalar,
)
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.rewrite.altup_guesses import FUNCTIONS, guesses
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.onnx.rewrite.take_columns import take_columns
from passes.onnx.shapes import known_shapes, points

_BOUND = 3e-6  # of the largest number
_MOST_STREAMS = 16
NO_STACK = (0, 0)


def fuse_altup(imp: Importing) -> PassLog:
    """Rewrite every stack that is put together from rows; what is not proven stays, with the reason in the log."""
    starts = [node for node in imp.graph if _rows_of(node)]
    if not starts:
        return PassLog("fuse_altup", 0)
    streams, nodes = _Streams(imp), list(imp.graph)
    for visit in (streams.follow, streams.leave):  # what is taken from a stack is asked for while it is followed
        for node in nodes:
            try:
                visit(node)
            except Declined as reason:
                streams.notes.append(f"{describe(node)}: {reason}")
    return PassLog("fuse_altup", streams.matched, tuple(streams.notes))


def _rows_of(node: Any) -> list[Any]:
    """The rows that a node stacks along a new first axis; empty if it does nothing of the kind."""
    if node.op_type != "Concat" or attribute(node, "axis") != 0 or not 2 <= len(node.inputs) <= _MOST_STREAMS:
        return []
    makers = [value.producer() for value in node.inputs]
    if any(m is None or m.op_type != "Unsqueeze" or _numbers(m.inputs[1]) != [0] for m in makers):
        return []
    rows = [maker.inputs[0] for maker in makers]
    return rows if all(row.const_value is None and row.producer() is not None for row in rows) else []


def _numbers(value: Any) -> list[int] | None:
    found = constant(value)
    return None if found is None else [int(x) for x in found.reshape(-1)]


class _Streams:
    """The stacks so far, and what they are as rows."""

    def __init__(self, imp: Importing) -> None:
        self.imp, self.matched, self.notes = imp, 0, list[str]()
        self.at = points(imp)
        self.known = [known_shapes(imp, at) for at in self.at]
        self.parts = set[Any]()  # stacks that are put together from rows
        self.rows: dict[Any, Any] = {}  # a stack -> [batch, new, S * h]

    def follow(self, node: Any) -> None:
        """Follow the stacks through a node: it puts one together, or makes one of another."""
        y = node.outputs[0]
        if (found := _rows_of(node)) and all(self._is_row(row) for row in found):
            self.parts.add(y)
        elif self._shape(y) != NO_STACK and self._shape(y) in {self._shape(v) for v in (*self.parts, *self.rows)}:
            self._step(node, y)

    def leave(self, node: Any) -> None:
        """Read a row from the rows that a stack became, or the mean of a stack's rows."""
        if node.op_type == "ReduceMean" and node.inputs[0] in self.parts:
            self._mean(node, _rows_of(node.inputs[0].producer()))
        elif node.op_type == "Gather" and attribute(node, "axis", 0) == 0 and self._is_stack(node.inputs[0]):
            index = scalar(node.inputs[1])
            if index is not None:
                self._take(node, int(index))

    def _is_stack(self, value: Any) -> bool:
        return value in self.parts or value in self.rows

    def _shape(self, value: Any) -> tuple[int, int]:
        """(streams, width) of a stack [S, batch, new, width]; NO_STACK of another value."""
        found = set()
        for known, at in zip(self.known, self.at, strict=True):
            shape = known[value].shape if value in known else ()
            if len(shape) != 4 or shape[1:3] != (at.batch, at.new):
                return NO_STACK
            found.add((shape[0], shape[3]))
        return found.pop() if len(found) == 1 else NO_STACK

    def _width(self, value: Any) -> int:
        """Numbers of a row [batch, new, width]; 0 of another value."""
        found = set()
        for known, at in zip(self.known, self.at, strict=True):
            shape = known[value].shape if value in known else ()
            if len(shape) != 3 or shape[:2] != (at.batch, at.new):
                return 0
            found.add(shape[2])
        return found.pop() if len(found) == 1 else 0

    def _is_row(self, value: Any) -> bool:
        return self._width(value) > 0

    def row(self, stack: Any) -> Any:
        """A stack as rows; the first ones are joined where they are asked for."""
        if stack not in self.rows:
            joined, *others = _rows_of(stack.producer())
            for i, other in enumerate(others):
                name = f"{stack.name}.joined.{i}"
                joined = emit(stack.producer(), "Concat", [joined, other], {"axis": -1}, name=name, outputs=[name])
                joined = joined.outputs[0]
                joined.type = other.type
            self.rows[stack] = joined
        return self.rows[stack]

    def _take(self, node: Any, index: int) -> None:
        stack = node.inputs[0]
        count, width = self._shape(stack)
        if not -count <= index < count:
            raise Declined(f"it takes stream {index} of {count}")
        if stack in self.parts:
            replace_uses(node.outputs[0], _rows_of(stack.producer())[index])
        else:
            replace_uses(
                node.outputs[0],
                take_columns(self.imp, node, self.row(stack), index % count * width, width, count * width),
            )
        self.matched += 1

    def _mean(self, node: Any, rows: list[Any]) -> None:
        if _numbers(node.inputs[1]) != [0] or attribute(node, "keepdims", 1):
            return
        total, *others = rows
        for i, other in enumerate(others):
            name = f"{node.outputs[0].name}.sum.{i}"
            total = emit(node, "Add", [total, other], name=name, outputs=[name]).outputs[0]
            total.type = other.type
        name = f"{node.outputs[0].name}.mean"
        share = add_initializer(self.imp.graph, f"{name}.share", np.array(1 / len(rows), np.float32))
        replace_uses(node.outputs[0], emit(node, "Mul", [total, share], name=name, outputs=[name]).outputs[0])
        self.matched += 1

    def _step(self, node: Any, y: Any) -> None:
        """Prove what makes a stack of another one, and write it; do nothing where it is a value in the middle."""
        stacks, rows = self._cut(node)
        if len(stacks) != 1 or self._shape(stacks[0]) != self._shape(y):
            return
        (stack,), (count, width) = stacks, self._shape(y)
        for name, read, attributes, compute in guesses(stack, [(row, self._width(row)) for row in rows], count, width):
            if self._is(stack, read, y, compute):
                domain, inputs = {"domain": DOMAIN}, [self.row(stack), *read]
                if not name:
                    self.rows[y] = self.row(stack)
                    return
                self.imp.model.functions.setdefault((DOMAIN, name, ""), FUNCTIONS[name]())
                self.imp.graph.opset_imports[DOMAIN] = 1
                label = f"{y.name}.rows"
                self.rows[y] = emit(node, name, inputs, attributes, **domain, name=label, outputs=[label]).outputs[0]
                self.rows[y].type = y.type
                self.matched += 1
                return

    def _cut(self, node: Any) -> tuple[list[Any], list[Any]]:
        """The stacks and the rows that a node is computed from, going back no further than to the first of them."""
        todo, stacks, rows = list(node.inputs), list[Any](), list[Any]()
        seen = set(todo)
        while todo:
            value = todo.pop(0)
            if value is None or value.const_value is not None:
                continue
            if self._is_stack(value):
                stacks.append(value)
            elif self._is_row(value):
                rows.append(value)
            elif value.producer() is not None:
                fresh = [v for v in value.producer().inputs if v not in seen]
                seen.update(fresh)
                todo += fresh
        return stacks, rows

    def _is(self, stack: Any, read: list[Any], y: Any, compute: Callable[..., np.ndarray]) -> bool:
        """Whether a stack is what `compute` makes of another one's rows and of `read`, at both points."""
        piece, rng = Piece(self.imp, [stack, *read], y), np.random.default_rng(0)
        for known, at in zip(self.known, self.at, strict=True):
            cuts = {v: rng.standard_normal(known[v].shape).astype(np.float32) for v in (stack, *read)}
            made = piece.run(at, cuts)
            if made.shape != known[y].shape:
                return False
            expected = compute(_as_rows(cuts[stack]), *(cuts[v] for v in read))
            if not np.abs(_as_rows(made) - expected).max() <= _BOUND * np.abs(expected).max():
                return False
        return True


def _as_rows(stack: np.ndarray) -> np.ndarray:
    """[S, batch, new, h] -> [batch, new, S * h]."""
    return np.moveaxis(stack, 0, 2).reshape(*stack.shape[1:3], -1)
