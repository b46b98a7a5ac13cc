"""What a prediction is asked about several requests at a time: refusals of what no bundle does."""

from __future__ import annotations

from costmodel.schema.model import MOST_SLOTS
from targets.errors import UserError

DEFAULT_BRANCH = 0.2  # of n-grams 0.20 to 0.30 was measured (docs/serving.md): they rarely have a branch that pays


def check_slots(requests: int, slots: int | None) -> None:
    """Refuse numbers that no bundle has.

    Raises:
        UserError: a number is out of range.
    """
    if not 1 <= requests <= MOST_SLOTS:
        raise UserError(f"--requests {requests}: must be 1 to {MOST_SLOTS} at a time")
    if slots is not None and not requests <= slots <= MOST_SLOTS:
        raise UserError(f"--slots {slots}: must be {requests}, the requests, to {MOST_SLOTS}")


def check_branch(branch: float | None, may_branch: bool) -> None:
    """Refuse branches where there are no drafts in slots.

    Raises:
        UserError: there are none, or it is no probability.
    """
    if branch is None:
        return
    if not may_branch:
        raise UserError("--branch is of drafts in a free slot: give --slots, and --ngram-alpha or --draft")
    if not 0 <= branch <= 1:
        raise UserError(f"--branch {branch:g}: must be 0 to 1")


def check_shared_prefix(shared: int | None, requests: int, prompt_tokens: int) -> None:
    """Refuse a beginning in common that prompts cannot have.

    Raises:
        UserError: there is one prompt, or they are shorter.
    """
    if shared is None:
        return
    if requests == 1:
        raise UserError("--shared-prefix is what several prompts begin with: give --requests, too")
    if not 1 <= shared <= prompt_tokens:
        raise UserError(f"--shared-prefix {shared}: must be 1 to {prompt_tokens}, the tokens of a prompt")
