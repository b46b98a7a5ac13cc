"""A config.json of Gemma 3n's text decoder -> DecoderSpec, as its exports have it (costmodel/stream_decoder.py).

What a config.json leaves out is as transformers' Gemma3nTextConfig has it: the sizes of E4B.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.stream_decoder import Layer, StreamBlocks, stream_decoder
from hetero_sd.predict.weight_formats import StoredAs
from targets.errors import UserError

STREAMS_FAMILY = "gemma3n_text"
_FULL_EVERY, _SPARSE_LAYERS = 5, 10
_DEFAULTS = {
    "vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "sliding_window": 512,
    "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 256, "altup_active_idx": 0,
    "altup_correct_scale": True, "altup_num_inputs": 4, "num_kv_shared_layers": 15, "laurel_rank": 64,
}  # fmt: skip


def stream_spec(
    config: dict[str, Any], path: Path, name: str, stored: StoredAs, kv: str, whole: Callable[..., int]
) -> DecoderSpec:
    """The decoder.

    Args:
        config: of the text decoder.
        path: where it was found.
        name: of the model.
        stored: the formats of the weights.
        kv: type of the KV cache.
        whole: (config, path, key, default) -> a whole number of the file.

    Raises:
        UserError: sizes are missing or contradict each other.
    """
    config = {**_DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
    layers = whole(config, path, "num_hidden_layers")
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "altup_num_inputs")
    hidden, heads, kv_heads, head_dim, vocab, streams = (whole(config, path, key) for key in sizes)
    laurel, by_layer = (whole(config, path, key) for key in ("laurel_rank", "hidden_size_per_layer_input"))
    shared, active = (whole(config, path, key, 0) for key in ("num_kv_shared_layers", "altup_active_idx"))
    widths = _by_layer(config, path, "intermediate_size", layers)
    for key, value in (("hidden_size", hidden), *(("intermediate_size", width) for width in widths)):
        if stored.layers.block and (not isinstance(value, int) or value % stored.layers.block):
            raise UserError(f"{path}: {key} {value} is not a multiple of {stored.layers.block}, the weights' block")
    kinds = config.get("layer_types") or [
        "full_attention" if (i + 1) % _FULL_EVERY == 0 else "sliding_attention" for i in range(layers)
    ]
    if not isinstance(kinds, list) or len(kinds) != layers or shared >= layers:
        raise UserError(f"{path}: layer_types or num_kv_shared_layers do not fit {layers} layers")
    usual = [0.95 if layers > _SPARSE_LAYERS and i < _SPARSE_LAYERS else 0.0 for i in range(layers)]
    sparse = _by_layer({"activation_sparsity_pattern": usual, **config}, path, "activation_sparsity_pattern", layers)
    window = whole(config, path, "sliding_window")
    made = [
        Layer(
            ffn=whole({"intermediate_size": widths[i]}, path, "intermediate_size"),
            window=window if kinds[i] == "sliding_attention" else 0,
            sparse=bool(sparse[i]),
            shares=i >= layers - shared,
        )
        for i in range(layers)
    ]
    blocks = StreamBlocks(
        *(hidden, heads, kv_heads, head_dim, vocab, streams, active, laurel, by_layer, stored.layers, stored.head),
        scaled=bool(config["altup_correct_scale"]),
        head_softcap=bool(config["final_logit_softcapping"]),
    )
    tied = bool(config.get("tie_word_embeddings", True))
    try:
        return stream_decoder(f"{name} {stored.name}", blocks, made, tied, kv)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _by_layer(config: dict[str, Any], path: Path, key: str, layers: int) -> list[Any]:
    """What a key states for each layer, by a list or by one number for all."""
    stated = config[key]
    found = stated if isinstance(stated, list) else [stated] * layers
    if len(found) != layers:
        raise UserError(f"{path}: {key} has {len(found)} numbers for {layers} layers")
    return found
