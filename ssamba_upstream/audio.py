"""Audio files -> waveforms."""

import math
import os
from functools import lru_cache

import soundfile
import torch
from torchaudio.transforms import Resample

from .frontend import SAMPLE_RATE

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")

UNKNOWN_LENGTH = 2 ** 63 - 1
"""The frames of a file whose header leaves them open, as libsndfile counts them."""

LARGEST_RESAMPLER = 2 ** 24
"""Weights of a resampling filter. Real rates need far fewer; a damaged header can ask for more than there is memory."""


def read_clip(file, samples=None, crop="centre") -> torch.Tensor:
    """At most `samples` samples of an audio file, as mono float32 at 16 kHz.

    Only what is needed is read and resampled; the mean of the channels is taken.

    Args:
        file: a path, or an open binary file.
        samples: the longest clip, in samples at 16 kHz. Default: the whole file.
        crop: which part of a longer file: ``"centre"``, ``"start"``, or a random.Random or numpy Generator that draws
            it uniformly.

    Raises:
        OSError, RuntimeError, ValueError: the file cannot be read, or holds no samples, or some that are not finite.
    """
    with soundfile.SoundFile(file if hasattr(file, "read") else os.fsencode(file)) as audio:
        if audio.frames == UNKNOWN_LENGTH:
            raise ValueError("does not say how long it is; encode it anew")
        rate = audio.samplerate
        wanted = audio.frames if samples is None else math.ceil(samples * rate / SAMPLE_RATE)
        channels = _read_part(audio, wanted, crop)
    clip = torch.from_numpy(channels.mean(axis=1))
    if not len(clip):
        raise ValueError("holds no samples")
    if rate != SAMPLE_RATE:
        clip = resampler(rate)(clip)[:samples]
    if not clip.isfinite().all():
        raise ValueError("holds samples that are not finite")
    return clip


def _read_part(audio, wanted, crop):
    spare = max(0, audio.frames - wanted)
    starts = {"start": 0, "centre": spare // 2}
    start = starts[crop] if isinstance(crop, str) else int(crop.random() * (spare + 1))
    lead = 0 if audio.seekable() else start
    if audio.subtype.startswith("MPEG"):
        # An MP3 frame takes bits from those before it: just after a seek, what is decoded is garbled.
        lead = min(start, audio.samplerate)
    if audio.seekable():
        audio.seek(start - lead)
    return audio.read(lead + wanted, dtype="float32", always_2d=True)[lead:]


def batches_by_length(lengths, seconds):
    """Yields indices of recordings, longest first, in runs of at most so many seconds together, or of one.

    Args:
        lengths: of the recordings, in seconds.
        seconds: the longest batch.
    """
    batch, total = [], 0.0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and total + lengths[i] > seconds:
            yield batch
            batch, total = [], 0.0
        batch.append(i)
        total += lengths[i]
    if batch:
        yield batch


@lru_cache(maxsize=32)
def resampler(rate):
    """From a rate in Hz to 16 kHz."""
    if rate * SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) ** 2 > LARGEST_RESAMPLER:
        raise ValueError(f"a rate of {rate} Hz cannot be brought to {SAMPLE_RATE} Hz; resample the file first")
    return Resample(rate, SAMPLE_RATE)
