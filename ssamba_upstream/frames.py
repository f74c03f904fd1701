"""Waveforms -> frame-level hidden states: the front end, the windows and the encoder, one after the other."""

import contextlib
import inspect
from dataclasses import dataclass, fields

import torch
import yaml
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from .checkpoint import load_config, load_model
from .configs import find_config
from .devices import send
from .frontend import LogMel, check_waveforms
from .store import state_hash
from .streaming import FrameStream
from .windows import Windowing, encode, frame_index, tokens_to_frames

PUBLISHED_SIDE, PUBLISHED_STRIDE = 16, 10  # of patches downstream, in mel bands and fbank frames (SSAST, section 3.1)
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class UpstreamOptions:
    """How waveforms become frames.

    Attributes:
        window_secs: length of the windows that the network reads, see :meth:`Windowing.for_model`. Default: 100 frames,
            but no more than 10 s or the whole patches of a pretraining clip.
        time_stride: distance of frames in fbank frames, of 10 ms unless the checkpoint has others, from 1 to the width
            of its patches. Default: 10, a frame every 100 ms, of patches 16 wide as the published ones are; of others,
            that width.
        frequency_stride: distance of patches in mel bands, from 1 to the height of the patches. Default: 10, 12 patches
            in a column, of patches 16 high; of others, that height.
        frequency_pooling: "concat" (default), a frame is its column's patches one after the other, 12 * E wide; or
            "mean", their mean, E wide.
        positions: "physical" (default) or "published", see :mod:`ssamba_upstream.network.positions`.
        padding: "none" (default) or "published", see :class:`ssamba_upstream.windows.Windowing`.
        precision: "float32" (default), "bfloat16" or "float16", of the network's matrix products. What is returned
            is float32.

    Raises:
        ValueError: a value that is none of the choices.
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
        """The arguments of a :class:`FrameEncoder`; the others are the network's."""
        names = ("window_secs", "frequency_pooling", "padding", "precision")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def read(cls, config=None, **options):
        """The options of a YAML file.

        Args:
            config: the file's path, or the name of one of the package's, such as "hop_20ms". Default: no file.
            options: these come before what the file says.

        Raises:
            ValueError: no such file, a file of something else, or an option that there is not.
        """
        options = {**_read_options(config), **options}
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; there are: {', '.join(known)}")
        return cls(**options)


class FrameEncoder(nn.Module):
    """Waveforms in, frame-level hidden states of every Mamba layer out.

    Args:
        model: a SsambaModel, with the strides and positions that the frames are to have.
        window_secs, frequency_pooling, padding, precision: see :class:`UpstreamOptions`.

    Raises:
        ValueError: windows that the network's positions do not reach, see :meth:`Windowing.for_model`.
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
        """The frames of a checkpoint.

        Args:
            checkpoint: its path.
            options: UpstreamOptions. Default: the default ones.

        Raises:
            CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
            ValueError: an option out of range.
        """
        options = options or UpstreamOptions()
        return cls(load_encoder(checkpoint, options), **options.framing)

    def description(self):
        """Everything that decides the hidden states of a waveform, made of dicts, lists, strings and numbers, see
        :class:`ssamba_upstream.store.HiddenStateStore`."""
        config, windowing = self.model.config, self.windowing
        return {
            "weights": state_hash(self.model),
            "network": {**{name: getattr(config, name) for name in inspect.signature(type(config)).parameters
                           if name != "kwargs"}, **vars(config.front_end)},
            "window_secs": windowing.window_secs, "padding": windowing.padding,
            "frequency_pooling": self.frequency_pooling, "precision": str(self.autocast_dtype or torch.float32),
        }

    @property
    def sampling_rate(self):
        """Of the waveforms, in Hz."""
        return self.model.config.sampling_rate

    @property
    def width(self):
        """Features of a frame."""
        config = self.model.config
        return config.hidden_size * (1 if self.frequency_pooling == "mean" else config.num_patch_rows)

    def forward(self, wavs):
        """
        Args:
            wavs: list of (samples,) mono waveforms in [-1, 1] at the checkpoint's sampling rate, of any lengths from
                one sample. float64 and float16 are converted, int16 is divided by 32768.

        Returns:
            BaseModelOutput with ``hidden_states``, depth + 1 tensors (utterances, frames, width), and
            ``last_hidden_state`` of that shape, the final norm. An utterance of n samples has ceil(n / hop) frames;
            past its end there are zeros. The frames do not depend on the other utterances, unless linear layers are
            quantised dynamically.

        Raises:
            ValueError: no utterance, an empty, stereo, NaN or infinite one, or another integer type.
        """
        layers, index = self.tokens(check_waveforms(wavs, self.sampling_rate))
        states = []
        while layers:  # let go of each layer's tokens as soon as its frames are there
            states.append(tokens_to_frames(layers.pop(0), index, self.frequency_pooling))
        return BaseModelOutput(hidden_states=tuple(states[:-1]), last_hidden_state=states[-1])

    def stream(self, count=1):
        """The same frames as audio arrives: a :class:`ssamba_upstream.streaming.FrameStream` of so many streams."""
        return FrameStream(self, count)

    def tokens(self, wavs):
        """Waveforms, list of (samples,) float32 -> tokens of every hidden state, and last of the final norm, each
        (total tokens, E); and where the frames find theirs, (utterances, frames, rows), see
        :func:`ssamba_upstream.windows.token_index`."""
        device = wavs[0].device
        windows = self.windowing.cut(wavs, self.log_mel)
        with self.autocast(device.type):
            layers, firsts = encode([window for run in windows for window in run], self.model)
        return layers, send(frame_index(wavs, windows, firsts, self.windowing, self.model.config), device)

    def autocast(self, device_type):
        """A context in which the network computes in the encoder's precision."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.autocast_dtype)


def load_encoder(checkpoint, options):
    """The network of a checkpoint with the strides and positions of UpstreamOptions, and without stochastic depth, so
    that frozen features are the same in train mode; see :func:`ssamba_upstream.checkpoint.load_model`."""
    frequency_stride, time_stride = default_strides(load_config(checkpoint))
    return load_model(
        checkpoint, frequency_stride=options.frequency_stride or frequency_stride,
        time_stride=options.time_stride or time_stride, positions=options.positions, drop_path_rate=0.0,
    )


def default_strides(config):
    """The frequency and time strides that UpstreamOptions have by default, of a checkpoint's SsambaConfig."""
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
