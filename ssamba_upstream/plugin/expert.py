"""UpstreamExpert: a SSAMBA checkpoint as s3prl wants its upstreams."""

import contextlib
import inspect
from pathlib import Path

import torch
import yaml
from torch import nn

from ..checkpoint import load_model
from ..frontend import LogMel, check_waveform
from ..windows import Windowing, encode, frame_index, tokens_to_frames

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UpstreamExpert(nn.Module):
    """Waveforms in, frame-level hidden states of every Mamba layer out.

    Args:
        ckpt: path of a checkpoint, see :func:`ssamba_upstream.checkpoint.load_model`.
        model_config: path of a YAML file with any of the options below (s3prl's ``-g``).
        refresh: taken for s3prl's sake; entries that download look at it before they get here.
        window_secs: length of the windows that the network reads. Default: 10 s, or that of the pretraining clips if they were
            shorter.
        time_stride: distance of frames in fbank frames of 10 ms, 1 to 16. Default: 10, a frame every 100 ms.
        frequency_stride: distance of patches in mel bands, 1 to 16. Default: 10, 12 patches in a column.
        frequency_pooling: "concat" (default), a frame is its column's patches one after the other, 12 * E wide; or
            "mean", their mean, E wide.
        positions: "physical" (default) or "published", see :mod:`ssamba_upstream.network.positions`.
        padding: "none" (default) or "published", see :class:`ssamba_upstream.windows.Windowing`.
        precision: "float32" (default), "bfloat16" or "float16", of the network's matrix products. What is returned
            is float32.

    Raises:
        ValueError: an unknown option or a value out of range.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.

    The network's stochastic depth is off, so that frozen features are the same in train mode; fine-tuning trains all
    parameters but the final norm, which hidden states do not pass and for whose gradients DDP would wait in vain.
    """

    def __init__(self, ckpt=None, model_config=None, refresh=False, **options):
        super().__init__()
        options = {**_options_from_file(model_config), **options}
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; there are: {', '.join(_OPTIONS)}")
        if ckpt is None:
            raise ValueError("this upstream needs a checkpoint: give its path with -k (path_or_url in S3PRLUpstream)")
        self._build(ckpt, **options)

    def _build(
        self, ckpt, *, window_secs=None, time_stride=10, frequency_stride=10, frequency_pooling="concat",
        positions="physical", padding="none", precision="float32",
    ):
        _check_choice("frequency_pooling", frequency_pooling, ("concat", "mean"))
        _check_choice("padding", padding, ("none", "published"))
        _check_choice("precision", precision, PRECISIONS)
        self.frequency_pooling = frequency_pooling
        self.autocast_dtype = PRECISIONS[precision]
        self.model = load_model(
            ckpt, time_stride=time_stride, frequency_stride=frequency_stride, positions=positions, drop_path_rate=0.0
        )
        self.model.norm_f.requires_grad_(False)
        config = self.model.config
        self.log_mel = LogMel(config.num_mel_bins)
        self.windowing = Windowing.for_model(config, window_secs, padding)

    def get_downsample_rates(self, key: str = None) -> int:
        """Samples per frame at 16 kHz, the same for every layer."""
        return self.windowing.hop

    def forward(self, wavs):
        """
        Args:
            wavs: list of (samples,) mono waveforms at 16 kHz in [-1, 1], of any lengths from one sample. float64 and
                float16 are converted, int16 is divided by 32768.

        Returns:
            dict with ``hidden_states``, a list of depth + 1 tensors (utterances, frames, D), and
            ``last_hidden_state`` of that shape, the final norm. An utterance of n samples has ceil(n / hop) frames;
            past its end there are zeros.

        Raises:
            ValueError: no utterance, an empty, stereo, NaN or infinite one, or another integer type.
        """
        wavs = [check_waveform(wav, i) for i, wav in enumerate(wavs)]
        if not wavs:
            raise ValueError("got an empty list of waveforms; expected at least one")
        windows = self.windowing.cut(wavs, self.log_mel)
        with self._autocast(wavs[0].device.type):
            layers, firsts = encode([window for run in windows for window in run], self.model)
        index = frame_index(wavs, windows, firsts, self.windowing, self.model.config).to(wavs[0].device)
        states = []
        while layers:  # let go of each layer's tokens as soon as its frames are there
            states.append(tokens_to_frames(layers.pop(0), index, self.frequency_pooling))
        *hidden_states, last_hidden_state = states
        return {"hidden_states": hidden_states, "last_hidden_state": last_hidden_state}

    def _autocast(self, device_type):
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.autocast_dtype)


_OPTIONS = [
    name for name, parameter in inspect.signature(UpstreamExpert._build).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
]


def _options_from_file(path):
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"no upstream configuration file {path} (given with -g)")
    options = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold options, one 'name: value' a line; it holds {type(options).__name__}")
    return options


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
