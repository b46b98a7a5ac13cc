"""The table of what quantising costs."""

from __future__ import annotations

from hetero_sd.quantisation.cost import ModelCost, PairCost, QuantisationCost
from hetero_sd.quantisation.cost_text import cost_text


def test_table() -> None:
    models = {
        "target": ModelCost("int4:32, head and embedding int8:32", "int8", 0.01234, 12.345, 12.2, 0.961),
        "draft": ModelCost("int8:32, head and embedding int8:32", "float", 0.0001, None, None, 1.0),
    }
    text = "\n".join(cost_text(QuantisationCost("p.txt", 412, models, PairCost(0.61, 0.62, 0.55, 0.56))))
    assert (
        text
        == """
what quantising costs, beside the float export in onnxruntime (412 tokens, p.txt):
model     activations  KL, nats  perplexity     float  same token  weights
target           int8    0.0123       12.35     12.20       96.1%  int4:32, head and embedding int8:32
draft           float    0.0001           -         -      100.0%  int8:32, head and embedding int8:32
a drafted token is accepted with 0.610 greedily (float pair 0.620), 0.550 sampled (0.560), after these texts
"""
    )
    assert "drafted" not in "\n".join(cost_text(QuantisationCost("p.txt", 412, models, None)))
