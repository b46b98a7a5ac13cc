"""`hetero-sd compile`: an ONNX pair, a tokenizer and a board become a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from costmodel.format import FLOAT, INT8
from hetero_sd.commands.parser import Subparsers, add_draft, add_quantise, add_variant, fetch_models, subcommand
from hetero_sd.compile.place import RULES
from targets.boards import board_names, load_board
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV, KV_FORMATS

EXAMPLE = """\
example:
  hetero-sd compile target/model.onnx --draft draft/model.onnx --tokenizer . --board imx95 --out bundle
  python bundle/run.py --prompt "The dog sleeps."
  hetero-sd compile hf:onnx-community/Qwen2.5-0.5B-Instruct --variant q4 --board rpi5 --out bundle

Models: decoder-only LLMs as torch.onnx.export, optimum-onnx or onnxruntime-genai's builder write them.
hf:ORG/NAME[/FILE.onnx][@REVISION] fetches one from the Hugging Face hub, or takes it from the hub's cache.
"""

_BOARD_PYTHON = "3.12"


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "compile", "write a deployable bundle for a board", EXAMPLE)
    p.add_argument("target", metavar="TARGET.onnx", type=Path, help="the model whose text is wanted")
    add_draft(p, "--draft", "DRAFT.onnx", "a smaller model of the same tokenizer")
    add_variant(p)
    p.add_argument(
        "--tokenizer",
        metavar="FILE|DIR",
        type=Path,
        help="tokenizer.json or its folder (default: beside the target, or one folder up)",
    )
    p.add_argument(
        "--board", metavar="NAME|PATH.toml", required=True, help=f"{', '.join(board_names())}, or a board file"
    )
    p.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new bundle's folder")
    p.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="tokens the KV caches hold (default 1024, fewer if a model ends before)",
    )
    p.add_argument("--gamma", metavar="N", type=_gamma, help="drafted tokens a round (default auto: the plan decides)")
    p.add_argument("--alpha", metavar="P", type=float, help="acceptance of a drafted token (default 0.8 is assumed)")
    p.add_argument("--alpha-file", metavar="FILE", type=Path, help="what `hetero-sd acceptance` measured")
    p.add_argument("--factors", metavar="FILE", type=Path, help="factors of a calibration, in place of the board's")
    p.add_argument("--eos", metavar="ID", type=int, action="append", default=[], help="end-of-text id (repeatable)")
    p.add_argument(
        "--vendor-wheels", action="store_true", help="put the device's Python packages into DIR/site (AArch64)"
    )
    p.add_argument(
        "--board-python", metavar="3.x", help=f"with --vendor-wheels: the device's Python (default {_BOARD_PYTHON})"
    )
    p.add_argument("--place", metavar="RULE", help=f"where each model runs: {RULES} (default auto: the plan decides)")
    p.add_argument(
        "--activations",
        choices=(FLOAT, INT8),
        help="what int4 and int8 weights are multiplied with (default: int8 where the ONNX file allows it, "
        "and with --quantise)",
    )
    p.add_argument(
        "--kv",
        choices=tuple(KV_FORMATS),
        default=DEFAULT_KV,
        help="what keys and values are stored in; float16 halves the KV caches and rounds, int8 leaves "
        "about a quarter of them, with a scale for each head of a token (default %(default)s)",
    )
    p.add_argument(
        "--slots",
        metavar="S",
        type=int,
        default=1,
        help="requests that run.py --serve answers at a time, each with KV caches of its own; CPU cores are then "
        "those that are the fastest for as many together (default 1)",
    )
    p.add_argument(
        "--prompt-chunk",
        metavar="N",
        type=int,
        help="tokens of a prompt that are read at a time; more than 32 beside 32 (default: the plan decides)",
    )
    add_quantise(p)
    p.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="texts on which to measure what quantising costs (default: ours)",
    )
    p.add_argument(
        "--no-cpu-fallback",
        action="store_true",
        help="no CPU variant of what runs on the GPU: a smaller bundle, whose runs end when the GPU fails",
    )
    p.add_argument("--subgraphs", metavar="DIR", type=Path, help="write each segment as an ONNX file, for Netron")
    p.add_argument("--dump-ir", metavar="DIR", type=Path, help="write the IR after each phase, for reading")
    p.add_argument("--sign", metavar="KEY", type=Path, help="sign the manifest with this Ed25519 key (PEM)")
    p.add_argument("--json", action="store_true", help="print what was decided as JSON")


def run(options: argparse.Namespace) -> int:
    """Compile, and print what was decided."""
    from hetero_sd.compile.bundle import refuse_existing
    from hetero_sd.compile.compile import compile_bundle
    from hetero_sd.compile.compile_report import compile_json, compile_text
    from hetero_sd.compile.request import CompileRequest
    from hetero_sd.compile.vendor import PYTHONS
    from hetero_sd.progress import Progress

    board_python = options.board_python or _BOARD_PYTHON
    if board_python not in PYTHONS:
        raise UserError(f"--board-python {board_python}: there are wheels for {', '.join(PYTHONS)}")
    if options.board_python is not None and not options.vendor_wheels:
        raise UserError("--board-python belongs to --vendor-wheels: leave it out, or give that")
    load_board(options.board, measure=False)  # what is refused without the models is refused before they are fetched
    refuse_existing(options.out)
    fetch_models(options, "target", "draft", quiet=options.json)
    request = CompileRequest(
        target=options.target,
        draft=options.draft,
        tokenizer=options.tokenizer,
        board=options.board,
        out=options.out,
        context=options.context,
        gamma=options.gamma,
        eos=tuple(options.eos),
        vendor_python=board_python if options.vendor_wheels else None,
        dump_ir=options.dump_ir,
        place=None if options.place == "auto" else options.place,
        alpha=options.alpha,
        alpha_file=options.alpha_file,
        factors=options.factors,
        activations=options.activations,
        kv=options.kv,
        cpu_fallback=not options.no_cpu_fallback,
        subgraphs=options.subgraphs,
        quantise=options.quantise,
        quantise_head=options.quantise_head,
        quantise_draft=options.quantise_draft,
        prompts=options.prompts,
        sign=options.sign,
        slots=options.slots,
        prompt_chunk=options.prompt_chunk,
    )
    result = compile_bundle(request, Progress(quiet=options.json))
    print(compile_json(result) if options.json else compile_text(result, options.out))
    return 0


def clean(options: argparse.Namespace) -> None:
    """Remove what a compile left that ended without its knowing."""
    from hetero_sd.compile.bundle import remove_leftovers

    remove_leftovers(options.out)


def _gamma(text: str) -> int | None:
    """A draft length, or None for the plan's."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor auto") from None
