"""s3prl's ``run_downstream`` with ssamba_upstream's entries, on current versions of s3prl's libraries."""

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
from .compat import register
from .keeping import keeping_runner, parse_keeping
from .repairs.frames import RunError


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run ``s3prl.run_downstream`` with its own arguments and those of :class:`Keeping`.

    ``-c`` and ``-g`` also accept one of this package's configs by its file's stem, as in ``-c keyword_spotting``; a
    file of that name takes precedence. If a config names an ``upstream_config``, this package's upstreams use it unless
    ``-g`` is given. Processes started by torchrun get their ``--local_rank`` from it.

    Args:
        arguments: arguments without the program's name. Default: the command line's.
        program: program name in s3prl's help. Default: the command line's.

    Raises:
        SystemExit: If the arguments cannot work on this machine, s3prl ended the run, or the run was interrupted
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
            raise SystemExit("s3prl's distributed training needs one GPU per process. On a CPU, start a single "
                             "process, without torchrun and without --local_rank.")
        # If torch finds a GPU, s3prl's evaluation requires its device to be a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"s3prl would run on --device {given.device}, its default, but torch finds no GPU. "
                         "Add --device cpu.")


def _named(value, option, kind) -> list[str]:
    if value is None or Path(value).is_file() or "://" in value:
        return []
    try:
        return [option, str(find_config(value, kind))]
    except ValueError as error:
        raise SystemExit(f"{option} {error}") from None


def _preset_of(given) -> str | None:
    """Return the config's ``upstream_config``, which applies only to this package's upstreams."""
    if given.config is None or not given.upstream.startswith("ssamba_"):
        return None
    try:
        config = yaml.safe_load(find_config(given.config, "downstream").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"--config {error}") from None
    return config.get("upstream_config")


def run_s3prl_main(arguments: Sequence[str], program: str | None = None) -> None:
    """Run ``s3prl.main``, the newer recipes such as SuperbSID, with ssamba_upstream's entries and repairs.

    The arguments are a recipe and options, such as ``SuperbSID --build_upstream.name ssamba_tiny``. If a package or
    file is missing, or s3prl ends the run, a SystemExit is raised.
    """

    def run():
        # Imported first, because s3prl.main reports a recipe whose imports fail as nonexistent.
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


def _hand_over(arguments, run, program=None):
    command_line = sys.argv
    sys.argv = [program or command_line[0], *arguments]
    try:
        register()
        run()
    except FileNotFoundError as error:
        raise SystemExit(_explain_missing_file(error)) from error
    except (CheckpointError, RunError, StoreError) as error:
        raise SystemExit(str(error)) from None
    except ModuleNotFoundError as error:
        raise SystemExit(_explain_missing_module(error.name or str(error))) from None
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command with -a to resume from the experiment's last states-*.ckpt.",
              file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        sys.argv = command_line


def _explain_missing_module(name) -> str:
    package, *rest = name.split(".")
    if package == "s3prl":
        if len(rest) > 1 and rest[0] == "downstream" and not importlib.util.find_spec(".".join(["s3prl", *rest[:2]])):
            return f"-d: s3prl has no downstream {rest[1]}"
        others = (" Install s3prl from a clone, or use another corpus: librispeech, libriphone or snips."
                  if rest[:3] == ["downstream", "ctc", "corpus"] else " Install s3prl from a clone.")
        return f"s3prl's package lacks {name}, which is only in its repository.{others}"
    if package == "fairseq":
        return ("s3prl needs fairseq here (speech translation does). No extra of ssamba-upstream installs it, because "
                "fairseq requires a version of omegaconf that s3prl's own requirements exclude.")
    extra = next((extra for extra in extras_with(package) if extra.startswith("superb")), None)
    if extra is None:
        return f"s3prl needs {name}, which no extra of ssamba-upstream installs. Install it with pip."
    return f"s3prl needs {name}. Run: pip install 'ssamba-upstream[{extra}]'"


def _explain_missing_file(error) -> str:
    missing = str(error.filename or "")
    if re.fullmatch(r"\./downstream/.*/config\.yaml", missing):
        return ("Give the downstream's config with -c: a file or the name of one of ssamba_upstream's configs: "
                f"{', '.join(config_names('downstream'))}. s3prl's package does not include one ({missing}).")
    if missing.startswith("/path/to/"):
        return (f"{missing} in the config is a placeholder. Give your own path with -o, as shown in the first lines of "
                "the config.")
    return f"{missing} does not exist. Correct the path." if missing else str(error)
