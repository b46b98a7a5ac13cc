"""What a chat template refuses is said when the bundle is compiled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hetero_sd.compile.try_template import template_notes

EXPORT = Path(__file__).resolve().parents[3] / "tests" / "data" / "exports" / "llama-dynamo-fp32"
EVERY = "{% for m in messages %}{{ m.content }}{% endfor %}{{ (tools or []) | length }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (EVERY, []),
        (None, []),
        (
            NO_SYSTEM + EVERY,
            ["a system message was tried: the chat template fails (System role not supported); "],
        ),
        (ONE_TURN + EVERY, ["a second turn was tried: ", "a system message was tried: "]),
        ("{{ tools | length }}", ["a question was tried: the chat template fails (", "--no-chat-template"]),
        ("{% if %}", ["a question was tried: the chat template fails ("]),
    ],
)
def test_what_is_refused_is_said(tmp_path: Path, template: str | None, said: list[str]) -> None:
    shutil.copyfile(EXPORT / "tokenizer.json", tmp_path / "tokenizer.json")
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    notes = template_notes(tmp_path)
    assert bool(notes) == bool(said)
    assert not any("\n" in note for note in notes)
    for part in said:
        assert part in "|".join(notes)
    if any("a question" in part for part in said):
        assert len(notes) == 1  # the others would say the same again
