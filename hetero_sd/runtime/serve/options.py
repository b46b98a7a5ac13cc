"""The options of `run.py --serve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.batch import BOUND_STEPS
from hetero_sd.runtime.decode.choose_policy import ALONE, AUTO, NGRAM
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.load import SPECULATIVE, note
from hetero_sd.runtime.parser import real, whole
from hetero_sd.runtime.request import RunRequest
from targets.errors import UserError

TURNS = (SPECULATIVE, "sequential")  # the modes in which drafter and target take turns
LOOPBACK, DEFAULT_PORT, DEFAULT_QUEUE = "127.0.0.1", 8080, 16


def add_server_options(group: Any) -> None:
    """Add them to a group of argparse's."""
    group.add_argument(
        "--serve",
        action="store_true",
        help="answer HTTP clients in OpenAI's form, and a browser; the options of generation hold where a request says "
        "nothing; a bundle of `compile --slots S` answers S at a time, unless --mode overlapped or --gamma asks for "
        "drafts that it makes for one alone (needs starlette and uvicorn)",
    )
    group.add_argument("--host", metavar="NAME", help=f"with --serve: listen there (default {LOOPBACK})")
    group.add_argument(
        "--port", metavar="P", type=whole(0, 65535), help=f"with --serve: and there (default {DEFAULT_PORT}; 0: any)"
    )
    group.add_argument(
        "--token", metavar="T", help="with --serve: ask for this token; other machines are answered with one only"
    )
    group.add_argument(
        "--time-between-tokens",
        metavar="MS",
        type=real(0.001),
        help="with --serve and slots: a text that is being written waits at most so long for its next token while "
        f"prompts are read (default: {BOUND_STEPS:g} steps of one text alone)",
    )
    group.add_argument(
        "--queue",
        metavar="N",
        type=whole(0, 10000),
        help=f"with --serve: requests that may wait for their turn (default {DEFAULT_QUEUE})",
    )
    group.add_argument(
        "--keep-rows",
        metavar="N",
        type=whole(0, 1 << 24),
        help="with --serve and a bundle of --slots: memory for N more rows of the KV cache, in which beginnings of "
        "texts are kept that lost their slot (default 0: in what shared beginnings save)",
    )


def mode_with_slots(options: RunRequest, slots: int, drafts_with_model: bool) -> str:
    """The mode in which the session of a bundle is loaded whose models have several slots: that without a drafter.

    Drafts beside the target, or of a given length, are made for one request at a time, where they are asked for; those
    that take turns with it are made for all together where the batch drafts with a model.
    """
    takes_turns = options.mode in (AUTO, *ALONE) or (drafts_with_model and options.mode in TURNS)
    by_text = options.drafter in (None, NGRAM) or drafts_with_model
    if takes_turns and by_text and options.gamma is None:
        return ALONE[0]
    which = "--mode overlapped and --gamma" if drafts_with_model else "--mode, --gamma and --drafter"
    note(
        f"with such drafts one request is answered at a time; without {which} {slots} are, which is what the bundle "
        "has slots for"
    )
    return options.mode


def drafters_with_slots(options: RunRequest) -> Sequence[str]:
    """What drafts are made from where several requests are answered at a time."""
    if options.mode in ALONE:
        return ()
    return (MODEL, NGRAM) if options.drafter is None else options.drafter.split("+")


def check_server_options(options: RunRequest) -> None:
    """Refuse what a server has no use for, and what only a server has.

    Raises:
        UserError: two options contradict each other, or the token cannot be sent.
    """
    if not options.serve:
        for name in ("host", "port", "token", "queue", "keep-rows", "time-between-tokens"):
            if getattr(options, name.replace("-", "_")) is not None:
                raise UserError(f"--{name} belongs to --serve: leave it out, or give that")
        return
    for name, given in (
        ("prompt", options.prompt is not None),
        ("prompts", options.prompts is not None),
        ("json", options.json),
        ("stats", options.stats),
        ("save-logits", options.save_logits is not None),
        ("trace", options.trace is not None),
        ("save-state", options.save_state is not None),
        ("calibrate", options.calibrate is not None),
        ("doctor", options.doctor),
    ):
        if given:
            raise UserError(f"--{name} contradicts --serve: leave one out")
    token = options.token
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError("--token: give printable ASCII characters without spaces, one at least")
