"""What the families of Hugging Face's `transformers` are made of, by the `model_type` of their config.json.

Sizes and switches as their configurations define them, and decoders as their ONNX exports have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel.standard_decoder import BOTH, ONE_NORM, POST, TWO_NORMS

KEYS = {  # a size -> where a config.json may state it
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "positions": ("max_position_embeddings", "n_positions"),
}
SLIDING = "sliding"


@dataclass(frozen=True)
class Family:
    """What differs from a Llama.

    Attributes:
        blocks: switches of `costmodel.standard_decoder.Blocks`.
        stated: switches that the config.json states: (key, what holds where it is missing).
        refused: what a config.json may state that this form has not: (key, the value that it has).
        defaults: sizes that a config.json leaves out where they are the family's own.
        tied: whether embedding and head are one matrix where nothing is said.
        head_dim: where nothing is said; 0 is the width by the heads.
        ffn, ffn_times: the key of the feed-forward part's width, and its multiple of the width where it is missing: 0
            where it must be there. A key of `ffn_factor` states the multiple.
        window: which layers have the sliding window: "always", "every second", "5 of 6", "3 of 4", or "" by
            `layer_types` alone.
        turned: layers with rope: "" all of them or none, SLIDING those with a window, or the key that lists them.
        learned_positions: there is a table of positions in place of rope.
    """

    blocks: Mapping[str, Any] = field(default_factory=dict)
    stated: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    head_dim: int = 0
    ffn: str = "intermediate_size"
    ffn_times: int = 0
    ffn_factor: str = ""
    window: str = ""
    turned: str = ""
    learned_positions: bool = False


def _biases(key: str, missing: bool, ffn_key: str | None = None) -> dict[str, tuple[str, bool]]:
    stated = {"qkv_bias": (key, missing), "out_bias": (key, missing)}
    return stated | {"ffn_bias": (ffn_key or key, missing)}


_LLAMA_BIASES = _biases("attention_bias", False, "mlp_bias")
_ALL_BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
_GEMMA = {"nonlinearity": "gelu", "embedding_scaled": True}
_PLAIN_FFN = {"layer_norms": True, "gated": False, "nonlinearity": "gelu"}
_COHERE = {"layer_norms": True, "parallel": ONE_NORM, "logits_scaled": True}
_COHERE_BIASES = {"qkv_bias": ("attention_bias", False), "out_bias": ("attention_bias", False)}
_GPT_J = {**_PLAIN_FFN, "parallel": ONE_NORM, "ffn_bias": True, "head_bias": True}
_GLM = {"packed_ffn": True}
_GLM_BIASES = {"qkv_bias": ("attention_bias", True)}
_SOFTCAPS = {"softcap": ("attn_logit_softcapping", True), "head_softcap": ("final_logit_softcapping", True)}


def _llama(
    blocks: Mapping[str, Any] | None = None, stated: Mapping[str, tuple[str, bool]] | None = None, **more: Any
) -> Family:
    return Family(blocks or {}, {**_LLAMA_BIASES, **(stated or {})}, **more)


FAMILIES = {
    "llama": _llama(),
    "smollm": _llama(),
    "helium": _llama(head_dim=128),
    "ministral": _llama(window="always"),
    "arcee": _llama({"gated": False, "nonlinearity": "squared_relu"}),
    "seed_oss": _llama(stated={"qkv_bias": ("attention_bias", True), "out_bias": ("attention_out_bias", False)}),
    "ernie4_5": Family(stated=_biases("use_bias", False), tied=True),
    "hunyuan_v1_dense": _llama({"qk_norm": "head"}),
    "nanochat": _llama(
        {"qk_norm": "head", "gated": False, "nonlinearity": "squared_relu", "embedding_norm": True},
        stated={"head_softcap": ("final_logit_softcapping", True)},
    ),
    "smollm3": _llama(turned="no_rope_layers", tied=True),
    "mistral": _llama(window="always"),
    "qwen2": _llama({"qkv_bias": True}),
    "qwen3": _llama({"qk_norm": "head"}),
    "olmo": Family({"layer_norms": True}, {**_LLAMA_BIASES, "qkv_clipped": ("clip_qkv", False)}),
    "apertus": _llama({"qk_norm": "head", "gated": False, "nonlinearity": "xielu"}),
    "olmo2": _llama({"qk_norm": "row", "norms": POST}),
    "olmo3": _llama({"qk_norm": "row", "norms": POST}, window="3 of 4"),
    "granite": _llama({"embedding_scaled": True, "residual_scaled": True, "logits_scaled": True}),
    "gemma": _llama(_GEMMA, tied=True, head_dim=256),
    "gemma2": _llama(
        {**_GEMMA, "norms": BOTH, "softcap": True, "head_softcap": True}, tied=True, head_dim=256, window="every second"
    ),
    "gemma3_text": _llama(
        {**_GEMMA, "norms": BOTH, "qk_norm": "head"},
        defaults={"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208},
        tied=True,
        head_dim=256,
        window="5 of 6",
    ),
    "vaultgemma": Family(_GEMMA, _LLAMA_BIASES | _SOFTCAPS, tied=True, head_dim=256, window="every second"),
    "phi3": _llama({"packed_qkv": True, "packed_ffn": True}, window="always"),
    "glm": Family(_GLM, _GLM_BIASES, head_dim=128),
    "glm4": Family({**_GLM, "norms": BOTH}, _GLM_BIASES, head_dim=128),
    "exaone": Family(),
    "exaone4": Family({"qk_norm": "head", "norms": POST}, window="3 of 4", turned=SLIDING),
    "internlm3": Family(
        stated={"qkv_bias": ("qkv_bias", False), "out_bias": ("bias", False), "ffn_bias": ("bias", False)}
    ),
    "cohere": Family(_COHERE, _COHERE_BIASES, tied=True),
    "cohere2": Family(_COHERE, _COHERE_BIASES, tied=True, window="3 of 4", turned=SLIDING),
    "stablelm": Family(
        {"layer_norms": True},
        {"qkv_bias": ("use_qkv_bias", False)},
    ),
    "starcoder2": Family(
        _PLAIN_FFN,
        _biases("use_bias", True),
        tied=True,
        window="always",
    ),
    "nemotron": Family({**_PLAIN_FFN, "nonlinearity": "squared_relu"}, _LLAMA_BIASES),
    "phi": Family({**_PLAIN_FFN, **_ALL_BIASES, "parallel": ONE_NORM, "head_bias": True}),
    "persimmon": Family({**_PLAIN_FFN, **_ALL_BIASES, "nonlinearity": "squared_relu", "packed_qkv": True}),
    "gptj": Family(_GPT_J, ffn="n_inner", ffn_times=4),
    "codegen": Family({**_GPT_J, "packed_qkv": True}, ffn="n_inner", ffn_times=4),
    "gpt_neo": Family(
        {**_PLAIN_FFN, "out_bias": True, "ffn_bias": True}, tied=True, ffn_times=4, learned_positions=True
    ),
    "gpt_neox": Family(
        {**_PLAIN_FFN, "ffn_bias": True, "packed_qkv": True, "parallel": TWO_NORMS},
        {"qkv_bias": ("attention_bias", True), "out_bias": ("attention_bias", True)},
    ),
    "gpt2": Family(
        {**_PLAIN_FFN, **_ALL_BIASES, "packed_qkv": True},
        refused={"add_cross_attention": False},
        tied=True,
        ffn="n_inner",
        ffn_times=4,
        learned_positions=True,
    ),
    "opt": Family(
        {**_PLAIN_FFN, "nonlinearity": "relu"},
        _biases("enable_bias", True) | {"first_norm": ("do_layer_norm_before", True)},
        {"activation_function": "relu", "_remove_final_layer_norm": False},
        tied=True,
        ffn="ffn_dim",
        learned_positions=True,
    ),
    "bloom": Family(
        {**_PLAIN_FFN, **_ALL_BIASES, "packed_qkv": True, "embedding_norm": True, "alibi": True},
        refused={"apply_residual_connection_post_layernorm": False},
        tied=True,
        ffn="",
        ffn_times=4,
    ),
    "mpt": Family(
        {**_PLAIN_FFN, "packed_qkv": True, "alibi": True},
        refused={"no_bias": True},
        tied=True,
        ffn="",
        ffn_times=4,
        ffn_factor="expansion_ratio",
    ),
    "falcon": Family(
        {**_PLAIN_FFN, "packed_qkv": True},
        _biases("bias", False) | {"alibi": ("alibi", False)},
        tied=True,
        ffn="ffn_hidden_size",
        ffn_times=4,
    ),
}


def usual_keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json with the windows of GPT-Neo under the keys of other families."""
    if config["model_type"] != "gpt_neo":
        return config
    match config.get("attention_types"):
        case [[[*kinds], _], *_] if kinds:
            pattern = "".join("G" if kind == "global" else "L" for kind in kinds)
        case _:
            pattern = "GL"
    return {**config, "sliding_window": config.get("window_size", 256), "sliding_window_pattern": pattern}


def more_switches(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Switches of `Blocks` that follow from several keys of a config.json."""
    if family == "cohere" and config.get("use_qk_norm"):
        return {"qk_norm": "own"}
    if family == "stablelm":
        norm = {"qk_norm": "own"} if config.get("qk_layernorm") else {}
        return norm | ({"parallel": ONE_NORM} if config.get("use_parallel_residual") else {})
    if family in ("phi", "persimmon") and config.get("qk_layernorm", family == "persimmon"):
        return {"qk_norm": "head"}
    if family == "gpt_neox" and config.get("use_parallel_residual") is False:
        return {"parallel": ""}
    if family == "falcon" and config.get("new_decoder_architecture"):
        return {"parallel": ONE_NORM if config.get("num_ln_in_parallel_attn") == 1 else TWO_NORMS}
    if family == "falcon" and config.get("parallel_attn", True):
        return {"parallel": ONE_NORM}
    return {}


def kv_heads(family: str, config: Mapping[str, Any], heads: int) -> int | None:
    """Heads of keys and values where `num_key_value_heads` does not say it; None where it does.

    Exports of a Falcon with the new architecture write keys and values of every head to the cache.
    """
    if family == "falcon":
        new = config.get("new_decoder_architecture")
        return 1 if config.get("multi_query", True) and not new else heads
    return heads if FAMILIES[family].blocks.get("packed_qkv") and family != "phi3" else None
