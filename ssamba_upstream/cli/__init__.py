"""The ``ssamba`` command: checkpoints, corpora, training, probing, deployment, benchmarks and SUPERB, a module to each.

What computes is imported when a command runs, and not before: help and errors answer at once.
"""

import argparse
import os
import select
import sys

from ..extras import extras_with
from ..training import TrainingError
from . import bench, checkpoints, corpora, deployment, probing, superb, training
from .options import OUTPUT_CLOSED

GROUPS = (checkpoints, corpora, training, probing, deployment, bench, superb)


def main(arguments=None):
    """Run one ``ssamba`` command.

    Args:
        arguments: without the program's name. Default: the command line's.

    Returns:
        its exit status.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:  # also where argparse ends the process
            sys.stdout.flush()
    except BrokenPipeError as error:
        return _status_of_broken_pipe(error)


def _run(arguments):
    if arguments[:1] == ["run-downstream"]:
        return superb.run_downstream(arguments[1:])
    if arguments[:1] == ["s3prl"]:
        return superb.run_s3prl(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        if options.needs_network:
            from .. import auto_classes  # noqa: F401  (which makes torchaudio importable, too)
        return options.run(options) or 0
    except BrokenPipeError:
        raise
    except (OSError, ValueError, TrainingError, ModuleNotFoundError) as error:
        print(f"ssamba: {_explain(error)}", file=sys.stderr)
    return 1


def _explain(error):
    """An error for people: what is wrong, then what to do."""
    if isinstance(error, ModuleNotFoundError):
        found = " or ".join(f"'ssamba-upstream[{extra}]'" for extra in extras_with(error.name or ""))
        return f"{error}. Install it with pip install {found or error.name}"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename} does not exist. Correct the path, or make the file first"
    return error


def _status_of_broken_pipe(error):
    output, states = sys.__stdout__.fileno(), select.poll()
    states.register(output, 0)
    if not states.poll(0):
        print(f"ssamba: {error}", file=sys.stderr)
        return 1
    # Whoever read the output, such as head, has gone: what is left must not be written when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return OUTPUT_CLOSED


def _parser():
    parser = argparse.ArgumentParser(
        prog="ssamba", description="SSAMBA, the Self-Supervised Audio Mamba: checkpoints, corpora, pretraining, "
                                   "fine-tuning, probing, benchmarks and SUPERB.",
    )
    parser.set_defaults(needs_network=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for group in GROUPS:
        group.add_commands(commands)
    return parser
