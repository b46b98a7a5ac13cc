"""`hetero-sd verify`: is a bundle's target the model it was made from?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hetero_sd.commands.parser import Subparsers, add_variant, fetch_models, subcommand

if TYPE_CHECKING:
    from hetero_sd.verify import VerifyResult

EXAMPLE = """\
example:
  hetero-sd verify bundle --against target/model.onnx --prompts prompts.txt
  hetero-sd verify bundle --against hf:onnx-community/Qwen2.5-0.5B-Instruct --variant q4

For a bundle that cannot run here: `run.py --prompts FILE --save-logits F` on the device, then `--from F` here.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand and its options."""
    p = subcommand(subparsers, "verify", "compare a bundle's logits with onnxruntime's", EXAMPLE)
    p.add_argument("bundle", metavar="DIR", type=Path, help="the bundle")
    p.add_argument("--against", metavar="TARGET.onnx", type=Path, required=True, help="the model it was made from")
    add_variant(p)
    p.add_argument(
        "--prompts", metavar="FILE", type=Path, help="texts, one a line, or JSON lines (default: random tokens)"
    )
    p.add_argument("--from", dest="saved", metavar="F", type=Path, help="logits saved by run.py --save-logits")
    p.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(options: argparse.Namespace) -> int:
    """Compare, and print the comparison; 1 where it fails."""
    from hetero_sd.verify import VerifyRequest, verify_bundle

    fetch_models(options, "against", quiet=options.json)
    result = verify_bundle(VerifyRequest(options.bundle, options.against, options.prompts, options.saved))
    print(verify_json(result) if options.json else verify_text(result))
    return 0 if result.passed else 1


def verify_text(result: VerifyResult) -> str:
    """The verdict and the numbers behind it."""
    from hetero_sd.verify import MOST_NEAR_TIES, MOST_OF_ROUNDING, MOST_RMS_OF_ROUNDING

    lines = [
        f"{'PASS' if result.passed else 'FAIL'}: {result.rows} rows of logits, scale {result.scale:.3g}",
        f"  largest difference {result.largest_error:.2e}, allowed {result.bound:.2e}",
    ]
    if result.quantised:
        lines.append(f"  the reference's weights are the file's, quantised again: {result.quantised}")
    allowed = f"allowed {MOST_NEAR_TIES:.0%}"
    if result.bound_rms is not None:
        lines += [
            f"  root mean square {result.error_rms:.2e}, allowed {result.bound_rms:.2e}",
            f"  {' and '.join(result.rounded)}: the bounds are what such rounding does to the reference, times "
            f"{MOST_OF_ROUNDING:g} and {MOST_RMS_OF_ROUNDING:g}",
        ]
        allowed = "no limit"
    return "\n".join(
        [
            *lines,
            f"  other argmax with a clear margin: {result.wrong} rows, allowed 0",
            f"  near-ties (margin <= {2 * result.bound:.1e}): {result.near_ties} rows, "
            f"{allowed}; argmax differs in {result.differing_ties} of them",
        ]
    )


def verify_json(result: VerifyResult) -> str:
    """The same as one JSON object."""
    return json.dumps({"passed": result.passed, **asdict(result)}, indent=1)
