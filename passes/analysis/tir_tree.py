"""Reading TIR: children, variables, loops and stores of an expression or a statement, by the names of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BINARY = ("Add", "Sub", "Mul", "FloorDiv", "LT", "LE", "GT", "GE", "EQ", "NE", "FloorMod", "Min", "Max", "And", "Or")
_CHILDREN = {
    **dict.fromkeys((*_BINARY, "Div", "Mod", "LShift", "RShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"), ("a", "b")),
    **{"Not": ("a",), "Cast": ("value",), "Broadcast": ("value",), "Ramp": ("base", "stride"), "Call": ("args",)},
    "Shuffle": ("vectors",),
    **{"Select": ("condition", "true_value", "false_value"), "TensorLoad": ("indices",)},
}


def key(var: Any) -> int:
    """Variables are the same if they are the same object in TVM."""
    return int(var.__chandle__())


def bits(dtype: Any) -> int:
    """Bits of one value of a type."""
    import tvm

    return int(tvm.DataType(str(dtype)).bits)


def lanes(node: Any) -> int:
    """Values of an expression: more than 1 for a vector."""
    import tvm

    return int(tvm.DataType(str(node.ty.dtype)).lanes)


def children(node: Any) -> list[Any]:
    """Operands of an expression."""
    found: list[Any] = []
    for name in _CHILDREN.get(type(node).__name__, ()):
        child = getattr(node, name)
        found += list(child) if name in ("indices", "args", "vectors") else [child]
    return found


def is_prefetch(node: Any) -> bool:
    """Whether a call only asks for memory ahead: the one LLVM intrinsic that our kernels call for its effect."""
    return type(node).__name__ == "Call" and str(getattr(node.op, "name", "")) == "tirx.call_llvm_intrin"


def variables(node: Any, bound: Mapping[int, Any]) -> set[int]:
    """Keys of the variables in an expression; for one that is bound, those of its value."""
    if type(node).__name__ == "Var":
        return variables(bound[key(node)], bound) if key(node) in bound else {key(node)}
    return set().union(*(variables(child, bound) for child in children(node)))


def has_load(node: Any) -> bool:
    """Whether an expression reads a buffer."""
    return type(node).__name__ == "TensorLoad" or any(has_load(child) for child in children(node))


def parts(node: Any) -> list[Any]:
    """Statements directly inside one."""
    kind = type(node).__name__
    if kind == "SeqStmt":
        return list(node.seq)
    if kind == "For":
        return [node.body]
    if kind == "SBlockRealize":
        return [node.block.body]
    if kind == "IfThenElse":
        return [node.then_case] + ([node.else_case] if node.else_case is not None else [])
    return []


def bound_integers(body: Any) -> dict[int, Any]:
    """Values of the integers that a statement names before their uses and that read no buffer, by variable."""
    if type(body).__name__ == "Bind":
        whole = str(body.value.ty.dtype).startswith("int") and not has_load(body.value)
        return {key(body.var): body.value} if whole else {}
    return {var: value for part in parts(body) for var, value in bound_integers(part).items()}


def loops(node: Any) -> list[Any]:
    """Every loop of a statement, an outer one before its inner ones."""
    inner = [loop for part in parts(node) for loop in loops(part)]
    return [node, *inner] if type(node).__name__ == "For" else inner


def stored(body: Any) -> set[int]:
    """Buffers that are stored to."""
    if type(body).__name__ == "BufferStore":
        return {key(body.buffer)}
    return set().union(*(stored(part) for part in parts(body)))


def control_variables(body: Any, bound: Mapping[int, Any]) -> set[int]:
    """Variables that decide how often something runs: those of extents, guards and conditions, and what binds them."""
    control: set[int] = set()
    bindings: dict[int, set[int]] = {}

    def visit(node: Any) -> None:
        kind = type(node).__name__
        if kind == "For":
            control.update(variables(node.extent, bound))
        elif kind == "IfThenElse" and not has_load(node.condition):
            control.update(variables(node.condition, bound))
        elif kind == "SBlockRealize":
            control.update(variables(node.predicate, bound))
            for iter_var, value in zip(node.block.iter_vars, node.iter_values, strict=True):
                bindings[key(iter_var.var)] = variables(value, bound)
        for part in parts(node):
            visit(part)

    visit(body)
    while True:
        more = set().union(*(bindings[v] for v in control if v in bindings)) - control
        if not more:
            return control
        control |= more
