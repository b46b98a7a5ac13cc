"""Makes the very small exports under tests/data/dialects: other exporters' spellings and other families, one layer each.

Same environment as make_exports.py. Run by hand:

    python tests/data/make_dialects.py [NAME ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch
import transformers
from make_exports import WithCache

DIALECTS = Path(__file__).parent / "dialects"
SHAPE = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=True,
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
LONG = dict(
    rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 4, long_factor=[2.0] * 4,
    original_max_position_embeddings=32,
)  # fmt: skip
# name: (configuration class, changes to SHAPE, attention implementation, opset or "torchscript", inputs left out)
JOBS = {
    "llama-opset23": ("Llama", {}, "sdpa", 23, ()),
    "llama-opset24": ("Llama", {}, "sdpa", 24, ()),
    "llama-torchscript": ("Llama", {}, "sdpa", "torchscript", ()),
    "llama-eager": ("Llama", {}, "eager", 18, ()),
    "llama-ids-only": ("Llama", {}, "sdpa", 18, ("attention_mask", "position_ids")),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN), "sdpa", 18, ()),
    "mistral-window": ("Mistral", dict(sliding_window=16), "sdpa", 18, ()),
    "phi3-packed": ("Phi3", {}, "sdpa", 18, ()),
    "phi3-longrope": ("Phi3", dict(original_max_position_embeddings=32, rope_parameters=LONG), "sdpa", 18, ()),
    "glm-interleaved": ("Glm", {}, "sdpa", 18, ()),
    "smollm3-nope": ("SmolLM3", dict(num_hidden_layers=2, no_rope_layers=[1, 0]), "sdpa", 18, ()),
    "olmo2-post-norm": ("Olmo2", {}, "sdpa", 18, ()),
    "gemma": ("Gemma", {}, "sdpa", 18, ()),
    "granite": ("Granite", dict(embedding_multiplier=2.0), "sdpa", 18, ()),
}


def build_model(family: str, changes: dict, attention: str) -> transformers.PreTrainedModel:
    """A random model; norm weights and biases random too."""
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    config._attn_implementation = attention
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1.0 + 0.2 * noise)
            elif weight.dim() == 1 or "embed" in name or "lm_head" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)
    return model


class Flat(torch.nn.Module):
    """The model with positional tensors, None where an input is left out: what the torchscript exporter takes."""

    def __init__(self, model: transformers.PreTrainedModel, left_out: tuple[str, ...]) -> None:
        super().__init__()
        self.model = WithCache(model)
        self.left_out = left_out

    def forward(self, input_ids, *rest):
        """As WithCache, the caches being the last tensors, key and value in turn."""
        rest = list(rest)
        mask = None if "attention_mask" in self.left_out else rest.pop(0)
        positions = None if "position_ids" in self.left_out else rest.pop(0)
        return self.model(input_ids, mask, positions, list(zip(rest[::2], rest[1::2], strict=True)))


def make(name: str) -> None:
    """Make one file of dialects/ afresh."""
    family, changes, attention, opset, left_out = JOBS[name]
    model = build_model(family, changes, attention)
    config, (b, s, p) = model.config, (2, 3, 5)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    caches = [torch.zeros(b, config.num_key_value_heads, p, dim) for _ in range(2 * config.num_hidden_layers)]
    names = [f"{i}.{kv}" for i in range(config.num_hidden_layers) for kv in ("key", "value")]
    given = {
        "input_ids": (torch.ones(b, s, dtype=torch.int64), "sequence"),
        "attention_mask": (torch.ones(b, p + s, dtype=torch.int64), "total_sequence"),
        "position_ids": (torch.arange(p, p + s)[None].expand(b, s).contiguous(), "sequence"),
    }
    given = {n: v for n, v in given.items() if n not in left_out}
    args = (*(tensor for tensor, _ in given.values()), *caches)
    inputs = [*given, *(f"past_key_values.{n}" for n in names)]
    outputs = ["logits", *(f"present.{n}" for n in names)]
    axes = [{0: "batch", 1: length} for _, length in given.values()] + [{0: "batch", 2: "past_sequence"}] * len(caches)
    path = DIALECTS / f"{name}.onnx"
    DIALECTS.mkdir(exist_ok=True)
    wrapped = Flat(model, left_out).eval()
    if opset == "torchscript":
        torch.onnx.export(
            wrapped, args, path, dynamo=False, opset_version=17, input_names=inputs, output_names=outputs,
            dynamic_axes=dict(zip(inputs, axes, strict=True)),
        )  # fmt: skip
        proto = onnx.load(path)
    else:
        program = torch.onnx.export(
            wrapped, args, dynamo=True, opset_version=opset, verbose=False, input_names=inputs, output_names=outputs,
            dynamic_shapes=(axes[0], tuple(axes[1:])),
        )  # fmt: skip
        proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        del value.metadata_props[:]
    onnx.save(proto, path)
    print(name, path.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    for job in sys.argv[1:] or JOBS:
        make(job)
