"""What a question left open and what was taken for it, and the command that compiles the answer."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from costmodel.decoder import DecoderSpec
from costmodel.format import INT8
from costmodel.question import Question, Variant
from costmodel.search import Search
from costmodel.unmeasured_gpu import gpu_waits
from hetero_sd.compile.hub_name import source_of
from hetero_sd.compile.place import place_rule
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.like import like
from hetero_sd.predict.request import PredictRequest
from hetero_sd.predict.units import size
from hetero_sd.predict.weight_formats import format_text
from targets.kv_format import DEFAULT_KV


def assumptions(request: PredictRequest, search: Search, best: Variant) -> Iterator[str]:
    """What was taken where the request says nothing, and what a model's formats come to in bytes."""
    prompt, new, context = request.lengths
    if request.prompt_tokens is None or request.new_tokens is None:
        yield f"a prompt of {prompt} tokens and an answer of {new} (--prompt-tokens, --new-tokens)"
    if request.context is None:
        yield f"steps are priced in the middle of the answer, with {context} tokens in the KV cache (--context)"
    for spec in (best.target, best.draft):
        if spec is not None:
            yield _stored(spec)
    rows = search.question.cache_rows or context
    yield f"KV cache in {request.kv} (--kv): {size(best.target.kv_bytes(rows))} for {rows} tokens of the target"
    if request.threads is not None:
        yield f"{request.threads} threads as given; a compiled bundle takes the number that is predicted to be fastest"
    if request.like is not None:
        yield f"{like(request.like).title}; taken for it: {', '.join(like(request.like).assumed)}"


def _stored(spec: DecoderSpec) -> str:
    """Formats, and the bytes that a step reads: all but the rows of an embedding of its own."""
    layers, head = spec.linears(spec.attentions[0].part)[0].format, spec.head.format
    formats = f"{format_text(layers)}, head {head.dtype if head.dtype != layers.dtype else 'the same'}"
    read = spec.weight_bytes - (0 if spec.tied else spec.embedding.matrix_bytes)
    codes = "; int8 activations (--activations)" if spec.activations == INT8 else ""
    return f"{spec.name}: {formats} (--weights, --head), {size(read)} of weights read a step{codes}"


def compile_command(request: PredictRequest, best: Variant, question: Question) -> str:
    """The command that makes the best variant, to copy; a model that was a config.json has to be exported first."""
    _, _, context = request.lengths
    words = ["hetero-sd", "compile", _onnx(request.target, "target")]
    if best.draft is not None and best.draft_placement is not None:
        words += ["--draft", _onnx(request.draft, "draft"), "--gamma", str(best.gamma)]
        if request.alpha_file is not None:
            words += ["--alpha-file", str(request.alpha_file)]
        elif isinstance(question.alpha, float):
            words += ["--alpha", f"{question.alpha:g}"]
    words += ["--board", str(request.board), "--context", str(question.cache_rows or context)]
    if question.board.gpu is not None and not gpu_waits(question):  # a plan of its own may take it
        words += ["--place", place_rule(best)]
    draft = request.target if isinstance(request.draft, EarlyExit) else request.draft
    models = [(request.target, best.target), *([(draft, best.draft)] if best.draft is not None else [])]
    # what an export of a config.json will allow is not known
    open_ = any((path is None or path.suffix == ".json") and spec.activations == INT8 for path, spec in models)
    if request.activations is not None or open_:
        words += ["--activations", request.activations or INT8]
    if question.slots > 1:
        words += ["--slots", str(question.slots)]
    if request.kv != DEFAULT_KV:
        words += ["--kv", request.kv]
    return shlex.join([*words, "--out", "bundle"])


def _onnx(path: Path | EarlyExit | None, role: str) -> str:
    """The model's file or its name in the hub; of a config.json, where its export would be: beside it."""
    if isinstance(path, EarlyExit):
        return str(path)
    if path is None:
        return f"{role}/model.onnx"
    source = source_of(path)
    if path.suffix == ".json":
        return str(path.with_name("model.onnx") if source is None else replace(source, file=None))
    return str(source or path)
