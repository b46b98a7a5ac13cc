"""What quantising costs: the quantised models beside the float ones over texts, by onnxruntime on both.

A model's row n of logits is its distribution p of token n + 1. Over all rows: the KL divergence of the quantised from
the float distribution, sum p ln(p / q) in nats; the perplexity of the texts' own tokens under each; how often both
would choose the same next token. Of a pair: how probable it is that the target accepts the drafter's token after the
same text, greedily (both choose the same token) and sampled at temperature 1 (sum min(p, q)). Texts are as given; a
pair's acceptance on its own answers is what `hetero-sd acceptance` measures.

One model is in memory at a time: what is kept of each are its rows, in a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.progress import Progress
from hetero_sd.quantisation.recipes import Quantisation
from hetero_sd.quantisation.stored_rows import Rows, RowsFile, StoredRows
from hetero_sd.runtime.text.prompts import read_prompts
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError

TEXTS = Path(__file__).with_name("texts.txt")
_MOST_TOKENS = 512  # of our own texts, all together, so that it takes seconds
_TOKENS_AT_ONCE = 64  # of a run, so that the logits of a large vocabulary take less memory than its embedding
_ROWS_AT_ONCE = 16  # of which float64 numbers are in memory
SomeRows = Rows | StoredRows


@dataclass(frozen=True)
class ModelCost:
    """One model.

    Attributes:
        recipe: for people.
        activations: FLOAT or INT8, of the quantised model.
        kl_nats: mean KL divergence of a row.
        perplexity, float_perplexity: of the texts; None where no text has two tokens.
        agreement: share of rows where both choose the same token.
    """

    recipe: str
    activations: str
    kl_nats: float
    perplexity: float | None
    float_perplexity: float | None
    agreement: float


@dataclass(frozen=True)
class PairCost:
    """Acceptance of a drafted token, of the pair as it is compiled and of the float one."""

    greedy: float
    float_greedy: float
    sampled: float
    float_sampled: float


@dataclass(frozen=True)
class QuantisationCost:
    """All that was measured.

    Attributes:
        source: where the texts come from, for people.
        tokens: rows that were compared.
        models: those that are quantised, by role.
        pair: None without a drafter.
    """

    source: str
    tokens: int
    models: dict[str, ModelCost]
    pair: PairCost | None


@dataclass(frozen=True)
class Texts:
    """Texts to measure on: where they come from, for people, and their tokens."""

    source: str
    encoded: tuple[list[int], ...]

    def within(self, context: int) -> Texts:
        """The same, cut where the context ends."""
        return Texts(self.source, tuple(ids[:context] for ids in self.encoded))


def encode_texts(prompts: Path | None, tokenizer: Path) -> Texts:
    """The texts of a file, or the first tokens of ours.

    Raises:
        UserError: a file that cannot be read, or in which nothing has a token.
    """
    text = Text(lambda name: p if (p := tokenizer / name).is_file() else None)
    encoded, left = list[list[int]](), _MOST_TOKENS
    for prompt in read_prompts(TEXTS if prompts is None else prompts):
        ids = prompt.given if isinstance(prompt.given, list) else text.encode_prompt(prompt.given, chat=False)
        ids = ids[:left] if prompts is None else ids
        left -= len(ids)
        encoded += [ids] if ids else []
    if not encoded:
        raise UserError(f"{prompts or TEXTS}: none of its texts has a token")
    return Texts("texts that come with hetero-sd" if prompts is None else str(prompts), tuple(encoded))


def measure_cost(
    sources: Mapping[str, Path],
    quantisation: Quantisation,
    activations: Mapping[str, str],
    texts: Texts,
    folder: Path,
    progress: Progress,
) -> QuantisationCost:
    """Run every model, and every quantised one, over the texts.

    Args:
        sources: ONNX files by role.
        quantisation: of those models that are quantised.
        activations: FLOAT or INT8 by role.
        texts: that they run over.
        folder: with room for the rows, which lie in a file without a name.
        progress: shows a step for each run.

    Raises:
        UserError: a recipe that does not fit its file, a token that a model does not have.
    """
    from hetero_sd.reference import ReferenceModel

    encoded, kept = texts.encoded, RowsFile(folder)

    def rows(what: str, path: Path, **more: Any) -> list[StoredRows]:
        with progress.step(f"{what}: run by onnxruntime on {sum(map(len, encoded))} tokens"):
            model = ReferenceModel(path, lean=True, **more)
            return [kept.add(map(log_softmax, model.rows(ids, _TOKENS_AT_ONCE))) for ids in encoded]

    models: dict[str, ModelCost] = {}
    exact, ours = dict[str, list[StoredRows]](), dict[str, list[StoredRows]]()
    for role, path in sources.items():
        exact[role] = ours[role] = rows(f"{role}, float", path)
        if role in quantisation.recipes:
            recipe, rounded = quantisation.recipes[role], activations[role]
            given = {"activations": rounded, "recipe": recipe, "scales": quantisation.scales[role]}
            ours[role] = rows(f"{role}, quantised", path, **given)
            models[role] = model_cost(recipe.text, rounded, encoded, exact[role], ours[role])
    pair = pair_cost(exact, ours) if "draft" in sources else None
    return QuantisationCost(texts.source, sum(map(len, encoded)), models, pair)


def log_softmax(logits: npt.NDArray[Any]) -> Rows:
    """Of each row, float32; computed in float64, some rows at a time."""
    found = np.empty(logits.shape, np.float32)
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        part = logits[start : start + _ROWS_AT_ONCE].astype(np.float64)
        part -= part.max(-1, keepdims=True)
        found[start : start + _ROWS_AT_ONCE] = part - np.log(np.exp(part).sum(-1, keepdims=True))
    return found


def model_cost(
    recipe: str, activations: str, encoded: Sequence[list[int]], exact: Sequence[SomeRows], ours: Sequence[SomeRows]
) -> ModelCost:
    """The float rows (log-probabilities of each text's next tokens) beside the quantised ones."""
    kl = sum(float((np.exp(p.astype(np.float64)) * (p.astype(np.float64) - q)).sum()) for p, q in _pairs(exact, ours))
    same = sum(int((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in _pairs(exact, ours))
    rows = sum(map(len, exact))
    return ModelCost(
        recipe, activations, max(0.0, kl / rows), _perplexity(encoded, ours), _perplexity(encoded, exact), same / rows
    )


def pair_cost(exact: Mapping[str, Sequence[SomeRows]], ours: Mapping[str, Sequence[SomeRows]]) -> PairCost:
    """Acceptance by the rows of "target" and "draft"; tokens that only one of them has are never accepted."""
    found = []
    for rows in (ours, exact):
        total = sum(map(len, rows["target"]))
        greedy = sampled = 0.0
        for p, q in _pairs(rows["target"], rows["draft"]):
            both = min(p.shape[-1], q.shape[-1])
            greedy += float((p.argmax(-1) == q.argmax(-1)).sum())
            sampled += float(np.exp(np.minimum(p[:, :both], q[:, :both]).astype(np.float64)).sum())
        found += [(greedy / total, sampled / total)]
    return PairCost(found[0][0], found[1][0], found[0][1], found[1][1])


def _pairs(first: Sequence[SomeRows], second: Sequence[SomeRows]) -> Iterator[tuple[Rows, Rows]]:
    """The same few rows of both, so that little memory is taken."""
    for a, b in zip(first, second, strict=True):
        yield from zip(_few(a), _few(b), strict=True)


def _few(rows: SomeRows) -> Iterator[Rows]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[start : start + _ROWS_AT_ONCE]


def _perplexity(encoded: Sequence[list[int]], rows: Sequence[SomeRows]) -> float | None:
    judged = []
    for ids, text in zip(encoded, rows, strict=True):
        following = ids[1:]
        for few in _few(text):
            known = few[: len(following)]
            judged.append(known[np.arange(len(known)), following[: len(known)]])
            following = following[len(known) :]
    if not sum(map(len, judged)):
        return None
    mean = -float(np.concatenate(judged).astype(np.float64).mean())
    return math.exp(mean) if mean < 700 else math.inf
