"""Checks that the export gives logits of every token: verifying drafts reads all rows, not the last one.

Exports for plain generation may cut the hidden states to the last token before the head (or the logits after it).
"""

from __future__ import annotations

from passes.onnx.pass_context import Importing, PassLog
from passes.onnx.shapes import known_shapes, points
from targets.errors import UserError


def check_logits(imp: Importing) -> PassLog:
    """Compare the shape of the logits with the number of new tokens at two points.

    Raises:
        UserError: they have rows for fewer tokens, or no dimension of tokens.
    """
    at = points(imp)
    logits = next(v for v in imp.graph.outputs if v.name == "logits")
    shapes = [known[logits].shape for p in at if logits in (known := known_shapes(imp, p))]
    if len(shapes) < 2 or all(len(s) == 3 and s[1] == p.new for s, p in zip(shapes, at, strict=True)):
        return PassLog("check_logits", 0)
    if len({s[1:] for s in shapes}) > 1:
        raise UserError(
            f"the logits have the shape {list(shapes[0])} for {at[0].new} new tokens of {at[0].batch} texts"
        )
    rows = "one token" if len(shapes[0]) < 3 or shapes[0][1] == 1 else f"{shapes[0][1]} tokens"
    raise UserError(
        f"the logits are those of {rows}, but verifying drafts needs the logits of all tokens: export again with "
        "logits_to_keep=0 (transformers; num_logits_to_keep before 4.49), or prune_lm_head=false (genai's builder)"
    )
