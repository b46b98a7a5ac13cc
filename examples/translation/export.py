"""Export the trained pair to ONNX: KV cache in and out, fp16, one file each.

python export.py --work WORK
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

HERE = Path(__file__).parent


class Decoder(torch.nn.Module):
    """The model with its cache as plain tensors: key 0, value 0, key 1, value 1, ..."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        """Wrap a trained model."""
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Logits of the new tokens and the cache with them appended."""
        pairs = [(past[i], past[i + 1]) for i in range(0, len(past), 2)]
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(pairs),
            use_cache=True,
        )
        present = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
        return (result.logits, *present)


def export(folder: Path, output: Path) -> None:
    """Write one model."""
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16, attn_implementation="sdpa").eval()
    config = model.config
    new, past_length = 3, 5
    cache_shape = (2, config.num_key_value_heads, past_length, config.head_dim)
    past = [torch.zeros(cache_shape, dtype=torch.float16) for _ in range(2 * config.num_hidden_layers)]
    example: tuple[Any, ...] = (
        torch.ones(2, new, dtype=torch.int64),
        torch.ones(2, past_length + new, dtype=torch.int64),
        torch.arange(past_length, past_length + new).repeat(2, 1),
        past,
    )
    batch, sequence, cached = (torch.export.Dim(n) for n in ("batch", "sequence_length", "past_sequence_length"))
    names = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    program = torch.onnx.export(
        Decoder(model).eval(),
        example,
        dynamo=True,
        opset_version=18,
        input_names=[
            "input_ids",
            "attention_mask",
            "position_ids",
            *(f"past_key_values.{n}" for n in names),
        ],
        output_names=["logits", *(f"present.{n}" for n in names)],
        dynamic_shapes=(
            {0: batch, 1: sequence},
            {0: batch, 1: "past_sequence_length + sequence_length"},
            {0: batch, 1: sequence},
            [{0: batch, 2: cached}] * len(past),
        ),
    )
    assert program is not None
    # The exporter notes every node's stack trace, with this machine's paths; the graph stays.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(output), external_data=False)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


def main() -> int:
    """Export target and drafter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that train.py filled")
    parser.add_argument("--output", type=Path, default=HERE, help="folder for target/ and draft/")
    args = parser.parse_args()
    for which in ("target", "draft"):
        if (args.work / which).exists():
            (args.output / which).mkdir(parents=True, exist_ok=True)
            export(args.work / which, args.output / which / "model.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
