"""A session of onnxruntime for a model whose weights stay in their files, or in the memory where they were computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime

from passes.onnx.pass_context import emit, replace_uses
from targets.errors import UserError

_MICROSOFT = "com.microsoft"
_IN_MEMORY = "in memory"
_NO_PACKED_WEIGHTS = "session.disable_prepacking"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def make_session(model: Any, path: Path, threads: int = 0, lean: bool = False) -> Any:
    """An unoptimised CPU session of an `onnx_ir` model, which was read from `path`; weights are read from their files.

    A `lean` one has every weight in memory once, also while it runs. Its attribute `fed` are arrays that every run must
    be given.

    Raises:
        UserError: onnxruntime refuses the model, for instance an operator it has on GPUs only.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    held, fed = dict[str, Any](), dict[str, Any]()
    if lean:
        options.add_session_config_entry(_NO_PACKED_WEIGHTS, "1")
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        _read_transposed(model)
        fed = _as_inputs(model)
    else:
        held = _held(model)
    proto = ir.to_proto(model)
    options.add_external_initializers(list(held), list(held.values()))
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(_below_one_folder(model, proto) or path.parent))
    try:
        content = proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path}: onnxruntime cannot load it: {' '.join(str(error).split())[:300]}") from error
    session.held, session.fed = held, fed  # it reads them where they are
    return session


def _read_transposed(model: Any) -> None:
    """MatMul(x, Transpose(W)) -> FusedMatMul(x, W){transB}, for which no transposed W is made."""
    for node in list(model.graph):
        maker = node.inputs[1].producer() if node.op_type == "MatMul" and not node.domain else None
        if maker is None or maker.op_type != "Transpose" or maker.inputs[0].producer() is not None:
            continue
        if len(maker.inputs[0].shape or ()) == 2:
            fused = emit(node, "FusedMatMul", [node.inputs[0], maker.inputs[0]], {"transB": 1}, domain=_MICROSOFT)
            model.graph.opset_imports.setdefault(_MICROSOFT, 1)
            replace_uses(node.outputs[0], fused.outputs[0])
    common.RemoveUnusedNodesPass()(model)


def _as_inputs(model: Any) -> dict[str, Any]:
    """Matrices that are computed here become inputs: of an initialiser in memory onnxruntime makes a copy."""
    fed = {}
    for name, value in list(model.graph.initializers.items()):
        if _is_computed(value):
            fed[name] = np.ascontiguousarray(value.const_value.numpy())
            model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
    return fed


def _is_computed(value: Any) -> bool:
    return isinstance(value.const_value, ir.LazyTensor) and len(value.const_value.shape) == 2


def _held(model: Any) -> dict[str, Any]:
    """Matrices that are computed here, by name, which onnxruntime reads in memory: a message holds 2 GiB at most."""
    held = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if _is_computed(value):
            numbers = np.ascontiguousarray(tensor.numpy())
            held[name] = onnxruntime.OrtValue.ortvalue_from_numpy(numbers)
            value.const_value = ir.ExternalTensor(
                _IN_MEMORY, 0, numbers.nbytes, tensor.dtype, shape=tensor.shape, name=name
            )
    return held


def _below_one_folder(model: Any, proto: Any) -> Path | None:
    """Name the external files from one folder, which onnxruntime asks for; a hub's cache has them in another one."""
    files = {
        name: Path(value.const_value.path)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.location != _IN_MEMORY
    }
    if not files:
        return None
    folder = Path(os.path.commonpath([file.parent for file in files.values()]))
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data if tensor.name in files else ():
            if entry.key == "location":
                entry.value = str(files[tensor.name].relative_to(folder))
    return folder
