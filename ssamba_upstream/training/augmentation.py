"""Augmentation of training clips: of waveforms, and of log-mels as published for fine-tuning.

All random numbers come from a generator on the CPU, so runs are the same on any device.
"""

import math

import torch

from ..devices import send

CHANCE = 0.5
"""Probability that a change is applied to a clip."""

LARGEST_NOISE = 0.1
LARGEST_ROLL = 10


def spec_augment(log_mel, frequency, time, fill, generator):
    """Mask a run of mel bands and a run of frames in each clip (SpecAugment, arXiv 1904.08779).

    Widths and positions are drawn for each clip as in torchaudio's FrequencyMasking and TimeMasking: a mask's width is
    uniform in [0, limit), its start uniform in [0, size - width), and both are truncated to integers. A mask is
    therefore narrower than its limit, may be empty, and never reaches the last band or frame.

    Args:
        log_mel: ``(clips, frames, mel)``, on any device; not modified.
        frequency: limit of a mask's width in mel bands; 0 disables it.
        time: limit of a mask's width in frames; 0 disables it.
        fill: value of masked elements. The published code masks before normalising, with a log-mel of 0.
        generator: torch.Generator on the CPU. The number of draws does not depend on the limits.

    Returns:
        (clips, frames, mel).

    Raises:
        ValueError: If a limit is negative or exceeds the clips' size.
    """
    clips, frames, bands = log_mel.shape
    masked = _runs(clips, bands, frequency, "frequency", generator)[:, None, :]
    masked = masked | _runs(clips, frames, time, "time", generator)[:, :, None]
    return log_mel.masked_fill(send(masked, log_mel.device), fill)


def _runs(clips, size, limit, axis, generator):
    """Return boolean masks (clips, size) with one run of True in each row."""
    if not 0 <= limit <= size:
        raise ValueError(f"the limit of {axis} masks must be from 0 to the clips' size, {size}; got {limit}")
    widths, places = torch.rand(2, clips, 1, generator=generator, dtype=torch.float64)
    widths = widths * limit
    starts = (places * (size - widths)).long()
    indices = torch.arange(size)
    return (indices >= starts) & (indices < starts + widths.long())


def noise_and_roll(log_mel, generator):
    """Add noise to each clip and roll it in time.

    The noise is uniform in [0, 1), times a scale drawn for each clip from [0, 0.1). The clip is then rolled by -10 to 9
    frames, with wraparound.

    Args:
        log_mel: ``(clips, frames, mel)``, normalised, on any device; not modified.
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
    """Simulate other rooms, microphones and background sounds; each change is applied to half of the clips.

    Args:
        waveforms: ``(clips, samples)``, zero-padded, on any device; not modified.
        lengths: ``(clips,)``, length of each clip in samples, without padding.
        sampling_rate: sampling rate in Hz.
        kinds: names from :data:`WAVEFORM_CHANGES`; changes are applied in the order of that table.
        generator: torch.Generator on the CPU.

    Returns:
        (clips, samples), zero-padded.
    """
    lengths = send(lengths, waveforms.device).unsqueeze(1)
    audio = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths
    for name in (name for name in WAVEFORM_CHANGES if name in kinds):
        chosen = send(torch.rand(len(waveforms), 1, generator=generator) < CHANCE, waveforms.device)
        changed = WAVEFORM_CHANGES[name](waveforms, sampling_rate, generator)
        waveforms = torch.where(chosen & audio, changed, waveforms)
    return waveforms


def mix_clips(waveforms, sampling_rate, generator):
    """Add another clip of the batch to each clip, 0 to 20 dB below it. A single clip is unchanged."""
    clips = len(waveforms)
    if clips == 1:
        return waveforms
    shift = int(torch.randint(1, clips, (), generator=generator))
    return _add(waveforms, waveforms.roll(shift, 0), _uniform(0, 20, clips, generator))


def reverberate(waveforms, sampling_rate, generator):
    """Add reverberation of a different room to each clip: after the direct sound comes noise that decays by 60 dB in
    0.1 to 0.5 s, with an energy 0 to 15 dB below that of the direct sound."""
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
    """Add noise to each clip, 0 to 30 dB below it. Its power falls with frequency to the power of 0 (white) to 2
    (brown)."""
    clips, samples = waveforms.shape
    fall = _uniform(0, 2, clips, generator)
    spectrum = torch.fft.rfft(torch.randn(clips, samples, generator=generator))
    frequencies = torch.arange(spectrum.shape[1]).clamp(min=1)
    noise = torch.fft.irfft(spectrum * frequencies ** (-fall / 2), samples)
    return _add(waveforms, send(noise, waveforms.device), _uniform(0, 30, clips, generator))


def limit_band(waveforms, sampling_rate, generator):
    """Attenuate each clip below 20 to 500 Hz, and above 2 kHz to half the sampling rate, with the magnitude response
    of fourth-order Butterworth filters and no delay."""
    clips, samples = waveforms.shape
    low = _uniform(math.log(20), math.log(500), clips, generator).exp()
    high = _uniform(math.log(2000), math.log(sampling_rate / 2), clips, generator).exp()
    frequencies = torch.fft.rfftfreq(samples, 1 / sampling_rate)
    gain = ((1 + (frequencies / high) ** 8) * (1 + (low / frequencies.clamp(min=1e-3)) ** 8)).rsqrt()
    return torch.fft.irfft(torch.fft.rfft(waveforms) * send(gain, waveforms.device), samples)


def change_gain(waveforms, sampling_rate, generator):
    """Amplify or attenuate each clip by up to 12 dB."""
    gain = 10 ** (_uniform(-12, 12, len(waveforms), generator) / 20)
    return waveforms * send(gain, waveforms.device)


WAVEFORM_CHANGES = {"mixing": mix_clips, "reverberation": reverberate, "noise": add_noise, "band_limits": limit_band,
                    "gain": change_gain}
"""Changes of :func:`augment_waveforms` by name, in the order in which they occur in a real recording."""


def _uniform(low, high, clips, generator):
    """Draw (clips, 1) uniformly."""
    return low + (high - low) * torch.rand(clips, 1, generator=generator)


def _add(waveforms, others, decibels):
    """Add others, (clips, samples), scaled to an energy the given number of decibels below that of the clips."""
    energies = [sound.square().sum(1, keepdim=True) for sound in (waveforms, others)]
    scale = (energies[0] / energies[1].clamp(min=1e-10)).sqrt() * send(10 ** (-decibels / 20), waveforms.device)
    return waveforms + scale * others
