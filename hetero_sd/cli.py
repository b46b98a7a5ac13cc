"""The `hetero-sd` command: argparse only, each subcommand one call."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hetero_sd import acceptance, calibrate, explain
from hetero_sd.commands import predict, sweep
from hetero_sd.compile.place import RULES
from hetero_sd.runtime.internal_error import report, show_traceback
from targets.boards import board_names
from targets.errors import UserError

_COMPILE_EXAMPLE = """\
example:
  hetero-sd compile target/model.onnx --draft draft/model.onnx --tokenizer . --board imx95 --out bundle
  python bundle/run.py --prompt "The dog sleeps."

Models: decoder-only LLMs as torch.onnx.export, optimum-onnx or onnxruntime-genai's builder write them.
"""
_VERIFY_EXAMPLE = """\
example:
  hetero-sd verify bundle --against target/model.onnx --prompts prompts.txt

For a bundle that cannot run here: `run.py --prompts FILE --save-logits F` on the device, then `--from F` here.
"""

_DOCTOR_EXAMPLE = """\
example:
  hetero-sd doctor            (on the device: python bundle/run.py --doctor)

Exit code 1 if there is a problem.
"""


_INSPECT_EXAMPLE = """\
example:
  hetero-sd inspect target/model.onnx

Shows family, sizes, cache, what each import pass matched, and what is refused. Exit code 1 if it does not compile.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Report a mistake as one line; --help has the usage."""
        raise UserError(f"{message} (`{self.prog} --help` lists the options)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hetero-sd",
        description="Compile ONNX LLMs for Cortex-A and Mali, with speculative decoding.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 a mistake in what was given, 70 an internal error (HSD_DEBUG=1 "
        "shows its traceback), 130 interrupted.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    c = _command(commands, "compile", "write a deployable bundle for a board", _COMPILE_EXAMPLE)
    c.add_argument("target", metavar="TARGET.onnx", type=Path, help="the model whose text is wanted")
    c.add_argument("--draft", metavar="DRAFT.onnx", type=Path, help="a smaller model of the same tokenizer")
    c.add_argument(
        "--tokenizer", metavar="FILE|DIR", type=Path, help="tokenizer.json or its folder (default: beside the target)"
    )
    c.add_argument(
        "--board", metavar="NAME|PATH.toml", required=True, help=f"{', '.join(board_names())}, or a board file"
    )
    c.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new bundle's folder")
    c.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="tokens the KV caches hold (default 1024, fewer if a model ends before)",
    )
    c.add_argument("--gamma", metavar="N", type=_gamma, help="drafted tokens a round (default auto: the plan decides)")
    c.add_argument("--alpha", metavar="P", type=float, help="acceptance of a drafted token (default 0.8 is assumed)")
    c.add_argument("--alpha-file", metavar="FILE", type=Path, help="what `hetero-sd acceptance` measured")
    c.add_argument("--factors", metavar="FILE", type=Path, help="factors of a calibration, in place of the board's")
    c.add_argument("--eos", metavar="ID", type=int, action="append", default=[], help="end-of-text id (repeatable)")
    c.add_argument(
        "--vendor-wheels", action="store_true", help="put the device's Python packages into DIR/site (AArch64)"
    )
    c.add_argument("--board-python", metavar="3.x", default="3.12", help="the device's Python (default 3.12)")
    c.add_argument("--place", metavar="RULE", help=f"where each model runs: {RULES} (default auto: the plan decides)")
    c.add_argument("--no-cpu-fallback", action="store_true", help="no CPU variant of what runs on the GPU")
    c.add_argument("--subgraphs", metavar="DIR", type=Path, help="write each segment as an ONNX file, for Netron")
    c.add_argument("--dump-ir", metavar="DIR", type=Path, help="write the IR after each phase, for reading")
    c.add_argument("--json", action="store_true", help="print what was decided as JSON")

    v = _command(commands, "verify", "compare a bundle's logits with onnxruntime's", _VERIFY_EXAMPLE)
    v.add_argument("bundle", metavar="DIR", type=Path, help="the bundle")
    v.add_argument("--against", metavar="TARGET.onnx", type=Path, required=True, help="the model it was made from")
    v.add_argument("--prompts", metavar="FILE", type=Path, help="texts, one a line (default: random tokens)")
    v.add_argument("--from", dest="saved", metavar="F", type=Path, help="logits saved by run.py --save-logits")
    v.add_argument("--json", action="store_true", help="print the comparison as JSON")

    d = _command(commands, "doctor", "what this machine has, what is missing, and what fixes it", _DOCTOR_EXAMPLE)
    d.add_argument("bundle", metavar="DIR", type=Path, nargs="?", help="also look at the file system of this bundle")
    d.add_argument("--opencl-lib", metavar="FILE", help="the OpenCL library to open (default: the usual names)")
    d.add_argument("--json", action="store_true", help="print the findings as JSON")

    i = _command(commands, "inspect", "what an ONNX file is and whether it compiles", _INSPECT_EXAMPLE)
    i.add_argument("model", metavar="FILE.onnx", type=Path, help="the export")
    i.add_argument(
        "--context", metavar="N", type=int, help="tokens to check it for (default 1024, fewer if the model ends before)"
    )
    i.add_argument("--json", action="store_true", help="print the findings as JSON")

    explain.add_options(_command(commands, "explain", "what each kernel moves, and how it is cut", explain.EXAMPLE))
    predict.add_options(_command(commands, "predict", "what a pair will cost on a board", predict.EXAMPLE))
    sweep.add_options(_command(commands, "sweep", "many predictions as a table", sweep.EXAMPLE))
    calibrate.add_options(_command(commands, "calibrate", "fit the cost model to a device", calibrate.EXAMPLE))
    acceptance.add_options(_command(commands, "acceptance", "measure how much a pair accepts", acceptance.EXAMPLE))
    return parser


def _gamma(text: str) -> int | None:
    """A draft length, or None for the plan's."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor auto") from None


def _command(commands: argparse._SubParsersAction[_Parser], name: str, what: str, example: str) -> _Parser:
    return commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=example,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    0 done, 1 a check failed, 2 a mistake of the user, 70 an internal error (HSD_DEBUG=1 shows its traceback),
    130 interrupted, 141 the reader of the output left.
    """
    command = "reading the options"
    if arguments is None:
        _use_utf8()
    try:
        options = _parser().parse_args(arguments)
        command = options.command
        commands = {
            "compile": _compile,
            "verify": _verify,
            "explain": explain.run,
            "predict": predict.run,
            "sweep": sweep.run,
            "acceptance": acceptance.run,
            "calibrate": calibrate.run,
            "doctor": _doctor,
            "inspect": _inspect,
        }
        code = commands[options.command](options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 141
    except UserError as error:
        if error.__cause__ is not None:
            show_traceback(error)
        print(f"hetero-sd: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in the tokenizers library is no Exception
        return report("hetero-sd", command, error)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where file names have another encoding: ONNX files name others in UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def _inspect(options: argparse.Namespace) -> int:
    from hetero_sd.inspect import as_json, as_text, inspect

    found = inspect(options.model, options.context)
    print(as_json(found) if options.json else as_text(found))
    return 1 if found.refused else 0


def _compile(options: argparse.Namespace) -> int:
    from hetero_sd.compile.compile_report import compile_json, compile_text
    from hetero_sd.compile.story import CompileRequest, compile_bundle
    from hetero_sd.compile.vendor import PYTHONS
    from hetero_sd.progress import Progress

    if options.board_python not in PYTHONS:
        raise UserError(f"--board-python {options.board_python}: there are wheels for {', '.join(PYTHONS)}")
    request = CompileRequest(
        target=options.target,
        draft=options.draft,
        tokenizer=options.tokenizer,
        board=options.board,
        out=options.out,
        context=options.context,
        gamma=options.gamma,
        eos=tuple(options.eos),
        vendor_python=options.board_python if options.vendor_wheels else None,
        dump_ir=options.dump_ir,
        place=None if options.place == "auto" else options.place,
        alpha=options.alpha,
        alpha_file=options.alpha_file,
        factors=options.factors,
        cpu_fallback=not options.no_cpu_fallback,
        subgraphs=options.subgraphs,
    )
    result = compile_bundle(request, Progress(quiet=options.json))
    print(compile_json(result) if options.json else compile_text(result, options.out))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from hetero_sd.compile.compile_report import verify_json, verify_text
    from hetero_sd.verify import verify_bundle

    result = verify_bundle(options.bundle, options.against, options.prompts, options.saved)
    print(verify_json(result) if options.json else verify_text(result))
    return 0 if result.passed else 1


def _doctor(options: argparse.Namespace) -> int:
    from hetero_sd.runtime.doctor import doctor

    return doctor.run(options.bundle, options.json, options.opencl_lib)
