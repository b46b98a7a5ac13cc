"""What a user asks of `predict`, and the question that it makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from costmodel.decoder import DecoderSpec
from costmodel.factors import Factors
from costmodel.processor import CpuSlice
from costmodel.question import Question
from costmodel.speculative import MOST_GAMMA
from hetero_sd.compile.place import place_models
from hetero_sd.early_exit import EarlyExit
from hetero_sd.predict.inputs import (
    AlphaFile,
    check_formats,
    load_specs,
    read_alpha_file,
    read_factors,
    with_activations,
)
from hetero_sd.predict.known_models import known_model
from hetero_sd.predict.like import like
from hetero_sd.predict.slots_asked import check_branch, check_shared_prefix, check_slots
from targets.boards import load_board
from targets.device import Board
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV, kv_format

DEFAULT_ALPHA = 0.8
DEFAULT_NGRAM_MATCH = 0.5  # assumed: on code and on corrections of a text more, on free text less
DEFAULT_CONTEXT = 512
DEFAULT_NEW_TOKENS = 256
LARGEST_CONTEXT = 1 << 20
DEFAULT_WEIGHTS = ("float16",)


@dataclass(frozen=True)
class PredictRequest:
    """What the user asks.

    Attributes:
        target: an ONNX file, or a Hugging Face config.json; None where `like` names the models.
        board: name or path of a board file; None where `like` names it.
        draft: the same of a smaller model, or after which of its own layers the target drafts; None: nothing drafts.
        alpha: acceptance of a drafted token; None assumes DEFAULT_ALPHA.
        alpha_file: what `hetero-sd acceptance` wrote, in place of `alpha`.
        ngram_alpha: consider drafting from the text, with this acceptance.
        ngram_match: share of rounds in which the text has something to draft from.
        context: tokens in the KV cache when a step is priced; None is the middle of the answer.
        prompt_tokens, new_tokens: tokens of the prompt and of the answer; None is what `context` leaves, and 256.
        weights: formats that the weights of a config.json are considered in; None is float16, or what `like` says.
        head: format of its head; None is what `weights` says.
        kv: type of the KV caches.
        activations: FLOAT or INT8 for int4 and int8 weights; None is as load_specs takes it.
        threads: ``4`` or ``a76:4``: threads of a cluster (the first one); None decides it.
        place: a rule of hetero_sd/compile/place.py; None decides it.
        gamma: drafted tokens a round; None decides it.
        like: a configuration of like.py; what is given beside it replaces its parts.
        sampled: tokens are sampled, not the best ones.
        factors: factors of a calibration, in place of the board's.
        requests: that are answered at a time, by a target with as many slots.
        slots: texts that the target holds, more than `requests` where some are free; None: as many.
        branch: how often a branch begins right where the first draft is wrong, with `requests`.
        shared_prefix: tokens that the prompts of all requests begin with in common.
    """

    target: Path | None
    board: str | Path | None
    draft: Path | EarlyExit | None = None
    alpha: float | None = None
    alpha_file: Path | None = None
    ngram_alpha: float | None = None
    ngram_match: float = DEFAULT_NGRAM_MATCH
    context: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    weights: tuple[str, ...] | None = None
    head: str | None = None
    kv: str = DEFAULT_KV
    activations: str | None = None
    threads: str | None = None
    place: str | None = None
    gamma: int | None = None
    like: str | None = None
    sampled: bool = False
    factors: Path | None = None
    requests: int = 1
    slots: int | None = None
    branch: float | None = None
    shared_prefix: int | None = None

    @property
    def formats(self) -> tuple[str, ...]:
        """`weights`, or what is taken without them."""
        return DEFAULT_WEIGHTS if self.weights is None else self.weights

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of the prompt, of the answer, and in the KV cache when a step is priced: in the middle of the answer.

        Raises:
            UserError: a length out of range.
        """
        for name in ("context", "prompt_tokens", "new_tokens"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST_CONTEXT:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: must be from 1 to {LARGEST_CONTEXT} tokens")
        context = self.context
        new = self.new_tokens
        if new is None:
            new = DEFAULT_NEW_TOKENS if context is None else min(DEFAULT_NEW_TOKENS, max(1, context // 2))
        prompt = self.prompt_tokens
        if prompt is None:
            prompt = max(1, (DEFAULT_CONTEXT if context is None else context) - new // 2)
        return prompt, new, prompt + new // 2 if context is None else context


def check(request: PredictRequest) -> PredictRequest:
    """The request with what `like` says filled in.

    Raises:
        UserError: options that contradict each other, or one that is missing.
    """
    if request.like is not None:
        known = like(request.like)
        request = replace(
            request,
            board=known.board if request.board is None else request.board,
            threads=known.threads if request.threads is None else request.threads,
            place=known.place if request.place is None else request.place,
            alpha=known.alpha if request.alpha is None and request.alpha_file is None else request.alpha,
            weights=(known.weights,) if request.weights is None else request.weights,
            activations=known.activations if request.activations is None else request.activations,
        )
    elif request.target is None:
        raise UserError("a model is missing: give model.onnx or config.json, or a configuration with --like")
    if request.board is None:
        raise UserError("--board is missing")
    if request.alpha is not None and request.alpha_file is not None:
        raise UserError("--alpha and --alpha-file contradict each other: leave one out")
    gamma = None if request.ngram_alpha is not None else request.gamma or None  # text drafts without a model
    given = {"--gamma": gamma, "--alpha": request.alpha, "--alpha-file": request.alpha_file}
    for option, value in given.items():
        if value is not None and request.draft is None and request.like is None:
            raise UserError(f"{option} {value}: there is no draft model; give --draft, or leave {option} out")
    models = (request.target, request.draft)
    if request.weights is not None and request.like is None and not any(_is_config(path) for path in models):
        raise UserError("--weights: an ONNX file says how its weights are stored; leave it out")
    if request.gamma is not None and not 0 <= request.gamma <= MOST_GAMMA:
        raise UserError(f"--gamma {request.gamma}: it must lie between 0 and {MOST_GAMMA}")
    drafts = request.ngram_alpha is not None or request.draft is not None or request.like is not None
    check_slots(request.requests, request.slots)
    check_branch(request.branch, drafts and request.slots is not None)
    check_shared_prefix(request.shared_prefix, request.requests, request.lengths[0])
    request = replace(request, weights=DEFAULT_WEIGHTS if request.weights is None else request.weights)
    check_formats(request.formats, request.head)
    kv_format(request.kv)
    return request


def _is_config(model: Path | EarlyExit | None) -> bool:
    return isinstance(model, Path) and model.suffix == ".json"


def refuse_without_models(request: PredictRequest) -> None:
    """Refuse what can be refused of a checked request before its models are there.

    Raises:
        UserError: there is no such board, or it has no such place or threads; or a file cannot be read.
    """
    assert request.board is not None
    board = load_board(request.board, measure=False)
    if request.place is not None:
        has_draft = request.draft is not None or request.like is not None
        place_models(request.place, board, has_draft, isinstance(request.draft, EarlyExit))
    if request.threads is not None:
        cores_of(board, request.threads)
    if request.alpha_file is not None:
        read_alpha_file(request.alpha_file, request.sampled)
    read_factors(request.factors, board)


def question_of(request: PredictRequest, board: Board, factors: Factors, measured: AlphaFile | None) -> Question:
    """The question that a checked request makes.

    Raises:
        UserError: a file cannot be used, or an option does not fit the board or the models.
    """
    prompt, new, context = request.lengths
    targets, drafts = _models(request, context)
    early = isinstance(request.draft, EarlyExit)
    placed = {} if request.place is None else place_models(request.place, board, bool(drafts), early)
    return Question(
        board=board,
        targets=targets,
        drafts=() if request.gamma == 0 else drafts,
        alpha=measured.alpha if measured else DEFAULT_ALPHA if request.alpha is None else request.alpha,
        context=context,
        cache_rows=max(context, prompt + new),
        factors=factors,
        ngram_alpha=request.ngram_alpha,
        ngram_match=request.ngram_match,
        sampled=request.sampled,
        cores=None if request.threads is None else cores_of(board, request.threads),
        gamma=request.gamma or None,
        slots=request.requests if request.slots is None else request.slots,
        target_place=placed.get("target"),
        draft_place=None if request.gamma == 0 else placed.get("draft"),
    )


def cores_of(board: Board, text: str) -> CpuSlice:
    """The threads that --threads names: ``4`` of the first cluster, or ``a55:4``.

    Raises:
        UserError: it cannot be read, or the cluster has fewer cores.
    """
    name, colon, count = text.rpartition(":")
    cluster = board.cluster(name) if colon else board.clusters[0]
    if not count.isascii() or not count.isdecimal() or not 1 <= int(count[:9]) <= cluster.count:
        raise UserError(f"--threads {text}: give 1 to {cluster.count}, the cores of {cluster.name}; or CLUSTER:THREADS")
    return CpuSlice(((cluster, int(count)),))


def _models(request: PredictRequest, context: int) -> tuple[tuple[DecoderSpec, ...], tuple[DecoderSpec, ...]]:
    """Target and drafter in each format: of files, or those of the configuration."""
    known = None if request.like is None else like(request.like)
    found: list[tuple[DecoderSpec, ...]] = []
    names = (None, None) if known is None else (known.target, known.draft)
    for path, name in zip((request.target, request.draft), names, strict=True):
        if isinstance(path, EarlyExit):
            found.append(tuple(path.spec(target) for target in found[0]))
        elif path is not None:
            found.append(load_specs(path, request.formats, context, request.head, request.kv, request.activations))
        elif name is not None:
            specs = (known_model(name, f, request.head, request.kv) for f in request.formats)
            found.append(tuple(with_activations(spec, request.activations) for spec in specs))
        else:
            found.append(())
    return found[0], found[1]
