"""SsambaFeatureExtractor, compared with LogMel and torchaudio's Kaldi fbank."""

import json

import numpy as np
import pytest
import torch

# Imported after ssamba_upstream, which repairs torchaudio for them.
from torchaudio.compliance import kaldi
from transformers import AutoFeatureExtractor

from ssamba_upstream import SsambaConfig, SsambaFeatureExtractor, feature_extraction
from ssamba_upstream.frontend import LogMel

ESC50 = {"mean": -6.6268077, "std": 5.358466}


def recipe(wav, frames, mean=-4.2677393, std=4.5689974):
    """Return the published steps' result: fbank, padded with zeros or cut, then normalised. The published code first
    subtracts the mean; the front end's tests show that this changes nothing."""
    fbank = kaldi.fbank(
        wav[None], htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )
    padded = torch.nn.ZeroPad2d((0, 0, 0, max(0, frames - len(fbank))))(fbank)[:frames]
    return (padded - mean) / (std * 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_whatever_torch_s_default_dtype_and_autocast(set_default_dtype, dtype):
    wav = torch.randn(9000)
    expected = SsambaFeatureExtractor(max_length=64)(wav.tolist())["input_values"]
    with torch.autocast("cpu", dtype):
        assert np.array_equal(SsambaFeatureExtractor(max_length=64)(wav.tolist())["input_values"], expected)
    feature_extraction._log_mel.cache_clear()
    set_default_dtype(dtype)
    found = SsambaFeatureExtractor(max_length=64)(wav.tolist())["input_values"]
    assert found.dtype == np.float32 and np.array_equal(found, expected)


@pytest.mark.parametrize("statistics", [{}, ESC50])
@pytest.mark.parametrize("frames", [64, 100, 512])
def test_the_recipe(frames, statistics):
    wavs = [torch.randn(n) * 0.1 for n in (400, 16000, 16240, 50000)]
    found = SsambaFeatureExtractor(max_length=frames, **statistics)(
        wavs, 16000, return_tensors="pt", truncation=True)
    assert list(found) == ["input_values"]
    assert found.input_values.shape == (4, frames, 128) and found.input_values.dtype == torch.float32
    for clip, wav in zip(found.input_values, wavs):
        torch.testing.assert_close(clip, recipe(wav, frames, **statistics), rtol=0, atol=1e-5)


def test_real_speech(speech):
    found = SsambaFeatureExtractor(max_length=40)(speech, return_tensors="pt", truncation=True).input_values
    for clip, features, wav in zip(found, LogMel()(speech), speech, strict=True):
        assert torch.equal(clip[: len(features)], features[:40])
        torch.testing.assert_close(clip, recipe(wav, 40), rtol=0, atol=1e-5)


def test_a_default_clip_is_ten_seconds():
    found = SsambaFeatureExtractor()(np.zeros(160000, dtype="float32"))
    assert {name: type(value) for name, value in found.items()} == {"input_values": np.ndarray,
                                                                    "window_lengths": np.ndarray}
    assert found["input_values"].shape == (1, 1024, 128) and found["window_lengths"].tolist() == [[160000]]
    # Raw log-mel of silence is the logarithm of the smallest float32; of padding, zero.
    silence, padding = (np.log(2.0**-23) + 4.2677393) / 9.1379948, 4.2677393 / 9.1379948
    np.testing.assert_allclose(found["input_values"][0, :998], silence, rtol=1e-5)
    np.testing.assert_allclose(found["input_values"][0, 998:], padding, rtol=1e-6)


@pytest.mark.parametrize("truncation", [False, True])
def test_arguments_of_other_extractors_are_ignored(truncation):
    """transformers' ASTFeatureExtractor ignores them too, so code for any audio model runs."""
    wavs, extract = [torch.randn(4000), torch.randn(16000)], SsambaFeatureExtractor(max_length=24)
    expected = extract(wavs, 16000, return_tensors="pt", truncation=truncation)
    found = extract(wavs, sampling_rate=16000, return_tensors="pt", truncation=truncation, padding="max_length",
                    max_length=16000, pad_to_multiple_of=8, return_attention_mask=True)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_clips_of_whole_seconds():
    """300 frames extend 240 samples beyond three seconds, but a per-second classifier is trained on three seconds."""
    extractor, wav = SsambaFeatureExtractor(max_length=300, whole_seconds=True), torch.randn(2 * 48_000 + 100) * 0.1
    assert (extractor.clip_samples, SsambaFeatureExtractor(max_length=300).clip_samples) == (48_000, 48_240)
    found = extractor(wav, return_tensors="pt")
    assert found.window_lengths.tolist() == [[48_000, 48_000, 100]]
    windows = found.input_values.unflatten(1, (3, 300))[0]
    for window, part in zip(windows, wav.split(48_000)):
        torch.testing.assert_close(window, LogMel().fixed_length([part], 300)[0])
    assert torch.equal(extractor(wav, return_tensors="pt", truncation=True).input_values[0], windows[0])
    assert SsambaFeatureExtractor.from_dict(extractor.to_dict()).whole_seconds
    with pytest.raises(ValueError, match="99 frames, less than a second. Give at least 100"):
        SsambaFeatureExtractor(max_length=99, whole_seconds=True)(wav)


def test_a_clip_shorter_than_a_frame_is_still_heard():
    wav = torch.randn(100)
    found = SsambaFeatureExtractor(max_length=16)(wav, return_tensors="pt").input_values[0]
    whole = torch.nn.functional.pad(wav, (0, 300))
    torch.testing.assert_close(found[:1], LogMel()([whole])[0])
    assert (found[1:] == found[1, 0]).all() and (found[0] != found[1, 0]).any()


@pytest.mark.parametrize("normalisation", ["data", "clip"])
def test_longer_recordings_are_windows(normalisation):
    extract = SsambaFeatureExtractor(max_length=50, normalisation=normalisation)
    window = 49 * 160 + 400
    wavs = [torch.randn(length) for length in (40 * window + 100, window, 2 * window + 1)]
    found = extract(wavs, return_tensors="pt")
    assert found.input_values.shape == (3, 41 * 50, 128) and found.window_lengths.shape == (3, 41)
    for wav, clips, lengths in zip(wavs, found.input_values.unflatten(1, (41, 50)), found.window_lengths):
        parts = wav.split(window)
        assert lengths.tolist() == [len(part) for part in parts] + [0] * (41 - len(parts))
        for clip, part in zip(clips, parts):
            torch.testing.assert_close(clip, extract(part, return_tensors="pt").input_values[0])


def test_what_a_waveform_may_be():
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    extract = SsambaFeatureExtractor(max_length=50)
    whole = (wav * 32768).astype(np.int16)
    expected = extract(whole.astype(np.float32) / 32768)["input_values"]
    for same in (whole, torch.from_numpy(whole), [whole], (whole / 32768).astype(np.float64)):
        np.testing.assert_allclose(extract(same)["input_values"], expected, atol=1e-6)
    assert extract([wav, wav[:5000]])["input_values"].shape == (2, 50, 128)


def test_batches_as_transformers_takes_them():
    wavs = torch.rand(3, 4000) - 0.5
    extract = SsambaFeatureExtractor(max_length=24)
    expected = extract(list(wavs))["input_values"]
    for same in (wavs, wavs.numpy(), wavs.tolist(), [wav[None] for wav in wavs], [wav.numpy()[None] for wav in wavs]):
        np.testing.assert_array_equal(extract(same)["input_values"], expected)
    for same in (wavs[0], wavs[:1], wavs[0].tolist(), tuple(wavs[0].tolist()), list(wavs[0].numpy()),
                 wavs.flip(1).numpy()[:1, ::-1], [wavs[0].numpy().astype(">f4")]):
        np.testing.assert_array_equal(extract(same)["input_values"], expected[:1])


@pytest.mark.parametrize("wavs, message", [
    ([], "empty list of waveforms"),
    (np.zeros(0, dtype="float32"), "waveform 0 is empty"),
    (np.zeros((16000, 2), dtype="float32"), r"waveform 0 has shape \(16000, 2\); expected one channel"),
    ([np.zeros((2, 16000), dtype="float32")], r"waveform 0 has shape \(2, 16000\); expected one channel"),
    (torch.zeros(1, 2, 800), r"waveform 0 has shape \(1, 2, 800\)"),
    ([1, 0, -1], "waveform 0 is torch.int64"),
    ([torch.zeros(800), torch.zeros(800, 2)], r"waveform 1 has shape \(800, 2\).*average stereo channels"),
    ([torch.zeros(800), torch.tensor([0.0, float("nan")])], "waveform 1 holds NaN"),
    (torch.zeros(800, dtype=torch.int64), "waveform 0 is torch.int64"),
])
def test_waveforms_that_cannot_be_read(wavs, message):
    with pytest.raises(ValueError, match=message):
        SsambaFeatureExtractor()(wavs)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="sampling_rate is 44100 Hz; expected 16000 Hz"):
        SsambaFeatureExtractor()(np.zeros(16000, dtype="float32"), sampling_rate=44100)
    with pytest.raises(ValueError, match="sampling_rate is 16000 Hz; expected 22050 Hz"):
        SsambaFeatureExtractor(sampling_rate=22050)(np.zeros(22050, dtype="float32"), sampling_rate=16000)
    with pytest.raises(ValueError, match="rise, from 0 to half the sampling rate, 4000 Hz; .* highest_frequency 8000"):
        SsambaFeatureExtractor(sampling_rate=8000, highest_frequency=8000)
    with pytest.raises(ValueError, match="max_length must be at least one frame; got 0"):
        SsambaFeatureExtractor(max_length=0)
    with pytest.raises(ValueError, match="log_mel_std must be above 0; got 0"):
        SsambaFeatureExtractor(std=0)


def test_saving_and_loading(tmp_path):
    extract = SsambaFeatureExtractor(max_length=512, num_mel_bins=64, **ESC50)
    extract.save_pretrained(tmp_path)
    SsambaConfig(num_mel_bins=64).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert fields["max_length"] == 512 and fields["mean"] == ESC50["mean"]
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype("float32")
    for loaded in (SsambaFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert type(loaded) is SsambaFeatureExtractor and loaded.to_dict() == extract.to_dict()
        np.testing.assert_array_equal(loaded(wav)["input_values"], extract(wav)["input_values"])
