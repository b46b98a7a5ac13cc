"""The command on the device: ``python DIR/run.py``."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hetero_sd.runtime.answer_prompts import answer_prompts
from hetero_sd.runtime.internal_error import check_streams, report, settle_output
from hetero_sd.runtime.load import Loader, load_models, load_session, load_text
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.program_cache import use_cache
from hetero_sd.runtime.model.protocol import NotFiniteError
from hetero_sd.runtime.model.threads import choose_threads, prepare_environment
from hetero_sd.runtime.options import DEFAULT_CALIBRATE_S, parse_options
from hetero_sd.runtime.request import RunRequest
from hetero_sd.runtime.serve.command import serve_command
from hetero_sd.runtime.serve.options import (
    mode_with_slots,
)
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.prompts import Prompt, prompt_of_text, read_prompts
from hetero_sd.runtime.trust import BundleRefused, check_signature
from hetero_sd.runtime.voting.command import vote
from hetero_sd.runtime.voting.options import CHAINS, REFINE, pattern_of
from hetero_sd.runtime.voting.vote import Election
from targets.errors import UserError
from targets.memory import short_note
from targets.opencl.runtime import OpenCLError


def main(folder: str | Path, arguments: Sequence[str] | None = None, load: Loader | None = None) -> int:
    """Run the command on the bundle in ``folder`` and return its exit code.

    0 done, 1 the doctor found a problem, 2 a mistake of the user, 3 the GPU failed or the target's logits are not
    finite, 70 an internal error (each of them one line on standard error; HSD_DEBUG=1 shows the traceback of the
    last), 130 interrupted, 141 the reader of the output left, 143 terminated.

    Args:
        folder: the bundle.
        arguments: options; None means those of the process.
        load: loads the models; None is :func:`hetero_sd.runtime.load.load_models`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 must not end the run
    try:
        check_streams()
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
        with _terminable():
            _run(Path(folder), options, load)
        sys.stdout.flush()
        return 0
    except (UserError, BundleRefused) as error:
        print(f"run.py: error: {short_note(error)}{error}", file=sys.stderr)
        return 3 if isinstance(error, NotFiniteError) else 2
    except OpenCLError as error:
        print(f"run.py: error: the GPU failed: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except _Terminated:
        print(file=sys.stderr)
        return 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 141
    except (SystemExit, GeneratorExit):
        if (failed := settle_output()) is not None:
            return report("run.py", "standard output", failed)
        raise
    except BaseException as error:  # a panic in the tokenizers library is no Exception
        settle_output()
        return report("run.py", "running the bundle", error)


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does: what was said stays, threads are joined."""

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # no other thread may say what signals do
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(folder: Path, options: RunRequest, load: Loader | None) -> None:
    """Check everything, load the models, answer every prompt."""
    if options.verify_key is not None:  # the launcher did it before it imported this
        check_signature(folder, options.verify_key)
    bundle = Bundle(folder)
    if options.check or options.verify_key is not None:
        begin = time.perf_counter()
        read_bytes = bundle.verify_all()
        took_s = time.perf_counter() - begin
        size = f"{len(bundle.manifest.files)} files, {read_bytes / 1e6:.1f} MB"
        print(f"run.py: note: {size}, are those of the manifest: checked in {took_s:.2f} s", file=sys.stderr)
    if options.calibrate is not None:
        _calibrate(bundle, options.calibrate, options, load or load_models)
        return
    if options.serve:
        serve_command(bundle, options, load)
        return
    given = _given_prompts(options)
    text = load_text(bundle)
    if text is None and not options.json:
        raise UserError("the bundle has no tokenizer, so there is no text to show: give --json")
    settings = options.settings()
    if options.votes is not None and bundle.target.slots > 1 and options.votes_by != REFINE:
        settings["mode"] = mode_with_slots(options, bundle.target.slots, drafts_with_model=False)
    with load_session(bundle, text, settings, load) as session:
        if options.votes is None or given is None:
            answer_prompts(session, given, options)
        else:
            _vote(session, given, options, options.votes)


def _vote(session: Session, given: Sequence[Prompt], options: RunRequest, votes: int) -> None:
    """Answer every prompt by a vote."""
    if session.text is None:
        raise UserError("the bundle has no tokenizer, so there is no text to vote on: compile it with --tokenizer")
    if options.load_state is not None:
        session.load_state(options.load_state)
    pattern = None if options.answer_pattern is None else pattern_of(options.answer_pattern)
    vote(session, given, Election(votes, options.votes_by or CHAINS, pattern, options.answer_options()), options.json)


def _calibrate(bundle: Bundle, out: Path, options: RunRequest, load: Loader) -> None:
    """Measure for `hetero-sd calibrate`."""
    from hetero_sd.runtime.calibrate.calibrate import calibrate, throttled

    threads = choose_threads(options.threads, bundle.plan)
    prepare_environment(threads)
    models = load(bundle, options.huge_pages)
    seconds = options.calibrate_seconds or DEFAULT_CALIBRATE_S
    result = calibrate(models, threads, seconds, out, lambda line: print(f"  {line}", file=sys.stderr))
    unstable = sum(not point.stable for point in result.points)
    print(
        f"{out}: {len(result.points)} points in {result.seconds:.0f} s, "
        f"{unstable} of them unstable, {result.bandwidth_gb_per_s:.1f} GB/s with {threads} threads"
        + ("; the clock fell while measuring: cool the board and repeat" if throttled(result) else "")
    )


def _given_prompts(options: RunRequest) -> list[Prompt] | None:
    """Return the prompts of the command line or of a file; None where they are typed."""
    if options.prompt is not None:
        return [prompt_of_text(options.prompt, "--prompt")]
    return None if options.prompts is None else read_prompts(options.prompts)
