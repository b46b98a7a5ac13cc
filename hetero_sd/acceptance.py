"""`hetero-sd acceptance`: how many drafted tokens a pair really accepts, measured here with onnxruntime.

The decoding loop is the bundle's own (hetero_sd/runtime/decode/speculate.py) over the ONNX files as they are, so
quantised weights count
with the acceptance they cost. Acceptance does not depend on the processor: the file this writes feeds
`hetero-sd predict --alpha-file`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodel.speculative import expected_tokens
from hetero_sd.progress import Progress
from hetero_sd.runtime.model.protocol import CHOICE, Done, Model
from targets.errors import UserError
from targets.files import write_text

FORMAT = 1
DEFAULT_NEW_TOKENS = 64
DEFAULT_GAMMA = 8
_RESAMPLES = 1000

EXAMPLE = """\
example:
  hetero-sd acceptance target/model.onnx draft/model.onnx --prompts prompts.txt --tokenizer target --out alpha.json
  hetero-sd predict target/model.onnx --draft draft/model.onnx --board imx95 --alpha-file alpha.json
"""


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    p.add_argument("target", metavar="TARGET.onnx", type=Path, help="the model whose text is wanted")
    p.add_argument("draft", metavar="DRAFT.onnx", type=Path, help="the drafter")
    p.add_argument("--prompts", metavar="FILE", type=Path, required=True, help="texts, one a line, or JSON lines")
    p.add_argument(
        "--tokenizer", metavar="FILE|DIR", type=Path, help="tokenizer.json or its folder (default: beside the target)"
    )
    p.add_argument("--max-new-tokens", metavar="N", type=int, default=DEFAULT_NEW_TOKENS, help="a prompt (default 64)")
    p.add_argument("--gamma", metavar="N", type=int, default=DEFAULT_GAMMA, help="positions to measure (default 8)")
    p.add_argument(
        "--temperature", metavar="T", type=float, default=1.0, help="of the sampled run (default 1; 0 leaves it out)"
    )
    p.add_argument("--seed", metavar="N", type=int, default=0, help="of the sampled run (default 0)")
    p.add_argument("--eos", metavar="ID", type=int, action="append", default=[], help="end-of-text id (repeatable)")
    p.add_argument("--out", metavar="FILE", type=Path, help="write the result as JSON")
    p.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """The subcommand; 130 where it was interrupted and shows what it has so far."""
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    result = measure_acceptance(options)
    text = json.dumps(result, indent=1)
    if options.out is not None:
        write_text(options.out, text + "\n")
    print(text if options.json else acceptance_text(result))
    return 130 if "partial" in result else 0


class ReferenceDecoder(Model):
    """An ONNX export behind the interface of the decoding loops; a smaller `pos` rolls its cache back."""

    def __init__(self, path: Path, context: int) -> None:
        """Load the file.

        Raises:
            UserError: not a decoder export that onnxruntime runs.
        """
        from hetero_sd.reference import Cache, ReferenceModel

        self.name, self.context = path.name, context
        self._model, self._cache = ReferenceModel(path), Cache()
        self.vocab = int(self._model.forward([0]).shape[-1])

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Done:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`; the step has ended when it returns."""
        cache = self._cache
        if pos < cache.length:
            cache.arrays = {name: array[:, :, :pos] for name, array in cache.arrays.items()}
        logits = np.asarray(self._model.forward(list(ids), cache), np.float32)
        return Done(logits[-1:] if last else logits)


@dataclass(frozen=True)
class Judged:
    """Verdicts of one prompt: `seen[i]` drafts reached position i (from 0), all before accepted; `passed[i]` passed."""

    seen: tuple[int, ...]
    passed: tuple[int, ...]
    rounds: int
    tokens: int


def judge(rounds: Iterable[Any], gamma: int) -> Judged:
    """Count the verdicts of rounds (trace.Round) by position."""
    seen, passed, count, tokens = [0] * gamma, [0] * gamma, 0, 0
    for r in rounds:
        if not r.drafted:
            continue
        count, tokens = count + 1, tokens + r.accepted + 1
        for i in range(min(gamma, r.drafted, r.accepted + 1)):
            seen[i] += 1
            passed[i] += i < r.accepted
    return Judged(tuple(seen), tuple(passed), count, tokens)


def summary(prompts: Sequence[Judged], gamma: int, seed: int = 0) -> dict[str, Any]:
    """Acceptance over all positions and by position, with 95 % intervals, and what it implies.

    By position: Wilson's interval. Overall: the wider of Wilson's and a bootstrap over prompts, since the tokens of one
    prompt resemble each other.
    """
    seen = [sum(j.seen[i] for j in prompts) for i in range(gamma)]
    passed = [sum(j.passed[i] for j in prompts) for i in range(gamma)]
    known = [i for i in range(gamma) if seen[i]]
    if not known:
        raise UserError("no drafted token was judged: give longer prompts' answers (--max-new-tokens) or more prompts")
    alphas = [passed[i] / seen[i] for i in known]
    alpha = sum(passed) / sum(seen)
    low, high = wilson(sum(passed), sum(seen))
    if len(prompts) >= 5:
        boot_low, boot_high = _bootstrap(prompts, seed)
        low, high = min(low, boot_low), max(high, boot_high)
    rounds = sum(j.rounds for j in prompts)
    return {
        "alpha": alpha,
        "interval": [low, high],
        "alpha_by_position": alphas,
        "interval_by_position": [list(wilson(passed[i], seen[i])) for i in known],
        "judged_by_position": [seen[i] for i in known],
        "tokens_per_round": {
            "gamma": gamma,
            "measured": sum(j.tokens for j in prompts) / rounds,
            "by_position": expected_tokens(alphas, gamma),
            "constant_alpha": expected_tokens(alpha, gamma),
        },
        "rounds": rounds,
        "prompts": len(prompts),
    }


def wilson(passed: int, seen: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    bounds = binomtest(passed, seen).proportion_ci(confidence_level=0.95, method="wilson")
    return float(bounds.low), float(bounds.high)


def _bootstrap(prompts: Sequence[Judged], seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the acceptance over prompts drawn with replacement."""
    rng = random.Random(seed)
    counts = [(sum(j.passed), sum(j.seen)) for j in prompts]
    found = []
    for _ in range(_RESAMPLES):
        drawn = rng.choices(counts, k=len(counts))
        seen = sum(s for _, s in drawn)
        if seen:
            found.append(sum(p for p, _ in drawn) / seen)
    found.sort()
    return found[int(0.025 * len(found))], found[int(0.975 * len(found))]


def measure_acceptance(options: argparse.Namespace) -> dict[str, Any]:
    """Run the pair over the prompts, greedily and sampled.

    Ctrl-C ends it with what was judged until then: the result then has `partial`, a sentence.

    Raises:
        UserError: files that cannot be used, vocabularies that differ, numbers out of range.
        KeyboardInterrupt: before anything was judged.
    """
    from hetero_sd.compile.tokenizer_files import check_pair, find_tokenizer
    from hetero_sd.runtime.model.within_vocabulary import WithinVocabulary
    from hetero_sd.runtime.text.prompts import read_prompts
    from hetero_sd.runtime.text.tokenizer import Text

    if not 1 <= options.gamma <= 16:
        raise UserError(f"--gamma {options.gamma}: must be from 1 to 16")
    if not 2 <= options.max_new_tokens <= 4096:
        raise UserError(f"--max-new-tokens {options.max_new_tokens}: must be from 2 to 4096")
    if not 0 <= options.temperature <= 100:
        raise UserError(f"--temperature {options.temperature:g}: must be from 0 to 100")
    for path in (options.target, options.draft):
        if not path.is_file():
            raise UserError(f"model {path}: there is no such file")
    tokenizer = find_tokenizer(options.tokenizer, [options.target, options.draft], options.eos)
    prompts = read_prompts(options.prompts)
    text = Text(lambda name: p if (p := tokenizer.folder / name).is_file() else None)
    encoded = [p.given if isinstance(p.given, list) else text.encode_prompt(p.given) for p in prompts]
    if empty := next((p for p, ids in zip(prompts, encoded, strict=True) if not ids), None):
        raise UserError(f"{empty.where} is empty: give at least one token")
    context = max(map(len, encoded)) + options.max_new_tokens + options.gamma + 1
    progress, whole = Progress(quiet=options.json), []
    for path in (options.target, options.draft):
        with progress.step(f"load {path}"):
            whole.append(ReferenceDecoder(path, context))
    check_pair(options.target, whole[0].vocab, options.draft, whole[1].vocab, tokenizer)
    target, draft = (WithinVocabulary(model, tokenizer.vocab) for model in whole)
    result: dict[str, Any] = {"format": FORMAT, "target": options.target.name, "draft": options.draft.name}
    result |= {"greedy": None, "sampled": None}
    for mode, temperature in (("greedy", 0.0), ("sampled", options.temperature)):
        if mode == "greedy" or temperature > 0:
            judged, complete = _run(target, draft, encoded, options, temperature, frozenset(tokenizer.eos_ids), mode)
            seen = any(any(j.seen) for j in judged)
            if not complete and not seen and mode == "greedy":
                raise KeyboardInterrupt
            if complete or seen:
                result[mode] = {"temperature": temperature, **summary(judged, options.gamma, options.seed)}
            if not complete:
                result["partial"] = f"interrupted in prompt {len(judged)} of {len(encoded)} of the {mode} run"
                break
    return result


def _run(
    target: Model,
    draft: Model,
    encoded: Sequence[list[int]],
    options: argparse.Namespace,
    temperature: float,
    eos: frozenset[int],
    mode: str,
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
    bars = Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True, quiet=options.json), transient=True)
    most, trace = options.max_new_tokens, Trace()
    with bars:
        task = bars.add_task(mode, total=most * len(encoded))
        try:
            for i, prompt in enumerate(encoded):
                sampling = Sampling(temperature, 0, 1.0, options.seed + i)
                trace, request = Trace(), Request(most, eos, sampling)
                drafter = ModelDrafter(draft, target.vocab, sampling)
                for n, _ in enumerate(speculate(target, drafter, prompt, request, FixedGamma(options.gamma), trace), 1):
                    bars.update(task, completed=most * i + n)
                found.append(judge(trace.rounds, options.gamma))
                passed, seen = sum(sum(j.passed) for j in found), sum(sum(j.seen) for j in found)
                sofar = f", {passed / seen:.3f} accepted" if seen else ""
                bars.update(
                    task, completed=most * (i + 1), description=f"{mode}, prompt {i + 1} of {len(encoded)}{sofar}"
                )
        except KeyboardInterrupt:
            found.append(judge(trace.rounds, options.gamma))
            return found, False
    return found, True


def acceptance_text(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"partial: {result['partial']}"] if "partial" in result else []
    for mode in ("greedy", "sampled"):
        found = result.get(mode)
        if found is None:
            continue
        low, high = found["interval"]
        name = mode if not found["temperature"] else f"{mode}, temperature {found['temperature']:g}"
        lines.append(
            f"{name}: acceptance {found['alpha']:.3f} ({low:.3f} to {high:.3f}), "
            f"{found['rounds']} rounds of {found['prompts']} prompts"
        )
        lines.append("  position " + "".join(f"{i:>8}" for i in range(1, len(found["alpha_by_position"]) + 1)))
        lines.append("  accepted " + "".join(f"{a:>8.3f}" for a in found["alpha_by_position"]))
        lines.append("  judged   " + "".join(f"{n:>8}" for n in found["judged_by_position"]))
        tokens = found["tokens_per_round"]
        lines.append(
            f"  tokens per round at gamma {tokens['gamma']}: {tokens['measured']:.2f} measured, "
            f"{tokens['by_position']:.2f} from the positions, {tokens['constant_alpha']:.2f} from a constant acceptance"
        )
    return "\n".join(lines)
