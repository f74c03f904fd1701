"""The effects of sox, compared with their definitions, and with sox itself if it is installed."""

import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from ssamba_upstream.plugin.repairs.sox import apply_effects_tensor

SILENCE = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]


@pytest.fixture(scope="module")
def bursts():
    """4 s of noise bursts over faint noise, rounded to PCM-16."""
    time, generator = np.arange(64000), np.random.default_rng(0)
    envelope = (np.sin(time / 5000) > 0.2) * np.abs(np.sin(time / 1300))
    samples = 0.1 * envelope * generator.standard_normal(64000) + 0.0003 * generator.standard_normal(64000)
    return torch.from_numpy(np.round(samples * 2**15) / 2**15).float()[None]


def apply(waveform, *effects):
    result, sample_rate = apply_effects_tensor(waveform, 16000, effects)
    assert sample_rate == 16000
    return result


@pytest.mark.skipif(shutil.which("sox") is None, reason="sox is not installed")
@pytest.mark.parametrize("effect", [
    SILENCE, ["silence", "1", "0.05", "1%", "-1", "0.2", "1%"], ["norm"], ["pad", "0.5", "0.25"],
    ["trim", "0.3", "1.5"], ["reverse"], ["vad", "-T", "0.25", "-p", "0.1"]], ids=" ".join)
def test_equals_sox(bursts, tmp_path, effect):
    given, made = tmp_path / "given.wav", tmp_path / "made.wav"
    soundfile.write(given, bursts[0].numpy(), 16000, subtype="PCM_16")
    subprocess.run(["sox", "-D", given, "-b", "16", made, *effect], check=True, capture_output=True)
    expected = soundfile.read(made, dtype="float32")[0]
    np.testing.assert_allclose(apply(bursts, effect)[0].numpy(), expected, atol=1.5 / 2**15)


def silence_sample_by_sample(samples, sound, silence, level, window=320):
    """Apply the definition, one sample at a time."""
    kept, held, ring, searching = [], [], [0.0] * window, True
    for sample in samples:
        ring = [*ring[1:], sample ** 2]
        loud = np.sqrt(sum(ring) / window) > level
        if searching:
            held = [*held, sample] if loud else []
            if len(held) == sound:
                kept, held, searching = kept + held, [], False
        elif loud:
            kept, held = [*kept, *held, sample], []
        else:
            held.append(sample)
            if len(held) == silence:
                held, ring, searching = [], [0.0] * window, True
    return kept if searching else kept + held


def test_silence_by_its_definition():
    generator = np.random.default_rng(1)
    samples = 0.1 * generator.standard_normal(6000) * np.repeat([0, 1, 0, 1, 1, 0], 1000)
    found = apply(torch.from_numpy(samples)[None], ["silence", "1", "0.02", "1%", "-1", "0.03", "1%"])
    np.testing.assert_array_equal(found[0].numpy(), silence_sample_by_sample(samples, 320, 480, 0.01))


def test_silence_of_silence_is_nothing():
    assert apply(torch.zeros(1, 5000), SILENCE).shape == (1, 0)


def test_norm_pad_trim_and_reverse():
    waveform = torch.linspace(-0.5, 0.25, 1600)[None]
    assert apply(waveform, ["norm"]).abs().max() == 1
    torch.testing.assert_close(apply(waveform, ["norm"]), 2 * waveform)
    assert torch.equal(apply(torch.zeros(1, 10), ["norm"]), torch.zeros(1, 10))
    padded = apply(waveform, ["pad", "0.05", "0.1"])
    assert torch.equal(padded[:, 800:2400], waveform) and padded.size(1) == 4000 and padded[:, :800].abs().max() == 0
    assert torch.equal(apply(waveform, ["trim", "0.01", "0.05"]), waveform[:, 160:960])
    assert torch.equal(apply(waveform, ["reverse"]), waveform.flip(-1))
