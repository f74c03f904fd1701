"""``ssamba probe`` from a labelled set to its report."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.cli import main
from ssamba_upstream.probing import study as probing

QUICK = ["--head-steps", "40", "--head-learning-rates", "1e-3", "1e-2", "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        paths.append(tmp_path_factory.mktemp("checkpoint") / f"network{seed}.safetensors")
        save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), paths[-1])
    return [*map(str, paths)]


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Three folders, one per pitch."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    for pitch in (200, 500, 1200):
        (folder / f"{pitch} Hz").mkdir()
        for number in range(10):
            samples = 0.3 * np.sin(2 * np.pi * pitch * np.arange(4000 + 500 * number) / 16000)
            noise = 0.02 * generator.standard_normal(len(samples))
            soundfile.write(folder / f"{pitch} Hz" / f"{number}.wav", samples + noise, 16000)
    return folder


def results_of(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_two_networks_and_the_log_mel(tones, checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    compared = [checkpoints[1], "log-mel"]
    assert main(["probe", str(tones), checkpoints[0], *compared, "--out", str(out), *QUICK]) == 0
    results = results_of(out)
    first, second, _ = results["models"]
    assert results["recordings"] == {"train": 21, "dev": 3, "test": 6} and results["classes"] == 3
    assert [len(model["layers"]) for model in results["models"]] == [3, 3, 1]
    for model in results["models"]:
        best = model["layers"][model["best_layers"]["test"]]
        assert model["test_accuracy"] == best["test_accuracy"] == 1 and model["interval"] == pytest.approx([1, 1])
        assert best["dev_loss"] == min(layer["dev_loss"] for layer in model["layers"])
        assert sum(layer["weight"] for layer in model["layers"]) == pytest.approx(1)
        assert model["superb_head"]["test_accuracy"] > 0.6
        assert [model["cka"][i][i] for i in range(len(model["cka"]))] == pytest.approx([1] * len(model["cka"]))
    assert first["layers"] != second["layers"]
    table = (out / "results.md").read_text()
    assert "| network1.safetensors |" in table and "| log-mel |  | 100.00 | 100.00 | 100.00 |" in table
    assert "by bootstrap over the 6 recordings of the test set. Weighted sum" in table
    for picture in ("layers.png", "cka.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert "| network2.safetensors |" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"cache", "cka.png", "layers.png", "results.json", "results.md"}


def test_a_set_without_dev_is_refused_before_anything_is_computed(tones, checkpoints, tmp_path, capsys):
    rows = [f"{path},{path.parent.name},{'test' if path.stem == '0' else 'train'}" for path in tones.glob("*/*.wav")]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *rows]))
    assert main(["probe", str(tmp_path / "set.csv"), checkpoints[0], "--out", str(tmp_path / "out"), *QUICK]) == 1
    assert "no utterance in dev; probes need train, dev and test" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_recording_that_cannot_be_read_is_skipped_and_named(tones, checkpoints, tmp_path, capsys):
    shutil.copytree(tones, tmp_path / "tones")
    (tmp_path / "tones" / "500 Hz" / "torn.wav").write_bytes(b"RIFF")
    loud = tmp_path / "tones" / "200 Hz" / "loud.wav"
    soundfile.write(loud, np.full(8000, 1e30, np.float32), 16000, subtype="FLOAT")
    out = tmp_path / "out"
    command = ["probe", str(tmp_path / "tones"), checkpoints[0], "log-mel", "--out", str(out), *QUICK]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "skipped: " in said and "torn.wav cannot be read as audio: " in said and f"{loud} cannot be read" in said
    results = results_of(out)
    assert sum(results["recordings"].values()) == 30 and len(results["unreadable"]) == 2
    assert all(model["test_accuracy"] == 1 for model in results["models"])


@pytest.mark.slow
def test_nothing_is_computed_twice(tones, checkpoints, tmp_path, monkeypatch):
    trained = []
    for name in ("train_probes", "train_head"):
        original = getattr(probing, name)
        monkeypatch.setattr(probing, name, lambda *args, name=name, original=original, **options:
                            trained.append(name) or original(*args, **options))
    command = ["probe", str(tones), checkpoints[0], "--out", str(tmp_path), *QUICK]
    main(command)
    first = results_of(tmp_path)
    assert trained == [*["train_probes"] * 3, "train_head"]
    main(command)
    assert len(trained) == 4
    again = results_of(tmp_path)
    for results in (first, again):
        results["models"][0].pop("seconds")
    assert again == first
    main([*command, "--head-steps", "20"])
    assert trained[4:] == ["train_head"]


@pytest.mark.slow
def test_killed_while_probing_it_continues(tones, checkpoints, tmp_path):
    code = """
import os, signal, sys
from ssamba_upstream.probing import study as probe
original, calls = probe.train_probes, []
def train(*args, **options):
    calls.append(1)
    return original(*args, **options) if len(calls) < 3 else os.kill(os.getpid(), signal.SIGKILL)
probe.train_probes = train
from ssamba_upstream.cli import main
main(sys.argv[1:])
"""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    command = ["probe", str(tones), checkpoints[0], *QUICK, "--out"]
    run = subprocess.run([sys.executable, "-c", code, *command, str(out)],
                         capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == -signal.SIGKILL, run.stderr
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "description.json"}
    assert len(kept) == 2 and not (out / "results.json").exists()  # two layers
    assert main([*command, str(out)]) == main([*command, str(whole)]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for killed, expected in zip(results_of(out)["models"][0]["layers"], results_of(whole)["models"][0]["layers"]):
        assert killed.pop("interval") == expected.pop("interval")
        assert killed == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_folds(tones, checkpoints, tmp_path):
    """With folds, every number is a mean over folds; with groups, the interval resamples groups."""
    lines = ["path,label,split,group"]
    lines += [f"{path},{path.parent.name},fold {int(path.stem) % 3},{int(path.stem) // 2}"
              for path in sorted(tones.rglob("*.wav"))]
    csv = tmp_path / "folds.csv"
    csv.write_text("\n".join(lines))
    assert main(["probe", str(csv), checkpoints[0], "--out", str(tmp_path / "out"), *QUICK]) == 0
    model = results_of(tmp_path / "out")["models"][0]
    assert model["test_accuracy"] > 0.9 and sorted(model["best_layers"]) == ["fold 0", "fold 1", "fold 2"]
    table = (tmp_path / "out" / "results.md").read_text()
    assert "that each of 3 folds chooses by the loss on its own dev part" in table and "over the 5 groups of" in table
    folds = model["superb_head"]["folds"]
    assert sorted(folds) == ["fold 0", "fold 1", "fold 2"]
    weights = [sum(fold["layer_weights"][1] for fold in folds.values()) / 3, model["layers"][1]["weight"]]
    assert weights[0] == pytest.approx(weights[1])


@pytest.mark.slow
def test_a_corpus_of_superb(tmp_path, checkpoints, capsys):
    from ssamba_upstream.corpora.superb.utterances import Utterance
    from ssamba_upstream.corpora.superb.voxceleb1 import write_voxceleb1

    samples = {pitch: 0.3 * np.sin(pitch * np.arange(4000)) for pitch in (0.1, 0.5)}
    write_voxceleb1(tmp_path / "VoxCeleb1", [
        Utterance(samples[pitch], speaker, recording="video", split=split)
        for pitch, speaker in ((0.1, "id10001"), (0.5, "id10002")) for split in ("train", "train", "dev", "test")])
    command = ["probe", str(tmp_path / "VoxCeleb1"), checkpoints[0], "--corpus", "sid", "--out", str(tmp_path / "out")]
    assert main([*command, *QUICK]) == 0
    assert results_of(tmp_path / "out")["models"][0]["layers"][0]["test_accuracy"] == 1
    assert main(["probe", str(tmp_path), checkpoints[0], "--corpus", "ks", "--out", str(tmp_path / "out"), *QUICK]) == 1
    assert "corpora check ks" in capsys.readouterr().err
    assert main([*command, "--head-steps", "0"]) == 1
    assert "one step or more" in capsys.readouterr().err


def test_fluent_speech_commands(tmp_path, checkpoints):
    root, generator = tmp_path / "fluent_speech_commands_dataset", np.random.default_rng(0)
    intents = {200: ("activate", "lights", "kitchen"), 800: ("activate", "music", "none"),
               3000: ("decrease", "heat", "none")}
    (root / "data").mkdir(parents=True)
    for name, count in (("train", 4), ("valid", 2), ("test", 2)):
        rows = [",path,speakerId,transcription,action,object,location"]
        for pitch, intent in intents.items():
            for number in range(count):
                path = f"wavs/speakers/{name}/{pitch}-{number}.wav"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)
                soundfile.write(root / path, tone + 0.02 * generator.standard_normal(8000), 16000)
                rows.append(f'{len(rows) - 1},{path},{name},"Turn it on, please",{",".join(intent)}')
        (root / "data" / f"{name}_data.csv").write_text("\n".join(rows) + "\n")
    command = ["probe", str(root), checkpoints[0], "--corpus", "ic", "--out", str(tmp_path / "out")]
    assert main([*command, *QUICK]) == 0
    results = results_of(tmp_path / "out")
    assert results["recordings"] == {"train": 12, "dev": 6, "test": 6} and results["classes"] == 3
    assert results["options"]["head"]["slots"]
    model = results["models"][0]
    assert model["test_accuracy"] == 1
    assert model["superb_head"]["test_accuracy"] > 0.6 and results["resampled"] == "groups"


@pytest.mark.parametrize("command", ["probe", "probe-frames"])
def test_the_former_name_of_the_log_mel_is_refused(command, tones, tmp_path, capsys):
    (tmp_path / "tones.csv").write_text("path,start,end,label\n" + "".join(
        f"{path},0,0.2,{path.parent.name}\n" for path in tones.glob("*/*.wav")))
    data = tones if command == "probe" else tmp_path / "tones.csv"
    assert main([command, str(data), "fbank", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "Use their own baseline log-mel, or measure fbank" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
