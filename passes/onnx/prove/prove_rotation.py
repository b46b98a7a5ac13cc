"""The rotation of one attention: from the projections of query and key to what is multiplied and cached."""

from __future__ import annotations

from typing import Any

from passes.onnx.pass_context import Declined, Importing
from passes.onnx.prove.prove_rope import Rope, Rotation, check_rope, check_unrotated, prove_rope
from passes.onnx.shapes import Known, Point

_AFTER = ("bsd", "bhsd", "nsd")


def layouts(
    imp: Importing, source: Any, target: Any, known: dict[Any, Known], at: Point, after: tuple[str, ...] = _AFTER
) -> tuple[str, str]:
    """How the source and the target of a rotation lie; `after`: the ways in which the target may."""
    return layout(imp, source, known, at, ("bsd", "bshd")), layout(imp, target, known, at, after)


def layout(imp: Importing, value: Any, known: dict[Any, Known], at: Point, allowed: tuple[str, ...]) -> str:
    """Which of the allowed ways a value lies: see `Rotation`."""
    shape, head_dim = known[value].shape, imp.facts.head_dim
    heads = known[value].size // (at.batch * at.new * head_dim)
    shapes = {
        "bsd": (at.batch, at.new, heads * head_dim),
        "bshd": (at.batch, at.new, heads, head_dim),
        "bhsd": (at.batch, heads, at.new, head_dim),
        "nsd": (at.batch * heads, at.new, head_dim),
    }
    for name in allowed:
        if shape == shapes[name]:
            return name
    raise Declined(f"{value.name} has the shape {shape}, none of {', '.join(str(shapes[a]) for a in allowed)}")


def prove_rotation(
    imp: Importing,
    sources: list[Any],
    targets: list[Any],
    known: dict[Any, Known],
    at: Point,
    heads: int,
    ropes: list[Rope | None],
    after: tuple[str, ...] = _AFTER,
) -> tuple[Rope | None, float]:
    """(the rope of query and key, the factor on the query).

    `sources` and `targets` are those of query and key, the targets lying in one of the ways `after`; `ropes` has the
    ropes of earlier layers and gets new ones.

    Raises:
        Declined: no rotation by position, or not the same of query and key.
    """
    query = Rotation(imp, sources[0], targets[0], heads, layouts(imp, sources[0], targets[0], known, at, after))
    kv_heads = imp.facts.kv_heads
    key = Rotation(imp, sources[1], targets[1], kv_heads, layouts(imp, sources[1], targets[1], known, at, after))
    for rope in ropes:
        try:
            if rope is not None and check_rope(key, rope) == 1.0:
                return rope, check_rope(query, rope)
        except Declined:
            continue
    rope = prove_rope(key)
    if rope is None:
        if check_unrotated(key) != 1.0:
            raise Declined("the keys are scaled before they enter the cache")
        return None, check_unrotated(query)
    factor = check_rope(query, rope)
    ropes.append(rope)
    return rope, factor
