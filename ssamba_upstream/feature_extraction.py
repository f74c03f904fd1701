"""SsambaFeatureExtractor: the classifiers' inputs from waveforms, following transformers' conventions."""

import itertools
from functools import lru_cache
from numbers import Real

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, SequenceFeatureExtractor

from .frontend import LogMel, as_tensor, check_waveforms
from .network.configuration import PUBLISHED_FRONT_END, FrontEnd

MOST_CHANNELS = 8
"""Largest second dimension of a 2-D array that is taken as channels, as in soundfile's layout, not as samples."""

CLIPS_AT_ONCE = 16
"""Number of clips per log-mel computation, which bounds the memory for long recordings."""


FRONT_END = {name.removeprefix("log_mel_"): name for name in vars(PUBLISHED_FRONT_END)}
"""Extractor field -> :class:`FrontEnd` field; only ``mean`` and ``std`` have shorter names here."""


class SsambaFeatureExtractor(SequenceFeatureExtractor):
    """Feature extractor that returns the normalised log-mel of fixed-length clips, see
    :meth:`ssamba_upstream.frontend.LogMel.fixed_length`.

    Longer recordings are split into windows of that length, without overlap; the last window is padded like a clip.

    Args:
        max_length: length of clips and windows in frames. Default: 1024, or 10.24 s with frames of 10 ms.
        whole_seconds: If True, clips and windows have the number of whole seconds in ``max_length`` frames, as for a
            classifier of seconds. Default: False, all samples that ``max_length`` frames need.
        kwargs: fields of :class:`ssamba_upstream.network.configuration.FrontEnd`, with ``mean`` and ``std`` instead of
            ``log_mel_mean`` and ``log_mel_std``; and other arguments of transformers' sequence feature extractors.
            Fine-tuning usually uses its own data's statistics, such as -6.6268077 and 5.358466 for ESC-50, or
            -6.845978 and 5.5654526 for Speech Commands.

    Raises:
        ValueError: If ``max_length`` is below one frame, or the log-mel's parameters are invalid.
    """

    model_input_names = ["input_values"]

    def __init__(self, max_length=1024, whole_seconds=False, **kwargs):
        # It refers to code in the folder from which the fields were read.
        kwargs.pop("auto_map", None)
        front_end = {name: kwargs.pop(name, getattr(FrontEnd, field)) for name, field in FRONT_END.items()}
        fields = {"feature_size": front_end["num_mel_bins"], "padding_value": 0.0, "return_attention_mask": False}
        super().__init__(sampling_rate=front_end["sampling_rate"], **{**fields, **kwargs})
        if max_length < 1:
            raise ValueError(f"max_length must be at least one frame; got {max_length}")
        vars(self).update(front_end, max_length=max_length, whole_seconds=whole_seconds)
        _ = self.front_end  # checks its fields

    @classmethod
    def for_config(cls, config, whole_seconds=False):
        """Return the feature extractor for a SsambaConfig; see the class for ``whole_seconds``."""
        fields = {name: getattr(config, field) for name, field in FRONT_END.items()}
        return cls(config.clip_frames or config.pretraining_frames, whole_seconds, **fields)

    @property
    def front_end(self):
        """The :class:`ssamba_upstream.network.configuration.FrontEnd` of the log-mel."""
        return FrontEnd(**{field: getattr(self, name) for name, field in FRONT_END.items()})

    @property
    def clip_samples(self):
        """Length of a clip, or of a window of a longer recording, in samples.

        Raises:
            ValueError: If ``whole_seconds`` is True and ``max_length`` is below a second.
        """
        front_end = self.front_end
        if not self.whole_seconds:
            return front_end.samples_of(self.max_length)
        seconds = int(front_end.seconds_of(self.max_length))
        if not seconds:
            raise ValueError(f"max_length is {self.max_length} frames, less than a second. Give at least "
                             f"{front_end.frames_in(1)}")
        return seconds * front_end.sampling_rate

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoFeatureExtractor"):
        """Do nothing: transformers would copy this module into saved folders, but the package is installed."""

    def __call__(self, raw_speech, sampling_rate=None, return_tensors=None, truncation=False, **kwargs):
        """Return the log-mel of waveforms.

        Args:
            raw_speech: mono waveforms in [-1, 1] at the extractor's sampling rate: one, (samples,), as an array, tensor
                or list of floats; a batch of equal lengths, (clips, samples); or a list of any lengths, (samples,) or
                (1, samples) each. int16 values are divided by 32768.
            sampling_rate: sampling rate of the waveforms in Hz. Default: the extractor's.
            return_tensors: "pt" for a tensor. Default: a numpy array.
            truncation: If True, cut recordings at ``max_length``, as for training, instead of splitting them into
                windows.
            kwargs: ignored, as in transformers' ASTFeatureExtractor: ``padding``, ``max_length``,
                ``return_attention_mask`` and other arguments of sequence feature extractors. Every clip has the
                extractor's own ``max_length``, and the models read all of it.

        Returns:
            BatchFeature with ``input_values``, (clips, windows * max_length, mel) float32, a recording's windows
            concatenated; and ``window_lengths``, (clips, windows) int64, the number of the recording's samples in each
            window, 0 for missing windows. Recordings up to ``max_length`` have one window.
            :class:`SsambaForAudioClassification` takes both for any number of windows, the other models for one. With
            ``truncation``, only ``input_values``.

        Raises:
            ValueError: If the sampling rate differs, or there is no waveform, or one is empty, stereo, NaN or infinite.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"sampling_rate is {sampling_rate} Hz; expected {self.sampling_rate} Hz. Resample the "
                             "audio first")
        wavs = check_waveforms([as_tensor(wav).cpu() for wav in _waveforms(raw_speech)], self.sampling_rate)
        samples = self.clip_samples
        if truncation:
            clips = self._log_mel_of([wav[:samples] for wav in wavs])
            return BatchFeature({"input_values": clips.numpy()}, tensor_type=return_tensors)
        windows = [wav.split(samples) for wav in wavs]
        clips = self._log_mel_of(list(itertools.chain.from_iterable(windows)))
        lengths = [torch.tensor([len(window) for window in run]) for run in windows]
        features = {
            "input_values": pad_sequence(clips.split([*map(len, windows)]), batch_first=True).flatten(1, 2).numpy(),
            "window_lengths": pad_sequence(lengths, batch_first=True).numpy(),
        }
        return BatchFeature(features, tensor_type=return_tensors)

    def _log_mel_of(self, wavs):
        """Return the log-mel of a list of (samples,), (clips, max_length, mel)."""
        log_mel = _log_mel(self.front_end)
        parts = [wavs[i : i + CLIPS_AT_ONCE] for i in range(0, len(wavs), CLIPS_AT_ONCE)]
        return torch.cat([log_mel.fixed_length(part, self.max_length) for part in parts])


# Not an attribute, because attributes are saved in the extractor's JSON.
_log_mel = lru_cache(maxsize=4)(LogMel)


def _waveforms(raw_speech):
    """Return a list of waveforms, unchanged except that (1, samples) becomes (samples,)."""
    if isinstance(raw_speech, (list, tuple)):
        if raw_speech and isinstance(raw_speech[0], Real):
            return [np.asarray(raw_speech)]
        return [wav[0] if getattr(wav, "ndim", 1) == 2 and len(wav) == 1 else wav for wav in raw_speech]
    if raw_speech.ndim == 2 and raw_speech.shape[1] > MOST_CHANNELS:
        return list(raw_speech)
    return [raw_speech]
