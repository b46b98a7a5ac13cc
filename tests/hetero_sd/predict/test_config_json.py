from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hetero_sd.predict.config_json import specs_from_config
from passes.analysis.count_work import count_work
from passes.onnx import canonicalise
from targets.errors import UserError

EXPORTS = Path(__file__).parent.parent.parent / "data" / "exports"

# The published config.json files, reduced to what is read.
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 16, "vocab_size": 128256, "tie_word_embeddings": True,
    "head_dim": 64, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
PUBLISHED = {
    "Llama-3.2-1B": (LLAMA_1B, 1_235_814_400),
    "Llama-3.2-3B": (
        LLAMA_1B | {"hidden_size": 3072, "num_attention_heads": 24, "num_hidden_layers": 28, "head_dim": 128},
        3_212_749_824,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
            "num_key_value_heads": 8, "num_hidden_layers": 28, "vocab_size": 151936, "tie_word_embeddings": True,
            "head_dim": 128, "attention_bias": False, "sliding_window": None, "use_sliding_window": False,
        },
        596_049_920,
    ),
    "SmolLM2-135M": (
        {
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
            "num_key_value_heads": 3, "num_hidden_layers": 30, "vocab_size": 49152, "tie_word_embeddings": True,
        },
        134_515_008,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
            "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 151936, "tie_word_embeddings": True,
            "sliding_window": 32768, "use_sliding_window": False,
        },
        494_032_768,
    ),
    "gemma-2b": (
        {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
            "num_key_value_heads": 1, "num_hidden_layers": 18, "vocab_size": 256000, "head_dim": 256,
        },
        2_506_172_416,
    ),
    "gemma-2-2b": (
        {
            "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
            "num_key_value_heads": 4, "num_hidden_layers": 26, "vocab_size": 256000, "head_dim": 256,
            "sliding_window": 4096,
        },
        2_614_341_888,
    ),
    "Phi-3-mini-4k": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32064, "sliding_window": 2047,
        },
        3_821_079_552,
    ),
    "Mistral-7B": (
        {
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000, "sliding_window": 4096,
        },
        7_241_732_096,
    ),
    "OLMo-2-0425-1B": (
        {
            "model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
            "num_key_value_heads": 16, "num_hidden_layers": 16, "vocab_size": 100352, "tie_word_embeddings": False,
        },
        1_484_916_736,
    ),
    "granite-3.1-2b": (
        {
            "model_type": "granite", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 40, "vocab_size": 49155, "tie_word_embeddings": True,
            "attention_bias": False, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0,
        },
        2_533_531_648,
    ),
}  # fmt: skip

# what is no Llama: a config.json, the published parameters, and what the kernels read beside them (shifts of norms that
# have none) or leave out (OPT's two rows of positions before the first)
OTHERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "gpt2": (
        {
            "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "n_ctx": 1024,
            "vocab_size": 50257, "activation_function": "gelu_new",
        },
        124_439_808, 0,
    ),
    "bloom-560m": (
        {
            "model_type": "bloom", "hidden_size": 1024, "n_head": 16, "n_layer": 24, "vocab_size": 250880,
            "n_inner": None, "apply_residual_connection_post_layernorm": False,
        },
        559_214_592, 0,
    ),
    "mpt-7b": (
        {
            "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432,
            "expansion_ratio": 4, "no_bias": True, "attn_config": {"alibi": True},
        },
        6_649_286_656, 65 * 4096,
    ),
    "opt-125m": (
        {
            "model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_attention_heads": 12,
            "num_hidden_layers": 12, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 768,
            "do_layer_norm_before": True, "activation_function": "relu",
        },
        125_239_296, -2 * 768,
    ),
    "opt-350m": (
        {
            "model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_attention_heads": 16,
            "num_hidden_layers": 24, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 512,
            "do_layer_norm_before": False, "activation_function": "relu",
        },
        331_196_416, -2 * 1024,
    ),
    "falcon-7b": (
        {
            "model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32,
            "vocab_size": 65024, "multi_query": True, "parallel_attn": True, "alibi": False, "bias": False,
            "new_decoder_architecture": False,
        },
        6_921_720_704, 0,
    ),
    "falcon-rw-1b": (
        {
            "model_type": "falcon", "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 24,
            "vocab_size": 50304, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True,
        },
        1_311_625_216, 0,
    ),
    "pythia-160m": (
        {
            "model_type": "gpt_neox", "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "num_hidden_layers": 12, "vocab_size": 50304, "use_parallel_residual": True, "tie_word_embeddings": False,
        },
        162_322_944, 0,
    ),
    "gpt-j-6b": (
        {
            "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "n_inner": None, "vocab_size": 50400,
            "tie_word_embeddings": False,
        },
        6_050_882_784, 0,
    ),
    "phi-2": (
        {
            "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32,
            "num_hidden_layers": 32, "vocab_size": 51200, "qk_layernorm": False, "tie_word_embeddings": False,
        },
        2_779_683_840, 0,
    ),
    "stablelm-2-1_6b": (
        {
            "model_type": "stablelm", "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
            "num_key_value_heads": 32, "num_hidden_layers": 24, "vocab_size": 100352, "use_qkv_bias": True,
        },
        1_644_515_328, 0,
    ),
    "starcoder2-3b": (
        {
            "model_type": "starcoder2", "hidden_size": 3072, "intermediate_size": 12288, "num_attention_heads": 24,
            "num_key_value_heads": 2, "num_hidden_layers": 30, "vocab_size": 49152, "use_bias": True,
        },
        3_030_371_328, 0,
    ),
    "OLMo-1B": (
        {
            "model_type": "olmo", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
            "num_hidden_layers": 16, "vocab_size": 50304, "tie_word_embeddings": True,
        },
        1_176_764_416, 33 * 2 * 2048,
    ),
    "SmolLM3-3B": (
        {
            "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
            "num_key_value_heads": 4, "num_hidden_layers": 36, "vocab_size": 128256, "tie_word_embeddings": True,
        },
        3_075_098_624, 0,
    ),
}  # fmt: skip


def write(folder: Path, config: Any, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(tmp_path: Path, name: str) -> None:
    config, parameters = PUBLISHED[name]
    (shape,) = specs_from_config(write(tmp_path, config), ["float16"])
    assert shape.parameters == parameters


@pytest.mark.parametrize("name", OTHERS)
def test_parameters_of_other_families_are_the_published_ones(tmp_path: Path, name: str) -> None:
    config, parameters, read_beside = OTHERS[name]
    half, four = specs_from_config(write(tmp_path, config), ["float16", "int4"])
    assert half.parameters - read_beside == four.parameters - read_beside == parameters
    small = sum(op.small_values for op in half.operators)
    assert half.weight_bytes == 2 * (half.parameters - small) + 4 * small
    assert four.weight_bytes_by_dtype["int4"] == sum(
        op.k * op.columns * 18 // 32 for op in four.operators if op.kind == "linear"
    ) + (0 if four.tied else four.embedding.matrix_bytes)


# what tests/data/make_family_exports.py makes its models of
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
LLAMA_SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim")
GEMMA = {"num_hidden_layers": 2, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA_3N = {"hidden_size_per_layer_input": 8, "laurel_rank": 4}
CELLS: dict[str, dict[str, Any]] = {  # a cell of the coverage table for each family that has a config.json
    "llama-dynamo23-fp32": {"model_type": "llama"},
    "llama3-dynamo-fp32": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral-dynamo-fp32": {"model_type": "mistral", "sliding_window": 4},
    "phi3-dynamo-fp32": {"model_type": "phi3"},
    "phi3-longrope-dynamo-fp32": {"model_type": "phi3"},
    "qwen2-dynamo23-fp32": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3-dynamo24-fp32": {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2-dynamo-fp32": {"model_type": "gemma2", **GEMMA},
    "gemma3-dynamo-fp32": {"model_type": "gemma3_text", **GEMMA},
    "smollm-dynamo-fp32": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "granite-dynamo-fp32": {"model_type": "granite", "tie_word_embeddings": True},
    "olmo2-dynamo-fp32": {"model_type": "olmo2"},
    "gpt2-dynamo-fp32": {"model_type": "gpt2", "n_inner": 48, "n_positions": 128},
    "bloom-dynamo-fp32": {"model_type": "bloom"},
    "mpt-optimum-fp32": {"model_type": "mpt", "n_heads": 6, "d_model": 48} | dict.fromkeys(LLAMA_SIZES),
    "opt-dynamo-fp32": {
        "model_type": "opt", "ffn_dim": 48, "num_key_value_heads": None, "max_position_embeddings": 128,
    },
    "opt-350m-dynamo-fp32": {
        "model_type": "opt", "ffn_dim": 48, "num_key_value_heads": None, "do_layer_norm_before": False,
        "word_embed_proj_dim": 16, "max_position_embeddings": 128,
    },
    "falcon-dynamo-fp32": {"model_type": "falcon", "multi_query": True, "parallel_attn": True},
    "falcon-grouped-dynamo-fp32": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-alibi-dynamo-fp32": {
        "model_type": "falcon", "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True,
    },
    "gpt-neox-dynamo-fp32": {"model_type": "gpt_neox", "tie_word_embeddings": False},
    "gptj-dynamo-fp32": {"model_type": "gptj", "n_inner": 48, "num_key_value_heads": None},
    "phi-dynamo-fp32": {"model_type": "phi", "num_key_value_heads": None},
    "stablelm-dynamo-fp32": {"model_type": "stablelm", "use_qkv_bias": True},
    "starcoder2-dynamo-fp32": {"model_type": "starcoder2", "sliding_window": 4},
    "nemotron-dynamo-fp32": {"model_type": "nemotron"},
    "cohere-dynamo-fp32": {"model_type": "cohere"},
    "cohere2-dynamo-fp32": {"model_type": "cohere2", **GEMMA},
    "exaone4-dynamo-fp32": {"model_type": "exaone4", "tie_word_embeddings": True, **GEMMA},
    "internlm3-dynamo-fp32": {"model_type": "internlm3", "bias": True, "qkv_bias": True},
    "glm4-dynamo-fp32": {"model_type": "glm4"},
    "olmo-dynamo-fp32": {"model_type": "olmo"},
    "olmo-clipped-dynamo-fp32": {"model_type": "olmo", "clip_qkv": 0.5},
    "apertus-dynamo-fp32": {"model_type": "apertus"},
    "stablelm-heads-dynamo-fp32": {"model_type": "stablelm", "qk_layernorm": True, "use_parallel_residual": True},
    "phi-heads-dynamo-fp32": {"model_type": "phi", "qk_layernorm": True, "num_key_value_heads": None},
    "persimmon-dynamo-fp32": {"model_type": "persimmon", "num_key_value_heads": None},
    "cohere-heads-dynamo-fp32": {"model_type": "cohere", "use_qk_norm": True},
    "smollm3-dynamo-fp32": {"model_type": "smollm3", "num_hidden_layers": 2, "no_rope_layers": [1, 0]},
    "gemma-dynamo-fp32": {"model_type": "gemma"},
    "vaultgemma-dynamo-fp32": {"model_type": "vaultgemma", **GEMMA},
    "exaone-dynamo-fp32": {"model_type": "exaone", "num_layers": 1, "num_hidden_layers": None},
    "glm-dynamo-fp32": {"model_type": "glm"},
    "olmo3-dynamo-fp32": {"model_type": "olmo3", **GEMMA},
    "gpt-neo-dynamo-fp32": {
        "model_type": "gpt_neo", "num_hidden_layers": 2, "num_key_value_heads": None, "window_size": 4,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128,
    },
    "codegen-dynamo-fp32": {"model_type": "codegen", "n_inner": 48, "num_key_value_heads": None},
    "ministral-dynamo-fp32": {"model_type": "ministral", **GEMMA},
    "arcee-dynamo-fp32": {"model_type": "arcee"},
    "seed-oss-dynamo-fp32": {"model_type": "seed_oss"},
    "helium-dynamo-fp32": {"model_type": "helium"},
    "ernie4-5-dynamo-fp32": {"model_type": "ernie4_5"},
    "hunyuan-dynamo-fp32": {"model_type": "hunyuan_v1_dense", "tie_word_embeddings": True},
    "nanochat-dynamo-fp32": {"model_type": "nanochat"},
    "gemma3n-dynamo-fp32": {"model_type": "gemma3n_text", "num_kv_shared_layers": 0, **GEMMA, **GEMMA_3N},
    "gemma3n-shared-dynamo-fp32": {
        "model_type": "gemma3n_text", **GEMMA_3N, "sliding_window": 4, "num_hidden_layers": 4,
        "layer_types": GEMMA["layer_types"] * 2, "num_kv_shared_layers": 2, "intermediate_size": [32, 32, 48, 48],
        "activation_sparsity_pattern": [0.95, 0.8, 0.0, 0.0], "altup_num_inputs": 3, "altup_active_idx": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("export", CELLS)
def test_config_and_export_of_one_model_are_the_same_operators(export: str, tmp_path: Path) -> None:
    (from_config,) = specs_from_config(write(tmp_path, TINY | CELLS[export]), ["float32"])
    from_graph = count_work(canonicalise(EXPORTS.parent / "families" / export / "model.onnx", 32), from_config.name)
    assert Counter(from_config.operators) == Counter(from_graph.operators)  # q, k and v in any order
    assert from_config.tied == from_graph.tied
    (other,) = specs_from_config(write(tmp_path, TINY | CELLS[export] | {"head_dim": 16}), ["float32"])
    assert Counter(other.operators) != Counter(from_graph.operators)


def test_formats_and_windows(tmp_path: Path) -> None:
    half, four = specs_from_config(write(tmp_path, PUBLISHED["gemma-2-2b"][0]), ["float16", "int4"])
    assert half.main_dtype == "float16"
    assert four.main_dtype == "int4"
    assert [op.window for op in half.attentions[:3]] == [4096, 0, 4096]
    (phi,) = specs_from_config(write(tmp_path, PUBLISHED["Phi-3-mini-4k"][0]), ["float16"])
    linears = [op.name for op in phi.operators if op.kind == "linear" and op.part.layer == 0]
    assert linears == ["qkv", "o", "gate_up", "down", "head"]
    (qwen,) = specs_from_config(write(tmp_path, PUBLISHED["Qwen2.5-0.5B"][0]), ["float16"])
    assert qwen.attentions[0].window == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not known; known: llama"),
        ({"a": 1}, "there is no model_type"),
        ([1], "not a JSON object"),
        (LLAMA_1B | {"hidden_size": None}, "hidden_size is missing"),
        (LLAMA_1B | {"hidden_size": "big"}, "hidden_size is 'big'"),
        (LLAMA_1B | {"num_hidden_layers": 10**9}, "num_hidden_layers is '1000000000'"),
        (LLAMA_1B | {"num_key_value_heads": 5}, "32 heads cannot share 5 KV heads"),
        (LLAMA_1B | {"num_local_experts": 8}, "mixture of experts"),
        (OTHERS["mpt-7b"][0] | {"no_bias": False}, "no_bias is 'False', only True is known of mpt"),
        (OTHERS["gpt2"][0] | {"n_positions": 0}, "n_positions is '0'"),
        (LLAMA_1B | {"model_type": "opt", "max_position_embeddings": 64}, "ffn_dim is missing"),
        ({k: v for k, v in LLAMA_1B.items() if k != "head_dim"} | {"num_attention_heads": 30}, "not a multiple of 30"),
    ],
)
def test_what_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        specs_from_config(write(tmp_path, config), ["float16"])


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        specs_from_config(tmp_path / "missing.json", ["float16"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        specs_from_config(tmp_path / "broken.json", ["float16"])
    odd = LLAMA_1B | {"intermediate_size": 8200}
    with pytest.raises(UserError, match="8200 is not a multiple of 32"):
        specs_from_config(write(tmp_path, odd), ["int4"])
