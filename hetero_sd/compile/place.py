"""`--place RULE`: where each model runs, read from what the user states, and said again for people."""

from __future__ import annotations

from costmodel.place import Place
from costmodel.question import EXIT_FOLLOWS, Variant
from targets.backend import HOST, backend
from targets.device import Board
from targets.errors import UserError

RULES = (
    "[target=|draft=]WHERE, comma between; WHERE is cpu or gpu for the whole model, or for a part of it with the rest "
    "on the other: gpu:FIRST-LAST or cpu:FIRST-LAST (layers, `embedding`, `head`; or one of them), gpu:ffn, cpu:ffn, "
    "gpu:attention or cpu:attention"
)


def place_models(rule: str, board: Board, has_draft: bool, early_exit: bool = False) -> dict[str, Place]:
    """Place of each model, by role; a role the rule does not name stays on the CPU.

    An `early_exit` has no place of its own: it runs where the target's layers do, and is left out.

    Raises:
        UserError: the rule cannot be read, names a model that is not there, or a GPU that the board lacks.
    """
    roles = ["target", "draft"] if has_draft and not early_exit else ["target"]
    stated: dict[str, Place] = {}
    for part in rule.split(","):
        role, _, where = part.strip().rpartition("=")
        try:
            place = Place.parse(where)
        except ValueError:
            raise UserError(f"--place {rule}: {where!r} cannot be read; a rule is {RULES}") from None
        if role not in ("", "target", "draft"):
            raise UserError(f"--place {rule}: there is no model {role!r}; a rule is {RULES}")
        if role == "draft" and early_exit:
            raise UserError(f"--place {rule}: {EXIT_FOLLOWS}")
        if role == "draft" and not has_draft:
            raise UserError(f"--place {rule}: there is no draft model to place; give --draft")
        for name in [role] if role else roles:
            if name in stated:
                raise UserError(f"--place {rule}: the {name} is placed twice")
            stated[name] = place
    placed = {role: stated.get(role, Place(HOST)) for role in roles}
    for place in placed.values():
        refuse_missing(rule, place, board)
    return placed


def place_rule(variant: Variant) -> str:
    """The rule that asks for where a variant's models run."""
    stated = [f"target={variant.target_placement.place(variant.target).text}"]
    if variant.draft is not None and variant.draft_placement is not None and variant.draft.whole is None:
        stated.append(f"draft={variant.draft_placement.place(variant.draft).text}")
    return ",".join(stated)


def refuse_missing(rule: str, place: Place, board: Board) -> None:
    """Refuse a place on a processor that a board lacks.

    Raises:
        UserError: it lacks one.
    """
    for missing in (backend(name).missing_on(board) for name in place.processors):
        if missing:
            raise UserError(f"--place {rule}: {missing}; leave out --place or take another board")


def place_text(place: Place, gpu: str, cpu: str = "the CPU") -> str:
    """For people: "the CPU", "Mali-G310 by OpenCL", "Mali-G310 by OpenCL (4 to head), the rest on the CPU"."""
    names = {name: cpu if name == HOST else backend(name).title(gpu) for name in (place.processor, place.rest)}
    if place.whole:
        return names[place.processor]
    named = place.first if place.first == place.last else f"{place.first} to {place.last}"
    part = f"{place.kind} of every layer" if place.kind else named
    return f"{names[place.processor]} ({part}), the rest on {names[place.rest]}"
