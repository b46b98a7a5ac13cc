"""ONNX's own operators: those that are only run, and those that the importer translates (operator_rules.py)."""

from __future__ import annotations

from passes.onnx.operator_rule import (
    EPSILON,
    LARGEST,
    LAST_AXIS,
    LIFTED,
    NO_EFFECT,
    ROTARY,
    RUN,
    SIZE,
    SMALLEST,
    Must,
    Range,
    Rule,
)

_AXES = {"axes": RUN, "keepdims": RUN, "noop_with_empty_axes": RUN}
_RUN_OPERATORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Abs", "And", "Ceil", "Cos", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual"), ()),
    **dict.fromkeys(("IsNaN", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Neg", "NonZero", "Not", "Or"), ()),
    **dict.fromkeys(("PRelu", "Relu", "Round", "Sign", "Sin", "Size", "Softplus", "Softsign", "Sub", "Sum"), ()),
    **dict.fromkeys(("Expand", "HardSwish", "Tile", "Unsqueeze", "Where", "Xor"), ()),
    **dict.fromkeys(("Elu", "LeakyRelu", "ThresholdedRelu"), ("alpha",)),
    "CastLike": ("saturate", "round_mode"),
    "ConstantOfShape": ("value",),
    "CumSum": ("exclusive", "reverse"),
    "Einsum": ("equation",),
    "Flatten": ("axis",),
    "GatherElements": ("axis",),
    "GatherND": ("batch_dims",),
    "IsInf": ("detect_negative", "detect_positive"),
    "LogSoftmax": ("axis",),
    "Mod": ("fmod",),
    "OneHot": ("axis",),
    "Range": ("stash_type",),
    "ReduceL2": tuple(_AXES),
    "ReduceMax": tuple(_AXES),
    "ReduceMin": tuple(_AXES),
    "ReduceProd": tuple(_AXES),
    "ReduceSum": ("keepdims", "noop_with_empty_axes"),
    "ScatterElements": ("axis", "reduction"),
    "ScatterND": ("reduction",),
    "Selu": ("alpha", "gamma"),
    "TopK": ("axis", "largest", "sorted"),
    "Trilu": ("upper",),
}
# optional inputs of the operators that are only run
_RUN_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Trilu"), (1,)),
}

_CONSTANTS = ("value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings")
_TRANSLATED: dict[str, Rule] = {
    "Add": Rule(),
    "Attention": Rule(
        {
            "is_causal": "attention_sites",
            **dict.fromkeys(("q_num_heads", "kv_num_heads"), Range("fuse_attention", *SIZE)),
            "scale": Range("attention_sites", SMALLEST, LARGEST),
            "softcap": Range("attention_sites", 0, LARGEST),
            "qk_matmul_output_mode": "attention_sites",
            "softmax_precision": Must((0, 1), 0),  # float32, which everything is computed in
            "left_window_size": Must((-1,), -1),
            "right_window_size": Must((-1,), -1),
        },
        {3: "attention_sites", 4: "attention_sites", 5: "attention_sites", 6: "attention_sites"},
    ),
    "Cast": Rule(
        {"to": "weight_expression, fold_constants", "saturate": Must((1,), 1), "round_mode": Must(("up",), "up")}
    ),
    "Clip": Rule(inputs=dict.fromkeys((1, 2), f"{RUN}, vocabulary, translate")),
    "Concat": Rule({"axis": RUN}),  # one operand: nothing to read; a cache: fuse_attention runs it
    "Constant": Rule({**dict.fromkeys(_CONSTANTS, LIFTED), "sparse_value": RUN}),
    "DequantizeLinear": Rule(
        {
            "axis": "lower_dequantize",
            "block_size": Range("lower_dequantize", 0, SIZE[1]),
            "output_dtype": "lower_dequantize",
        },
        {2: "lower_dequantize"},
    ),
    "Div": Rule(),
    "DynamicQuantizeLinear": Rule(),
    "Dropout": Rule({"seed": NO_EFFECT}, {1: "fold_constants", 2: "fold_constants"}),
    "Erf": Rule(),
    "Gather": Rule({"axis": "vocabulary, learned_positions"}),
    "Gelu": Rule({"approximate": "fuse_activations"}),
    "Gemm": Rule(dict.fromkeys(("alpha", "beta", "transA", "transB"), "canonical_matmuls"), {2: "canonical_matmuls"}),
    "Identity": Rule(),
    "If": Rule(dict.fromkeys(("then_branch", "else_branch"), "pick_branch")),
    "LayerNormalization": Rule({"axis": LAST_AXIS, "epsilon": EPSILON, "stash_type": Must((1,), 1)}, {2: "vocabulary"}),
    "MatMul": Rule(),
    "MatMulInteger": Rule(inputs={2: "float_activations", 3: "float_activations"}),
    "Mul": Rule(),
    "Pow": Rule(),
    "QuantizeLinear": Rule(
        {
            "axis": "drop_fake_quantisation",
            "block_size": "drop_fake_quantisation",
            "output_dtype": "drop_fake_quantisation",
            "precision": NO_EFFECT,
            "saturate": NO_EFFECT,
        },
        {2: "drop_fake_quantisation"},
    ),
    "RMSNormalization": Rule({"axis": LAST_AXIS, "epsilon": EPSILON, "stash_type": Must((1,), 1)}),
    "Reciprocal": Rule(),
    "ReduceMean": Rule(
        {"axes": "fuse_rms_norm", "keepdims": "fuse_rms_norm", "noop_with_empty_axes": NO_EFFECT}, {1: "fuse_rms_norm"}
    ),
    "Reshape": Rule({"allowzero": "vocabulary"}),
    "RotaryEmbedding": Rule(ROTARY, {3: RUN}),
    "Shape": Rule(dict.fromkeys(("start", "end"), "resolve_shapes, shapes")),
    "Sigmoid": Rule(),
    "Slice": Rule(inputs={3: "split_packed", 4: "split_packed"}),
    "Softmax": Rule({"axis": LAST_AXIS}),
    "Split": Rule(
        {"axis": "split_packed, vocabulary", "num_outputs": Range("split_packed", *SIZE)}, {1: "split_packed"}
    ),
    "Sqrt": Rule(),
    "Squeeze": Rule(inputs={1: RUN}),
    "Swish": Rule({"alpha": "canonical_matmuls"}),
    "Tanh": Rule(),
    "Transpose": Rule({"perm": "vocabulary, norm_by_head"}),
}

ONNX_RULES: dict[str, Rule] = {
    **{
        name: Rule(dict.fromkeys(names, RUN), dict.fromkeys(_RUN_INPUTS.get(name, ()), RUN))
        for name, names in _RUN_OPERATORS.items()
    },
    **_TRANSLATED,
}
