"""What benchmarks/serve.py measured, for people: medians over the rounds, and the medians of each round's ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

Round = Mapping[str, float]
_RATIOS = {
    "speed": ("together_tokens_per_s", "alone_tokens_per_s"),
    "cpu": ("alone_cpu_ms", "together_cpu_ms"),
    "gap": ("together_gap_ms", "alone_gap_ms"),
    "counted_out": ("counted_out_alone_cpu_ms", "counted_out_cpu_ms"),
    "beside_llama_cpp": ("together_tokens_per_s", "llama_cpp_tokens_per_s"),
    "cpu_beside_llama_cpp": ("llama_cpp_cpu_ms", "together_cpu_ms"),
}


def medians_of(rounds: Sequence[Round]) -> dict[str, float]:
    """Of each number."""
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def ratios_of(rounds: Sequence[Round]) -> dict[str, float]:
    """Medians of the ratios, of those whose numbers were measured."""
    known = {name: pair for name, pair in _RATIOS.items() if set(pair) <= set(rounds[0])}
    return {name: statistics.median(r[over] / r[under] for r in rounds) for name, (over, under) in known.items()}


def together_lines(rounds: Sequence[Round], long_prompt: int) -> Iterator[str]:
    """Requests together and one by one, and beside llama.cpp where it was measured."""
    median, ratio = medians_of(rounds), ratios_of(rounds)

    def line(title: str, number: str, digits: int, of: str, other: str = "alone") -> str:
        first, second = (median[number.format(who)] for who in (other, "together"))
        return f"{title:34}{first:>12.{digits}f}{second:>12.{digits}f}{ratio[of]:>8.2f}"

    yield f"{'':34}{'one by one':>12}{'together':>12}{'ratio':>8}"
    yield line("tokens/s, prompts included", "{}_tokens_per_s", 1, "speed")
    yield line("CPU ms a token", "{}_cpu_ms", 2, "cpu")
    counted = median["counted_out_alone_cpu_ms"], median["counted_out_cpu_ms"]
    yield f"{'  counted out from its calls':34}{counted[0]:>12.2f}{counted[1]:>12.2f}{ratio['counted_out']:>8.2f}"
    yield line("ms between tokens, median", "{}_gap_ms", 2, "gap")
    yield f"{'the longest':34}{'':>12}{median['together_longest_gap_ms']:>12.2f}"
    beside = f"beside a prompt of {long_prompt} tokens"
    yield f"{beside:34}{'':>12}{median['beside_a_prompt_longest_gap_ms']:>12.2f}"
    if "beside_llama_cpp" in ratio:
        yield f"{'':34}{'llama.cpp':>12}{'together':>12}{'ratio':>8}"
        yield line("tokens/s, prompts included", "{}_tokens_per_s", 1, "beside_llama_cpp", "llama_cpp")
        yield line("CPU ms a token", "{}_cpu_ms", 2, "cpu_beside_llama_cpp", "llama_cpp")


def http_lines(rounds: Sequence[Round]) -> Iterator[str]:
    """The same requests together over HTTP, to llama.cpp's server and ours; nothing of no rounds."""
    if not rounds:
        return
    median = medians_of(rounds)
    yield f"{'by HTTP':34}{'llama.cpp':>12}{'ours':>12}{'ratio':>8}"
    for name, number, over, under in (
        ("tokens/s, prompts included", "tokens_per_s", "ours", "llama_server"),
        ("ms between tokens, median", "gap_ms", "llama_server", "ours"),
    ):
        ratio = statistics.median(r[f"{over}_{number}"] / r[f"{under}_{number}"] for r in rounds)
        theirs, ours = median[f"llama_server_{number}"], median[f"ours_{number}"]
        yield f"{name:34}{theirs:>12.2f}{ours:>12.2f}{ratio:>8.2f}"


def prefix_lines(rounds: Sequence[Round]) -> Iterator[str]:
    """Prompts with a beginning in common, with its rows in common and without."""
    median = medians_of(rounds)
    yield f"{'':34}{'apart':>12}{'in common':>12}{'ratio':>8}"
    for name, apart, common in (
        ("prompt tokens read", "prompt_tokens_read_apart", "prompt_tokens_read"),
        ("seconds", "apart_s", "in_common_s"),
        ("CPU seconds", "apart_cpu_s", "in_common_cpu_s"),
    ):
        ratio = statistics.median(r[apart] / r[common] for r in rounds)
        yield f"{name:34}{median[apart]:>12.2f}{median[common]:>12.2f}{ratio:>8.2f}"
    yield f"{'of the beginnings not read':34}{'':>12}{100 * median['prefix_saved']:>11.1f}%"
