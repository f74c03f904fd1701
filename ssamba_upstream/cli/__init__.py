"""The ``ssamba`` command, with one module for each group of commands.

Heavy modules are imported only when a command runs, so that help and errors appear immediately.
"""

import argparse
import os
import select
import sys
import textwrap

from ..extras import extras_with
from ..training import TrainingError
from . import bench, checkpoints, corpora, deployment, probing, superb, training
from .options import INTERRUPTED, OUTPUT_CLOSED

GROUPS = {
    "checkpoints": checkpoints, "data": corpora, "training": training, "probing": probing, "SUPERB": superb,
    "deployment": deployment, "benchmarks": bench,
}
"""Titles in the help -> modules of their commands."""


def main(arguments=None):
    """Run one ``ssamba`` command, by default the command line's, and return the exit status."""
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:  # also if argparse ends the process
            sys.stdout.flush()
    except BrokenPipeError as error:
        return _status_of_broken_pipe(error)


def _run(arguments):
    if arguments and arguments[0] in ("run-downstream", "s3prl"):
        return superb.run_s3prl(arguments[0], arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        if options.needs_network:
            from .. import auto_classes  # noqa: F401  (also makes torchaudio importable)
        return options.run(options) or 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError, TrainingError, ModuleNotFoundError) as error:
        print(f"ssamba: {_explain(error)}", file=sys.stderr)
    return 1


def _explain(error):
    """Return an error as a message: what is wrong, then what to do."""
    if isinstance(error, ModuleNotFoundError):
        found = " or ".join(f"'ssamba-upstream[{extra}]'" for extra in extras_with(error.name or ""))
        return f"{error}. Install it with pip install {found or error.name}"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename} does not exist. Correct the path, or create the file first"
    return error


def _status_of_broken_pipe(error):
    output, states = sys.__stdout__.fileno(), select.poll()
    states.register(output, 0)
    if not states.poll(0):
        print(f"ssamba: {error}", file=sys.stderr)
        return 1
    # The reader of the output, such as head, has exited: nothing more must be written when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return OUTPUT_CLOSED


def _parser():
    parser = argparse.ArgumentParser(
        prog="ssamba", usage="ssamba [-h] [--version] COMMAND ...",
        description="SSAMBA, the Self-Supervised Audio Mamba. `ssamba COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(needs_network=True)
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version of this package and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", prog="ssamba", required=True,
                                       help=argparse.SUPPRESS)
    groups = []
    for title, module in GROUPS.items():
        groups.append(_Group(title, subparsers))
        module.add_commands(groups[-1])
    parser.epilog = "\n\n".join(map(str, groups))
    return parser


class _Group:
    """Commands under one title in the help; argparse itself has no titles for commands."""

    def __init__(self, title, subparsers):
        self.lines, self.subparsers = [f"{title}:"], subparsers

    def add_parser(self, name, help, **options):
        indent = 20 * " "
        self.lines.append(textwrap.fill(help, 100, initial_indent=f"  {name:18}", subsequent_indent=indent))
        return self.subparsers.add_parser(name, description=help, **options)

    def __str__(self):
        return "\n".join(self.lines)


class _PrintVersion(argparse.Action):
    def __call__(self, parser, *_):
        from .. import __version__

        print(f"ssamba-upstream {__version__}")
        parser.exit()
