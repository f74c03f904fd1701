"""What is done to the log-mel of training clips, as published: SpecAugment's masks, noise, and a roll in time.

All chance comes from a generator on the CPU, so that a run is the same on any device.
"""

import torch

from ..devices import send

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
