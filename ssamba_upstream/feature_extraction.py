"""SsambaFeatureExtractor: waveforms -> what the classifiers read, by transformers' conventions."""

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
"""Clips of so few samples are the channels of a recording, as soundfile lays them out."""

CLIPS_AT_ONCE = 16
"""Whose log-mel is computed at once, which bounds the memory for long recordings."""


FRONT_END = {name.removeprefix("log_mel_"): name for name in vars(PUBLISHED_FRONT_END)}
"""Fields of :class:`FrontEnd` by the names of the extractor's: ``mean`` and ``std`` are short here."""


class SsambaFeatureExtractor(SequenceFeatureExtractor):
    """Normalised log-mel of clips brought to one length, see :meth:`ssamba_upstream.frontend.LogMel.fixed_length`.

    A recording that is longer is cut into windows of that length, without overlap; the last one is padded as clips are.

    Args:
        max_length: of clips, and of the windows of longer recordings, in frames; by default 1024 of 10 ms, 10.24 s.
        whole_seconds: If True, clips and windows hold as many whole seconds as ``max_length`` frames last, as those of
            a classifier of seconds. Default: False, all samples that ``max_length`` frames need.
        kwargs: fields of :class:`ssamba_upstream.network.configuration.FrontEnd`, with ``mean`` and ``std`` instead of
            ``log_mel_mean`` and ``log_mel_std``; and fields of every sequence feature extractor of transformers.
            Fine-tuning usually takes the statistics of its own data, such as -6.6268077 and 5.358466 of ESC-50, or
            -6.845978 and 5.5654526 of Speech Commands.

    Raises:
        ValueError: a length below one frame, or what no log-mel can be computed with.
    """

    model_input_names = ["input_values"]

    def __init__(self, max_length=1024, whole_seconds=False, **kwargs):
        # Names code in the folder that the fields were read from.
        kwargs.pop("auto_map", None)
        front_end = {name: kwargs.pop(name, getattr(FrontEnd, field)) for name, field in FRONT_END.items()}
        fields = {"feature_size": front_end["num_mel_bins"], "padding_value": 0.0, "return_attention_mask": False}
        super().__init__(sampling_rate=front_end["sampling_rate"], **{**fields, **kwargs})
        if max_length < 1:
            raise ValueError(f"max_length must be at least one frame; got {max_length}")
        vars(self).update(front_end, max_length=max_length, whole_seconds=whole_seconds)
        _ = self.front_end  # which checks its fields

    @classmethod
    def for_config(cls, config, whole_seconds=False):
        """The feature extractor of a network, by its SsambaConfig; see the class for ``whole_seconds``."""
        fields = {name: getattr(config, field) for name, field in FRONT_END.items()}
        return cls(config.clip_frames or config.pretraining_frames, whole_seconds, **fields)

    @property
    def front_end(self):
        """The :class:`ssamba_upstream.network.configuration.FrontEnd` of what is returned."""
        return FrontEnd(**{field: getattr(self, name) for name, field in FRONT_END.items()})

    @property
    def clip_samples(self):
        """Samples of a clip, and of a window of a longer recording.

        Raises:
            ValueError: ``whole_seconds``, and less than a second.
        """
        front_end = self.front_end
        if not self.whole_seconds:
            return front_end.samples_of(self.max_length)
        seconds = int(front_end.seconds_of(self.max_length))
        if not seconds:
            raise ValueError(f"max_length is {self.max_length} frames, and holds no whole second; give at least "
                             f"{front_end.frames_in(1)}")
        return seconds * front_end.sampling_rate

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoFeatureExtractor"):
        """Does nothing: transformers would copy this module into the folders that it saves; it is installed."""

    def __call__(self, raw_speech, sampling_rate=None, return_tensors=None, truncation=False, **kwargs):
        """
        Args:
            raw_speech: mono waveforms in [-1, 1] at the extractor's sampling rate: one, (samples,), as an array, a
                tensor or a list of floats; a batch of equal lengths, (clips, samples); or a list of them, (samples,)
                or (1, samples), of any lengths. int16 is divided by 32768.
            sampling_rate: at which they were sampled, in Hz. Default: taken to be the extractor's.
            return_tensors: "pt" for a tensor. Default: a numpy array.
            truncation: whether a recording longer than ``max_length`` is cut at its end, as for training, and not into
                windows.
            kwargs: ignored, as by transformers' ASTFeatureExtractor: ``padding``, ``max_length``,
                ``return_attention_mask`` and other arguments of sequence feature extractors. Every clip has the
                extractor's own ``max_length``, and the models read all of it.

        Returns:
            BatchFeature with ``input_values``, (clips, windows * max_length, mel), float32, the windows of a recording
            one after the other, and ``window_lengths``, (clips, windows), int64: the samples of the recording that
            each window holds, 0 where a recording has fewer windows. Recordings no longer than ``max_length`` have one
            window. :class:`SsambaForAudioClassification` takes both for any number of windows, the other models for
            one. With ``truncation``, ``input_values`` alone.

        Raises:
            ValueError: another sampling rate, no waveform, or an empty, stereo, NaN or infinite one.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"sampling_rate is {sampling_rate} Hz; expected {self.sampling_rate} Hz: resample the "
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
        """list of (samples,) -> (clips, max_length, mel)"""
        log_mel = _log_mel(self.front_end)
        parts = [wavs[i : i + CLIPS_AT_ONCE] for i in range(0, len(wavs), CLIPS_AT_ONCE)]
        return torch.cat([log_mel.fixed_length(part, self.max_length) for part in parts])


# Not an attribute, as those are what the extractor's JSON holds.
_log_mel = lru_cache(maxsize=4)(LogMel)


def _waveforms(raw_speech):
    """A list of waveforms, each as it was given, but for (1, samples), which become (samples,)."""
    if isinstance(raw_speech, (list, tuple)):
        if raw_speech and isinstance(raw_speech[0], Real):
            return [np.asarray(raw_speech)]
        return [wav[0] if getattr(wav, "ndim", 1) == 2 and len(wav) == 1 else wav for wav in raw_speech]
    if raw_speech.ndim == 2 and raw_speech.shape[1] > MOST_CHANNELS:
        return list(raw_speech)
    return [raw_speech]
