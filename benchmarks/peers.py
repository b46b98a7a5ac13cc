"""Who is timed beside our decoder (benchmarks/decode.py): each reads the same weights, and has `name` and `times`.

onnxruntime with and without spinning threads, all graph optimisations and everything bound once, the best it offers;
onnxruntime-genai, where it is installed, on the same file; llama.cpp by its Python bindings, where they are installed,
on a GGUF file of the same model. Of steps every row's logits are made, of prompts by llama.cpp the last row's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from peer_llama_cpp import LlamaCpp
from steps import CONTEXT, ROWS, clock_of, samples

NAMES = ("onnxruntime", "onnxruntime-genai", "llama.cpp")
_PACKAGES = {"llama.cpp": "llama-cpp-python"}  # where they have another name
_ENDS = 2  # a token that ends a text, for a file that has no tokenizer


class Peer(Protocol):
    """One of them."""

    name: str

    def times(self, row: str) -> list[float]:
        """Seconds of a few runs of a row of ROWS."""


def peers_of(
    names: Sequence[str], model: Path, threads: int, folder: Path, gguf: Callable[[], Path | None]
) -> tuple[list[Peer], list[str]]:
    """Those that can be had, and a line for each that cannot.

    Args:
        names: of NAMES.
        model: the ONNX file.
        threads: of each.
        folder: for files of theirs.
        gguf: gives the same model for llama.cpp, or None; asked only where it is installed.
    """
    found: list[Peer] = []
    missing: list[str] = []
    for name in names:
        if name not in NAMES:
            raise SystemExit(f"--peer {name}: there is no such peer; there are {', '.join(NAMES)}")
        package = _PACKAGES.get(name, name)
        if importlib.util.find_spec(package.replace("-", "_").removesuffix("_python")) is None:
            missing.append(f"without {name}: it is not installed; pip install {package}")
        elif name == "onnxruntime":
            found += [OrtDecoder(model, threads, True), OrtDecoder(model, threads, False)]
        elif name == "onnxruntime-genai":
            found.append(Genai(model, threads, folder))
        elif (file := gguf()) is not None:
            found.append(LlamaCpp(file, threads))
        else:
            missing.append(f"without {name}: --gguf names the same model for it")
    return found, missing


class OrtDecoder:
    """The ONNX file in onnxruntime, all graph optimisations on, everything bound once."""

    def __init__(self, path: Path, threads: int, spinning: bool) -> None:
        """Open the session; caches are shared between past and present where the graph's attention allows it."""
        import onnxruntime as ort

        self._ort = ort
        self.name = "onnxruntime" if spinning else "no spinning"
        self._bound: dict[str, Callable[[], Any]] = {}
        self._clock = clock_of(threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(path, load_external_data=False).graph
        self.shared = any(node.op_type == "GroupQueryAttention" for node in graph.node)

    def bind(self, n: int, past_rows: int) -> Callable[[], Any]:
        """A step of n tokens after `past_rows` tokens."""
        make = self._ort.OrtValue.ortvalue_from_numpy
        binding = self.session.io_binding()
        feeds = {
            "input_ids": np.ones((1, n), np.int64),
            "attention_mask": np.ones((1, past_rows + n), np.int64),
            "position_ids": np.arange(past_rows, past_rows + n, dtype=np.int64)[None],
        }
        caches = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                rows = CONTEXT if self.shared else past_rows
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                caches[value.name] = make(np.zeros((1, value.shape[1], rows, value.shape[3]), dtype))
                binding.bind_ortvalue_input(value.name, caches[value.name])
            else:
                binding.bind_ortvalue_input(value.name, make(feeds[value.name]))
        for value in self.session.get_outputs():
            past = caches.get(value.name.replace("present", "past_key_values"))
            if past is not None and self.shared:
                out = past
            else:
                rows = past_rows + n if past is not None else n
                dims = [1, value.shape[1], rows, value.shape[3]] if past is not None else [1, rows, value.shape[2]]
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                out = self._ort.OrtValue.ortvalue_from_shape_and_type(dims, dtype)
            binding.bind_ortvalue_output(value.name, out)
        return lambda: self.session.run_with_iobinding(binding)

    def times(self, row: str) -> list[float]:
        """Seconds of a few runs of a row of ROWS."""
        if row not in self._bound:
            self._bound[row] = self.bind(*ROWS[row])
        return samples(self._clock, self._bound[row])


class Genai:
    """onnxruntime-genai on the same file, whose form must be that of its builder."""

    name = "onnxruntime-genai"

    def __init__(self, model: Path, threads: int, folder: Path) -> None:
        """Open the model in a folder of links to its files, with a configuration that its graph gives."""
        import onnxruntime_genai

        folder.mkdir()
        for path in model.resolve().parent.glob(f"{model.name}*"):
            (folder / path.name).symlink_to(path)
        (folder / "genai_config.json").write_text(json.dumps(genai_config(model, threads)))
        opened = onnxruntime_genai.Model(str(folder))
        parameters = onnxruntime_genai.GeneratorParams(opened)
        parameters.set_search_options(max_length=CONTEXT)
        self._generator = onnxruntime_genai.Generator(opened, parameters)
        self._length = 0
        self._clock = clock_of(threads)

    def times(self, row: str) -> list[float]:
        """Seconds of a few runs of a row of ROWS."""
        n, past = ROWS[row]
        generator = self._generator
        if self._length != past:
            generator.rewind_to(0)
            if past:
                generator.append_tokens(np.ones(past, np.int32))
            self._length = past
        tokens = np.ones(n, np.int32)
        return samples(self._clock, lambda: generator.append_tokens(tokens), lambda: generator.rewind_to(past))


def genai_config(model: Path, threads: int) -> dict[str, Any]:
    """What onnxruntime-genai must know of a file that its builder, or passes/synthetic.py, wrote."""
    graph = onnx.load(model, load_external_data=False).graph
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}
    _, kv_heads, _, head_size = sizes["past_key_values.0.key"]
    heads = next(
        (
            a.i
            for node in graph.node
            if node.op_type == "GroupQueryAttention"
            for a in node.attribute
            if a.name == "num_heads"
        ),
        kv_heads,
    )
    decoder = {
        "session_options": {"intra_op_num_threads": threads, "provider_options": []},
        "filename": model.name,
        "head_size": head_size,
        "hidden_size": heads * head_size,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": sum(name.endswith(".key") for name in sizes if name.startswith("past")),
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids") if name in sizes},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    ids = {name: _ENDS for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    facts = {"type": "llama", **ids, "context_length": CONTEXT, "vocab_size": sizes["logits"][2], "decoder": decoder}
    return {"model": facts, "search": {"max_length": CONTEXT, "past_present_share_buffer": True}}
