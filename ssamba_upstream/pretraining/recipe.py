"""PretrainingRecipe: the settings of a pretraining run."""

from dataclasses import dataclass
from pathlib import Path

from ..training.augmentation import WAVEFORM_CHANGES
from ..training.recipe import RecipeError, TrainingRecipe


@dataclass(kw_only=True)
class PretrainingRecipe(TrainingRecipe):
    """A pretraining run. Defaults are the published values (arXiv 2405.11831, section 3.1), if there are any.

    Attributes:
        train: manifests, or globs or URLs of tar shards.
        validation: manifests.
        steps: number of optimizer steps.
        masking: "corrected" or "published", see :func:`ssamba_upstream.network.masking.cluster_mask`.
        objective: "shared_mask": both losses share one pass through the network; "two_pass": each has its own masks
            and its own pass, as published.
        patch_learning_rate: ratio of the patch projection's learning rate to all others. Default: 1, as published. The
            less the projection learns, the more the layers keep of the log-mel details that the objective does not
            need. With 0 it stays at its random initial values, as in MoCo v3 (arXiv 2104.02057).
        teacher: model whose frames the network learns to predict: "google_speech_embedding"; "transformers:MODEL", with
            a folder or a name on the Hugging Face hub; "s3prl:NAME" or "s3prl:NAME:CHECKPOINT", an upstream of s3prl.
            See :mod:`ssamba_upstream.pretraining.teachers`. Default: none.
        teacher_layers: indices of the teacher's hidden states that are predicted; negative ones count from the last.
            Default: the last.
        teacher_input: the student's input: "whole" clips; or "masked" clips, of which it predicts all columns. The
            contrastive and reconstruction losses need masks, so with "whole" clips they cost a second pass.
        teacher_outputs: folder that stores the teacher's outputs; several runs may share it. Default: ``teacher`` in
            the run's folder.
        student_layer: block, from 1, whose output predicts the teacher. Default: the last.
        distillation_weight: weight of the teacher's loss; the other losses are weighted by ``contrastive_weight`` and
            ``reconstruction_weight`` of ``model``. If these two are 0, only the teacher's loss is computed.
        augmentation: changes of the network's input, a list of names from
            :data:`ssamba_upstream.training.augmentation.WAVEFORM_CHANGES`; a teacher gets the clean clips. Default:
            none.
        clip_forms: lengths of the training clips in log-mel frames, and frames from patch to patch, as a list of pairs
            taken in turn from step to step. The number of clips makes all steps equally large. Networks that are read
            at short hops, and short utterances, need them. They need a teacher and whole clips, because
            ``masked_patches`` belongs to one form. Default: ``pretraining_frames`` and ``time_stride`` of ``model``.
        first_form_share: share of the steps, at the beginning of the run, that all have the first of ``clip_forms``.
        checkpoint: a checkpoint whose encoder the run begins with. Default: random weights.
        join_short: If True, fill up short recordings with other recordings instead of padding.
        schedule: "plateau": halve the learning rate after more than ``patience`` validations without improvement;
            "cosine": decay to zero over the run.
        patience: validations without improvement that "plateau" allows.
        ema_decay: decay of an exponential moving average of the weights; if given, the average is validated and saved
            as ``best`` and ``last``. Default: none.
        validate_every: interval between validations in steps.
        probe: labelled set (CSV, or a folder per class) on which a linear probe is trained every ``probe_every``
            steps. Default: none.

    The other attributes are those of TrainingRecipe. ``seed`` also determines the order of the clips, their crops and
    their masks; ``model`` may contain ``masked_patches``.

    Raises:
        RecipeError: If a field is unknown or a value is out of range.
    """

    train: list
    validation: list
    steps: int
    masking: str = "corrected"
    objective: str = "shared_mask"
    patch_learning_rate: float = 1.0
    teacher: str | None = None
    teacher_layers: list | None = None
    teacher_input: str = "whole"
    teacher_outputs: str | None = None
    student_layer: int | None = None
    distillation_weight: float = 1.0
    augmentation: list | None = None
    clip_forms: list | None = None
    first_form_share: float = 0.0
    checkpoint: str | None = None
    join_short: bool = False
    schedule: str = "plateau"
    patience: int = 2
    ema_decay: float | None = None
    validate_every: int = 4000
    probe: str | None = None
    probe_every: int = 4000

    FOLDER = Path(__file__).parent / "recipes"
    MAY_CHANGE_ON_RESUME = (*TrainingRecipe.MAY_CHANGE_ON_RESUME, "steps", "probe", "probe_every",
                            "teacher_outputs")
    CHOICES = {
        "masking": ("corrected", "published"),
        "objective": ("shared_mask", "two_pass"),
        "teacher_input": ("whole", "masked"),
        "schedule": ("plateau", "cosine"),
        **TrainingRecipe.CHOICES,
    }

    def __post_init__(self):
        for name in ("train", "validation"):
            sources = getattr(self, name)
            setattr(self, name, [sources] if isinstance(sources, str) else list(sources))
            if not getattr(self, name):
                raise RecipeError(f"{name} lists no manifest")
        super().__post_init__()
        self._check_numbers("steps", "validate_every", "probe_every", low=1, whole=True)
        self._check_numbers("first_form_share", high=1)
        self._check_numbers("patch_learning_rate")
        self._check_numbers("distillation_weight", above=True)
        self._check_teacher()
        if self.clip_forms is not None:
            self._check_clip_forms()
        unknown = set(self.augmentation or ()) - set(WAVEFORM_CHANGES)
        if unknown:
            raise RecipeError(f"augmentation must be a list of {', '.join(WAVEFORM_CHANGES)}; got {sorted(unknown)}")

    def _check_clip_forms(self):
        config, forms = self.config(), self.clip_forms
        whole, width = config.pretraining_frames, config.patch_size[1]
        if not isinstance(forms, list) or not forms or not all(
                isinstance(form, list) and len(form) == 2 and all(isinstance(number, int) for number in form)
                and form[0] >= width and whole % form[0] == 0 and 1 <= form[1] <= width for form in forms):
            raise RecipeError(f"clip_forms must be a list of pairs such as [{whole}, {width}]: a number of frames from "
                              f"{width} that divides pretraining_frames, {whole}, and a stride up to {width}, the "
                              f"width of a patch; got {forms!r}")
        if self.masks:
            raise RecipeError("clip_forms needs a teacher, whole clips and no other loss, because masked_patches "
                              "belongs to one form. Set clip_forms=null, or remove the settings that need masks")

    @property
    def self_supervised(self):
        """True if there is a contrastive or a reconstruction loss."""
        config = self.config()
        return config.contrastive_weight > 0 or config.reconstruction_weight > 0

    @property
    def masks(self):
        """Number of masks that a step draws for a clip."""
        if self.self_supervised:
            return 2 if self.objective == "two_pass" else 1
        return int(self.teacher_input == "masked")

    def _check_teacher(self):
        blocks = self.config().num_hidden_layers
        if self.teacher is None and not self.self_supervised:
            raise RecipeError("there is no loss: contrastive_weight and reconstruction_weight are 0. Raise one of "
                              "them, or give a teacher")
        layers = self.teacher_layers
        if layers is not None and (not isinstance(layers, list) or not layers or
                                   not all(isinstance(layer, int) for layer in layers)):
            raise RecipeError(f"teacher_layers must be a list of whole numbers, such as [-1]; got {layers!r}")
        if self.student_layer is not None:
            self._check_numbers("student_layer", low=1, high=blocks, whole=True)
            if self.student_layer < blocks and not self.self_supervised:
                raise RecipeError(f"student_layer {self.student_layer} leaves the blocks above it without a loss. Use "
                                  "a network with fewer blocks, or add a contrastive or reconstruction loss")

    def sources(self):
        return [*self.train, *self.validation]
