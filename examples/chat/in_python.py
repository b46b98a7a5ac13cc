"""The Python interface, step by step, on any bundle with a chat template; `make chat` makes one.

python examples/chat/in_python.py [BUNDLE]
"""

# %% A bundle is loaded once; its models stay in memory.
from __future__ import annotations

import sys
from pathlib import Path

import hetero_sd

bundle = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "out" / "chat" / "bundle"
session = hetero_sd.load(bundle, drafter="ngram", system="You are a helpful assistant. Answer briefly.")

# %% An answer is an iterator of pieces of text, generated while it is iterated over.
messages = [{"role": "user", "content": "What is the capital of France?"}]
answer = session.chat(messages, max_new_tokens=40)
for piece in answer:
    print(piece.text, end="", flush=True)
print(f"\n[{len(answer.token_ids)} tokens, ended by {answer.stop_reason}]")

# %% The next turn reads only what is new: the caches keep the rest.
messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And of Italy?"}]
answer = session.chat(messages, max_new_tokens=40)
print(answer.read())
stats = answer.stats
print(f"[{stats['prompt_tokens']} prompt tokens, {stats['kept_tokens']} of them were read before]")

# %% Options hold for one answer: samples that repeat by their seed, texts that end it, other limits.
for seed in (1, 2):
    print(session.generate("Name a colour.", temperature=0.8, top_p=0.9, seed=seed, stop=["\n"]).read())

# %% What was measured, beside what the plan predicted.
for row in answer.stats["predicted_vs_measured"]:
    print(f"{row['term']:24} {row['unit']:9} measured {row['measured']}, predicted {row['predicted']}")
