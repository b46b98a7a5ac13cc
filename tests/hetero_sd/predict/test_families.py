"""A config.json alone gives the parameters that were published of a model of each family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from costmodel.decoder import DecoderSpec
from hetero_sd.predict.config_json import specs_from_config
from hetero_sd.predict.families import FAMILIES
from targets.errors import UserError
from tests.hetero_sd.predict.test_config_json import OTHERS
from tests.hetero_sd.predict.test_config_json import PUBLISHED as LLAMAS


def sizes(model_type: str, hidden: int, ffn: int, heads: int, kv: int, layers: int, vocab: int, **more: Any) -> Any:
    named = {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": kv}
    return {"model_type": model_type, **named, "num_hidden_layers": layers, "vocab_size": vocab, **more}


UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
COHERE = {"use_qk_norm": False, "attention_bias": False, "logit_scale": 0.0625}
FALCON = {"bias": False, "alibi": False, "parallel_attn": True, "multi_query": True}
GPT_NEO = {"num_heads": 16, "attention_types": [[["global", "local"], 12]], "window_size": 256}

# the keys of the models' config.json on the hub that say something of sizes, and how many weights the hub shows, some
# of them rounded
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gemma-7b": (sizes("gemma", 3072, 24576, 16, 16, 28, 256000, head_dim=256), 8_537_680_896),
    "gemma-3-270m": (
        sizes("gemma3_text", 640, 2048, 4, 1, 18, 262144, head_dim=256, sliding_window=512, _sliding_window_pattern=6),
        268_098_176,
    ),
    "gemma-3-1b": (
        sizes("gemma3_text", 1152, 6912, 4, 1, 26, 262144, head_dim=256, sliding_window=512), 999_885_952
    ),
    "gemma-3-4b, its text": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        },
        3_880_263_168,
    ),
    # without the keys and values of layers that read another's, which files have and no export computes
    "gemma-3n-E4B, its text": (
        {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text", "num_hidden_layers": 35}}, 6_870_000_000
    ),
    "gemma-3n-E2B, its text": (
        {
            "model_type": "gemma3n",
            "text_config": {
                "model_type": "gemma3n_text", "num_hidden_layers": 30, "intermediate_size": 8192,
                "num_kv_shared_layers": 10,
            },
        },
        4_460_000_000,
    ),
    "vaultgemma-1b": (
        sizes("vaultgemma", 1152, 6912, 4, 4, 26, 256000, head_dim=256, sliding_window=512), 1_040_000_000
    ),
    "stablelm-2-1_6b": (
        sizes("stablelm", 2048, 5632, 32, 32, 24, 100352, use_qkv_bias=True, **UNTIED), 1_644_515_328
    ),
    "stablelm-2-12b": (
        sizes(
            "stablelm", 5120, 13824, 32, 8, 40, 100352, qk_layernorm=True, use_parallel_residual=True,
            use_qkv_bias=False, **UNTIED,
        ),
        12_143_185_920,
    ),
    "phi-1_5": (
        sizes("phi", 2048, 8192, 32, None, 24, 51200, qk_layernorm=False, **UNTIED), 1_418_270_720  # type: ignore[arg-type]
    ),
    "persimmon-8b": (sizes("persimmon", 4096, 16384, 64, 64, 36, 262144, qk_layernorm=True, **UNTIED), 9_400_000_000),
    "command-r": (sizes("cohere", 8192, 22528, 64, 64, 40, 256000, **COHERE), 34_980_831_232),
    "command-r-plus": (
        sizes("cohere", 12288, 33792, 96, 8, 64, 256000, **COHERE | {"use_qk_norm": True}), 103_810_674_688
    ),
    "command-r7b": (
        sizes("cohere2", 4096, 14336, 32, 8, 32, 256000, sliding_window=4096, sliding_window_pattern=4), 8_028_033_024
    ),
    "OLMo-7B": (sizes("olmo", 4096, 11008, 32, 32, 32, 50304, clip_qkv=None, **UNTIED), 6_888_095_744),
    "Olmo-3-7B": (sizes("olmo3", 4096, 11008, 32, 32, 32, 100278, sliding_window=4096, **UNTIED), 7_298_011_136),
    "Apertus-8B": (
        sizes("apertus", 4096, 21504, 32, 8, 32, 131072, mlp_bias=False, attention_bias=False, qk_norm=True, **UNTIED),
        8_053_338_176,
    ),
    "glm-4-9b-chat-hf": (
        sizes("glm", 4096, 13696, 32, 2, 40, 151552, head_dim=128, attention_bias=True, **UNTIED), 9_399_951_360
    ),
    "GLM-4-9B-0414": (
        sizes("glm4", 4096, 13696, 32, 2, 40, 151552, head_dim=128, attention_bias=True, **UNTIED), 9_400_279_040
    ),
    "EXAONE-3.5-2.4B": (
        {
            "model_type": "exaone", "hidden_size": 2560, "intermediate_size": 7168, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_layers": 30, "head_dim": 80, "vocab_size": 102400, **TIED,
        },
        2_405_327_360,
    ),
    "EXAONE-4.0-1.2B": (
        sizes("exaone4", 2048, 4096, 32, 8, 30, 102400, head_dim=64, sliding_window=None, **TIED), 1_279_391_488
    ),
    "Minitron-4B": (sizes("nemotron", 3072, 9216, 24, 8, 32, 256000, head_dim=128, **UNTIED), 4_190_000_000),
    "gpt-neox-20b": (
        sizes(
            "gpt_neox", 6144, 24576, 64, None, 44, 50432, use_parallel_residual=True, **UNTIED  # type: ignore[arg-type]
        ),
        20_554_567_680,
    ),
    "opt-1.3b": (
        {
            "model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32,
            "num_hidden_layers": 24, "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048,
            "do_layer_norm_before": True, "_remove_final_layer_norm": False, "activation_function": "relu",
        },
        1_315_758_080,
    ),
    "starcoder2-7b": (
        sizes("starcoder2", 4608, 18432, 36, 4, 32, 49152, use_bias=True, sliding_window=4096), 7_173_923_840
    ),
    "starcoder2-15b": (
        sizes("starcoder2", 6144, 24576, 48, 4, 40, 49152, use_bias=True, sliding_window=4096, **UNTIED),
        15_957_889_024,
    ),
    "gpt-neo-1.3B": (
        {
            "model_type": "gpt_neo", "hidden_size": 2048, "intermediate_size": None, "num_layers": 24,
            "max_position_embeddings": 2048, "vocab_size": 50257, **GPT_NEO,
        },
        1_315_575_808,
    ),
    "codegen-350M": (
        {"model_type": "codegen", "n_embd": 1024, "n_head": 16, "n_layer": 20, "n_positions": 2048, "vocab_size": 51200,
         "n_inner": None, **UNTIED},
        356_712_448,
    ),
    "SmolLM3-3B": (sizes("smollm3", 2048, 11008, 16, 4, 36, 128256, no_rope_layer_interval=4), 3_075_098_624),
    "helium-1-2b": (sizes("helium", 2560, 7040, 20, 20, 24, 48000, head_dim=128, **UNTIED), 2_170_000_000),
    "ERNIE-4.5-0.3B": (
        sizes("ernie4_5", 1024, 3072, 16, 2, 18, 103424, head_dim=128, use_bias=False, **TIED), 360_748_032
    ),
    "Seed-OSS-36B": (
        sizes(
            "seed_oss", 5120, 27648, 80, 8, 64, 155136, head_dim=128, attention_bias=True, attention_out_bias=False,
            **UNTIED,
        ),
        36_151_104_512,
    ),
    "Hunyuan-0.5B": (
        sizes("hunyuan_v1_dense", 1024, 3584, 16, 8, 24, 120818, head_dim=128, use_qk_norm=True, **TIED), 539_010_048
    ),
    "AFM-4.5B": (sizes("arcee", 2560, 18432, 20, 4, 36, 128004, head_dim=128, **UNTIED), 4_620_000_000),
    "nanochat-d20": (
        sizes("nanochat", 1280, 5120, 10, 10, 20, 65536, final_logit_softcapping=15.0, **UNTIED), 560_988_160
    ),
}  # fmt: skip


def spec(folder: Path, config: dict[str, Any]) -> DecoderSpec:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return specs_from_config(path, ["float16"])[0]


def with_fewer_layers(config: dict[str, Any]) -> dict[str, Any]:
    if "text_config" in config:
        return config | {"text_config": with_fewer_layers(config["text_config"])}
    (key,) = {"num_hidden_layers", "num_layers", "n_layer"} & set(config)
    return config | {key: config[key] - 1}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_within_a_hundredth_of_the_published_ones(tmp_path: Path, name: str) -> None:
    config, parameters = PUBLISHED[name]
    assert spec(tmp_path, config).parameters == pytest.approx(parameters, rel=0.01)
    assert spec(tmp_path, with_fewer_layers(config)).parameters != pytest.approx(parameters, rel=0.01)


def test_a_falcon_of_grouped_heads_is_read_as_its_exports_store_it(tmp_path: Path) -> None:
    """Published: 41,303,293,952. Keys and values of 8 heads are spread to 128 in the import (ungroup_packed.py)."""
    config = {
        "model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8,
        "num_hidden_layers": 60, "vocab_size": 65024, "new_decoder_architecture": True, **FALCON,
    }  # fmt: skip
    spread = 60 * 8192 * 2 * (128 - 8) * 64
    assert spec(tmp_path, config).parameters - spread == pytest.approx(41_303_293_952, rel=1e-4)


def test_windows_of_gpt_neo(tmp_path: Path) -> None:
    config = PUBLISHED["gpt-neo-1.3B"][0]
    assert [op.window for op in spec(tmp_path, config).attentions[:4]] == [0, 256, 0, 256]
    del config["attention_types"]
    assert [op.window for op in spec(tmp_path, config).attentions[:2]] == [0, 256]
    whole = config | {"attention_types": [[["global"], 24]]}
    assert {op.window for op in spec(tmp_path, whole).attentions} == {0}


def test_whether_a_multimodal_models_embedding_is_its_head_is_stated_beside_its_decoder(tmp_path: Path) -> None:
    inner = sizes("mistral", 4096, 14336, 32, 8, 32, 32000)
    assert not spec(tmp_path, {"model_type": "mistral3", "text_config": inner}).tied
    assert spec(tmp_path, {"model_type": "mistral3", "text_config": inner, **TIED}).tied
    assert not spec(tmp_path, {"model_type": "mistral3", "text_config": inner | UNTIED, **TIED}).tied


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "a mixture of experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "a mixture of experts"),
        ({"model_type": "ernie4_5_moe", "moe_num_experts": 64}, "a mixture of experts"),
        ({"model_type": "mamba"}, "model_type 'mamba' is not known"),
        ({"model_type": "rwkv", "text_config": {"model_type": "rwkv_text"}}, "'rwkv_text' is not known"),
    ],
)
def test_what_is_no_dense_decoder_is_refused_by_name(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec(tmp_path, sizes("llama", 4096, 14336, 32, 8, 32, 32000) | more)


def test_every_family_has_a_model_with_published_parameters() -> None:
    tried = {
        config.get("text_config", config)["model_type"]
        for config in [
            *(c for c, _ in PUBLISHED.values()), *(c for c, _ in LLAMAS.values()), *(c for c, *_ in OTHERS.values()),
        ]
    }  # fmt: skip
    assert set(FAMILIES) - tried == {"smollm", "internlm3", "ministral"}  # sizes as those of a Llama or a Mistral
