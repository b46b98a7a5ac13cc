"""The audit says where speculation changes a text, and by which margin; compiled bundles pass it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero_sd.audit import AuditResult, audit_models, audit_overlapped
from hetero_sd.cli import main
from hetero_sd.commands.audit import audit_json, audit_text
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.model.protocol import CHOICE, Done, Model, Models

EXPORTS = Path(__file__).resolve().parents[1] / "data" / "exports"
WAYS = [(drafter, 3, FixedGamma(3)) for drafter in ("model", "ngram", "model+ngram")]


class Table(Model):
    """Logits by a hash of the two tokens before; `spoil` changes those of steps of several rows."""

    def __init__(self, name: str, noise: float, spoil: float = 0.0) -> None:
        rng = np.random.default_rng(5)
        self.table = rng.standard_normal((97, 6)) + noise * np.random.default_rng(6).standard_normal((97, 6))
        self.name, self.vocab, self.context, self.rows, self.spoil = name, 6, 128, list[int](), spoil

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Done:
        self.rows[pos:] = ids
        ends = range(pos + 1, pos + len(ids) + 1)
        logits = np.stack([self.table[(7 * self.rows[i - 1] + 31 * self.rows[max(0, i - 2)]) % 97] for i in ends])
        if self.spoil and len(ids) > 1 and not last:
            best = logits.argmax(-1)
            logits[np.arange(len(ids)), best] -= self.spoil
        return Done((logits[-1:] if last else logits).astype(np.float32))


def audited(spoil: float, ways: Any = WAYS) -> AuditResult:
    """Of a pair whose target's steps of several rows are off by so much, as if kernels were not row-invariant."""
    models = Models(Table("target", 0.0, spoil), Table("draft", 0.5))
    return audit_models(models, [[1, 2, 3], [4, 0], [2, 2, 2]], Request(40), ways)


def test_the_targets_own_text_passes() -> None:
    result = audited(0.0)
    assert result.passed
    assert [(way.identical, way.prompts) for way in result.ways] == [(3, 3)] * 3
    assert all(way.drafted >= way.accepted > 0 for way in result.ways)
    assert result.ways[0].drafted > result.ways[0].accepted
    assert audit_text(result).startswith("IDENTICAL")
    assert json.loads(audit_json(result))["passed"] is True


def test_rows_that_depend_on_their_number_are_found_with_their_margin() -> None:
    result = audited(0.3)
    assert not result.passed
    found = [d for way in result.ways for d in way.differences]
    assert found
    for difference in found:
        assert difference.alone != difference.speculative
        assert difference.margin is not None
        assert 0 < difference.margin <= 0.3
    text = audit_text(result)
    assert text.startswith("DIFFERENT")
    assert "which the target prefers by 0." in text
    first = json.loads(audit_json(result))["ways"][0]["differences"][0]
    assert set(first) == {"prompt", "token", "alone", "speculative", "margin"}


def overlapped(spoil: float) -> AuditResult:
    models = Models(Table("target", 0.0, spoil), Table("draft", 0.5))
    with overlapping(models, None, [0, 1], 3, 0, lambda _: None) as overlap:
        overlaps = [overlap, replace(overlap, least=3)]
        return audit_overlapped(models, [[1, 2, 3], [4, 0], [2, 2, 2]], Request(40), overlaps)


def test_drafting_beside_the_target_is_audited_too() -> None:
    result = overlapped(0.0)
    assert result.passed
    assert [(way.gamma, way.least, way.identical) for way in result.ways] == [(3, 0, 3), (3, 3, 3)]
    assert result.ways[1].drafted > result.ways[1].accepted > 0
    assert "gamma    3, overlapped, waiting for 3: 3 of 3 answers identical" in audit_text(result)
    spoilt = overlapped(0.3)
    assert not spoilt.passed
    assert all(d.margin is not None and d.margin <= 0.3 for way in spoilt.ways for d in way.differences)
    assert audit_text(replace(spoilt, notes=("shared",))).endswith("\nnote: shared")


def test_an_answer_of_another_length_differs_without_a_margin() -> None:
    models = Models(Table("target", 0.0), Table("draft", 0.5))
    (way,) = audit_models(models, [[1, 2, 3]], Request(40), WAYS[:1]).ways
    assert way.identical == 1

    class Short(FixedGamma):
        """Ends the text after some rounds, as a loop would that takes a draft for the end of the text."""

        def choose(self, offers: Any) -> Any:
            models.target.context = 12
            return super().choose(offers)

    (way,) = audit_models(models, [[1, 2, 3]], Request(40), [("model", 3, Short(3))]).ways
    (difference,) = way.differences
    assert (difference.speculative, difference.margin) == (None, None)
    assert difference.alone is not None


@pytest.mark.slow
def test_a_compiled_pair_and_a_target_alone_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, draft = (EXPORTS / name / "model.onnx" for name in ("llama-dynamo-fp32", "llama-drafter-dynamo-fp32"))
    for name, more in (("pair", ["--draft", str(draft)]), ("alone", [])):
        out = str(tmp_path / name)
        options = ["--tokenizer", str(target.parent), "--board", "host", "--context", "64", "--out", out]
        assert main(["compile", str(target), *more, *options]) == 0
        capsys.readouterr()
        assert main(["audit", out, "--json", "--max-new-tokens", "24"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["passed"]
        drafters = {way["drafter"] for way in result["ways"]}
        assert drafters == ({"model", "ngram", "model+ngram"} if more else {"ngram"})
        assert sum(way["drafted"] for way in result["ways"]) > 0
        overlapped = [(way["gamma"], way["least"]) for way in result["ways"] if way["least"] is not None]
        assert bool(overlapped) == bool(more)
        assert all(least in (0, gamma) for gamma, least in overlapped)
        assert all(way["drafted"] for way in result["ways"] if way["least"])
        assert any(way["gamma"] is None for way in result["ways"])
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "hello"}, {"token_ids": [5, 6, 7]}, {"messages": [{"role": "user", "content": "a"}]}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    assert main(["audit", out, "--json", "--prompts", str(prompts)]) == 0
    ways = json.loads(capsys.readouterr().out)["ways"]
    assert all(way["identical"] == way["prompts"] == 3 for way in ways)
    assert all(0 < way["accepted"] < way["drafted"] for way in ways if way["gamma"] is not None)
    prompts.write_text('{"token_ids": [5, 99999]}')
    assert main(["audit", out, "--prompts", str(prompts)]) == 2
    error = capsys.readouterr().err
    assert error == f"hetero-sd: error: {prompts} line 1 has token id 99999, the target knows 0 to 511\n"


def test_wrong_numbers_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path), "--max-new-tokens", "1"]) == 2
    assert "--max-new-tokens 1: must be 2 to 1048576" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), "--max-new-tokens", "99999999"]) == 2
    assert "--max-new-tokens 99999999: must be 2 to 1048576" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
