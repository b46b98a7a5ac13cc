"""`make demo`: compile the example pair for this machine and translate held-out sentences with it.

    python examples/translation/demo.py [--prompts FILE] [--gamma N] [--out DIR]

The bundle is compiled, this machine is calibrated with its steps (`hetero-sd calibrate`, which writes what --board host
takes from then on), and the plan is made again with that. So the predicted times were fitted to steps of these models,
those of every second width held out; the translating itself was not seen.
The plan decides whether and how far to draft, and says why. Then the target alone, the pair with the plan's draft
length, and the pair as it runs without options, where the length follows what is measured, each in a process of its own
as a user would run it, three times in turn, because the machine may change meanwhile: the same text from all, and the
predicted beside the measured time of every step (run.py --stats).
Where the plan is against drafting, the pair is run all the same, so that one can see what it saves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from hetero_sd.runtime.manifest import Bundle

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ACCEPTANCE = (
    "0.82"  # of the pair, greedy, as run.py counts it: 0.821, 0.822, 0.805 with 1, 2, 4 drafts on held-out texts
)
TURNS = 3  # of every way to run the bundle


def run_bundle(bundle: Path, prompts: Path, *options: str) -> list[dict[str, Any]]:
    """Answers of `run.py --json`, one object a prompt."""
    command = [sys.executable, str(bundle / "run.py"), "--prompts", str(prompts), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return [json.loads(line) for line in done.stdout.splitlines()]


def tokens_per_s(answers: list[dict[str, Any]]) -> float:
    """Decoded tokens per second, prompts excluded, median over the prompts."""
    return statistics.median(a["stats"]["tokens_per_s"] for a in answers)


def side_by_side(label: str, term: str, answers: list[dict[str, Any]]) -> str:
    """A term of --stats: medians over the prompts of what was predicted and measured for each.

    A speed stands there twice: as it was, and with every step at its median, which other programs hardly change.
    """
    rows = [row for a in answers for row in a["stats"]["predicted_vs_measured"] if row["term"] == term]
    rows = [row for row in rows if row["predicted"] and row["measured"]]
    if not rows:
        return f"{label:30}{'-':>12}{'-':>12}{'-':>8}"
    predicted, measured = (statistics.median(row[name] for row in rows) for name in ("predicted", "measured"))
    found = [measured]
    if term == "speed":
        found.append(statistics.median(speed_at_medians(a["stats"]) for a in answers if a["stats"]["rounds"]))
    shown = [f"{value:>12.{0 if value >= 100 else 2}f}{100 * (predicted / value - 1):>+6.0f} %" for value in found]
    return f"{label:30}{predicted:>12.{0 if measured >= 100 else 2}f}{' '.join(shown)}"


def speed_at_medians(stats: dict[str, Any]) -> float:
    """Tokens per second if every step of an answer had taken as long as its median, the first ones what they took."""
    median_s, seconds = stats["median_s"], stats["median_s"]["first_rounds"] or 0.0
    for gamma, rounds in stats["gammas"].items():
        steps = int(gamma) * (median_s["draft_step"] or 0.0) + median_s["verify_step"][str(int(gamma) + 1)]
        around_s = median_s["sampling"] + (median_s["deciding"] or 0.0) + median_s["dispatch"]
        seconds += rounds * (steps + around_s)
    return float((stats["new_tokens"] - 1) / seconds)


def main() -> int:
    """Compile, calibrate, translate both ways, compare."""
    parser = argparse.ArgumentParser(description="compile the example pair for this machine and translate with it")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.txt")
    parser.add_argument(
        "--gamma", type=int, help="drafted tokens a round (default: the plan's, or 2 where it has none)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", help="the bundle; replaced")
    options = parser.parse_args()

    shutil.rmtree(options.out, ignore_errors=True)
    pair = [str(HERE / "target/model.onnx"), "--draft", str(HERE / "draft/model.onnx"), "--tokenizer", str(HERE)]
    settings = ["--board", "host", "--context", "128", "--alpha", ACCEPTANCE, "--out", str(options.out)]
    settings += [] if options.gamma is None else ["--gamma", str(options.gamma)]
    # Its plan is not shown: nothing is known of this machine yet.
    compiling = [sys.executable, "-m", "hetero_sd", "compile", *pair, *settings]
    done = subprocess.run(compiling, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        return done.returncode

    sources = ["--target", pair[0], "--draft", pair[2]]
    print("\ncalibrating: the bundle times its own steps, and its plan is made again; nothing is compiled again")
    measuring = ["calibrate", str(options.out), *sources, "--board", "host"]
    done = subprocess.run([sys.executable, "-m", "hetero_sd", *measuring], cwd=ROOT, check=False)
    if done.returncode != 0:
        print("it goes on without: what is predicted below rests on assumed numbers")

    plan = Bundle(options.out).plan
    assert plan is not None
    planned = plan.gamma
    gamma = planned or 2
    if not planned:
        print(f"the plan is to run the target alone; drafting {gamma} tokens a round is run beside it")
    alone, pair_run, live = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for turn in range(TURNS):
        statistics_too = ["--stats"] * (turn == TURNS - 1)
        alone += run_bundle(options.out, options.prompts, "--mode", "target-only")
        pair_run += run_bundle(
            options.out, options.prompts, "--mode", "speculative", "--gamma", str(gamma), *statistics_too
        )
        live += run_bundle(options.out, options.prompts)
    sentences = len(alone) // TURNS
    print()
    for answer in alone[:5]:
        print(f"  {answer['prompt']}\n    {answer['text']}")
    print(f"  ... {sentences} sentences")
    print()
    equal = [a["token_ids"] == b["token_ids"] == c["token_ids"] for a, b, c in zip(alone, pair_run, live, strict=True)]
    same = sum(all(equal[i::sentences]) for i in range(sentences))
    drafted = sum(b["stats"]["drafted"] for b in pair_run)
    accepted = sum(b["stats"]["accepted"] for b in pair_run)
    rounds = sum(b["stats"]["rounds"] for b in pair_run)
    tokens = sum(len(b["token_ids"]) for b in pair_run)
    drafts = f"accepted {accepted} of {drafted}, {tokens / max(rounds, 1):.2f} tokens a round"
    print(f"{'':30}{'predicted':>12}{'measured':>12}{'off':>8}{'median step':>13}{'off':>8}")
    print(side_by_side("target alone, tokens/s", "speed", alone))
    print(side_by_side(f"speculative, g={gamma}, tokens/s", "speed", pair_run) + f"   {drafts}")
    print(side_by_side("first token, ms", "time to first token", alone))
    print(side_by_side("first token, drafting, ms", "time to first token", pair_run))
    lengths = sorted({int(gamma) for c in live for gamma in c["stats"]["gammas"]})
    print(
        f"{'decided live, tokens/s':30}{'':12}{tokens_per_s(live):>12.0f}{'':8}   "
        f"drafted {', '.join(map(str, lengths))} tokens a round"
    )
    print(
        f"speed-up {tokens_per_s(pair_run) / tokens_per_s(alone):.2f}x, live "
        f"{tokens_per_s(live) / tokens_per_s(alone):.2f}x; same tokens in {same} of {sentences} sentences"
    )
    return 0 if same == sentences else 1


if __name__ == "__main__":
    sys.exit(main())
