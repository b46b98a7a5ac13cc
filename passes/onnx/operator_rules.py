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

from passes.onnx.onnx_rules import ONNX_RULES
from passes.onnx.onnxruntime_rules import ONNXRUNTIME_RULES
from passes.onnx.operator_rule import Rule

RULES: dict[tuple[str, str], Rule] = {**{("", name): rule for name, rule in ONNX_RULES.items()}, **ONNXRUNTIME_RULES}
NAMES = {name for _, name in RULES}

# ONNX's integers that are truth values; onnxruntime does not take all other integers for true
SWITCHES = {"keepdims", "noop_with_empty_axes", "allowzero", "transA", "transB", "is_causal", "unidirectional"}
SWITCHES |= {"do_rotary", "rotary_interleaved", "interleaved", "exclusive", "reverse", "fmod", "largest", "sorted"}
SWITCHES |= {"transBatchA", "transBatchB"}
SWITCHES |= {"upper", "detect_negative", "detect_positive", "sliding_window_cache", "is_packed_batching"}
