"""Steps that are timed once, before the first prompt, so that the live policy need not trust an uncalibrated plan.

They run on empty caches, whose rows the prompt then overwrites: no text changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.model.protocol import Models, NotFiniteError

BUDGET_S = 0.1  # of all steps together


def time_steps(models: Models, policy: LiveGamma, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time T(1), a draft step, T(2) and T(gamma + 1), in turn with the other widths; return the seconds it took.

    A step that is expected not to fit the rest of :data:`BUDGET_S` is left out: of a large model the first steps of the
    answer itself are the first that are timed.

    Raises:
        NotFiniteError: the draft model computes logits that are not finite.
    """
    times, target, draft, begin = policy.times, models.target, models.draft, clock()
    first = list(dict.fromkeys([1, times.width(1), times.width(policy.likely_gamma())]))
    others = [width for width in times.widths if width not in first]

    def fits(seconds: float) -> bool:
        return clock() - begin + seconds <= BUDGET_S

    for widths in ([1], first, others, *[first] * 6):
        for width in [w for w in widths if w <= target.context]:
            if fits(times.step_s(width)):
                before = clock()
                try:
                    target.submit([0] * width, 0).result()
                except NotFiniteError:
                    return clock() - begin  # the answer says it, with the place in the text
                times.measured(width, clock() - before)
            if width == 1 and draft is not None and fits(times.draft_s(MODEL)):
                before = clock()
                draft.submit([0], 0, last=True).result()
                times.measured_draft(clock() - before)
    return clock() - begin
