"""PretrainingRecipe: everything that decides what a pretraining run computes."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..training.recipe import RecipeError, TrainingRecipe


@dataclass(kw_only=True)
class PretrainingRecipe(TrainingRecipe):
    """A pretraining run. The defaults are the published values (arXiv 2405.11831, section 3.1) where there are any.

    Attributes:
        train: manifests, or globs or URLs of tar shards.
        validation: manifests.
        steps: of the optimizer.
        masking: "corrected", or "published", see :func:`ssamba_upstream.network.masking.cluster_mask`.
        objective: "shared_mask": one pass through the network serves both losses; "two_pass": each has its own masks
            and its own pass, as published.
        patch_learning_rate: the learning rate of the patches' projection over that of everything else. Default: 1, as
            published. The less it learns, the more of those details of the log-mel do the layers hold for which the
            objective has no use; with 0 it stays the random projection that it begins as, like that of MoCo v3
            (arXiv 2104.02057).
        join_short: fill up a short recording with further ones instead of padding it.
        schedule: "plateau": halved when the validation accuracy has not grown for ``patience`` validations more than
            allowed; "cosine": falls to zero over the run.
        patience: validations without growth that "plateau" allows.
        ema_decay: decay of an exponential moving average of the weights, which is then what is validated and what
            ``best`` and ``last`` hold. Default: none.
        validate_every: in steps.
        probe: a labelled set (CSV, or a folder per class), on which a linear probe is trained every ``probe_every``
            steps. Default: none.

    The others are those of TrainingRecipe; ``seed`` is also that of the order of the clips, their crops and their
    masks, and a field of ``model`` is ``masked_patches``.

    Raises:
        RecipeError: an unknown field, or a value out of range.
    """

    train: list
    validation: list
    steps: int
    masking: str = "corrected"
    objective: str = "shared_mask"
    patch_learning_rate: float = 1.0
    join_short: bool = False
    schedule: str = "plateau"
    patience: int = 2
    ema_decay: float | None = None
    validate_every: int = 4000
    probe: str | None = None
    probe_every: int = 4000

    FOLDER = Path(__file__).parent / "recipes"
    MAY_CHANGE_ON_RESUME = (*TrainingRecipe.MAY_CHANGE_ON_RESUME, "steps", "probe", "probe_every")
    CHOICES = {
        "masking": ("corrected", "published"),
        "objective": ("shared_mask", "two_pass"),
        "schedule": ("plateau", "cosine"),
        **TrainingRecipe.CHOICES,
    }
    POSITIVE = (*TrainingRecipe.POSITIVE, "steps", "validate_every", "probe_every")

    def __post_init__(self):
        for name in ("train", "validation"):
            sources = getattr(self, name)
            setattr(self, name, [sources] if isinstance(sources, str) else list(sources))
            if not getattr(self, name):
                raise RecipeError(f"{name} names no manifest")
        super().__post_init__()
        if not isinstance(self.patch_learning_rate, (int, float)) or not 0 <= self.patch_learning_rate < math.inf:
            raise RecipeError(f"patch_learning_rate must be a number from 0, such as 0.1; got "
                              f"{self.patch_learning_rate!r}")

    def sources(self):
        return [*self.train, *self.validation]
