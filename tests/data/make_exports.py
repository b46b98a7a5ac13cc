"""Makes the tiny decoder exports under tests/data/exports; run by hand, never by the tests.

Made with: torch 2.13.0+cpu, transformers 5.23.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime-genai 0.18.0,
tokenizers 0.23.3 (the genai builder also needs regex, requests and pyyaml). Run from anywhere:

    python tests/data/make_exports.py [NAME ...]        # all, or only the folders named

Each folder is what an exporter leaves behind plus the tokenizer files a user has beside it. The only thing
changed is that dynamo's source locations (doc strings and metadata, most of the file) are dropped.
Weights are random, of the size trained ones have: logits of scale 1 to 10, no two of them nearly equal by design.
Norm weights and biases are random too, so that a lost one shows.
The drafter is the target's embedding, first layer, norm and head; the target's second layer adds little.
So the drafter is right often but not always, and both branches of speculation run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EXPORTS = Path(__file__).parent / "exports"
SHAPE = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=256, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip
FAMILIES = {
    "llama": (transformers.LlamaConfig, dict(tie_word_embeddings=False)),
    "qwen2": (transformers.Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (transformers.Qwen3Config, dict(tie_word_embeddings=True)),
}
JOBS = {
    "llama-dynamo-fp32": ("llama", "dynamo", "fp32"),
    "llama-dynamo-fp16": ("llama", "dynamo", "fp16"),
    "llama-genai-fp32": ("llama", "genai", "fp32"),
    "llama-genai-fp16": ("llama", "genai", "fp16"),
    "llama-genai-int4": ("llama", "genai", "int4"),
    "llama-drafter-dynamo-fp32": ("drafter", "dynamo", "fp32"),
    "qwen2-dynamo-fp32": ("qwen2", "dynamo", "fp32"),
    "qwen2-genai-fp32": ("qwen2", "genai", "fp32"),
    "qwen2-genai-cuda-fp16": ("qwen2", "genai-cuda", "fp16"),
    "qwen2-genai-int4": ("qwen2", "genai", "int4"),
    "qwen3-dynamo-fp32": ("qwen3", "dynamo", "fp32"),
    "qwen3-genai-fp32": ("qwen3", "genai", "fp32"),
    "qwen3-genai-fp16": ("qwen3", "genai", "fp16"),
    "qwen3-genai-int4": ("qwen3", "genai", "int4"),
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = """A decoder reads the tokens that came before and gives a score to every token that could come next.
The drafter is small and quick; the target is large and slow, and it has the last word on every token.
One step of the target checks several drafted tokens at once, because its weights are read from memory only once.
The processor reads the weights, the memory gives them at its own speed, and the clock goes on whether or not they come.
When the draft is right the text is the same and it is there sooner; when it is wrong the rest of the draft is thrown away.
What is measured on the board is written beside what was predicted, so that the prediction can be believed or mended.
There are boards with four small cores and boards with eight, of which some are large; the graphics processor shares the memory.
Twenty years ago the same idea was used for branches: guess, go on, and throw the work away when the guess was wrong.
The quick brown fox jumps over the lazy dog, and then it lies down in the shade and thinks about what comes next.
She said that the numbers were there for everyone to read, and that nobody should trust a number without its unit.
"""


def build_model(family: str) -> transformers.PreTrainedModel:
    """A random model of ``family`` in float32; "drafter" is the first layer of "llama"."""
    if family == "drafter":
        target = build_model("llama")
        config = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}, tie_word_embeddings=False)
        draft = transformers.LlamaForCausalLM(config).eval()
        draft.load_state_dict({k: v for k, v in target.state_dict().items() if "layers.1." not in k})
        return draft
    config_class, extra = FAMILIES[family]
    config = config_class(**SHAPE, **extra)
    config._attn_implementation = "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(2026)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * noise)
            else:
                gain = 0.3 if "layers.1." in name and ("o_proj" in name or "down_proj" in name) else 1.5
                weight.copy_(gain * noise / weight.shape[1] ** 0.5)
    return model


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors, the way the exported graph has it."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, past):
        """Logits [B,S,vocab] and per layer the present key and value [B,kv_heads,P+S,head_dim]."""
        cache = transformers.DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        return out.logits, *[t for layer in cache.layers for t in (layer.keys, layer.values)]


def export_dynamo(model: transformers.PreTrainedModel, precision: str, folder: Path) -> None:
    """torch.onnx.export(dynamo=True) at opset 18 with named symbolic batch, sequence and past lengths."""
    config = model.config
    dtype = torch.float16 if precision == "fp16" else torch.float32
    model = model.to(dtype)
    b, s, p = 2, 3, 5
    past = [
        tuple(torch.zeros(b, config.num_key_value_heads, p, config.head_dim, dtype=dtype) for _ in "kv")
        for _ in range(config.num_hidden_layers)
    ]
    ids = torch.ones(b, s, dtype=torch.int64)
    mask = torch.ones(b, p + s, dtype=torch.int64)
    positions = torch.arange(p, p + s)[None].expand(b, s).contiguous()
    batch, seq, past_len, total = "batch", "sequence", "past_sequence", "total_sequence"
    names = [f"{i}.{kv}" for i in range(config.num_hidden_layers) for kv in ("key", "value")]
    program = torch.onnx.export(
        WithCache(model).eval(), (ids, mask, positions, past), dynamo=True, opset_version=18, verbose=False,
        input_names=["input_ids", "attention_mask", "position_ids", *[f"past_key_values.{n}" for n in names]],
        output_names=["logits", *[f"present.{n}" for n in names]],
        dynamic_shapes=(
            {0: batch, 1: seq}, {0: batch, 1: total}, {0: batch, 1: seq},
            [({0: batch, 2: past_len}, {0: batch, 2: past_len}) for _ in past],
        ),
    )  # fmt: skip
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        del value.metadata_props[:]
    onnx.save(proto, folder / "model.onnx")


def export_genai(checkpoint: Path, precision: str, processor: str, folder: Path) -> None:
    """python -m onnxruntime_genai.models.builder; float16 attention differs between cpu and cuda."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", folder]
        subprocess.run([*command, "-p", precision, "-e", processor, "-c", cache], check=True)
    for path in folder.iterdir():
        if path.name not in ("model.onnx", "model.onnx.data", "genai_config.json"):
            path.unlink()


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of exactly 512 entries, with its configuration and a chat template."""
    special = ["<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, show_progress=False, min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    assert tokenizer.get_vocab_size() == 512, tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0], "eos_token": special[1], "pad_token": special[2],
        "add_bos_token": False, "model_max_length": 256, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    generation = {"bos_token_id": 0, "eos_token_id": [1], "pad_token_id": 2}
    for name, content in (("tokenizer_config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def make(name: str) -> None:
    """Make one folder of exports/ afresh."""
    family, exporter, precision = JOBS[name]
    folder = EXPORTS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build_model(family)
    if exporter == "dynamo":
        export_dynamo(model, precision, folder)
    else:
        with tempfile.TemporaryDirectory() as checkpoint:
            model.save_pretrained(checkpoint)
            write_tokenizer(Path(checkpoint))
            processor = "cuda" if exporter == "genai-cuda" else "cpu"
            export_genai(Path(checkpoint), precision, processor, folder)
    model.config.save_pretrained(folder)
    write_tokenizer(folder)
    print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


if __name__ == "__main__":
    for job in sys.argv[1:] or JOBS:
        make(job)
