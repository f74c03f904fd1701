"""TrainingRecipe: the settings of every training run, read from YAML."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import yaml

from ..network.configuration import SsambaConfig


class RecipeError(ValueError):
    """A recipe that cannot be used. The message says what is wrong and what was expected."""


@dataclass(kw_only=True)
class TrainingRecipe:
    """Settings of the network and of the training loop, :class:`ssamba_upstream.training.loop.Run`.

    Attributes:
        size: "tiny", "small" or "base".
        model: fields of :class:`SsambaConfig` that differ from those of ``size``.
        batch_size: clips per step, over all processes and accumulated parts.
        accumulation: number of sequential parts that a process's share of a step is split into.
        learning_rate, betas, weight_decay: arguments of AdamW.
        weight_decay_of: "all" parameters, as published; or "projections", the weights of linear layers and convolutions
            but not norms, biases, the scan's A_log and D, positions, and the class and mask tokens.
        warmup_steps: steps of linear learning-rate warm-up from zero.
        clip_norm: largest gradient norm; larger gradients are scaled down.
        precision: "float32"; "tf32", in which a GPU's products use factors with a 10-bit mantissa and are five times as
            fast; or "bfloat16" (autocast). On a CPU "tf32" means "float32".
        gradient_checkpointing: If True, recompute each block in the backward pass to save memory.
        compile: If True, torch.compile the network.
        save_every, log_every: intervals in steps.
        keep: number of training states kept.
        workers: audio-reading processes per process of the run.
        seed: seed of the initial weights and of every step's random draws.
        license: licence of the weights, as an identifier of the Hugging Face hub, for the model card. Default: this
            package's; the training data may require another.

    Raises:
        RecipeError: If a value is out of range.
    """

    size: str = "tiny"
    model: dict = field(default_factory=lambda: {"drop_path_rate": 0.1})
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 1e-4
    betas: list = field(default_factory=lambda: [0.95, 0.999])
    weight_decay: float = 5e-8
    weight_decay_of: str = "all"
    warmup_steps: int = 1000
    clip_norm: float = 1.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    save_every: int = 1000
    log_every: int = 50
    keep: int = 3
    workers: int = 4
    seed: int = 0
    license: str = "bsd-3-clause"

    FOLDER = None
    """Folder of the package's recipes of this kind."""

    MAY_CHANGE_ON_RESUME = ("save_every", "log_every", "keep", "workers", "license")
    """Fields that may change when a run is resumed."""

    CHOICES = {"precision": ("float32", "tf32", "bfloat16"), "weight_decay_of": ("all", "projections")}
    """Fields with a fixed set of values."""

    def __post_init__(self):
        for name, choices in self.CHOICES.items():
            if getattr(self, name) not in choices:
                raise RecipeError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        self._check_numbers("batch_size", "accumulation", "save_every", "log_every", "keep", low=1, whole=True)
        self._check_numbers("warmup_steps", "workers", "seed", whole=True)
        self._check_numbers("learning_rate", "clip_norm", above=True)
        self._check_numbers("weight_decay")
        self.config()

    def _check_numbers(self, *names, low=0, high=math.inf, whole=False, above=False):
        """Raise RecipeError unless fields are finite numbers from ``low``, or above it, to ``high``."""
        kind, types = ("a whole number", int) if whole else ("a number", (int, float))
        bounds = f"{'above' if above else 'from'} {low}" + ("" if high == math.inf else f" to {high}")
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, types) or not low <= value <= high or above and value == low or value == math.inf:
                hint = ". YAML reads numbers such as 1e-4 as text; write 1.0e-4" if isinstance(value, str) else ""
                raise RecipeError(f"{name} must be {kind} {bounds}; got {value!r}{hint}")

    def config(self):
        """Return the network's configuration."""
        return self._changed(partial(SsambaConfig.from_size, self.size))

    def _changed(self, build):
        """Return the SsambaConfig that ``build`` makes from the fields of ``model``."""
        try:
            config = build(**self.model)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"model: {error}") from error
        known = SsambaConfig().to_dict().keys() - {"dtype"}  # weights are float32; the recipe sets the precision
        unknown = [name for name in self.model if name not in known]
        if unknown:
            raise RecipeError(f"model has no field {', '.join(unknown)}")
        return config

    def sources(self):
        """Return the files that list the data."""
        raise NotImplementedError

    def to_dict(self):
        return asdict(self)


def read_recipe(source, kind, overrides=()):
    """Read a recipe.

    Args:
        source: YAML file, or name of a recipe of the package. Its field ``extends`` names a base recipe, in the same
            folder or of the package, that supplies missing fields; ``model`` is merged field by field.
        kind: class of the recipe, a TrainingRecipe.
        overrides: "field=value" strings with YAML values; "model.field=value" for one field of ``model``.

    Raises:
        RecipeError: If the file is missing or not a recipe, or a value is out of range.
    """
    known = fields(kind)
    default_model = next(item.default_factory() for item in known if item.name == "model")
    values = _read_fields(_find(source, kind.FOLDER), kind.FOLDER, default_model)
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"{override!r} is not an override; expected field=value")
        target = values
        if name.startswith("model."):
            target, name = values.setdefault("model", default_model), name.removeprefix("model.")
        target[name] = yaml.safe_load(value)
    unknown = sorted(set(values) - {item.name for item in known})
    if unknown:
        raise RecipeError(f"{source}: no field {', '.join(unknown)}; the fields are "
                          f"{', '.join(sorted(item.name for item in known))}")
    missing = [item.name for item in known
               if item.default is item.default_factory is MISSING and item.name not in values]
    if missing:
        raise RecipeError(f"{source} lacks {', '.join(missing)}. Give --set {missing[0]}=VALUE")
    return kind(**values)


def _find(source, folder):
    for candidate in (Path(source), folder / f"{source}.yaml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise RecipeError(f"no recipe {source}: it is neither a file nor one of {names}")


def _read_fields(path, folder, default_model):
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} is not a recipe: expected fields and values")
    base = values.pop("extends", None)
    if base is None:
        return values
    beside = path.parent / base
    inherited = _read_fields(beside if beside.is_file() else _find(base, folder), folder, default_model)
    return inherited | values | {"model": inherited.get("model", default_model) | values.get("model", {})}
