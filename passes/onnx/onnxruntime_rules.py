"""The operators that onnxruntime adds to ONNX's, and the types of their attributes (operator_rules.py)."""

from __future__ import annotations

from passes.onnx.operator_rule import EPSILON, LARGEST, LAST_AXIS, NO_EFFECT, ROTARY, RUN, SIZE, Must, Range, Rule
from passes.onnx.rewrite.local_functions import HIDDEN

MICROSOFT = "com.microsoft"
ONNXRUNTIME_RULES: dict[tuple[str, str], Rule] = {
    ("", "SimplifiedLayerNormalization"): Rule(
        {"axis": LAST_AXIS, "epsilon": EPSILON, "stash_type": Must((1,), 1)}, required=2, schema="onnxruntime"
    ),
    (MICROSOFT, "BiasGelu"): Rule(required=2, schema="onnxruntime"),
    (MICROSOFT, "DequantizeLinear"): Rule(
        {"axis": "lower_dequantize"}, {2: "lower_dequantize"}, required=2, schema="onnxruntime"
    ),
    (MICROSOFT, "DynamicQuantizeMatMul"): Rule(
        inputs={3: "float_activations", 4: "float_activations"}, required=3, schema="onnxruntime"
    ),
    (MICROSOFT, "FastGelu"): Rule(inputs={1: "fuse_activations"}, required=1, schema="onnxruntime"),
    (MICROSOFT, "GatherBlockQuantized"): Rule(
        {
            "bits": Range("vocabulary, weight_sizes, shape_rules, translate", 1, 8),
            "block_size": Range("lower_dequantize, vocabulary, shape_rules, translate", *SIZE),
            "gather_axis": Must((0,), 0),
            "quantize_axis": Must((1, -1), 1),
        },
        {3: "vocabulary"},
        required=3,
        schema="onnxruntime",
    ),
    (MICROSOFT, "Gelu"): Rule(required=1, schema="onnxruntime"),
    (MICROSOFT, "GroupQueryAttention"): Rule(
        {
            **dict.fromkeys(("num_heads", "kv_num_heads"), Range("lower_group_query", *SIZE)),
            "scale": Range("lower_group_query", 0, LARGEST),  # 0: one over the root of the heads' width
            "local_window_size": Range("lower_group_query", -1, SIZE[1]),
            "softcap": Range("lower_group_query", 0, LARGEST),
            **dict.fromkeys(("do_rotary", "rotary_interleaved", "sliding_window_cache"), "lower_group_query"),
            **dict.fromkeys(("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"), NO_EFFECT),
            "causal": Must((1,), 1),
            "kv_cache_bit_width": Must((0,)),
            "smooth_softmax": Must((0, -1), -1),
            "qk_output": Must((0,), 0),
            "k_quant_type": Must(("NONE",), "NONE"),
            "v_quant_type": Must(("NONE",), "NONE"),
        },
        {place: "lower_group_query" for place in (1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)},
        required=7,
        needed=("num_heads", "kv_num_heads"),
        schema="onnxruntime",
    ),
    (MICROSOFT, "MatMulIntegerToFloat"): Rule(
        inputs={place: "float_activations" for place in (4, 5, 6)}, required=4, schema="onnxruntime"
    ),
    (MICROSOFT, "MatMulBnb4"): Rule(
        {
            **dict.fromkeys(("K", "N", "block_size"), Range("vocabulary", *SIZE)),
            "quant_type": Range("translate", 0, 1),
            "transB": Must((1,), 1),  # onnxruntime has no other
            "training_mode": Must((0,), 0),
        },
        required=3,
        needed=("K", "N", "block_size", "quant_type"),
        schema="onnxruntime",
    ),
    (MICROSOFT, "MatMulNBits"): Rule(
        {
            **dict.fromkeys(("K", "N", "block_size"), Range("vocabulary", *SIZE)),
            "bits": Range("vocabulary", 1, 8),
            "accuracy_level": "exact_quantised",
            "weight_prepacked": Must((0,), 0),
        },
        {3: "vocabulary", 4: "vocabulary", 5: "vocabulary"},
        required=3,
        needed=("K", "N", "block_size"),
        schema="onnxruntime",
    ),
    (MICROSOFT, "MultiHeadAttention"): Rule(
        {
            "num_heads": Range("fuse_attention", *SIZE),
            "scale": Range("attention_sites", 0, LARGEST),
            "unidirectional": "attention_sites",
            "mask_filter_value": Range(NO_EFFECT, HIDDEN, -1e4),
        },
        {place: "attention_sites" for place in (1, 2, 3, 4, 5, 6, 7, 8, 9)},
        required=1,
        needed=("num_heads",),
        schema="onnxruntime",
    ),
    (MICROSOFT, "FusedMatMul"): Rule(
        {
            "alpha": "unfuse_onnxruntime",
            **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), "shape_rules"),
        },
        required=2,
        schema="onnxruntime",
    ),
    (MICROSOFT, "FusedGemm"): Rule(
        {
            **dict.fromkeys(("alpha", "beta", "transA", "transB"), "canonical_matmuls"),
            "activation": Must(("Relu",)),
            **dict.fromkeys(("activation_alpha", "activation_beta", "activation_gamma"), NO_EFFECT),
        },
        {2: "canonical_matmuls"},
        required=2,
        schema="onnxruntime",
    ),
    (MICROSOFT, "QuantizeLinear"): Rule(
        {"axis": "drop_fake_quantisation"}, {2: "drop_fake_quantisation"}, required=2, schema="onnxruntime"
    ),
    (MICROSOFT, "QuickGelu"): Rule({"alpha": "canonical_matmuls"}, required=1, schema="onnxruntime"),
    (MICROSOFT, "RotaryEmbedding"): Rule(
        {**ROTARY, "is_packed_batching": RUN, "scale": RUN},
        required=4,
        schema="onnxruntime",
    ),
    (MICROSOFT, "SkipLayerNormalization"): Rule(
        {"epsilon": EPSILON},
        {3: "unfuse_onnxruntime", 4: "unfuse_onnxruntime"},
        required=3,
        schema="onnxruntime",
    ),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): Rule(
        {"epsilon": EPSILON}, {3: "fuse_rms_norm"}, required=3, schema="onnxruntime"
    ),
}

# the types of the attributes of onnxruntime's operators; all others are integers
FLOATS = {"epsilon", "scale", "softcap", "alpha", "mask_filter_value"}
FLOATS |= {"qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"}
FLOATS |= {"beta", "activation_alpha", "activation_beta", "activation_gamma"}
TEXTS = {"k_quant_type", "v_quant_type", "activation"}
