"""s3prl's ``run_downstream`` with ssamba_upstream's entries, on today's libraries."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint import CheckpointError
from ..configs import config_names, find_config
from .registry import register


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``s3prl.run_downstream`` with exactly its own arguments.

    ``-c`` and ``-g`` may also name one of this package's configs by its file's stem, as in
    ``-c keyword_spotting``; a file of that name comes first. Processes started by torchrun take their
    ``--local_rank`` from it.

    Args:
        arguments: without the program's name; the command line's by default.

    Raises:
        SystemExit: the arguments cannot work on this machine, s3prl ended the run, or the run was interrupted
            (status 130).
    """
    arguments = [re.sub(r"^--local-rank(?==|$)", "--local_rank", argument)
                 for argument in (sys.argv[1:] if arguments is None else arguments)]
    given = _parse(arguments)
    _check_device(given)
    # s3prl's argparse keeps the last value of an option that is given twice.
    arguments += _named(given.config, "--config", "downstream")
    arguments += _named(given.upstream_model_config, "--upstream_model_config", "upstream")
    arguments += [] if given.local_rank is None else ["--local_rank", given.local_rank]
    _hand_over(arguments)


def _parse(arguments):
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config")
    parser.add_argument("-g", "--upstream_model_config")
    parser.add_argument("-o", "--override", default="")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--device", default="cuda")
    started_by_torchrun = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    parser.add_argument("--local_rank", default=os.environ.get("LOCAL_RANK") if started_by_torchrun else None)
    for flag in "afr":
        parser.add_argument(f"-{flag}", action="store_true")
    return parser.parse_known_args(arguments)[0]


def _check_device(given):
    if given.help or "args.device" in given.override:
        return
    if given.device == "cpu":
        if given.local_rank is not None:
            raise SystemExit("s3prl's distributed training needs one GPU per process; on a CPU start a "
                             "single process, without torchrun and without --local_rank.")
        # Wherever torch finds a GPU, s3prl's evaluation insists that its device is one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"s3prl runs on --device {given.device} unless told otherwise, and torch finds no "
                         "GPU here; add --device cpu.")


def _named(value, option, kind) -> list[str]:
    if value is None or Path(value).is_file() or "://" in value:
        return []
    try:
        return [option, str(find_config(value, kind))]
    except ValueError as error:
        raise SystemExit(f"{option} {error}") from None


def _hand_over(arguments):
    command_line = sys.argv
    sys.argv = [command_line[0], *arguments]
    try:
        register()
        from s3prl import run_downstream

        run_downstream.main()
    except FileNotFoundError as error:
        if explanation := _explain_missing_file(str(error.filename)):
            raise SystemExit(explanation) from error
        raise
    except CheckpointError as error:
        raise SystemExit(str(error)) from None
    except ModuleNotFoundError as error:
        if error.name not in ("librosa", "tensorboardX"):
            raise
        raise SystemExit(f"s3prl needs {error.name} here: pip install 'ssamba-upstream[superb]'") from None
    except KeyboardInterrupt:
        print("\nInterrupted. The same command with -a goes on from the experiment's last states-*.ckpt.",
              file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        sys.argv = command_line


def _explain_missing_file(missing) -> str | None:
    if re.fullmatch(r"\./downstream/.*/config\.yaml", missing):
        return ("Give the downstream's config with -c: a file, or one of ssamba_upstream's by its name: "
                f"{', '.join(config_names('downstream'))}. s3prl's package has none ({missing}).")
    if missing.startswith("/path/to/"):
        return (f"The config's {missing} stands for a path of yours; give it with -o, as the first lines of "
                "the config show.")
    return None
