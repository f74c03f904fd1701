"""Waveforms -> normalised log-mel, for a batch of utterances of any lengths at once.

The features are Kaldi's fbank with the recipe's settings (16 kHz, 25 ms Hanning window every 10 ms, 128 mel bands from
20 Hz to 8 kHz, no dither, no energy), normalised with the statistics of the data, by default pretraining's.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

from .audio import SAMPLE_RATE

FRAME_LENGTH = 400
FRAME_SHIFT = 160
FFT_LENGTH = 512
PREEMPHASIS = 0.97
LOG_MEL_MEAN = -4.2677393
LOG_MEL_STD = 4.5689974

# Frames transformed at once: bounds the memory of long recordings, and is far past the size where batching pays.
FRAMES_AT_ONCE = 8192


def frames_of(samples: int) -> int:
    """Number of whole analysis windows in a waveform of so many samples (Kaldi's ``snip_edges``)."""
    return max(0, 1 + (samples - FRAME_LENGTH) // FRAME_SHIFT)


def samples_of(frames: int) -> int:
    """The fewest samples that so many analysis windows need."""
    return (frames - 1) * FRAME_SHIFT + FRAME_LENGTH


class LogMel(nn.Module):
    """Normalised log-mel of a batch of waveforms.

    Equals ``torchaudio.compliance.kaldi.fbank(wav[None], htk_compat=True, sample_frequency=16000, use_energy=False,
    window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10)``, then ``(x + 4.2677393) / (2 * 4.5689974)``.
    The mean that the recipe takes off each waveform is not taken off here: Kaldi takes it off every frame.

    Args:
        num_mel_bins: mel bands.
        mean, std: of the log-mel of the data, which is normalised as ``(x - mean) / (2 * std)``. Default: of the
            pretraining data.
    """

    def __init__(self, num_mel_bins=128, mean=LOG_MEL_MEAN, std=LOG_MEL_STD):
        super().__init__()
        self.mean, self.std = mean, std
        bands, _ = get_mel_banks(num_mel_bins, FFT_LENGTH, float(SAMPLE_RATE), 20.0, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("mel_bands", F.pad(bands, (0, 1)).T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(FRAME_LENGTH, periodic=False), persistent=False)

    def forward(self, wavs):
        """
        Args:
            wavs: list of (samples,) waveforms in [-1, 1] at 16 kHz, float32, of any lengths.

        Returns:
            list of (frames, mel): 1 + (samples - 400) // 160 frames each, none for fewer than 400 samples.
        """
        counts = [frames_of(len(wav)) for wav in wavs]
        frames = [wav.unfold(0, FRAME_LENGTH, FRAME_SHIFT) for wav, count in zip(wavs, counts) if count]
        if not frames:
            return [wav.new_zeros(0, self.mel_bands.shape[1]) for wav in wavs]
        features = [self._log_mel(part) for part in torch.cat(frames).split(FRAMES_AT_ONCE)]
        return list(torch.cat(features).split(counts))

    def fixed_length(self, wavs, frames):
        """Normalised log-mel of clips, all brought to the same length as the recipe does.

        Args:
            wavs: list of (samples,) waveforms, see :meth:`forward`.
            frames: the length; a longer clip is cut at its end, a shorter one is padded there with a log-mel of zero,
                before it is normalised. A clip shorter than one analysis window is heard as one window.

        Returns:
            (clips, frames, mel)
        """
        wavs = [F.pad(wav, (0, max(0, FRAME_LENGTH - len(wav)))) for wav in wavs]
        clips = self([wav[: samples_of(frames)] for wav in wavs])
        return torch.stack([F.pad(clip, (0, 0, 0, frames - len(clip)), value=self.padding) for clip in clips])

    @property
    def padding(self):
        """What a log-mel of zero is after normalisation."""
        return -self.mean / (2 * self.std)

    def _log_mel(self, frames):
        frames = frames - frames.mean(dim=1, keepdim=True)
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = (frames - PREEMPHASIS * previous) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames, n=FFT_LENGTH)).square().sum(-1)
        energies = power @ self.mel_bands
        log_energies = energies.clamp(min=torch.finfo(torch.float32).eps).log()
        return (log_energies - self.mean) / (2 * self.std)


def check_waveforms(wavs):
    """Waveforms as the front end reads them, (samples,) in float32.

    Args:
        wavs: list of (samples,), of floating point in [-1, 1], or int16, which is divided by 32768; on one device.

    Raises:
        ValueError: no waveform, an empty, stereo, NaN or infinite one, or another integer type.
    """
    if not wavs:
        raise ValueError("got an empty list of waveforms; expected at least one")
    wavs = [_check_waveform(wav, i) for i, wav in enumerate(wavs)]
    if not torch.isfinite(torch.cat(wavs)).all():  # a GPU is waited for once, not for each
        bad = next(i for i, wav in enumerate(wavs) if not torch.isfinite(wav).all())
        raise ValueError(f"waveform {bad} holds NaN or infinite samples")
    return wavs


def _check_waveform(wav, i):
    if not isinstance(wav, torch.Tensor):
        wav = torch.as_tensor(wav)
    if wav.dim() != 1:
        raise ValueError(f"waveform {i} has shape {tuple(wav.shape)}; expected one channel, (samples,) at "
                         f"{SAMPLE_RATE} Hz: average stereo channels first")
    if len(wav) == 0:
        raise ValueError(f"waveform {i} is empty; expected at least one sample")
    if wav.dtype == torch.int16:
        wav = wav / 32768
    if not wav.is_floating_point():
        raise ValueError(f"waveform {i} is {wav.dtype}; expected floating point in [-1, 1], or int16")
    return wav.float()
