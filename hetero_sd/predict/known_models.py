"""Sizes of models that others published measurements of, as their config.json on Hugging Face states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from hetero_sd.predict.config_json import specs_from_table
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV


def _sizes(model_type: str, hidden: int, ffn: int, heads: int, kv: int, layers: int, vocab: int, **more: Any) -> Any:
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": kv}
    return {"model_type": model_type, **sizes, "num_hidden_layers": layers, "vocab_size": vocab, **more}


_TIED = {"tie_word_embeddings": True}
_GEMMA_3 = {**_TIED, "sliding_window": 512}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": _sizes("llama", 4096, 11008, 32, 32, 32, 32000),
    "Llama-2-13B": _sizes("llama", 5120, 13824, 40, 40, 40, 32000),
    "Llama-3.1-8B": _sizes("llama", 4096, 14336, 32, 8, 32, 128256),
    "Llama-3.2-1B": _sizes("llama", 2048, 8192, 32, 8, 16, 128256, head_dim=64, **_TIED),
    "Llama-3.2-3B": _sizes("llama", 3072, 8192, 24, 8, 28, 128256, head_dim=128, **_TIED),
    "Phi-3-mini": _sizes("phi3", 3072, 8192, 32, 32, 32, 32064),
    "Qwen1.5-1.8B": _sizes("qwen2", 2048, 5504, 16, 16, 24, 151936),
    "Qwen2.5-0.5B": _sizes("qwen2", 896, 4864, 14, 2, 24, 151936, **_TIED),
    "Qwen2.5-1.5B": _sizes("qwen2", 1536, 8960, 12, 2, 28, 151936, **_TIED),
    "Qwen2.5-7B": _sizes("qwen2", 3584, 18944, 28, 4, 28, 152064),
    "Qwen3-0.6B": _sizes("qwen3", 1024, 3072, 16, 8, 28, 151936, head_dim=128, **_TIED),
    "SmolLM2-1.7B": _sizes("llama", 2048, 8192, 32, 32, 24, 49152, **_TIED),
    "gemma-3-270m": _sizes("gemma3_text", 640, 2048, 4, 1, 18, 262144, head_dim=256, **_GEMMA_3),
    "gemma-3-1b": _sizes("gemma3_text", 1152, 6912, 4, 1, 26, 262144, head_dim=256, **_GEMMA_3),
    "TinyLlama-1.1B": _sizes("llama", 2048, 5632, 32, 4, 22, 32000),
}


def known_model(name: str, weights: str, head: str | None = None, kv: str = DEFAULT_KV) -> DecoderSpec:
    """The decoder of a model of CONFIGS.

    Raises:
        UserError: a name that is not there, or a format that is not known.
    """
    if name not in CONFIGS:
        raise UserError(f"the sizes of model {name!r} are not known here; known: {', '.join(CONFIGS)}")
    return specs_from_table({**CONFIGS[name], "_name_or_path": name}, Path(name), [weights], head, kv)[0]
