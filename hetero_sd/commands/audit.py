"""`hetero-sd audit`: is the text of a bundle that speculates the target's own?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hetero_sd.commands.parser import Subparsers, subcommand

if TYPE_CHECKING:
    from hetero_sd.audit import AuditResult

EXAMPLE = """\
example:
  hetero-sd audit bundle --prompts prompts.txt

Exit code 1: an answer is not the same.
"""
_SHOWN = 3  # differences of each way


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "audit", "compare speculative answers with the target's own", EXAMPLE)
    p.add_argument("bundle", metavar="DIR", type=Path, help="the bundle")
    p.add_argument(
        "--prompts", metavar="FILE", type=Path, help="texts, one a line, or JSON lines (default: random tokens)"
    )
    p.add_argument("--max-new-tokens", metavar="N", type=int, default=64, help="of each answer (default 64)")
    p.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(options: argparse.Namespace) -> int:
    """Run both ways, and print the comparison; 1 where an answer differs."""
    from hetero_sd.audit import AuditRequest, audit_bundle

    result = audit_bundle(AuditRequest(options.bundle, options.prompts, options.max_new_tokens))
    print(audit_json(result) if options.json else audit_text(result))
    return 0 if result.passed else 1


def audit_text(result: AuditResult) -> str:
    """The verdict, and a line for each way."""
    lines = [f"{'IDENTICAL' if result.passed else 'DIFFERENT'}: speculative answers beside the target's own"]
    for way in result.ways:
        gamma = "live" if way.gamma is None else way.gamma
        beside = "" if way.least is None else f", overlapped, waiting for {way.least}"
        lines.append(
            f"  {way.drafter:12} gamma {gamma:>4}{beside}: {way.identical} of {way.prompts} answers identical, "
            f"{way.tokens} tokens, {way.accepted} of {way.drafted} drafted accepted"
        )
        for d in way.differences[:_SHOWN]:
            margin = "" if d.margin is None else f", which the target prefers by {d.margin:.3g}"
            ids = ["the end" if token is None else str(token) for token in (d.speculative, d.alone)]
            lines.append(f"    prompt {d.prompt + 1}, token {d.token + 1}: {ids[0]} in place of {ids[1]}{margin}")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def audit_json(result: AuditResult) -> str:
    """The same as one JSON object."""
    return json.dumps({"passed": result.passed, **asdict(result)}, indent=1)
