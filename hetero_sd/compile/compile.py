"""The steps of `hetero-sd compile`: an ONNX pair, a tokenizer and a board become a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.prompt_chunks import CHUNK
from costmodel.schema.model import ModelFacts
from costmodel.schema.plan import Plan
from hetero_sd.compile.build import BuiltModel, ModelRequest, Sizes, build_model
from hetero_sd.compile.bundle import (
    copy_device_python,
    copy_opencl_runtime,
    folder_bytes,
    new_bundle,
    write_launcher,
    write_requirements,
)
from hetero_sd.compile.import_models import import_models
from hetero_sd.compile.place import place_models, place_text
from hetero_sd.compile.plan import Overrides, make_plan
from hetero_sd.compile.request import CompileRequest, check_request
from hetero_sd.compile.sign import read_private_key, sign
from hetero_sd.compile.tokenizer_files import TokenizerFiles, check_pair, find_tokenizer
from hetero_sd.compile.try_template import template_notes
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.inputs import read_alpha_file
from hetero_sd.predict.predict import Prediction
from hetero_sd.progress import Progress
from hetero_sd.quantisation.cost import QuantisationCost, encode_texts, measure_cost
from hetero_sd.quantisation.recipes import Quantisation, facts_of
from hetero_sd.runtime.manifest import write_manifest
from hetero_sd.runtime.text.tokenizer import more_templates
from targets.backend import backend
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.opencl.runtime import machine

if TYPE_CHECKING:
    from passes.onnx import Decoder
    from passes.onnx.quantise.recipe import Recipe


@dataclass(frozen=True)
class CompileResult:
    """What was decided and written; `prediction` ranks the plan's own choices, `notes` are sentences for the user.

    `runs_here` says whether this machine has the board's instruction set; `cost` is what quantising costs, or None.
    """

    plan: Plan
    prediction: Prediction
    bundle_bytes: int
    tokenizer: TokenizerFiles
    models: dict[str, BuiltModel]
    notes: tuple[str, ...] = ()
    runs_here: bool = True
    cost: QuantisationCost | None = None


def compile_bundle(request: CompileRequest, progress: Progress) -> CompileResult:
    """Compile and write the bundle; nothing is left behind when it fails.

    Raises:
        UserError: a file is missing or unusable, the models and the tokenizer do not fit each other, or the board
            cannot be compiled for.
    """
    # 1. everything that can be refused without work
    check_request(request)
    sources, early = request.sources, request.draft if isinstance(request.draft, EarlyExit) else None
    signer = None if request.sign is None else read_private_key(request.sign)
    overrides = _overrides(request)
    quantisation = Quantisation.of(request.quantise, request.quantise_head, request.quantise_draft, sources)
    if request.prompts is not None and not quantisation.recipes:
        raise UserError(f"--prompts {request.prompts}: texts are for what quantising costs; add --quantise")
    board = load_board(request.board, measure=False)
    if request.place is not None:
        place_models(request.place, board, request.draft is not None)
    tokenizer = find_tokenizer(request.tokenizer, list(sources.values()), request.eos)
    about_chats = template_notes(tokenizer.folder)

    # 2. the models as graphs, and what runs where
    texts = encode_texts(request.prompts, tokenizer.folder) if quantisation.recipes else None
    imported, context, notes = import_models(
        request.context, sources, board, tokenizer, request.activations, progress, quantisation, request.kv
    )
    if early is not None:
        imported["draft"] = early.cut(imported["target"])
    decoders = {role: decoder for role, (decoder, _) in imported.items()}
    specs = {role: spec for role, (_, spec) in imported.items()}
    if "draft" in sources:
        vocab = {role: spec.vocab for role, spec in specs.items()}
        check_pair(request.target, vocab["target"], sources["draft"], vocab["draft"], tokenizer)
    plan, prediction = make_plan(board, specs, context, overrides)

    with new_bundle(request.out) as folder:
        cost = None
        if texts is not None:
            multiplied = {role: spec.activations for role, spec in specs.items()}
            cost = measure_cost(sources, quantisation, multiplied, texts.within(context), folder, progress)
        opencl_runtime = None
        if any(backend(p).carries_runtime for placed in plan.places.values() for p in placed.place.processors):
            with progress.step(f"OpenCL runtime for {board.isa}"):
                opencl_runtime = copy_opencl_runtime(folder / "python", board.isa)

        # 3. each model: lower, build, pack
        models: dict[str, BuiltModel] = {}
        exits = [role for role, spec in specs.items() if spec.whole is not None]
        asked = {
            role: _model_request(
                *(role, decoders.pop(role), plan, board, opencl_runtime, request),
                tokenizer=tokenizer,
                activations=specs[role].activations,
                recipe=quantisation.recipes.get(owner),
                source=sources[owner],
            )
            for role in sorted(plan.places, reverse=True)
            for owner in ["target" if role in exits else role]
        }
        for role, model in asked.items():
            if role in exits:  # which is compiled with the target
                continue
            leaves = asked["draft"] if exits and role == "target" else None
            models |= _build(model, leaves, plan, board, folder, progress)
        _check_memory(board, models)

        # 4. what the device needs besides
        with progress.step("write the bundle"):
            tokenizer.copy_to(folder / "tokenizer")
            copy_device_python(folder / "python")
            write_launcher(folder, board.isa, board.name)
            write_requirements(folder, version("apache-tvm"), _has_chat_template(folder / "tokenizer"))
        if request.vendor_python is not None:
            from hetero_sd.compile.vendor import vendor_wheels

            with progress.step(f"vendor wheels for Python {request.vendor_python}"):
                vendor_wheels(folder / "site", request.vendor_python, board.isa.replace("-", "_"))
        with progress.step("hash the files"):
            described = {role: built.facts for role, built in models.items()}
            manifest = write_manifest(folder, described, plan, tokenizer.facts, board.to_json())
        if signer is not None:
            sign(manifest, signer)
        size = folder_bytes(folder)
    return CompileResult(
        *(plan, prediction, size, tokenizer, models),
        (*notes, *about_chats, *([] if request.cpu_fallback else [without_fallback(described)])),
        *(board.isa == machine(), cost),
    )


def without_fallback(models: Mapping[str, ModelFacts]) -> str:
    """What --no-cpu-fallback does to such models, by role."""
    lost = [role for role, facts in models.items() if facts.opencl_runtime is not None]
    if not lost:
        return "--no-cpu-fallback changed nothing: no part of a model runs on the GPU"
    return f"no CPU variant of the {' and the '.join(lost)}: when the GPU fails, a run ends"


def _overrides(request: CompileRequest) -> Overrides:
    measured = None if request.alpha_file is None else read_alpha_file(request.alpha_file)
    return Overrides(
        *(request.gamma, request.place, request.alpha, measured, request.factors, request.target_widths),
        slots=request.slots,
        chunks=_chunks(request.prompt_chunk),
    )


def _chunks(asked: int | None) -> tuple[int, ...]:
    """Widths of prompt chunks for what the user asks for; empty lets the plan decide."""
    return () if asked is None else (asked,) if asked <= CHUNK else (CHUNK, asked)


def _model_request(
    role: str,
    decoder: Decoder,
    plan: Plan,
    board: Board,
    opencl_runtime: Path | None,
    request: CompileRequest,
    tokenizer: TokenizerFiles,
    activations: str,
    recipe: Recipe | None,
    source: Path,
) -> ModelRequest:
    """One model of the pair, to be compiled."""
    return ModelRequest(
        role,
        decoder,
        board.cluster(plan.compiled_for(role)).core,
        plan.places[role],
        Sizes(
            *(plan.context, plan.widths[role], plan.prefill_width, plan.slots),
            long_prefill=plan.long_prefill_width,
        ),
        gpu=board.gpu,
        runtime=opencl_runtime,
        fallback=request.cpu_fallback,
        dump=request.dump_ir and request.dump_ir / role,
        activations=activations,
        kv=request.kv,
        subgraphs=request.subgraphs and request.subgraphs / role,
        tokenizer=tokenizer.facts,
        quantised=None if recipe is None else facts_of(recipe, source),
    )


def _build(
    model: ModelRequest, early_exit: ModelRequest | None, plan: Plan, board: Board, folder: Path, progress: Progress
) -> dict[str, BuiltModel]:
    """Compile one model of the pair, with first layers of it that draft."""
    where = place_text(model.place.place, board.gpu.model if board.gpu else "", model.core.name)
    widths = ", ".join(map(str, plan.widths[model.name]))
    if early_exit is not None:
        layers, own = early_exit.decoder.facts.layers, ", ".join(map(str, plan.widths[early_exit.name]))
        widths += f"; of its first {layers} layer{'s' if layers > 1 else ''} {own}"
    with progress.step(f"{model.name}: compile for {where}, widths {widths}") as advance:
        built = build_model(replace(model, exit=early_exit), folder, advance)
    return {model.name: built} if built.exit is None else {model.name: built, built.exit.facts.role: built.exit}


def _check_memory(board: Board, models: dict[str, BuiltModel]) -> None:
    """Refuse what the board cannot hold.

    Raises:
        UserError: weights and caches exceed what the board leaves free; the message has both numbers.
    """
    needed = sum(m.weights_bytes + m.facts.cache_bytes for m in models.values())
    free = board.dram.capacity_bytes - board.dram.reserved_bytes
    if needed > free:
        raise UserError(
            f"weights and KV caches need {needed >> 20} MiB, board {board.name} leaves {free >> 20} MiB free: "
            "take a smaller model, --context or --slots"
        )


def _has_chat_template(tokenizer: Path) -> bool:
    config = tokenizer / "tokenizer_config.json"
    stated = config.is_file() and '"chat_template"' in config.read_text("utf-8")
    return stated or (tokenizer / "chat_template.jinja").is_file() or bool(more_templates(tokenizer))
