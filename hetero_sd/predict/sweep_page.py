"""The page of `hetero-sd sweep --report`: a map for each pair, board and KV cache, and where the verdict changes."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from costmodel.schema.plan import TARGET_ONLY
from hetero_sd.predict.charts import cell_map
from hetero_sd.predict.page import both, render
from hetero_sd.predict.sentences import plural, rate
from hetero_sd.sweep import Rows

_TITLES = ["tokens in the cache", "acceptance", "verdict", "gamma", "tokens/s"]
Row = dict[str, Any]


def sweep_page(rows: Rows) -> str:
    """The page of a sweep's rows."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    several = len({row["kv"] for row in rows}) > 1
    for row in rows:
        cache = f", KV cache in {row['kv']}" if several else ""
        groups.setdefault((row["target"], row["draft"], row["board"], cache), []).append(row)
    maps = [_map(*key, group, i) for i, (key, group) in enumerate(groups.items())]
    return render("sweep.html.jinja", maps=maps, points=f"{len(rows):,}")


def verdict_of(row: Row) -> str:
    """What is to be run at a point, without the draft length."""
    name, stored = row["target"], row["target_format"]
    alone = f"{name if name.endswith(f' {stored}') else f'{name} {stored}'} on {row['target_on']}"
    return f"{alone} alone" if row["mode"] == TARGET_ONLY else f"{alone}, {row['draft']} on {row['draft_on']} drafts"


def verdict_runs(rows: Rows) -> list[list[Row]]:
    """Points of one context in the order of their acceptance, parted where the verdict changes."""
    ordered = sorted(rows, key=lambda r: r["alpha"])
    return [list(run) for _, run in groupby(ordered, key=verdict_of)]


def _map(target: str, draft: str, board: str, cache: str, rows: list[Row], number: int) -> dict[str, Any]:
    title = f"{target} with {draft} on {board}{cache}" if draft else f"{target} on {board}{cache}"
    problems = list(dict.fromkeys(row["problem"] for row in rows if row["problem"]))
    found = {(row["context"], row["alpha"]): row for row in rows if not row["problem"]}
    if not found:
        return {"title": title, "chart": None, "problems": problems}
    alphas, contexts = (sorted({key[i] for key in found}) for i in (1, 0))
    runs = [(c, run) for c in contexts for run in verdict_runs([r for r in found.values() if r["context"] == c])]
    chart = both(
        cell_map,
        f"gain over acceptance and tokens in the cache, {number}",
        ("acceptance", [f"{a:g}" for a in alphas]),
        ("tokens in the cache", [str(c) for c in contexts]),
        {(contexts.index(c), alphas.index(a)): (row["against_best"], verdict_of(row)) for (c, a), row in found.items()},
    )
    return {
        "title": title,
        "verdict": _sentence([run for _, run in runs]),
        "chart": chart,
        "titles": _TITLES,
        "rows": [{"style": "", "cells": _cells(context, run)} for context, run in runs],
        "problems": problems,
    }


def _sentence(runs: list[list[Row]]) -> str:
    """The verdicts in one sentence."""
    names = list(dict.fromkeys(verdict_of(run[0]) for run in runs))
    if len(names) == 1:
        return f"The same everywhere: {names[0]}."
    drafting = [r["alpha"] for run in runs for r in run if r["mode"] != TARGET_ONLY and r["against_best"] > 1]
    if not drafting:
        return f"{plural(len(names), 'verdict')}, none of which gains by drafting."
    return (
        f"{plural(len(names), 'verdict')}; drafting pays from an acceptance of {min(drafting):g} on, at the earliest."
    )


def _cells(context: int, run: list[Row]) -> list[str]:
    gammas = sorted({row["gamma"] for row in run})
    speeds = [row["tokens_per_s"] for row in run]
    return [
        str(context),
        _range([f"{run[0]['alpha']:g}", f"{run[-1]['alpha']:g}"]),
        verdict_of(run[0]),
        "-" if gammas == [0] else _range([str(gammas[0]), str(gammas[-1])]),
        _range([rate(min(speeds)), rate(max(speeds))]),
    ]


def _range(ends: list[str]) -> str:
    return " to ".join(dict.fromkeys(ends))
