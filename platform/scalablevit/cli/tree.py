"""The tree of commands: the verb is read first, and only its module is imported, which reads the other arguments."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from scalablevit import __version__
from scalablevit.cli.verbs import VERBS
from scalablevit.config.commands import PROGRAM, command_name


def main(verb: str | None = None, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        verb: one of `VERBS`; None: the first of the arguments.
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: after --help and --version (0), and for arguments that the command does not take (2).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if verb is None:
        verb, given = _pick(given)
    options = parse(verb, given)
    from scalablevit.cli.exit_codes import run_command  # not needed for help

    return run_command(lambda: int(import_module(VERBS[verb].module).run(options)))


def parse(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Return a command's arguments; overrides may come before, between and after the options.

    Raises:
        SystemExit: as `main`.
    """
    parser = parser_of(verb)
    if not VERBS[verb].has_verbs:
        return parser.parse_intermixed_args(arguments)
    options, late = parser.parse_known_args(arguments)
    if late and ("given" not in options or any(argument.startswith("-") for argument in late)):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:  # argparse's sub-parsers take no positional values after options
        options.given += late
    return options


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a command's arguments, which also sets the verb as `command`."""
    module = import_module(VERBS[verb].module)
    parser = argparse.ArgumentParser(
        prog=command_name(verb), description=VERBS[verb].description, epilog=module.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(command=verb)
    module.add_arguments(parser)
    return parser


def _pick(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb and the arguments after it.

    Raises:
        SystemExit: as `main`.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Train, search, track and register vision backbones.",
        epilog=f"`{PROGRAM} VERB --help` says what a command takes.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=verb.description, add_help=False)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    first, rest = arguments[:1], arguments[1:]
    if first and first[0].startswith("-") and first[0] not in ("-h", "--help", "--version"):
        parser.error(f"the command comes first, as in {PROGRAM} full {' '.join(arguments[:2])}")
    if first and not first[0].startswith("-") and first[0] not in VERBS:
        near = difflib.get_close_matches(first[0], VERBS, n=1)
        parser.error(f"no command {first[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return str(parser.parse_args(first).verb), list(rest)
