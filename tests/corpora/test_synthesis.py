"""The source-filter synthesiser: its acoustics, and how learnable its words, voices and styles are."""

import numpy as np
import pytest

from ssamba_upstream.corpora.superb.speech_commands import KEYWORDS
from ssamba_upstream.corpora.synthetic import synthesis
from ssamba_upstream.corpora.synthetic.synthesis import STYLES, WORDS, Style, Voice, draw_voice, noise, record, speak

PLAIN = Voice(pitch=110, tract=1, bandwidth=1, jitter=0.003, breath=0.02, tilt=0, slowness=1)


def spectrum_in_decibels(samples, size=512):
    """Return the mean power spectrum; bins are 16000 / size Hz apart."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::size // 4] * np.hanning(size)
    return 10 * np.log10((np.abs(np.fft.rfft(frames)) ** 2).mean(axis=0) + 1e-12)


def test_equal_states_give_equal_samples():
    first, second, third = (record(speak(["seven"], draw_voice(rng, True), STYLES["happy"], rng), rng)
                            for rng in map(np.random.default_rng, (3, 3, 4)))
    assert np.array_equal(first, second) and not np.array_equal(first[:1000], third[:1000])


@pytest.mark.parametrize("vowel", ["iy", "ae", "aa", "uw"])
@pytest.mark.parametrize("tract", [0.95, 1.15])
def test_vowels_have_their_formants(monkeypatch, vowel, tract):
    monkeypatch.setitem(WORDS, "vowel", " ".join([vowel] * 20))
    voice = Voice(**vars(PLAIN) | {"tract": tract})
    spectrum = spectrum_in_decibels(speak(["vowel"], voice, Style(), np.random.default_rng(0)))
    smooth = np.convolve(spectrum, np.hanning(7)[1:-1] / 3, "same")
    peaks = 16000 / 512 * np.array([i for i in range(4, 120) if smooth[i] == smooth[i - 4:i + 5].max()])
    for formant in np.array(synthesis.PHONES[vowel][0][2:4]) * tract:
        assert np.abs(peaks - formant).min() < 0.12 * formant + 40, (peaks, formant)


@pytest.mark.parametrize("phone, low, high", [("s", 4500, 7000), ("sh", 2500, 4500)])
def test_fricatives_are_noise_in_their_band(monkeypatch, phone, low, high):
    monkeypatch.setitem(WORDS, "hiss", " ".join([phone] * 10))
    spectrum = 10 ** (spectrum_in_decibels(speak(["hiss"], PLAIN, Style(), np.random.default_rng(0))) / 10)
    frequency = np.fft.rfftfreq(512, 1 / 16000)
    assert spectrum[(frequency > low) & (frequency < high)].sum() > 0.7 * spectrum.sum()


@pytest.mark.parametrize("pitch", [100, 220])
def test_voices_have_their_pitch(monkeypatch, pitch):
    monkeypatch.setitem(WORDS, "vowel", " ".join(["aa"] * 20))
    voice, style = Voice(**vars(PLAIN) | {"pitch": pitch}), Style(pitch_range=0)
    speech = speak(["vowel"], voice, style, np.random.default_rng(0))[4000:8000]
    correlation = np.correlate(speech, speech, "full")[len(speech) - 1:]
    period = 40 + np.argmax(correlation[40:320])
    semitones = 12 * np.log2(16000 / period / pitch)
    assert abs(semitones) < 3  # utterances deviate from the voice's pitch with a standard deviation of 1


def test_styles_differ_in_level_and_duration():
    def mean_of(measure, style):
        rng = np.random.default_rng(0)
        return np.mean([measure(speak(["down", "left"], PLAIN, STYLES[style], rng)) for _ in range(20)])

    levels = [mean_of(np.std, style) for style in ("sad", "neutral", "happy", "angry")]
    assert levels == sorted(levels)
    durations = [mean_of(len, style) for style in ("angry", "happy", "neutral", "sad")]
    assert durations == sorted(durations)


def test_words_are_heard_and_finite():
    rng = np.random.default_rng(0)
    for word in WORDS:
        for high in (True, False):
            speech = speak([word], draw_voice(rng, high), STYLES["neutral"], rng)
            assert 1600 < len(speech) < 24000 and np.isfinite(speech).all()
            assert 0.01 < np.sqrt(np.mean(speech**2)) < 0.1 and np.abs(speech).max() < 1


@pytest.mark.parametrize("decibels", [0, 20])
def test_recordings_have_the_asked_length_and_noise(decibels):
    rng = np.random.default_rng(0)
    speech = np.sin(np.arange(8000) / 5)
    starts = set()
    for _ in range(10):
        recording = record(speech, rng, seconds=1, snr=(decibels, decibels))
        assert len(recording) == 16000
        start = np.argmax(np.correlate(recording, speech, "valid"))
        starts.add(start)
        gain = recording[start:start + 8000] @ speech / (speech @ speech)
        rest = recording.copy()
        rest[start:start + 8000] -= gain * speech
        snr = 10 * np.log10(np.mean((gain * speech) ** 2) / np.mean(rest**2))
        assert abs(snr - decibels) < 1
    assert len(starts) > 5
    assert len(record(speech, rng, seconds=0.25)) == 4000
    assert 8800 <= len(record(speech, rng)) < 12800


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_noise_falls_as_asked(colour):
    samples = noise(160000, colour, np.random.default_rng(0))
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(1)
    spectrum = spectrum_in_decibels(samples)
    octaves = np.log2(np.arange(8, 250))
    slope = np.polyfit(octaves, spectrum[8:250], 1)[0]
    assert slope == pytest.approx(-3.01 * colour, abs=0.2)


# A corpus suits tests and demonstrations if a linear model learns it, but not perfectly. SUPERB's head for
# utterance-level tasks is also linear, on features averaged over time.


def linear_accuracy(train, test):
    """Return the accuracy on `test` of ridge regression on time-averaged log spectra; both are (utterances, labels)."""
    (features, labels), (unseen, truth) = (
        (np.array([log_spectrum(utterance) for utterance in utterances]), np.array(labels))
        for utterances, labels in (train, test))
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    features, unseen = ((part - mean) / deviation for part in (features, unseen))
    targets = np.eye(labels.max() + 1)[labels] - 1 / (labels.max() + 1)
    weights = np.linalg.solve(features.T @ features + 10 * np.eye(features.shape[1]), features.T @ targets)
    return np.mean((unseen @ weights).argmax(axis=1) == truth)


def log_spectrum(samples):
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = np.unique(np.geomspace(3, 256, 41).round().astype(int))
    return np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-6).mean(axis=0)


def say(words, voice, style, rng):
    return record(speak(words, voice, STYLES[style], rng), rng)


@pytest.mark.slow
def test_words_are_learnable_by_voices_unheard_and_not_trivial():
    rng = np.random.default_rng(0)

    def utterances(voices):
        voices = [draw_voice(rng, number % 2 == 0) for number in range(voices)]
        spoken = [(say([word], voice, "neutral", rng), label)
                  for voice in voices for label, word in enumerate(KEYWORDS) for _ in range(2)]
        return zip(*spoken)

    assert 0.4 < linear_accuracy(utterances(16), utterances(8)) < 0.97


@pytest.mark.slow
def test_voices_are_learnable_by_words_unheard_and_not_trivial():
    rng = np.random.default_rng(0)
    voices = [draw_voice(rng, number % 2 == 0) for number in range(10)]
    words = list(WORDS)

    def utterances(words, count):
        return zip(*[(say(list(rng.choice(words, 3)), voice, "neutral", rng), label)
                     for label, voice in enumerate(voices) for _ in range(count)])

    assert 0.35 < linear_accuracy(utterances(words[::2], 15), utterances(words[1::2], 10)) < 0.97


@pytest.mark.slow
def test_styles_are_learnable_by_voices_unheard_and_not_trivial():
    rng = np.random.default_rng(0)

    def utterances(voices):
        voices = [draw_voice(rng, number % 2 == 0) for number in range(voices)]
        return zip(*[(say(list(rng.choice(list(WORDS), 3)), voice, style, rng), label)
                     for voice in voices for label, style in enumerate(STYLES) for _ in range(4)])

    assert 0.4 < linear_accuracy(utterances(12), utterances(8)) < 0.95
