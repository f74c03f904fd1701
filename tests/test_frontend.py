"""Log-mel, compared with torchaudio's Kaldi fbank with the recipe's arguments."""

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from ssamba_upstream.frontend import LogMel, check_waveforms
from ssamba_upstream.network.configuration import FrontEnd


def recipe_log_mel(wav):
    fbank = kaldi.fbank(
        wav[None], htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning", num_mel_bins=128,
        dither=0.0, frame_shift=10,
    )
    return (fbank + 4.2677393) / (2 * 4.5689974)


def assert_equals_kaldi(wavs):
    for wav, found in zip(wavs, LogMel()(wavs), strict=True):
        # 1e-4 before normalisation, which divides by 9.1.
        torch.testing.assert_close(found, recipe_log_mel(wav), rtol=0, atol=1e-5)
        assert len(found) == FrontEnd().frames_of(len(wav))


def test_real_speech(speech):
    assert_equals_kaldi(speech)


def test_noise_silence_and_offsets():
    noise = torch.randn(16123) * 0.1
    assert_equals_kaldi([noise, torch.zeros(800), noise[:400], noise[:559], noise + 0.3, noise * 1e-4])


def test_the_recipe_s_mean_removal_changes_nothing():
    wav = torch.randn(16000) * 0.1 + 0.2
    offset, centred = LogMel()([wav, wav - wav.mean()])
    torch.testing.assert_close(offset, centred, rtol=0, atol=1e-4)


def test_too_short_for_a_frame():
    features = LogMel()([torch.randn(399), torch.randn(400)])
    assert [len(f) for f in features] == [0, 1]
    assert LogMel()([torch.randn(10)])[0].shape == (0, 128)


@pytest.mark.parametrize("samples", [5, 1])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", ">i2"])
def test_arrays_that_torch_does_not_take(dtype, samples):
    """Such arrays are reversed, as for audio played backwards, or big-endian, as in SPHERE and AIFF files."""
    array = np.array([1000, -2000, 3000, 4000, 5000], dtype=dtype)[:samples]
    scale = 32768 if dtype == ">i2" else 1
    for given in (array, array[::-1], np.stack([array, array], axis=1)[:, 1], np.flip(array)):
        (found,) = check_waveforms([given])
        assert found.dtype == torch.float32 and found.tolist() == [sample / scale for sample in given.tolist()]


LOWER = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("normalisation", ["data", "clip"])
@pytest.mark.parametrize("dtype", LOWER)
def test_float32_whatever_the_module_s_dtype(dtype, normalisation):
    wavs, front_end = [torch.randn(9000), torch.randn(400)], FrontEnd(normalisation=normalisation)
    module = torch.nn.Sequential(LogMel(front_end))
    expected = [found.clone() for found in module[0](wavs)]
    for changed in (module.to(dtype), module.half(), module.bfloat16(), module.to("cpu", dtype), module.float()):
        assert {buffer.dtype for buffer in changed.buffers()} == {torch.float32}
        for found, right in zip(changed[0](wavs), expected, strict=True):
            assert torch.equal(found, right)
    with torch.autocast("cpu", dtype):
        for found, right in zip(LogMel(front_end)(wavs), expected, strict=True):
            assert torch.equal(found, right)


@pytest.mark.parametrize("dtype", [*LOWER, torch.float64])
def test_float32_whatever_the_default_dtype(set_default_dtype, dtype):
    wav, short = torch.randn(9000), torch.tensor([1000, -2001, 32767], dtype=torch.int16)
    (expected,), (converted,) = LogMel()([wav]), check_waveforms([short])
    set_default_dtype(dtype)
    (found,), (again,) = LogMel()([wav]), check_waveforms([short])
    assert torch.get_default_dtype() == dtype
    assert found.dtype == again.dtype == torch.float32
    assert torch.equal(found, expected) and torch.equal(again, converted)


def test_many_frames_are_transformed_in_parts(monkeypatch):
    wavs = [torch.randn(n) for n in (3000, 16000, 400)]
    whole = LogMel()(wavs)
    monkeypatch.setattr("ssamba_upstream.frontend.FRAMES_AT_ONCE", 7)
    for part, expected in zip(LogMel()(wavs), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)


def test_differentiable():
    log_mel = LogMel().double()
    wav = torch.randn(720, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_mel([x])[0].sum(1), wav, atol=1e-4)
    silence = torch.zeros(800, requires_grad=True)
    LogMel()([silence])[0].sum().backward()
    assert torch.isfinite(silence.grad).all()


@pytest.mark.gpu
def test_gpu():
    wav = torch.randn(16000)
    found = LogMel().cuda()([wav.cuda()])[0].cpu()
    torch.testing.assert_close(found, LogMel()([wav])[0], rtol=0, atol=1e-4)
