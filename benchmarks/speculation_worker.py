"""A process of benchmarks/speculation.py: one bundle, its ways to answer, one repeat of all of them for each line read.

    python benchmarks/speculation_worker.py BUNDLE --prompts FILE --how apart|together|text [--gammas 1,2,4] [--new 64]

apart: each model on CPUs of its own, the target alone, sequential and overlapped rounds, and what the run decides.
together: all CPUs for each model in turn. text: without a draft model, from n-grams. A repeat is a JSON object on one
line: name of the way -> what it measured. Predicted are the means of the formulas (costmodel/speculative.py,
costmodel/early_verification.py) with the steps' times and the acceptance that the sequential rounds of the same repeat
measured, without contention. Simulated is the same text event by event (costmodel/overlapped_events.py), with the
means of what the steps of that very run took and with the drafter's own guesses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

ALONE, AUTO = "alone", "auto"


def predicted(gamma: int, least: int | None, stats: dict[str, Any], plain_s: float) -> float:
    """Tokens a second by the formulas, from what sequential rounds of that draft length measured."""
    from costmodel.contention import Load
    from costmodel.early_verification import early_round
    from costmodel.speculative import RoundCosts, sequential_round

    median, alpha = stats["median_s"], stats["acceptance_rate"]
    draft_s, verify_s = median["draft_step"], median["verify_step"][str(gamma + 1)]
    slope = (verify_s - plain_s) / gamma

    def step_s(n: int) -> float:
        return float(plain_s + slope * (n - 1))

    if least is None:
        return sequential_round(alpha, gamma, RoundCosts(draft_s, draft_s, step_s, median["dispatch"])).tokens_per_s
    draft = Load(draft_s, 0.0, 0.0)
    found = early_round(
        *(alpha, gamma, least, draft, lambda n: Load(step_s(n), 0.0, 0.0), median["dispatch"], 1e18, 5e-5)
    )
    return found.tokens_per_s


def simulated(traces: Sequence[Any], guessed: Sequence[list[bool]], gamma: int, least: int, new: int) -> float:
    """Tokens a second that the event simulation makes of overlapped texts, recorded with spans.

    Args:
        traces: of the texts.
        guessed: for each of them, which of its tokens the drafter guesses.
        gamma: drafts that are verified at a time, at most.
        least: drafts that the target waits for.
        new: tokens that were asked for.
    """
    from costmodel.overlapped_events import Durations, simulate_text

    rounds = [finished for trace in traces for finished in trace.rounds]
    steps = {
        drafted: statistics.fmean(r.verify_s for r in rounds if r.drafted == drafted)
        for drafted in {r.drafted for r in rounds}
    }
    handed = [seconds for trace in traces for seconds in trace.hand_overs_s]
    draft_s = statistics.fmean(seconds for trace in traces for seconds in trace.draft_steps_s)
    other_s = statistics.fmean(r.loop_s + r.sampling_s for r in rounds)
    seconds, tokens = 0.0, 0
    for trace, right in zip(traces, guessed, strict=True):
        read = [span for span in trace.spans if span.term == "catch_up"]
        durations = Durations(
            draft_s,
            lambda drafted: steps[min(steps, key=lambda n: (abs(n - drafted), n))],
            other_s,
            statistics.fmean(handed) if handed else 0.0,
            trace.prefill_s,
            sum(span.end_s - span.begin_s for span in read),
        )
        seconds += simulate_text(right, gamma, least, durations, new).seconds
        tokens += len(right) - 1
    return tokens / seconds


class Worker:
    """The models of a bundle, and the ways to answer with them; ``ways`` has for each its maker."""

    def __init__(self, options: argparse.Namespace, resources: ExitStack) -> None:
        """Load them on their CPUs."""
        from hetero_sd.runtime.model.threads import prepare_environment, usable_cpus

        usable = usable_cpus()
        apart = options.how == "apart"
        prepare_environment(max(1, len(usable) - 1) if apart else options.threads or len(usable))
        from hetero_sd.runtime.manifest import Bundle

        self.bundle, self.gammas = Bundle(options.bundle), [int(g) for g in options.gammas.split(",") if g]
        os.environ["POCL_MAX_PTHREAD_COUNT"] = "1"
        from hetero_sd.runtime.decode.generate import Request
        from hetero_sd.runtime.load import load_text
        from hetero_sd.runtime.model.model import load_models
        from hetero_sd.runtime.model.shared_rows import with_shared_rows

        before = set(os.listdir("/proc/self/task"))
        self.loaded, text = load_models(self.bundle), load_text(self.bundle)
        assert text is not None
        if any("gpu" in model.place.processors for model in self.bundle.models.values()):
            for task in set(os.listdir("/proc/self/task")) - before:  # PoCL's, which computes
                os.sched_setaffinity(int(task), {usable[-1]})
        lines = options.prompts.read_text("utf-8").splitlines()
        self.prompts = [text.encode_prompt(json.loads(line)) for line in lines]
        self.request = Request(options.new, text.eos_ids)
        self.models = with_shared_rows(self.loaded, self.loaded)
        self._guesses: list[list[bool]] = []
        self.apart: Callable[[], None] = lambda: None  # moves the models to CPUs of their own
        self.ways: dict[str, Callable[[], Any]] = {ALONE: lambda: self.way(None)}
        if options.how == "text":
            self._add_text_ways()
        else:
            self._add_model_ways(usable if apart and self.models is self.loaded else None, resources)

    def way(self, policy: Any, **more: Any) -> Any:
        """The models share rows where they do not work at once."""
        from hetero_sd.runtime.decode.way import Way

        models = self.loaded if "overlap" in more else self.models
        return Way(models, self.request, policy, **more)

    def _live(self, drafter: str) -> Any:
        from hetero_sd.runtime.decode.choose_policy import choose_policy
        from hetero_sd.runtime.decode.live_gamma import LiveGamma
        from hetero_sd.runtime.decode.start_times import time_steps
        from hetero_sd.runtime.model.protocol import Models

        policy = choose_policy("auto", None, self.bundle.plan, drafter)
        if isinstance(policy, LiveGamma):
            time_steps(self.models if drafter == "model" else Models(self.models.target), policy)
        return policy

    def _add_text_ways(self) -> None:
        from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool

        live = self._live("ngram")
        self.ways["ngram"] = lambda: self.way(live, drafter="ngram", pool=NgramPool())

    def _add_model_ways(self, usable: Any, resources: ExitStack) -> None:
        from hetero_sd.runtime.decode.live_mode import LiveMode
        from hetero_sd.runtime.decode.overlapped.overlapping import overlapping
        from hetero_sd.runtime.decode.policy import FixedGamma

        live, more = self._live("model"), {}
        for g in self.gammas:
            self.ways[f"sequential {g}"] = lambda g=g: self.way(FixedGamma(g))
        if usable is not None:
            plan = self.bundle.plan
            overlap = resources.enter_context(overlapping(self.loaded, plan, usable, 1, 0, lambda line: None))
            self.apart = overlap.sides.apart
            for g in self.gammas:
                for least in (0, g):
                    beside = replace(overlap, gamma=g, least=least)
                    self.ways[f"overlapped {g}, waits for {least}"] = lambda b=beside: self.way(None, overlap=b)
            planned = None if plan is None else plan.overlap
            if planned is not None:
                mode = LiveMode(live, planned)
                more = {"overlap": replace(overlap, gamma=planned.gamma, least=planned.least, live=mode)}
        if live is not None:
            self.ways[AUTO] = lambda: self.way(live, **more)

    def repeat(self) -> dict[str, Any]:
        """All ways in turn."""
        from hetero_sd.runtime.decode.stats import summarise
        from hetero_sd.runtime.decode.trace import Trace

        found: dict[str, Any] = {}
        for name, make in self.ways.items():
            self.apart()
            spans = name.startswith("overlapped")
            way, traces = make(), [Trace(spans=[] if spans else None) for _ in self.prompts]
            texts = [list(way.stream(ids, trace)) for ids, trace in zip(self.prompts, traces, strict=True)]
            found[name] = {"texts": texts, "stats": summarise(traces), "traces": traces if spans else None}
        alone = found[ALONE]["stats"]
        for name, one in found.items():
            stats = one["stats"]
            one |= {"speed": stats["tokens_per_s"], "accepted": stats["acceptance_rate"]}
            one |= {"predicted": None, "simulated": None}
            if name[-1].isdigit():
                words = name.replace(",", "").split()
                gamma, least = int(words[1]), int(words[-1]) if len(words) > 2 else None
                turns, plain_s = found[f"sequential {gamma}"]["stats"], alone["median_s"]["verify_step"]["1"]
                one["predicted"] = predicted(gamma, least, turns, plain_s)
                if least is not None:
                    guessed = self._guessed(one["texts"])
                    one["simulated"] = simulated(one["traces"], guessed, gamma, least, self.request.max_new_tokens)
        return {name: {k: v for k, v in one.items() if k not in ("stats", "traces")} for name, one in found.items()}

    def _guessed(self, texts: list[list[int]]) -> list[list[bool]]:
        """Which tokens of the texts the drafter guesses from what stands before them; asked once."""
        if not self._guesses:
            for prompt, text in zip(self.prompts, texts, strict=True):
                best = self.loaded.draft.argmax([*prompt, *text[:-1]], 0)[len(prompt) - 1 :]
                self._guesses.append([int(guess) == token for guess, token in zip(best, text, strict=True)])
        return self._guesses


def main() -> int:
    """Answer each line of the input with a repeat, until it ends."""
    parser = argparse.ArgumentParser(description="a process of benchmarks/speculation.py")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="texts, each a JSON string, one a line")
    parser.add_argument("--how", choices=("apart", "together", "text"), default="apart")
    parser.add_argument("--gammas", default="1,2,4")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of the kernels, where both models have the same")
    options = parser.parse_args()
    with ExitStack() as resources:
        worker = Worker(options, resources)
        for _ in sys.stdin:
            print(json.dumps(worker.repeat()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
