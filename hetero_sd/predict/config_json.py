"""A Hugging Face config.json -> DecoderSpec: what a model would cost, asked before exporting it.

Sizes and switches as the `transformers` configurations of each family define them. Weights get the format that the
user names, since a config.json does not say how an export will store them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.format import RUNTIME_KV
from costmodel.standard_decoder import BOTH, POST, Blocks, standard_decoder
from hetero_sd.compile.hub_name import CONFIG, folder_name
from hetero_sd.predict.weight_formats import StoredAs, kv_bytes, stored_as
from targets.errors import UserError
from targets.files import read_object

_GEMMA = {"tied": True, "head_dim": 256, "nonlinearity": "gelu", "embedding_scaled": True}
_FAMILIES: dict[str, dict[str, Any]] = {  # model_type -> what differs from a Llama
    "llama": {},
    "smollm": {},
    "smollm3": {},
    "mistral": {"window": "always"},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {"qk_norm": "row", "norms": POST},
    "granite": {"embedding_scaled": True, "residual_scaled": True, "logits_scaled": True},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "norms": BOTH, "window": "every second", "softcap": True, "head_softcap": True},
    "gemma3_text": {**_GEMMA, "norms": BOTH, "window": "5 of 6", "qk_norm": "head"},
    "phi3": {"packed": True, "window": "always"},
}
_SWITCHES = (
    *("packed", "qk_norm", "norms", "nonlinearity", "softcap"),
    *("embedding_scaled", "residual_scaled", "logits_scaled", "head_softcap"),
)
_MOST = {"layers": 1024, "width": 1 << 20, "vocab": 1 << 24}


def specs_from_config(
    path: Path, formats: Sequence[str], head: str | None = None, kv: str = RUNTIME_KV[0]
) -> tuple[DecoderSpec, ...]:
    """The decoder of a config.json in each weight format.

    Args:
        path: the file.
        formats: as `stored_as` of weight_formats.py reads them.
        head: format of the head, and of an embedding that is the same matrix; None is what the format says.
        kv: type of the KV cache, of KV_BYTES.

    Raises:
        UserError: unreadable, of an unknown family, or with missing or contradictory sizes; a format that is not known.
    """
    return specs_from_table(read_object(path, "a config.json"), path, formats, head, kv)


def specs_from_table(
    config: Any, path: Path, formats: Sequence[str], head: str | None = None, kv: str = RUNTIME_KV[0]
) -> tuple[DecoderSpec, ...]:
    """The same for what a config.json holds; `path` is where it was found."""
    if "text_config" in config and config.get("model_type") not in _FAMILIES:
        config = config["text_config"]
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: there is no model_type, so this is not a Hugging Face config.json")
    family = config["model_type"]
    if family not in _FAMILIES:
        raise UserError(f"{path}: model_type {family!r} is not known; known: {', '.join(_FAMILIES)}")
    if _whole(config, path, "num_local_experts", 0) or _whole(config, path, "num_experts", 0):
        raise UserError(f"{path}: a mixture of experts is not supported")
    name = _name(config, path)
    return tuple(_shape(config, path, name, _FAMILIES[family], stored_as(f, head), kv_bytes(kv)) for f in formats)


def _name(config: dict[str, Any], path: Path) -> str:
    stated = config.get("_name_or_path")
    if isinstance(stated, str) and stated.strip():
        return stated.rstrip("/").rsplit("/", 1)[-1][:80]
    return folder_name(path) if path.name == CONFIG else path.stem


def _shape(
    config: dict[str, Any], path: Path, name: str, family: dict[str, Any], stored: StoredAs, kv_bytes_per_value: int
) -> DecoderSpec:
    hidden = _whole(config, path, "hidden_size")
    heads = _whole(config, path, "num_attention_heads")
    kv_heads = _whole(config, path, "num_key_value_heads", heads)
    if hidden % heads and "head_dim" not in config and "head_dim" not in family:
        raise UserError(f"{path}: hidden_size {hidden} is not a multiple of {heads} heads, and head_dim is missing")
    head_dim = _whole(config, path, "head_dim", family.get("head_dim", hidden // heads))
    ffn, vocab = _whole(config, path, "intermediate_size"), _whole(config, path, "vocab_size", most=_MOST["vocab"])
    layers = _whole(config, path, "num_hidden_layers", most=_MOST["layers"])
    sizes = (("hidden_size", hidden, stored.layers), ("intermediate_size", ffn, stored.layers))
    for key, value, fmt in (*sizes, ("hidden_size", hidden, stored.head)):
        if fmt.block and value % fmt.block:
            raise UserError(f"{path}: {key} {value} is not a multiple of {fmt.block}, the block of {fmt.dtype} weights")
    blocks = Blocks(
        *(hidden, heads, kv_heads, head_dim, ffn, vocab, stored.layers, stored.head),
        qkv_bias=bool(config.get("attention_bias", family.get("qkv_bias", False))),
        out_bias=bool(config.get("attention_bias", False)),
        ffn_bias=bool(config.get("mlp_bias", False)),
        **{name: family[name] for name in _SWITCHES if name in family},
    )
    tied = bool(config.get("tie_word_embeddings", family.get("tied", False)))
    windows = _windows(config, path, family, layers)
    try:
        return standard_decoder(f"{name} {stored.name}", blocks, windows, tied, kv_bytes_per_value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _windows(config: dict[str, Any], path: Path, family: dict[str, Any], layers: int) -> list[int]:
    """The sliding window of each layer, 0 for full attention: layer_types where stated, else the family's rule."""
    size = config.get("sliding_window")
    if size is None or config.get("use_sliding_window") is False:
        return [0] * layers
    window = _whole(config, path, "sliding_window")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    rule = family.get("window", "")
    full = {"always": 0, "every second": 2, "5 of 6": int(config.get("sliding_window_pattern") or 6)}.get(rule)
    if full is None:
        return [0] * layers
    return [0 if full and (i + 1) % full == 0 else window for i in range(layers)]


def _whole(config: dict[str, Any], path: Path, key: str, default: int | None = None, most: int = _MOST["width"]) -> int:
    """A whole number of the file; `default` None means that it must be there."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise UserError(f"{path}: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not (0 if default == 0 else 1) <= value <= most:
        raise UserError(f"{path}: {key} is {str(value)[:40]!r}; it must be a whole number from 1 to {most}")
    return value
