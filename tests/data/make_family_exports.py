"""Makes the exports of the coverage table under tests/data/families; run by hand, never by the tests.

Made with the packages of make_exports.py; the optimum cells with optimum-onnx 0.1.0 and transformers 4.57.6, whose
interpreter is named by the environment variable OPTIMUM_PYTHON; the genai11 cells with onnxruntime-genai 0.11.4 and
transformers 4.57.6, GENAI11_PYTHON. Run from anywhere:

    python tests/data/make_family_exports.py [NAME ...]        # all, or only the folders named

A folder holds one model.onnx (and its external data), nothing else. All folders are committed as families.tar.xz,
a tenth of their size since cells of a family share their weights; the tests unpack it. What an exporter cannot make
goes to cannot_export.json with its error, so that the table can say so. Models are as small as their kind allows:
every kind of layer is there, windows are shorter than the tests' sequences, norm weights and biases are random.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import onnx
import torch
import transformers
from make_exports import WithCache, write_tokenizer

FAMILIES_DIR = Path(__file__).parent / "families"
ERRORS = Path(__file__).parent / "cannot_export.json"
ARCHIVE = Path(__file__).parent / "families.tar.xz"
SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=1, pad_token_id=2, rope_theta=10000.0,
)  # fmt: skip
# The builder takes any product with as many outputs as the vocabulary has entries for the head, so the widths differ.
WIDE = dict(hidden_size=64, head_dim=16, vocab_size=80)
LONG_ROWS = dict(shape=dict(intermediate_size=256))  # two blocks of 128, or of 64
TWO = dict(num_hidden_layers=2)  # where layers alternate; exports/ has two layers of the others
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
LONGROPE = dict(
    rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=64,
    short_factor=[1.0 + 0.05 * i for i in range(4)], long_factor=[1.5 + 0.5 * i for i in range(4)],
)  # fmt: skip
GEMMA = dict(query_pre_attn_scalar=24, sliding_window=4, hidden_activation="gelu_pytorch_tanh", **TWO)
LEFT_OUT = ...  # a setting that a family computes itself
PARTIAL = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))
FAMILIES = {
    "llama": ("LlamaConfig", dict(tie_word_embeddings=False)),
    "llama3": ("LlamaConfig", dict(tie_word_embeddings=True, rope_parameters=LLAMA3, rope_scaling=LLAMA3)),
    "smollm": ("LlamaConfig", dict(tie_word_embeddings=True, num_attention_heads=4, num_key_value_heads=1)),
    "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", dict(tie_word_embeddings=True)),
    "mistral": ("MistralConfig", dict(tie_word_embeddings=False, sliding_window=4)),
    "phi3": ("Phi3Config", dict(
        tie_word_embeddings=False, sliding_window=None, original_max_position_embeddings=128)),
    "phi3-longrope": ("Phi3Config", dict(
        tie_word_embeddings=False, sliding_window=None, rope_parameters=LONGROPE, rope_scaling=LONGROPE,
        original_max_position_embeddings=64)),
    "gemma2": ("Gemma2Config", dict(
        tie_word_embeddings=True, layer_types=["sliding_attention", "full_attention"], attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, **GEMMA)),
    "gemma3": ("Gemma3TextConfig", dict(
        tie_word_embeddings=True, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=10000.0),
            "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=100000.0),
        }, **GEMMA)),
    "granite": ("GraniteConfig", dict(
        tie_word_embeddings=True, embedding_multiplier=3.0, attention_multiplier=0.25, residual_multiplier=0.22,
        logits_scaling=2.0)),
    "olmo2": ("Olmo2Config", dict(tie_word_embeddings=False)),
    "gpt2": ("GPT2Config", dict(n_inner=48, n_positions=64, num_key_value_heads=4)),
    "olmo": ("OlmoConfig", dict(tie_word_embeddings=False)),
    "smollm3": ("SmolLM3Config", dict(tie_word_embeddings=True, no_rope_layers=[1, 0], **TWO)),
    "stablelm": ("StableLmConfig", dict(tie_word_embeddings=False, use_qkv_bias=True, **PARTIAL)),
    "phi": ("PhiConfig", dict(tie_word_embeddings=False, num_key_value_heads=4, **PARTIAL)),
    "starcoder2": ("Starcoder2Config", dict(tie_word_embeddings=True, use_bias=True, sliding_window=4)),
    "gpt-neox": ("GPTNeoXConfig", dict(tie_word_embeddings=False, num_key_value_heads=4, **PARTIAL)),
    "gptj": ("GPTJConfig", dict(tie_word_embeddings=False, rotary_dim=4, n_inner=48, num_key_value_heads=4)),
    "cohere": ("CohereConfig", dict(tie_word_embeddings=True, logit_scale=0.25, layer_norm_eps=1e-5)),
    "cohere2": ("Cohere2Config", dict(
        tie_word_embeddings=True, logit_scale=0.25, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"], **TWO)),
    "exaone4": ("Exaone4Config", dict(
        tie_word_embeddings=True, sliding_window=4, layer_types=["sliding_attention", "full_attention"], **TWO)),
    "internlm3": ("InternLM3Config", dict(tie_word_embeddings=False, bias=True, qkv_bias=True)),
    "glm4": ("Glm4Config", dict(tie_word_embeddings=False)),
    "opt": ("OPTConfig", dict(
        tie_word_embeddings=True, ffn_dim=48, num_key_value_heads=4, activation_function="relu")),
    "opt-350m": ("OPTConfig", dict(
        tie_word_embeddings=True, ffn_dim=48, num_key_value_heads=4, do_layer_norm_before=False, word_embed_proj_dim=16)),
    "falcon": ("FalconConfig", dict(
        tie_word_embeddings=True, head_dim=LEFT_OUT, multi_query=True, num_key_value_heads=1, parallel_attn=True,
        bias=False, alibi=False)),
    "falcon-grouped": ("FalconConfig", dict(
        tie_word_embeddings=True, head_dim=LEFT_OUT, new_decoder_architecture=True, num_kv_heads=2, num_key_value_heads=4, bias=False,
        alibi=False)),
    "nemotron": ("NemotronConfig", dict(tie_word_embeddings=False, hidden_act="relu2", **PARTIAL)),
    "mixtral": ("MixtralConfig", dict(tie_word_embeddings=False, num_local_experts=2, num_experts_per_tok=1, intermediate_size=16)),
    "bloom": ("BloomConfig", dict(n_layer=1, n_head=4, num_key_value_heads=4)),
    "mpt": ("MptConfig", dict(
        n_layers=1, n_heads=6, num_attention_heads=6, num_key_value_heads=6, d_model=48, hidden_size=48,
        expansion_ratio=2, max_seq_len=128, head_dim=LEFT_OUT)),
    "hunyuan": ("HunYuanDenseV1Config", dict(tie_word_embeddings=True)),
    "nanochat": ("NanoChatConfig", dict(tie_word_embeddings=False)),
    "falcon-alibi": ("FalconConfig", dict(
        tie_word_embeddings=True, head_dim=LEFT_OUT, multi_query=False, num_key_value_heads=4, parallel_attn=False,
        bias=True, alibi=True)),
    # layer norms of single heads, each with its own weight (StableLM-2-12B, Command R+) or all with one (Phi, Persimmon)
    "stablelm-heads": ("StableLmConfig", dict(
        tie_word_embeddings=False, qk_layernorm=True, use_parallel_residual=True, **PARTIAL)),
    "phi-heads": ("PhiConfig", dict(tie_word_embeddings=False, qk_layernorm=True, num_key_value_heads=4, **PARTIAL)),
    "persimmon": ("PersimmonConfig", dict(
        tie_word_embeddings=False, qk_layernorm=True, num_key_value_heads=4, **PARTIAL)),
    "cohere-heads": ("CohereConfig", dict(
        tie_word_embeddings=True, logit_scale=0.25, layer_norm_eps=1e-5, use_qk_norm=True)),
    "olmo-clipped": ("OlmoConfig", dict(tie_word_embeddings=False, clip_qkv=0.5)),
    "apertus": ("ApertusConfig", dict(tie_word_embeddings=False, rope_parameters=LLAMA3)),
    "gemma": ("GemmaConfig", dict(tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh")),
    "gemma3n": ("Gemma3nTextConfig", dict(
        tie_word_embeddings=True, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, laurel_rank=4,
        num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"], sliding_window=4,
        activation_sparsity_pattern=[0.0, 0.0], intermediate_size=[32, 32], **TWO)),
    # three streams of which the second is active, sparse gates, layers that read another layer's keys and values
    "gemma3n-shared": ("Gemma3nTextConfig", dict(
        tie_word_embeddings=True, vocab_size_per_layer_input=56, hidden_size_per_layer_input=8, laurel_rank=4,
        num_hidden_layers=4, num_kv_shared_layers=2, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2, altup_num_inputs=3, altup_active_idx=1,
        activation_sparsity_pattern=[0.95, 0.8, 0.0, 0.0], intermediate_size=[32, 32, 48, 48],
        rope_parameters={
            "sliding_attention": dict(rope_type="default", rope_theta=10000.0),
            "full_attention": dict(rope_type="default", rope_theta=100000.0),
        })),
    "exaone": ("ExaoneConfig", dict(tie_word_embeddings=False, num_layers=1)),
    "glm": ("GlmConfig", dict(tie_word_embeddings=False, attention_bias=True)),
    "olmo3": ("Olmo3Config", dict(
        tie_word_embeddings=False, sliding_window=4, layer_types=["sliding_attention", "full_attention"], **TWO)),
    "gpt-neo": ("GPTNeoConfig", dict(
        tie_word_embeddings=True, num_key_value_heads=4, head_dim=LEFT_OUT, window_size=4,
        attention_types=[[["global", "local"], 1]], **TWO)),
    "codegen": ("CodeGenConfig", dict(
        tie_word_embeddings=False, n_layer=1, n_head=4, n_embd=32, n_inner=48, rotary_dim=4, n_positions=128,
        num_key_value_heads=4)),
    "vaultgemma": ("VaultGemmaConfig", dict(
        tie_word_embeddings=True, layer_types=["sliding_attention", "full_attention"], attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, **GEMMA)),
    "ministral": ("MinistralConfig", dict(
        tie_word_embeddings=False, sliding_window=4, layer_types=["sliding_attention", "full_attention"], **TWO)),
    "arcee": ("ArceeConfig", dict(tie_word_embeddings=False)),
    "seed-oss": ("SeedOssConfig", dict(tie_word_embeddings=False, attention_bias=True)),
    "helium": ("HeliumConfig", dict(tie_word_embeddings=False)),
    "ernie4-5": ("Ernie4_5Config", dict(tie_word_embeddings=True)),
}  # fmt: skip
FULL_CACHE = ["windowed_kv_cache=false"]
EAGER = dict(attention="eager")
# name: (family, exporter, options)
JOBS: dict[str, tuple[str, str, dict]] = {
    # torch.onnx.export(dynamo=True); opset 18 unless stated
    "llama-dynamo23-fp32": ("llama", "dynamo", dict(opset=23)),
    "llama-dynamo24-fp32": ("llama", "dynamo", dict(opset=24)),
    "llama-dynamo-bf16": ("llama", "dynamo", dict(precision="bf16")),
    "llama-dynamo-ids-and-cache": ("llama", "dynamo", dict(inputs="ids")),
    "llama-dynamo-no-cache": ("llama", "dynamo", dict(inputs="ids", cache=False)),
    "llama3-dynamo-fp32": ("llama3", "dynamo", dict()),
    "llama3-dynamo23-eager-fp32": ("llama3", "dynamo", dict(opset=23, **EAGER)),
    "llama3-dynamo24-fp32": ("llama3", "dynamo", dict(opset=24)),
    "mistral-dynamo-fp32": ("mistral", "dynamo", dict()),
    "mistral-dynamo23-fp32": ("mistral", "dynamo", dict(opset=23)),
    "mistral-dynamo24-eager-fp32": ("mistral", "dynamo", dict(opset=24, **EAGER)),
    "phi3-dynamo-fp32": ("phi3", "dynamo", dict()),
    "phi3-dynamo-fp16": ("phi3", "dynamo", dict(precision="fp16")),
    "phi3-dynamo23-eager-fp32": ("phi3", "dynamo", dict(opset=23, **EAGER)),
    "phi3-dynamo24-fp32": ("phi3", "dynamo", dict(opset=24)),
    "phi3-longrope-dynamo-fp32": ("phi3-longrope", "dynamo", dict()),
    "phi3-longrope-dynamo23-fp32": ("phi3-longrope", "dynamo", dict(opset=23)),
    "phi3-longrope-dynamo24-eager-fp32": ("phi3-longrope", "dynamo", dict(opset=24, **EAGER)),
    "qwen2-dynamo-eager-fp32": ("qwen2", "dynamo", dict(**EAGER)),
    "qwen2-dynamo-no-positions": ("qwen2", "dynamo", dict(inputs="mask")),
    "qwen2-dynamo23-fp32": ("qwen2", "dynamo", dict(opset=23)),
    "qwen2-dynamo24-fp32": ("qwen2", "dynamo", dict(opset=24)),
    "qwen3-dynamo-no-cache-mask": ("qwen3", "dynamo", dict(inputs="mask", cache=False)),
    "qwen3-dynamo23-eager-fp32": ("qwen3", "dynamo", dict(opset=23, **EAGER)),
    "qwen3-dynamo24-fp32": ("qwen3", "dynamo", dict(opset=24)),
    "gemma2-dynamo-fp32": ("gemma2", "dynamo", dict(**EAGER)),
    "gemma2-dynamo23-fp32": ("gemma2", "dynamo", dict(opset=23, **EAGER)),
    "gemma2-dynamo24-fp32": ("gemma2", "dynamo", dict(opset=24, **EAGER)),
    "gemma3-dynamo-fp32": ("gemma3", "dynamo", dict()),
    "gemma3-dynamo-bf16": ("gemma3", "dynamo", dict(precision="bf16")),
    "gemma3-dynamo23-fp32": ("gemma3", "dynamo", dict(opset=23)),
    "gemma3-dynamo24-eager-fp32": ("gemma3", "dynamo", dict(opset=24, **EAGER)),
    "smollm-dynamo-fp32": ("smollm", "dynamo", dict()),
    "smollm-dynamo23-fp32": ("smollm", "dynamo", dict(opset=23)),
    "smollm-dynamo24-eager-fp32": ("smollm", "dynamo", dict(opset=24, **EAGER)),
    "granite-dynamo-fp32": ("granite", "dynamo", dict()),
    "granite-dynamo23-fp32": ("granite", "dynamo", dict(opset=23)),
    "granite-dynamo24-eager-fp32": ("granite", "dynamo", dict(opset=24, **EAGER)),
    "olmo2-dynamo-fp32": ("olmo2", "dynamo", dict()),
    "olmo2-dynamo23-eager-fp32": ("olmo2", "dynamo", dict(opset=23, **EAGER)),
    "olmo2-dynamo24-fp32": ("olmo2", "dynamo", dict(opset=24)),
    "gpt2-dynamo-fp32": ("gpt2", "dynamo", dict()),
    "gpt2-dynamo-eager-fp16": ("gpt2", "dynamo", dict(precision="fp16", **EAGER)),
    "gpt2-dynamo23-fp32": ("gpt2", "dynamo", dict(opset=23)),
    "gpt2-dynamo24-fp32": ("gpt2", "dynamo", dict(opset=24)),
    # other families, by torch 2.14 and transformers 5.24; those from opt-350m on by torch 2.13
    **{f"{family}-dynamo-fp32": (family, "dynamo", dict()) for family in (
        "olmo", "smollm3", "stablelm", "phi", "starcoder2", "gpt-neox", "gptj", "cohere", "cohere2", "exaone4",
        "internlm3", "glm4", "opt", "falcon", "falcon-grouped", "nemotron",
        "opt-350m", "hunyuan", "nanochat",
        "stablelm-heads", "phi-heads", "persimmon", "cohere-heads", "olmo-clipped", "apertus",
        "gemma", "gemma3n", "gemma3n-shared", "exaone", "glm", "olmo3", "codegen", "ministral", "arcee",
        "seed-oss", "helium", "ernie4-5")},
    "gpt-neo-dynamo-fp32": ("gpt-neo", "dynamo", dict(**EAGER)),
    "vaultgemma-dynamo-fp32": ("vaultgemma", "dynamo", dict(**EAGER)),
    # torch.onnx.export(dynamo=False)
    "llama-legacy17-fp32": ("llama", "legacy", dict(opset=17)),
    "llama-legacy14-no-cache-presents": ("llama", "legacy", dict(opset=14, inputs="mask", cache=False, start=True)),
    "llama3-legacy17-eager-fp32": ("llama3", "legacy", dict(opset=17, **EAGER)),
    "mistral-legacy18-fp32": ("mistral", "legacy", dict(opset=18)),
    "phi3-legacy17-fp32": ("phi3", "legacy", dict(opset=17)),
    "phi3-longrope-legacy18-fp32": ("phi3-longrope", "legacy", dict(opset=18)),
    "qwen2-legacy18-fp32": ("qwen2", "legacy", dict(opset=18)),
    "qwen3-legacy17-eager-fp32": ("qwen3", "legacy", dict(opset=17, **EAGER)),
    "gemma2-legacy17-fp32": ("gemma2", "legacy", dict(opset=17, **EAGER)),
    "gemma3-legacy18-fp32": ("gemma3", "legacy", dict(opset=18)),
    "smollm-legacy18-eager-fp32": ("smollm", "legacy", dict(opset=18, **EAGER)),
    "granite-legacy17-fp32": ("granite", "legacy", dict(opset=17)),
    "olmo2-legacy18-eager-fp32": ("olmo2", "legacy", dict(opset=18, **EAGER)),
    "gpt2-legacy17-fp32": ("gpt2", "legacy", dict(opset=17)),
    "gpt2-legacy13-eager-fp32": ("gpt2", "legacy", dict(opset=13, **EAGER)),
    "qwen3-legacy14-fp32": ("qwen3", "legacy", dict(opset=14)),
    **{f"{family}-legacy17-fp32": (family, "legacy", dict(opset=17)) for family in (
        "opt", "falcon", "falcon-grouped", "nemotron",
        "stablelm-heads", "phi-heads", "persimmon", "cohere-heads", "olmo-clipped", "apertus")},
    "mixtral-legacy17-fp32": ("mixtral", "legacy", dict(opset=17)),
    "bloom-legacy17-fp32": ("bloom", "legacy", dict(opset=17, **EAGER)),
    "bloom-dynamo-fp32": ("bloom", "dynamo", dict(**EAGER)),
    "bloom-optimum-fp32": ("bloom", "optimum", dict(**EAGER)),
    "mpt-dynamo-fp32": ("mpt", "dynamo", dict(**EAGER)),
    "mpt-legacy17-fp32": ("mpt", "legacy", dict(opset=17, **EAGER)),
    "mpt-optimum-fp32": ("mpt", "optimum", dict(**EAGER)),
    "falcon-alibi-dynamo-fp32": ("falcon-alibi", "dynamo", dict()),
    "falcon-alibi-optimum-fp32": ("falcon-alibi", "optimum", dict()),
    # optimum-onnx
    "llama-optimum-fp32": ("llama", "optimum", dict()),
    "llama3-optimum-fp32": ("llama3", "optimum", dict()),
    "mistral-optimum-fp32": ("mistral", "optimum", dict()),
    "phi3-optimum-fp32": ("phi3", "optimum", dict()),
    "phi3-longrope-optimum-fp32": ("phi3-longrope", "optimum", dict()),
    "qwen2-optimum-fp32": ("qwen2", "optimum", dict()),
    "qwen3-optimum-fp32": ("qwen3", "optimum", dict()),
    "gemma2-optimum-fp32": ("gemma2", "optimum", dict(**EAGER)),
    "gemma3-optimum-fp32": ("gemma3", "optimum", dict()),
    "smollm-optimum-fp32": ("smollm", "optimum", dict()),
    "gpt2-optimum-fp32": ("gpt2", "optimum", dict()),
    **{f"{family}-optimum-fp32": (family, "optimum", dict()) for family in (
        "gpt-neox", "opt", "opt-350m", "falcon", "nemotron", "phi-heads", "stablelm-heads")},
    # onnxruntime-genai's builder
    "llama-genai-int4-asymmetric": ("llama", "genai", dict(precision="int4", extra=["is_symmetric=false"])),
    "llama-genai-int4-block128": (
        "llama", "genai", dict(precision="int4", extra=["block_size=128", "is_symmetric=false"], **LONG_ROWS)),
    "llama-genai-int4-kquant": ("llama", "genai", dict(precision="int4", extra=["algo_config=k_quant"], **LONG_ROWS)),
    "llama-genai-qdq": ("llama", "genai", dict(precision="int4", extra=["use_qdq=true"])),
    "llama-genai-bf16": ("llama", "genai", dict(precision="bf16")),
    "hunyuan-genai-int4": ("hunyuan", "genai", dict(precision="int4")),
    "llama3-genai-fp16": ("llama3", "genai", dict(precision="fp16")),
    "llama3-genai-int8": ("llama3", "genai", dict(precision="int8")),
    "mistral-genai-fp32": ("mistral", "genai", dict(precision="fp32")),
    "mistral-genai-int4-block128-symmetric": (
        "mistral", "genai", dict(precision="int4", extra=["block_size=128"], **LONG_ROWS)),
    "mistral-genai-qdq-asymmetric": (
        "mistral", "genai", dict(precision="int4", extra=["use_qdq=true", "is_symmetric=false"])),
    "phi3-genai-fp16": ("phi3", "genai", dict(precision="fp16")),
    "phi3-genai-int4": ("phi3", "genai", dict(precision="int4")),
    "phi3-longrope-genai-fp32": ("phi3-longrope", "genai", dict(precision="fp32")),
    "phi3-longrope-genai-int4": ("phi3-longrope", "genai", dict(precision="int4")),
    "qwen2-genai-bf16": ("qwen2", "genai", dict(precision="bf16", processor="cuda")),
    "qwen2-genai-int4-asymmetric": ("qwen2", "genai", dict(precision="int4", extra=["is_symmetric=false"])),
    "qwen3-genai-int8": ("qwen3", "genai", dict(precision="int8")),
    "qwen3-genai-qdq": ("qwen3", "genai", dict(precision="int4", extra=["use_qdq=true"])),
    "gemma2-genai-fp32": ("gemma2", "genai", dict(precision="fp32", **EAGER)),
    "gemma2-genai-full-cache-fp32": ("gemma2", "genai", dict(precision="fp32", extra=FULL_CACHE, **EAGER)),
    "gemma2-genai-full-cache-int4": ("gemma2", "genai", dict(precision="int4", extra=FULL_CACHE, **EAGER)),
    "gemma3-genai-int4": ("gemma3", "genai", dict(precision="int4")),
    "smollm-genai-bf16": ("smollm", "genai", dict(precision="bf16", processor="cuda")),
    "smollm-genai-int4-asymmetric-unshared": (
        "smollm", "genai", dict(precision="int4", extra=["is_symmetric=false", "shared_embeddings=false"])),
    "smollm-genai-int4": ("smollm", "genai", dict(precision="int4")),
    "granite-genai-fp32": ("granite", "genai", dict(precision="fp32")),
    "granite-genai-int4": ("granite", "genai", dict(precision="int4")),
    "olmo2-genai-fp32": ("olmo2", "genai", dict(precision="fp32")),
    "olmo2-genai-int4": ("olmo2", "genai", dict(precision="int4")),
    "gpt2-genai-fp32": ("gpt2", "genai", dict(precision="fp32")),
    # the same builder before transformers 5: it keeps Mistral's window and takes Gemma 3
    "llama3-genai11-int4": ("llama3", "genai11", dict(precision="int4")),
    "mistral-genai11-fp32": ("mistral", "genai11", dict(precision="fp32")),
    "mistral-genai11-int4": ("mistral", "genai11", dict(precision="int4")),
    "phi3-genai11-int4": ("phi3", "genai11", dict(precision="int4")),
    "phi3-longrope-genai11-int4": ("phi3-longrope", "genai11", dict(precision="int4")),
    "qwen2-genai11-int4": ("qwen2", "genai11", dict(precision="int4")),
    "qwen3-genai11-fp16": ("qwen3", "genai11", dict(precision="fp16")),
    "gemma2-genai11-fp32": ("gemma2", "genai11", dict(precision="fp32", **EAGER)),
    "gemma3-genai11-fp32": ("gemma3", "genai11", dict(precision="fp32")),
    "gemma3-genai11-int4": ("gemma3", "genai11", dict(precision="int4")),
    # another cell as a tool saves it: onnxslim 0.1.98, onnxsim 0.8.1, onnxconverter-common 1.16.0, olive-ai 0.13.0
    "gpt2-saved-olive-rtn": ("gpt2-optimum-fp32", "saved", dict(tool="olive-rtn")),
    "qwen2-saved-olive-rtn": ("qwen2-optimum-fp32", "saved", dict(tool="olive-rtn")),
    "smollm-saved-onnxslim": ("smollm-optimum-fp32", "saved", dict(tool="onnxslim")),
    "qwen2-saved-onnxsim": ("qwen2-dynamo23-fp32", "saved", dict(tool="onnxsim")),
    "bloom-saved-onnxsim": ("bloom-dynamo-fp32", "saved", dict(tool="onnxsim")),
    "gemma3-saved-fp16-onnxconverter": ("gemma3-dynamo-fp32", "saved", dict(tool="onnxconverter")),
}  # fmt: skip


def build_model(
    family: str, attention: str = "sdpa", wide: bool = False, shape: dict | None = None
) -> transformers.PreTrainedModel:
    """A random model of a family in float32; `wide`: heads of 16 and two blocks of 32 in a row."""
    name, extra = copy.deepcopy(FAMILIES[family])  # configurations change what they are given
    rope = extra.get("rope_parameters", {})
    if wide and "short_factor" in rope:  # one factor for each pair of elements of a head
        rope = {k: 2 * v if k.endswith("_factor") else v for k, v in rope.items()}
        extra = {**extra, "rope_parameters": rope, "rope_scaling": rope}
    settings = {**SHAPE, **(WIDE if wide else {}), **extra, **(shape or {})}
    config = getattr(transformers, name)(**{k: v for k, v in settings.items() if v is not LEFT_OUT})
    config._experts_implementation = "eager"
    config._attn_implementation = attention
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(2026)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = "norm" in key or "ln_" in key
            if is_norm and key.endswith("weight"):
                # Gemma's and Nemotron's norms multiply by 1 + weight
                weight.copy_((0.0 if family.startswith(("gemma", "vaultgemma", "nemotron")) else 1.0) + 0.2 * noise)
            elif key.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif any(k in key for k in ("embed_tokens", "lm_head", "wte", "wpe")):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise / weight.shape[-1] ** 0.5)
    return model


class Plain(torch.nn.Module):
    """Logits only, without a cache."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        """Logits [B,S,vocab]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


class Start(torch.nn.Module):
    """What optimum calls decoder_model: logits and the cache that a text starts with, without one to go on from."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        """Logits and the presents."""
        cache = transformers.DynamicCache()
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return out.logits, *(x for layer in cache.layers for x in (layer.keys, layer.values))


class FlatCache(torch.nn.Module):
    """WithCache with any of the integer inputs left out, and the cache as a flat list of tensors."""

    def __init__(self, model: transformers.PreTrainedModel, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = WithCache(model), inputs

    def forward(self, *tensors):
        """Logits and the presents."""
        given = dict(zip(self.inputs, tensors, strict=False))
        flat = tensors[len(self.inputs) :]
        past = list(zip(flat[0::2], flat[1::2], strict=True))
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if mask is not None and positions is None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past[0][0].shape[2] :]
        return self.model(given["input_ids"], mask, positions, past)


_INPUTS = {
    "all": ("input_ids", "attention_mask", "position_ids"),
    "mask": ("input_ids", "attention_mask"),
    "ids": ("input_ids",),
}


def export_torch(model: transformers.PreTrainedModel, path: Path, dynamo: bool, options: dict) -> None:
    """torch.onnx.export, the dynamo or the torchscript exporter."""
    config, opset, cache = model.config, options.get("opset", 18), options.get("cache", True)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options.get("precision", "fp32")]
    model = model.to(dtype)
    names = _INPUTS[options.get("inputs", "all")]
    b, s, p = 2, 3, 5 if cache else 0
    layers = config.num_hidden_layers - getattr(config, "num_kv_shared_layers", 0)  # those read the others' caches
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = {
        "input_ids": torch.ones(b, s, dtype=torch.int64),
        "attention_mask": torch.ones(b, p + s, dtype=torch.int64),
        "position_ids": torch.arange(p, p + s)[None].expand(b, s).contiguous(),
    }
    free = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total_sequence" if cache else "sequence"},
        "position_ids": {0: "batch", 1: "sequence"},
    }
    args, axes, inputs, outputs = [values[n] for n in names], [free[n] for n in names], list(names), ["logits"]
    if cache:
        for i in range(layers):
            for kind in ("key", "value"):
                args.append(torch.zeros(b, heads, p, dim, dtype=dtype))
                axes.append({0: "batch", 2: "past_sequence"})
                inputs.append(f"past_key_values.{i}.{kind}")
                outputs.append(f"present.{i}.{kind}")
    start = options.get("start", False)
    if start:
        outputs += [f"present.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    if config.model_type == "gemma3n_text":
        transformers.models.gemma3n.modeling_gemma3n.Gemma3nTextMLP._gaussian_topk = sparse_gate
    module = (FlatCache(model, names) if cache else Start(model) if start else Plain(model)).eval()
    if dynamo:
        shapes = (tuple(axes),) if cache else tuple(axes)
        program = torch.onnx.export(
            module, tuple(args), dynamo=True, opset_version=opset, verbose=False, input_names=inputs,
            output_names=outputs, dynamic_shapes=shapes,
        )  # fmt: skip
        proto = program.model_proto
        strip(proto)
        onnx.save(proto, path)
        return
    rest = {n: {0: "batch", 2 if n.startswith("present") else 1: "length"} for n in outputs}
    torch.onnx.export(
        module, tuple(args), str(path), dynamo=False, opset_version=opset, input_names=inputs, output_names=outputs,
        dynamic_axes={**dict(zip(inputs, axes, strict=True)), **rest},
    )  # fmt: skip
    proto = onnx.load(path)
    strip(proto)
    onnx.save(proto, path)


def sparse_gate(mlp: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Gemma 3n's gates with their factor as a number: the exporters have no inverse error function."""
    factor = statistics.NormalDist().inv_cdf(mlp.activation_sparsity)
    cut = x.mean(dim=-1, keepdim=True) + x.std(dim=-1, keepdim=True, unbiased=False) * factor
    return torch.nn.functional.relu(x - cut)


def strip(proto: onnx.ModelProto) -> None:
    """Drop the source locations, most of the file."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        del value.metadata_props[:]
    del proto.graph.value_info[:]


def export_from_checkpoint(model: transformers.PreTrainedModel, exporter: str, folder: Path, options: dict) -> None:
    """The exporters that read a checkpoint: genai's builder and optimum."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, out = Path(scratch) / "checkpoint", Path(scratch) / "out"
        model.save_pretrained(checkpoint)
        write_tokenizer(checkpoint)
        config = json.loads((checkpoint / "config.json").read_text())
        parameters = config.get("rope_parameters") or {}
        if exporter == "genai" and config["model_type"] == "phi3":  # the builder knows the older names
            config["rope_scaling"] = {**parameters, "type": parameters.get("rope_type", "default")}
        older = exporter in ("optimum", "genai11")
        if older and "rope_theta" in parameters:  # transformers 4 has rope_theta at the top
            config["rope_theta"] = parameters["rope_theta"]
            if parameters.get("rope_type", "default") == "default":
                config.pop("rope_scaling", None)
            elif parameters["rope_type"] == "longrope":  # exactly these three
                kept = {k: parameters[k] for k in ("short_factor", "long_factor")}
                config["rope_scaling"] = {"type": "longrope", **kept}
            else:
                config["rope_scaling"] = {k: v for k, v in parameters.items() if k != "rope_theta"}
        if older and "full_attention" in parameters:
            full = parameters["full_attention"]
            config["rope_theta"], config["rope_local_base_freq"] = full["rope_theta"], 10000.0
            config["rope_scaling"] = {"rope_type": full["rope_type"], "factor": full["factor"]}
        (checkpoint / "config.json").write_text(json.dumps(config))
        if exporter == "optimum":
            python = os.environ["OPTIMUM_PYTHON"]
            command = [python, "-m", "optimum.commands.optimum_cli", "export", "onnx", "-m", checkpoint]
            command += ["--task", "text-generation-with-past", out]
        else:
            python = sys.executable if exporter == "genai" else os.environ["GENAI11_PYTHON"]
            command = [python, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", out]
            command += ["-p", options["precision"], "-e", options.get("processor", "cpu"), "-c", scratch]
            command += ["--extra_options", *options["extra"]] if "extra" in options else []
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode or not (out / "model.onnx").is_file():
            lines = (done.stderr + done.stdout).strip().splitlines() or ["no output"]
            last = next((line for line in reversed(lines) if "Error" in line), lines[-1])
            raise RuntimeError(last.strip())
        for path in out.iterdir():
            if path.name in ("model.onnx", "model.onnx.data", "model.onnx_data"):
                shutil.copy(path, folder / path.name)
        if exporter == "optimum":
            proto = onnx.load(folder / "model.onnx")
            strip(proto)
            onnx.save(proto, folder / "model.onnx")


def save_by(tool: str, source: Path, path: Path) -> None:
    """A cell as another tool saves it."""
    proto = onnx.load(source)
    if tool == "onnxslim":
        import onnxslim

        proto = onnxslim.slim(proto)
    elif tool == "onnxsim":
        import onnxsim

        proto, _ = onnxsim.simplify(proto)
    elif tool == "olive-rtn":
        proto = by_olive(source, dict(type="OnnxBlockWiseRtnQuantization", block_size=32, accuracy_level=4))
    else:
        from onnxconverter_common import float16

        proto = float16.convert_float_to_float16(proto, keep_io_types=False)
    strip(proto)
    onnx.save(proto, path)


def by_olive(source: Path, settings: dict) -> onnx.ModelProto:
    """What a pass of Olive makes of a file."""
    from olive.workflows import run

    with tempfile.TemporaryDirectory() as out:
        model = dict(type="ONNXModel", model_path=str(source))
        run(dict(input_model=model, passes=dict(only=settings), output_dir=out, cache_dir=f"{out}/cache"))
        return onnx.load(Path(out) / "model.onnx")


def make(name: str) -> None:
    """Make one folder of families/ afresh, or note why that cannot be."""
    family, exporter, options = JOBS[name]
    folder = FAMILIES_DIR / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    errors = json.loads(ERRORS.read_text()) if ERRORS.is_file() else {}
    errors.pop(name, None)
    try:
        if exporter == "saved":
            save_by(options["tool"], FAMILIES_DIR / family / "model.onnx", folder / "model.onnx")
            print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes", flush=True)
            return
        # GroupQueryAttention takes heads of multiples of 16, and weights must be too large to be folded as constants
        wide = exporter.startswith("genai") or options.get("precision", "fp32") != "fp32"
        model = build_model(family, options.get("attention", "sdpa"), wide, options.get("shape"))
        if exporter in ("dynamo", "legacy"):
            export_torch(model, folder / "model.onnx", exporter == "dynamo", options)
        else:
            export_from_checkpoint(model, exporter, folder, options)
    except Exception as error:  # whatever an exporter raises is what the table shows
        shutil.rmtree(folder)
        cause = error.__cause__ or error
        text = re.sub(r"/\S*/(?=checkpoint)", "", " ".join(str(cause).split()))
        errors[name] = f"{type(cause).__name__}: {text}"[:300]
        print(name, "CANNOT", errors[name], flush=True)
    else:
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes", flush=True)
    ERRORS.write_text(json.dumps(dict(sorted(errors.items())), indent=1) + "\n")


def pack() -> None:
    """Write families.tar.xz, the same bytes from the same files."""

    def bare(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(FAMILIES_DIR.rglob("*.onnx*")):
            archive.add(path, path.relative_to(FAMILIES_DIR).as_posix(), filter=bare)


if __name__ == "__main__":
    for job in sys.argv[1:] or JOBS:
        make(job)
    pack()
