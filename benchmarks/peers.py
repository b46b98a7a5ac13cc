"""Who is timed beside our decoder (benchmarks/decode.py): each reads the same weights, and has `name` and `times`.

onnxruntime with and without spinning threads, all graph optimisations and everything bound once, the best it offers;
onnxruntime-genai, where it is installed, on the same file; llama.cpp by its own benchmark, which the user names, on a
GGUF file of the same model.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

WIDTHS = (1, 4, 8)
CONTEXT = 256
PAST = 128
PROMPT = 128
ROWS = {**{str(n): (n, PAST) for n in WIDTHS}, f"prompt {PROMPT}": (PROMPT, 0)}  # name -> (tokens, past)
STEPS = 5
NAMES = ("onnxruntime", "onnxruntime-genai", "llama-bench")
_ENDS = 2  # a token that ends a text, for a file that has no tokenizer


class Peer(Protocol):
    """One of them."""

    name: str

    def times(self, row: str) -> list[float]:
        """Seconds of a few runs of a row of ROWS."""


def samples(step: Callable[[], Any], rewind: Callable[[], Any] = lambda: None) -> list[float]:
    """Seconds of a few runs of one step, after one that is not counted; `rewind` follows each and is not timed."""
    step(), rewind()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        rewind()
    return times


def peers_of(
    names: Sequence[str], model: Path, threads: int, folder: Path, gguf: Path | None
) -> tuple[list[Peer], list[str]]:
    """Those that can be had, and a line for each that cannot.

    Args:
        names: of NAMES; llama-bench with "=" and its path.
        model: the ONNX file.
        threads: of each.
        folder: for files of theirs.
        gguf: the same model for llama.cpp, or None.
    """
    found: list[Peer] = []
    missing: list[str] = []
    for name, _, path in (given.partition("=") for given in names):
        if name == "onnxruntime":
            found += [OrtDecoder(model, threads, True), OrtDecoder(model, threads, False)]
        elif name == "onnxruntime-genai" and importlib.util.find_spec("onnxruntime_genai") is not None:
            found.append(Genai(model, threads, folder))
        elif name == "onnxruntime-genai":
            missing.append(f"without {name}: it is not installed; pip install {name}")
        elif name == "llama-bench" and path and gguf is not None:
            found.append(LlamaBench(Path(path), gguf, threads))
        elif name == "llama-bench":
            missing.append("without llama.cpp: build it for this machine, then --peer llama-bench=PATH --gguf FILE")
        else:
            raise SystemExit(f"--peer {name}: there is no such peer; there are {', '.join(NAMES)}")
    return found, missing


class OrtDecoder:
    """The ONNX file in onnxruntime, all graph optimisations on, everything bound once."""

    def __init__(self, path: Path, threads: int, spinning: bool) -> None:
        """Open the session; caches are shared between past and present where the graph's attention allows it."""
        import onnxruntime as ort

        self._ort = ort
        self.name = "onnxruntime" if spinning else "no spinning"
        self._bound: dict[str, Callable[[], Any]] = {}
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
        return samples(self._bound[row])


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
        return samples(lambda: generator.append_tokens(tokens), lambda: generator.rewind_to(past))


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


class LlamaBench:
    """llama.cpp's own benchmark, a process for each call: batches of n tokens after so many."""

    name = "llama.cpp"

    def __init__(self, program: Path, gguf: Path, threads: int) -> None:
        """With the path of llama-bench and a model for it."""
        self._command = [str(program), "-m", str(gguf), "-t", str(threads), "-n", "0", "-r", str(STEPS), "-o", "json"]

    def times(self, row: str) -> list[float]:
        """Seconds of a few runs of a row of ROWS."""
        n, past = ROWS[row]
        asked = ["-p", str(n), "-d", str(past)]
        done = subprocess.run([*self._command, *asked], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self._command[0]} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        (measured,) = (m for m in json.loads(done.stdout) if m["n_prompt"] == n)
        return [1e-9 * ns for ns in measured["samples_ns"]]
