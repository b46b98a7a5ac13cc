"""What `run.py --serve` takes, and what contradicts it."""

from __future__ import annotations

import pytest

from hetero_sd.runtime.options import parse_options
from hetero_sd.runtime.serve.options import drafters_with_slots, mode_with_slots
from targets.errors import UserError


def test_options_of_a_server() -> None:
    options = parse_options("--serve --host ::1 --port 0 --token a-b_c. --queue 0 --temperature 0.7".split())
    assert (options.serve, options.host, options.port, options.token) == (True, "::1", 0, "a-b_c.")
    assert (options.queue, options.temperature) == (0, 0.7)
    assert parse_options([]).serve is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--host x", "--host belongs to --serve"),
        ("--port 80", "--port belongs to --serve"),
        ("--token x", "--token belongs to --serve"),
        ("--queue 3", "--queue belongs to --serve"),
        ("--keep-rows 3", "--keep-rows belongs to --serve"),
        ("--time-between-tokens 50", "--time-between-tokens belongs to --serve"),
        ("--serve --time-between-tokens 0", "not a number >= 0.001"),
        ("--serve --port 65536", "not a whole number from 0 to 65535"),
        ("--serve --queue -1", "not a whole number from 0"),
        ("--serve --prompt x", "--prompt contradicts --serve"),
        ("--serve --prompts x", "--prompts contradicts --serve"),
        ("--serve --json", "--json contradicts --serve"),
        ("--serve --stats", "--stats contradicts --serve"),
        ("--serve --trace x", "--trace contradicts --serve"),
        ("--serve --save-logits x", "--save-logits contradicts --serve"),
        ("--serve --save-state x", "--save-state contradicts --serve"),
        ("--serve --calibrate x", "--calibrate contradicts --serve"),
        ("--serve --doctor", "--doctor contradicts --serve"),
        ("--serve --token=", "--token: give printable ASCII"),
        ("--serve --token é", "--token: give printable ASCII"),
    ],
)
def test_mistakes(arguments: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options(arguments.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "drafts_with_model", "mode", "said"),
    [
        ("", False, "off", ""),
        ("", True, "off", ""),
        ("--mode off", True, "off", ""),
        ("--mode target-only", True, "off", ""),
        ("--mode speculative", True, "off", ""),
        ("--mode speculative", False, "speculative", "without --mode, --gamma and --drafter 4 are"),
        ("--mode overlapped", True, "overlapped", "without --mode overlapped and --gamma 4 are"),
        ("--gamma 3", True, "auto", "with such drafts one request is answered at a time"),
        ("--drafter ngram", False, "off", ""),
        ("--drafter model", True, "off", ""),
        ("--drafter model", False, "auto", "with such drafts one request is answered at a time"),
    ],
)
def test_slots_are_used_unless_drafts_are_asked_for(
    arguments: str, drafts_with_model: bool, mode: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mode_with_slots(parse_options(["--serve", *arguments.split()]), 4, drafts_with_model) == mode
    heard = capsys.readouterr().err
    assert heard.count("\n") == bool(said)
    assert said in heard


@pytest.mark.parametrize(
    ("arguments", "drafters"),
    [
        ("", ("model", "ngram")),
        ("--mode off", ()),
        ("--mode target-only", ()),
        ("--drafter ngram", ("ngram",)),
        ("--mode speculative --drafter model", ("model",)),
        ("--drafter model+ngram", ("model", "ngram")),
    ],
)
def test_what_slots_draft_with(arguments: str, drafters: tuple[str, ...]) -> None:
    assert tuple(drafters_with_slots(parse_options(["--serve", *arguments.split()]))) == drafters
