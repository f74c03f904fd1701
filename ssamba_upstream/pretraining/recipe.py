"""Recipe: everything that decides what a pretraining run computes, read from YAML."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from ..configuration import SsambaConfig

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message says what is wrong and what was expected."""


@dataclass
class Recipe:
    """A pretraining run. The defaults are the published values (arXiv 2405.11831, section 3.1) where there are any.

    Attributes:
        train: manifests, or globs or URLs of tar shards.
        validation: manifests.
        size: "tiny", "small" or "base".
        model: fields of :class:`SsambaConfig` that differ from that size's, such as ``masked_patches``.
        masking: "corrected", or "published", see :func:`ssamba_upstream.pretraining.masking.cluster_mask`.
        objective: "shared_mask": one pass through the network serves both losses; "two_pass": each has its own masks
            and its own pass, as published.
        join_short: fill up a short recording with further ones instead of padding it.
        batch_size: clips of a step, over all processes and accumulated parts.
        accumulation: parts into which a process's share of a step's clips is divided, one after the other.
        steps: steps of the optimizer.
        learning_rate, betas, weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate grows linearly from zero.
        schedule: "plateau": halved when the validation accuracy has not grown for ``patience`` validations more than
            allowed; "cosine": falls to zero over the run.
        patience: validations without growth that "plateau" allows.
        clip_norm: largest norm of the gradient; a longer one is shortened.
        precision: "float32", or "bfloat16" (autocast).
        gradient_checkpointing: compute each block again in the backward pass instead of keeping what it needs.
        compile: torch.compile the network.
        ema_decay: decay of an exponential moving average of the weights, which is then what is validated and what
            ``best`` and ``last`` hold. Default: none.
        validate_every, save_every, log_every: in steps.
        keep: training checkpoints kept.
        workers: processes that read audio, for each process of the run.
        probe: a labelled set (CSV, or a folder per class), on which a linear probe is trained every ``probe_every``
            steps. Default: none.
        seed: of the initial weights, the order of the clips, their crops and their masks.

    Raises:
        RecipeError: an unknown field, or a value out of range.
    """

    train: list
    validation: list
    steps: int
    size: str = "tiny"
    model: dict = field(default_factory=lambda: {"drop_path_rate": 0.1})
    masking: str = "corrected"
    objective: str = "shared_mask"
    join_short: bool = False
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 1e-4
    betas: list = field(default_factory=lambda: [0.95, 0.999])
    weight_decay: float = 5e-8
    warmup_steps: int = 1000
    schedule: str = "plateau"
    patience: int = 2
    clip_norm: float = 1.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema_decay: float | None = None
    validate_every: int = 4000
    save_every: int = 1000
    log_every: int = 50
    keep: int = 3
    workers: int = 4
    probe: str | None = None
    probe_every: int = 4000
    seed: int = 0

    # What may differ between a run and its continuation.
    FREE = ("steps", "save_every", "log_every", "keep", "workers", "probe", "probe_every")

    def __post_init__(self):
        for name in ("train", "validation"):
            sources = getattr(self, name)
            setattr(self, name, [sources] if isinstance(sources, str) else list(sources))
            if not getattr(self, name):
                raise RecipeError(f"{name} names no manifest")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise RecipeError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "accumulation", "validate_every", "save_every", "log_every", "keep",
                     "probe_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name} must be a whole number from 1; got {value!r}")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise RecipeError(f"{name} must be a number above 0, such as 1.0e-4; got {value!r}")
        if not isinstance(self.weight_decay, (int, float)) or self.weight_decay < 0:
            raise RecipeError(f"weight_decay must be a number from 0, such as 5.0e-8; got {self.weight_decay!r}")
        self.config()

    def config(self):
        """The network's configuration."""
        try:
            config = SsambaConfig.from_size(self.size, **self.model)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"model: {error}") from error
        unknown = [name for name in self.model if name not in SsambaConfig().to_dict()]
        if unknown:
            raise RecipeError(f"model has no field {', '.join(unknown)}")
        return config

    def to_dict(self):
        return asdict(self)


CHOICES = {
    "masking": ("corrected", "published"),
    "objective": ("shared_mask", "two_pass"),
    "schedule": ("plateau", "cosine"),
    "precision": ("float32", "bfloat16"),
}


def read_recipe(source, overrides=()):
    """Read a recipe.

    Args:
        source: a YAML file, or the name of one of the package's. Its field ``extends`` names a recipe beside it whose
            fields hold where it says nothing; ``model`` is merged field by field.
        overrides: "field=value" strings, the value in YAML; "model.field=value" for one field of ``model``.

    Raises:
        RecipeError: no such file, not a recipe, or a value out of range.
    """
    values = _read_fields(_find(source))
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"{override!r} is no override; expected field=value")
        target = values
        if name.startswith("model."):
            target, name = values.setdefault("model", {}), name.removeprefix("model.")
        target[name] = yaml.safe_load(value)
    known = {item.name for item in fields(Recipe)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise RecipeError(f"{source}: no field {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    missing = [name for name in ("train", "validation", "steps") if name not in values]
    if missing:
        raise RecipeError(f"{source} lacks {', '.join(missing)}; give --set {missing[0]}=VALUE")
    return Recipe(**values)


def _find(source):
    for candidate in (Path(source), RECIPES / f"{source}.yaml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    raise RecipeError(f"no recipe {source}: it is neither a file nor one of {names}")


def _read_fields(path):
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} is no recipe: expected fields and values")
    base = values.pop("extends", None)
    if base is None:
        return values
    inherited = _read_fields(path.parent / base)
    return inherited | values | {"model": inherited.get("model", {}) | values.get("model", {})}
