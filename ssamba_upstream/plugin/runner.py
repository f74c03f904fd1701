"""s3prl's ``run_downstream`` with ssamba_upstream's entries, on today's libraries."""

import argparse
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from ..checkpoint import CheckpointError
from ..configs import config_names, find_config
from ..extras import extras_with
from ..store import StoreError
from .keeping import keeping_runner, parse_keeping
from .registry import register
from .repairs.frames import RunError


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run ``s3prl.run_downstream`` with its own arguments, and those of :class:`Keeping`.

    ``-c`` and ``-g`` may also name one of this package's configs by its file's stem, as in
    ``-c keyword_spotting``; a file of that name comes first. Where a config names an ``upstream_config``, an upstream
    of this package takes it unless ``-g`` says otherwise. Processes started by torchrun take their
    ``--local_rank`` from it.

    Args:
        arguments: without the program's name; the command line's by default.
        program: name in s3prl's help. Default: the command line's.

    Raises:
        SystemExit: the arguments cannot work on this machine, s3prl ended the run, or the run was interrupted
            (status 130).
    """
    arguments = [re.sub(r"^--local-rank(?==|$)", "--local_rank", argument)
                 for argument in (sys.argv[1:] if arguments is None else arguments)]
    keeping, arguments = parse_keeping(arguments)
    given = _parse(arguments)
    _check_device(given)
    # s3prl's argparse keeps the last value of an option that is given twice.
    arguments += _named(given.config, "--config", "downstream")
    preset = given.upstream_model_config or _preset_of(given)
    arguments += _named(preset, "--upstream_model_config", "upstream")
    arguments += [] if given.local_rank is None else ["--local_rank", given.local_rank]
    _hand_over(arguments, functools.partial(_run_downstream, keeping), program)


def _parse(arguments):
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config")
    parser.add_argument("-g", "--upstream_model_config")
    parser.add_argument("-u", "--upstream", default="")
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


def _preset_of(given) -> str | None:
    """What the config says that the upstream has to be; other upstreams than this package's have other configs."""
    if given.config is None or not given.upstream.startswith("ssamba_"):
        return None
    try:
        config = yaml.safe_load(find_config(given.config, "downstream").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"--config {error}") from None
    return config.get("upstream_config")


def run_s3prl_main(arguments: Sequence[str], program: str | None = None) -> None:
    """``s3prl.main``, the newer recipes such as SuperbSID, with ssamba_upstream's entries and repairs.

    Args:
        arguments: s3prl's: a recipe and its options, such as ``SuperbSID --build_upstream.name ssamba_tiny``.
        program: name in s3prl's help. Default: the command line's.

    Raises:
        SystemExit: a package or file is missing, or s3prl ended the run.
    """

    def run():
        # s3prl.main takes a recipe whose imports fail for one that does not exist.
        from s3prl import main, problem  # noqa: F401

        main.main()

    _hand_over(list(arguments), run, program)


def _run_downstream(keeping):
    from s3prl import run_downstream

    runner = run_downstream.Runner
    run_downstream.Runner = keeping_runner(runner, keeping)
    try:
        run_downstream.main()
    finally:
        run_downstream.Runner = runner


def _hand_over(arguments, run=_run_downstream, program=None):
    command_line = sys.argv
    sys.argv = [program or command_line[0], *arguments]
    try:
        register()
        run()
    except FileNotFoundError as error:
        if explanation := _explain_missing_file(str(error.filename)):
            raise SystemExit(explanation) from error
        raise
    except (CheckpointError, RunError, StoreError) as error:
        raise SystemExit(str(error)) from None
    except ModuleNotFoundError as error:
        raise SystemExit(_explain_missing_module(error.name or str(error))) from None
    except KeyboardInterrupt:
        print("\nInterrupted. The same command with -a goes on from the experiment's last states-*.ckpt.",
              file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        sys.argv = command_line


def _explain_missing_module(name) -> str:
    package, *rest = name.split(".")
    if package == "s3prl":
        if len(rest) > 1 and rest[0] == "downstream" and not importlib.util.find_spec(".".join(["s3prl", *rest[:2]])):
            return f"-d: s3prl has no downstream {rest[1]}"
        others = (" Install s3prl from a clone, or take another corpus: librispeech, libriphone or snips."
                  if rest[:3] == ["downstream", "ctc", "corpus"] else " Install s3prl from a clone.")
        return f"s3prl's package lacks {name}, which only its repository has.{others}"
    if package == "fairseq":
        return ("s3prl needs fairseq here (speech translation does), which asks for an omegaconf that s3prl's own "
                "requirements exclude: no extra of ssamba-upstream installs it.")
    extra = next((extra for extra in extras_with(package) if extra.startswith("superb")), None)
    if extra is None:
        return f"s3prl needs {name} here, which no extra of ssamba-upstream installs. Install it with pip."
    return f"s3prl needs {name} here: pip install 'ssamba-upstream[{extra}]'"


def _explain_missing_file(missing) -> str | None:
    if re.fullmatch(r"\./downstream/.*/config\.yaml", missing):
        return ("Give the downstream's config with -c: a file, or one of ssamba_upstream's by its name: "
                f"{', '.join(config_names('downstream'))}. s3prl's package has none ({missing}).")
    if missing.startswith("/path/to/"):
        return (f"The config's {missing} stands for a path of yours; give it with -o, as the first lines of "
                "the config show.")
    return None
