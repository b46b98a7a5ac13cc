"""Train the tokenizer, the target and the drafter on the generated corpus (CPU or CUDA, resumable).

    python train.py --work WORK                      # everything
    python train.py --work WORK --only draft --tokens 6e6

WORK keeps the corpus, the checkpoints and the trained models; run again after an interruption and
it goes on from the last checkpoint. The tokenizer files are written beside this script.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import corpus
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

HERE = Path(__file__).parent
PAD, BOS, EOS, DE = "<pad>", "<s>", "</s>", "<de>"
VOCABULARY = 2048
MAX_TOKENS = 96
SENTENCES = 400_000
SHAPES = {
    "target": dict(
        hidden_size=256,
        intermediate_size=896,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "draft": dict(
        hidden_size=160,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}
TOKENS = {"target": 5.2e6, "draft": 1.4e6}  # training tokens, padding not counted
RATES = {"target": 1.5e-3, "draft": 3e-3}


def train_tokenizer(pairs: list[tuple[str, str]]) -> Tokenizer:
    """A byte-level BPE tokenizer whose encode(text) gives <s> text <de>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, DE],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    special = [(t, tokenizer.token_to_id(t)) for t in (BOS, DE)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {DE}", special_tokens=special)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the two configurations beside it, as transformers does."""
    ids = {t: tokenizer.token_to_id(t) for t in (PAD, BOS, EOS)}
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [DE],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    generation = {
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
        "do_sample": False,
        "max_new_tokens": MAX_TOKENS,
    }
    for name, value in (("tokenizer_config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")


def prepare(work: Path) -> tuple[Tokenizer, list[np.ndarray], list[int]]:
    """Corpus, tokenizer and encoded pairs; cached in the work folder."""
    path = work / "train.jsonl"
    if not path.exists():
        corpus.write(path, seed=1, count=SENTENCES, heldout=False)
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    pairs = [(row["prompt"], row["reference"]) for row in rows]
    if (work / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(pairs[:100_000])
        save_tokenizer(tokenizer, work)
    save_tokenizer(tokenizer, HERE)
    eos = tokenizer.token_to_id(EOS)
    prompts = tokenizer.encode_batch([p for p, _ in pairs])
    answers = tokenizer.encode_batch([a for _, a in pairs], add_special_tokens=False)
    sequences, starts = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt.ids, *answer.ids, eos]
        if len(ids) <= MAX_TOKENS:
            sequences.append(np.array(ids, dtype=np.int64))
            starts.append(len(prompt.ids))
    return tokenizer, sequences, starts


def plan_batches(sequences: list[np.ndarray], batch_tokens: int, total: float, seed: int) -> list[list[int]]:
    """Batches of similar length, in random order, until the token budget is spent."""
    rng = random.Random(seed)
    plan: list[list[int]] = []
    spent = 0
    while spent < total:
        order = list(range(len(sequences)))
        rng.shuffle(order)
        epoch: list[list[int]] = []
        for begin in range(0, len(order), 8192):
            chunk = sorted(order[begin : begin + 8192], key=lambda i: len(sequences[i]))
            batch: list[int] = []
            for i in chunk:
                if batch and len(sequences[i]) * (len(batch) + 1) > batch_tokens:
                    epoch.append(batch)
                    batch = []
                batch.append(i)
            epoch.append(batch)
        rng.shuffle(epoch)
        for batch in epoch:
            plan.append(batch)
            spent += sum(len(sequences[i]) for i in batch)
            if spent >= total:
                break
    return plan


def build(which: str, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        **SHAPES[which],
    )
    return LlamaForCausalLM(config)


def train(which: str, args: argparse.Namespace) -> None:
    """Train one of the two models; loss on the answer tokens only."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, sequences, starts = prepare(args.work)
    torch.manual_seed(args.seed)
    model = build(which, tokenizer).to(device)
    plan = plan_batches(sequences, args.batch_tokens, args.tokens or TOKENS[which], args.seed)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    peak = args.rate or RATES[which]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
        eps=1e-9,
        fused=True,
    )
    warmup = min(300, len(plan) // 10)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (len(plan) - warmup)))

    checkpoint = args.work / f"{which}.ckpt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{which}: {size / 1e6:.2f} M parameters, steps {first} to {len(plan)} on {device}",
        flush=True,
    )
    model.train()
    began, seen, losses = time.time(), 0, []
    for step in range(first, len(plan)):
        batch = plan[step]
        longest = max(len(sequences[i]) for i in batch)
        ids = np.zeros((len(batch), longest), dtype=np.int64)
        scored = np.zeros((len(batch), longest), dtype=bool)
        for row, i in enumerate(batch):
            ids[row, : len(sequences[i])] = sequences[i]
            scored[row, starts[i] : len(sequences[i])] = True
        tokens = torch.from_numpy(ids).to(device)
        mask = torch.from_numpy(scored[:, 1:]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step)
        # Padding is on the right, so the causal mask alone keeps it away from real tokens.
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[mask]), tokens[:, 1:][mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seen += sum(len(sequences[i]) for i in batch)
        if (step + 1) % 50 == 0:
            speed = seen / (time.time() - began)
            recent = sum(losses[-50:]) / 50
            print(
                f"{which} step {step + 1}/{len(plan)} loss {recent:.4f} {speed:.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % args.save_every == 0 or step + 1 == len(plan):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            model.save_pretrained(args.work / which)
    model.save_pretrained(args.work / which)


def main() -> int:
    """Train what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus and checkpoints")
    parser.add_argument("--only", choices=sorted(SHAPES), help="train one model only")
    parser.add_argument("--tokens", type=float, help="training tokens (default: as published)")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--batch-tokens", type=int, default=2560)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    for which in [args.only] if args.only else ["target", "draft"]:
        train(which, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
