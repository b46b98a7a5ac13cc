"""What `hetero-sd compile` is asked for, and what of it is refused before any model is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costmodel.prompt_chunks import LONGEST_CHUNK
from costmodel.schema.model import MOST_SLOTS
from costmodel.speculative import MOST_GAMMA, check_acceptance
from hetero_sd.compile.bundle import refuse_existing
from hetero_sd.compile.context import MOST_CONTEXT
from hetero_sd.compile.plan import check_gamma
from hetero_sd.early_exit import EarlyExit
from targets.errors import UserError
from targets.files import refuse_no_file, refuse_no_folder
from targets.kv_format import DEFAULT_KV


@dataclass(frozen=True)
class CompileRequest:
    """What the user asks for.

    Attributes:
        target: ONNX file of the target.
        tokenizer: tokenizer.json or its folder; None: the one beside the target.
        board: a board's name, or the path of a .toml file.
        out: the bundle's folder; must not exist.
        draft: ONNX file of the drafter, or after which of its own layers the target drafts; None: nothing drafts.
        context: tokens that fit the KV caches; None takes DEFAULT_CONTEXT, or fewer where a model has fewer positions.
        gamma: drafted tokens a round; None lets the plan decide.
        eos: end-of-text ids; empty takes the stated ones.
        target_widths: entry points of the target, in new tokens, besides those the plan needs.
        vendor_python: Python of the device to vendor wheels for, for example "3.12"; None vendors none.
        dump_ir: folder for the IR after each phase, or None.
        place: where each model runs, a rule of hetero_sd/compile/place.py; None lets the plan decide.
        alpha: acceptance of a drafted token that the plan counts with; None is the assumed one.
        alpha_file: what `hetero-sd acceptance` measured, in place of it.
        factors: factors of a calibration, in place of the board's.
        activations: FLOAT or INT8 for block-quantised matrix multiplications; None takes what the ONNX file allows.
        kv: of KV_FORMATS, the type in which keys and values are stored.
        cpu_fallback: a model with a part on the GPU is compiled for the CPU, too, for when the GPU fails.
        subgraphs: folder for each model's segments as ONNX files, or None.
        quantise: of float weights, of both models: a format or a file (hetero_sd/quantisation/recipes.py), or None.
        quantise_head: format of heads, in place of the default and of the file's.
        quantise_draft: of the drafter, in place of `quantise`.
        prompts: texts on which is measured what quantising costs; None takes ours.
        sign: private key to sign the manifest with, or None.
        slots: requests that `run.py --serve` answers at a time; several need as many KV caches of the target.
        prompt_chunk: tokens of a prompt that are read at a time; None lets the plan decide.
    """

    target: Path
    tokenizer: Path | None
    board: str
    out: Path
    draft: Path | EarlyExit | None = None
    context: int | None = None
    gamma: int | None = None
    eos: tuple[int, ...] = ()
    target_widths: tuple[int, ...] = ()
    vendor_python: str | None = None
    dump_ir: Path | None = None
    place: str | None = None
    alpha: float | None = None
    alpha_file: Path | None = None
    factors: Path | None = None
    activations: str | None = None
    kv: str = DEFAULT_KV
    cpu_fallback: bool = True
    subgraphs: Path | None = None
    quantise: str | None = None
    quantise_head: str | None = None
    quantise_draft: str | None = None
    prompts: Path | None = None
    sign: Path | None = None
    slots: int = 1
    prompt_chunk: int | None = None

    @property
    def sources(self) -> dict[str, Path]:
        """The ONNX files, by role; an early exit has none of its own."""
        return {"target": self.target, **({"draft": self.draft} if isinstance(self.draft, Path) else {})}


def check_request(request: CompileRequest) -> None:
    """Refuse what can be refused without reading a model.

    Raises:
        UserError: a file or folder cannot be used, a number is out of range, or an option would change nothing.
    """
    for role, path in request.sources.items():
        refuse_no_file(path, f"{role} model ")
    if request.context is not None and not 2 <= request.context <= MOST_CONTEXT:
        raise UserError(f"--context {request.context}: must be 2 to {MOST_CONTEXT} tokens")
    if not 1 <= request.slots <= MOST_SLOTS:
        raise UserError(f"--slots {request.slots}: must be 1 to {MOST_SLOTS} requests at a time")
    if request.prompt_chunk is not None and not 1 <= request.prompt_chunk <= LONGEST_CHUNK:
        raise UserError(f"--prompt-chunk {request.prompt_chunk}: must be 1 to {LONGEST_CHUNK} tokens")
    _check_drafting(request)
    refuse_existing(request.out)
    for option, folder in (("--subgraphs", request.subgraphs), ("--dump-ir", request.dump_ir)):
        if folder is not None:
            refuse_no_folder(folder, option)
    if isinstance(request.draft, EarlyExit):
        request.draft.refuse_formats(request.quantise_draft)


def _check_drafting(request: CompileRequest) -> None:
    """Refuse wrong numbers for drafts, and any where nothing drafts."""
    check_gamma(request.gamma, MOST_GAMMA)
    if request.alpha is not None and request.alpha_file is not None:
        raise UserError("--alpha and --alpha-file contradict each other: leave one out")
    if request.alpha is not None:
        check_acceptance(request.alpha)
    given = {"--gamma": request.gamma or None, "--alpha": request.alpha, "--alpha-file": request.alpha_file}
    for option, value in given.items():
        if value is not None and request.draft is None:
            raise UserError(f"{option} {value}: there is no draft model; give --draft, or leave {option} out")
