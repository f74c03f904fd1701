"""SUPERB's classifier on averages over time equals s3prl's classifier on frames."""

import argparse
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from helpers.paths import CHECKOUT
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.cli import main
from ssamba_upstream.configs import configs_folder
from ssamba_upstream.corpora.labelled import LabelledSetError
from ssamba_upstream.corpora.superb.iemocap import write_iemocap
from ssamba_upstream.corpora.superb.sets import read_superb
from ssamba_upstream.corpora.superb.speech_commands import write_speech_commands
from ssamba_upstream.corpora.superb.utterances import Utterance
from ssamba_upstream.corpora.superb.voxceleb1 import write_voxceleb1
from ssamba_upstream.plugin import compat
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.probing.cache import cached_time_averages
from ssamba_upstream.probing.features import log_mel_averages
from ssamba_upstream.probing.superb_head import (
    BATCH_SIZE,
    GRADIENT_CLIPPING,
    PROJECTOR_SIZE,
    SUPERB_SCHEDULES,
    HeadSchedule,
    SuperbHead,
    _batches,
    read_layer_weights,
    splits_for_fold,
    train_head,
    training_step,
)

CLASSES = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "reduced.safetensors"
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), path)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Recordings for whose lengths s3prl's rounding and the upstream's rounding up disagree, and agree."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    paths = []
    for samples in (16000, 16700, 20000, 2400, 8100, 31000, 4000, 5600):
        paths.append(folder / f"{samples}.wav")
        soundfile.write(paths[-1], generator.uniform(-0.5, 0.5, samples), 16000)
    return paths


class FrameLevel(nn.Module):
    """s3prl's own Featurizer and classifier, called as the downstream experts call them."""

    def __init__(self, upstream, head):
        super().__init__()
        compat.apply()
        from s3prl.downstream.model import UtteranceLevel
        from s3prl.upstream.interfaces import Featurizer

        self.featurizer = Featurizer(upstream, "hidden_states", upstream_device="cpu")
        self.projector = nn.Linear(self.featurizer.output_dim, PROJECTOR_SIZE)
        self.model = UtteranceLevel(PROJECTOR_SIZE, CLASSES, pooling="MeanPooling")
        state = head.state_dict()
        self.load_state_dict({_s3prl_name(name): tensor for name, tensor in state.items()})

    def forward(self, wavs, features):
        frames = self.featurizer(wavs, features)
        lengths = torch.IntTensor([len(frame) for frame in frames])
        return self.model(self.projector(pad_sequence(frames, batch_first=True)), lengths)[0]


def _s3prl_name(name):
    name = {"weights": "featurizer.weights"}.get(name, name)
    return f"model.post_net.{name}" if name.startswith("linear.") else name


def test_forward_gradients_and_a_step_are_s3prls(checkpoint, recordings, tmp_path):
    upstream = UpstreamExpert(checkpoint).eval()
    averages, _ = cached_time_averages(checkpoint, recordings, tmp_path)
    wavs = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in recordings]
    with torch.no_grad():
        features = upstream(wavs)
    head = SuperbHead(len(averages), averages.shape[2], CLASSES)
    nn.init.normal_(head.weights)
    theirs = FrameLevel(upstream, head)
    targets = torch.arange(len(wavs)) % CLASSES
    torch.testing.assert_close(head(averages), theirs(wavs, features), rtol=1e-4, atol=1e-5)

    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-2) for module in (head, theirs)]
    for _ in range(3):
        training_step(head, optimizers[0], averages, targets)
        optimizers[1].zero_grad()
        nn.functional.cross_entropy(theirs(wavs, features), targets).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), GRADIENT_CLIPPING)
        optimizers[1].step()
        for name, parameter in head.named_parameters():
            expected = theirs.get_parameter(_s3prl_name(name))
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-5)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(_s3prl_name(name)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="s3prl's runner needs tensorboardX")
def test_training_ends_where_s3prls_runner_ends(checkpoint, tmp_path):
    """Both use whole batches, start from s3prl's first step, and use s3prl's split of the training sessions."""
    write_iemocap(tmp_path / "IEMOCAP", [
        Utterance(tone(150 * pitch, number), emotion, f"Ses0{session}F", recording="impro01")
        for session in range(1, 6) for pitch, emotion in enumerate(("neu", "hap", "ang", "sad"), start=1)
        for number in range(2)])
    values = {
        "runner.total_steps": 12, "runner.save_step": 1, "runner.max_keep": 20, "runner.eval_step": 12,
        "runner.eval_dataloaders": "['dev']", "runner.gradient_accumulate_steps": 1, "optimizer.lr": 0.01,
        "downstream_expert.datarc.root": tmp_path / "IEMOCAP",
        "downstream_expert.datarc.meta_data": tmp_path / "IEMOCAP" / "meta_data",
        "downstream_expert.datarc.test_fold": "fold2", "downstream_expert.datarc.train_batch_size": 100,
        "downstream_expert.datarc.num_workers": 0,
    }
    command = [sys.executable, CHECKOUT / "scripts" / "run_downstream.py", "-m", "train", "-u", "ssamba_local",
               "-k", checkpoint, "-d", "emotion", "-c", "emotion_recognition", "-p", "run", "--device", "cpu",
               "-o", ",,".join(f"config.{name}={value}" for name, value in values.items())]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

    data = read_superb("er", tmp_path / "IEMOCAP")
    assert data.groups == [f"{session}F" for session in data.splits]
    averages, _ = cached_time_averages(checkpoint, data.paths, tmp_path / "cache")
    splits = splits_for_fold(data.splits, "Session2")
    train = [i for i, split in enumerate(splits) if split == "train"]
    targets = torch.tensor([["neu", "hap", "ang", "sad"].index(data.labels[i]) for i in train])
    first, last = (load_states(tmp_path / "run" / f"states-{step}.ckpt") for step in (1, 12))
    head = SuperbHead(len(averages), averages.shape[2], CLASSES)
    head.load_state_dict(our_state(first))
    optimizer = torch.optim.Adam(head.parameters())
    optimizer.load_state_dict(first["Optimizer"])
    for _ in range(11):
        training_step(head, optimizer, averages[:, train], targets)
    for name, tensor in our_state(last).items():
        torch.testing.assert_close(head.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert (our_state(last)["weights"] - our_state(first)["weights"]).abs().max() > 1e-2

    weights = read_layer_weights(tmp_path / "run" / "dev-best.ckpt")
    assert weights == pytest.approx(last["Featurizer"]["weights"].softmax(0).tolist()) and len(weights) == 3


def tone(pitch, number, seconds=0.43):
    samples = np.arange(int(16000 * seconds))
    noise = np.random.default_rng(number).standard_normal(len(samples))
    return 0.3 * np.sin(2 * np.pi * pitch * samples / 16000) + 0.02 * noise


def load_states(path):
    torch.serialization.add_safe_globals([argparse.Namespace])
    return torch.load(path, weights_only=True)


def our_state(states):
    downstream = states["Downstream"]
    return {
        "weights": states["Featurizer"]["weights"],
        **{f"projector.{name}": downstream[f"projector.{name}"] for name in ("weight", "bias")},
        **{f"linear.{name}": downstream[f"model.post_net.linear.{name}"] for name in ("weight", "bias")},
    }


@pytest.mark.parametrize("task,config", [
    ("sid", "speaker_identification"), ("er", "emotion_recognition"), ("ks", "keyword_spotting"),
])
def test_recipes_are_those_of_the_downstream_configs(task, config):
    config = yaml.safe_load((configs_folder("downstream") / f"{config}.yaml").read_text())
    runner, (data, model) = config["runner"], map(config["downstream_expert"].get, ("datarc", "modelrc"))
    schedule = SUPERB_SCHEDULES[task]
    assert (schedule.steps, schedule.steps_between_evaluations) == (runner["total_steps"], runner["eval_step"])
    batch = data.get("batch_size") or data["train_batch_size"]
    assert batch * runner["gradient_accumulate_steps"] == BATCH_SIZE
    assert (runner["gradient_clipping"], model["projector_dim"]) == (GRADIENT_CLIPPING, PROJECTOR_SIZE)
    assert config["optimizer"] == {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-4}


def planted(informative, layers=3, utterances=160, size=12):
    """Layers of noise, one of which encodes the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(utterances) % CLASSES
    features = torch.randn(layers, utterances, size, generator=generator)
    features[informative] += 3 * torch.randn(CLASSES, size, generator=generator)[classes]
    splits = ["test" if i % 7 == 0 else "dev" if i % 5 == 1 else "train" for i in range(utterances)]
    return features, [f"class {i}" for i in classes.tolist()], splits


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [False, True])
def test_training_finds_the_layer_that_tells_the_classes(balanced):
    problem = planted(1)
    schedule = HeadSchedule(300, 50, balanced)
    results = train_head(*problem, schedule, learning_rates=(1e-6, 1e-2))
    assert results.learning_rate == 1e-2 and results.step % 50 == 0 and results.test_accuracy > 0.95
    assert max(range(3), key=results.layer_weights.__getitem__) == 1
    assert sum(results.layer_weights) == pytest.approx(1)
    assert train_head(*problem, schedule, learning_rates=(1e-2,)) == results
    assert train_head(*problem, schedule, learning_rates=(1e-2,), seed=1) != results


def test_an_intent_is_a_class_in_each_slot():
    """As in s3prl's fluent_commands, cross-entropies of slots are added, and an intent is right if all slots are."""
    averages, targets = torch.randn(3, 8, 5), torch.tensor([[0, 1], [1, 0], [2, 1], [0, 0]] * 2)
    head = SuperbHead(3, 5, [3, 2])
    training_step(head, torch.optim.SGD(head.parameters(), lr=0.0), averages, targets)
    found = head.linear.weight.grad.clone()
    head.zero_grad()
    logits = head(averages)
    losses = [nn.functional.cross_entropy(logits[:, part], targets[:, slot])
              for slot, part in enumerate((slice(3), slice(3, None)))]
    sum(losses).backward()
    nn.utils.clip_grad_norm_(head.parameters(), GRADIENT_CLIPPING)
    torch.testing.assert_close(found, head.linear.weight.grad)

    intents = ["on;lights", "on;music", "off;lights", "off;music"]
    labels = [intent for intent in intents for _ in range(20)]
    means = torch.tensor([[4.0, 4.0], [4.0, -4.0], [-4.0, 4.0], [-4.0, -4.0]]).repeat_interleave(20, dim=0)
    features = torch.randn(1, 80, 2) + means
    splits = ["test" if label == "off;music" else ("train", "dev")[i % 2] for i, label in enumerate(labels)]
    schedule = HeadSchedule(200, 50, slots=True)
    # Train lacks test's intent, but has all of its slot values.
    assert train_head(features, labels, splits, schedule, [1e-2]).test_accuracy > 0.9
    features[..., 1] = 0  # the remaining features determine the first slot
    assert train_head(features, labels, splits, schedule, [1e-2]).test_accuracy == 0


def test_balanced_batches():
    targets = torch.tensor([0] * 90 + [1] * 10)
    for balanced, expected in ((False, 0.1), (True, 0.5)):
        batches = _batches(targets, balanced, torch.Generator().manual_seed(0))
        drawn = [next(batches) for _ in range(40)]
        assert targets[torch.cat(drawn)].float().mean() == pytest.approx(expected, abs=0.05)
        assert {len(batch) for batch in drawn} == ({32} if balanced else {32, 4})


def test_superbs_sets(tmp_path):
    write_speech_commands(tmp_path, [
        Utterance(tone(300, number), word, f"{number:08x}", split="test" if number >= 12 else "train")
        for word in ("yes", "cat", "_unknown_") for number in range(14) if word != "cat" or number < 12
    ], backgrounds={"hum": tone(50, 0, seconds=20.5)})
    found = read_superb("ks", tmp_path)
    assert found.classes == ["_silence_", "_unknown_", "yes"]
    silence = [(path, split) for path, label, split in zip(found.paths, found.labels, found.splits)
               if label == "_silence_"]
    assert [path.start for path, _ in silence] == [16000 * i for i in range(20)]
    assert [split for _, split in silence].count("dev") == 2
    assert {path.gain for path in found.paths} == {-3.0}
    for path, label, group in zip(found.paths, found.labels, found.groups):
        assert group == "hum.wav" if label == "_silence_" else path.path.name == f"{group}_nohash_0.wav"
    noise, unreadable = tmp_path / "speech_commands_v0.01" / "_background_noise_" / "hum.wav", []
    noise.write_bytes(b"no audio")
    damaged = read_superb("ks", tmp_path)
    log_mel_averages(damaged.paths, report=unreadable.append)  # the probe reports the recording and continues
    assert len(damaged.paths) == len(found.paths) - 19 and [error.file.path for error in unreadable] == [noise]

    write_voxceleb1(tmp_path / "VoxCeleb1", [
        Utterance(tone(300, number), f"id1000{speaker}", recording="video",
                  split={2: "dev", 3: "test"}.get(number, "train")) for speaker in (1, 2) for number in range(4)])
    found = read_superb("sid", tmp_path / "VoxCeleb1")
    assert found.classes == ["id10001", "id10002"] and found.splits == ["train", "train", "dev", "test"] * 2
    assert found.groups == ["id10001/video"] * 4 + ["id10002/video"] * 4
    (tmp_path / "VoxCeleb1" / "veri_test_class.txt").unlink()
    with pytest.raises(LabelledSetError, match="corpora check sid"):
        read_superb("sid", tmp_path / "VoxCeleb1")
    with pytest.raises(LabelledSetError, match="corpora check er"):
        read_superb("er", tmp_path)
    with pytest.raises(LabelledSetError, match=r"for ks \(no utterances\).*corpora check ks"):
        read_superb("ks", tmp_path / "VoxCeleb1")  # such as speech_commands_v0.01 instead of its parent


def test_layer_weights_of_a_file(tmp_path, capsys):
    path = tmp_path / "dev-best.ckpt"
    states = {"Args": argparse.Namespace(mode="train"), "Downstream": {}, "Step": 3,
              "Featurizer": {"weights": torch.tensor([0.0, 1.0, 2.0])}}
    torch.save(states, path)
    assert main(["layer-weights", str(path)]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(layer) for layer, _ in printed] == [0, 1, 2]
    assert [float(weight) for _, weight in printed] == pytest.approx([0.090031, 0.244728, 0.665241])

    torch.save({**states, "Featurizer": {}}, path)
    with pytest.raises(ValueError, match="a single layer"):
        read_layer_weights(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="not a checkpoint of s3prl's runner"):
        read_layer_weights(path)
    torch.save({**states, "Config": Harmful()}, path)
    with pytest.raises(ValueError, match=r"holds posix.mkdir, and reading it might run code\. Give a "):
        read_layer_weights(path)
    assert not (tmp_path / "harmed").exists()


class Harmful:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)
