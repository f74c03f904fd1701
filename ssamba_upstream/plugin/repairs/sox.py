"""``torchaudio.sox_effects`` without libsox, for the effects that s3prl's downstreams use.

The definitions follow sox 14.4.2: ``man sox`` and, for ``silence``, the program's behaviour.
"""

import re

import numpy as np
import torch
import torchaudio

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")

# The closest match to sox's rate effect: it differs by 0.1 % of the signal's rms on speech, 2 % on white noise.
_SOX_FILTER = dict(lowpass_filter_width=64, rolloff=0.96, resampling_method="sinc_interp_kaiser", beta=10.0)


def apply_effects_tensor(tensor, sample_rate, effects, channels_first=True) -> tuple[torch.Tensor, int]:
    """``torchaudio.sox_effects.apply_effects_tensor`` for ``channels``, ``rate``, ``gain``, ``norm``, ``pad``,
    ``trim``, ``reverse``, ``vad`` and ``silence``.

    sox stores 32-bit integers between effects, so values outside [-1, 1] are clipped after each effect.
    ``rate`` resamples to sox's length with a filter close to sox's; ``vad`` is torchaudio's port of sox's.

    Args:
        tensor: (channels, time), or (time, channels) if ``channels_first`` is False.
        sample_rate: sample rate in Hz.
        effects: for example ``[["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]``, with gain in dB and times
            in seconds.

    Returns:
        The waveform, laid out like ``tensor``, and its sample rate.

    Raises:
        NotImplementedError: If an effect or option is not supported.
    """
    waveform = tensor if channels_first else tensor.T
    for effect in effects:
        waveform, sample_rate = _apply_effect(waveform, sample_rate, [str(word) for word in effect])
        waveform = waveform.clamp(-1, 1)
    return (waveform if channels_first else waveform.T), sample_rate


def _apply_effect(waveform, sample_rate, effect):
    match effect:
        case ["channels", "1"]:
            return waveform.mean(dim=0, keepdim=True), sample_rate
        case ["rate", rate] if rate.isdecimal():
            length = int(waveform.size(-1) * int(rate) / sample_rate + 0.5)
            resampled = torchaudio.functional.resample(waveform, sample_rate, int(rate), **_SOX_FILTER)
            return resampled[..., :length], int(rate)
        case ["gain", gain] if NUMBER.fullmatch(gain):
            return waveform * 10 ** (float(gain) / 20), sample_rate
        case ["norm"]:
            return waveform / _nonzero_peak(waveform), sample_rate
        case ["pad", before, after] if NUMBER.fullmatch(before) and NUMBER.fullmatch(after):
            padding = [_samples(before, sample_rate), _samples(after, sample_rate)]
            return torch.nn.functional.pad(waveform, padding), sample_rate
        case ["trim", start, length] if NUMBER.fullmatch(start) and NUMBER.fullmatch(length):
            first = _samples(start, sample_rate)
            return waveform[..., first:first + _samples(length, sample_rate)], sample_rate
        case ["reverse"]:
            return waveform.flip(-1), sample_rate
        case ["vad", "-T", trigger, "-p", before] if NUMBER.fullmatch(trigger) and NUMBER.fullmatch(before):
            return torchaudio.functional.vad(waveform, sample_rate, trigger_time=float(trigger),
                                             pre_trigger_time=float(before)), sample_rate
        case ["silence", "1", begin, begin_percent, "-1", end, end_percent] if (
                NUMBER.fullmatch(begin) and NUMBER.fullmatch(end) and begin_percent == end_percent
                and begin_percent.endswith("%")):
            return _without_silence(waveform, sample_rate, _samples(begin, sample_rate), _samples(end, sample_rate),
                                    float(begin_percent[:-1]) / 100), sample_rate
    raise NotImplementedError(
        f"The sox effect {' '.join(effect)!r} needs torchaudio < 2.9 with libsox. Without libsox, the effects are "
        "'channels 1', 'rate HZ', 'gain DB', 'norm', 'pad SECS SECS', "
        "'trim SECS SECS', 'reverse', 'vad -T SECS -p SECS' and "
        "'silence 1 SECS LEVEL% -1 SECS LEVEL%'.")


def _nonzero_peak(waveform):
    peak = waveform.abs().max() if waveform.numel() else waveform.new_zeros(())
    return torch.where(peak > 0, peak, 1.0)


def _samples(seconds, sample_rate) -> int:
    return int(float(seconds) * sample_rate + 0.5)


def _without_silence(waveform, sample_rate, sound, silence, level):
    """Remove all silences: sound starts with ``sound`` consecutive samples above ``level``, and ends with ``silence``
    below.

    The level is the rms of the last 20 ms, with zeros before the start of the searched part. The samples that end a
    sound and those after them, up to the next sound, are dropped.
    """
    window = sample_rate // 50
    energy = np.concatenate([[0.0], np.cumsum(waveform.double().numpy() ** 2, axis=-1).max(axis=0)])
    starts = np.maximum(np.arange(1, len(energy)) - window, 0)
    above = energy[1:] - energy[starts] > window * level ** 2
    kept, searched = [], 0
    while searched < len(above):
        opening = slice(searched, searched + window)
        above[opening] = energy[1:][opening] - energy[searched] > window * level ** 2
        first = _first_run(above, searched, sound)
        if first is None:
            break
        last = _first_run(~above, first + sound, silence)
        kept.append(waveform[..., first:last])
        searched = len(above) if last is None else last + silence
    return torch.cat(kept, dim=-1) if kept else waveform[..., :0]


def _first_run(flags, start, length) -> int | None:
    """Return the start of the first run of ``length`` or more true values at or after ``start``."""
    edges = np.flatnonzero(np.diff(flags[start:].astype(np.int8), prepend=0, append=0)) + start
    for begin, end in zip(edges[::2], edges[1::2]):
        if end - begin >= length:
            return int(begin)
    return None
