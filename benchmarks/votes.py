"""Whether votes on several answers are right more often than one answer: the example's translations.

    python benchmarks/votes.py [--sentences 60] [--votes 5] [--temperature 1.0] [--model draft] [--json]

The right answer is known: each held-out sentence of examples/translation has one translation in its made grammar. The
small model of the example is asked, which is often wrong. Greedy answers, single samples, the majority of the samples
and the vote by inverse entropy are compared, on the same samples; the difference is given with its 95 % interval over
the sentences (paired bootstrap). The model was never trained to look at an answer of its own, so `--votes-by refine` is
not tried here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/translation"


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description="votes against single answers")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--votes", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--model", choices=("draft", "target"), default="draft", help="which of the example's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from hetero_sd.cli import main as hetero_sd
    from hetero_sd.runtime.load import load_folder
    from hetero_sd.runtime.text.prompts import prompt_of_text
    from hetero_sd.runtime.voting.ballots import count
    from hetero_sd.runtime.voting.options import CHAINS
    from hetero_sd.runtime.voting.vote import Election, ballots_of_chains

    lines = (EXAMPLE / "heldout.jsonl").read_text("utf-8").splitlines()[: options.sentences]
    tasks = [json.loads(line) for line in lines]
    with tempfile.TemporaryDirectory() as scratch:
        made = ["--tokenizer", EXAMPLE, "--board", "host", "--context", 192, "--slots", options.votes]
        model = EXAMPLE / options.model / "model.onnx"
        if hetero_sd(["compile", *map(str, [model, *made, "--out", Path(scratch) / "bundle"])]):
            raise SystemExit("the example does not compile")
        with load_folder(Path(scratch) / "bundle", {"mode": "off"}) as session:
            ids = [session.encode(prompt_of_text(task["prompt"], "a sentence")) for task in tasks]
            greedy = [session.answer(list(of), max_new_tokens=96).read() for of in ids]
            sampled = {"max_new_tokens": 96, "temperature": options.temperature, "seed": 1}
            election = Election(options.votes, CHAINS, None, sampled)  # type: ignore[arg-type]
            ballots = list(ballots_of_chains(session, election, ids))
    right = {
        "greedy": [text.strip() == task["reference"] for text, task in zip(greedy, tasks, strict=True)],
        "one sample": [
            float(np.mean([b.says == task["reference"] for b in of])) for of, task in zip(ballots, tasks, strict=True)
        ],
        "majority": [count(of, weighted=False)[0].says == t["reference"] for of, t in zip(ballots, tasks, strict=True)],
        "inverse entropy": [count(of)[0].says == t["reference"] for of, t in zip(ballots, tasks, strict=True)],
    }
    differ = sum(count(of)[0].says != count(of, weighted=False)[0].says for of in ballots)
    found = {name: float(np.mean(values)) for name, values in right.items()}
    against = {
        name: interval(np.array(right["inverse entropy"], float) - np.array(values, float))
        for name, values in right.items()
        if name != "inverse entropy"
    }
    if options.json:
        print(json.dumps({"right": found, "inverse_entropy_minus": against, "differ": differ}, indent=1))
        return
    print(f"{options.model} of the example, {len(tasks)} sentences, {options.votes} samples at {options.temperature}")
    for name, share in found.items():
        least, most = against.get(name, (0.0, 0.0))
        said = f"   inverse entropy gains {100 * least:.0f} to {100 * most:.0f} points" if name in against else ""
        print(f"  {name:16} {100 * share:5.1f} % right{said}")
    print(f"  majority and inverse entropy choose differently for {differ} sentences")


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean, by drawing the sentences again."""
    rng = np.random.default_rng(0)
    means = [float(rng.choice(differences, len(differences)).mean()) for _ in range(2000)]
    least, most = np.quantile(means, [0.025, 0.975])
    return float(least), float(most)


if __name__ == "__main__":
    main()
