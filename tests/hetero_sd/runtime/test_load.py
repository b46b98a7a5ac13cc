"""`hetero_sd.load` on a compiled pair, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hetero_sd
from hetero_sd.runtime.run import main
from targets.errors import UserError


def test_answers_are_those_of_the_command(tiny_pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = hetero_sd.load(tiny_pair, mode="speculative", gamma=1)
    answer = session.generate("The quick brown fox", max_new_tokens=12)
    pieces = list(answer)
    assert (
        main(
            tiny_pair,
            [
                "--prompt",
                "The quick brown fox",
                "--json",
                "--max-new-tokens",
                "12",
                "--mode",
                "sequential",
                "--gamma",
                "1",
            ],
        )
        == 0
    )
    said = json.loads(capfd.readouterr().out)
    assert (answer.text, answer.token_ids) == (said["text"], said["token_ids"])
    assert "".join(piece.text for piece in pieces) == answer.text
    assert answer.stop_reason == said["stats"]["finish_reason"]
    assert answer.stats.keys() == said["stats"].keys()
    assert answer.stats["threads"]["threads"] == said["stats"]["threads"]["threads"]
    alone = hetero_sd.load(str(tiny_pair), mode="target-only")
    assert alone.generate("The quick brown fox", max_new_tokens=12).read() == answer.text
    again = session.generate("The quick brown fox", max_new_tokens=12)
    assert again.read() == answer.text
    assert again.trace.kept_tokens == len(again.prompt_ids) - 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mode": "fast"}, "mode 'fast': give one of auto, off, sequential, overlapped, target-only, speculative"),
        ({"drafter": "eagle"}, "drafter 'eagle': give one of None, model, ngram"),
        ({"stop_drafts": "on"}, "stop_drafts 'on': give one of auto, off"),
        ({"gamma": 0}, "gamma 0: must be 1 to 16"),
        ({"gamma": 17}, "gamma 17: must be 1 to 16"),
        ({"system": "x", "template": False}, "--system needs a chat template, and there is none"),
        ({"template_name": "x", "template": False}, "--chat-template needs a chat template"),
        ({"template_name": "x"}, "there is no chat template 'x': the tokenizer has default"),
        ({"threads": 5000}, "5000: this process may use"),
    ],
)
def test_wrong_settings_are_one_line(tiny_pair: Path, settings: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        hetero_sd.load(tiny_pair, **settings)


def test_a_setting_that_does_not_exist_and_a_folder_that_is_no_bundle(tiny_pair: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unknown setting 'device': there are mode"):
        hetero_sd.load(tiny_pair, device="gpu")  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"is .* a bundle"):
        hetero_sd.load(tmp_path)
