"""Measure the exported pair with onnxruntime on the held-out sentences.

    python evaluate.py                       # all sentences
    python evaluate.py --limit 50 --json

Printed: how many sentences each model translates exactly as the reference, and how speculative
decoding with the drafter would go (greedy, gamma drafted tokens a round). The acceptance is
accepted / (accepted + rounds with a rejection): the chance that a drafted token is the target's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).parent
LIMIT = 96  # generated tokens; no sentence needs as many


class Model:
    """One exported decoder and its KV cache."""

    def __init__(self, path: Path, threads: int) -> None:
        """Load the model with an empty cache."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.cache_names = [i.name for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        _, heads, _, size = self.session.get_inputs()[-1].shape
        self.empty = np.zeros((1, heads, 0, size), dtype=np.float16)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.cache = [self.empty] * len(self.cache_names)

    def rewind(self, length: int) -> None:
        """Keep the first `length` positions of the cache."""
        self.cache = [c[:, :, :length] for c in self.cache]

    def next_token(self, tokens: list[int]) -> int:
        """Feed what the cache lacks of `tokens`; return the most likely continuation."""
        past = self.cache[0].shape[2]
        new = len(tokens) - past
        feed = {
            "input_ids": np.array([tokens[past:]], dtype=np.int64),
            "attention_mask": np.ones((1, past + new), dtype=np.int64),
            "position_ids": np.arange(past, past + new, dtype=np.int64)[None],
            **dict(zip(self.cache_names, self.cache, strict=True)),
        }
        logits, *self.cache = self.session.run(None, feed)
        return int(logits[0, -1].argmax())

    def generate(self, prompt: list[int], end: int) -> list[int]:
        """Greedy continuation of the prompt, the end token included."""
        self.reset()
        tokens = list(prompt)
        while len(tokens) < len(prompt) + LIMIT:
            tokens.append(self.next_token(tokens))
            if tokens[-1] == end:
                break
        return tokens[len(prompt) :]


def speculate(draft: Model, prompt: list[int], answer: list[int], gamma: int) -> tuple[int, int, int]:
    """Greedy speculative decoding when the target says `answer`: (rounds, accepted, rejections)."""
    draft.reset()
    rounds = accepted = rejections = done = 0
    while done < len(answer):
        rounds += 1
        tokens = [*prompt, *answer[:done]]
        for wanted in answer[done : done + gamma]:
            proposal = draft.next_token(tokens)
            if proposal != wanted:
                rejections += 1
                break
            accepted += 1
            done += 1
            tokens.append(proposal)
        done += 1  # the target's own token: the correction, or the one after all drafted ones
        draft.rewind(min(draft.cache[0].shape[2], len(prompt) + done - 1))
    return rounds, accepted, rejections


def measure(args: argparse.Namespace) -> dict[str, float | int]:
    """All figures over the held-out sentences."""
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    end = json.loads((args.folder / "generation_config.json").read_text())["eos_token_id"]
    target = Model(args.folder / "target" / "model.onnx", args.threads)
    draft = Model(args.folder / "draft" / "model.onnx", args.threads)
    with (args.folder / "heldout.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: args.limit]
    exact = {"target": 0, "draft": 0}
    rounds = accepted = rejections = tokens = 0
    for row in rows:
        prompt = tokenizer.encode(row["prompt"]).ids
        answers = {"target": target.generate(prompt, end), "draft": draft.generate(prompt, end)}
        for which, ids in answers.items():
            right = tokenizer.decode(ids) == row["reference"]
            exact[which] += right
            if args.errors and which == "target" and not right:
                print(f"{row['template']}\n  {row['prompt']}\n  {row['reference']}\n  {tokenizer.decode(ids)}")
        r, a, j = speculate(draft, prompt, answers["target"], args.gamma)
        rounds, accepted, rejections = rounds + r, accepted + a, rejections + j
        tokens += len(answers["target"])
    return {
        "sentences": len(rows),
        "target_exact_percent": round(100 * exact["target"] / len(rows), 1),
        "draft_exact_percent": round(100 * exact["draft"] / len(rows), 1),
        "gamma": args.gamma,
        "acceptance": round(accepted / (accepted + rejections), 3),
        "tokens_per_round": round(tokens / rounds, 2),
        "mean_answer_tokens": round(tokens / len(rows), 1),
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE, help="where the models and the tokenizer are")
    parser.add_argument("--limit", type=int, help="only the first sentences")
    parser.add_argument("--gamma", type=int, default=4, help="drafted tokens a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--errors", action="store_true", help="show where the target is wrong")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    args = parser.parse_args()
    figures = measure(args)
    if args.json:
        print(json.dumps(figures))
        return 0
    print(f"{figures['sentences']} sentences of held-out templates, {figures['mean_answer_tokens']} tokens each")
    print(f"target exact      {figures['target_exact_percent']:5.1f} %")
    print(f"drafter exact     {figures['draft_exact_percent']:5.1f} %")
    print(f"greedy acceptance {figures['acceptance']:5.3f} (gamma {figures['gamma']})")
    print(f"tokens per round  {figures['tokens_per_round']:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
