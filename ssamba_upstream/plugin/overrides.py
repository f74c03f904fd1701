"""The fields that s3prl's ``-o`` can set. A field that s3prl never reads is an error instead of being ignored."""

import difflib
import functools
import inspect

import torch

from .repairs import wrap
from .repairs.frames import RunError

RUNNER = ("total_steps", "gradient_clipping", "gradient_accumulate_steps", "log_step", "eval_step", "save_step",
          "max_keep", "eval_dataloaders", "train_dataloader", "evaluate_ratio", "fp16")
SCHEDULER = ("name", "num_warmup_steps", "num_cycles", "last_epoch", "lr_end", "power")
SPECAUG = ("apply_time_warp", "time_warp_window", "time_warp_mode", "apply_freq_mask", "freq_mask_width_range",
           "num_freq_mask", "apply_time_mask", "time_mask_width_range", "num_time_mask", "adaptive",
           "adaptive_number_ratio", "adaptive_size_ratio", "max_n_time_masks")


@functools.cache
def _optional() -> frozenset[str]:
    """Return the sections and fields that s3prl or this package reads from any config that has them."""
    optimizers = (value for value in vars(torch.optim).values()
                  if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer))
    optimizer = {name for each in optimizers for name in inspect.signature(each).parameters} - {"params"}
    sections = {"runner": RUNNER, "optimizer": ("name", "torch_optim_name", "warmup_proportion", *optimizer),
                "scheduler": SCHEDULER, "specaug": SPECAUG, "specaug_hop": ()}
    return frozenset([*sections, *(f"{section}.{name}" for section, names in sections.items() for name in names)])


def fields_of(config: dict) -> set[str]:
    """Return the sections and fields of a config, such as "runner" and "runner.total_steps"."""
    fields = set()
    for name, value in config.items():
        fields.add(str(name))
        if isinstance(value, dict):
            fields |= {f"{name}.{field}" for field in fields_of(value)}
    return fields


def check_field(config: dict, field: str) -> None:
    """Raise a RunError, which suggests the most similar field, if neither s3prl nor the config has a field, such as
    "runner.total_steps". Under ``downstream_expert`` every field is accepted, because each downstream reads others."""
    if field.split(".")[0] != "downstream_expert" and field not in _optional() | fields_of(config):
        raise RunError(f"-o config.{field}: s3prl reads no such field.{did_you_mean(field, [config])}")


def did_you_mean(field: str, configs: list[dict]) -> str:
    """Return a suggestion of the most similar field in these configs or in s3prl; empty if none is similar."""
    return _advice("config", field, _optional().union(*map(fields_of, configs)))


def _advice(place, name, names):
    nearest = difflib.get_close_matches(name, sorted(names), 1)
    return f" Did you mean {place}.{nearest[0]}?" if nearest else ""


def check_overrides(module):
    """Make ``run_downstream`` raise an error for an ``-o`` that cannot have an effect."""

    @wrap(module, "override")
    def override_known(override, string, args, config):
        for option in string.split(",,"):
            _check_option(option.strip(), args, config)
        override(string, args, config)


def _check_option(option, args, config):
    place, _, field = option.partition("=")[0].strip().partition(".")
    if option.count("=") != 1 or not field or place not in ("args", "config"):
        raise RunError(f"-o {option}: expected config.<section>.<field>=<value> or args.<name>=<value> with one =. "
                       "Separate several overrides with two commas.")
    if place == "args":
        if not hasattr(args, field):
            raise RunError(f"-o {option}: s3prl has no such argument.{_advice('args', field, vars(args))}")
    elif field == "upstream_config":
        raise RunError(f"-o {option}: the upstream's options are read before -o. Give them with -g.")
    else:
        check_field(config, field)
        if field not in _optional() | fields_of(config):
            print(f"-o {option}: the config has no such field, and the downstream may not read it."
                  f"{did_you_mean(field, [config])}")
