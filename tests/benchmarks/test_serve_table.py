"""benchmarks/serve_table.py: ratios are those of each round, and llama.cpp stands there where it was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALONE = {"alone_tokens_per_s": 10.0, "alone_cpu_ms": 8.0, "alone_gap_ms": 2.0, "counted_out_alone_cpu_ms": 6.0}
TOGETHER = {
    **{"together_tokens_per_s": 40.0, "together_cpu_ms": 2.0, "together_gap_ms": 3.0, "counted_out_cpu_ms": 2.0},
    **{"together_longest_gap_ms": 5.0, "beside_a_prompt_longest_gap_ms": 7.0},
}
PEER = {"llama_cpp_tokens_per_s": 20.0, "llama_cpp_cpu_ms": 5.0}


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from serve_table import http_lines, prefix_lines, ratios_of, together_lines

    first = ALONE | TOGETHER
    slower = first | {"alone_tokens_per_s": 5.0, "together_tokens_per_s": 10.0}
    assert ratios_of([first]) == {"speed": 4.0, "cpu": 4.0, "gap": 1.5, "counted_out": 3.0}
    assert ratios_of([first, slower, slower])["speed"] == 2.0
    assert ratios_of([first | PEER])["beside_llama_cpp"] == 2.0
    assert ratios_of([first | PEER])["cpu_beside_llama_cpp"] == 2.5
    alone, beside = ([*together_lines([r], 192)] for r in (first, first | PEER))
    assert beside[: len(alone)] == alone
    assert [line.split()[-3:] for line in beside[len(alone) + 1 :]] == [
        ["20.0", "40.0", "2.00"],
        ["5.00", "2.00", "2.50"],
    ]
    assert not any("llama" in line for line in alone)
    read = {"prompt_tokens_read_apart": 40, "prompt_tokens_read": 10, "prefix_saved": 0.9, "apart_s": 4.0}
    times = {"in_common_s": 2.0, "apart_cpu_s": 3.0, "in_common_cpu_s": 1.0}
    *_, seconds, cpu, saved = prefix_lines([read | times])
    assert (seconds.split()[-1], cpu.split()[-1], saved.split()[-1]) == ("2.00", "3.00", "90.0%")
    by_http = {"ours_tokens_per_s": 30.0, "llama_server_tokens_per_s": 20.0}
    by_http |= {"ours_gap_ms": 4.0, "llama_server_gap_ms": 10.0}
    lines = [line.split()[-3:] for line in http_lines([by_http, by_http, by_http | {"ours_tokens_per_s": 80.0}])]
    assert lines[1:] == [["20.00", "30.00", "1.50"], ["10.00", "4.00", "2.50"]]
