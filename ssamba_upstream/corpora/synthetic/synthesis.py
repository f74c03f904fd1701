"""Speech-like sounds from a source-filter model, for corpora that need no download.

A voice is a glottal pulse train with breath noise. A phone shapes it with the resonances of a vocal tract, or adds the
noise of a narrow constriction. A speaking style changes pitch, rate, loudness and spectral tilt. In outline, this is
the cascade synthesiser of Klatt (1980) with the glottal pulse of Klatt and Klatt (1990), implemented on frames of 5 ms
as magnitudes in the frequency domain: a second of speech takes a few milliseconds.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from ...audio import SAMPLE_RATE

HOP = 80
WINDOW = 4 * HOP
FRAME = 6 * HOP  # the window plus half a window for the ringing of the filters
SPEECH_RMS = 0.03

# One row per segment: duration (ms); formants F1, F2, F3 (Hz); amplitudes of voicing, breath and friction;
# centre of the friction noise (Hz). A diphthong is two segments; a stop is a closure and a burst.
_SILENT = (0, 0, 0, 0)
PHONES = {
    "iy": [(130, 280, 2250, 2950, 1, 0, 0, 0)],
    "ih": [(100, 400, 1950, 2550, 1, 0, 0, 0)],
    "eh": [(120, 550, 1800, 2500, 1, 0, 0, 0)],
    "ae": [(140, 680, 1700, 2420, 1, 0, 0, 0)],
    "ah": [(110, 640, 1200, 2400, 1, 0, 0, 0)],
    "aa": [(150, 740, 1100, 2450, 1, 0, 0, 0)],
    "ao": [(150, 580, 860, 2420, 1, 0, 0, 0)],
    "uw": [(130, 310, 880, 2240, 1, 0, 0, 0)],
    "er": [(130, 480, 1350, 1700, 1, 0, 0, 0)],
    "ow": [(90, 540, 950, 2400, 1, 0, 0, 0), (90, 380, 820, 2300, 1, 0, 0, 0)],
    "ay": [(100, 740, 1200, 2450, 1, 0, 0, 0), (90, 380, 2050, 2600, 1, 0, 0, 0)],
    "aw": [(100, 740, 1250, 2450, 1, 0, 0, 0), (90, 400, 900, 2300, 1, 0, 0, 0)],
    "y": [(60, 270, 2250, 2950, 0.6, 0, 0, 0)],
    "w": [(70, 290, 650, 2200, 0.6, 0, 0, 0)],
    "r": [(70, 330, 1100, 1500, 0.6, 0, 0, 0)],
    "l": [(70, 340, 1050, 2800, 0.6, 0, 0, 0)],
    "n": [(80, 260, 1450, 2500, 0.35, 0, 0, 0)],
    "m": [(80, 250, 1000, 2200, 0.35, 0, 0, 0)],
    "h": [(70, 500, 1500, 2500, 0, 0.5, 0, 0)],
    "f": [(100, 400, 1100, 2300, 0, 0, 0.10, 6500)],
    "v": [(70, 300, 1100, 2300, 0.3, 0, 0.06, 6500)],
    "s": [(120, 350, 1750, 2600, 0, 0, 0.40, 5800)],
    "sh": [(120, 350, 1850, 2500, 0, 0, 0.45, 3400)],
    "p": [(60, 350, 900, 2200, *_SILENT), (25, 400, 900, 2200, 0, 0.3, 0.20, 900)],
    "t": [(60, 350, 1750, 2650, *_SILENT), (30, 350, 1750, 2650, 0, 0.2, 0.45, 4600)],
    "k": [(60, 350, 2000, 2300, *_SILENT), (35, 350, 2000, 2300, 0, 0.3, 0.40, 2100)],
    "b": [(60, 250, 900, 2200, 0.12, 0, 0, 0), (12, 300, 900, 2200, 0.3, 0, 0.15, 900)],
    "d": [(60, 250, 1750, 2650, 0.12, 0, 0, 0), (15, 300, 1750, 2650, 0.3, 0, 0.30, 4600)],
    "g": [(60, 250, 2000, 2300, 0.12, 0, 0, 0), (20, 300, 2000, 2300, 0.3, 0, 0.30, 2100)],
    "pause": [(60, 500, 1500, 2500, *_SILENT)],
}

# The ten keywords of Speech Commands, then other words of the same corpus.
WORDS = {
    "yes": "y eh s", "no": "n ow", "up": "ah p", "down": "d aw n", "left": "l eh f t",
    "right": "r ay t", "on": "aa n", "off": "ao f", "stop": "s t aa p", "go": "g ow",
    "bed": "b eh d", "bird": "b er d", "cat": "k ae t", "dog": "d ao g", "five": "f ay v",
    "happy": "h ae p iy", "house": "h aw s", "marvin": "m aa r v ih n", "seven": "s eh v ah n",
    "sheila": "sh iy l ah", "six": "s ih k s", "two": "t uw", "wow": "w aw",
}


@dataclass(frozen=True)
class Voice:
    """A speaker's constant properties.

    Attributes:
        pitch: mean fundamental frequency in Hz.
        tract: factor on every formant (1 is a vocal tract of about 17 cm; shorter tracts have larger factors).
        bandwidth: factor on the bandwidths of the resonances.
        jitter: standard deviation of the pitch from frame to frame, as a fraction.
        breath: amplitude of the breath noise relative to the voicing.
        tilt: attenuation above 500 Hz, in dB per octave.
        slowness: factor on every duration.
    """

    pitch: float
    tract: float
    bandwidth: float
    jitter: float
    breath: float
    tilt: float
    slowness: float


@dataclass(frozen=True)
class Style:
    """A speaking style, such as a mood.

    Attributes:
        pitch: factor on the voice's pitch.
        pitch_range: excursion of the intonation in semitones.
        slowness: factor on every duration.
        gain: level in dB.
        tilt: attenuation above 500 Hz in addition to the voice's own, in dB per octave.
    """

    pitch: float = 1.0
    pitch_range: float = 2.0
    slowness: float = 1.0
    gain: float = 0.0
    tilt: float = 0.0


STYLES = {
    "neutral": Style(),
    "happy": Style(pitch=1.4, pitch_range=6.0, slowness=0.9, gain=2.0, tilt=-1.0),
    "angry": Style(pitch=1.15, pitch_range=3.5, slowness=0.8, gain=7.0, tilt=-4.0),
    "sad": Style(pitch=0.85, pitch_range=1.0, slowness=1.35, gain=-6.0, tilt=4.0),
}


def draw_voice(rng: np.random.Generator, high: bool) -> Voice:
    """Draw a speaker with the pitch and vocal tract of a typical woman (``high``) or man."""
    pitch, tract = (205, 1.13) if high else (118, 0.98)
    return Voice(
        pitch=pitch * rng.lognormal(0, 0.13),
        tract=tract * rng.lognormal(0, 0.045),
        bandwidth=rng.uniform(0.8, 1.6),
        jitter=rng.uniform(0.005, 0.02),
        breath=rng.uniform(0.02, 0.25),
        tilt=rng.uniform(0, 4),
        slowness=rng.lognormal(0, 0.1),
    )


def speak(words: list[str], voice: Voice, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Synthesise some words.

    Args:
        words: keys of ``WORDS``.
        voice, style: the voice and speaking style; each utterance varies both slightly at random.
        rng: source of all randomness; the same state gives the same samples.

    Returns:
        (n,) float64 samples at 16 kHz without background noise, with a root mean square of about 0.03.
    """
    tracks = _control_tracks(words, voice, style, rng)
    formants, (voicing, breath, friction), centre = tracks[:, :3], tracks[:, 3:6].T, tracks[:, 6]

    count = len(tracks) * HOP
    breath = breath + voicing * voice.breath
    throat = _upsample(voicing) * _glottal_pulses(len(tracks), voice, style, rng)
    throat += _upsample(breath) * 0.3 * rng.standard_normal(count)
    constriction = _upsample(friction) * rng.standard_normal(count)

    tilt = voice.tilt + style.tilt + rng.normal(0, 1)
    spectra = _spectra(throat) * _vocal_tract(formants, voice) * _tilt(tilt)
    spectra += _spectra(constriction) * _friction_band(centre * voice.tract)
    speech = _overlap_add(spectra)
    level = SPEECH_RMS * 10 ** ((style.gain + rng.normal(0, 1.5)) / 20)
    return speech * level / sqrt(np.mean(speech**2))


def record(speech: np.ndarray, rng: np.random.Generator, seconds: float | None = None,
           snr: tuple[float, float] = (10, 30)) -> np.ndarray:
    """Place an utterance at a random position in a noisy recording.

    Args:
        speech: (n,) samples at 16 kHz.
        rng: source of all randomness.
        seconds: length of the recording; excess speech is cut off. None: the utterance and at most 0.3 s around it.
        snr: bounds of the signal-to-noise ratio in dB, which is drawn uniformly.

    Returns:
        (n,) float64 samples at 16 kHz.
    """
    length = round(seconds * SAMPLE_RATE) if seconds else len(speech) + rng.integers(800, 4800)
    speech = speech[:length]
    start = rng.integers(0, length - len(speech), endpoint=True)
    recording = noise(length, rng.uniform(0, 2), rng)
    recording *= sqrt(np.mean(speech**2)) * 10 ** (-rng.uniform(*snr) / 20)
    recording[start:start + len(speech)] += speech
    return recording * 10 ** (rng.normal(0, 2) / 20)


def noise(length: int, colour: float, rng: np.random.Generator) -> np.ndarray:
    """Return (length,) noise with root mean square 1 whose power falls as 1 / frequency ** colour (0 is white)."""
    size = 2 ** int(length).bit_length()  # a length with a large prime factor would take ten times as long
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    shaped = np.fft.irfft(spectrum * np.maximum(frequency, 50) ** (-colour / 2), size)[:length]
    return shaped / sqrt(np.mean(shaped**2))


def _control_tracks(words, voice, style, rng) -> np.ndarray:
    """Return (frames, 7): the segments' columns after the first, held for their durations and smoothed."""
    phones = " pause ".join(WORDS[word] for word in words).split()
    segments = np.array([segment for phone in phones for segment in PHONES[phone]], float)
    slowness = voice.slowness * style.slowness * rng.lognormal(0, 0.12)
    durations = segments[:, 0] * slowness * rng.lognormal(0, 0.15, len(segments))
    segments[:, 1:4] *= voice.tract * rng.lognormal(0, 0.04, (len(segments), 3))
    segments[:, 4:7] *= rng.lognormal(0, 0.25, (len(segments), 3))
    frames = np.maximum(durations * SAMPLE_RATE / 1000 / HOP, 2).round().astype(int)
    tracks = np.repeat(segments[:, 1:], frames, axis=0)
    # The tongue takes about 50 ms from one position to the next; voicing and noise start and stop faster.
    for column in range(3):
        tracks[:, column] = _smooth(tracks[:, column], 11, "edge")
    for column in range(3, 6):
        tracks[:, column] = _smooth(tracks[:, column], 3, "constant")
    return tracks


def _smooth(track, width, mode) -> np.ndarray:
    kernel = np.hanning(width + 2)[1:-1]
    return np.convolve(np.pad(track, width // 2, mode), kernel / kernel.sum(), "valid")


def _upsample(track) -> np.ndarray:
    return np.interp(np.arange(len(track) * HOP) / HOP, np.arange(len(track)), track)


def _glottal_pulses(frames, voice, style, rng) -> np.ndarray:
    """Return (frames * HOP,): the derivative of the glottal flow, with a falling, undulating pitch."""
    time = np.arange(frames) * HOP / SAMPLE_RATE
    wave = np.sin(2 * np.pi * (rng.uniform() + rng.uniform(0.8, 2.0) * time))
    semitones = style.pitch_range * (0.7 * wave - time / time[-1]) + rng.normal(0, 1)
    pitch = voice.pitch * style.pitch * 2 ** (semitones / 12)
    pitch = pitch * (1 + voice.jitter * rng.standard_normal(frames))
    cycles = np.cumsum(_upsample(pitch)) / SAMPLE_RATE
    shimmer = rng.lognormal(0, 0.08, int(cycles[-1]) + 1)
    phase = cycles % 1
    open_quotient = 0.6
    pulse = np.where(phase < open_quotient, phase * (2 - 3 * phase / open_quotient), 0)
    return pulse * shimmer[cycles.astype(int)]


_FREQUENCIES = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)


def _vocal_tract(formants, voice) -> np.ndarray:
    """Return (frames, bins): the magnitude of five resonators in cascade; the upper two are fixed."""
    upper = np.broadcast_to(np.array([3500, 4500]) * voice.tract, (len(formants), 2))
    resonances = np.hstack([formants, upper]).T[:, :, None]
    damping = 1
    for resonance, width in zip(resonances, (70, 100, 140, 220, 300)):
        detuning = 1 - (_FREQUENCIES / resonance) ** 2
        loss = width * voice.bandwidth * _FREQUENCIES / resonance**2
        damping = damping * (detuning**2 + loss**2)
    return 1 / np.sqrt(damping)


def _tilt(decibels_per_octave) -> np.ndarray:
    return (np.maximum(_FREQUENCIES, 500) / 500) ** (-decibels_per_octave / 6.02)


def _friction_band(centre) -> np.ndarray:
    return np.exp(-0.5 * ((_FREQUENCIES - centre[:, None]) / 1100) ** 2)


def _spectra(signal) -> np.ndarray:
    """Return (frames, bins): windowed spectra, with frame i centred on sample i * HOP."""
    window = np.zeros(FRAME)
    window[HOP:-HOP] = 0.5 * np.hanning(WINDOW + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(signal, FRAME // 2), FRAME)[:len(signal):HOP]
    return np.fft.rfft(frames * window)


def _overlap_add(spectra) -> np.ndarray:
    frames = np.fft.irfft(spectra, FRAME)
    signal = np.zeros((len(frames) + FRAME // HOP) * HOP)
    for block in range(FRAME // HOP):
        signal[block * HOP:(block + len(frames)) * HOP] += frames[:, block * HOP:(block + 1) * HOP].ravel()
    return signal[FRAME // 2:FRAME // 2 + len(frames) * HOP]
