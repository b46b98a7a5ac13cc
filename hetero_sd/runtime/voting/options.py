"""The options of `run.py --votes`."""

from __future__ import annotations

import re
from typing import Any

from hetero_sd.runtime.parser import whole
from hetero_sd.runtime.request import RunRequest
from targets.errors import UserError

CHAINS, REFINE = "chains", "refine"
WAYS = CHAINS, REFINE
MOST_VOTES = 64


def add_vote_options(group: Any) -> None:
    """Add them to a group of argparse's."""
    group.add_argument(
        "--votes",
        metavar="N",
        type=whole(2, MOST_VOTES),
        help="make N answers to each prompt and print what they say, each counted by the inverse of its entropy; what "
        "that costs is said first; with a bundle of --slots they are made side by side",
    )
    group.add_argument(
        "--votes-by",
        choices=WAYS,
        help="with --votes: chains (default), answers apart from each other, or refine: each has those before it in "
        "view and is asked to find their errors",
    )
    group.add_argument(
        "--answer-pattern",
        metavar="REGEX",
        help="with --votes: what an answer says is the last match of this regular expression, its first group where "
        "it has one (default: the last line)",
    )


def check_vote_options(options: RunRequest) -> None:
    """Refuse what is wrong in combination.

    Raises:
        UserError: in one line.
    """
    if options.votes is None:
        for name, given in (("votes-by", options.votes_by), ("answer-pattern", options.answer_pattern)):
            if given is not None:
                raise UserError(f"--{name} belongs to --votes: leave it out, or give that")
        return
    for name, holds in (
        ("serve", options.serve),
        ("save-logits", options.save_logits is not None),
        ("trace", options.trace is not None),
        ("stats", options.stats),
        ("save-state", options.save_state is not None),
    ):
        if holds:
            raise UserError(f"--{name} contradicts --votes: leave one out")
    if options.prompt is None and options.prompts is None:
        raise UserError("--votes needs a prompt: give --prompt or --prompts")
    if options.temperature == 0.0 and options.votes_by != REFINE:
        raise UserError("--votes needs --temperature, for example 0.7: the best tokens are the same in every answer")
    if options.answer_pattern is not None:
        pattern_of(options.answer_pattern)


def pattern_of(text: str) -> re.Pattern[str]:
    """The regular expression.

    Raises:
        UserError: it is none.
    """
    try:
        return re.compile(text, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--answer-pattern {text!r} is no regular expression: {error}") from None
