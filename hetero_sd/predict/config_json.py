"""A Hugging Face config.json -> DecoderSpec: what a model would cost, asked before exporting it.

Weights get the format that the user names, since a config.json does not say how an export will store them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.standard_decoder import Blocks, standard_decoder
from hetero_sd.compile.hub_name import CONFIG, folder_name
from hetero_sd.predict.families import FAMILIES, KEYS, SLIDING, Family, kv_heads, more_switches, usual_keys
from hetero_sd.predict.stream_config import STREAMS_FAMILY, stream_spec
from hetero_sd.predict.weight_formats import StoredAs, stored_as
from targets.errors import UserError
from targets.files import read_object
from targets.kv_format import DEFAULT_KV, kv_format

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MOST = {"layers": 1024, "width": 1 << 20, "vocab": 1 << 24}


def specs_from_config(
    path: Path, formats: Sequence[str], head: str | None = None, kv: str = DEFAULT_KV
) -> tuple[DecoderSpec, ...]:
    """The decoder of a config.json in each weight format.

    Args:
        path: the file.
        formats: as `stored_as` of weight_formats.py reads them.
        head: format of the head, and of an embedding that is the same matrix; None is what the format says.
        kv: type of the KV cache, a name of targets/kv_format.py.

    Raises:
        UserError: unreadable, of an unknown family, or with missing or contradictory sizes; a format that is not known.
    """
    return specs_from_table(read_object(path, "a config.json"), path, formats, head, kv)


def specs_from_table(
    config: Any, path: Path, formats: Sequence[str], head: str | None = None, kv: str = DEFAULT_KV
) -> tuple[DecoderSpec, ...]:
    """The same for what a config.json holds; `path` is where it was found."""
    if "text_config" in config and config.get("model_type") not in FAMILIES:
        config = _of_text(config)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: there is no model_type, so this is not a Hugging Face config.json")
    family = config["model_type"]
    if any(_whole(config, path, key, 0) for key in _EXPERTS):
        raise UserError(f"{path}: a mixture of experts is not supported")
    if family == STREAMS_FAMILY:
        made = _name(config, path)
        return tuple(stream_spec(config, path, made, stored_as(f, head), kv_format(kv).name, _whole) for f in formats)
    if family not in FAMILIES:
        raise UserError(f"{path}: model_type {family!r} is not known; known: {', '.join((*FAMILIES, STREAMS_FAMILY))}")
    name, config = _name(config, path), {**FAMILIES[family].defaults, **usual_keys(config)}
    return tuple(_shape(config, path, name, stored_as(f, head), kv_format(kv).name) for f in formats)


def _of_text(config: dict[str, Any]) -> Any:
    """What a model that reads pictures, too, states of its decoder: all but whether its embedding is its head."""
    found = config["text_config"]
    tied = "tie_word_embeddings"
    return {tied: config[tied], **found} if isinstance(found, dict) and tied in config else found


def _name(config: dict[str, Any], path: Path) -> str:
    stated = config.get("_name_or_path")
    if isinstance(stated, str) and stated.strip():
        return stated.rstrip("/").rsplit("/", 1)[-1][:80]
    return folder_name(path) if path.name == CONFIG else path.stem


def _shape(config: dict[str, Any], path: Path, name: str, stored: StoredAs, kv_type: str) -> DecoderSpec:
    family = FAMILIES[config["model_type"]]
    for key, value in family.refused.items():
        if config.get(key, value) != value:
            stated = f"{key} is {str(config[key])[:40]!r}"
            raise UserError(f"{path}: {stated}, only {value!r} is known of {config['model_type']}: give an ONNX file")
    hidden, heads, layers = (_size(config, path, size) for size in ("hidden", "heads", "layers"))
    kv = kv_heads(config["model_type"], config, heads) or _whole(config, path, "num_key_value_heads", heads)
    if hidden % heads and "head_dim" not in config and not family.head_dim:
        raise UserError(f"{path}: hidden_size {hidden} is not a multiple of {heads} heads, and head_dim is missing")
    head_dim = _whole(config, path, "head_dim", family.head_dim or hidden // heads)
    ffn, vocab = _ffn(config, path, family, hidden), _whole(config, path, "vocab_size", most=_MOST["vocab"])
    width = _whole(config, path, "word_embed_proj_dim", hidden)
    sizes = (("hidden_size", hidden, stored.layers), ("intermediate_size", ffn, stored.layers))
    for key, value, fmt in (*sizes, ("hidden_size", width, stored.head)):
        if fmt.block and value % fmt.block:
            raise UserError(f"{path}: {key} {value} is not a multiple of {fmt.block}, the block of {fmt.dtype} weights")
    switches = {
        **{switch: bool(config.get(key, missing)) for switch, (key, missing) in family.stated.items()},
        **family.blocks,
        **more_switches(config["model_type"], config),
    }
    blocks = Blocks(
        *(hidden, heads, kv, head_dim, ffn, vocab, stored.layers, stored.head),
        embedding_width=0 if width == hidden else width,
        positions=_size(config, path, "positions") if family.learned_positions else 0,
        **switches,
    )
    tied, windows = bool(config.get("tie_word_embeddings", family.tied)), _windows(config, path, family, layers)
    turned = _turned(config, family, windows)
    try:
        return standard_decoder(f"{name} {stored.name}", blocks, windows, tied, kv_type, turned)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _size(config: dict[str, Any], path: Path, size: str) -> int:
    key = next((key for key in KEYS[size] if config.get(key) is not None), KEYS[size][0])
    return _whole(config, path, key, most=_MOST.get(size, _MOST["width"]))


def _ffn(config: dict[str, Any], path: Path, family: Family, hidden: int) -> int:
    times = _whole(config, path, family.ffn_factor, family.ffn_times) if family.ffn_factor else family.ffn_times
    if not family.ffn:
        return times * hidden
    return _whole(config, path, family.ffn, times * hidden if times else None)


def _windows(config: dict[str, Any], path: Path, family: Family, layers: int) -> list[int]:
    """The sliding window of each layer, 0 for full attention: layer_types where stated, else the family's rule."""
    size = config.get("sliding_window")
    if size is None or config.get("use_sliding_window") is False:
        return [0] * layers
    window = _whole(config, path, "sliding_window")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str):  # EXAONE's: one letter a layer
        return [0 if pattern[i % len(pattern)] == "G" else window for i in range(layers)] if pattern else [0] * layers
    every = {"5 of 6": 6, "3 of 4": 4}
    rules = {"always": 0, "every second": 2, **every}
    if family.window in every:
        rules[family.window] = _whole(config, path, "sliding_window_pattern", every[family.window])
    full = rules.get(family.window)
    if full is None:
        return [0] * layers
    return [0 if full and (i + 1) % full == 0 else window for i in range(layers)]


def _turned(config: dict[str, Any], family: Family, windows: list[int]) -> list[bool] | None:
    """Which layers have rope; None where all have it or none."""
    if family.turned == SLIDING:
        return [window > 0 for window in windows] if any(windows) else None
    listed = config.get(family.turned) if family.turned else None
    if isinstance(listed, list) and len(listed) == len(windows):
        return [bool(turned) for turned in listed]
    if family.turned:
        every = config.get("no_rope_layer_interval")
        every = every if isinstance(every, int) and every > 0 else 4
        return [bool((i + 1) % every) for i in range(len(windows))]
    return None


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
