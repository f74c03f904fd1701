"""SsambaConfig, the configuration of the network, and FrontEnd, the part of it that defines the log-mel."""

import math
from dataclasses import dataclass
from types import NoneType

from transformers import PretrainedConfig

from .masking import PUBLISHED_SIDES

HIDDEN_SIZES = {"tiny": 192, "small": 384, "base": 768}


@dataclass(frozen=True)
class FrontEnd:
    """Parameters of the log-mel that a network reads; the defaults are the published ones.

    Attributes:
        sampling_rate: sampling rate of the waveforms in Hz.
        num_mel_bins: number of mel bands.
        lowest_frequency, highest_frequency: lower edge of the lowest band and upper edge of the highest, in Hz.
            Default of the latter: half the sampling rate.
        frame_length, frame_shift: length and shift of the analysis windows in milliseconds; in samples they are
            rounded down, as in Kaldi.
        normalisation: "data": ``(x - log_mel_mean) / (2 * log_mel_std)``; or "clip": the same formula with the mean and
            standard deviation of each waveform's own log-mel, over all its frames and bands.
        log_mel_mean, log_mel_std: mean and standard deviation of the data's log-mel, as measured by ``ssamba manifest
            --statistics``. Default: those of the published pretraining data.

    Raises:
        ValueError: If no log-mel can be computed with these values.
    """

    sampling_rate: int = 16000
    num_mel_bins: int = 128
    lowest_frequency: float = 20.0
    highest_frequency: float | None = None
    frame_length: float = 25.0
    frame_shift: float = 10.0
    normalisation: str = "data"
    log_mel_mean: float = -4.2677393
    log_mel_std: float = 4.5689974

    def __post_init__(self):
        for name in ("sampling_rate", "num_mel_bins"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1; got {value!r}")
        for name in ("lowest_frequency", "frame_length", "frame_shift", "log_mel_mean", "log_mel_std"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"{name} must be a number; got {getattr(self, name)!r}")
        if not isinstance(self.highest_frequency, (int, float, NoneType)):
            raise ValueError(f"highest_frequency must be a number or None; got {self.highest_frequency!r}")
        highest = self.sampling_rate / 2 if self.highest_frequency is None else self.highest_frequency
        if not 0 <= self.lowest_frequency < highest <= self.sampling_rate / 2:
            raise ValueError(f"frequencies must rise, from 0 to half the sampling rate, {self.sampling_rate / 2:g} Hz; "
                             f"got lowest_frequency {self.lowest_frequency!r} and highest_frequency {highest!r}")
        if self.shift_samples < 1 or self.frame_samples < 2:
            raise ValueError(f"frame_length must be at least 2 samples and frame_shift 1, in milliseconds; got "
                             f"{self.frame_length!r} and {self.frame_shift!r} at {self.sampling_rate} Hz")
        if self.normalisation not in ("data", "clip"):
            raise ValueError(f"normalisation must be one of data, clip; got {self.normalisation!r}")
        if not self.log_mel_std > 0:
            raise ValueError(f"log_mel_std must be above 0; got {self.log_mel_std!r}")

    @property
    def frame_samples(self):
        """Length of an analysis window in samples."""
        return int(self.sampling_rate * self.frame_length * 0.001)

    @property
    def shift_samples(self):
        """Shift between analysis windows in samples."""
        return int(self.sampling_rate * self.frame_shift * 0.001)

    @property
    def padding(self):
        """Padding value after normalisation: a normalised log-mel of zero, or for normalisation by clip zero, the
        mean."""
        return -self.log_mel_mean / (2 * self.log_mel_std) if self.normalisation == "data" else 0.0

    def frames_of(self, samples):
        """Return the number of whole analysis windows in a waveform, given in samples (Kaldi's ``snip_edges``)."""
        return max(0, 1 + (samples - self.frame_samples) // self.shift_samples)

    def samples_of(self, frames):
        """Return the fewest samples that contain a number of analysis windows."""
        return (frames - 1) * self.shift_samples + self.frame_samples

    def seconds_of(self, frames):
        """Return the duration of a number of frame shifts in seconds."""
        return frames * self.shift_samples / self.sampling_rate

    def frames_in(self, seconds):
        """Return the fewest frame shifts that last a whole number of seconds."""
        return -(-seconds * self.sampling_rate // self.shift_samples)


PUBLISHED_FRONT_END = FrontEnd()


class SsambaConfig(PretrainedConfig):
    """Configuration of a SSAMBA network (arXiv 2405.11831); the defaults are the tiny size.

    Args:
        hidden_size: width of the tokens; 192, 384 and 768 are tiny, small and base.
        num_hidden_layers: number of Mamba blocks.
        state_size: states per channel of the selective scan.
        conv_kernel: taps of the causal convolution in front of each scan.
        expand: channels of the scan per ``hidden_size``.
        time_step_rank: rank of the step-size projection. Default: ceil(hidden_size / 16).
        pretraining_frames: length of the pretraining clips in fbank frames. Together with the patch size it determines
            the grid of learned positions.
        patch_size: (mel bands, frames) of a patch.
        frequency_stride, time_stride: distance between patches in mel bands and fbank frames. The default, the patch
            size, is pretraining's; overlapping patches (10, 10) are the usual choice downstream.
        positions: rule that adapts learned positions to other grids: "physical" or "published", see
            :mod:`ssamba_upstream.network.positions`.
        token_order: order in which the blocks read a window's patches: "frequency_major", row by row, as published; or
            "time_major", column by column.
        directions: scan directions of the blocks: "both", as published; or "forward", without the parameters of the
            backward direction. Combined with "time_major", this makes the network causal, see ``causal``.
        block_order: "sequential", or "paired" as in the published checkpoints, see
            :class:`ssamba_upstream.network.modeling.SsambaModel`.
        norm: "layer_norm" or "rms_norm".
        norm_epsilon: value added to the variance in every norm.
        drop_path_rate: stochastic depth (arXiv 1603.09382) of the last block; the rate grows linearly from zero.
        time_step_min, time_step_max, time_step_floor: range of the step sizes at initialisation.
        final_norm_twice: if True, the pretraining and classification heads apply the final norm a second time, as in
            the published code. The representation itself is always normalised once.
        masked_patches: number of patches masked in a pretraining clip. Default: 400 of 512, in proportion for other
            grids.
        cluster_sides: smallest and largest side of the masked squares in patches.
        contrastive_weight, reconstruction_weight: weights of the two pretraining losses.
        negatives: patches that a masked patch is contrasted with: "clip", the clip's other masked patches, or "batch",
            those of all clips in a process's batch.
        normalised_targets: if True, each target patch is standardised by its own mean and deviation (MAE, arXiv
            2111.06377, section 3).
        pooling: input of a clip classifier: "avgtok", the mean of the patches, or "cls", the class token.
        clip_frames: length in fbank frames to which the feature extractor pads or cuts clips. Default: that of the
            pretraining clips.
        taught_by: name and licence of the model from which the network was distilled. Default: None.
        kwargs: fields of :class:`FrontEnd`, such as ``num_mel_bins``, which become attributes; and arguments of every
            transformers configuration, of which ``id2label``, ``label2id`` and ``problem_type``
            ("single_label_classification" or "multi_label_classification") describe a classifier's classes.

    Raises:
        ValueError: If no network can be built from these values.
    """

    model_type = "ssamba"

    def __init__(
        self,
        hidden_size=192,
        num_hidden_layers=24,
        state_size=16,
        conv_kernel=4,
        expand=2,
        time_step_rank=None,
        pretraining_frames=1024,
        patch_size=(16, 16),
        frequency_stride=None,
        time_stride=None,
        positions="physical",
        token_order="frequency_major",
        directions="both",
        block_order="sequential",
        norm="layer_norm",
        norm_epsilon=1e-5,
        drop_path_rate=0.0,
        time_step_min=0.001,
        time_step_max=0.1,
        time_step_floor=1e-4,
        final_norm_twice=False,
        masked_patches=None,
        cluster_sides=PUBLISHED_SIDES,
        contrastive_weight=1.0,
        reconstruction_weight=10.0,
        negatives="clip",
        normalised_targets=False,
        pooling="avgtok",
        clip_frames=None,
        taught_by=None,
        **kwargs,
    ):
        # auto_map names code in the folder that was read, and says nothing about the network.
        kwargs.pop("auto_map", None)
        front_end = {name: kwargs.pop(name, default) for name, default in vars(PUBLISHED_FRONT_END).items()}
        super().__init__(**kwargs)
        vars(self).update(front_end)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.state_size = state_size
        self.conv_kernel = conv_kernel
        self.expand = expand
        self.time_step_rank = time_step_rank or math.ceil(hidden_size / 16)
        self.pretraining_frames = pretraining_frames
        self.patch_size = list(patch_size)
        self.frequency_stride = frequency_stride or self.patch_size[0]
        self.time_stride = time_stride or self.patch_size[1]
        self.positions = positions
        self.token_order = token_order
        self.directions = directions
        self.block_order = block_order
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.drop_path_rate = drop_path_rate
        self.time_step_min = time_step_min
        self.time_step_max = time_step_max
        self.time_step_floor = time_step_floor
        self.final_norm_twice = final_norm_twice
        rows, columns = self.position_grid
        self.masked_patches = masked_patches or round(400 / 512 * rows * columns)
        self.cluster_sides = list(cluster_sides)
        self.contrastive_weight = contrastive_weight
        self.reconstruction_weight = reconstruction_weight
        self.negatives = negatives
        self.normalised_targets = normalised_targets
        self.pooling = pooling
        self.clip_frames = clip_frames
        self.taught_by = taught_by
        self._check()

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """Do nothing: transformers would copy this installed module into every folder that it saves."""

    @classmethod
    def from_size(cls, size, **overrides):
        """Return the configuration of a published size: "tiny", "small" or "base"."""
        if size not in HIDDEN_SIZES:
            raise ValueError(f"no size {size!r}. Choose one of {', '.join(HIDDEN_SIZES)}")
        return cls(**{"hidden_size": HIDDEN_SIZES[size], **overrides})

    @property
    def size(self):
        """ "tiny", "small", "base", or None for a width that was not published."""
        return next((size for size, width in HIDDEN_SIZES.items() if width == self.hidden_size), None)

    @property
    def front_end(self):
        """The :class:`FrontEnd` of the log-mel that the network reads."""
        return FrontEnd(**{name: getattr(self, name) for name in vars(PUBLISHED_FRONT_END)})

    @property
    def intermediate_size(self):
        """Channels of the selective scan."""
        return self.expand * self.hidden_size

    @property
    def causal(self):
        """True if a patch depends on nothing after the end of its column. Such a network reads whole utterances of any
        length, and its positions encode frequency only."""
        return self.token_order == "time_major" and self.directions == "forward"

    @property
    def position_grid(self):
        """(rows, columns) of the patches of a pretraining clip, which do not overlap."""
        return self.num_mel_bins // self.patch_size[0], self.pretraining_frames // self.patch_size[1]

    @property
    def learned_grid(self):
        """(rows, columns) of the learned positions: a pretraining clip's grid, or for causal networks a single column
        that is used at any time."""
        rows, columns = self.position_grid
        return rows, 1 if self.causal else columns

    @property
    def num_patch_rows(self):
        """Number of patches in a column, which starts at the lowest band."""
        return (self.num_mel_bins - self.patch_size[0]) // self.frequency_stride + 1

    def columns(self, frames):
        """Return the number of columns of patches in a window, given in fbank frames."""
        return (frames - self.patch_size[1]) // self.time_stride + 1

    @property
    def learned_frames(self):
        """Number of fbank frames that the learned positions cover: the whole patches of a pretraining clip."""
        return self.position_grid[1] * self.patch_size[1]

    @property
    def most_columns(self):
        """Largest number of columns in a window that all begin within the learned positions."""
        return math.ceil(self.learned_frames / self.time_stride)

    def tokens(self, frames):
        """Return the number of tokens in a window, given in fbank frames: the class token and the patches."""
        return 1 + self.num_patch_rows * self.columns(frames)

    def _check(self):
        _ = self.front_end  # checks its fields
        choices = {
            "positions": ("physical", "published"),
            "token_order": ("frequency_major", "time_major"),
            "directions": ("both", "forward"),
            "block_order": ("sequential", "paired"),
            "norm": ("layer_norm", "rms_norm"),
            "pooling": ("avgtok", "cls"),
            "negatives": ("clip", "batch"),
            "problem_type": (None, "single_label_classification", "multi_label_classification"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                allowed = ", ".join(map(str, allowed))
                raise ValueError(f"{name} must be one of {allowed}; got {getattr(self, name)!r}")
        for name, patch in (("frequency_stride", self.patch_size[0]), ("time_stride", self.patch_size[1])):
            stride = getattr(self, name)
            if not isinstance(stride, int) or not 1 <= stride <= patch:
                raise ValueError(f"{name} must be a whole number from 1 to the patch's size, {patch}; got {stride!r}")
        if len(self.cluster_sides) != 2 or not 1 <= self.cluster_sides[0] <= self.cluster_sides[1]:
            raise ValueError("cluster_sides must be the smallest and the largest side of a square, such as [3, 5]; "
                             f"got {self.cluster_sides}")
        if self.block_order == "paired" and self.num_hidden_layers % 2:
            raise ValueError(f"paired blocks need an even num_hidden_layers; got {self.num_hidden_layers}")
        if self.directions == "forward" and (self.block_order == "paired" or self.pooling == "cls"):
            raise ValueError("a forward-only network has no reversed blocks, and its class token sees no patches. "
                             'Set block_order="sequential" and pooling="avgtok"')
        if self.causal and (self.positions == "published" or self.normalisation == "clip"):
            raise ValueError("a causal network cannot use positions or a log-mel that depend on the whole clip. Set "
                             'positions="physical" and normalisation="data"')
        if min(self.position_grid) < 1:
            raise ValueError(f"a patch of {self.patch_size} does not fit into {self.num_mel_bins} mel bands and "
                             f"{self.pretraining_frames} frames")
