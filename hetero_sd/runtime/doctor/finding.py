"""What the doctor found, one thing after the other, as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``note`` (works, but worth knowing) or ``problem``.
        fix: the command or the act that fixes it; "" where there is nothing to fix.
    """

    subject: str
    level: str
    text: str
    fix: str = ""


def any_problem(findings: Iterable[Finding]) -> bool:
    """Return whether one of them is a problem."""
    return any(finding.level == "problem" for finding in findings)


def report_text(findings: list[Finding]) -> str:
    """Return one line a finding, and its fix on a line of its own."""
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]}  {finding.subject:{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':{width + 11}}  -> {finding.fix}")
    return "\n".join(lines)


def report_json(findings: list[Finding]) -> str:
    """Return the findings as a JSON list."""
    return json.dumps([asdict(finding) for finding in findings], indent=1)
