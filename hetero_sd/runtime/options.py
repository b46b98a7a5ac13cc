"""The options of the on-device command, checked as far as they can be without the bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.schema.plan import MOST_THREADS, OVERLAPPED
from costmodel.speculative import MOST_GAMMA
from hetero_sd.runtime.conversation import OLDEST, WHEN_FULL
from hetero_sd.runtime.decode.choose_policy import ALONE, AUTO, DRAFTERS, STOP_DRAFTS
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.load import MODES
from hetero_sd.runtime.parser import Parser, real, share, whole
from hetero_sd.runtime.request import RunRequest
from hetero_sd.runtime.serve.options import add_server_options, check_server_options
from hetero_sd.runtime.text.prompts import prompt_of_text
from hetero_sd.runtime.voting.options import add_vote_options, check_vote_options
from targets.errors import UserError
from targets.files import check_writable

DEFAULT_CALIBRATE_S = 120

_EXAMPLE = """\
example:
  python run.py --prompt "Translate to German: good morning" --max-new-tokens 64 --stats

A file of --prompts holds one text a line, or JSON lines such as {"prompt": "..."}, {"token_ids": [1, 2]} or
{"messages": [{"role": "user", "content": "..."}]}, which may have "tools". Of a conversation that /save wrote,
the last question is answered again.
Without --prompt and --prompts every line typed (or piped in) is a turn of a conversation; without a chat
template, a prompt of its own. The lines /reset, /save FILE, /stats, /help and /quit are commands.
"""


def parse_options(arguments: Sequence[str] | None) -> RunRequest:
    """Return what the options ask for; ``arguments`` None means those of the process.

    Raises:
        UserError: an option is unknown, malformed, out of range, or contradicts another one.
    """
    parser = Parser(
        prog="run.py",
        usage="python run.py [options]",
        description="Generate text with the models of this bundle.",
        epilog=_EXAMPLE,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    source = parser.add_argument_group("prompts").add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="answer this text")
    source.add_argument("--prompts", metavar="FILE", type=Path, help="answer every prompt of a file")
    generation = parser.add_argument_group("generation")
    _add_generation(generation)
    add_vote_options(generation)
    _add_execution(parser.add_argument_group("execution"))
    _add_output(parser.add_argument_group("output"))
    add_server_options(parser.add_argument_group("server"))
    given = vars(parser.parse_all(arguments))
    request = RunRequest(**{**given, "stop": tuple(given["stop"])})
    _check(request)
    return request


def _add_generation(how: Any) -> None:
    """Add what says which tokens are made, to a group of argparse's."""
    how.add_argument(
        "--max-new-tokens", metavar="N", type=whole(1), default=256, help="end after N tokens (default 256)"
    )
    how.add_argument(
        "--temperature",
        metavar="T",
        type=real(0.0),
        default=0.0,
        help="spread of the samples (default 0: always the best token)",
    )
    how.add_argument(
        "--top-k", metavar="K", type=whole(0), default=0, help="sample among the K best tokens (default 0: all)"
    )
    how.add_argument(
        "--top-p", metavar="P", type=share, default=1.0, help="sample among the best tokens of mass P (default 1)"
    )
    how.add_argument(
        "--seed",
        metavar="N",
        type=whole(0),
        help="makes sampling repeatable, with the plan's draft length; every prompt starts from it",
    )
    how.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end before this text (repeatable)")
    how.add_argument("--no-chat-template", action="store_true", help="give the prompt to the model as it is")
    how.add_argument(
        "--chat-template", metavar="NAME", help="which of several chat templates (default: the one called default)"
    )
    how.add_argument("--system", metavar="TEXT", help="the system message, what the model is told first")
    how.add_argument(
        "--when-full",
        choices=WHEN_FULL,
        default=OLDEST,
        help="what a conversation drops when the context is full: its oldest turns until half is free (default), "
        "all turns, or nothing: it stops",
    )


def _add_execution(run: Any) -> None:
    """Add what says how they are made, to a group of argparse's."""
    run.add_argument(
        "--mode",
        choices=MODES,
        metavar="MODE",
        default=AUTO,
        help="auto (default) starts from the plan and drafts while that is faster than not to; off is the target alone "
        "(also target-only); sequential drafts, then verifies (also speculative); overlapped drafts while the target "
        "verifies, on other cores",
    )
    run.add_argument(
        "--gamma", metavar="N", type=whole(1, MOST_GAMMA), help=f"draft N tokens in every round (1 to {MOST_GAMMA})"
    )
    run.add_argument(
        "--least",
        metavar="N",
        type=whole(0),
        help="with --mode overlapped: wait for N drafts before verifying (default: the plan's, or 0; "
        "sampling waits for all)",
    )
    run.add_argument(
        "--drafter",
        choices=DRAFTERS,
        help="what drafts: the bundle's draft model, n-grams of what was read and generated before, or both "
        "(default: the draft model, where there is one)",
    )
    run.add_argument(
        "--stop-drafts",
        choices=STOP_DRAFTS,
        default=AUTO,
        help="auto (default): where the draft length follows the run, a draft ends where the draft model is not "
        "confident enough, and goes on beyond that length where it is, as long as that gains; off: never",
    )
    run.add_argument("--threads", metavar="N", type=whole(1, MOST_THREADS), help="CPU threads (default: the plan's)")
    run.add_argument("--huge-pages", action="store_true", help="copy the weights into huge pages: more memory, faster")
    run.add_argument(
        "--check", action="store_true", help="verify the SHA-256 of all files first, and that there are no others"
    )
    run.add_argument(
        "--verify-key", metavar="PUB", help="check the manifest's signature with a public key, and all files"
    )
    run.add_argument(
        "--load-state", metavar="FILE", type=Path, help="begin with what --save-state wrote: it is not read again"
    )
    run.add_argument("--calibrate", metavar="FILE", type=Path, help="measure for `hetero-sd calibrate`, and end")
    run.add_argument(
        "--calibrate-seconds",
        metavar="S",
        type=whole(1, 600),
        help=f"with --calibrate: time to measure (default {DEFAULT_CALIBRATE_S})",
    )
    run.add_argument("--doctor", action="store_true", help="say what this machine has and what is missing, and end")
    run.add_argument("--opencl-lib", metavar="FILE", help="the OpenCL library to open (default: the usual names)")
    run.add_argument(
        "--cache-dir", metavar="DIR", type=Path, help="keep compiled GPU kernels there (default: ~/.cache)"
    )


def _add_output(out: Any) -> None:
    """Add what is written and printed, to a group of argparse's."""
    out.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    out.add_argument("--stats", action="store_true", help="print measured and predicted times to standard error")
    out.add_argument(
        "--save-logits", metavar="FILE", type=Path, help="write the target's logits for `hetero-sd verify`"
    )
    out.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="write when each processor did what, for Perfetto or chrome://tracing",
    )
    out.add_argument(
        "--save-state",
        metavar="FILE",
        type=Path,
        help="write what the target has read at the end, prompt and answer, for --load-state",
    )


def _check(options: RunRequest) -> None:
    """Refuse what is wrong in combination."""
    if "" in options.stop:
        raise UserError("--stop is empty: give the text to stop at")
    if options.temperature == 0.0 and (options.top_k or options.top_p < 1.0):
        raise UserError("--top-k and --top-p choose among samples: give --temperature too, for example 0.7")
    alone = options.mode in ALONE
    for name, given in (("gamma", options.gamma), ("drafter", options.drafter)):
        if alone and given is not None:
            raise UserError(f"--{name} contradicts --mode {options.mode}: leave one out")
    if options.least is not None and options.mode != OVERLAPPED:
        raise UserError(f"--least belongs to --mode {OVERLAPPED}: leave it out, or give that")
    if options.least is not None and options.temperature > 0.0:
        raise UserError(
            "--least contradicts --temperature: sampling waits for all drafts, or no seed would repeat a run"
        )
    if options.mode == OVERLAPPED and options.drafter not in (None, MODEL):
        raise UserError(f"--mode {OVERLAPPED} drafts with the draft model: leave out --drafter {options.drafter}")
    if options.no_chat_template and (options.system is not None or options.chat_template is not None):
        option = "--chat-template" if options.system is None else "--system"
        raise UserError(f"{option} contradicts --no-chat-template: leave one out")
    if options.system is not None:
        prompt_of_text(options.system, "--system")
    if options.calibrate_seconds is not None and options.calibrate is None:
        raise UserError("--calibrate-seconds belongs to --calibrate: leave it out, or give that")
    check_server_options(options)
    check_vote_options(options)
    if options.save_logits is not None and options.prompt is None and options.prompts is None:
        raise UserError("--save-logits needs a prompt: give --prompt or --prompts")
    for out in (options.save_logits, options.trace, options.save_state):
        if out is not None:
            check_writable(out)
