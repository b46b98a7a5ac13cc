"""The command from end to end, with toy models in the place of compiled ones."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import some_model, some_plan, some_prediction
from requirements import only_where

from costmodel.schema.manifest import TokenizerFacts
from costmodel.schema.plan import PlannedOverlap
from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.launcher import launcher
from hetero_sd.runtime.manifest import write_manifest
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.model.weights import write_weights
from hetero_sd.runtime.run import main
from hetero_sd.runtime.saved_logits import read_logits, save_logits
from hetero_sd.runtime.session import Session
from targets.errors import UserError
from targets.opencl.runtime import machine

ROOT = Path(__file__).resolve().parents[3]
PLAN = some_plan()  # three drafted tokens, two threads, a drafter's step of 0.01 s


@pytest.fixture
def folder(tmp_path, tokenizers_by_kind):
    folder = tmp_path / "bundle"
    for name in ("lib", "tokenizer", "weights"):
        (folder / name).mkdir(parents=True)
    (folder / "lib/target.so").write_text("code")
    (folder / "weights/target.safetensors").write_text("numbers")
    tokenizers_by_kind["byte level"].save(str(folder / "tokenizer/tokenizer.json"))
    (folder / "tokenizer/tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    write_bundle(folder)
    return folder


def write_bundle(folder, plan=PLAN, tokenizer=None):
    write_manifest(folder, {"target": some_model()}, plan, tokenizer)


@pytest.fixture
def load(pair, table_model, tokenizers_by_kind):
    """Loads a target that continues "h" with "ello wörld" and the end of the text, and an imperfect drafter."""
    tokenizer = tokenizers_by_kind["byte level"]
    script = [*tokenizer.encode("hello wörld", add_special_tokens=False).ids, tokenizer.token_to_id("<|end|>")]
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)

    class Scripted(table_model):
        def _state(self, length):
            return length % len(script)

    table = np.zeros((len(script), vocab))
    for length, token in enumerate(script):
        table[length, token] = 5.0
    noisy = table.copy()
    noisy[3] = np.roll(noisy[3], 1)
    calls = []

    def load_models(bundle, huge_pages, draft=True):
        calls.append((bundle, huge_pages, os.environ["TVM_NUM_THREADS"], os.environ["TVM_USE_RUNTIME_LIB"]))
        return Models(Scripted(table, 40, "target"), Scripted(noisy, 40, "draft") if draft else None)

    load_models.calls = calls
    load_models.script = script
    return load_models


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "")
    monkeypatch.setenv("TVM_USE_RUNTIME_LIB", "")


def error(capsys, *arguments, folder, load):
    """Run, expect exit code 2 and one line, and return it."""
    assert main(folder, list(arguments), load) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("run.py: error: ")
    assert out.err.count("\n") == 1
    return out.err


def without_times(value, key=""):
    """Replace what the clock decides by "TIME"."""
    if isinstance(value, dict):
        timed = value.get("unit") in ("ms", "us", "tokens/s") or key == "time_shares"
        return {k: "TIME" if timed and isinstance(v, float) else without_times(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [without_times(v, key) for v in value]
    terms = ("draft_step", "sampling", "deciding", "dispatch", "1", "4")
    timed = key.startswith("verify_step") or key.endswith("_s") or key in terms
    return "TIME" if timed and isinstance(value, float) else value


def test_text_is_streamed(folder, load, capsys):
    assert main(folder, ["--prompt", "hello"], load) == 0
    assert capsys.readouterr() == (" wörld\n", "")


def test_threads_and_environment_are_set_before_loading(folder, load):
    main(folder, ["--prompt", "hello", "--huge-pages"], load)
    main(folder, ["--prompt", "hello", "--threads", "1"], load)
    assert [call[1:] for call in load.calls] == [(True, "2", "1"), (False, "1", "1")]


def test_json_lines(folder, load, capsys, tmp_path, golden):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "hello"}\n{"token_ids": [3, 4, 5, 6]}\n')
    assert main(folder, ["--prompts", str(prompts), "--json"], load) == 0
    lines = [without_times(json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    golden("hetero_sd/runtime/two_prompts.json", json.dumps(lines, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("mode", [["--mode", "target-only"], ["--gamma", "1"], ["--gamma", "5"], []])
def test_every_mode_gives_the_same_tokens(folder, load, capsys, mode):
    assert main(folder, ["--prompt", "hello", "--json", *mode], load) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["token_ids"] == load.script[1:]
    assert value["stats"]["mode"] == ("target-only" if "target-only" in mode else "speculative")
    assert (value["stats"]["drafted"] > 0) == (value["stats"]["mode"] == "speculative")


@pytest.mark.parametrize("more", ["", "--gamma 1", "--gamma 2 --least 2", "--least 0", "--drafter model"])
def test_overlapped_drafting_gives_the_same_tokens_and_ends_its_thread(folder, load, capsys, more):
    before = threading.active_count()
    assert main(folder, ["--prompt", "hello", "--json", "--mode", "overlapped", *more.split()], load) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["token_ids"] == load.script[1:]
    assert value["stats"]["mode"] == "overlapped"
    assert set(value["stats"]["gammas"]) <= {"0", "1", "2", "3"}
    assert threading.active_count() == before


def test_the_plan_chooses_overlapped_and_every_mode_overrides_it(folder, load, capsys):
    cpu, *others = sorted(os.sched_getaffinity(0))
    overlap = PlannedOverlap(3, 1, (cpu,), (others or [1 << 16])[:1], "cpu", 1.0, 1.0, 0.0, 4e-5, 2.0, 9.0)
    write_bundle(folder, plan=some_plan(mode="overlapped", overlap=overlap))
    chosen = {"auto": "overlapped" if others else "speculative"}
    for mode in ("auto", "off", "sequential", "overlapped"):
        expected = {"off": "target-only", "sequential": "speculative", "overlapped": "overlapped", **chosen}[mode]
        assert main(folder, ["--prompt", "hello", "--json", "--mode", mode], load) == 0
        value = json.loads(capsys.readouterr().out)
        assert (value["token_ids"], value["stats"]["mode"]) == (load.script[1:], expected)
        rows = {row["term"]: row["predicted"] for row in value["stats"]["predicted_vs_measured"]}
        waited = value["stats"]["median_s"]["wait"] is not None
        assert (rows["hand-over"] is not None) == waited == (expected == "overlapped")
    write_bundle(folder, plan=some_plan(mode="overlapped", overlap=replace(overlap, draft_cpus=(1 << 16,))))
    assert main(folder, ["--prompt", "hello"], load) == 0
    said = "the plan drafts while the target verifies; here the models take turns: this process may not use CPU 65536"
    assert capsys.readouterr() == (" wörld\n", f"run.py: note: {said} of those of the plan\n")


def test_a_plan_with_predictions_decides_live_between_overlapped_and_turns(folder, load, capsys, tmp_path):
    cpu, *others = sorted(os.sched_getaffinity(0))
    only_where(others, "one core: there is nothing to divide")
    overlap = PlannedOverlap(3, 1, (cpu,), (others[0],), "cpu", 1.0, 1.0, 0.0, 4e-5, 2.0, 9.0)
    live = LivePrediction(0.8, 0.001, {1: 0.01, 4: 0.0106}, 1e-5, 0.005, 32)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\n" * 4)
    before = threading.active_count()
    for plan in (
        some_plan(mode="overlapped", overlap=overlap, prediction=some_prediction(live=live)),
        some_plan(overlap=overlap, prediction=some_prediction(live=live)),
    ):
        write_bundle(folder, plan=plan)
        for more, mode in (
            ([], "live"),
            (["--temperature", "1e-9", "--seed", "1"], "overlapped" if plan.mode == "overlapped" else "speculative"),
        ):
            assert main(folder, ["--prompts", str(prompts), "--json", *more], load) == 0
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [line["token_ids"] for line in lines] == [load.script[1:]] * 4
            assert {line["stats"]["mode"] for line in lines} == {mode}
    assert threading.active_count() == before


@pytest.mark.parametrize("mode", ["off", "sequential", "overlapped --least 1"])
def test_trace_is_written_with_a_lane_for_each_processor(folder, load, capsys, tmp_path, mode):
    out = tmp_path / "trace.json"
    assert main(folder, ["--prompt", "hello", "--mode", *mode.split(), "--trace", str(out)], load) == 0
    assert capsys.readouterr() == (" wörld\n", "")
    events = json.loads(out.read_text())["traceEvents"]
    lanes = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert lanes == ["CPU cpu", *(["CPU cpu, the drafter's cores"] if "overlapped" in mode else [])]
    names = {"off": "decode 1 token", "sequential": "draft", "overlapped": "wait for drafts"}
    assert names[mode.split()[0]] in {e["name"] for e in events}
    assert "cannot be written" in error(capsys, "--prompt", "a", "--trace", str(tmp_path), folder=folder, load=load)


def test_overlapped_with_stop_strings_sampling_and_statistics(folder, load, capsys, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\nhello\nhello\n")
    overlapped = ["--prompts", str(prompts), "--mode", "overlapped", "--gamma", "2"]
    assert main(folder, [*overlapped, "--stop", "ö", "--least", "2", "--stats"], load) == 0
    out = capsys.readouterr()
    assert out.out == " w\n" * 3
    assert "wait for drafts (ms)" in out.err
    assert main(folder, [*overlapped, "--temperature", "30", "--seed", "4", "--json"], load) == 0
    first = capsys.readouterr().out
    assert main(folder, [*overlapped, "--temperature", "30", "--seed", "4", "--json"], load) == 0
    again = capsys.readouterr().out
    ids = [[json.loads(line)["token_ids"] for line in text.splitlines()] for text in (first, again)]
    assert ids[0] == ids[1]
    assert len({tuple(i) for i in ids[0]}) == 1  # every prompt starts from the seed


def test_a_drafter_lost_beside_the_target_is_said(folder, load, capsys):
    def spoilt(bundle, huge_pages):
        models = load(bundle, huge_pages)
        models.draft.table[:] = np.nan
        return models

    assert main(folder, ["--prompt", "hello", "--mode", "overlapped", "--least", "3"], spoilt) == 0
    out = capsys.readouterr()
    assert out.out == " wörld\n"
    assert out.err.startswith("run.py: note: the draft computed logits that are not finite")
    assert out.err.endswith("; it was left out\n")
    assert out.err.count("\n") == 1


def test_without_a_drafter_the_target_runs_alone(folder, load, capsys):
    assert main(folder, ["--prompt", "hello", "--json"], lambda b, h: load(b, h, draft=False)) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["mode"] == "target-only"


@pytest.mark.parametrize("drafter", ["ngram", "model+ngram", "model"])
@pytest.mark.parametrize("mode", [["--gamma", "3"], ["--mode", "speculative"], []])
def test_every_drafter_gives_the_same_tokens(folder, load, capsys, tmp_path, drafter, mode):
    """The second prompt finds the first answer in the pool."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\nhello\n")
    arguments = ["--prompts", str(prompts), "--json", "--drafter", drafter, *mode]
    assert main(folder, arguments, lambda b, h: load(b, h, draft="model" in drafter)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["token_ids"] for line in lines] == [load.script[1:]] * 2
    if "ngram" in drafter and mode:
        second = lines[1]["stats"]["sources"]
        assert sum(n["accepted"] for name, n in second.items() if name.startswith("ngram")) >= 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--drafter model", "no draft model: give --drafter ngram"),
        ("--drafter model+ngram", "no draft model: give --drafter ngram"),
        ("--mode overlapped", "no draft model: leave out --mode overlapped"),
        ("--mode overlapped --gamma 2", "no draft model: leave out --mode overlapped"),
        ("--gamma 2", "no draft model: leave out --mode speculative and --gamma, or give --drafter ngram"),
    ],
)
def test_a_drafter_that_the_bundle_has_not(folder, load, capsys, options, match):
    found = error(
        capsys, "--prompt", "hello", *options.split(), folder=folder, load=lambda b, h: load(b, h, draft=False)
    )
    assert match in found


@pytest.mark.parametrize(("stop", "text"), [("ö", " w"), ("rl", " wö"), ("zzz", " wörld"), (" wörld", "")])
def test_stop_strings(folder, load, capsys, stop, text):
    assert main(folder, ["--prompt", "hello", "--json", "--stop", "zz", "--stop", stop], load) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["text"] == text
    assert value["stats"]["finish_reason"] == ("eos" if stop == "zzz" else "stop")


def test_sampling_is_repeatable_with_a_seed(folder, load, capsys):
    def sample(*more):
        assert main(folder, ["--prompt", "hello", "--json", "--temperature", "30", *more], load) == 0
        value = json.loads(capsys.readouterr().out)
        return value["token_ids"], value["stats"]["seed"]

    ids, seed = sample()
    assert sample("--seed", str(seed)) == (ids, seed)
    assert sample()[0] != ids


def test_stats_go_to_standard_error_with_the_prediction(folder, load, capsys):
    assert main(folder, ["--prompt", "hello", "--stats"], load) == 0
    out = capsys.readouterr()
    assert out.out == " wörld\n"
    assert "draft step (ms)" in out.err
    assert [line.split()[4] for line in out.err.splitlines() if line.startswith("draft step")] == ["10"]


def test_lines_of_standard_input_are_prompts(folder, load, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nhello\n"))
    assert main(folder, ["--max-new-tokens", "1", "--stats"], load) == 0
    out = capsys.readouterr()
    assert out.out == " w\n w\n"
    assert out.err.count("1 new tokens") == 2


def test_end_of_text_ids_of_the_manifest_come_first(folder, load, capsys):
    write_bundle(folder, tokenizer=TokenizerFacts((load.script[1],), 270))
    assert main(folder, ["--prompt", "hello"], load) == 0
    assert capsys.readouterr().out == " w\n"


def test_an_answer_that_the_context_ends_says_so(folder, load, capsys):
    """Of 40 tokens the prompt has one, and the last token needs no row; an answer that ends before says nothing."""
    write_bundle(folder, tokenizer=TokenizerFacts((269,), 270))  # no step gives this end of the text
    assert main(folder, ["--prompt", "hello", "--max-new-tokens", "4000"], load) == 0
    said = "run.py: note: the context of 40 tokens is full: the answer ends there, after 40 tokens; compile --context N"
    assert capsys.readouterr().err == f"{said} makes it longer\n"
    assert main(folder, ["--prompt", "hello", "--max-new-tokens", "40"], load) == 0
    assert capsys.readouterr().err == ""


def test_a_bundle_without_tokenizer_answers_token_ids(folder, load, capsys, tmp_path):
    shutil.rmtree(folder / "tokenizer")
    write_bundle(folder, tokenizer=TokenizerFacts((load.script[-1],), 270))
    (tmp_path / "p").write_text('{"token_ids": [5]}')
    assert main(folder, ["--prompts", str(tmp_path / "p"), "--json"], load) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["prompt"], value["token_ids"], value["text"]) == ([5], load.script[1:], "")
    assert "give --json" in error(capsys, "--prompt", "a", folder=folder, load=load)
    assert "give token_ids" in error(capsys, "--prompt", "a", "--json", folder=folder, load=load)


def test_prompts_are_checked_before_the_first_is_answered(folder, load, capsys, tmp_path):
    path = tmp_path / "p.txt"

    def message(text):
        path.write_text(text)
        return error(capsys, "--prompts", str(path), folder=folder, load=load)

    assert f"{path} line 2 has 41 tokens, the target's context is 40" in message("a\n" + "b" * 41 + "\n")
    assert f"{path} line 1 has token id 999" in message('{"token_ids": [999]}')
    assert f"{path} line 1 has token id -1" in message('{"token_ids": [-1]}')
    assert f"{path} is empty" in message("")
    assert f"{path} line 3 is not valid JSON" in message('{"prompt": "a"}\n\n{"prompt"')
    assert "--prompt is empty" in error(capsys, "--prompt", "", folder=folder, load=load)


def test_wrong_options_and_bundles(folder, load, capsys, tmp_path):
    assert "'0' is not" in error(capsys, "--gamma", "0", folder=folder, load=load)
    more = ("--mode", "overlapped", "--least", "4")
    assert "--least 4: 3 are drafted" in error(capsys, "--prompt", "a", *more, folder=folder, load=load)
    no_draft = lambda b, h: load(b, h, draft=False)  # noqa: E731
    assert "has no draft model" in error(capsys, "--prompt", "a", "--gamma", "2", folder=folder, load=no_draft)
    assert "is it a bundle" in error(capsys, folder=tmp_path, load=load).replace(f"is {tmp_path} a", "is it a")
    (folder / "weights/target.safetensors").write_text("NUMBERS")
    assert main(folder, ["--prompt", "hello"], load) == 0
    capsys.readouterr()
    assert "target.safetensors does not match" in error(capsys, "--prompt", "a", "--check", folder=folder, load=load)
    (folder / "tokenizer/tokenizer.json").write_text("x")
    write_bundle(folder)
    assert "tokenizer.json is not a tokenizer" in error(capsys, "--prompt", "a", folder=folder, load=load)


def test_a_check_of_all_files_says_how_long_it_took(folder, load, capsys):
    assert main(folder, ["--prompt", "hello", "--check"], load) == 0
    assert re.fullmatch(r"run.py: note: 4 files, 0\.0 MB, .*: checked in \d+\.\d\d s\n", capsys.readouterr().err)


@pytest.mark.parametrize("keeps", [False, True])
def test_answers_are_kept_only_where_something_is_made_of_all_of_them(folder, load, monkeypatch, tmp_path, keeps):
    made, alive, answer = [], [], Session.answer

    def counted(self, *given, **more):
        alive.append(sum(made_before() is not None for made_before in made))
        made.append(weakref.ref(found := answer(self, *given, **more)))
        return found

    monkeypatch.setattr(Session, "answer", counted)
    (tmp_path / "p").write_text("h\n" * 20)
    more = ["--stats"] if keeps else []
    assert main(folder, ["--prompts", str(tmp_path / "p"), "--json", *more], load) == 0
    gc.collect()
    assert len(alive) == 20
    assert max(alive) == 19 if keeps else max(alive) <= 1


@pytest.mark.parametrize("stated", ["end", ["end"], [True], {}, 2])
def test_malformed_eos_ids(folder, load, capsys, stated):
    write_bundle(folder, tokenizer=TokenizerFacts((1,), 270))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["eos_ids"] = stated
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = error(capsys, "--prompt", "a", folder=folder, load=load)
    assert "tokenizer.eos_ids" in said
    assert ("not a list of integers" in said) == (not isinstance(stated, list))


def test_interrupt(folder, load, capsys):
    def interrupted(bundle, huge_pages):
        raise KeyboardInterrupt

    assert main(folder, ["--prompt", "a"], interrupted) == 130
    assert capsys.readouterr().err == "\n"


def test_saved_logits_are_those_of_the_whole_text(folder, load, capsys, tmp_path):
    saved, prompts = tmp_path / "logits", tmp_path / "p"
    prompts.write_text("hello\nhello hello hello\n")
    assert main(folder, ["--prompts", str(prompts), "--json", "--save-logits", str(saved)], load) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, got in zip(lines, read_logits(saved), strict=True):
        assert got.token_ids[got.prompt_tokens :] == line["token_ids"]
        target = load(None, False).target
        np.testing.assert_array_equal(got.logits, target.forward(got.token_ids, 0))
        # each row's best id is the next token of greedy text
        assert got.logits.argmax(-1)[got.prompt_tokens - 1 : -1].tolist() == line["token_ids"]


def test_saved_logits_are_cut_at_the_context_and_made_in_chunks(table_model, tmp_path):
    target = table_model(np.eye(5), context=70)
    save_logits(tmp_path / "f", target, [([1, 2], list(range(5)) * 20)])
    (got,) = read_logits(tmp_path / "f")
    assert (len(got.token_ids), got.prompt_tokens, got.logits.shape) == (70, 2, (70, 5))
    assert target.fed == [(0, 32), (32, 32), (64, 6)]


def test_saved_logits_that_are_something_else(tmp_path):
    write_weights(tmp_path / "f", [("a", "uint8", (1,), lambda: np.zeros(1, np.uint8))])
    for metadata in ({}, {"format": "hetero_sd logits 1"}, {"format": "hetero_sd logits 1", "prompt_tokens": "[1]"}):
        write_weights(tmp_path / "f", [("a", "uint8", (1,), lambda: np.zeros(1, np.uint8))], metadata)
        with pytest.raises(UserError, match="was not written by --save-logits"):
            read_logits(tmp_path / "f")


def test_saved_logits_on_a_full_disk(table_model):
    with pytest.raises(UserError, match="cannot write"):
        save_logits(Path("/dev/full/f"), table_model(np.eye(5)), [([1], [2])])


@pytest.fixture
def device(folder):
    """The bundle as on a device: our packages under python/, models that import nothing, everything read-only."""
    for package in ("hetero_sd/runtime", "costmodel", "targets"):
        for source in (ROOT / package).rglob("*.py"):
            to = folder / "python" / source.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to)
    (folder / "python/hetero_sd/__init__.py").touch()
    (folder / "python/hetero_sd/runtime/model/model.py").write_text(TOY)
    (folder / "run.py").write_text(launcher(machine(), "host"))
    write_bundle(folder)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield folder
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def write_bundle_again(device):
    (device / "manifest.json").chmod(0o644)
    write_bundle(device)


TOY = """
import time
import numpy as np
from hetero_sd.runtime.model.protocol import Done, Model, Models

class Toy(Model):
    vocab, context, name = 270, 4000, "toy"

    def submit(self, ids, pos, outputs=("choice",), last=False):
        time.sleep(0.001)
        return Done(np.eye(270, dtype=np.float32)[[64] * (1 if last else len(ids))])

def load_models(bundle, huge_pages):
    bundle.path("lib/target.so")
    return Models(Toy())
"""


def command(folder, *arguments, **more):
    """A process of a bundle; what started the tests may ignore Ctrl-C (as a shell's background does), it does not."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TVM"))}
    return subprocess.Popen(
        [sys.executable, str(folder / "run.py"), *arguments],
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


def test_the_launcher_runs_a_bundle_that_cannot_be_written(device):
    before = sorted(device.rglob("*"))
    process = command(device, "--prompt", "hello", "--max-new-tokens", "3")
    assert process.communicate() == (b"aaa\n", b"")
    assert process.returncode == 0
    assert sorted(device.rglob("*")) == before


WAYS = {
    "alone": [],
    "taking turns": ["--mode", "sequential", "--gamma", "3"],
    "n-grams": ["--drafter", "ngram"],
    "overlapped": ["--mode", "overlapped", "--least", "0"],
    "overlapped, waits": ["--mode", "overlapped", "--least", "3"],
}


@pytest.fixture(params=WAYS)
def answering(device, request):
    """A process that has begun a long answer, in every way to draft."""
    if request.param != "alone":
        code = device / "python/hetero_sd/runtime/model/model.py"
        for path in (code, device, device / "manifest.json"):
            path.chmod(0o755)
        code.write_text(TOY.replace("Models(Toy())", "Models(Toy(), Toy())"))
        write_bundle(device)
    process = command(device, "--prompt", "hello", "--max-new-tokens", "3500", *WAYS[request.param])
    assert process.stdout.read(9) == b"aaaaaaaaa"
    return process


def test_a_reader_that_leaves_early_is_no_error(answering):
    answering.stdout.close()
    assert answering.stderr.read() == b""
    assert answering.wait(timeout=300) == 141


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_keeps_its_text(answering, number, code):
    """Wherever it comes: in a step, in the wait for drafts, or while the text is shown."""
    answering.send_signal(number)
    out, said = answering.communicate(timeout=300)
    assert said == b"\n"
    assert answering.returncode == code
    assert set(out) <= set(b"a")


def test_the_launcher_names_a_missing_package(device):
    code = device / "python/hetero_sd/runtime/run.py"
    code.chmod(0o644)
    code.write_text("import missing_package")
    write_bundle_again(device)
    process = command(device)
    message = f"run.py: error: no module missing_package: pip install -r {device}/requirements.txt\n"
    assert process.communicate() == (b"", message.encode())
    assert process.returncode == 2


def test_the_launcher_reports_a_mistake_in_one_line(device):
    process = command(device, "--prompts", "/nowhere")
    assert process.communicate() == (b"", b"run.py: error: cannot read /nowhere: No such file or directory\n")
    assert process.returncode == 2


def test_a_terminal_that_is_not_utf8(device):
    process = command(device, "--prompt", os.fsdecode(b"caf\xe9"))
    assert process.communicate()[1] == b"run.py: error: --prompt is not valid Unicode text: give UTF-8\n"


@pytest.mark.parametrize("given", [(), ("--prompt", "x"), ("--doctor",), ("--check", "--no-such-option")], ids=str)
def test_another_machine_is_said_first(tmp_path, given):
    """Nothing is imported before, and nothing else of the bundle needs to be in order."""
    other = {"x86-64": "aarch64", "aarch64": "x86-64"}[machine()]
    (tmp_path / "run.py").write_text(launcher(other, "imx95"))
    (tmp_path / "site").mkdir()
    for name in ("numpy", "hetero_sd", "pathlib"):
        (tmp_path / "site" / f"{name}.py").write_text("raise ImportError('compiled for another machine')")
    done = command(tmp_path, *given, text=True)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out, err.count("\n")) == (2, "", 1)
    assert f"run.py: error: this bundle is for {other} (board imx95), this machine is " in err
    (tmp_path / "run.py").write_text(launcher(machine(), "host"))  # the negative control
    done = command(tmp_path, *given, text=True)
    assert "this bundle is for" not in done.communicate(timeout=60)[1]


def test_the_command_that_installs_packages_can_be_copied(tmp_path):
    folder = tmp_path / "my bundle"
    (folder / "python/hetero_sd/runtime").mkdir(parents=True)
    for name in ("hetero_sd/__init__.py", "hetero_sd/runtime/__init__.py"):
        (folder / "python" / name).touch()
    (folder / "python/hetero_sd/runtime/run.py").write_text("import no_such_module")
    (folder / "run.py").write_text(launcher(machine(), "host"))
    write_manifest(folder)
    err = command(folder, text=True).communicate(timeout=60)[1]
    assert shlex.split(err.split("no_such_module: ")[1]) == ["pip", "install", "-r", str(folder / "requirements.txt")]


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("<&-", "standard input is closed: give --prompt or --prompts"),
        (">&-", "standard output is closed: give a terminal, a file or a pipe"),
        ("--prompt x >/dev/full", "No space left on device (answering)"),
        ("--help >/dev/full", "No space left on device (standard output)"),
    ],
)
def test_streams_that_cannot_be_used_give_one_line(device, redirection, said):
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(device / 'run.py'))} --max-new-tokens 3 {redirection}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TVM"))}
    done = subprocess.run(["sh", "-c", line], cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"run.py: error: {said}\n")
