"""The ``ssamba`` command: checkpoints, corpora, training, probing, deployment, benchmarks and SUPERB, a module to each.

What computes is imported when a command runs, and not before: help and errors answer at once.
"""

import argparse
import sys

from ..training import TrainingError
from . import bench, checkpoints, corpora, deployment, probing, superb, training

GROUPS = (checkpoints, corpora, training, probing, deployment, bench, superb)


def main(arguments=None):
    """Run one ``ssamba`` command.

    Args:
        arguments: without the program's name. Default: the command line's.

    Returns:
        its exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["run-downstream"]:
        return superb.run_downstream(arguments[1:])
    if arguments[:1] == ["s3prl"]:
        return superb.run_s3prl(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        if options.needs_network:
            from .. import auto_classes  # noqa: F401  (which makes torchaudio importable, too)
        return options.run(options) or 0
    except (OSError, ValueError, TrainingError) as error:
        print(f"ssamba: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"ssamba: {error}; install this package's extras superb, pretraining, "
              "finetuning, probing and onnx", file=sys.stderr)
    return 1


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
