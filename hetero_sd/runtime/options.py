"""The options of the on-device command, checked as far as they can be without the bundle."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from costmodel.schema.plan import MOST_THREADS, OVERLAPPED
from hetero_sd.runtime.conversation import OLDEST, WHEN_FULL
from hetero_sd.runtime.decode.choose_policy import ALONE, AUTO, DRAFTERS, STOP_DRAFTS
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.serve.options import add_server_options, check_server_options
from hetero_sd.runtime.text.prompts import prompt_of_text
from targets.errors import UserError
from targets.files import check_writable

_EXAMPLE = """\
example:
  python run.py --prompt "Translate to German: good morning" --max-new-tokens 64 --stats

A file of --prompts holds one text a line, or JSON lines such as {"prompt": "..."}, {"token_ids": [1, 2]} or
{"messages": [{"role": "user", "content": "..."}]}, which may have "tools". Of a conversation that /save wrote,
the last question is answered again.
Without --prompt and --prompts every line typed (or piped in) is a turn of a conversation; without a chat
template, a prompt of its own. The lines /reset, /save FILE, /stats and /help are commands.
"""


@dataclass(frozen=True)
class RunRequest:
    """What the user asks of a bundle; the defaults stand in :func:`parse_options`.

    Attributes:
        prompt: one text; None where there is none.
        prompts: a file of prompts; without it and `prompt` they are typed.
        max_new_tokens: tokens after which an answer ends.
        temperature, top_k, top_p: of the sampling; temperature 0 takes the best token.
        seed: of the sampling; None takes another one each time.
        stop: texts before which an answer ends.
        no_chat_template: the prompt goes to the model as it is.
        chat_template: the name of the template, where there are several; None takes the one called default.
        system: the system message of every conversation that has none; None gives none.
        when_full: one of conversation.WHEN_FULL.
        mode: one of load.MODES.
        gamma: drafted tokens in every round; None decides while it runs.
        least: drafts that the target waits for in mode overlapped; None is the plan's, or 0; all where it samples.
        drafter: one of choose_policy.DRAFTERS; None is the draft model, where the bundle has one.
        stop_drafts: one of choose_policy.STOP_DRAFTS.
        threads: of the CPU; None takes the plan's.
        huge_pages: the weights are copied into huge pages.
        check: all hashes are verified first.
        verify_key: a public key that the manifest's signature is checked with first, and all hashes after it.
        calibrate: the file to write measurements to, in place of answering.
        calibrate_seconds: time to measure.
        doctor: examine the machine in place of answering.
        opencl_lib: the OpenCL library; None tries the usual names.
        cache_dir: where compiled GPU kernels are kept; None takes the usual place.
        json: one JSON object a prompt.
        stats: measured and predicted times go to standard error.
        save_logits: the file to write the target's logits to, or None.
        trace: the file to write a Chrome trace to, or None.
        load_state: a file of what was read before, or None.
        save_state: the file to write what was read last to, or None.
        serve: requests of HTTP clients are answered.
        host, port: that the server listens on; None takes the defaults of serve/options.py.
        token: that the requests must carry; None where none is asked for.
        queue: requests that wait while one is answered; None takes the default there.
        keep_rows: of the KV cache, for beginnings of texts without a slot; None is none beside what sharing saves.
        time_between_tokens: milliseconds that a running text waits at most; None is some steps of one text alone.
    """

    prompt: str | None
    prompts: Path | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    no_chat_template: bool
    chat_template: str | None
    system: str | None
    when_full: str
    mode: str
    gamma: int | None
    least: int | None
    drafter: str | None
    stop_drafts: str
    threads: int | None
    huge_pages: bool
    check: bool
    verify_key: str | None
    calibrate: Path | None
    calibrate_seconds: int
    doctor: bool
    opencl_lib: str | None
    cache_dir: Path | None
    json: bool
    stats: bool
    save_logits: Path | None
    trace: Path | None
    load_state: Path | None
    save_state: Path | None
    serve: bool
    host: str | None
    port: int | None
    token: str | None
    queue: int | None
    keep_rows: int | None
    time_between_tokens: float | None


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as one line instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def parse_options(arguments: Sequence[str] | None) -> RunRequest:
    """Return what the options ask for; ``arguments`` None means those of the process.

    Raises:
        UserError: an option is unknown, malformed, out of range, or contradicts another one.
    """
    parser = _Parser(
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
    how = parser.add_argument_group("generation")
    how.add_argument(
        "--max-new-tokens", metavar="N", type=_whole(1), default=256, help="end after N tokens (default 256)"
    )
    how.add_argument(
        "--temperature",
        metavar="T",
        type=_real(0.0),
        default=0.0,
        help="spread of the samples (default 0: always the best token)",
    )
    how.add_argument(
        "--top-k", metavar="K", type=_whole(0), default=0, help="sample among the K best tokens (default 0: all)"
    )
    how.add_argument(
        "--top-p", metavar="P", type=_share, default=1.0, help="sample among the best tokens of mass P (default 1)"
    )
    how.add_argument(
        "--seed",
        metavar="N",
        type=_whole(0),
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
    run = parser.add_argument_group("execution")
    run.add_argument(
        "--mode",
        choices=("auto", "off", "sequential", OVERLAPPED, "target-only", "speculative"),
        metavar="MODE",
        default="auto",
        help="auto (default) starts from the plan and drafts while that is faster than not to; off is the target alone "
        "(also target-only); sequential drafts, then verifies (also speculative); overlapped drafts while the target "
        "verifies, on other cores",
    )
    run.add_argument("--gamma", metavar="N", type=_whole(1), help="draft N tokens in every round")
    run.add_argument(
        "--least",
        metavar="N",
        type=_whole(0),
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
    run.add_argument("--threads", metavar="N", type=_whole(1, MOST_THREADS), help="CPU threads (default: the plan's)")
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
        "--calibrate-seconds", metavar="S", type=_whole(1, 600), default=120, help="time to measure (default 120)"
    )
    run.add_argument("--doctor", action="store_true", help="say what this machine has and what is missing, and end")
    run.add_argument("--opencl-lib", metavar="FILE", help="the OpenCL library to open (default: the usual names)")
    run.add_argument(
        "--cache-dir", metavar="DIR", type=Path, help="keep compiled GPU kernels there (default: ~/.cache)"
    )
    out = parser.add_argument_group("output")
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
    add_server_options(parser.add_argument_group("server"), _whole, _real)
    given = vars(parser.parse_args(arguments))
    request = RunRequest(**{**given, "stop": tuple(given["stop"])})
    _check(request)
    return request


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
    check_server_options(options)
    if options.save_logits is not None:
        check_writable(options.save_logits)
    for out in (options.trace, options.save_state):
        if out is not None:
            check_writable(out)


def _whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number {f'from {least} to {most}' if most < 2**63 - 1 else f'>= {least}'}"
            )
        return value

    return read


def _real(least: float) -> Callable[[str], float]:
    """Return a reader of finite numbers >= ``least``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number >= {least:g}")
        return value

    return read


def _share(text: str) -> float:
    """Read a number in (0, 1]."""
    value = _real(0.0)(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value
