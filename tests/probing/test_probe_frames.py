"""``ssamba probe-frames`` from aligned recordings to its report, and the probed frames."""

import json
import random

import numpy as np
import pytest
import soundfile
import torch

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.audio import AudioError, read_clip
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.cli import main
from ssamba_upstream.corpora.alignments import RecordingFrame
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions
from ssamba_upstream.frontend import LogMel
from ssamba_upstream.probing import features, study
from ssamba_upstream.probing.cache import cached_frames
from ssamba_upstream.probing.features import iterate_frames, iterate_log_mel_frames

PITCHES = {"low": 250, "middle": 700, "high": 2000}
QUICK = ["-g", "hop_20ms", "--frames", "900", "--device", "cpu"]
SPLITS = ["train"] * 8 + ["dev"] * 2 + ["test"] * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "network.safetensors"
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), path)
    return str(path)


def write_tones(folder, rate=16000, channels=1):
    """Write twelve recordings of ten noisy tones, 0.2 to 0.4 s each; return the rows of their table."""
    generator, rows = np.random.default_rng(0), []
    for number, split in enumerate(SPLITS):
        samples, moment = [], 0.0
        for _ in range(10):
            label, seconds = generator.choice([*PITCHES]), round(generator.uniform(0.2, 0.4), 3)
            samples.append(0.3 * np.sin(2 * np.pi * PITCHES[label] * np.arange(round(seconds * rate)) / rate))
            rows.append([f"{number}.wav", round(moment, 3), round(moment + seconds, 3), label, split])
            moment += seconds
        samples = np.concatenate(samples) + 0.02 * generator.standard_normal(sum(map(len, samples)))
        soundfile.write(folder / f"{number}.wav", np.stack([samples] * channels, axis=1), rate)
    return rows


def write_table(folder, rows, name="tones.csv"):
    lines = ["path,start,end,label,split", *(",".join(map(str, row)) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def results_of(out):
    return json.loads((out / "results.json").read_text())


def best_accuracies(out):
    return [model["test_accuracy"] for model in results_of(out)["models"]]


def test_tones_are_read_from_the_layers_and_the_log_mel(checkpoint, tmp_path, capsys):
    table = write_table(tmp_path, write_tones(tmp_path))
    out = tmp_path / "out"
    assert main(["probe-frames", table, checkpoint, "log-mel", "--out", str(out), *QUICK]) == 0
    results = results_of(out)
    assert results["classes"] == 3 and sum(results["frames"].values()) == 900 and not results["frames_skipped"]
    assert [len(model["layers"]) for model in results["models"]] == [3, 1]
    assert all(accuracy > 0.9 for accuracy in best_accuracies(out)), best_accuracies(out)
    for model in results["models"]:
        for layer in model["layers"]:
            low, high = layer["interval"]
            assert low <= layer["test_accuracy"] <= high
        best = model["layers"][model["best_layers"]["test"]]
        assert best["dev_loss"] == min(layer["dev_loss"] for layer in model["layers"])
    assert "| network.safetensors |" in capsys.readouterr().out
    table = (out / "results.md").read_text()
    assert "of the frames (dev" in table and "| Model | Best layer | Probe | From | To |\n" in table
    assert "over the 2 recordings of the test set." in table and "Weight" not in table
    assert {path.name for path in out.iterdir()} == {"cache", "cka.png", "layers.png", "results.json", "results.md"}


def test_labels_that_say_nothing_are_not_read(checkpoint, tmp_path):
    rows = write_tones(tmp_path)
    labels = random.Random(0).sample(["s", "t"] * (len(rows) // 2), len(rows))
    table = write_table(tmp_path, [[*row[:3], label, row[4]] for row, label in zip(rows, labels)])
    assert main(["probe-frames", table, checkpoint, "log-mel", "--out", str(tmp_path / "out"), *QUICK]) == 0
    assert all(accuracy < 0.7 for accuracy in best_accuracies(tmp_path / "out")), best_accuracies(tmp_path / "out")


def test_a_hop_of_100_ms_is_refused_before_anything_is_computed(checkpoint, tmp_path, capsys):
    table = write_table(tmp_path, write_tones(tmp_path))
    assert main(["probe-frames", table, checkpoint, "--out", str(tmp_path / "out")]) == 1
    assert "a hop of 100 ms skips phones" in (said := capsys.readouterr().err) and "-g hop_20ms" in said
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_unlike_hops_are_refused(checkpoint, tmp_path, capsys):
    front_end = {"frame_shift": 5.0}
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, **front_end)), tmp_path / "5.safetensors")
    table = write_table(tmp_path, write_tones(tmp_path))
    command = ["probe-frames", table, checkpoint, str(tmp_path / "5.safetensors"), "--out", str(tmp_path / "out")]
    assert main([*command, *QUICK]) == 1
    said = capsys.readouterr().err
    assert f"20 ms of {checkpoint}, 10 ms of {tmp_path / '5.safetensors'}" in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_s_own_hop_where_none_is_given(checkpoint, tmp_path, capsys):
    narrow = SsambaConfig(hidden_size=32, num_hidden_layers=2, patch_size=[64, 4])
    save_model(SsambaModel(narrow), tmp_path / "narrow.safetensors")
    command = ["probe-frames", write_table(tmp_path, write_tones(tmp_path)), str(tmp_path / "narrow.safetensors")]
    assert main([*command, "log-mel", "--out", str(tmp_path / "out"), *QUICK[2:]]) == 0
    assert results_of(tmp_path / "out")["options"]["time_stride"] == 4
    assert main([*command, checkpoint, "--out", str(tmp_path / "both")]) == 1
    assert f"default time strides differ: 4 of {command[2]}, 10 of {checkpoint}" in capsys.readouterr().err


def test_recordings_and_segments_that_cannot_be_used(checkpoint, tmp_path, capsys):
    """Recordings are truncated, stereo at another rate, aligned past their end, or of a class that train lacks."""
    rows = write_tones(tmp_path, rate=22050, channels=2)
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    rows += [["torn.wav", 0, 1, "low", "train"], ["11.wav", 60, 61, "low", "test"]]
    rows[-3][3] = "untrained"
    out = tmp_path / "out"
    command = ["probe-frames", write_table(tmp_path, rows), checkpoint, "log-mel", "--out", str(out), *QUICK]
    assert main([*command, "--frames", "100000"]) == 1
    said = capsys.readouterr().err
    assert said.count("skipped: ") == 1 and "torn.wav cannot be read as audio: " in said
    results = results_of(out)
    untrained = sum(rows[-3][1] <= (number + 0.5) * 0.02 < rows[-3][2] for number in range(500))
    assert results["frames_skipped"] == 50 + untrained and results["classes"] == 3
    assert all(accuracy > 0.9 for accuracy in best_accuracies(out)), best_accuracies(out)


def test_timit(checkpoint, tmp_path, capsys):
    """TIMIT's layout with three speakers whose phones are tones; one sentence lacks its phones."""
    phones, generator = {"h#": 250, "ix": 700, "s": 2000}, np.random.default_rng(0)
    for part, speaker in (("TRAIN", "FCJF0"), ("TEST", "FAKS0"), ("TEST", "MDAB0")):
        folder = tmp_path / "TIMIT" / part / "DR1" / speaker
        folder.mkdir(parents=True)
        for number in range(4):
            said = generator.permutation([*phones] * 3)
            tones = [0.3 * np.sin(2 * np.pi * phones[phone] * np.arange(4000) / 16000) for phone in said]
            samples = np.concatenate(tones) + 0.02 * generator.standard_normal(36000)
            with open(folder / f"SX{number}.WAV", "wb") as file:
                soundfile.write(file, samples, 16000, format="NIST")
            lines = [f"{4000 * i} {4000 * (i + 1)} {phone}" for i, phone in enumerate(said)]
            (folder / f"SX{number}.PHN").write_text("\n".join(lines) + "\n")
    (folder / "SX3.PHN").unlink()
    out = tmp_path / "out"
    command = ["probe-frames", str(tmp_path / "TIMIT"), checkpoint, "log-mel", "--corpus", "timit", "--out", str(out)]
    assert main([*command, *QUICK]) == 1
    assert "skipped: " in (said := capsys.readouterr().err) and "SX3.PHN" in said
    results = results_of(out)
    assert results["classes"] == 3 and results["frames"].keys() == {"train", "dev", "test"}
    assert all(accuracy > 0.8 for accuracy in best_accuracies(out)), best_accuracies(out)


def test_nothing_is_computed_twice(checkpoint, tmp_path, monkeypatch):
    trained = []
    original = study.train_probes
    monkeypatch.setattr(study, "train_probes", lambda *args, **options: trained.append(1) or original(*args, **options))
    command = ["probe-frames", write_table(tmp_path, write_tones(tmp_path)), checkpoint, "--out", str(tmp_path), *QUICK]
    main(command)
    first = results_of(tmp_path)
    monkeypatch.setattr(features, "iterate_waveforms", None)
    main(command)
    again = results_of(tmp_path)
    assert len(trained) == 3
    for results in (first, again):
        results["models"][0].pop("seconds")
    assert again == first


@pytest.fixture
def recordings(tmp_path):
    """Recordings of 2.6 s (longer than a window), 0.9 s and 5 ms."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path, samples in zip(paths, (41600, 14400, 80)):
        soundfile.write(path, generator.uniform(-0.5, 0.5, samples), 16000)
    return paths


@pytest.mark.parametrize("pooling", ["concat", "mean"])
def test_frames_are_those_of_the_whole_recording(checkpoint, recordings, pooling):
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions.read("hop_20ms", frequency_pooling=pooling))
    frames = [RecordingFrame(recordings[i], number) for i, number in
              [(0, 129), (1, 0), (0, 0), (1, 44), (2, 0), (0, 100), (0, 99), (1, 45), (2, 1)]]
    found = {}
    for members, values in iterate_frames(encoder, frames):
        assert values.shape == (len(members), 3, encoder.width)
        found.update(zip(members, values))
    assert sorted(found) == [0, 1, 2, 3, 4, 5, 6]  # the last two are past the end
    for member, values in found.items():
        with torch.no_grad():
            states = encoder([read_clip(frames[member].path)]).hidden_states
        expected = torch.stack([state[0, frames[member].number] for state in states])
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_the_cache_keeps_the_frames_asked_for_and_no_others(checkpoint, recordings, tmp_path):
    options = vars(UpstreamOptions.read("hop_20ms"))
    frames = [RecordingFrame(recordings[0], 3), RecordingFrame(recordings[2], 7), RecordingFrame(recordings[1], 3)]
    found, key = cached_frames(checkpoint, frames, tmp_path / "cache", **options)
    assert found.shape == (3, 3, 12 * 32)
    assert found[:, 1].isnan().all() and found[:, [0, 2]].isfinite().all()
    others = [RecordingFrame(recordings[0], 4), *frames[1:]]
    other, other_key = cached_frames(checkpoint, others, tmp_path / "cache", **options)
    assert other_key != key and not torch.equal(other[:, 0], found[:, 0])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_filterbank_is_that_of_the_frames_middle(recordings, stride):
    frames = [RecordingFrame(recordings[1], number) for number in range(90 // stride + 1)]
    found = {}
    for members, values in iterate_log_mel_frames([*frames, RecordingFrame(recordings[2], 0)], stride):
        found.update(zip(members, values))
    (log_mel,) = LogMel()([read_clip(recordings[1])])
    centres = 200 + 160 * np.arange(len(log_mel))
    for number in range(-(-90 // stride)):
        nearest = np.abs(centres - (number + 0.5) * stride * 160).argmin()
        assert torch.equal(found[number][0], log_mel[nearest])
    assert found[len(frames)].shape == (1, 128) and (90 // stride in found) == (90 % stride > 0)


def test_an_unreadable_recording_raises_where_nobody_listens(checkpoint, tmp_path):
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions.read("hop_20ms"))
    with pytest.raises(AudioError, match="torn.wav"):
        list(iterate_frames(encoder, [RecordingFrame(tmp_path / "torn.wav", 0)]))
