"""What benchmarks/speculation.py measures: pairs and where they run, texts, bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAIR = ROOT / "examples" / "translation"
TEXTS = ROOT / "benchmarks" / "texts"  # repeating.jsonl, free.jsonl: what is asked of a chat model
EXIT_LAYERS = 10  # of the 30 of SmolLM2
GAMMAS = (1, 2, 4)


@dataclass(frozen=True)
class Case:
    """A bundle, what it is asked, and the processes that measure it.

    Attributes:
        name: for the table.
        request: folder of the bundle -> what compiles it.
        prompts: texts.
        hows: of benchmarks/speculation_worker.py; the first has the target alone that the others are compared with.
        gammas: fixed draft lengths.
        new: tokens of an answer.
        pocl: the board has a GPU, for which PoCL stands.
        threads: of the kernels, where both models have the same; None: all.
    """

    name: str
    request: Callable[[Path], Any]
    prompts: tuple[str, ...]
    hows: tuple[str, ...]
    gammas: tuple[int, ...] = GAMMAS
    new: int = 64
    pocl: bool = False
    threads: int | None = None


def board_with_pocl(path: Path) -> str:
    """A board file: this machine, with a GPU as an RK3566 has one, for which PoCL stands."""
    from hetero_sd.calibrate import to_toml
    from targets.boards import load_board
    from targets.read_board import board_from_json

    host, gpu = load_board("host", measure=False).to_json(), load_board("rk3566").to_json()["gpu"]
    path.write_text(to_toml(board_from_json({**host, "gpu": gpu, "name": "host-with-pocl"})), "utf-8")
    return str(path)


def cases(
    scratch: Path, quick: bool, chat: Path | None, texts: int | None = None, lengths: tuple[int, ...] = ()
) -> list[Case]:
    """All of them; models are written to ``scratch``, unless they are there.

    Of the texts of a case the first ``texts``; with fixed draft lengths other than its own where some are given.
    """
    from hetero_sd.compile.request import CompileRequest
    from hetero_sd.early_exit import EarlyExit

    sentences = tuple((PAIR / "prompts.txt").read_text("utf-8").splitlines()[: 6 if quick else 20])
    gammas = lengths or (GAMMAS[1:] if quick else GAMMAS)
    widths = tuple(g + 1 for g in gammas)

    def pair(target: Path, draft: Any, tokenizer: Path, board: str, place: str | None, **more: Any) -> Any:
        return lambda out: CompileRequest(
            *(target, tokenizer, board, out),
            **{"draft": draft, "context": 160, "target_widths": widths, "place": place, "alpha": 0.8, **more},
        )

    example = PAIR / "target" / "model.onnx", PAIR / "draft" / "model.onnx", PAIR
    apart, pocl = board_with_pocl(scratch / "pocl.toml"), "target=cpu,draft=gpu"
    found = []
    for name, models, prompts, formats in (
        ("example pair", example, sentences, (None,)),
        _large_pair(scratch, sentences, quick),
    ):
        for form in formats:
            more = {"quantise": "int8"} if form == "int8" else {}
            title = f"{name}, {form}" if form else name
            cores = pair(*models, "host-split", "cpu", **more)
            found.append(Case(f"{title}: one core beside the other", cores, prompts, ("apart", "together"), gammas))
            beside = pair(*models, apart, pocl, **more)
            found.append(Case(f"{title}: drafter on PoCL", beside, prompts, ("apart",), gammas, pocl=True))
    exits = pair(example[0], EarlyExit(1), PAIR, "host", None)
    found.append(Case("example target, early exit after layer 1", exits, sentences, ("together",), gammas, threads=1))
    found += [] if chat is None else _chat_cases(pair, chat, quick, gammas)
    return [replace(case, prompts=case.prompts[:texts]) for case in found]


def _chat_cases(pair: Any, chat: Path, quick: bool, gammas: tuple[int, ...]) -> list[Case]:
    """SmolLM2, as examples/chat/export.py writes it: n-grams, and its first layers."""
    from hetero_sd.early_exit import EarlyExit

    request = pair(
        *(chat / "model.onnx", EarlyExit(EXIT_LAYERS), chat, "host", None), context=768, activations="int8", alpha=None
    )
    found, exits = [], Case("", request, (), ("together",), gammas[:1], 128, threads=1)
    for kind in ("repeating", "free"):
        lines = (TEXTS / f"{kind}.jsonl").read_text("utf-8").splitlines()
        prompts = tuple(json.loads(line) for line in lines)[: 2 if quick else None]
        found.append(replace(exits, name=f"SmolLM2, n-grams, {kind} text", prompts=prompts, hows=("text",), gammas=()))
    return [*found, replace(exits, name=f"SmolLM2, early exit after layer {EXIT_LAYERS}", prompts=found[-1].prompts)]


def _large_pair(scratch: Path, sentences: tuple[str, ...], quick: bool) -> tuple[str, Any, tuple[str, ...], Any]:
    """Name, files, prompts and formats of the pair that is made: the example's, widened; with `quick` a small one.

    The target of the small one adds little to its first layer, which drafts: random weights, real acceptance.
    """
    from widened_pair import write_widened_pair

    from passes.onnx.testing import write_word_tokenizer
    from passes.synthetic import LlamaShape, write_early_exit_pair

    folder = scratch / ("made" if quick else "widened")
    made = (folder / "generation_config.json").is_file()  # written last
    if not quick:
        if not made:
            write_widened_pair(folder)
        models = folder / "target.onnx", folder / "draft.onnx", folder
        return "146 M and 17 M parameters", models, sentences, ("float16", "int8")
    if not made:
        folder.mkdir(exist_ok=True)
        shape = LlamaShape(layers=10, hidden=512, heads=8, kv_heads=2, ffn=1536, vocab=4000)
        write_early_exit_pair(folder / "model.onnx", folder / "short.onnx", shape, 1, 0.03, "float16", seed=5)
        write_word_tokenizer(folder, shape.vocab)
    words = tuple(f"w{7 * i + 3} w{11 * i + 5} w{3 * i + 2}" for i in range(2))
    return "30 M and 7 M parameters", (folder / "model.onnx", folder / "short.onnx", folder), words, ("float16",)
