"""What quantising costs, as text for people."""

from __future__ import annotations

from hetero_sd.quantisation.cost import QuantisationCost


def cost_text(cost: QuantisationCost) -> list[str]:
    """A table of the models, and the pair's acceptance."""
    lines = [
        "",
        f"what quantising costs, beside the float export in onnxruntime ({cost.tokens} tokens, {cost.source}):",
    ]
    heads = f"{'model':8}{'activations':>13}{'KL, nats':>10}{'perplexity':>12}{'float':>10}{'same token':>12}"
    lines.append(f"{heads}  weights")
    for role, model in cost.models.items():
        texts = "".join(f"{_number(x):>{width}}" for x, width in ((model.perplexity, 12), (model.float_perplexity, 10)))
        lines.append(
            f"{role:8}{model.activations:>13}{model.kl_nats:>10.4f}{texts}{model.agreement:>12.1%}  {model.recipe}"
        )
    if cost.pair is not None:
        pair = cost.pair
        lines.append(
            f"a drafted token is accepted with {pair.greedy:.3f} greedily (float pair {pair.float_greedy:.3f}), "
            f"{pair.sampled:.3f} sampled ({pair.float_sampled:.3f}), after these texts"
        )
    return [*lines, ""]


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:,.2f}" if x < 1e5 else f"{x:.2g}"
