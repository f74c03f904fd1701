"""SsambaFeatureExtractor: waveforms -> what the classifiers read, by transformers' conventions."""

from functools import lru_cache

import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from .frontend import LOG_MEL_MEAN, LOG_MEL_STD, SAMPLE_RATE, LogMel, check_waveforms


class SsambaFeatureExtractor(SequenceFeatureExtractor):
    """Normalised log-mel of clips brought to one length, see :meth:`ssamba_upstream.frontend.LogMel.fixed_length`.

    Args:
        sampling_rate: in Hz; 16000, which is what the front end is made for.
        num_mel_bins: mel bands.
        max_length: of what is returned, in frames of 10 ms; 1024 are 10.24 s.
        mean, std: of the log-mel of the data. Default: of the pretraining data; fine-tuning usually takes those of its
            own, such as -6.6268077 and 5.358466 of ESC-50, or -6.845978 and 5.5654526 of Speech Commands.
        kwargs: of every sequence feature extractor of transformers.

    Raises:
        ValueError: another sampling rate, a length below one frame, or a deviation that is not above 0.
    """

    model_input_names = ["input_values"]

    def __init__(
        self, sampling_rate=SAMPLE_RATE, num_mel_bins=128, max_length=1024, mean=LOG_MEL_MEAN, std=LOG_MEL_STD, **kwargs
    ):
        # Names code in the folder that the fields were read from.
        kwargs.pop("auto_map", None)
        fields = {"feature_size": num_mel_bins, "padding_value": 0.0, "return_attention_mask": False, **kwargs}
        super().__init__(sampling_rate=sampling_rate, **fields)
        _check_rate(sampling_rate)
        if max_length < 1:
            raise ValueError(f"max_length must be at least one frame; got {max_length}")
        if not std > 0:
            raise ValueError(f"std must be above 0; got {std}")
        self.num_mel_bins = num_mel_bins
        self.max_length = max_length
        self.mean = mean
        self.std = std

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoFeatureExtractor"):
        """Does nothing: transformers would copy this module into the folders that it saves; it is installed."""

    def __call__(self, raw_speech, sampling_rate=None, return_tensors=None):
        """
        Args:
            raw_speech: a mono waveform in [-1, 1] at 16 kHz, (samples,), as a numpy array or a tensor, or a list of
                them, of any lengths; int16 is divided by 32768.
            sampling_rate: at which they were sampled, in Hz. Default: taken to be 16000.
            return_tensors: "pt" for a tensor. Default: a numpy array.

        Returns:
            BatchFeature with ``input_values``, (clips, max_length, mel), float32.

        Raises:
            ValueError: another sampling rate, no waveform, or an empty, stereo, NaN or infinite one.
        """
        if sampling_rate is not None:
            _check_rate(sampling_rate)
        wavs = list(raw_speech) if isinstance(raw_speech, (list, tuple)) else [raw_speech]
        wavs = check_waveforms([torch.as_tensor(wav).cpu() for wav in wavs])
        clips = _log_mel(self.num_mel_bins, self.mean, self.std).fixed_length(wavs, self.max_length)
        return BatchFeature({"input_values": clips.numpy()}, tensor_type=return_tensors)


# Not an attribute, as those are what the extractor's JSON holds.
_log_mel = lru_cache(maxsize=4)(LogMel)


def _check_rate(sampling_rate):
    if sampling_rate != SAMPLE_RATE:
        raise ValueError(f"sampling_rate is {sampling_rate} Hz; expected {SAMPLE_RATE} Hz: resample the audio first")
