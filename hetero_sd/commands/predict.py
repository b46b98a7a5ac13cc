"""`hetero-sd predict`: what a pair will cost on a board, before anything is exported or compiled."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from costmodel.engine import ENGINES, OURS
from costmodel.format import FLOAT, INT8
from hetero_sd.commands.parser import Subparsers, add_draft, add_variant, fetch_models, subcommand
from hetero_sd.compile.place import RULES
from hetero_sd.predict.like import LIKE
from hetero_sd.predict.predict import answer
from hetero_sd.predict.request import (
    DEFAULT_ALPHA,
    DEFAULT_CONTEXT,
    DEFAULT_NEW_TOKENS,
    DEFAULT_NGRAM_MATCH,
    PredictRequest,
    check,
    refuse_without_models,
)
from hetero_sd.predict.slots_asked import DEFAULT_BRANCH
from hetero_sd.predict.weight_formats import FORMAT_NAMES
from targets.boards import board_names
from targets.errors import UserError
from targets.files import check_writable, write_text
from targets.kv_format import DEFAULT_KV, KV_FORMATS

EXAMPLE = """\
example:
  hetero-sd predict Llama-3.2-3B/config.json --draft Llama-3.2-1B/config.json --board imx95 --alpha 0.8
  hetero-sd predict hf:onnx-community/Qwen2.5-0.5B-Instruct --variant q4 --board rpi5
  hetero-sd predict --like 2602.08060
  hetero-sd predict --check --board rpi5 --engine generic-int8-dot

TARGET and the drafter are ONNX files, whose weights are counted as they are stored, or a Hugging Face config.json.
Of the hub, hf:ORG/NAME is fetched whole, hf:ORG/NAME/config.json without any weights.
Predictions for a GPU rest on the board's numbers until `hetero-sd calibrate` has fitted them to kernels measured there.
"""


_PROMPT = DEFAULT_CONTEXT - DEFAULT_NEW_TOKENS // 2


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "predict", "what a pair will cost on a board", EXAMPLE)
    p.add_argument("target", metavar="TARGET", type=Path, nargs="?", help="model.onnx or config.json")
    add_draft(p, "--draft", "DRAFT", "model.onnx or config.json of a smaller model")
    add_variant(p)
    p.add_argument("--board", metavar="NAME|PATH.toml", help=f"{', '.join(board_names())}, or a file")
    p.add_argument("--alpha", metavar="P", type=float, help=f"acceptance of a drafted token (default {DEFAULT_ALPHA})")
    p.add_argument("--alpha-file", metavar="FILE", type=Path, help="what `hetero-sd acceptance` wrote")
    p.add_argument(
        "--ngram-alpha", metavar="P", type=float, help="consider drafting from the text, with this acceptance"
    )
    p.add_argument(
        "--ngram-match",
        metavar="P",
        type=float,
        help="with --ngram-alpha: share of rounds in which the text has something to draft from "
        f"(default {DEFAULT_NGRAM_MATCH})",
    )
    p.add_argument("--prompt-tokens", metavar="N", type=int, help=f"tokens of the prompt (default {_PROMPT})")
    p.add_argument("--new-tokens", metavar="N", type=int, help=f"of the answer (default {DEFAULT_NEW_TOKENS})")
    p.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="tokens in the KV cache when a step is priced (default: the middle of the answer)",
    )
    p.add_argument("--threads", metavar="[C:]N", help="threads of a cluster, the first one or C (default: the fastest)")
    p.add_argument("--place", metavar="RULE", help=f"where each model runs: {RULES} (default: the fastest)")
    p.add_argument("--gamma", metavar="N", type=int, help="drafted tokens a round (default: the fastest)")
    p.add_argument(
        "--weights",
        metavar="F[,F]",
        help=f"formats of a config.json's weights: {', '.join(FORMAT_NAMES)} (default float16); integers may end "
        "in :BLOCK, the weights that share a scale; q8_0 and q4_0 count bytes as GGUF files of these names",
    )
    p.add_argument("--head", metavar="F", help="format of a config.json's head (default: as --weights)")
    p.add_argument(
        "--activations",
        choices=(FLOAT, INT8),
        help="what int4 and int8 weights are multiplied with (default: int8 where an ONNX file allows it, and "
        "for a config.json)",
    )
    p.add_argument("--kv", metavar="F", default=DEFAULT_KV, help=f"of the KV cache: {', '.join(KV_FORMATS)}")
    p.add_argument("--like", metavar="NAME", help=f"a published configuration: {', '.join(LIKE)}")
    p.add_argument(
        "--requests",
        metavar="N",
        type=int,
        default=1,
        help="answered at a time, with `compile --slots N`; they draft where --ngram-alpha is given (default 1)",
    )
    p.add_argument("--slots", metavar="N", type=int, help="with --requests: of the bundle, if more (default as many)")
    p.add_argument(
        "--branch",
        metavar="P",
        type=float,
        help="with --slots: how often the second choice is right where the first draft is wrong, which is verified in "
        f"a free slot where that pays (default {DEFAULT_BRANCH})",
    )
    p.add_argument(
        "--shared-prefix",
        metavar="N",
        type=int,
        help="with --requests: tokens that all prompts begin with in common, such as a system message; they are read "
        "once, and what that saves is said",
    )
    p.add_argument("--sampled", action="store_true", help="tokens are sampled, not the best ones")
    p.add_argument("--factors", metavar="FILE", type=Path, help="factors of a calibration, in place of the board's")
    p.add_argument(
        "--check", action="store_true", help="published measurements of the board, or of all boards, beside predictions"
    )
    p.add_argument("--engine", metavar="E", help=f"with --check, whose kernels: {', '.join(ENGINES)} (default {OURS})")
    p.add_argument("--json", action="store_true", help="print the prediction as JSON")
    p.add_argument("--trace", metavar="FILE", type=Path, help="write a round as a Chrome trace (Perfetto)")
    p.add_argument("--report", metavar="FILE", type=Path, help="write the report as one HTML file")


def run(options: argparse.Namespace) -> int:
    """Predict, write trace and report where they are asked for, and print the prediction."""
    if options.check:
        return _check(options)
    if options.engine is not None:
        raise UserError("--engine belongs to --check: a prediction is made for what this version compiles")
    if options.ngram_match is not None and options.ngram_alpha is None:
        raise UserError("--ngram-match belongs to --ngram-alpha: leave it out, or give that")
    for path in (options.trace, options.report):
        if path is not None:
            check_writable(path)
    refuse_without_models(check(request_of(options)))  # before anything is fetched
    fetch_models(options, "target", "draft", quiet=options.json)
    prediction = answer(request_of(options))
    if options.trace is not None:
        from hetero_sd.predict.chrome_trace import chrome_trace

        write_text(options.trace, json.dumps(chrome_trace(prediction), indent=1) + "\n")
    if options.report is not None:
        from hetero_sd.predict.html import html_report

        write_text(options.report, html_report(prediction))
    from hetero_sd.predict.text import predict_json, predict_text

    print(predict_json(prediction) if options.json else predict_text(prediction))
    return 0


def _check(options: argparse.Namespace) -> int:
    """Print published measurements beside predictions."""
    from hetero_sd.predict.check import check_boards, check_json, check_text

    if options.target is not None or options.like is not None:
        raise UserError("--check compares what is published; it takes a board and an engine, no model")
    engine = OURS if options.engine is None else options.engine
    rows = check_boards([] if options.board is None else [options.board], engine)
    print(json.dumps(check_json(rows, engine), indent=2) if options.json else check_text(rows, engine))
    return 0


def request_of(options: argparse.Namespace) -> PredictRequest:
    """The request that the options make."""
    return PredictRequest(
        target=options.target,
        board=options.board,
        draft=options.draft,
        alpha=options.alpha,
        alpha_file=options.alpha_file,
        ngram_alpha=options.ngram_alpha,
        ngram_match=DEFAULT_NGRAM_MATCH if options.ngram_match is None else options.ngram_match,
        context=options.context,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        weights=None if options.weights is None else tuple(options.weights.split(",")),
        head=options.head,
        kv=options.kv,
        activations=options.activations,
        threads=options.threads,
        place=None if options.place == "auto" else options.place,
        gamma=options.gamma,
        like=options.like,
        sampled=options.sampled,
        factors=options.factors,
        requests=options.requests,
        slots=options.slots,
        branch=options.branch,
        shared_prefix=options.shared_prefix,
    )
