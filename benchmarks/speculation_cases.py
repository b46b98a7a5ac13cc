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


def cases(scratch: Path, quick: bool, chat: Path | None) -> list[Case]:
    """All of them; models are written to ``scratch``, unless they are there."""
    from hetero_sd.compile.request import CompileRequest
    from hetero_sd.early_exit import EarlyExit

    sentences = tuple((PAIR / "prompts.txt").read_text("utf-8").splitlines()[: 6 if quick else 20])
    gammas = GAMMAS[1:] if quick else GAMMAS
    widths = tuple(g + 1 for g in gammas)
    made, size = _write_pair(scratch, quick)

    def pair(target: Path, draft: Any, tokenizer: Path, board: str, place: str | None, **more: Any) -> Any:
        return lambda out: CompileRequest(
            *(target, tokenizer, board, out),
            **{"draft": draft, "context": 160, "target_widths": widths, "place": place, "alpha": 0.8, **more},
        )

    example = PAIR / "target" / "model.onnx", PAIR / "draft" / "model.onnx", PAIR
    synthetic = made / "model.onnx", made / "short.onnx", made
    apart, pocl = board_with_pocl(scratch / "pocl.toml"), "target=cpu,draft=gpu"
    words = tuple(f"w{7 * i + 3} w{11 * i + 5} w{3 * i + 2}" for i in range(2 if quick else 6))
    found = []
    for name, models, prompts, formats in (
        ("example pair", example, sentences, (None,)),
        (size, synthetic, words, ("float16",) if quick else ("float16", "int8")),
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
    return found + ([] if chat is None else _chat_cases(pair, chat, quick, gammas))


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


def _write_pair(scratch: Path, quick: bool) -> tuple[Path, str]:
    """A target whose later layers add little to its first one, which drafts: random weights, real acceptance."""
    from passes.onnx.testing import write_word_tokenizer
    from passes.synthetic import LlamaShape, write_early_exit_pair

    shape = LlamaShape(layers=20, hidden=768, heads=12, kv_heads=6, ffn=2304, vocab=5000)
    if quick:
        shape = replace(shape, layers=10, hidden=512, heads=8, kv_heads=2, ffn=1536, vocab=4000)
    folder = scratch / "made"
    folder.mkdir(exist_ok=True)
    if not (folder / "generation_config.json").is_file():  # written last
        write_early_exit_pair(folder / "model.onnx", folder / "short.onnx", shape, 1, 0.03, "float16", seed=5)
        write_word_tokenizer(folder, shape.vocab)
    return folder, "30 M and 7 M parameters" if quick else "150 M and 15 M parameters"
