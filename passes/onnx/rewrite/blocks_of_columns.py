"""4-bit codes of a table (MatMulBnb4: NF4, FP4) whose blocks run over the ends of columns -> smaller blocks.

    MatMulBnb4(x, q, absmax [ceil(K N / b)]){block_size: b}  ->  MatMulBnb4(x, q, absmax' [N K / g]){block_size: g}

The weight [N, K] is stored row by row as one run of codes, and so are its blocks. With g, the largest size that divides
K and the block, each g codes lie in one block and in one row: their absmax is that of the block, repeated, and no
number changes. Where K is a multiple of the block, which it nearly always is, nothing is done.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Declined, Importing, PassLog, add_initializer, attribute, describe
from passes.onnx.prove.weight_expression import stored

BNB4_TABLES = ("fp4", "nf4")  # by MatMulBnb4's quant_type; targets/kernels/code_tables.py has their numbers
_SMALLEST_BLOCK = 16


def blocks_of_columns(imp: Importing) -> PassLog:
    """Cut the blocks of every MatMulBnb4 that needs it; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in imp.graph:
        if (node.domain, node.op_type) == ("com.microsoft", "MatMulBnb4") and attribute(node, "K") % _block(node):
            try:
                _cut(imp, node)
                matched += 1
            except Declined as reason:
                notes.append(f"{describe(node)}: {reason}")
    return PassLog("blocks_of_columns", matched, tuple(notes))


def _block(node: Any) -> int:
    return int(attribute(node, "block_size"))


def _cut(imp: Importing, node: Any) -> None:
    k, n, block = attribute(node, "K"), attribute(node, "N"), _block(node)
    size, absmax = math.gcd(k, block), stored(node.inputs[2])
    if size < _SMALLEST_BLOCK:
        raise Declined(f"its columns of {k} codes have no whole blocks of {_SMALLEST_BLOCK}, whatever the table")
    if absmax is None or absmax.const_value.size != -(-k * n // block):
        raise Declined(f"K, N and block_size need {-(-k * n // block)} stored numbers in {node.inputs[2].name}")
    of_block = absmax.const_value.numpy().reshape(-1)
    spread = of_block[np.arange(0, k * n, size) // block]
    node.replace_input_with(2, add_initializer(imp.graph, f"{absmax.name}.of_columns", spread))
    node.attributes["block_size"] = ir.AttrInt64("block_size", size)
