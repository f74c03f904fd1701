"""Normalised log-mel of waveforms, for a batch of utterances of any lengths.

The features are Kaldi's fbank without dither and energy. The defaults are the published recipe's: 16 kHz, a 25 ms
Hanning window every 10 ms, 128 mel bands from 20 Hz to 8 kHz, normalised with the statistics of the pretraining data.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

from .network.configuration import PUBLISHED_FRONT_END, FrontEnd

PREEMPHASIS = 0.97

SMALLEST_DEVIATION = 1e-3
"""Lower bound of the deviation that a clip's log-mel is divided by: for digital silence it is only rounding error."""

# Frames transformed at once: bounds the memory for long recordings, and is far more than batching needs to pay off.
FRAMES_AT_ONCE = 8192


class LogMel(nn.Module):
    """Module that computes the normalised log-mel of a batch of waveforms.

    Equals ``torchaudio.compliance.kaldi.fbank(wav[None], htk_compat=True, sample_frequency=16000, use_energy=False,
    window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10)``, then ``(x + 4.2677393) / (2 * 4.5689974)``.
    Unlike the recipe, it does not subtract each waveform's mean, because Kaldi subtracts the mean of every frame.

    It always computes in at least float32, regardless of the module's dtype, torch's default dtype and autocast: with
    fewer bits, the log-mel would differ from pretraining's.

    Args:
        front_end: the :class:`FrontEnd`. Default: the published one.
    """

    def __init__(self, front_end=PUBLISHED_FRONT_END):
        super().__init__()
        self.front_end = front_end
        self.fft_length = 2 ** (front_end.frame_samples - 1).bit_length()
        highest = 0.0 if front_end.highest_frequency is None else front_end.highest_frequency
        with _float32_by_default():
            bands, _ = get_mel_banks(front_end.num_mel_bins, self.fft_length, float(front_end.sampling_rate),
                                     float(front_end.lowest_frequency), highest, 100.0, -500.0, 1.0)
            window = torch.hann_window(front_end.frame_samples, periodic=False)
        self.register_buffer("mel_bands", F.pad(bands, (0, 1)).T.contiguous(), persistent=False)
        self.register_buffer("window", window, persistent=False)

    def _apply(self, fn, recurse=True):
        """Move the buffers with ``fn``, from ``to``, ``half`` and the like, but keep at least float32."""
        def move(buffer):
            moved = fn(buffer)
            return buffer.to(moved.device, torch.promote_types(moved.dtype, torch.float32))

        return super()._apply(move, recurse)

    def forward(self, wavs):
        """Compute the log-mel of waveforms.

        Args:
            wavs: list of (samples,) float32 waveforms in [-1, 1] at the front end's sampling rate, of any lengths.

        Returns:
            list of (frames, mel), with :meth:`FrontEnd.frames_of` frames each: at 16 kHz 1 + (samples - 400) // 160, or
            none for fewer than 400 samples.
        """
        front_end = self.front_end
        counts = [front_end.frames_of(len(wav)) for wav in wavs]
        frames = [wav.unfold(0, front_end.frame_samples, front_end.shift_samples)
                  for wav, count in zip(wavs, counts) if count]
        if not frames:
            return [wav.new_zeros(0, self.mel_bands.shape[1]) for wav in wavs]
        with torch.autocast(self.window.device.type, enabled=False):
            features = [self._log_mel(part) for part in torch.cat(frames).split(FRAMES_AT_ONCE)]
        clips = list(torch.cat(features).split(counts))
        return clips if front_end.normalisation == "data" else [self._normalise_clip(clip) for clip in clips]

    def at_least_one_frame(self, wavs):
        """Zero-pad waveforms, list of (samples,), at the end to at least one analysis window."""
        return [F.pad(wav, (0, max(0, self.front_end.frame_samples - len(wav)))) for wav in wavs]

    def fixed_length(self, wavs, frames):
        """Compute the normalised log-mel of clips, cut or padded to one length as in the recipe.

        Args:
            wavs: list of (samples,) waveforms, see :meth:`forward`.
            frames: length in fbank frames. Longer clips are cut at the end. Shorter ones are padded at the end with a
                log-mel of zero before normalisation, or with their mean if normalised by clip. A clip shorter than one
                analysis window is zero-padded to one.

        Returns:
            (clips, frames, mel)
        """
        clips = self([wav[: self.front_end.samples_of(frames)] for wav in self.at_least_one_frame(wavs)])
        padding = self.front_end.padding
        return torch.stack([F.pad(clip, (0, 0, 0, frames - len(clip)), value=padding) for clip in clips])

    def _log_mel(self, frames):
        frames = frames - frames.mean(dim=1, keepdim=True)
        previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = (frames - PREEMPHASIS * previous) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames, n=self.fft_length)).square().sum(-1)
        energies = power @ self.mel_bands
        log_energies = energies.clamp(min=torch.finfo(torch.float32).eps).log()
        if self.front_end.normalisation == "clip":
            return log_energies
        return (log_energies - self.front_end.log_mel_mean) / (2 * self.front_end.log_mel_std)

    @staticmethod
    def _normalise_clip(clip):
        """Normalise a clip, (frames, mel), by its own statistics. A constant clip, such as silence, becomes zeros."""
        if not len(clip):
            return clip
        return (clip - clip.mean()) / (2 * clip.std(correction=0).clamp(min=SMALLEST_DEVIATION))


def as_tensor(samples):
    """Return samples as a tensor: a tensor unchanged, an array or a list as a copy.

    Reversed and big-endian numpy arrays, which torch rejects, are converted.
    """
    if isinstance(samples, torch.Tensor):
        return samples
    samples = np.asarray(samples)
    return torch.from_numpy(np.array(samples, dtype=samples.dtype.newbyteorder("="), order="C"))


@contextlib.contextmanager
def _float32_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_waveforms(wavs, sampling_rate=FrontEnd.sampling_rate):
    """Check waveforms and return them as the front end reads them, (samples,) in float32.

    Args:
        wavs: list of (samples,), floating point in [-1, 1], or int16, which is divided by 32768; on one device.
            Arrays may be reversed or big-endian.
        sampling_rate: expected sampling rate in Hz, for error messages.

    Raises:
        ValueError: If there is no waveform, or one is empty, stereo, NaN, infinite or of another integer type.
    """
    if not wavs:
        raise ValueError("got an empty list of waveforms; expected at least one")
    wavs = [_check_waveform(wav, i, sampling_rate) for i, wav in enumerate(wavs)]
    if not torch.isfinite(torch.cat(wavs)).all():  # synchronises with the GPU once, not for each waveform
        bad = next(i for i, wav in enumerate(wavs) if not torch.isfinite(wav).all())
        raise ValueError(f"waveform {bad} holds NaN or infinite samples")
    return wavs


def _check_waveform(wav, i, sampling_rate):
    wav = as_tensor(wav)
    if wav.dim() != 1:
        raise ValueError(f"waveform {i} has shape {tuple(wav.shape)}; expected one channel, (samples,) at "
                         f"{sampling_rate} Hz: average stereo channels first")
    if len(wav) == 0:
        raise ValueError(f"waveform {i} is empty; expected at least one sample")
    if wav.dtype == torch.int16:
        wav = wav.float() / 32768
    if not wav.is_floating_point():
        raise ValueError(f"waveform {i} is {wav.dtype}; expected floating point in [-1, 1], or int16")
    return wav.float()
