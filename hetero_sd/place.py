"""`--place RULE`: which processor each model runs on, as the user states it, with the reason for the plan."""

from __future__ import annotations

from targets.device import Board
from targets.errors import UserError

PROCESSORS = ("cpu", "gpu")
DEFAULT_PLACE = "cpu"
RULES = "cpu | gpu | target=cpu,draft=gpu | target=gpu,draft=cpu"


def place_models(rule: str, board: Board, has_draft: bool) -> dict[str, str]:
    """Processor of each model, by role; a role the rule does not name stays on the CPU.

    Raises:
        UserError: the rule cannot be read, names a model that is not there, or a GPU that the board lacks.
    """
    roles = ["target", "draft"] if has_draft else ["target"]
    if rule in PROCESSORS:
        placed = dict.fromkeys(roles, rule)
    else:
        placed = dict.fromkeys(roles, "cpu")
        stated = [part.strip().partition("=")[::2] for part in rule.split(",")]
        for role, processor in stated:
            if role not in ("target", "draft") or processor not in PROCESSORS:
                raise UserError(f"--place {rule}: {role or rule!r} cannot be read; rules are {RULES}")
            if role not in roles:
                raise UserError(f"--place {rule}: there is no draft model to place; give --draft")
        if len({role for role, _ in stated}) < len(stated):
            raise UserError(f"--place {rule}: a model is placed twice")
        placed.update(stated)
    if "gpu" in placed.values() and board.gpu is None:
        raise UserError(f"--place {rule}: board {board.name} has no GPU; leave out --place or take another board")
    return placed


def placement_reasons(placed: dict[str, str], rule: str | None, board: Board) -> list[str]:
    """One sentence for each model."""
    if rule is None:
        return [f"{role} on the CPU: the default; --place puts it on the GPU" for role in placed]
    names = {"cpu": "the CPU", "gpu": f"{board.gpu.model} by OpenCL" if board.gpu else ""}
    return [f"{role} on {names[processor]}: as given with --place {rule}" for role, processor in placed.items()]
