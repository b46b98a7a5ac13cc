"""The command on the device: ``python DIR/run.py``."""

from __future__ import annotations

import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.choose_policy import OVERLAPPED, choose_policy, fixed_gamma
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.overlapped.target_side import Overlap
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.start_times import time_steps
from hetero_sd.runtime.decode.stats import stats_json, stats_table
from hetero_sd.runtime.internal_error import report, step
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.program_cache import use_cache
from hetero_sd.runtime.model.protocol import Models, NotFiniteError
from hetero_sd.runtime.model.threads import choose_threads, prepare_environment, stay_on_cluster, usable_cpus
from hetero_sd.runtime.model.within_vocabulary import within_vocabulary
from hetero_sd.runtime.options import RunRequest, parse_options
from hetero_sd.runtime.saved_logits import save_logits
from hetero_sd.runtime.session import Answer, Session, overlapping
from hetero_sd.runtime.text import tokenizer as text_files
from hetero_sd.runtime.text.prompts import Prompt, prompt_of_text, read_lines, read_prompts
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError
from targets.opencl.runtime import OpenCLError

Loader = Callable[[Bundle, bool], Models]


def main(folder: str | Path, arguments: Sequence[str] | None = None, load: Loader | None = None) -> int:
    """Run the command on the bundle in ``folder`` and return its exit code.

    0 done, 1 the doctor found a problem, 2 a mistake of the user, 3 the GPU failed or the target's logits are not
    finite, 70 an internal error (each of them one line on standard error; HSD_DEBUG=1 shows the traceback of the
    last), 130 interrupted, 141 the reader of the output left.

    Args:
        folder: the bundle.
        arguments: options; None means those of the process.
        load: loads the models; None is :func:`hetero_sd.runtime.model.model.load_models`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 must not end the run
    try:
        options = parse_options(arguments)
        if options.cache_dir is not None:
            use_cache(options.cache_dir)
        if options.doctor:
            from hetero_sd.runtime.doctor.doctor import doctor_report

            text, code = doctor_report(Path(folder), options.opencl_lib, options.json)
            print(text)
            return code
        if options.opencl_lib is not None:
            os.environ["HSD_OPENCL_LIB"] = options.opencl_lib
        _run(Path(folder), options, load)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 3 if isinstance(error, NotFiniteError) else 2
    except OpenCLError as error:
        print(f"run.py: error: the GPU failed: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 141
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in the tokenizers library is no Exception
        return report("run.py", "running the bundle", error)


def _run(folder: Path, options: RunRequest, load: Loader | None) -> None:
    """Check everything, load the models, answer every prompt."""
    bundle = Bundle(folder)
    if options.check:
        bundle.verify_all()
    if options.calibrate is not None:
        _calibrate(bundle, options.calibrate, options, load or _load_models)
        return
    given = _given_prompts(options)
    text = load_text(bundle)
    if text is None and not options.json:
        raise UserError("the bundle has no tokenizer, so there is no text to show: give --json")
    prepare_environment(choose_threads(options.threads, bundle.plan))  # before TVM is imported
    usable = usable_cpus()
    with step("loading the models"):
        models = (load or _load_models)(bundle, options.huge_pages)
    with _overlap(bundle, models, usable, options) as overlap:
        models = within_vocabulary(models, bundle.tokenizer.vocab if bundle.tokenizer else None)
        _answer_all(bundle, _session(bundle, models, text, options, overlap), given, options)


def _answer_all(bundle: Bundle, session: Session, given: list[Prompt] | None, options: RunRequest) -> None:
    """Answer every prompt, and print and save what is made of all answers."""
    answers: list[Answer] = []  # kept only where something is made of all of them afterwards
    kept = options.save_logits is not None or (options.stats and given is not None)
    for prompt, ids in _encoded(session, given):
        answer = _answer(session, prompt, ids, bundle.plan, options)
        if kept:
            answers.append(answer)
        if options.stats and given is None:
            print(stats_table(_stats(session, [answer], bundle.plan)), file=sys.stderr)
    if options.stats and given is not None:
        print(stats_table(_stats(session, answers, bundle.plan)), file=sys.stderr)
    if options.save_logits is not None:
        sequences = [(answer.prompt_ids, answer.trace.token_ids) for answer in answers]
        save_logits(options.save_logits, session.models.target, sequences)


def _calibrate(bundle: Bundle, out: Path, options: RunRequest, load: Loader) -> None:
    """Measure for `hetero-sd calibrate`."""
    from hetero_sd.runtime.calibrate.calibrate import calibrate, throttled

    threads = choose_threads(options.threads, bundle.plan)
    prepare_environment(threads)
    models = load(bundle, options.huge_pages)
    seconds = options.calibrate_seconds
    result = calibrate(models, threads, seconds, out, lambda line: print(f"  {line}", file=sys.stderr))
    unstable = sum(not point.stable for point in result.points)
    print(
        f"{out}: {len(result.points)} points in {result.seconds:.0f} s, "
        f"{unstable} of them unstable, {result.bandwidth_gb_per_s:.1f} GB/s with {threads} threads"
        + ("; the clock fell while measuring: cool the board and repeat" if throttled(result) else "")
    )


def _load_models(bundle: Bundle, huge_pages: bool) -> Models:
    """Load the models, and with them TVM."""
    from hetero_sd.runtime.model.model import load_models
    from hetero_sd.runtime.model.thread_pool import why_tvms_pool

    stay_on_cluster(bundle.plan, int(os.environ["TVM_NUM_THREADS"]), why_tvms_pool(bundle) is not None)
    return load_models(bundle, huge_pages)


def _given_prompts(options: RunRequest) -> list[Prompt] | None:
    """Return the prompts of the command line or of a file; None where they are typed."""
    if options.prompt is not None:
        return [prompt_of_text(options.prompt, "--prompt")]
    return None if options.prompts is None else read_prompts(options.prompts)


def _encoded(session: Session, given: list[Prompt] | None) -> Iterable[tuple[Prompt, list[int]]]:
    """Return prompts with their ids; given ones are all checked before the first is answered."""
    if given is None:
        return ((prompt, session.encode(prompt)) for prompt in read_lines())
    return [(prompt, session.encode(prompt)) for prompt in given]


def load_text(bundle: Bundle) -> Text | None:
    """Return the tokenizer in the bundle's folder ``tokenizer``, or None where it carries none."""
    paths = {name: f"{text_files.FOLDER}/{name}" for name in text_files.FILES}
    if paths["tokenizer.json"] not in bundle:
        return None
    return Text(lambda name: bundle.path(paths[name]) if paths[name] in bundle else None)


def _eos_ids(bundle: Bundle, text: Text | None) -> frozenset[int]:
    """Return the end-of-text ids of the manifest (tokenizer.eos_ids), else those of the tokenizer's files."""
    if bundle.tokenizer is None:
        return text.eos_ids if text else frozenset()
    return frozenset(bundle.tokenizer.eos_ids)


def _overlap(
    bundle: Bundle, models: Models, usable: Sequence[int], options: RunRequest
) -> AbstractContextManager[Overlap | None]:
    """The drafter's thread beside the target's where the mode is overlapped; it ends with the context."""
    if options.mode != OVERLAPPED or models.draft is None:
        return nullcontext()
    gamma = fixed_gamma(options.gamma, bundle.plan)
    if options.least is not None and options.least > gamma:
        raise UserError(f"--least {options.least}: {gamma} are drafted in a round: give 0 to {gamma}, or --gamma")
    return overlapping(models, bundle.plan, usable, gamma, options.least or 0, _note)


def _note(line: str) -> None:
    print(f"run.py: note: {line}", file=sys.stderr)


def _session(
    bundle: Bundle, models: Models, text: Text | None, options: RunRequest, overlap: Overlap | None = None
) -> Session:
    """Return the session the options ask for."""
    drafter = options.drafter or MODEL
    with_model = MODEL in drafter.split("+")
    if models.draft is None and with_model and options.drafter is not None:
        raise UserError("this bundle has no draft model: give --drafter ngram, which needs none")
    if models.draft is None and options.mode == OVERLAPPED:
        raise UserError(f"this bundle has no draft model: leave out --mode {OVERLAPPED}")
    if models.draft is None and with_model and (options.mode == "speculative" or options.gamma is not None):
        raise UserError(
            "this bundle has no draft model: leave out --mode speculative and --gamma, or give --drafter ngram"
        )
    seed = secrets.randbits(63) if options.seed is None else options.seed
    sampling = Sampling(options.temperature, options.top_k, options.top_p, seed)
    drafts = models.draft is not None or not with_model
    repeatable = options.seed is not None and not sampling.greedy
    policy = None
    if drafts and overlap is None:
        policy = choose_policy(options.mode, options.gamma, bundle.plan, drafter, repeatable)
    if isinstance(policy, LiveGamma):
        try:
            time_steps(models if with_model else Models(models.target), policy)
        except NotFiniteError as error:
            _note(f"{error}; it is left out")
            policy = None
    request = Request(options.max_new_tokens, _eos_ids(bundle, text), sampling)
    chat = not options.no_chat_template
    return Session(models, text, request, options.stop, policy, chat, drafter, overlap=overlap)


def _mode(session: Session) -> str:
    """Return how the draft length is chosen: "target-only", "live", or fixed: "speculative" or "overlapped"."""
    if session.overlap is not None:
        return OVERLAPPED
    if session.policy is None:
        return "target-only"
    return "live" if isinstance(session.policy, LiveGamma) else "speculative"


def _stats(session: Session, answers: Sequence[Answer], plan: Plan | None) -> dict[str, Any]:
    """Return what the run measured, and what ran the CPU kernels, where the target says it."""
    facts = getattr(session.models.target, "thread_facts", None)
    drafters = getattr(session.models.draft, "thread_facts", None) if session.overlap is not None else None
    return {
        **stats_json([answer.trace for answer in answers], plan),
        **({"threads": facts} if facts else {}),
        **({"draft_threads": drafters} if drafters else {}),
    }


def _answer(session: Session, prompt: Prompt, ids: list[int], plan: Plan | None, options: RunRequest) -> Answer:
    """Answer one prompt: streamed to the terminal, or as one JSON line."""

    def show(piece: str) -> None:
        if not options.json:
            print(piece, end="", flush=True)

    with step("answering"):
        answer = session.answer(prompt, ids, show)
    if answer.trace.lost_drafter is not None:
        _note(f"{answer.trace.lost_drafter}; it was left out")
    if not options.json:
        print(flush=True)
        return answer
    sampling = session.request.sampling
    stats = {
        "mode": _mode(session),
        "seed": None if sampling.greedy else sampling.seed,
        **_stats(session, [answer], plan),
    }
    line = {"prompt": prompt.given, "token_ids": answer.trace.token_ids, "text": answer.text, "stats": stats}
    print(json.dumps(line), flush=True)
    return answer
