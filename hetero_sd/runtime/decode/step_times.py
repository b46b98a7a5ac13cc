"""What a step of each width is expected to take, from what was seen and what was predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hetero_sd.runtime.decode.seen import RECENT, Seen, stretched

_OPTIMISM = 0.9  # on what was seen long ago
_DISTURBED, _WEIGHT = 0.5, 5.0  # share of the times that other work makes longer, until many were seen; it counts for
_LEAST = 0.4  # because few times are noisy, too
_UNLIKELY = 0.02  # that all were disturbed: then a prediction counts no longer
_ABOVE = (0.0, 1.25, 0.7, 0.4, 0.25, 0.1, 0.0)  # deviations that the least of n times lies above the tenth part of all
_MOST_NOISE = 0.06  # of undisturbed times


def steps_of(
    verify: Mapping[int, Seen],
    before: Mapping[int, float],
    predicted: Mapping[int, float],
    correction: float,
    spread: float,
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds by width, and the same as short as they may be, given how often each was run.

    Args:
        verify: width -> what was seen of it.
        before: width -> plain steps that it took when it was run long ago.
        predicted: width -> seconds; its keys are the widths.
        correction: seen over predicted.
        spread: relative standard deviation of what was seen.
    """
    found, hopeful = dict[int, float](), dict[int, float]()
    plain = verify[1].low if verify.get(1) else 0.0
    total = sum(len(seen.times) for seen in verify.values())
    share = (_DISTURBED * _WEIGHT + sum(seen.disturbed for seen in verify.values() if seen)) / (_WEIGHT + total)
    known = any(len(seen.times) >= RECENT for seen in verify.values())
    noise, wider_s = min(spread, _MOST_NOISE) if known else 0.0, math.inf
    for width in sorted(predicted, reverse=True):
        seen = verify.get(width)
        count = len(seen.times) if seen else 0
        seconds = seen.low * (1 - noise * _ABOVE[min(count, len(_ABOVE) - 1)]) if seen else 0.0
        fast = seconds * (1 - spread / math.sqrt(count)) if count else 0.0
        all_disturbed = max(share, _LEAST) ** count
        if all_disturbed > _UNLIKELY and (width > 1 or not count):
            expected = predicted[width] * correction
            if width > 1 and plain:
                expected = before[width] * plain if width in before else expected
                expected = min(max(expected, plain), width * plain)
                seconds = min(seconds, width * plain)
            expected, seconds = min(expected, wider_s), min(seconds, wider_s)
            seconds = all_disturbed * expected + (1 - all_disturbed) * seconds
            fast = min(seconds, expected, 2 * fast - seen.low) if seen else 0.0
        found[width], hopeful[width] = seconds, max(fast, seconds / 2) if count else 0.0
        if count > 1:
            wider_s = min(wider_s, seconds)
    narrower_s = 0.0
    for width in sorted(predicted):
        if not hopeful[width]:  # no longer than narrower ones, because more rows never take less
            hopeful[width] = found[width] * _OPTIMISM if width in before else narrower_s or found[width]
        elif width in verify:
            narrower_s = max(narrower_s, verify[width].low)
    for width, times in verify.items() if plain else ():
        if width > 1 and times:
            more = stretched(times, verify[1])
            found[width], hopeful[width] = max(found[1], more * found[width]), more * hopeful[width]
    return found, hopeful
