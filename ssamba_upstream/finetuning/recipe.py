"""FinetuningRecipe: the settings of a fine-tuning run."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import NoneType

from ..checkpoint import load_config
from ..frames import default_strides
from ..network.configuration import SsambaConfig
from ..training.recipe import RecipeError, TrainingRecipe

METRICS = {
    "single_label": ("accuracy", "mAP", "mAUC"),
    "multi_label": ("mAP", "mAUC"),
    "per_second": ("accuracy", "mAP"),
}
"""Metrics that :func:`ssamba_upstream.finetuning.metrics.evaluate` returns for each kind of problem."""


@dataclass(kw_only=True)
class FinetuningRecipe(TrainingRecipe):
    """A fine-tuning run of the whole network. The package's recipes use the published values.

    Attributes:
        data: labelled set, for example written by ``ssamba prepare``.
        fold: fold used as the test set, if the set has folds. Default: each in turn.
        checkpoint: the encoder's checkpoint. Default: random weights of a network of ``size``.
        problem: "single_label"; "multi_label": labels joined by ";", possibly none; or "per_second": a label for each
            second, joined by ";", empty for seconds that do not count.
        loss: "cross_entropy", or "binary_cross_entropy" for each class separately.
        metric: metric that chooses the best epoch on dev, see :data:`METRICS`.
        clip_frames: length of the network's input in fbank frames. Longer recordings are cut, shorter ones padded.
        mean, std: mean and standard deviation that normalise the log-mel. Default: the checkpoint's.
        epochs: passes over the training set, of ``recordings // batch_size`` steps each.
        mixup: share of the clips that are mixed with another clip.
        balanced: If True, draw recordings so that rare classes occur as often as common ones.
        frequency_mask, time_mask: limits of SpecAugment's masks in mel bands and frames.
        noise_and_roll: If True, add noise to the log-mel and roll it in time.
        head_learning_rate: ratio of the head's learning rate to the encoder's.
        layer_decay: ratio of a block's learning rate to that of the next block.
        decay_start, decay_every, decay: after ``decay_start`` epochs, and every ``decay_every`` epochs from then on,
            the learning rates are multiplied by ``decay``.
        average_epochs: [first, last]: average the weights at the end of these epochs. The average is tested if it is
            better on dev, or if there is no dev set.

    The other attributes are those of TrainingRecipe; ``model`` may also contain ``pooling``. Strides missing from
    ``model`` have the defaults of :class:`ssamba_upstream.frames.UpstreamOptions`.

    Raises:
        RecipeError: If a value is out of range.
        CheckpointError: If the checkpoint cannot be read.
    """

    data: str
    problem: str
    clip_frames: int
    epochs: int
    fold: str | None = None
    checkpoint: str | None = None
    loss: str = "cross_entropy"
    metric: str = "accuracy"
    mean: float | None = None
    std: float | None = None
    mixup: float = 0.0
    balanced: bool = False
    frequency_mask: int = 0
    time_mask: int = 0
    noise_and_roll: bool = False
    head_learning_rate: float = 1.0
    layer_decay: float = 1.0
    decay_start: int = 10
    decay_every: int = 5
    decay: float = 0.5
    average_epochs: list | None = None
    weight_decay: float = 5e-7
    warmup_steps: int = 0

    FOLDER = Path(__file__).parent / "recipes"
    CHOICES = {
        "problem": tuple(METRICS),
        "loss": ("cross_entropy", "binary_cross_entropy"),
        **TrainingRecipe.CHOICES,
    }

    def __post_init__(self):
        super().__post_init__()
        self._check_numbers("clip_frames", "epochs", "decay_start", "decay_every", low=1, whole=True)
        config = self.config()
        frequency_stride, time_stride = default_strides(config)
        self.model = {"frequency_stride": frequency_stride, "time_stride": time_stride, **self.model}
        if self.fold is not None:
            self.fold = str(self.fold)  # YAML reads the usual fold names as numbers
        if self.metric not in METRICS[self.problem]:
            raise RecipeError(f"metric must be one of {', '.join(METRICS[self.problem])} with {self.problem}; got "
                              f"{self.metric!r}")
        only_loss = "binary_cross_entropy" if self.problem == "multi_label" else "cross_entropy"
        if self.problem != "single_label" and self.loss != only_loss:
            raise RecipeError(f"{self.problem} needs the loss {only_loss}; got {self.loss!r}")
        if self.problem == "per_second" and self.mixup:
            raise RecipeError("labels of seconds cannot be mixed. Set mixup to 0")
        if self.problem == "per_second" and self.balanced:
            raise RecipeError("recordings with a label for each second cannot be balanced. Set balanced to false")
        self._check_numbers("frequency_mask", high=config.num_mel_bins, whole=True)
        self._check_numbers("time_mask", high=self.clip_frames, whole=True)
        self._check_numbers("mixup", "layer_decay", "decay", high=1)
        self._check_numbers("head_learning_rate", *(["std"] if self.std is not None else []), above=True)
        if not isinstance(self.mean, (int, float, NoneType)):
            raise RecipeError(f"mean must be a number; got {self.mean!r}")
        epochs = self.average_epochs
        if epochs is not None and not (isinstance(epochs, list) and len(epochs) == 2
                                       and all(isinstance(epoch, int) for epoch in epochs)
                                       and 1 <= epochs[0] <= epochs[1] <= self.epochs):
            raise RecipeError(f"average_epochs must be two numbers from 1 to epochs ({self.epochs}), such as [1, 5]; "
                              f"got {self.average_epochs!r}")

    def config(self):
        """Return the configuration of the checkpoint, or of ``size``, updated with the fields of ``model``."""
        if self.checkpoint is None:
            return super().config()
        return self._changed(partial(SsambaConfig, **self._checkpoint_config.to_dict()))

    @cached_property
    def _checkpoint_config(self):
        return load_config(self.checkpoint)  # cached, since a single-file checkpoint is read whole for it

    def sources(self):
        return [self.data]
