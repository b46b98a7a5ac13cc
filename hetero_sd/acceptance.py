"""How many drafted tokens a pair accepts, measured here with onnxruntime.

The decoding loop is the bundle's own (hetero_sd/runtime/decode/speculate.py) over the ONNX files as they are, so
quantised weights count with the acceptance they cost. Acceptance does not depend on the processor: the file that the
command writes is what `hetero-sd predict --alpha-file` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hetero_sd.acceptance_rate import Judged, judge, summary
from hetero_sd.early_exit import EarlyExit
from hetero_sd.progress import Progress
from hetero_sd.runtime.model.protocol import CHOICE, Done, Model
from targets.errors import UserError
from targets.files import refuse_no_file

if TYPE_CHECKING:
    from passes.onnx.quantise.recipe import Recipe

FORMAT = 1
DEFAULT_NEW_TOKENS = 64
DEFAULT_GAMMA = 8


@dataclass(frozen=True)
class AcceptanceRequest:
    """What is to be measured.

    Attributes:
        target: ONNX file.
        draft: another one, or after which of its own layers the target drafts.
        prompts: texts, one a line, or JSON lines.
        tokenizer: tokenizer.json or its folder; None: the one beside the target.
        max_new_tokens: generated after each prompt, 2 to 4096.
        gamma: drafted tokens a round, 1 to 16: the positions to measure.
        temperature: of the sampled run, 0 to 100; 0 leaves it out.
        seed: of the sampled run.
        eos: end-of-text ids; empty takes the stated ones.
        quantise, quantise_head, quantise_draft: as `compile` quantises float weights; None: they stay as they are.
    """

    target: Path
    draft: Path | EarlyExit
    prompts: Path
    tokenizer: Path | None = None
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    gamma: int = DEFAULT_GAMMA
    temperature: float = 1.0
    seed: int = 0
    eos: tuple[int, ...] = ()
    quantise: str | None = None
    quantise_head: str | None = None
    quantise_draft: str | None = None


@dataclass(frozen=True)
class MeasuredAcceptance:
    """What was measured.

    Attributes:
        target, draft: names of the files; an early exit as it is given.
        greedy, sampled: the temperature and the `summary` of each run; None where it was left out.
        partial: a sentence where it was interrupted, else "".
    """

    target: str
    draft: str
    greedy: dict[str, Any] | None = None
    sampled: dict[str, Any] | None = None
    partial: str = ""

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `hetero-sd predict --alpha-file` reads."""
        found = {"format": FORMAT, "target": self.target, "draft": self.draft}
        found |= {"greedy": self.greedy, "sampled": self.sampled}
        return found | ({"partial": self.partial} if self.partial else {})


class ReferenceDecoder(Model):
    """An ONNX export behind the interface of the decoding loops; a smaller `pos` rolls its cache back."""

    def __init__(self, path: Path, context: int, recipe: Recipe | None = None, early: EarlyExit | None = None) -> None:
        """Load the file; float weights are quantised by the recipe, which `compile` takes.

        With ``early`` it is the file's first layers with its head.

        Raises:
            UserError: not a decoder export that onnxruntime runs, or with fewer layers.
        """
        from hetero_sd.reference import Cache, EarlyExitReference, ReferenceModel

        self.name, self.context = path.name if early is None else str(early), context
        self._model = (
            ReferenceModel(path, recipe=recipe) if early is None else EarlyExitReference(path, early, context, recipe)
        )
        self._cache = Cache()
        self.vocab = int(self._model.forward([0]).shape[-1])

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Done:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`; the step has ended when it returns."""
        cache = self._cache
        if pos < cache.length:
            cache.arrays = {name: array[:, :, :pos] for name, array in cache.arrays.items()}
        logits = np.asarray(self._model.forward(list(ids), cache), np.float32)
        return Done(logits[-1:] if last else logits)


def measure_acceptance(request: AcceptanceRequest, quiet: bool = False) -> MeasuredAcceptance:
    """Run the pair over the prompts, greedily and sampled.

    Ctrl-C ends it with what was judged until then: the result then has `partial`, a sentence.
    `quiet` shows no progress.

    Raises:
        UserError: files that cannot be used, vocabularies that differ, numbers out of range.
        KeyboardInterrupt: before anything was judged.
    """
    from hetero_sd.compile.tokenizer_files import check_pair, find_tokenizer
    from hetero_sd.quantisation.recipes import recipes_of
    from hetero_sd.runtime.model.within_vocabulary import WithinVocabulary
    from hetero_sd.runtime.text.prompts import read_prompts
    from hetero_sd.runtime.text.tokenizer import text_of_folder

    if not 1 <= request.gamma <= 16:
        raise UserError(f"--gamma {request.gamma}: must be from 1 to 16")
    if not 2 <= request.max_new_tokens <= 4096:
        raise UserError(f"--max-new-tokens {request.max_new_tokens}: must be from 2 to 4096")
    if not 0 <= request.temperature <= 100:
        raise UserError(f"--temperature {request.temperature:g}: must be from 0 to 100")
    early = request.draft if isinstance(request.draft, EarlyExit) else None
    if early is not None:
        early.refuse_formats(request.quantise_draft)
    sources = {"target": request.target, "draft": request.draft if isinstance(request.draft, Path) else request.target}
    recipes = recipes_of(request.quantise, request.quantise_head, request.quantise_draft, tuple(sources))
    for path in sources.values():
        refuse_no_file(path, "model ")
    tokenizer = find_tokenizer(request.tokenizer, list(sources.values()), request.eos)
    prompts = read_prompts(request.prompts)
    text = text_of_folder(tokenizer.folder)
    encoded = [p.given if isinstance(p.given, list) else text.encode_prompt(p.given) for p in prompts]
    if empty := next((p for p, ids in zip(prompts, encoded, strict=True) if not ids), None):
        raise UserError(f"{empty.where} is empty: give at least one token")
    context = max(map(len, encoded)) + request.max_new_tokens + request.gamma + 1
    progress, whole = Progress(quiet=quiet), []
    for role, path in sources.items():
        exit_ = early if role == "draft" else None
        with progress.step(f"load {path}" if exit_ is None else f"load {path}, {exit_}"):
            whole.append(ReferenceDecoder(path, context, recipes.get(role), exit_))
    check_pair(request.target, whole[0].vocab, sources["draft"], whole[1].vocab, tokenizer)
    target, draft = (WithinVocabulary(model, tokenizer.vocab) for model in whole)
    found: dict[str, dict[str, Any]] = {}
    partial = ""
    for mode, temperature in (("greedy", 0.0), ("sampled", request.temperature)):
        if mode == "greedy" or temperature > 0:
            judged, complete = _run(
                target, draft, encoded, request, temperature, frozenset(tokenizer.eos_ids), mode, quiet
            )
            seen = any(any(j.seen) for j in judged)
            if not complete and not seen and mode == "greedy":
                raise KeyboardInterrupt
            if complete or seen:
                found[mode] = {"temperature": temperature, **summary(judged, request.gamma, request.seed)}
            if not complete:
                partial = f"interrupted in prompt {len(judged)} of {len(encoded)} of the {mode} run"
                break
    return MeasuredAcceptance(request.target.name, whole[1].name, found.get("greedy"), found.get("sampled"), partial)


def _run(
    target: Model,
    draft: Model,
    encoded: Sequence[list[int]],
    request: AcceptanceRequest,
    temperature: float,
    eos: frozenset[int],
    mode: str,
    quiet: bool,
) -> tuple[list[Judged], bool]:
    """Speculate after every prompt and judge the rounds; False where Ctrl-C ended it, within the last one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from hetero_sd.runtime.decode.drafters.model import ModelDrafter
    from hetero_sd.runtime.decode.generate import Request
    from hetero_sd.runtime.decode.policy import FixedGamma
    from hetero_sd.runtime.decode.sampling import Sampling
    from hetero_sd.runtime.decode.speculate import speculate
    from hetero_sd.runtime.decode.trace import Trace

    found: list[Judged] = []
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    bars = Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True, quiet=quiet), transient=True)
    most, trace = request.max_new_tokens, Trace()
    with bars:
        task = bars.add_task(mode, total=most * len(encoded))
        try:
            for i, prompt in enumerate(encoded):
                sampling = Sampling(temperature, 0, 1.0, request.seed + i)
                trace, each = Trace(), Request(most, eos, sampling)
                drafter = ModelDrafter(draft, target.vocab, sampling)
                for n, _ in enumerate(speculate(target, drafter, prompt, each, FixedGamma(request.gamma), trace), 1):
                    bars.update(task, completed=most * i + n)
                found.append(judge(trace.rounds, request.gamma))
                passed, seen = sum(sum(j.passed) for j in found), sum(sum(j.seen) for j in found)
                sofar = f", {passed / seen:.3f} accepted" if seen else ""
                bars.update(
                    task, completed=most * (i + 1), description=f"{mode}, prompt {i + 1} of {len(encoded)}{sofar}"
                )
        except KeyboardInterrupt:
            found.append(judge(trace.rounds, request.gamma))
            return found, False
    return found, True
