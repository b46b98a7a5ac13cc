"""Options, prompts and threads: what users give, right and wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import LIVE, some_plan, some_prediction
from requirements import only_where

from costmodel.schema.plan import Plan
from costmodel.schema.record import SchemaError
from hetero_sd.runtime.decode.choose_policy import choose_policy
from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.model.threads import (
    choose_prompt_threads,
    choose_threads,
    cluster_cores,
    physical_cores,
    prepare_environment,
)
from hetero_sd.runtime.options import parse_options
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.prompts import Prompt, prompt_of_text, read_lines, read_prompts
from targets.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_help(capsys, golden):
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
    assert caught.value.code == 0
    golden("hetero_sd/runtime/help.txt", capsys.readouterr().out)


def test_defaults_are_greedy_and_the_plans():
    options = parse_options([])
    assert (options.temperature, options.mode, options.gamma, options.threads) == (0.0, "auto", None, None)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--max-new-tokens 0", "--max-new-tokens: '0' is not a whole number >= 1"),
        ("--max-new-tokens 1e3", "not a whole number"),
        ("--temperature -1", "--temperature: '-1' is not a number >= 0"),
        ("--temperature nan", "not a number >= 0"),
        ("--temperature inf", "not a number >= 0"),
        ("--temperature warm", "not a number >= 0"),
        ("--temperature 1 --top-p 0", "--top-p: '0' is not a number above 0 and at most 1"),
        ("--temperature 1 --top-p 1.5", "at most 1"),
        ("--temperature 1 --top-k -1", "--top-k: '-1' is not a whole number >= 0"),
        ("--top-k 5", "give --temperature"),
        ("--top-p 0.5", "give --temperature"),
        ("--seed -1", "whole number >= 0"),
        ("--gamma 0", "whole number from 1 to 16"),
        ("--gamma 17", "whole number from 1 to 16"),
        ("--gamma 3 --mode target-only", "contradicts"),
        ("--mode fast", "invalid choice: 'fast' [(]choose from"),
        (
            "--mode overlaped",
            "argument --mode: invalid choice: 'overlaped': did you mean overlapped[?] [(]`run.py",
        ),
        ("--least 1", "--least belongs to --mode overlapped"),
        ("--mode overlapped --least -1", "--least: '-1' is not a whole number >= 0"),
        ("--mode overlapped --least 0 --temperature 1", "--least contradicts --temperature"),
        ("--mode overlapped --drafter ngram", "leave out --drafter ngram"),
        ("--drafter eagle", "invalid choice"),
        ("--drafter ngram --mode target-only", "--drafter contradicts --mode target-only"),
        ("--threads 0", "from 1 to 1024"),
        ("--threads 5000", "from 1 to 1024"),
        ("--prompt a --prompts b", "not allowed with"),
        ("--stop=", "--stop is empty"),
        ("--prom a", "unknown option --prom: did you mean --prompt[?]"),
        ("--calibrate-seconds 3", "--calibrate-seconds belongs to --calibrate"),
        ("--save-logits f", "--save-logits needs a prompt: give --prompt or --prompts"),
        ("--prompt", "expected one argument"),
        ("extra", "unknown argument extra"),
        ("--when-full never", "invalid choice"),
        ("--system x --no-chat-template", "--system contradicts --no-chat-template"),
        ("--chat-template x --no-chat-template", "--chat-template contradicts --no-chat-template"),
        ("--prompt a --save-logits /nowhere/at/all/f", "no folder /nowhere/at/all"),
        ("--prompt a --save-logits /", "/: cannot be written: it is a folder"),
    ],
)
def test_wrong_options_are_one_line(arguments, match):
    with pytest.raises(UserError, match=match) as caught:
        parse_options(arguments.split())
    assert "\n" not in str(caught.value)


def test_plain_lines(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\r\n\n  two {}\u2028still two \nthree".encode())
    assert [p.given for p in read_prompts(path)] == ["one", "  two {}\u2028still two ", "three"]
    assert read_prompts(path)[1].where == f"{path} line 3"


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_json_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text('\n{"prompt": "a\\nb", "id": 7}\n\n{"token_ids": [1, 2]}\n')
    assert read_prompts(path) == [Prompt("a\nb", f"{path} line 2"), Prompt([1, 2], f"{path} line 4")]


def test_conversations_of_a_file(tmp_path):
    path = tmp_path / "p.jsonl"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    messages = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "3"}]
    lines = [{"messages": messages, "tools": [{"name": "f"}]}, {"messages": messages[:1], "tools": []}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [p.given for p in read_prompts(path)] == [Chat(messages, [{"name": "f"}]), Chat(messages[:1])]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"prompt": "a"', r"line 2 is not valid JSON \(Expecting"),
        ("[" * 100_000, "line 2 is not valid JSON"),
        ("text", "line 2 is not valid JSON"),
        ("[1]", "line 2 needs an object with one of"),
        ('{"text": "a"}', "line 2 needs an object with one of"),
        ('{"prompt": "a", "token_ids": [1]}', "line 2 needs an object with one of"),
        ('{"prompt": "a", "messages": []}', "line 2 needs an object with one of"),
        ('{"messages": []}', "line 2: `messages` is not a list with at least one message"),
        ('{"messages": "hi"}', "line 2: `messages` is not a list"),
        ('{"messages": [{"content": "a"}]}', "line 2: message 1 is not an object with a `role`"),
        ('{"messages": [{"role": "user", "content": "a"}, 3]}', "line 2: message 2 is not an object"),
        ('{"messages": [{"role": "user"}]}', "line 2: message 1 has no `content`"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 2: message 1 has no `content`"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2 is not valid Unicode"),
        (
            '{"messages": [{"role": "assistant", "content": "b"}]}',
            "line 2: the last message is the assistant's",
        ),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": {}}', "line 2: `tools` is not a list of objects"),
        ('{"prompt": 3}', "line 2: `prompt` is not a string"),
        ('{"prompt": "\\ud800"}', "line 2 is not valid Unicode"),
        ('{"token_ids": []}', "line 2: `token_ids` is not a list of integers"),
        ('{"token_ids": [1, true]}', "line 2: `token_ids` is not"),
        ('{"token_ids": [1.0]}', "line 2: `token_ids` is not"),
        ('{"token_ids": "12"}', "line 2: `token_ids` is not"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path, line, match):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=match) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("contents", "match"), [(b"", "is empty"), (b"\n \r\n", "is empty"), (b"\xff", "not UTF-8")])
def test_files_without_prompts(tmp_path, contents, match):
    (tmp_path / "p").write_bytes(contents)
    with pytest.raises(UserError, match=match):
        read_prompts(tmp_path / "p")


def test_a_file_without_an_end_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("hetero_sd.runtime.text.prompts._MOST_CHARACTERS", 1000)
    (tmp_path / "p").write_text("a" * 1000)
    assert len(read_prompts(tmp_path / "p")) == 1
    with pytest.raises(UserError, match="/dev/zero has more than 1000 characters: split it"):
        read_prompts(Path("/dev/zero"))


@pytest.mark.parametrize(("name", "match"), [("missing", "No such file"), (".", "Is a directory")])
def test_files_that_cannot_be_read(tmp_path, name, match):
    with pytest.raises(UserError, match=match):
        read_prompts(tmp_path / name)


def test_arguments_that_are_not_text():
    with pytest.raises(UserError, match="--prompt is not valid Unicode"):
        prompt_of_text(os.fsdecode(b"caf\xe9") if os.fsdecode(b"\xe9") == "\udce9" else "\udce9", "--prompt")


def test_piped_lines_without_asking(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n two\nthree"))
    assert [p.given for p in read_lines()] == ["one", " two", "three"]
    assert capsys.readouterr().out == ""


def test_typed_lines_are_asked_for(monkeypatch, capsys):
    lines = iter(["one", ""])

    def ask(prompt):
        assert prompt == "> "
        for line in lines:
            return line
        raise EOFError

    stdin = io.StringIO()
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("builtins.input", ask)
    assert [p.given for p in read_lines()] == ["one"]
    assert capsys.readouterr().out == "\n"


def test_piped_bytes_that_are_not_text(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        list(read_lines())


def test_threads_by_precedence(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    assert choose_threads(2, some_plan(threads=4)) == 2
    assert choose_threads(None, some_plan(threads=4)) == 3
    for useless in ("", "0", "many", "-1"):
        monkeypatch.setenv("TVM_NUM_THREADS", useless)
        assert choose_threads(None, some_plan(threads=4)) == 4
    monkeypatch.delenv("TVM_NUM_THREADS")
    assert choose_threads(None, None) == physical_cores() >= 1


def test_prompts_have_the_plans_threads_where_steps_have(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    plan = some_plan(threads=1, prompt_threads=4)
    assert choose_prompt_threads(1, plan) == 4
    assert choose_prompt_threads(2, plan) == 2  # another number was asked for
    assert choose_prompt_threads(1, some_plan(threads=1)) == choose_prompt_threads(1, None) == 1
    assert choose_prompt_threads(1, replace(plan, cpu_ids=(2, 3))) == 2  # the plan's cluster
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert choose_prompt_threads(1, plan) == 2  # the plan was made for another machine


def test_more_threads_than_cpus_are_refused(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 5})
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    assert choose_threads(2, None) == 2
    with pytest.raises(UserError, match="--threads 3: this process may use 2 CPUs"):
        choose_threads(3, None)
    assert choose_threads(None, some_plan(threads=8)) == 2  # the plan was made for another machine
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    with pytest.raises(UserError, match="TVM_NUM_THREADS 3: this process may use 2 CPUs"):
        choose_threads(None, None)


def test_siblings_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 9})
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(tmp_path) == 3  # two pairs, and one that says nothing


def test_environment_of_tvm(monkeypatch):
    monkeypatch.delenv("TVM_USE_RUNTIME_LIB", raising=False)
    monkeypatch.setenv("TVM_NUM_THREADS", "7")
    prepare_environment(5)
    assert (os.environ["TVM_USE_RUNTIME_LIB"], os.environ["TVM_NUM_THREADS"]) == ("1", "5")


def test_threads_stay_on_the_cluster_of_the_plan():
    board = set(range(8))
    assert cluster_cores(some_plan(cpu_ids=(4, 5, 6, 7)), board) == [4, 5, 6, 7]
    assert cluster_cores(some_plan(cpu_ids=(3, 0, 1, 2)), board) == [0, 1, 2, 3]
    assert cluster_cores(some_plan(cpu_ids=tuple(range(8))), board) == []  # all of them: nothing to choose
    assert cluster_cores(some_plan(cpu_ids=(4, 5, 6, 7)), {0, 1}) == []  # another machine, or taskset
    for none in (None, some_plan(cpu_ids=())):
        assert cluster_cores(none, board) == []


def test_tvm_runs_on_the_cores_of_the_cluster():
    only_where(len(os.sched_getaffinity(0)) > 1, "one core: there is nothing to choose")
    first, *_ = sorted(os.sched_getaffinity(0))
    code = f"""
import os
from bundles import some_plan
from hetero_sd.runtime.model.threads import prepare_environment, stay_on_cluster
prepare_environment(1)
import tvm
stay_on_cluster(some_plan(cpu_ids=({first},)), threads=1)
print(os.sched_getaffinity(0))
stay_on_cluster(some_plan(cpu_ids=({first},)), threads=2)  # left to TVM
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/support")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout == f"{{{first}}}\n", done.stderr


@pytest.mark.parametrize(
    ("mode", "gamma", "planned", "expected"),
    [
        ("auto", None, 3, 3),
        ("auto", None, 0, None),
        ("auto", None, None, None),
        ("auto", 2, 0, 2),
        ("target-only", None, 3, None),
        ("speculative", None, 3, 3),
        ("speculative", None, 0, 4),
        ("speculative", None, None, 4),
        ("speculative", 7, 3, 7),
    ],
)
def test_policy(mode, gamma, planned, expected):
    plan = some_plan(gamma=planned, mode="sequential" if planned else "target-only") if planned is not None else None
    policy = choose_policy(mode, gamma, plan)
    assert (policy and policy.choose([Offer("model", 9)]).gamma) == expected


@pytest.mark.parametrize(("stop_drafts", "stops"), [("auto", True), ("off", False)])
def test_drafts_are_stopped_unless_the_user_says_no(stop_drafts, stops):
    plan = some_plan(mode="target-only", gamma=0, prediction=some_prediction(live=LIVE))
    policy = choose_policy("auto", None, plan, stop_drafts=stop_drafts)
    for width in LIVE.verify_s:
        for _ in range(2):
            policy.times.measured(width, 0.01)
    policy.times.measured_draft(1e-5)
    choice = policy.choose([Offer("model", 9, confident=True)])
    assert choice.gamma > 0
    assert (choice.limit is not None) == stops
    assert parse_options(["--stop-drafts", stop_drafts]).stop_drafts == stop_drafts
    assert (
        choose_policy("auto", 2, plan, stop_drafts=stop_drafts).choose([Offer("model", 9, confident=True)]).limit
        is None
    )


def test_auto_decides_live_unless_the_run_is_given_a_length():
    plan = some_plan(mode="target-only", gamma=0, given=("place",), prediction=some_prediction(live=LIVE))
    assert isinstance(choose_policy("auto", None, plan), LiveGamma)
    assert isinstance(choose_policy("auto", 2, plan), FixedGamma)
    assert choose_policy("auto", None, plan, repeatable=True) is None  # no decision from times
    assert isinstance(choose_policy("auto", None, some_plan(gamma=3), repeatable=True), FixedGamma)
    assert isinstance(choose_policy("speculative", None, plan), FixedGamma)
    assert choose_policy("target-only", None, plan) is None
    without_draft = replace(plan, prediction=some_prediction(verify_step_s={1: 0.1, 4: 0.11}))
    assert isinstance(choose_policy("auto", None, without_draft, "ngram"), LiveGamma)
    assert choose_policy("auto", None, without_draft) is None
    assert isinstance(choose_policy("auto", None, None, "ngram"), FixedGamma)  # no plan
    given = replace(plan, mode="sequential", gamma=3, given=("gamma",))
    assert isinstance(choose_policy("auto", None, given), LiveGamma)  # given to compile: where it starts


@pytest.mark.parametrize(
    "damage",
    [
        *({key: value} for key in ("draft_s", "round_s", "chunk_s") for value in (0, -1, float("nan"), "x", None, [])),
        *({"alpha": a} for a in (-0.1, 1.1, None, float("nan"))),
        *({"chunk": c} for c in (0, "many", None, 1 << 40)),
        *({"verify_s": v} for v in ({}, [], {"4": 0.1}, {"1": 0}, {"one": 1.0}, {"1": float("inf")}, {"01": 1.0})),
    ],
)
def test_damaged_predictions_are_refused(damage):
    intact = some_plan(prediction=some_prediction(live=LIVE)).to_json()
    assert Plan.from_json(intact).prediction.live == LIVE
    intact["prediction"]["live"] |= damage
    with pytest.raises(SchemaError, match=f"plan.prediction.live.*{next(iter(damage))}"):
        Plan.from_json(intact, "plan")
