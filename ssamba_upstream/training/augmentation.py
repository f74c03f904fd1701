"""Augmentation of training clips: of their waveforms, and of their log-mel as published for fine-tuning.

All chance comes from a generator on the CPU, so that a run is the same on any device.
"""

import math

import torch

from ..devices import send

CHANCE = 0.5
"""Of each change, for each clip."""

LARGEST_NOISE = 0.1
LARGEST_ROLL = 10


def spec_augment(log_mel, frequency, time, fill, generator):
    """Mask a run of mel bands and a run of frames in each clip (SpecAugment, arXiv 1904.08779).

    Widths and places are drawn for each clip as torchaudio's FrequencyMasking and TimeMasking draw them for one: the
    width of a mask is uniform in [0, its limit), its start uniform in [0, size - width), and both are cut to integers.
    A mask is therefore narrower than its limit, may be empty, and never reaches the last band or frame.

    Args:
        log_mel: ``(clips, frames, mel)``, on any device; not changed.
        frequency: limit of a mask's mel bands; 0 masks none.
        time: limit of a mask's frames; 0 masks none.
        fill: the value of what is masked. The published code masks before it normalises, with a log-mel of 0.
        generator: torch.Generator on the CPU. As many numbers are drawn whatever the limits.

    Returns:
        (clips, frames, mel).

    Raises:
        ValueError: a limit is negative, or more than a clip has.
    """
    clips, frames, bands = log_mel.shape
    masked = _runs(clips, bands, frequency, "frequency", generator)[:, None, :]
    masked = masked | _runs(clips, frames, time, "time", generator)[:, :, None]
    return log_mel.masked_fill(send(masked, log_mel.device), fill)


def _runs(clips, size, limit, axis, generator):
    """(clips, size) of bool: one run in each row."""
    if not 0 <= limit <= size:
        raise ValueError(f"the limit of {axis} masks is from 0 to the clips' {size}; got {limit}")
    widths, places = torch.rand(2, clips, 1, generator=generator, dtype=torch.float64)
    widths = widths * limit
    starts = (places * (size - widths)).long()
    indices = torch.arange(size)
    return (indices >= starts) & (indices < starts + widths.long())


def noise_and_roll(log_mel, generator):
    """Add noise to each clip and roll it in time.

    The noise is uniform in [0, 1) times a scale of the clip's own, uniform in [0, 0.1). A clip is then moved by -10 to
    9 frames; those moved out at an end come in at the other.

    Args:
        log_mel: ``(clips, frames, mel)``, normalised, on any device; not changed.
        generator: torch.Generator on the CPU.

    Returns:
        (clips, frames, mel).
    """
    clips, frames, _ = log_mel.shape
    scales = LARGEST_NOISE * torch.rand(clips, 1, 1, generator=generator)
    shifts = torch.randint(-LARGEST_ROLL, LARGEST_ROLL, (clips, 1), generator=generator)
    noise = scales * torch.rand(log_mel.shape, generator=generator)
    sources = send((torch.arange(frames) - shifts) % frames, log_mel.device)
    return (log_mel + send(noise.to(log_mel.dtype), log_mel.device)).gather(1, sources[:, :, None].expand_as(log_mel))


def augment_waveforms(waveforms, lengths, sampling_rate, kinds, generator):
    """Change clips as other rooms, microphones and neighbours would; each change happens to half of the clips.

    Args:
        waveforms: ``(clips, samples)``, zeros past the ends, on any device; not changed.
        lengths: ``(clips,)``, samples of each clip that are not padding.
        sampling_rate: in Hz.
        kinds: names of :data:`WAVEFORM_CHANGES`, which are made in the order of that table.
        generator: torch.Generator on the CPU.

    Returns:
        (clips, samples), zeros past the ends.
    """
    lengths = send(lengths, waveforms.device).unsqueeze(1)
    heard = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths
    for name in (name for name in WAVEFORM_CHANGES if name in kinds):
        chosen = send(torch.rand(len(waveforms), 1, generator=generator) < CHANCE, waveforms.device)
        changed = WAVEFORM_CHANGES[name](waveforms, sampling_rate, generator)
        waveforms = torch.where(chosen & heard, changed, waveforms)
    return waveforms


def mix_clips(waveforms, sampling_rate, generator):
    """Add to each clip another one of the batch, 0 to 20 dB below it; a single clip stays as it is."""
    clips = len(waveforms)
    if clips == 1:
        return waveforms
    shift = int(torch.randint(1, clips, (), generator=generator))
    return _add(waveforms, waveforms.roll(shift, 0), _uniform(0, 20, clips, generator))


def reverberate(waveforms, sampling_rate, generator):
    """Let each clip sound in a room of its own: behind the direct sound comes noise that falls by 60 dB in 0.1 to
    0.5 s, and whose energy is 0 to 15 dB below that of the direct sound."""
    clips, samples = waveforms.shape
    seconds = torch.arange(1, sampling_rate // 2) / sampling_rate
    tail = torch.randn(clips, len(seconds), generator=generator)
    tail = tail * 10 ** (-3 * seconds / _uniform(0.1, 0.5, clips, generator))
    energy = 10 ** (-_uniform(0, 15, clips, generator) / 10)
    tail = tail * (energy / tail.square().sum(1, keepdim=True)).sqrt()
    response = send(torch.cat([torch.ones(clips, 1), tail], dim=1), waveforms.device)
    size = 2 ** (samples + response.shape[1] - 1).bit_length()
    spectrum = torch.fft.rfft(waveforms, size) * torch.fft.rfft(response, size)
    return torch.fft.irfft(spectrum, size)[:, :samples]


def add_noise(waveforms, sampling_rate, generator):
    """Add noise to each clip, 0 to 30 dB below it, whose power falls with a power of the frequency from 0 (white) to 2
    (brown)."""
    clips, samples = waveforms.shape
    fall = _uniform(0, 2, clips, generator)
    spectrum = torch.fft.rfft(torch.randn(clips, samples, generator=generator))
    frequencies = torch.arange(spectrum.shape[1]).clamp(min=1)
    noise = torch.fft.irfft(spectrum * frequencies ** (-fall / 2), samples)
    return _add(waveforms, send(noise, waveforms.device), _uniform(0, 30, clips, generator))


def limit_band(waveforms, sampling_rate, generator):
    """Weaken each clip below 20 to 500 Hz and above 2 kHz to half the sampling rate, as Butterworth filters of order 4
    do, without a delay."""
    clips, samples = waveforms.shape
    low = _uniform(math.log(20), math.log(500), clips, generator).exp()
    high = _uniform(math.log(2000), math.log(sampling_rate / 2), clips, generator).exp()
    frequencies = torch.fft.rfftfreq(samples, 1 / sampling_rate)
    gain = ((1 + (frequencies / high) ** 8) * (1 + (low / frequencies.clamp(min=1e-3)) ** 8)).rsqrt()
    return torch.fft.irfft(torch.fft.rfft(waveforms) * send(gain, waveforms.device), samples)


def change_gain(waveforms, sampling_rate, generator):
    """Make each clip louder or softer by up to 12 dB."""
    gain = 10 ** (_uniform(-12, 12, len(waveforms), generator) / 20)
    return waveforms * send(gain, waveforms.device)


WAVEFORM_CHANGES = {"mixing": mix_clips, "reverberation": reverberate, "noise": add_noise, "band_limits": limit_band,
                    "gain": change_gain}
"""What :func:`augment_waveforms` can do, by name, in the order in which a recording comes about."""


def _uniform(low, high, clips, generator):
    """(clips, 1)"""
    return low + (high - low) * torch.rand(clips, 1, generator=generator)


def _add(waveforms, others, decibels):
    """Add others, (clips, samples), whose energy is brought to so many decibels below that of the clips."""
    energies = [sound.square().sum(1, keepdim=True) for sound in (waveforms, others)]
    scale = (energies[0] / energies[1].clamp(min=1e-10)).sqrt() * send(10 ** (-decibels / 20), waveforms.device)
    return waveforms + scale * others
