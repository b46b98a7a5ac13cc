"""What every subcommand's parser has in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol, TypeAlias

from hetero_sd.early_exit import SCHEME, EarlyExit
from hetero_sd.runtime.parser import Parser

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"


class Command(Protocol):
    """What a file of hetero_sd/commands/ has."""

    def add_parser(self, subparsers: Subparsers) -> None:
        """Add the subcommand and its options."""

    def run(self, options: argparse.Namespace) -> int:
        """Make the request of the options, run it and print the result; the exit code."""


def subcommand(subparsers: Subparsers, name: str, what: str, example: str) -> Parser:
    """A subcommand's parser: `what` is its line in the list and its first sentence, `example` stands last."""
    made = subparsers.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=example,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
    )
    made.set_defaults(subparser=made)
    return made


def add_draft(p: argparse.ArgumentParser, option: str, metavar: str, what: str) -> None:
    """Add what names the drafter: a file, or a layer after which the target drafts."""
    meant = f"{what}, or {SCHEME}K: the target's own first K layers and its head"
    p.add_argument(option, metavar=metavar, type=_drafter, action=_Once, help=meant)


def _drafter(text: str) -> Path | EarlyExit:
    try:
        return EarlyExit.named(text) or Path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Once(argparse.Action):
    """Takes one drafter: of two the last would be taken without a word."""

    def __call__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, value: object, option: str | None = None
    ) -> None:
        """Keep the value.

        Raises:
            ArgumentError: there is one already.
        """
        if (first := getattr(options, self.dest)) is not None:
            raise argparse.ArgumentError(self, f"two drafters, {first} and {value}: give one")
        setattr(options, self.dest, value)


def add_variant(p: argparse.ArgumentParser) -> None:
    """Add what chooses among the files of a hub's repository."""
    p.add_argument(
        "--variant",
        metavar="NAME",
        help="of models of the hub, hf:ORG/NAME: q4 is model_q4.onnx (default: model.onnx)",
    )


def fetch_models(options: argparse.Namespace, *names: str, quiet: bool = False) -> None:
    """Put files in place of the names of the hub in these options.

    Raises:
        UserError: as `files_of` of hetero_sd/compile/hub.py.
    """
    from hetero_sd.compile.hub import files_of
    from hetero_sd.progress import Progress

    given = [getattr(options, name) for name in names]
    vars(options).update(zip(names, files_of(given, options.variant, Progress(quiet=quiet)), strict=True))


def add_quantise(p: argparse.ArgumentParser) -> None:
    """Add the options that say how float weights are quantised."""
    p.add_argument(
        "--quantise",
        metavar="FORMAT|FILE",
        help="float weights become int8 or int4, in blocks of 32, or of another size as int4:64; a TOML file has "
        "`matrices`, `head` and `embedding`, each a format or float, and [names]: patterns of names of nodes or "
        "weights with formats",
    )
    p.add_argument(
        "--quantise-head",
        metavar="FORMAT",
        help="of the head and the embedding, or float (default int8)",
    )
    p.add_argument("--quantise-draft", metavar="FORMAT|FILE", help="of the drafter, or float (default: as --quantise)")
