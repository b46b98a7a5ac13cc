"""Beginning overlapped speculation: CPUs for each model, and the drafter's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.target_side import Overlap
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.model.side_by_side import side_by_side


@contextmanager
def overlapping(
    models: Models, plan: Plan | None, usable: Sequence[int], gamma: int, least: int, note: Callable[[str], None]
) -> Iterator[Overlap]:
    """Start the drafter's thread for a session, the models on CPUs of their own; it ends with the context.

    Args:
        models: both, as they were loaded.
        plan: of the bundle.
        usable: CPUs that this process may use.
        gamma: drafts that are verified at a time, at most.
        least: drafts that the target waits for.
        note: told, in one line, where both models run on the same CPUs.
    """
    with side_by_side(models, plan, usable, note) as sides, DraftThread(sides.draft_cpus) as thread:
        yield Overlap(thread, gamma, least, sides=sides)
