"""Compute frame-level hidden states of waveforms with the front end, the windows and the encoder."""

import contextlib
import inspect
from dataclasses import dataclass, fields

import torch
import yaml
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from .checkpoint import load_model
from .configs import find_config
from .devices import send
from .frontend import LogMel, check_waveforms
from .store import state_hash
from .streaming import FrameStream
from .windows import Windowing, encode, token_index, tokens_to_frames

PUBLISHED_SIDE, PUBLISHED_STRIDE = 16, 10  # of downstream patches, in mel bands and fbank frames (SSAST, section 3.1)
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class UpstreamOptions:
    """Options for computing frames from waveforms.

    Attributes:
        window_secs: length of the network's windows in seconds, see :meth:`Windowing.for_model`. Default: 100 frames,
            but at most 10 s and at most the whole patches of a pretraining clip.
        time_stride: distance between frames in fbank frames (10 ms unless the checkpoint differs), from 1 to the width
            of its patches. Default: 10, a frame every 100 ms, for patches 16 wide such as the published ones; otherwise
            the width of the patches.
        frequency_stride: distance between patches in mel bands, from 1 to the height of the patches. Default: 10, which
            gives 12 patches in a column, for patches 16 high; otherwise the height of the patches.
        frequency_pooling: "concat" (default): a frame concatenates its column's patches and is 12 * E wide; or "mean":
            a frame is their mean and E wide.
        positions: "physical" (default) or "published", see :mod:`ssamba_upstream.network.positions`.
        padding: "none" (default) or "published", see :class:`ssamba_upstream.windows.Windowing`.
        precision: "float32" (default), "bfloat16" or "float16" for the network's matrix products. Results are always
            float32.

    Raises:
        ValueError: If an option is not one of its choices.
    """

    window_secs: float | None = None
    time_stride: int | None = None
    frequency_stride: int | None = None
    frequency_pooling: str = "concat"
    positions: str = "physical"
    padding: str = "none"
    precision: str = "float32"

    def __post_init__(self):
        _check_choice("frequency_pooling", self.frequency_pooling, ("concat", "mean"))
        _check_choice("padding", self.padding, ("none", "published"))
        _check_choice("precision", self.precision, PRECISIONS)

    @property
    def framing(self):
        """Options that are arguments of :class:`FrameEncoder`; the others belong to the network."""
        names = ("window_secs", "frequency_pooling", "padding", "precision")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def read(cls, config=None, **options):
        """Read options from a YAML file.

        Args:
            config: path of the file, or name of one of the package's configs, such as "hop_20ms". Default: no file.
            options: options that override those of the file.

        Raises:
            ValueError: If there is no such file, it does not hold options, or an option is unknown.
        """
        options = {**_read_options(config), **options}
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}. Choose from {', '.join(known)}")
        return cls(**options)


class FrameEncoder(nn.Module):
    """Module that maps waveforms to frame-level hidden states of every Mamba layer.

    Args:
        model: a SsambaModel with the desired strides and positions.
        window_secs, frequency_pooling, padding, precision: see :class:`UpstreamOptions`.

    Raises:
        ValueError: If windows exceed the network's positions, see :meth:`Windowing.for_model`.
    """

    def __init__(self, model, window_secs=None, frequency_pooling="concat", padding="none", precision="float32"):
        super().__init__()
        self.model = model
        self.log_mel = LogMel(model.config.front_end)
        self.windowing = Windowing.for_model(model.config, window_secs, padding)
        self.frequency_pooling = frequency_pooling
        self.autocast_dtype = PRECISIONS[precision]

    @classmethod
    def from_checkpoint(cls, checkpoint, options=None):
        """Create a FrameEncoder from a checkpoint.

        Args:
            checkpoint: path or name, see :func:`ssamba_upstream.checkpoint.load_model`.
            options: UpstreamOptions. Default: the default options.

        Raises:
            CheckpointError: See :func:`ssamba_upstream.checkpoint.load_model`.
            ValueError: If an option is out of range.
        """
        return cls.from_model(load_model(checkpoint), options or UpstreamOptions())

    @classmethod
    def from_model(cls, model, options):
        """Create a FrameEncoder from a SsambaModel and UpstreamOptions, see :func:`restrided`."""
        return cls(restrided(model, options), **options.framing)

    def description(self, time="all"):
        """Describe everything that determines the hidden states of a waveform, for
        :class:`ssamba_upstream.store.HiddenStateStore`. Made of dicts, lists, strings and numbers.

        Args:
            time: kept frames: "all", "average" (over time) or "single frames".
        """
        config, windowing = self.model.config, self.windowing
        return {
            "upstream": "ssamba", "feature": "hidden_states", "time": time,
            "weights": state_hash(self.model),
            "network": {**{name: getattr(config, name) for name in inspect.signature(type(config)).parameters
                           if name != "kwargs"}, **vars(config.front_end)},
            "window_secs": windowing.window_secs, "padding": windowing.padding,
            "frequency_pooling": self.frequency_pooling, "precision": str(self.autocast_dtype or torch.float32),
        }

    @property
    def sampling_rate(self):
        """Sampling rate of the waveforms in Hz."""
        return self.model.config.sampling_rate

    @property
    def width(self):
        """Number of features in a frame."""
        config = self.model.config
        return config.hidden_size * (1 if self.frequency_pooling == "mean" else config.num_patch_rows)

    def forward(self, wavs):
        """Compute frames of waveforms.

        Args:
            wavs: list of (samples,) mono waveforms in [-1, 1] at the checkpoint's sampling rate, of any lengths from
                one sample. float64 and float16 are converted, int16 is divided by 32768.

        Returns:
            BaseModelOutput with ``hidden_states``, depth + 1 tensors (utterances, frames, width), and
            ``last_hidden_state`` of that shape, the final norm. An utterance of n samples has ceil(n / hop) frames,
            followed by zeros. Frames do not depend on the other utterances, unless linear layers are quantised
            dynamically.

        Raises:
            ValueError: If there is no utterance, or one is empty, stereo, NaN, infinite or of another integer type.
        """
        layers, index = self.tokens(check_waveforms(wavs, self.sampling_rate))
        states = []
        while layers:  # free each layer's tokens as soon as its frames are computed
            states.append(tokens_to_frames(layers.pop(0), index, self.frequency_pooling))
        return BaseModelOutput(hidden_states=tuple(states[:-1]), last_hidden_state=states[-1])

    def split(self, layers, wavs):
        """Split a batch's hidden states by utterance, without the zeros past its end.

        Args:
            layers: list of (utterances, frames, width), from :meth:`forward`.
            wavs: the batch's waveforms, list of (samples,).

        Returns:
            list of (layers, frames, width), one for each utterance.
        """
        counts = [self.windowing.frames(len(wav)) for wav in wavs]
        return [torch.stack([layer[i, :count] for layer in layers]) for i, count in enumerate(counts)]

    def stream(self, count=1):
        """Return a :class:`ssamba_upstream.streaming.FrameStream`: the same frames as audio arrives, for ``count``
        simultaneous streams."""
        return FrameStream(self, count)

    def tokens(self, wavs):
        """Compute the tokens of waveforms, list of (samples,) float32. Return those of every hidden state and finally
        of the final norm, each (total tokens, E), and their :func:`ssamba_upstream.windows.token_index`."""
        device = wavs[0].device
        windows = self.windowing.cut(wavs, self.log_mel)
        with self.autocast(device.type):
            layers, firsts = encode([window for run in windows for window in run], self.model)
        counts = [self.windowing.frames(len(wav)) for wav in wavs]
        return layers, send(token_index(counts, windows, firsts, self.model.config), device)

    def autocast(self, device_type):
        """Return a context in which the network computes in the encoder's precision."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.autocast_dtype)


def restrided(model, options):
    """Return a SsambaModel with the strides and positions of UpstreamOptions, and without stochastic depth, so that
    frozen features are the same in train mode. It shares all parameters with the given model."""
    frequency_stride, time_stride = default_strides(model.config)
    config = type(model.config)(**{
        **model.config.to_dict(), "frequency_stride": options.frequency_stride or frequency_stride,
        "time_stride": options.time_stride or time_stride, "positions": options.positions, "drop_path_rate": 0.0,
    })
    with torch.device("meta"):  # initialising weights there takes no time and draws no random numbers
        other = type(model)(config)
    other.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return other.eval()


def default_strides(config):
    """Return the default frequency and time strides for a checkpoint's SsambaConfig."""
    return [PUBLISHED_STRIDE if side == PUBLISHED_SIDE else side for side in config.patch_size]


def _read_options(config):
    if config is None:
        return {}
    path = find_config(config, "upstream")
    options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold options, one 'name: value' a line; it holds {type(options).__name__}")
    return options


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
