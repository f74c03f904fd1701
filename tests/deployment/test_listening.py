"""A causal classifier on live audio, and ``ssamba listen``."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from ssamba_upstream import (
    SsambaConfig,
    SsambaFeatureExtractor,
    SsambaForAudioClassification,
    SsambaForAudioFrameClassification,
)
from ssamba_upstream.checkpoint import write_classifier
from ssamba_upstream.cli import main
from ssamba_upstream.deployment import listening
from ssamba_upstream.deployment.listening import Listener

CAUSAL = {"hidden_size": 32, "num_hidden_layers": 2, "patch_size": [32, 8], "token_order": "time_major",
          "directions": "forward", "clip_frames": 98, "id2label": {0: "dog", 1: "rain", 2: "sea"}}


@pytest.fixture
def save(tmp_path):
    def save(model_class=SsambaForAudioClassification, **fields):
        config = SsambaConfig(**{**CAUSAL, **fields})
        model = model_class(config).eval()
        extractor = SsambaFeatureExtractor(max_length=config.clip_frames, mean=-6.6, std=5.4,
                                           whole_seconds=model.labels_seconds)
        write_classifier(model, extractor, tmp_path / "classifier")
        return tmp_path / "classifier", model, extractor

    return save


@pytest.fixture
def recording(tmp_path):
    """4 s of 16-bit noise that gets louder and fades."""
    seconds = np.arange(64000) / 16000
    wav = np.random.default_rng(0).standard_normal(64000) * 0.2 * np.sin(2 * seconds) ** 8
    soundfile.write(tmp_path / "noise.wav", wav, 16000, subtype="PCM_16")
    return tmp_path / "noise.wav"


def scores_of(listener, wav, chunk):
    """Return a listener's detections. With a threshold of 0, each label starts exactly once."""
    return [found for part in wav.split(chunk) for found in listener.hear(part)]


@pytest.mark.parametrize("fields", [{}, {"final_norm_twice": True}, {"problem_type": "multi_label_classification"}])
@torch.no_grad()
def test_the_first_judgement_is_the_classifier_s_of_a_clip(save, fields):
    folder, model, extractor = save(**fields)
    wav = torch.randn(extractor.clip_samples) * 0.1
    logits = model(extractor(wav, return_tensors="pt")["input_values"]).logits[0]
    expected = logits.sigmoid() if fields.get("problem_type") else logits.softmax(0)
    for chunk in (700, len(wav)):
        found = scores_of(Listener(folder, threshold=0.0), wav, chunk)
        assert [label for _, label, _ in found] == ["dog", "rain", "sea"]
        assert {seconds for seconds, _, _ in found} == {12 * 0.08}
        torch.testing.assert_close(torch.tensor([score for _, _, score in found]), expected, rtol=0, atol=1e-5)


def test_what_is_shorter_is_judged_at_its_end(save):
    folder, _, _ = save(SsambaForAudioFrameClassification, clip_frames=100)
    listener = Listener(folder, threshold=0.0)
    assert listener.smooth == 12
    assert listener.hear(torch.randn(3000)) == []
    assert [(round(seconds, 2), label) for seconds, label, _ in listener.hear()] == [
        (0.24, "dog"), (0.24, "rain"), (0.24, "sea")]
    assert Listener(folder).hear() == []


def test_a_label_is_said_once_until_it_falls_below_the_threshold(save):
    listener = Listener(save()[0], threshold=0.5)
    said = [listener._detect(second, {"dog": dog, "rain": rain, "sea": 0.0})
            for second, (dog, rain) in enumerate([(0.4, 0.0), (0.5, 0.1), (0.9, 0.8), (0.2, 0.9), (0.7, 0.2)])]
    assert said == [[], [(1, "dog", 0.5)], [(2, "rain", 0.8)], [], [(4, "dog", 0.7)]]


@pytest.mark.parametrize("as_json", [False, True])
def test_recordings_and_raw_samples_are_heard_alike(save, recording, capsys, monkeypatch, as_json):
    folder, _, _ = save()
    options = ["--threshold", "0.34", "--smooth", "0.3", *(["--json"] if as_json else [])]
    assert main(["listen", str(folder), str(recording), *options]) == 0
    of_file = capsys.readouterr().out
    raw = soundfile.read(recording, dtype="int16")[0].astype("<i2").tobytes() + b"\x00"  # half a sample at the end
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(raw)))
    assert main(["listen", str(folder), *options]) == 0
    assert capsys.readouterr().out == of_file
    lines = [json.loads(line) for line in of_file.splitlines()] if as_json else [*csv.DictReader(io.StringIO(of_file))]
    assert lines and all(list(line) == ["seconds", "label", "score"] for line in lines)
    assert all(float(line["score"]) >= 0.34 and 0.24 <= float(line["seconds"]) <= 4.08 for line in lines)


def test_the_microphone_until_ctrl_c(save, capsys, monkeypatch):
    class Stream:
        def __init__(self, rate, block, channels, dtype):
            assert (rate, block, channels, dtype) == (16000, 1280, 1, "int16")
            self.blocks = 20

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, samples):
            self.blocks -= 1
            if not self.blocks:
                raise KeyboardInterrupt
            return np.random.default_rng(self.blocks).integers(-3000, 3000, samples, np.int16).tobytes(), False

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(RawInputStream=Stream))
    assert main(["listen", str(save()[0]), "--microphone", "--threshold", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.slow
def test_lines_come_as_they_happen_and_ctrl_c_ends_cleanly(save):
    command = [sys.executable, "-m", "ssamba_upstream", "listen", str(save()[0]), "--threshold", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"seconds,label,score\n"
        process.stdin.write(bytes(2 * 1280 * 14))
        process.stdin.flush()
        assert [process.stdout.readline()[:8] for _ in range(3)] == [b"0.96,dog", b"0.96,rai", b"0.96,sea"]
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in errors


def test_what_cannot_listen(save, tmp_path, capsys, recording, monkeypatch):
    folder, _, _ = save(directions="both")
    assert main(["listen", str(folder), str(recording)]) == 1
    assert "the network is not causal" in capsys.readouterr().err
    folder, _, _ = save()
    with pytest.raises(SystemExit):
        main(["listen", str(folder), str(recording), "--microphone"])
    assert "--microphone: not allowed with argument RECORDING" in capsys.readouterr().err
    assert Listener(folder, smooth=0).smooth == 1
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["listen", str(folder), "--microphone"]) == 1
    assert "pip install sounddevice" in capsys.readouterr().err
    assert next(listening.recording(recording, Listener(folder))).dtype == torch.float32
