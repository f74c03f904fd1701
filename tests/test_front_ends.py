"""Front ends for other data: everything that reads audio takes the rate, bands, frames and normalisation from the
network's configuration."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file
from torchaudio.compliance import kaldi
from transformers import pipeline

from ssamba_upstream import SsambaConfig, SsambaFeatureExtractor, SsambaForAudioClassification, SsambaModel, hear
from ssamba_upstream.audio import read_clip
from ssamba_upstream.checkpoint import load_model, save_model, write_classifier
from ssamba_upstream.cli import main
from ssamba_upstream.corpora.manifest import ManifestError
from ssamba_upstream.corpora.statistics import LONGEST_CLIP, measure_statistics
from ssamba_upstream.extraction import extract
from ssamba_upstream.finetuning.recipe import FinetuningRecipe
from ssamba_upstream.finetuning.trainer import finetune
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions
from ssamba_upstream.frontend import LogMel
from ssamba_upstream.network.classification import columns_of_seconds
from ssamba_upstream.network.configuration import FrontEnd
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.probing.features import time_averages
from ssamba_upstream.training.recipe import RecipeError
from ssamba_upstream.windows import Windowing

BATS = {"sampling_rate": 22050, "num_mel_bins": 64, "lowest_frequency": 50.0, "highest_frequency": 10000.0,
        "frame_length": 32.0, "frame_shift": 12.0, "log_mel_mean": -6.0, "log_mel_std": 3.0}
NETWORK = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 64}


def kaldi_log_mel(wav):
    return kaldi.fbank(
        wav[None], htk_compat=True, sample_frequency=22050, use_energy=False, window_type="hanning", num_mel_bins=64,
        dither=0.0, low_freq=50.0, high_freq=10000.0, frame_length=32.0, frame_shift=12.0,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SsambaModel(SsambaConfig(**NETWORK, **BATS)).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "bats"
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Recordings at 22.05, 44.1 and 16 kHz."""
    folder, random = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for name, samples, rate in (("a", 22050, 22050), ("b", 30000, 44100), ("c", 16000, 16000)):
        soundfile.write(folder / f"{name}.wav", 0.1 * random.standard_normal(samples), rate)
    return sorted(folder.glob("*.wav"))


def test_the_log_mel_is_kaldis():
    for samples in (705, 22050, 30001):
        wav = torch.randn(samples) * 0.1
        (found,) = LogMel(FrontEnd(**BATS))([wav])
        expected = (kaldi_log_mel(wav) + 6.0) / 6.0
        assert len(found) == FrontEnd(**BATS).frames_of(samples) == len(expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_frames_samples_and_seconds():
    front_end = FrontEnd(**BATS)
    assert (front_end.frame_samples, front_end.shift_samples) == (705, 264)
    assert front_end.samples_of(64) == 705 + 63 * 264 and front_end.frames_of(front_end.samples_of(64)) == 64
    assert front_end.seconds_of(64) == pytest.approx(64 * 264 / 22050)
    assert front_end.frames_in(10) == math.ceil(220500 / 264)
    assert (FrontEnd().frame_samples, FrontEnd().shift_samples, FrontEnd().frames_in(10)) == (400, 160, 1000)


def test_clips_normalised_each_by_itself():
    wavs = [torch.randn(20000), 0.01 * torch.randn(30000)]
    log_mel = LogMel(FrontEnd(normalisation="clip"))
    for alone, wav in zip(log_mel(wavs), wavs):
        torch.testing.assert_close(log_mel([wav])[0], alone)
        torch.testing.assert_close(torch.stack([alone.mean(), alone.std(correction=0)]), torch.tensor([0, 0.5]))
        raw = LogMel(FrontEnd(log_mel_mean=0.0, log_mel_std=0.5))([wav])[0]
        torch.testing.assert_close(alone, (raw - raw.mean()) / (2 * raw.std(correction=0)), rtol=0, atol=1e-4)
    assert log_mel([torch.zeros(16000)])[0].abs().max() < 1e-2
    padded = log_mel.fixed_length(wavs, 150)
    assert (padded[0, 123:] == 0).all() and torch.equal(padded[1], log_mel([wavs[1][:24240]])[0])


@pytest.mark.parametrize("fields, message", [
    ({"sampling_rate": 22050.0}, "sampling_rate must be a whole number from 1; got 22050.0"),
    ({"num_mel_bins": 0}, "num_mel_bins must be a whole number"),
    ({"lowest_frequency": 9000.0}, "half the sampling rate, 8000 Hz; got lowest_frequency 9000.0"),
    ({"highest_frequency": 11025.0}, "got lowest_frequency 20.0 and highest_frequency 11025.0"),
    ({"frame_shift": 0.0}, "frame_shift 1, in milliseconds; got 25.0 and 0.0 at 16000 Hz"),
    ({"normalisation": "batch"}, "normalisation must be one of data, clip; got 'batch'"),
    ({"lowest_frequency": "low"}, "lowest_frequency must be a number; got 'low'"),
    ({"highest_frequency": "high"}, "highest_frequency must be a number or None; got 'high'"),
    ({"log_mel_std": 0.0}, "log_mel_std must be above 0; got 0.0"),
])
def test_front_ends_that_cannot_be(fields, message):
    for made in (FrontEnd, SsambaConfig):
        with pytest.raises(ValueError, match=message):
            made(**fields)


def test_every_field_is_in_the_configuration_the_extractor_and_the_description_of_hidden_states(model):
    front_end = FrontEnd(**BATS, normalisation="clip")
    assert all(value != default for value, default in zip(vars(front_end).values(), vars(FrontEnd()).values()))
    config = SsambaConfig(**NETWORK, **vars(front_end))
    extractor = SsambaFeatureExtractor.for_config(config)
    assert config.front_end == extractor.front_end == front_end
    assert vars(front_end).items() <= config.to_dict().items()
    assert {"mean": -6.0, "std": 3.0, "num_mel_bins": 64, "feature_size": 64}.items() <= extractor.to_dict().items()
    assert BATS.items() <= FrameEncoder(model).description()["network"].items()


def test_hops_and_windows_follow(model):
    windowing = Windowing.for_model(model.config)
    assert windowing.hop == 16 * 264 and windowing.window_samples == 64 * 264 and windowing.columns == 4
    encoder = FrameEncoder(model)
    wavs = [torch.randn(samples) * 0.1 for samples in (1, 4224, 4225, 50000)]
    states = encoder(wavs).last_hidden_state
    assert states.shape == (4, 12, 4 * 32)
    for wav, frames, alone in zip(wavs, (1, 1, 2, 12), states):
        torch.testing.assert_close(encoder([wav]).last_hidden_state[0], alone[:frames], rtol=0, atol=1e-5)
        assert (alone[frames:] == 0).all()


def test_a_window_is_the_network_on_its_log_mel(model):
    wav = torch.randn(FrontEnd(**BATS).samples_of(64)) * 0.1
    fbank = (kaldi_log_mel(wav) + 6.0) / 6.0
    tokens = model(fbank[None]).last_hidden_state[0, 1:].unflatten(0, (4, 4))
    frames = FrameEncoder(model)([wav]).last_hidden_state[0]
    torch.testing.assert_close(frames[:4], tokens.transpose(0, 1).flatten(1), rtol=0, atol=1e-4)


def test_recordings_are_read_at_the_networks_rate(model, checkpoint, recordings, tmp_path):
    clips = [read_clip(recording, sampling_rate=22050) for recording in recordings]
    assert [len(clip) for clip in clips] == [22050, 15000, 22050]
    written, left_out = extract(recordings, checkpoint, tmp_path / "out", dtype="float32", file_format="npy",
                                time_stride=16, frequency_stride=16)
    assert (written, left_out) == (3, 0)
    averages = time_averages(model, recordings)
    for i, (recording, clip) in enumerate(zip(recordings, clips)):
        states = torch.stack(FrameEncoder(model)([clip]).hidden_states)[:, 0]
        found = torch.from_numpy(np.load(tmp_path / "out" / f"{recording.stem}.npy"))
        torch.testing.assert_close(found, states, rtol=0, atol=1e-5)
        torch.testing.assert_close(averages[:, i], states.mean(dim=1), rtol=0, atol=1e-5)


def test_hear_is_told_the_rate(checkpoint):
    heard = hear.load_model(str(checkpoint), time_stride=4)
    assert heard.sample_rate == 22050
    frames, milliseconds = hear.get_timestamp_embeddings(torch.randn(1, 22050) * 0.1, heard)
    assert frames.shape[1] == milliseconds.shape[1] == math.ceil(22050 / (4 * 264))
    torch.testing.assert_close(milliseconds[0, :3], torch.tensor([0.0, 1, 2]) * (1000 * 4 * 264 / 22050))


@pytest.mark.parametrize("frames, sampling_rate", [(501, 22050), (103, 16000)])
def test_clips_of_no_whole_number_of_patches(frames, sampling_rate, recordings, tmp_path):
    """Everything that reads audio uses windows of the clips' length; learned positions cover only whole patches."""
    checkpoint = tmp_path / "checkpoint"
    save_model(SsambaModel(SsambaConfig(**{**NETWORK, "pretraining_frames": frames}, sampling_rate=sampling_rate,
                                        patch_size=[32, 8])), checkpoint)
    seconds = SsambaConfig.from_pretrained(checkpoint).front_end.seconds_of(frames)
    wav = torch.randn(12 * sampling_rate) * 0.1
    for window_secs in (None, seconds):
        encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(window_secs=window_secs)).eval()
        assert encoder.windowing.columns == frames // 8
        count = encoder.windowing.frames(len(wav))
        assert encoder([wav]).last_hidden_state.shape[1] == count > 2 * encoder.windowing.columns
        averages = time_averages(encoder.model, recordings, window_secs)
        assert averages.isfinite().all()
    if sampling_rate == 16000:
        states = UpstreamExpert(str(checkpoint), window_secs=seconds).eval()([wav])["last_hidden_state"]
        torch.testing.assert_close(states, encoder([wav]).last_hidden_state)
    heard = hear.load_model(str(checkpoint))
    assert hear.get_scene_embeddings(wav[None], heard).isfinite().all()


def test_superb_refuses_other_rates(checkpoint):
    with pytest.raises(ValueError, match="bats is for audio at 22050 Hz, but SUPERB uses 16000 Hz"):
        UpstreamExpert(str(checkpoint))


def test_info_says_what_is_heard(checkpoint, capsys):
    assert main(["info", str(checkpoint)]) == 0
    assert ("64 bands of 50 to 10000 Hz at 22050 Hz, 32 ms every 12 ms, mean -6, deviation 3"
            in capsys.readouterr().out)


def test_seconds_of_other_frames():
    fields = {**NETWORK, **BATS, "frame_shift": 10.0, "pretraining_frames": 320}
    counts = columns_of_seconds(SsambaConfig(**fields), 301)
    # At 22.05 kHz, 10 ms is 220 samples: a column of 16 frames lasts 0.1596 s.
    centres = [(16 * column + 8) * 220 / 22050 for column in range(18)]
    assert counts == [sum(second <= centre < second + 1 for centre in centres) for second in range(3)]


@pytest.mark.parametrize("changes", [{}, {"normalisation": "clip", "log_mel_mean": 1.0}])
def test_statistics_are_those_of_the_log_mel(recordings, changes):
    measured = measure_statistics(recordings, FrontEnd(**{**BATS, **changes}), processes=2)
    values = torch.cat([kaldi_log_mel(read_clip(recording, sampling_rate=22050)) for recording in recordings])
    assert measured.frames == len(values) and not measured.unreadable
    assert measured.mean == pytest.approx(values.mean().item(), abs=1e-4)
    assert measured.deviation == pytest.approx(values.std(correction=0).item(), abs=1e-4)


def test_statistics_of_long_and_of_damaged_files(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16000 * 12), 16000)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    measured = measure_statistics([tmp_path / "damaged.wav", tmp_path / "long.wav"], FrontEnd(), processes=1)
    assert measured.frames == LONGEST_CLIP
    assert len(measured.unreadable) == 1 and measured.unreadable[0].startswith(f"{tmp_path / 'damaged.wav'}: ")
    with pytest.raises(ManifestError, match="none of 1 audio files can be read; the first: .*damaged.wav"):
        measure_statistics([tmp_path / "damaged.wav"], FrontEnd(), processes=1)


def test_manifest_statistics(recordings, tmp_path, capsys):
    arguments = ["manifest", str(recordings[0].parent), "--out", str(tmp_path / "out.jsonl"), "--statistics"]
    assert main([*arguments, "sampling_rate=22050", "num_mel_bins=64"]) == 0
    measured = measure_statistics(recordings, FrontEnd(sampling_rate=22050, num_mel_bins=64), processes=1)
    line = f"log_mel_mean={measured.mean:.7g} log_mel_std={measured.deviation:.7g}"
    assert f"log-mel of {measured.frames} frames: {line}" in capsys.readouterr().out
    (tmp_path / "out.jsonl").unlink()
    assert main([*arguments, "bands=64"]) == 1
    assert "--statistics has no field bands. Choose from sampling_rate" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("bands, frames", [(64, 256), (128, 512)])
def test_published_checkpoints_of_other_grids_with_rms_norm(bands, frames, tmp_path):
    """Loads checkpoints that the published code writes for other spectrograms and ``rms_norm=True``."""
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_mel_bins": bands, "pretraining_frames": frames,
              "norm": "rms_norm", "block_order": "paired"}
    model = SsambaModel(SsambaConfig(**fields)).eval()
    official = {f"module.v.{name}": tensor for name, tensor in model.state_dict().items()}
    official |= {"module.p_input_fdim": torch.tensor(bands), "module.p_input_tdim": torch.tensor(frames)}
    save_file(official, tmp_path / "official.safetensors")
    for order in ("paired", "sequential"):
        found = load_model(tmp_path / "official.safetensors", block_order=order, sampling_rate=22050)
        assert found.config.position_grid == (bands // 16, frames // 16) and found.config.norm == "rms_norm"
        assert found.config.front_end == FrontEnd(sampling_rate=22050, num_mel_bins=bands)
        model.config.block_order = order
        fbank = torch.randn(2, frames, bands)
        with torch.no_grad():
            torch.testing.assert_close(found(fbank).last_hidden_state, model(fbank).last_hidden_state)


@pytest.mark.slow
def test_from_manifest_to_classifier_by_command_line(tmp_path, capsys):
    """Pretrains and fine-tunes at 22.05 kHz with 64 bands, and loads the result in transformers."""
    random, rows = np.random.default_rng(0), ["path,label,split"]
    for i in range(12):
        pitch, times = (300, 9000)[i % 2], np.arange(11025 + 500 * i) / 22050
        soundfile.write(tmp_path / f"{i}.wav", 0.2 * np.sin(2 * np.pi * pitch * times) +
                        0.02 * random.standard_normal(len(times)), 22050)
        rows.append(f"{i}.wav,{('low', 'high')[i % 2]},{'test' if i > 7 else 'train'}")
    (tmp_path / "set.csv").write_text("\n".join(rows) + "\n")
    manifest = str(tmp_path / "all.jsonl")
    assert main(["manifest", str(tmp_path), "--out", manifest]) == 0
    pretraining = {"train": manifest, "validation": manifest, "steps": 2, "batch_size": 4, "workers": 0,
                   "model": {**NETWORK, **BATS}}
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(pretraining))
    assert main(["pretrain", str(tmp_path / "pretrain.yaml"), "--out", str(tmp_path / "pretrained")]) == 0
    finetuning = {"data": str(tmp_path / "set.csv"), "problem": "single_label", "clip_frames": 48, "epochs": 12,
                  "batch_size": 4, "learning_rate": 5e-3, "workers": 0, "std": 2.5, "model": {"drop_path_rate": 0.0},
                  "checkpoint": str(tmp_path / "pretrained" / "best"), "decay_start": 12}
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(finetuning))
    assert main(["finetune", str(tmp_path / "finetune.yaml"), "--out", str(tmp_path / "finetuned")]) == 0
    assert "test accuracy 1.0000" in capsys.readouterr().out
    folder = tmp_path / "finetuned" / "last"
    config = SsambaConfig.from_pretrained(folder)
    assert config.front_end == FrontEnd(**{**BATS, "log_mel_std": 2.5}) and config.clip_frames == 48
    extractor = SsambaFeatureExtractor.from_pretrained(folder)
    assert extractor.front_end == config.front_end and extractor.max_length == 48
    assert extractor.to_dict() == SsambaFeatureExtractor.for_config(config).to_dict()
    classify = pipeline("audio-classification", model=str(folder))
    for i, label in ((8, "low"), (9, "high")):
        assert classify(read_clip(tmp_path / f"{i}.wav", sampling_rate=22050).numpy())[0]["label"] == label
    assert "at 22.05 kHz" in (folder / "README.md").read_text()
    pretrained = SsambaFeatureExtractor.from_pretrained(tmp_path / "pretrained" / "best")
    assert pretrained.front_end == FrontEnd(**BATS) and pretrained.max_length == 64
    assert json.loads((folder / "run.json").read_text())["recipe"]["mean"] is None


def test_statistics_are_not_for_clips_normalised_each_by_itself(tmp_path, recordings):
    rows = [f"{recording},{'ab'[i % 2]},{('train', 'train', 'test')[i]}" for i, recording in enumerate(recordings)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    recipe = {"data": str(tmp_path / "set.csv"), "problem": "single_label", "clip_frames": 64, "epochs": 1,
              "mean": -5.0, "model": {**NETWORK, "normalisation": "clip"}}
    with pytest.raises(RecipeError, match="this checkpoint normalises each clip separately. Set both to null"):
        finetune(FinetuningRecipe(**recipe), tmp_path / "run")


@pytest.mark.slow
def test_seconds_are_labelled_at_other_rates(tmp_path):
    random, rows = np.random.default_rng(0), ["path,label,split"]
    for i in range(6):
        labels = ("low", "high") if i % 2 else ("high", "low")
        pitches = np.repeat([{"low": 300, "high": 9000}[label] for label in labels], 22050)
        wave = 0.2 * np.sin(2 * np.pi * pitches * np.arange(44100) / 22050) + 0.02 * random.standard_normal(44100)
        soundfile.write(tmp_path / f"{i}.wav", wave, 22050)
        rows.append(f"{i}.wav,{';'.join(labels)},{'test' if i > 3 else 'train'}")
    (tmp_path / "set.csv").write_text("\n".join(rows) + "\n")
    recipe = {"data": str(tmp_path / "set.csv"), "problem": "per_second", "clip_frames": 168, "epochs": 25,
              "batch_size": 4, "learning_rate": 5e-3, "workers": 0, "decay_start": 25,
              "model": {**NETWORK, **BATS, "pretraining_frames": 176, "time_stride": 16, "frequency_stride": 16}}
    (tmp_path / "seconds.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["finetune", str(tmp_path / "seconds.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["accuracy"] == 1


def test_weights_without_a_configuration_need_their_bands(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    found = load_model(tmp_path / "bare.safetensors", block_order="sequential", num_mel_bins=64)
    assert found.config.position_grid == (4, 4) and found.config.pretraining_frames == 64


def test_a_classifiers_configuration_is_its_feature_extractors(tmp_path):
    model = SsambaForAudioClassification(SsambaConfig(**NETWORK, num_labels=3))
    extractor = SsambaFeatureExtractor(max_length=200, mean=-6.6, std=5.4)
    write_classifier(model, extractor, tmp_path / "saved")
    config = SsambaConfig.from_pretrained(tmp_path / "saved")
    assert config.front_end == extractor.front_end and config.clip_frames == 200
    SsambaForAudioClassification.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    again = SsambaFeatureExtractor.from_pretrained(tmp_path / "again")
    assert again.front_end == extractor.front_end and again.max_length == 200


def test_a_classifier_keeps_the_length_of_its_clips(tmp_path):
    model = SsambaForAudioClassification(SsambaConfig(**NETWORK, num_labels=3, clip_frames=40))
    model.save_pretrained(tmp_path)
    extractor = SsambaFeatureExtractor.from_pretrained(tmp_path)
    assert extractor(np.zeros(16000), truncation=True)["input_values"].shape == (1, 40, 128)
