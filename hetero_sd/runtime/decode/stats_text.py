"""What a run measured, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetero_sd.runtime.decode.predicted_run import BY_PLAN
from hetero_sd.runtime.decode.stats import HAND_OVER_S

_MOST_SWITCHES = 12  # that --stats prints


def stats_table(stats: Mapping[str, Any]) -> str:
    """Return the text for people of what :func:`stats_json` gives."""
    lines = [f"{'':24}{'measured':>12}{'predicted':>12}{'deviation':>12}"]
    for row in stats["predicted_vs_measured"]:
        if row["measured"] is None and row["predicted"] is None:
            continue
        deviation = "-" if row["deviation"] is None else f"{100 * row['deviation']:+.1f} %"
        label = f"{row['term']} ({row['unit']})" if row["unit"] else row["term"]
        by = "" if row["predicted"] is None or row["predicted_by"] == BY_PLAN else f"  by {row['predicted_by']}"
        lines.append(f"{label:24}{_number(row['measured']):>12}{_number(row['predicted']):>12}{deviation:>12}{by}")
    kept = f" ({stats['kept_tokens']} of them read before)" if stats["kept_tokens"] else ""
    lines.append(
        f"{stats['prompt_tokens']} prompt tokens{kept}, {stats['new_tokens']} new tokens, {stats['rounds']} rounds, "
        f"{stats['drafted']} drafted, {stats['accepted']} accepted"
    )
    predicted = stats["predicted_time_shares"]
    if used := ", ".join(
        f"{name} {_percent(share)} %" + (f" ({_percent(predicted[name])} %)" if name in predicted else "")
        for name, share in stats["time_shares"].items()
        if share
    ):
        lines.append(f"of the time{' (predicted)' if predicted else ''}: {used}")
    if (hand_overs := stats["hand_overs"]) is not None:
        lines.append(
            f"hand-overs between the threads: {hand_overs['short']} of {hand_overs['count']} within "
            f"{1e6 * HAND_OVER_S:.0f} us, what they may take"
        )
    if len(stats["gammas"]) > 1:
        used = ", ".join(f"{gamma} in {rounds}" for gamma, rounds in stats["gammas"].items())
        lines.append(f"tokens drafted in a round: {used} rounds")
    if positions := stats["acceptance_by_position"]:
        lines.append(f"accepted by position: {', '.join(f'{n} of {judged}' for n, judged in positions)}")
    if len(stats["sources"]) > 1:
        used = ", ".join(f"{name} {n['accepted']} of {n['drafted']}" for name, n in stats["sources"].items())
        lines.append(f"accepted by source: {used}")
    if stats["stopping"] is not None:
        lines += stopping_text(stats["stopping"])
    lines += [switch_text(switch) for switch in stats["switches"][:_MOST_SWITCHES]]
    if len(stats["switches"]) > _MOST_SWITCHES:
        lines.append(f"... and {len(stats['switches']) - _MOST_SWITCHES} more switches (--json has all)")
    if stats.get("threads"):
        lines.append(threads_text(stats["threads"]))
    return "\n".join(lines)


def stopping_text(stopping: Mapping[str, Any]) -> list[str]:
    """Return the lines for people of drafts that may end by the drafter's confidence."""
    table = ", ".join(
        f"{entry['confidence'][0]:g}-{entry['confidence'][1]:g} {entry['accepted']} of {entry['judged']}"
        for entry in stopping["calibration"]
    )
    return [
        f"stopped by confidence: {stopping['stopped']} of {stopping['rounds']} drafts, {stopping['drafted']} tokens "
        f"in them; telling it took {1e6 * stopping['confidence_s']:.3g} us a token",
        f"accepted by confidence: {table}",
    ]


def switch_text(switch: Mapping[str, Any]) -> str:
    """Return the line for people of a switch: what was decided, and the numbers that decided it."""
    return (
        f"after {switch['tokens']} tokens: {switch['source']} {switch['before']} -> {switch['after']} drafted, "
        f"{switch['why']} (acceptance {switch['acceptance']:.2f}, plain step {1e3 * switch['plain_s']:.3g} ms, "
        f"round {1e3 * switch['round_s']:.3g} ms, {switch['speedup']:.2f}x)"
    )


def threads_text(facts: Mapping[str, Any]) -> str:
    """Return the line for people of a model's ``thread_facts``."""
    if facts["pool"] == "tvm":
        return f"threads: {facts['threads']} of TVM's pool: {facts['why_tvms']}"
    share = "" if facts["worker_share"] is None else f", workers ran {100 * facts['worker_share']:.0f} % of the tasks"
    return f"threads: {facts['threads']} of our pool{share}"


def _percent(share: float) -> str:
    """Two digits of a share below a tenth, whole percent of others: 100 is not 1e+02."""
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
