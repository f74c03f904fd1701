"""Classifiers and embeddings over recordings of any length, and ``ssamba classify``."""

import csv
import itertools
import math
import os

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from ssamba_upstream import (
    SsambaConfig,
    SsambaFeatureExtractor,
    SsambaForAudioClassification,
    SsambaForAudioFrameClassification,
    SsambaModel,
)
from ssamba_upstream.audio import AudioError
from ssamba_upstream.checkpoint import save_model, write_classifier
from ssamba_upstream.cli import main
from ssamba_upstream.deployment import recordings
from ssamba_upstream.deployment.recordings import ClassificationError, WindowClassifier, embed_recording, window_starts
from ssamba_upstream.files import locked
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions

SMALL = {"hidden_size": 32, "num_hidden_layers": 2}
WINDOW = (98 * 160 + 240) / 16000  # seconds covered by 98 frames


@pytest.fixture
def save_clip_classifier(tmp_path):
    def save(model_class=SsambaForAudioClassification, max_length=98, **fields):
        fields = {**SMALL, "id2label": {0: "dog", 1: "rain", 2: "sea"}, "clip_frames": max_length, **fields}
        config, folder = SsambaConfig(**fields), tmp_path / "classifier"
        write_classifier(model_class(config), SsambaFeatureExtractor.for_config(config), folder)
        return folder

    return save


@pytest.fixture
def write_wav(tmp_path):
    def write(name, seconds, rate=16000):
        path = tmp_path / "audio" / name
        path.parent.mkdir(exist_ok=True)
        random = np.random.default_rng(len(name))
        soundfile.write(path, 0.1 * random.standard_normal(round(seconds * rate)), rate)
        return path

    return write


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("samples, window, every, expected", [
    (3000, 1000, 1000, [0, 1000, 2000]), (3200, 1000, 1000, [0, 1000, 2000, 3000]), (500, 1000, 1000, [0]),
    (1000, 1000, 250, [0]), (2000, 1000, 500, [0, 500, 1000]), (10, 1, 4, [0, 4, 8]), (5, 3, 2.5, [0, 2]),
], ids=str)
def test_windows_cover_a_recording_and_none_hears_only_what_was_heard(samples, window, every, expected):
    assert list(window_starts(samples, window, every)) == expected
    assert list(window_starts(samples, window, every, first=2)) == expected[2:]


def test_windows_of_any_length_at_any_rate_cover_a_recording_once():
    """Each starts within the recording, at the end of the previous one or a sample earlier; the last covers the end."""
    for frames, rate, count in itertools.product(
        (98, 128, 333, 1024), (8000, 11025, 16000, 22050, 44100, 48000), range(1, 30),
    ):
        clip = frames * 160 + 240
        window = math.ceil(clip * rate / 16000)
        for samples in (math.floor(count * clip * rate / 16000), math.ceil(count * clip * rate / 16000)):
            starts = list(window_starts(samples, window, clip / 16000 * rate))
            gaps = {later - start for start, later in zip(starts, starts[1:])}
            assert starts[0] == 0 and gaps <= {window, window - 1}
            assert starts[-1] < samples <= starts[-1] + window


@pytest.mark.parametrize("samples, rate, windows", [(310_800, 16000, 15), (28_555, 22050, 1), (28_556, 22050, 2)])
def test_recordings_of_whole_windows_are_heard_to_their_end(save_clip_classifier, write_wav, samples, rate, windows):
    classifier = WindowClassifier(save_clip_classifier(max_length=128))
    assert classifier.window == 1.295
    path = write_wav("whole.wav", samples / rate, rate)
    counts, spans, _ = zip(*classifier.scores(path))
    spans = sum(spans, [])
    assert sum(counts) == len(spans) == windows and spans[-1][1] == pytest.approx(samples / rate, abs=1 / rate)
    assert classifier.recording_scores(path).sum() == pytest.approx(1)


def test_scores_are_those_of_each_window_by_itself(save_clip_classifier, write_wav):
    folder, path = save_clip_classifier(), write_wav("long.wav", 20)
    classifier = WindowClassifier(folder, every=0.5)
    counts, spans, probabilities = zip(*classifier.scores(path))
    spans, probabilities = sum(spans, []), torch.cat(probabilities)
    assert sum(counts) == len(spans) == 1 + np.ceil((20 - WINDOW) / 0.5) > recordings.WINDOWS_AT_ONCE
    wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    for (start, end), found in zip(spans, probabilities):
        part = wav[round(start * 16000) : round(end * 16000)]
        inputs = classifier.extractor(part, return_tensors="pt")["input_values"]
        with torch.no_grad():
            torch.testing.assert_close(found, classifier.model(inputs).logits[0].softmax(0), rtol=0, atol=1e-5)
    lengths = torch.tensor([[end - start] for start, end in spans])
    expected = (lengths * probabilities).sum(dim=0) / lengths.sum()
    torch.testing.assert_close(classifier.recording_scores(path), expected)


@pytest.mark.parametrize("fields", [
    {}, {"problem_type": "multi_label_classification"}, {"normalisation": "clip", "positions": "published"},
], ids=["one label", "several", "normalised by the clip"])
def test_a_pipeline_hears_a_recording_longer_than_the_positions(save_clip_classifier, write_wav, fields):
    """A 10 s network classifies 30 s, like :class:`WindowClassifier`."""
    folder, path = save_clip_classifier(max_length=1024, **fields), write_wav("long.wav", 30)
    wav = soundfile.read(path, dtype="float32")[0]
    classify = pipeline("audio-classification", model=str(folder))
    expected = WindowClassifier(folder).recording_scores(path).tolist()
    for answers in (classify(wav), *classify([wav, wav[:350_000]], batch_size=2)[:1]):
        found = {answer["label"]: answer["score"] for answer in answers}
        assert found == pytest.approx(dict(zip(("dog", "rain", "sea"), expected)), abs=1e-5)
    start = {answer["label"]: answer["score"] for answer in classify(wav[: 10 * 16000])}
    assert found != pytest.approx(start, abs=1e-4)
    short, long = ({answer["label"]: answer["score"] for answer in answers}
                   for answers in classify([wav[: 10 * 16000], wav], batch_size=2))
    assert short == pytest.approx(start, abs=1e-5) and long == pytest.approx(found, abs=1e-5)


def test_seconds_of_a_recording(save_clip_classifier, write_wav):
    folder = save_clip_classifier(SsambaForAudioFrameClassification, max_length=300)
    path, classifier = write_wav("long.wav", 7.4), WindowClassifier(folder)
    assert (classifier.window, classifier.every, classifier.span) == (3, 3, 1)
    (count, spans, probabilities), = classifier.scores(path)
    assert count == 3
    assert spans == [(second, min(second + 1, 7.4)) for second in range(8)]
    wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    inputs = classifier.extractor(list(wav.split(48000)), return_tensors="pt")["input_values"]
    with torch.no_grad():
        expected = classifier.model(inputs).logits.softmax(-1).flatten(0, 1)[:8]
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-5)
    weighted = (torch.tensor([[1.0]] * 7 + [[0.4]]) * expected).sum(dim=0) / 7.4
    torch.testing.assert_close(classifier.recording_scores(path), weighted, rtol=0, atol=1e-5)


def test_the_table_of_seconds(tmp_path, save_clip_classifier, write_wav):
    folder = save_clip_classifier(SsambaForAudioFrameClassification, max_length=200)
    path = write_wav("a.wav", 3.5)
    assert main(["classify", str(folder), str(path), "--every", "1.5", "--out", str(tmp_path / "out.csv")]) == 0
    spans = [(line["start"], line["end"]) for line in read(tmp_path / "out.csv")]
    assert spans == [("0.000", "1.000"), ("1.000", "2.000"), ("1.500", "2.500"), ("2.500", "3.500")]


def test_memory_is_bounded_by_windows(save_clip_classifier, write_wav, monkeypatch):
    lengths, at_once = [], []
    read_windows = recordings.read_windows

    def read_and_note(*arguments):
        for wav in read_windows(*arguments):
            lengths.append(len(wav))
            yield wav

    monkeypatch.setattr(recordings, "read_windows", read_and_note)
    classifier = WindowClassifier(save_clip_classifier())
    for _ in classifier.scores(write_wav("long.wav", 40, rate=8000)):
        at_once.append(len(lengths) - sum(at_once))
    assert at_once == [16, 16, 9]
    assert max(lengths) == classifier.samples


def test_embedding_of_windows_without_overlap_is_the_mean_over_time(tmp_path, write_wav):
    save_model(SsambaModel(SsambaConfig(**SMALL)), tmp_path / "checkpoint")
    encoder = FrameEncoder.from_checkpoint(tmp_path / "checkpoint", UpstreamOptions(window_secs=2.0)).eval()
    path = write_wav("long.wav", 7.3)
    wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    with torch.no_grad():
        parts = [encoder([part]).last_hidden_state[0] for part in wav.split(32000)]
    torch.testing.assert_close(embed_recording(encoder, path), torch.cat(parts).mean(dim=0), rtol=0, atol=1e-5)
    assert not torch.allclose(embed_recording(encoder, path, every=0.7), embed_recording(encoder, path), atol=1e-3)
    with pytest.raises(ValueError, match="above 0"):
        embed_recording(encoder, path, every=0)


def test_a_causal_network_hears_a_recording_as_one_stream(write_wav):
    config = SsambaConfig(**{**SMALL, "token_order": "time_major", "directions": "forward"})
    encoder = FrameEncoder(SsambaModel(config)).eval()
    path = write_wav("long.wav", 2.3 * encoder.windowing.window_secs)
    wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    with torch.no_grad():
        expected = encoder([wav]).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(embed_recording(encoder, path), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="as one stream. Leave every out"):
        embed_recording(encoder, path, every=1.0)


def test_the_table(tmp_path, save_clip_classifier, write_wav, capsys):
    folder = save_clip_classifier()
    paths = [write_wav("a.wav", 3.4), write_wav("b.flac", 0.3, rate=22050)]
    (tmp_path / "audio" / "c.wav").write_bytes(b"no audio")
    command = ["classify", str(folder), str(tmp_path / "audio"), "--every", "1.5", "--out", str(tmp_path / "out.csv")]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "c.wav is skipped from window 0 on" in printed.err and "2 recordings" in printed.out
    lines = read(tmp_path / "out.csv")
    assert [tuple(line) for line in lines][0] == recordings.COLUMNS
    assert [(line["file"], line["start"], line["end"]) for line in lines] == [
        (str(paths[0]), "0.000", f"{WINDOW:.3f}"), (str(paths[0]), "1.500", f"{1.5 + WINDOW:.3f}"),
        (str(paths[0]), "3.000", "3.400"), (str(paths[1]), "0.000", "0.300"),
    ]
    best = torch.cat([p for _, _, p in WindowClassifier(folder, 1.5).scores(paths[0])]).max(dim=1)
    for line, score, label in zip(lines, *best):
        assert line["label"] == ("dog", "rain", "sea")[label] and abs(float(line["score"]) - score) < 1e-4

    before = (tmp_path / "out.csv").read_bytes()
    assert main(command) == 1
    assert "already there: 2, skipped: 1" in capsys.readouterr().out
    assert (tmp_path / "out.csv").read_bytes() == before


def test_a_torn_recording_is_heard_as_far_as_it_can_be_read(tmp_path, save_clip_classifier, write_wav, capsys):
    folder, path = save_clip_classifier(), write_wav("torn.flac", 20)
    path.write_bytes(path.read_bytes()[: int(0.8 * path.stat().st_size)])
    assert main(["classify", str(folder), str(path), "--out", str(tmp_path / "out.csv")]) == 1
    lines = read(tmp_path / "out.csv")
    assert 13 <= len(lines) < 16 and f"is skipped from window {len(lines)} on: is damaged" in capsys.readouterr().err
    assert float(lines[-1]["end"]) == pytest.approx(len(lines) * WINDOW, abs=1e-3)
    with pytest.raises(AudioError, match="is damaged"):
        WindowClassifier(folder).recording_scores(path)


@pytest.mark.parametrize("fields, labels", [
    ({}, ["dog", "rain", "sea"]), ({"problem_type": "multi_label_classification"}, ["dog", "rain", "sea"]),
], ids=["one label", "several"])
def test_all_labels(tmp_path, save_clip_classifier, write_wav, fields, labels):
    folder, path = save_clip_classifier(**fields), write_wav("a.wav", 1.0)
    assert main(["classify", str(folder), str(path), "--all-labels", "--out", str(tmp_path / "out.csv")]) == 0
    lines = read(tmp_path / "out.csv")
    assert sorted(line["label"] for line in lines[:3]) == labels
    scores = [float(line["score"]) for line in lines[:3]]
    assert scores == sorted(scores, reverse=True)
    assert (abs(sum(scores) - 1) < 1e-3) == (not fields)


def test_an_interrupted_run_goes_on_in_the_middle_of_a_recording(
    tmp_path, save_clip_classifier, write_wav, monkeypatch,
):
    folder, path = save_clip_classifier(), write_wav("long.wav", 40)
    arguments = folder, [path, write_wav("second.wav", 2)], tmp_path / "out.csv", 0.8
    recordings.classify(folder, arguments[1], tmp_path / "whole.csv", 0.8)

    read_windows, count = recordings.read_windows, 0

    def interrupt(*arguments):
        nonlocal count
        for wav in read_windows(*arguments):
            count += 1
            if count == 40:
                raise KeyboardInterrupt
            yield wav

    monkeypatch.setattr(recordings, "read_windows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recordings.classify(*arguments)
    assert len(read(tmp_path / "out.csv")) == 2 * recordings.WINDOWS_AT_ONCE
    for name in ("out.csv", "out.csv.progress"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"half a line')
    count = 100
    assert recordings.classify(*arguments) == (2, 0)
    assert count - 100 == len(read(tmp_path / "whole.csv")) - 2 * recordings.WINDOWS_AT_ONCE
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_no_lines_stand_for_another_recording(tmp_path, save_clip_classifier, write_wav, monkeypatch, capsys):
    """An ``x.wav`` from another folder, or with new audio, is skipped; other recordings are classified."""
    folder, first = save_clip_classifier(), write_wav("x.wav", 0.9)
    second, other = tmp_path / "second" / "x.wav", write_wav("other.wav", 0.5)
    second.parent.mkdir()
    soundfile.write(second, np.zeros(14400), 16000)
    command = ["classify", str(folder), "--out", str(tmp_path / "out.csv")]
    monkeypatch.chdir(first.parent)
    assert main([*command, "x.wav"]) == 0
    assert main([*command, "./x.wav", str(first)]) == 0  # under other names
    monkeypatch.chdir(second.parent)
    capsys.readouterr()
    assert main([*command, "x.wav", str(other)]) == 1
    said = capsys.readouterr()
    assert f"x.wav is skipped: the table has {first} under this name. Give the absolute path" in said.err
    assert "wrote" in said.out and "1 recording; already there: 0, skipped: 1" in said.out
    assert main([*command, str(second)]) == 0
    assert [line["file"] for line in read(tmp_path / "out.csv")] == ["x.wav", str(other), str(second)]
    os.utime(second, ns=(0, 1))
    assert main([*command, str(second)]) == 1
    said = capsys.readouterr()
    assert f"{second} is skipped: it has changed since it was added to the table. Choose another table" in said.err
    assert len(read(tmp_path / "out.csv")) == 3


def test_one_process_at_a_time_writes_a_table(tmp_path, save_clip_classifier, write_wav, capsys):
    out = tmp_path / "out.csv"
    command = ["classify", str(save_clip_classifier()), str(write_wav("a.wav", 1.0)), "--out", str(out)]
    with locked(out):
        assert main(command) == 1
    assert f"another process is writing {out}. Wait" in capsys.readouterr().err and not out.exists()
    assert main(command) == 0 and not list(tmp_path.glob(".*"))


def test_what_is_refused(tmp_path, save_clip_classifier, write_wav):
    folder, path = save_clip_classifier(), write_wav("a.wav", 1.0)
    recordings.classify(folder, [path], tmp_path / "out.csv")
    with pytest.raises(ClassificationError, match="was made with .*the settings are now"):
        recordings.classify(folder, [path], tmp_path / "out.csv", every=0.5)
    (tmp_path / "out.csv").write_text("file,start\n")
    with pytest.raises(ClassificationError, match="out.csv has lost lines since it was written. Choose another name"):
        recordings.classify(folder, [path], tmp_path / "out.csv")
    (tmp_path / "out.csv.progress").unlink()
    with pytest.raises(ClassificationError, match="exists without out.csv.progress"):
        recordings.classify(folder, [path], tmp_path / "out.csv")
    with pytest.raises(ClassificationError, match="no recordings"):
        recordings.classify(folder, [], tmp_path / "new.csv")
    with pytest.raises(ClassificationError, match="above 0 seconds"):
        recordings.classify(folder, [path], tmp_path / "new.csv", every=0)
    save_model(SsambaModel(SsambaConfig(**SMALL)), tmp_path / "encoder")
    with pytest.raises(ClassificationError, match="contains a SsambaModel"):
        recordings.classify(tmp_path / "encoder", [path], tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()
