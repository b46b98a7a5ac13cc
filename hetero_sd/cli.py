"""The `hetero-sd` command: the list of subcommands, each a file of hetero_sd/commands/, and the exit codes."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from hetero_sd.commands import acceptance, audit, calibrate, doctor, explain, inspect, predict, run, sweep, verify
from hetero_sd.commands import compile as compile_command
from hetero_sd.commands.in_a_copy import in_a_copy
from hetero_sd.commands.parser import Command
from hetero_sd.runtime.internal_error import check_streams, report, settle_output, show_traceback
from hetero_sd.runtime.parser import Parser
from targets.errors import UserError
from targets.host.calibrated import find
from targets.memory import short_note

COMMANDS: dict[str, Command] = {
    "compile": compile_command,
    "verify": verify,
    "audit": audit,
    "run": run,
    "doctor": doctor,
    "inspect": inspect,
    "explain": explain,
    "predict": predict,
    "sweep": sweep,
    "calibrate": calibrate,
    "acceptance": acceptance,
}

# What removes the leftovers where the process that does the work ended without Python's knowing.
IN_A_COPY: dict[str, Callable[[argparse.Namespace], None]] = {"compile": compile_command.clean}


class _Version(argparse.Action):
    """Prints the installed package's version; nothing else needs the package to be installed."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        print(f"{parser.prog} {version('hetero-sd')}")
        parser.exit()


def parser() -> Parser:
    """The parser of the whole command line; `command` names the subcommand."""
    made = Parser(
        prog="hetero-sd",
        description="Compile ONNX LLMs for Cortex-A and Mali, with speculative decoding.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 a mistake in what was given, 70 an internal error (HSD_DEBUG=1 "
        "shows its traceback), 130 interrupted.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action=_Version, nargs=0, help="print the version, and end")
    subparsers = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    0 done, 1 a check failed, 2 a mistake of the user, 70 an internal error (HSD_DEBUG=1 shows its traceback),
    130 interrupted, 141 the reader of the output left.
    """
    command = "reading the options"
    if arguments is None:
        _use_utf8()
    try:
        check_streams()
        options = parser().parse_all(arguments)
        command = options.command
        if ignored := _ignored_calibration(options):
            print(f"hetero-sd: note: {ignored}", file=sys.stderr)
        if arguments is None and command in IN_A_COPY:
            clean = functools.partial(IN_A_COPY[command], options)
            if (code_of_copy := in_a_copy("hetero-sd", command, clean)) is not None:
                return code_of_copy
        code = COMMANDS[command].run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 141
    except UserError as error:
        if error.__cause__ is not None:
            show_traceback(error)
        print(f"hetero-sd: error: {short_note(error)}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (SystemExit, GeneratorExit):
        if (failed := settle_output()) is not None:
            return report("hetero-sd", "standard output", failed)
        raise
    except BaseException as error:  # a panic in the tokenizers library is no Exception
        settle_output()
        return report("hetero-sd", command, error)


def _ignored_calibration(options: argparse.Namespace) -> str:
    """Why board host, where it is asked for, is not the calibrated one; "" where it is, or there is none."""
    boards = str(getattr(options, "board", None)).split(",")
    if "host" not in boards or options.command == "calibrate":
        return ""
    found = find()
    return "" if found is None else found.ignored


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where file names have another encoding: ONNX files name others in UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})
