"""`hetero-sd acceptance`: how many drafted tokens a pair accepts, measured here with onnxruntime."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hetero_sd.acceptance import (
    DEFAULT_GAMMA,
    DEFAULT_NEW_TOKENS,
    AcceptanceRequest,
    MeasuredAcceptance,
    measure_acceptance,
)
from hetero_sd.commands.parser import Subparsers, add_draft, add_quantise, add_variant, fetch_models, subcommand
from targets.files import check_writable, write_text

EXAMPLE = """\
example:
  hetero-sd acceptance target/model.onnx draft/model.onnx --prompts prompts.txt --tokenizer target --out alpha.json
  hetero-sd predict target/model.onnx --draft draft/model.onnx --board imx95 --alpha-file alpha.json
  hetero-sd acceptance hf:HuggingFaceTB/SmolLM2-360M-Instruct hf:HuggingFaceTB/SmolLM2-135M-Instruct --prompts p.txt
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "acceptance", "measure how much a pair accepts", EXAMPLE)
    p.add_argument("target", metavar="TARGET.onnx", type=Path, help="the model whose text is wanted")
    add_draft(p, "draft", "DRAFT.onnx", "the drafter")
    add_variant(p)
    p.add_argument("--prompts", metavar="FILE", type=Path, required=True, help="texts, one a line, or JSON lines")
    p.add_argument(
        "--tokenizer",
        metavar="FILE|DIR",
        type=Path,
        help="tokenizer.json or its folder (default: beside the target, or one folder up)",
    )
    p.add_argument("--max-new-tokens", metavar="N", type=int, default=DEFAULT_NEW_TOKENS, help="a prompt (default 64)")
    p.add_argument("--gamma", metavar="N", type=int, default=DEFAULT_GAMMA, help="positions to measure (default 8)")
    p.add_argument(
        "--temperature", metavar="T", type=float, default=1.0, help="of the sampled run (default 1; 0 leaves it out)"
    )
    p.add_argument("--seed", metavar="N", type=int, default=0, help="of the sampled run (default 0)")
    p.add_argument("--eos", metavar="ID", type=int, action="append", default=[], help="end-of-text id (repeatable)")
    add_quantise(p)
    p.add_argument("--out", metavar="FILE", type=Path, help="write the result as JSON")
    p.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure, and print the result; 130 where it was interrupted and shows what it has so far."""
    if options.out is not None:
        check_writable(options.out)
    fetch_models(options, "target", "draft", quiet=options.json)
    request = AcceptanceRequest(
        target=options.target,
        draft=options.draft,
        prompts=options.prompts,
        tokenizer=options.tokenizer,
        max_new_tokens=options.max_new_tokens,
        gamma=options.gamma,
        temperature=options.temperature,
        seed=options.seed,
        eos=tuple(options.eos),
        quantise=options.quantise,
        quantise_head=options.quantise_head,
        quantise_draft=options.quantise_draft,
    )
    result = measure_acceptance(request, quiet=options.json)
    text = json.dumps(result.to_json(), indent=1)
    if options.out is not None:
        write_text(options.out, text + "\n")
    print(text if options.json else acceptance_text(result))
    return 130 if result.partial else 0


def acceptance_text(result: MeasuredAcceptance) -> str:
    """The result for people."""
    lines = [f"partial: {result.partial}"] if result.partial else []
    for mode, found in (("greedy", result.greedy), ("sampled", result.sampled)):
        if found is None:
            continue
        low, high = found["interval"]
        name = mode if not found["temperature"] else f"{mode}, temperature {found['temperature']:g}"
        lines.append(
            f"{name}: acceptance {found['alpha']:.3f} ({low:.3f} to {high:.3f}), "
            f"{found['rounds']} rounds of {found['prompts']} prompts"
        )
        lines.append("  position " + "".join(f"{i:>8}" for i in range(1, len(found["alpha_by_position"]) + 1)))
        lines.append("  accepted " + "".join(f"{a:>8.3f}" for a in found["alpha_by_position"]))
        lines.append("  judged   " + "".join(f"{n:>8}" for n in found["judged_by_position"]))
        tokens = found["tokens_per_round"]
        lines.append(
            f"  tokens per round at gamma {tokens['gamma']}: {tokens['measured']:.2f} measured, "
            f"{tokens['by_position']:.2f} from the positions, {tokens['constant_alpha']:.2f} from a constant acceptance"
        )
    return "\n".join(lines)
