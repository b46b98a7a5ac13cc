"""Every operator that the importer accepts anywhere, and what becomes of each of its attributes and optional inputs.

An attribute is read by the pass that is named, or has to have one of the values that change nothing. `RUN`: the
operator is only ever run, by onnxruntime in run_subgraph.py or by ONNX's reference evaluator in shapes.py, which read
all of it. Made against the schemas of ONNX (opset 13 to 28) and of onnxruntime 1.32; tests/passes/onnx/
test_operator_rules.py compares them. `check_nodes` refuses, before anything else reads the file, an attribute that
has another value than the one required here, and any attribute that does not stand here.

Opsets: of onnxruntime's operators there is one version. Of ONNX's, those before 13 are refused, among them the Softmax
that flattens at its axis; an attribute or input that the opset of the file does not have (Reshape's allowzero before
14, Split's num_outputs before 18, ReduceMean's axes as an attribute from 18 on) is refused by ONNX's own schema of
that opset. Attention's windows (25) must be off, its nonpad_kv_seqlen (24) must be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from passes.onnx.rewrite.local_functions import HIDDEN

MICROSOFT = "com.microsoft"
RUN = "run_subgraph, shapes"
NO_EFFECT = ""  # unless another attribute or input has a value that is refused
LIFTED = "load"  # onnx_ir makes an initialiser of it
LAST_AXIS = "last_axis"  # passes/onnx/rewrite/last_axis.py: it is the last axis, written as -1


@dataclass(frozen=True)
class Must:
    """An attribute that no pass reads: the values that it may have, its default (None: it has none) among them."""

    values: tuple[int | float | str, ...]
    default: int | float | str | None = None


@dataclass(frozen=True)
class Range:
    """A number that `reader` reads and that lies between two others, both included."""

    reader: str
    least: float
    most: float


@dataclass(frozen=True)
class Rule:
    """What the importer does with one operator.

    Attributes:
        attributes: by name: the modules that read it ("a, b"), a `Range` of it, or the `Must` it is held to.
        inputs: of the optional inputs, by their place: the modules that read it, or None: it must be absent.
        required: of onnxruntime's operators: how many inputs must be given.
        needed: of onnxruntime's operators: attributes that must be given.
        schema: where the inputs and the types of attributes are stated: "onnx", or here ("onnxruntime").
    """

    attributes: Mapping[str, str | Range | Must] = field(default_factory=dict)
    inputs: Mapping[int, str | None] = field(default_factory=dict)
    required: int = 0
    needed: tuple[str, ...] = ()
    schema: str = "onnx"

    @property
    def most_inputs(self) -> int:
        """Inputs that one of onnxruntime's operators may have here."""
        return max([self.required, *(place + 1 for place in self.inputs)])


_SIZE = (1, (1 << 31) - 1)
LARGEST = -HIDDEN
SMALLEST = 1e-30
_EPSILON = Range("fuse_rms_norm, translate", SMALLEST, LARGEST)  # at 0 a row of zeros, as padding may be, is NaN
_ROTARY: dict[str, str | Range | Must] = {
    "interleaved": RUN,
    **dict.fromkeys(("num_heads", "rotary_embedding_dim"), Range(RUN, 0, _SIZE[1])),  # 0: it is in the shape
}
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
_TRANSLATED: dict[tuple[str, str], Rule] = {
    ("", "Add"): Rule(),
    ("", "Attention"): Rule(
        {
            "is_causal": "attention_sites",
            **dict.fromkeys(("q_num_heads", "kv_num_heads"), Range("fuse_attention", *_SIZE)),
            "scale": Range("attention_sites", SMALLEST, LARGEST),
            "softcap": Range("attention_sites", 0, LARGEST),
            "qk_matmul_output_mode": "attention_sites",
            "softmax_precision": Must((0, 1), 0),  # float32, which everything is computed in
            "left_window_size": Must((-1,), -1),
            "right_window_size": Must((-1,), -1),
        },
        {3: "attention_sites", 4: "attention_sites", 5: "attention_sites", 6: "attention_sites"},
    ),
    ("", "Cast"): Rule(
        {"to": "weight_expression, fold_constants", "saturate": Must((1,), 1), "round_mode": Must(("up",), "up")}
    ),
    ("", "Clip"): Rule(inputs=dict.fromkeys((1, 2), f"{RUN}, vocabulary, translate")),
    ("", "Concat"): Rule({"axis": RUN}),  # one operand: nothing to read; a cache: fuse_attention runs it
    ("", "Constant"): Rule({**dict.fromkeys(_CONSTANTS, LIFTED), "sparse_value": RUN}),
    ("", "DequantizeLinear"): Rule(
        {
            "axis": "lower_dequantize",
            "block_size": Range("lower_dequantize", 0, _SIZE[1]),
            "output_dtype": "lower_dequantize",
        },
        {2: "lower_dequantize"},
    ),
    ("", "Div"): Rule(),
    ("", "DynamicQuantizeLinear"): Rule(),
    ("", "Dropout"): Rule({"seed": NO_EFFECT}, {1: "fold_constants", 2: "fold_constants"}),
    ("", "Erf"): Rule(),
    ("", "Gather"): Rule({"axis": "vocabulary, learned_positions"}),
    ("", "Gelu"): Rule({"approximate": "fuse_activations"}),
    ("", "Gemm"): Rule(
        dict.fromkeys(("alpha", "beta", "transA", "transB"), "canonical_matmuls"), {2: "canonical_matmuls"}
    ),
    ("", "Identity"): Rule(),
    ("", "If"): Rule(dict.fromkeys(("then_branch", "else_branch"), "pick_branch")),
    ("", "LayerNormalization"): Rule(
        {"axis": LAST_AXIS, "epsilon": _EPSILON, "stash_type": Must((1,), 1)}, {2: "vocabulary"}
    ),
    ("", "MatMul"): Rule(),
    ("", "MatMulInteger"): Rule(inputs={2: "float_activations", 3: "float_activations"}),
    ("", "Mul"): Rule(),
    ("", "Pow"): Rule(),
    ("", "QuantizeLinear"): Rule(
        {
            "axis": "drop_fake_quantisation",
            "block_size": "drop_fake_quantisation",
            "output_dtype": "drop_fake_quantisation",
            "precision": NO_EFFECT,
            "saturate": NO_EFFECT,
        },
        {2: "drop_fake_quantisation"},
    ),
    ("", "RMSNormalization"): Rule({"axis": LAST_AXIS, "epsilon": _EPSILON, "stash_type": Must((1,), 1)}),
    ("", "Reciprocal"): Rule(),
    ("", "ReduceMean"): Rule(
        {"axes": "fuse_rms_norm", "keepdims": "fuse_rms_norm", "noop_with_empty_axes": NO_EFFECT}, {1: "fuse_rms_norm"}
    ),
    ("", "Reshape"): Rule({"allowzero": "vocabulary"}),
    ("", "RotaryEmbedding"): Rule(_ROTARY, {3: RUN}),
    ("", "Shape"): Rule(dict.fromkeys(("start", "end"), "resolve_shapes, shapes")),
    ("", "Sigmoid"): Rule(),
    ("", "SimplifiedLayerNormalization"): Rule(
        {"axis": LAST_AXIS, "epsilon": _EPSILON, "stash_type": Must((1,), 1)}, required=2, schema="onnxruntime"
    ),
    ("", "Slice"): Rule(inputs={3: "split_packed", 4: "split_packed"}),
    ("", "Softmax"): Rule({"axis": LAST_AXIS}),
    ("", "Split"): Rule(
        {"axis": "split_packed, vocabulary", "num_outputs": Range("split_packed", *_SIZE)}, {1: "split_packed"}
    ),
    ("", "Sqrt"): Rule(),
    ("", "Squeeze"): Rule(inputs={1: RUN}),
    ("", "Swish"): Rule({"alpha": "canonical_matmuls"}),
    ("", "Tanh"): Rule(),
    ("", "Transpose"): Rule({"perm": "vocabulary, norm_by_head"}),
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
            "block_size": Range("lower_dequantize, vocabulary, shape_rules, translate", *_SIZE),
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
            **dict.fromkeys(("num_heads", "kv_num_heads"), Range("lower_group_query", *_SIZE)),
            "scale": Range("lower_group_query", 0, LARGEST),  # 0: one over the root of the heads' width
            "local_window_size": Range("lower_group_query", -1, _SIZE[1]),
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
            **dict.fromkeys(("K", "N", "block_size"), Range("vocabulary", *_SIZE)),
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
            **dict.fromkeys(("K", "N", "block_size"), Range("vocabulary", *_SIZE)),
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
            "num_heads": Range("fuse_attention", *_SIZE),
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
        {**_ROTARY, "is_packed_batching": RUN, "scale": RUN},
        required=4,
        schema="onnxruntime",
    ),
    (MICROSOFT, "SkipLayerNormalization"): Rule(
        {"epsilon": _EPSILON},
        {3: "unfuse_onnxruntime", 4: "unfuse_onnxruntime"},
        required=3,
        schema="onnxruntime",
    ),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): Rule(
        {"epsilon": _EPSILON}, {3: "fuse_rms_norm"}, required=3, schema="onnxruntime"
    ),
}

# ONNX's integers that are truth values; onnxruntime does not take all other integers for true
SWITCHES = {"keepdims", "noop_with_empty_axes", "allowzero", "transA", "transB", "is_causal", "unidirectional"}
SWITCHES |= {"do_rotary", "rotary_interleaved", "interleaved", "exclusive", "reverse", "fmod", "largest", "sorted"}
SWITCHES |= {"transBatchA", "transBatchB"}
SWITCHES |= {"upper", "detect_negative", "detect_positive", "sliding_window_cache", "is_packed_batching"}

# the types of the attributes of onnxruntime's operators; all others are integers
FLOATS = {"epsilon", "scale", "softcap", "alpha", "mask_filter_value"}
FLOATS |= {"qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"}
FLOATS |= {"beta", "activation_alpha", "activation_beta", "activation_gamma"}
TEXTS = {"k_quant_type", "v_quant_type", "activation"}

RULES: dict[tuple[str, str], Rule] = {
    **{
        ("", name): Rule(dict.fromkeys(names, RUN), dict.fromkeys(_RUN_INPUTS.get(name, ()), RUN))
        for name, names in _RUN_OPERATORS.items()
    },
    **_TRANSLATED,
}
NAMES = {name for _, name in RULES}
