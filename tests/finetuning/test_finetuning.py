"""Fine-tuning runs: learning, outputs, resuming after an interruption, and errors."""

import dataclasses
import errno
import json
import os
import signal
import statistics
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard

from helpers.runs import kill_before, logged, torchrun
from ssamba_upstream import SsambaConfig, SsambaForAudioClassification
from ssamba_upstream.checkpoint import CheckpointError, load_model, save_model
from ssamba_upstream.cli import main
from ssamba_upstream.corpora.labelled import LabelledSetError, read_labelled
from ssamba_upstream.files import locked
from ssamba_upstream.finetuning import trainer
from ssamba_upstream.finetuning.batches import evaluation_batches
from ssamba_upstream.finetuning.recipe import FinetuningRecipe
from ssamba_upstream.finetuning.results import summarise, write_results
from ssamba_upstream.finetuning.trainer import finetune
from ssamba_upstream.network.pretraining import SsambaForPreTraining
from ssamba_upstream.training import training_state
from ssamba_upstream.training.distributed import Processes
from ssamba_upstream.training.recipe import RecipeError, read_recipe
from ssamba_upstream.training.run_folder import describe_run
from ssamba_upstream.training.training_state import TrainingError, training_states

PITCHES = {"high": 3000, "low": 200, "middle": 800}
NETWORK = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 64, "time_stride": 16,
           "frequency_stride": 16, "drop_path_rate": 0.1}
FIELDS = {"problem": "single_label", "clip_frames": 64, "epochs": 3, "batch_size": 4, "learning_rate": 1e-3,
          "save_every": 2, "log_every": 1, "workers": 0}


def tone(*pitches, seconds, random):
    times = np.arange(int(16000 * seconds)) / 16000
    wave = sum(np.sin(2 * np.pi * pitch * random.uniform(0.95, 1.05) * times + random.uniform(0, 6))
               for pitch in pitches)
    return 0.2 * wave + 0.02 * random.standard_normal(len(times))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Eighteen tones of 0.4 to 0.9 s in tones.csv (with dev), plain.csv (without dev) and folds.csv; nine chords in
    chords.csv; nine recordings of three seconds, each second a different tone, in seconds.csv."""
    folder, random = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    rows = {name: [] for name in ("tones", "plain", "folds", "chords", "seconds")}
    names = list(PITCHES)
    for i in range(18):
        label, place = names[i % 3], i // 3
        samples = tone(PITCHES[label], seconds=random.uniform(0.4, 0.9), random=random)
        soundfile.write(folder / f"{i}.wav", samples, 16000)
        rows["tones"].append((f"{i}.wav", label, ("train", "train", "train", "train", "dev", "test")[place]))
        rows["plain"].append((f"{i}.wav", label, "train" if place < 4 else "test"))
        rows["folds"].append((f"{i}.wav", label, "123"[place % 3]))
    chords = (["high"], ["high", "low"], ["low"], ["low", "middle"], ["middle"], ["high", "middle"])
    for i in range(18):
        labels = chords[i % 6]
        wave = tone(*map(PITCHES.get, labels), seconds=0.6, random=random)
        soundfile.write(folder / f"chord{i}.wav", wave, 16000)
        rows["chords"].append((f"chord{i}.wav", ";".join(labels), "train" if i < 12 else "test"))
    for i in range(16):
        labels = [names[number] for number in random.permutation(3)]
        wave = np.concatenate([tone(PITCHES[label], seconds=1, random=random) for label in labels])
        soundfile.write(folder / f"seconds{i}.wav", wave, 16000)
        rows["seconds"].append((f"seconds{i}.wav", ";".join(labels), "train" if i < 12 else "test"))
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(["path,label,split", *map(",".join, lines)]) + "\n")
    return folder


@pytest.fixture
def recipe_file(tmp_path, audio):
    """Return a function that writes a recipe with the given fields changed."""

    def write(name="recipe.yaml", data="tones", model=None, **changes):
        data = str(audio / f"{data}.csv") if (audio / f"{data}.csv").is_file() else str(data)
        fields = {"data": data, **FIELDS, "model": {**NETWORK, **(model or {})}, **changes}
        (tmp_path / name).write_text(yaml.safe_dump(fields))
        return tmp_path / name

    return write


@pytest.fixture
def recipe(recipe_file):
    return lambda **changes: read_recipe(recipe_file(**changes), FinetuningRecipe)


@pytest.fixture
def changed_set(tmp_path, audio):
    """Return a function that writes a changed copy of a CSV and returns its path."""

    def write(change, source="plain"):
        rows = [line.split(",") for line in (audio / f"{source}.csv").read_text().split()[1:]]
        rows = [(str(audio / path), label, split) for path, label, split in rows]
        lines = ["path,label,split", *map(",".join, change(rows))]
        (tmp_path / "changed.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "changed.csv"

    return write


@pytest.fixture
def steps(monkeypatch):
    """A list of the steps made, as (fold, step)."""
    made, step = [], trainer._Finetuning.step

    def recorded(self, number, batches):
        made.append((self.recipe.fold, number))
        return step(self, number, batches)

    monkeypatch.setattr(trainer._Finetuning, "step", recorded)
    return made


def stop_at(monkeypatch, fold, step):
    """Send SIGTERM during the given step."""
    set_rates = trainer._Finetuning._set_learning_rates

    def interrupted(self, number):
        if (self.recipe.fold, number) == (fold, step):
            os.kill(os.getpid(), signal.SIGTERM)
        set_rates(self, number)

    monkeypatch.setattr(trainer._Finetuning, "_set_learning_rates", interrupted)


def new_run(recipe, out):
    """Return a run before its first step."""
    labelled = read_labelled(recipe.data)
    processes = Processes(0, 1, torch.device("cpu"))
    task = trainer.ClassificationTask.of(labelled, recipe)
    return trainer._Finetuning(recipe, task, out, describe_run(recipe), processes)


def weights(folder):
    return load_model(folder, model_class=None).state_dict()


def assert_same_run(found, expected, folders=("best", "last")):
    assert logged(found, "loss") == logged(expected, "loss")
    assert logged(found, "accuracy", kind="validation") == logged(expected, "accuracy", kind="validation")
    found_results, expected_results = (json.loads((out / "results.json").read_text()) for out in (found, expected))
    for part in ("dev", "test"):
        assert found_results[part] == expected_results[part]
    for name in folders:
        ours, theirs = weights(found / name), weights(expected / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


# Outputs of a run

@pytest.mark.slow
def test_a_run_and_its_folders(tmp_path, audio, recipe, capsys):
    from transformers import AutoModelForAudioClassification, pipeline

    from ssamba_upstream.plugin.expert import UpstreamExpert

    run = tmp_path / "run"
    half = tmp_path / "half"
    SsambaForPreTraining(SsambaConfig(**NETWORK)).half().save_pretrained(half)  # like the starter
    results = finetune(recipe(epochs=10, learning_rate=5e-3, mean=-5.0, std=4.0, checkpoint=str(half)), run)
    assert json.loads((run / "results.json").read_text()) == results
    assert results["checkpoint"] == str(run / "best") and results["test"]["recordings"] == 3
    steps = logged(run, "loss", "clips_per_second")
    assert [step for step, *_ in steps] == list(range(1, 31)) and np.isfinite(steps).all()
    assert [step for step, _ in logged(run, "accuracy", kind="validation")] == [*range(3, 31, 3)]
    assert logged(run, "recordings", "accuracy", kind="test") == [[30, 3, results["test"]["accuracy"]]]
    for name in ("best", "last"):
        description = json.loads((run / name / "run.json").read_text())
        assert description["recipe"]["batch_size"] == 4 and list(description["manifests"].values())[0]
        assert "## " not in (run / name / "README.md").read_text().split("---")[1]
        ours = load_model(run / name, model_class=None)
        theirs = AutoModelForAudioClassification.from_pretrained(run / name)
        assert isinstance(ours, SsambaForAudioClassification)
        assert ours.config.id2label == {0: "high", 1: "low", 2: "middle"}
        fbank = torch.randn(2, 64, 128)
        with torch.no_grad():
            assert torch.equal(ours(fbank).logits, theirs.eval()(fbank).logits)
    card = (run / "best" / "README.md").read_text()
    assert f"| test | accuracy | {results['test']['accuracy']:.4f} |" in card
    data = ModelCard(card).data
    assert data.license == "bsd-3-clause" and data.pipeline_tag == "audio-classification"
    assert [(figure.dataset_name, figure.metric_type, figure.metric_value) for figure in data.eval_results] == [
        ("tones.csv", name, results["test"][name]) for name in ("accuracy", "mAP", "mAUC")]
    assert "Classes: high, low, middle" in card and "learning_rate: 0.005" in card and str(audio) not in card
    assert "Not tested" in (run / "last" / "README.md").read_text()
    assert main(["info", str(run / "best")]) == 0
    assert "3: high, low, middle" in capsys.readouterr().out
    upstream = UpstreamExpert(str(run / "best"), window_secs=0.5)
    states = upstream([torch.randn(16000)])["hidden_states"]
    assert len(states) == 3 and states[0].shape[-1] == 12 * 32
    assert list((run / "tensorboard").iterdir())
    # The folder's feature extractor has the recipe's mean, deviation and length.
    classify = pipeline("audio-classification", model=str(run / "best"))
    labelled = read_labelled(audio / "tones.csv")
    test_set = [(path, label) for path, label, split in zip(labelled.paths, labelled.labels, labelled.splits)
                if split == "test"]
    correct = [classify(soundfile.read(path, dtype="float32")[0])[0]["label"] == label
               for path, label in test_set]
    assert np.mean(correct) == results["test"]["accuracy"]


@pytest.mark.slow
def test_folds_are_tested_in_turn(tmp_path, audio, recipe, monkeypatch):
    read = []

    def recorded(paths, *arguments, **options):
        read.append(paths)
        return evaluation_batches(paths, *arguments, **options)

    monkeypatch.setattr(trainer, "evaluation_batches", recorded)
    run, few = tmp_path / "run", recipe(data="folds", epochs=2)
    results = finetune(few, run)
    labelled = read_labelled(few.data)
    folds = {fold: [path for path, split in zip(labelled.paths, labelled.splits) if split == fold] for fold in "123"}
    assert read == list(folds.values())
    assert list(results["folds"]) == ["1", "2", "3"]
    for name in ("accuracy", "mAP", "mAUC"):
        values = [json.loads((run / f"fold-{fold}" / "results.json").read_text())["test"][name] for fold in "123"]
        assert [of_fold["test"][name] for of_fold in results["folds"].values()] == values
        assert results["test"][name] == pytest.approx(statistics.mean(values))
        assert results["deviation"][name] == pytest.approx(statistics.stdev(values))
    assert json.loads((run / "results.json").read_text()) == results
    table = (run / "results.md").read_text().splitlines()
    accuracy, deviation = results["test"]["accuracy"], results["deviation"]["accuracy"]
    assert table[0] == "| fold | accuracy | mAP | mAUC |" and len(table) == 6
    assert table[-1].startswith(f"| mean ± standard deviation | {accuracy:.4f} ± {deviation:.4f} |")

    one = finetune(recipe(data="folds", epochs=2, fold=2), tmp_path / "one")  # YAML reads it as a number
    assert one["test"] == results["folds"]["2"]["test"]
    assert not list((tmp_path / "one").glob("fold-*"))
    with pytest.raises(RecipeError, match="'4' is not a fold of .*folds.csv; its splits are 1, 2, 3"):
        finetune(recipe(data="folds", fold=4), tmp_path / "none")
    with pytest.raises(RecipeError, match="'test' is not a fold of"):
        finetune(recipe(fold="test"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_fold_of_one_class_counts_where_a_metric_is_defined(tmp_path, recipe, changed_set):
    """This includes results of a fold that an earlier version wrote with a NaN before it failed at the folds' mean."""
    run = recipe(epochs=1, data=changed_set(lambda rows: [(path, "low" if fold == "3" else label, fold)
                                                          for path, label, fold in rows], "folds"))
    results = finetune(run, tmp_path / "run")
    areas = [of_fold["test"]["mAUC"] for of_fold in results["folds"].values()]
    assert areas[2] is None and results["folds"]["3"]["test"]["mAUC_classes_skipped"] == 3
    assert results["test"]["mAUC"] == pytest.approx(statistics.mean(areas[:2]))
    assert results["deviation"]["mAUC"] == pytest.approx(statistics.stdev(areas[:2]))
    assert results["test"]["accuracy"] == pytest.approx(
        statistics.mean(of_fold["test"]["accuracy"] for of_fold in results["folds"].values()))
    table = (tmp_path / "run" / "results.md").read_text().splitlines()
    assert table[4].startswith("| 3 | ") and table[4].endswith(" | - |")
    assert "| test | mAUC | - |" in (tmp_path / "run" / "fold-3" / "last" / "README.md").read_text()
    written = [*(tmp_path / "run").rglob("*.json"), *(tmp_path / "run").rglob("*.jsonl")]
    assert len(written) > 9 and not any("NaN" in file.read_text() for file in written)
    of_fold = tmp_path / "run" / "fold-3" / "results.json"
    of_fold.write_text(of_fold.read_text().replace('"mAUC": null', '"mAUC": NaN'))
    (tmp_path / "run" / "results.json").unlink()
    assert finetune(run, tmp_path / "run", resume=True) == results
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_too_few_folds_for_a_mean_or_a_deviation(tmp_path):
    folds = {fold: {"test": {"recordings": 2, "mAP": value, "mAUC": None}} for fold, value in (("1", 0.5), ("2", None))}
    summary = summarise(folds)
    assert summary["test"] == {"mAP": 0.5, "mAUC": None} and summary["deviation"] == {"mAP": None, "mAUC": None}
    write_results(summary, tmp_path)
    assert (tmp_path / "results.md").read_text().endswith("| mean ± standard deviation | 0.5000 ± - | - ± - |\n")


def test_the_test_set_is_not_read_before_the_end(tmp_path, recipe, steps, monkeypatch):
    read = []

    def recorded(paths, *arguments, **options):
        read.append((len(steps), paths))
        return evaluation_batches(paths, *arguments, **options)

    monkeypatch.setattr(trainer, "evaluation_batches", recorded)
    run = recipe(average_epochs=[2, 3])
    finetune(run, tmp_path / "run")
    paths = trainer.ClassificationTask.of(read_labelled(run.data), run).paths
    names = [(made, next(name for name in paths if paths[name] == split)) for made, split in read]
    # Three epochs of three steps. At the end, the best network and the average read dev, and one of them reads test.
    assert names == [(3, "dev"), (6, "dev"), (9, "dev"), (9, "dev"), (9, "dev"), (9, "test")]


def test_the_best_network_is_the_one_that_is_tested(tmp_path, recipe, monkeypatch):
    accuracies, evaluate = iter([0.2, 0.9, 0.5]), trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda *arguments: {
        **evaluate(*arguments), **({"accuracy": value} if (value := next(accuracies, None)) else {})})
    tested = []
    metrics = trainer._Finetuning._metrics

    def recorded(self, model, split):
        tested.append((split, {name: tensor.clone() for name, tensor in model.state_dict().items()}))
        return metrics(self, model, split)

    monkeypatch.setattr(trainer._Finetuning, "_metrics", recorded)
    results = finetune(recipe(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "best" / "run.json").read_text())["step"] == 6
    assert results["checkpoint"] == str(tmp_path / "run" / "best")
    second, last = tested[1][1], tested[-1]
    assert last[0] == "test" and all(torch.equal(last[1][name], second[name]) for name in second)


# Learning

@pytest.mark.slow
@pytest.mark.parametrize("changes, metric", [
    ({"noise_and_roll": True, "frequency_mask": 12, "time_mask": 12}, "accuracy"),
    ({"loss": "binary_cross_entropy", "mixup": 0.5}, "accuracy"),
    ({"data": "chords", "problem": "multi_label", "loss": "binary_cross_entropy", "metric": "mAP", "balanced": True},
     "mAP"),
])
def test_it_learns_tones(tmp_path, recipe, changes, metric):
    results = finetune(recipe(**{"data": "plain", "epochs": 14, "learning_rate": 5e-3, **changes}), tmp_path / "run")
    assert results["test"][metric] >= 0.8  # chance: 1/3, and for the chords 1/2
    losses = [loss for _, loss in logged(tmp_path / "run", "loss")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.slow
def test_it_learns_the_tone_of_each_second(tmp_path, recipe):
    """Every recording has all three tones, so only features aligned in time can distinguish them."""
    results = finetune(recipe(data="seconds", problem="per_second", clip_frames=300, epochs=12, learning_rate=5e-3),
                       tmp_path / "run")
    assert results["test"]["accuracy"] >= 0.8 and results["test"]["recordings"] == 4
    assert load_model(tmp_path / "run" / "last", model_class=None).config.num_labels == 3


# Where it starts

@pytest.fixture
def pretrained(tmp_path):
    save_model(SsambaForPreTraining(SsambaConfig(**NETWORK)), tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_it_starts_from_a_pretraining_checkpoint(tmp_path, recipe, pretrained):
    expected = load_model(pretrained).state_dict()
    short = new_run(recipe(checkpoint=str(pretrained)), tmp_path / "short").model.ssamba.state_dict()
    assert short.keys() == expected.keys() and all(torch.equal(short[name], expected[name]) for name in expected)
    long = new_run(recipe(checkpoint=str(pretrained), clip_frames=128), tmp_path / "long").model.ssamba.state_dict()
    assert [name for name in expected if not torch.equal(long[name], expected[name])] == ["pos_embed"]
    results = finetune(recipe(checkpoint=str(pretrained), clip_frames=128, epochs=1), tmp_path / "run")
    assert load_model(tmp_path / "run" / "best").config.pretraining_frames == 128
    assert "from a checkpoint (" in (tmp_path / "run" / "best" / "README.md").read_text()
    assert results["test"]["recordings"] == 3


# Interruptions

AVERAGED = {"average_epochs": [2, 3], "mixup": 0.5, "noise_and_roll": True, "time_mask": 8, "accumulation": 2}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"workers": 2}, AVERAGED])
def test_resumed_runs_are_uninterrupted_runs_bit_for_bit(tmp_path, recipe, monkeypatch, steps, changes):
    """The run is stopped in the second epoch, then killed when its log and checkpoints are newer than its state."""
    run, folders = recipe(**changes), ("best", "last", *(["average"] if "average_epochs" in changes else []))
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_at(patch, None, 5)
        assert finetune(run, tmp_path / "run") is None
    assert signal.getsignal(signal.SIGTERM) is before
    states = training_states(tmp_path / "run" / "states")
    assert [file.name for file in states] == [f"step-0000000{n}.pt" for n in (5, 4, 2)]
    for file in states[:2]:
        file.unlink()
    del steps[:]
    finetune(run, tmp_path / "run", resume=True)
    assert [step for _, step in steps] == [*range(3, 10)]
    finetune(run, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole", folders)
    del steps[:]
    (tmp_path / "run" / "results.json").unlink()  # killed while it was tested
    finetune(run, tmp_path / "run", resume=True)
    assert not steps
    assert_same_run(tmp_path / "run", tmp_path / "whole", folders)


@pytest.mark.slow
def test_finished_folds_are_left_alone(tmp_path, recipe, monkeypatch, steps):
    run = recipe(data="folds", epochs=1)
    with monkeypatch.context() as patch:
        stop_at(patch, "2", 2)
        assert finetune(run, tmp_path / "run") is None
    assert not (tmp_path / "run" / "results.json").exists()
    assert finetune(run, tmp_path / "run", resume=True)
    assert steps == [(fold, step) for fold in "123" for step in (1, 2, 3)]
    finetune(run, tmp_path / "whole")
    for fold in "123":
        assert_same_run(tmp_path / "run" / f"fold-{fold}", tmp_path / "whole" / f"fold-{fold}", ["last"])
    del steps[:]
    again = finetune(run, tmp_path / "run", resume=True)
    assert not steps and again == json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.slow
def test_kill_9_and_resume(tmp_path, recipe, recipe_file):
    file, run = recipe_file(data="folds", epochs=6), tmp_path / "run"
    kill_before(run / "fold-2", 18, "finetune", file, "--out", run, "--resume")
    assert (run / "fold-1" / "results.json").exists() and not (run / "fold-2" / "results.json").exists()
    finetune(recipe(data="folds", epochs=6), run, resume=True)
    finetune(recipe(data="folds", epochs=6), tmp_path / "whole")
    for fold in "123":
        assert_same_run(run / f"fold-{fold}", tmp_path / "whole" / f"fold-{fold}", ["last"])


def test_what_cannot_be_resumed(tmp_path, recipe, changed_set, pretrained):
    data = changed_set(lambda rows: rows)
    run, out = recipe(data=data, epochs=1, checkpoint=str(pretrained)), tmp_path / "run"
    out.mkdir()
    with locked(out), pytest.raises(BlockingIOError, match="another process is writing .*run. Wait"):
        finetune(run, out, resume=True)
    finetune(run, out)
    with pytest.raises(FileExistsError, match="is not empty. Resume the run"):
        finetune(run, out)
    with pytest.raises(RecipeError, match="started with mixup 0.0, not 0.5"):
        finetune(recipe(data=data, epochs=1, checkpoint=str(pretrained), mixup=0.5), out, resume=True)
    changed_set(lambda rows: rows[1:])
    with pytest.raises(RecipeError, match="started with .*changed.csv"):
        finetune(run, out, resume=True)
    changed_set(lambda rows: rows)
    save_model(SsambaForPreTraining(SsambaConfig(**NETWORK)), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(pretrained / "model.safetensors")
    with pytest.raises(RecipeError, match="started with checkpoint "):
        finetune(run, out, resume=True)
    with pytest.raises(RecipeError, match="started with checkpoint .*, not None"):
        finetune(recipe(data=data, epochs=1), out, resume=True)


def test_recordings_that_cannot_be_read_are_skipped_in_the_metrics(tmp_path, recipe, changed_set):
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, np.full(8000, 1e30, np.float32), 16000, subtype="FLOAT")
    data = changed_set(lambda rows: [*rows, (str(loud), "low", "test")])
    results = finetune(recipe(data=data, epochs=1), tmp_path / "run")
    assert results["test"]["recordings"] == 6
    assert all(line.startswith(f"{loud}: holds samples of up to 1.0e+30")
               for _, line in logged(tmp_path / "run", "unreadable", kind="event"))
    data = changed_set(lambda rows: [row for row in rows if row[2] == "train"] + [(str(loud), "low", "test")])
    with pytest.raises(TrainingError, match="none of the 1 recordings of test can be read, such as .*loud.wav"):
        finetune(recipe(data=data, epochs=1), tmp_path / "none")


def test_a_folder_that_has_changed_is_not_resumed(tmp_path, audio, recipe):
    for i in range(18):
        file = tmp_path / "set" / list(PITCHES)[i % 3] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((audio / f"{i}.wav").read_bytes())
    finetune(recipe(data=tmp_path / "set", epochs=1), tmp_path / "run")
    file.unlink()
    with pytest.raises(RecipeError, match="started with recordings"):
        finetune(recipe(data=tmp_path / "set", epochs=1), tmp_path / "run", resume=True)


def test_a_full_disk_leaves_the_last_state(tmp_path, recipe, monkeypatch):
    save = torch.save

    def full_disk(state, file):
        if state["progress"]["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(training_state.torch, "save", full_disk)
    with pytest.raises(TrainingError, match="the disk is full. --resume continues from .*, .*step-00000002.pt"):
        finetune(recipe(), tmp_path / "run")


# Learning rates and averages

@pytest.mark.slow
@pytest.mark.parametrize("start, every, warmup", [(2, 3, 0), (1, 1, 2), (3, 2, 4)])
def test_learning_rates_are_those_of_the_published_schedule(tmp_path, recipe, start, every, warmup):
    finetune(recipe(data="plain", epochs=7, batch_size=6, decay_start=start, decay_every=every, decay=0.8,
                    warmup_steps=warmup), tmp_path / "run")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(range(start, 1000, every)), gamma=0.8)
    expected = []
    for step in range(1, 15):
        expected.append(1e-3 * step / warmup if step <= warmup else scheduler.get_last_lr()[0])
        optimizer.step()
        if step % 2 == 0:  # two steps of six clips in each epoch
            scheduler.step()
    np.testing.assert_allclose([rate for _, rate in logged(tmp_path / "run", "learning_rate")], expected, rtol=1e-9)


@pytest.mark.parametrize("decayed", ["all", "projections"])
def test_learning_rates_of_head_and_blocks(tmp_path, recipe, decayed):
    rates = {"head_learning_rate": 3.0, "layer_decay": 0.5, "warmup_steps": 2}
    run = new_run(recipe(**rates, weight_decay_of=decayed), tmp_path / "run")
    run._set_learning_rates(1)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in run.optimizer.param_groups for parameter in group["params"]}
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        beginning = ".".join(name.split(".")[:3])
        expected = {"ssamba.layers.0": 0.5, "ssamba.layers.1": 1, "ssamba.norm_f.weight": 1, "ssamba.norm_f.bias": 1}
        expected = expected.get(beginning, 0.25 if name.startswith("ssamba.") else 3)
        assert rate == pytest.approx(0.5 * 1e-3 * expected), name
    assert {"classifier.weight", "classifier_norm.weight", "ssamba.pos_embed", "ssamba.cls_token"} <= rates.keys()


def test_the_average_is_of_the_weights_at_the_ends_of_epochs(tmp_path, recipe, monkeypatch):
    """This holds even if the last step of an epoch was skipped."""
    ends, step, forward = [], trainer._Finetuning.step, trainer._Finetuning.forward

    def kept_step(self, number, batches):
        self.number = number
        report = step(self, number, batches)
        if number in (6, 9):
            ends.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return report

    def poisoned(self, *arguments):
        output = forward(self, *arguments)
        if self.number == 9:
            output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(trainer._Finetuning, "step", kept_step)
    monkeypatch.setattr(trainer._Finetuning, "forward", poisoned)
    results = finetune(recipe(data="folds", fold=1, epochs=4, average_epochs=[2, 3]), tmp_path / "run")
    assert results["checkpoint"] == str(tmp_path / "run" / "average")
    average, last = weights(tmp_path / "run" / "average"), weights(tmp_path / "run" / "last")
    for name in last:
        torch.testing.assert_close(average[name], (ends[0][name] + ends[1][name]) / 2, rtol=1e-5, atol=1e-8)
    assert not torch.equal(average["classifier.weight"], last["classifier.weight"])


# Augmentation

def test_augmentation_is_for_training(tmp_path, recipe, monkeypatch):
    """With a negligible learning rate, augmentation changes the loss but not the metrics."""
    for name, changes in {"plain": {}, "augmented": {"noise_and_roll": True, "time_mask": 30, "mixup": 1.0}}.items():
        finetune(recipe(epochs=1, learning_rate=1e-30, weight_decay=0, **changes), tmp_path / name)
    plain, augmented = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "augmented"))
    assert (plain["dev"], plain["test"]) == (augmented["dev"], augmented["test"])
    losses = [logged(tmp_path / name, "loss") for name in ("plain", "augmented")]
    assert all(one != other for one, other in zip(*losses))


def one_second_of_every_other(rows):
    """Keep only the first second's label of every other recording."""
    return [(path, label.split(";")[0] if i % 2 else label, split) for i, (path, label, split) in enumerate(rows)]


@pytest.fixture
def uneven(changed_set):
    """Recipe fields for a task with one labelled second in some recordings and three in others."""
    return {"data": changed_set(one_second_of_every_other, "seconds"), "problem": "per_second", "clip_frames": 300,
            "epochs": 1, "model": {"drop_path_rate": 0.0}}


def test_accumulated_parts_are_the_same_step(tmp_path, recipe):
    """Clips and mixtures depend on their place in the sequence. Masks would be drawn for each part."""
    for parts in (1, 2):
        finetune(recipe(epochs=1, accumulation=parts, mixup=0.5, model={"drop_path_rate": 0.0}), tmp_path / str(parts))
    losses = [[loss for _, loss in logged(tmp_path / parts, "loss")] for parts in "12"]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_parts_with_unequal_numbers_of_labelled_seconds_are_the_same_step(tmp_path, recipe, uneven):
    for parts in (1, 4):
        finetune(recipe(**uneven, accumulation=parts), tmp_path / str(parts))
    found = [logged(tmp_path / parts, "loss", "gradient_norm") for parts in "14"]
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path, recipe):
    results = finetune(recipe(epochs=1, precision="bfloat16", mixup=0.5), tmp_path / "run", device="cuda")
    assert results["test"]["recordings"] and 0 <= results["test"]["accuracy"] <= 1


# Two processes

@pytest.mark.slow
def test_torchrun(tmp_path, recipe, recipe_file, pretrained):
    """With a negligible learning rate, one process and two get the same metrics in every fold."""
    still = {"data": "folds", "epochs": 1, "learning_rate": 1e-30, "weight_decay": 0, "checkpoint": str(pretrained)}
    out = torchrun("finetune", recipe_file(**still), "--out", tmp_path / "two")
    assert out.count("test accuracy") == 1
    alone = finetune(recipe(**still), tmp_path / "one")
    together = json.loads((tmp_path / "two" / "results.json").read_text())
    for fold in "123":
        ours, theirs = (results["folds"][fold]["test"] for results in (together, alone))
        assert ours == pytest.approx(theirs, abs=1e-6) and ours["recordings"] == 6
        ours, theirs = (weights(tmp_path / name / f"fold-{fold}" / "last") for name in ("two", "one"))
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-20) for name in theirs)


@pytest.mark.slow
def test_two_processes_with_unequal_numbers_of_labelled_seconds_make_the_same_steps(
        tmp_path, recipe, recipe_file, uneven):
    torchrun("finetune", recipe_file(**uneven, accumulation=2), "--out", tmp_path / "two")
    finetune(recipe(**uneven), tmp_path / "one")
    found = [logged(tmp_path / name, "loss", "gradient_norm") for name in ("two", "one")]
    np.testing.assert_allclose(*found, rtol=1e-4)


# Bad input

@pytest.mark.parametrize("changes, message", [
    ({"metric": "accuracy", "problem": "multi_label", "loss": "binary_cross_entropy"},
     "metric must be one of mAP, mAUC with multi_label; got 'accuracy'"),
    ({"metric": "mAUC", "problem": "per_second", "clip_frames": 100},
     "metric must be one of accuracy, mAP with per_second"),
    ({"problem": "multi_label", "metric": "mAP"},
     "multi_label needs the loss binary_cross_entropy; got 'cross_entropy'"),
    ({"problem": "per_second", "loss": "binary_cross_entropy", "clip_frames": 100},
     "per_second needs the loss cross_entropy"),
    ({"problem": "per_second", "mixup": 0.5, "clip_frames": 100}, "labels of seconds cannot be mixed"),
    ({"problem": "per_second", "balanced": True, "clip_frames": 100}, "a label for each second cannot be balanced"),
    ({"problem": "regression"}, "problem must be one of single_label, multi_label, per_second; got 'regression'"),
    ({"frequency_mask": 129}, "frequency_mask must be a whole number from 0 to 128; got 129"),
    ({"time_mask": 65}, "time_mask must be a whole number from 0 to 64; got 65"),
    ({"mixup": 1.5}, "mixup must be a number from 0 to 1; got 1.5"),
    ({"head_learning_rate": 0}, "head_learning_rate must be a number above 0; got 0"),
    ({"average_epochs": [2, 4]}, r"average_epochs must be two numbers from 1 to epochs \(3\), .*; got \[2, 4\]"),
    ({"average_epochs": 2}, "average_epochs must be two numbers"),
    ({"average_epochs": [1, 2, 3]}, "average_epochs must be two numbers"),
    ({"std": 0}, "std must be a number above 0; got 0"),
    ({"mean": "minus five"}, "mean must be a number; got 'minus five'"),
    ({"epochs": 0}, "epochs must be a whole number from 1; got 0"),
    ({"warmup_steps": -1}, "warmup_steps must be a whole number from 0; got -1"),
    ({"fould": 1}, "no field fould; the fields are accumulation"),
])
def test_bad_recipes(recipe_file, changes, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe_file(**changes), FinetuningRecipe)


def relabelled(**labels):
    """Replace the labels of rows, by file number."""
    return lambda rows: [(row[0], labels.get(f"_{i}", row[1]), row[2]) for i, row in enumerate(rows)]


@pytest.mark.parametrize("change, changes, message", [
    (relabelled(_17="unheard"), {}, "no recording of train has the class 'unheard'"),
    (relabelled(_3="low;high"), {}, "3.wav has the label 'low;high', which is 2 classes. single_label allows one"),
    (relabelled(), {"problem": "per_second"}, "whole seconds, such as 100, 1000, 6000 for 1, 10, 60; got 64"),
    (relabelled(_3="low;;high"), {"problem": "multi_label", "loss": "binary_cross_entropy", "metric": "mAP"},
     "a class in the label 'low;;high' of .*3.wav has no name"),
    (relabelled(_3=""), {}, r"3.wav has no label. Give each recording a label for single_label; with multi_label"),
    (lambda rows: [(path, label.replace("high", "low").replace("middle", ""), split) for path, label, split in rows],
     {"problem": "per_second", "clip_frames": 100}, "the seconds' classes are low; expected two or more"),
    (lambda rows: [(path, label if split == "train" else "", split) for path, label, split in rows],
     {"problem": "per_second", "clip_frames": 100}, "no second of test has a label"),
    (lambda rows: rows[:12], {}, "changed.csv: the splits are train"),
    (lambda rows: [("gone.wav", *row[1:]) if i == 3 else row for i, row in enumerate(rows)], {},
     "1 of 18 recordings do not exist: .*gone.wav"),
])
def test_labelled_sets_that_do_not_fit(tmp_path, recipe, changed_set, change, changes, message):
    run = recipe(data=changed_set(change), **changes)
    with pytest.raises((RecipeError, LabelledSetError), match=message):
        finetune(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there(tmp_path, recipe):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        finetune(recipe(data="nowhere.csv"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="nowhere"):
        finetune(recipe(checkpoint=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged.safetensors"):
        finetune(recipe(checkpoint=str(tmp_path / "damaged.safetensors")), tmp_path / "run")


def test_seconds_after_the_clip_or_without_a_label_do_not_count(recipe, changed_set):
    change = relabelled(_0="low", _1="high;low;middle;beyond", _2="high;;low", _3="")
    run = recipe(data=changed_set(change, "seconds"), problem="per_second", clip_frames=300)
    task = trainer.ClassificationTask.of(read_labelled(run.data), run)
    assert task.classes == ["high", "low", "middle"]
    assert task.targets["train"][:4].tolist() == [[1, -100, -100], [0, 1, 2], [0, -100, 1], [-100, -100, -100]]


def test_recordings_in_which_nothing_is_heard(tmp_path, recipe, changed_set):
    """Their targets are zeros, even for a detector of one class."""
    def only_low(rows):
        return [(path, label if label == "low" else "", split) for path, label, split in rows]

    several = {"problem": "multi_label", "loss": "binary_cross_entropy", "metric": "mAP"}
    run = recipe(data=changed_set(only_low), **several, epochs=12, learning_rate=5e-3)
    task = trainer.ClassificationTask.of(read_labelled(run.data), run)
    assert task.classes == ["low"] and task.targets["train"].tolist() == [[0.0], [1.0], [0.0]] * 4
    assert finetune(run, tmp_path / "run")["test"]["mAUC"] == 1
    model = load_model(tmp_path / "run" / "last", model_class=None)
    assert model.config.num_labels == 1 and model.config.problem_type == "multi_label_classification"


def test_steps_without_a_second_that_counts(tmp_path, recipe, changed_set):
    data = changed_set(lambda rows: [(path, "" if i < 11 else label, split)
                                     for i, (path, label, split) in enumerate(rows)], "seconds")
    run = recipe(data=data, problem="per_second", clip_frames=300, batch_size=2, epochs=1)
    results = finetune(run, tmp_path / "run")
    steps = logged(tmp_path / "run", "loss", "gradient_norm")
    assert len(steps) == 6 and [norm > 0 for _, _, norm in steps].count(True) == 1
    assert all((loss == 0) == (norm == 0) for _, loss, norm in steps) and results["test"]["accuracy"] is not None
    assert logged(tmp_path / "run", "skipped")[-1] == [6, 0]


def test_unreadable_recordings_are_counted(tmp_path, recipe, changed_set):
    def torn(rows):
        for i, name in ((2, "train"), (15, "test")):
            (tmp_path / f"torn-{name}.wav").write_bytes(b"RIFF")
            rows[i] = (str(tmp_path / f"torn-{name}.wav"), *rows[i][1:])
        return rows

    results = finetune(recipe(data=changed_set(torn)), tmp_path / "run")
    assert results["test"]["recordings"] == 5
    met = [line for _, line in logged(tmp_path / "run", "unreadable", kind="event")]
    assert len([line for line in met if "torn-test.wav" in line]) == 1
    assert len([line for line in met if "torn-train.wav" in line]) == logged(tmp_path / "run", "unreadable")[-1][1] == 3


@pytest.mark.parametrize("bad_steps, stops", [(range(2, 6), False), (range(2, 100), True)])
def test_gradients_that_are_not_finite(tmp_path, recipe, monkeypatch, bad_steps, stops):
    forward, calls = trainer._Finetuning.forward, []

    def poisoned(self, *arguments):
        output = forward(self, *arguments)
        calls.append(1)
        if len(calls) in bad_steps:
            output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(trainer._Finetuning, "forward", poisoned)
    if stops:
        with pytest.raises(TrainingError, match="steps 2 to 11 had gradients that are not finite"):
            finetune(recipe(epochs=5), tmp_path / "run")
        return
    finetune(recipe(), tmp_path / "run")
    assert logged(tmp_path / "run", "skipped")[-1] == [9, 4]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "last").values())


def test_a_metric_that_dev_does_not_define(tmp_path, recipe, changed_set):
    run = recipe(data=changed_set(lambda rows: [row for i, row in enumerate(rows) if i not in (13, 14)], "tones"),
                 metric="mAUC")
    with pytest.raises(RecipeError, match="mAUC is undefined on dev.*Choose another metric"):
        finetune(run, tmp_path / "run")


# The package's recipes

PUBLISHED = {
    # from src/finetune/*/*amba.sh and speech_commands_v2/run_sc.sh of SiavashShams/ssamba
    "audioset20k": {
        "lr": 1e-4, "n-epochs": 50, "batch-size": 24, "freqm": 48, "timem": 192, "mixup": 0.5, "noise": False,
        "fstride": 10, "tstride": 10, "warmup": False, "target_length": 1024, "dataset_mean": -4.2677393,
        "dataset_std": 4.5689974, "head_lr": 3, "lrscheduler_start": 15, "lrscheduler_step": 10,
        "lrscheduler_decay": 0.75, "wa": [12, 40], "loss": "BCE", "metrics": "mAP", "drop_path_rate": 0.1,
    },
    "esc50": {
        "lr": 1e-4, "n-epochs": 50, "batch-size": 48, "freqm": 24, "timem": 96, "mixup": 0, "noise": True,
        "fstride": 10, "tstride": 10, "warmup": False, "target_length": 512, "dataset_mean": -6.6268077,
        "dataset_std": 5.358466, "head_lr": 1, "lrscheduler_start": 6, "lrscheduler_step": 1,
        "lrscheduler_decay": 0.85, "wa": None, "loss": "CE", "metrics": "acc", "drop_path_rate": 0.1,
    },
    "speech_commands_v1": {
        "lr": 2.5e-4, "n-epochs": 30, "batch-size": 128, "freqm": 48, "timem": 48, "mixup": 0.6, "noise": True,
        "fstride": 10, "tstride": 10, "warmup": True, "target_length": 128, "dataset_mean": -6.845978,
        "dataset_std": 5.5654526, "head_lr": 1, "lrscheduler_start": 5, "lrscheduler_step": 1,
        "lrscheduler_decay": 0.85, "wa": None, "loss": "BCE", "metrics": "acc", "drop_path_rate": None,
    },
    "urban8k_scenes": {
        "lr": 1e-4, "n-epochs": 50, "batch-size": 5, "freqm": 48, "timem": 192, "mixup": 0, "noise": False,
        "fstride": 16, "tstride": 16, "warmup": False, "target_length": 6144, "dataset_mean": -5.138443946838379,
        "dataset_std": 4.229961395263672, "head_lr": 1, "lrscheduler_start": 20, "lrscheduler_step": 10,
        "lrscheduler_decay": 0.85, "wa": None, "loss": "CE", "metrics": "acc", "drop_path_rate": 0.1,
    },
}
PUBLISHED["speech_commands_v2"] = PUBLISHED["speech_commands_v1"]
WARMUP_STEPS = 1000  # from src/traintest.py, which also sets the weight decay and the betas
UNSET_DROP_PATH = 0.1
WHOLE_SECONDS = {"urban8k_scenes": 6000}  # the published clips of 6144 frames are padded after the minute


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_the_package(name):
    recipe, published = read_recipe(name, FinetuningRecipe), PUBLISHED[name]
    config = recipe.config()
    assert {
        "lr": recipe.learning_rate, "n-epochs": recipe.epochs, "batch-size": recipe.batch_size,
        "freqm": recipe.frequency_mask, "timem": recipe.time_mask, "mixup": recipe.mixup,
        "noise": recipe.noise_and_roll, "fstride": config.frequency_stride, "tstride": config.time_stride,
        "warmup": recipe.warmup_steps == WARMUP_STEPS, "target_length": recipe.clip_frames,
        "dataset_mean": recipe.mean, "dataset_std": recipe.std, "head_lr": recipe.head_learning_rate,
        "lrscheduler_start": recipe.decay_start, "lrscheduler_step": recipe.decay_every,
        "lrscheduler_decay": recipe.decay, "wa": recipe.average_epochs,
        "loss": {"binary_cross_entropy": "BCE", "cross_entropy": "CE"}[recipe.loss],
        "metrics": {"mAP": "mAP", "accuracy": "acc"}[recipe.metric], "drop_path_rate": config.drop_path_rate,
    } == {
        **published, "target_length": WHOLE_SECONDS.get(name, published["target_length"]),
        "drop_path_rate": published["drop_path_rate"] or UNSET_DROP_PATH,
    }
    assert recipe.warmup_steps in (0, WARMUP_STEPS)
    assert (recipe.weight_decay, recipe.betas, recipe.balanced) == (5e-7, [0.95, 0.999], False)


def test_what_a_recipe_does_not_say_about_the_network_stays(tmp_path):
    expected = {**read_recipe("esc50", FinetuningRecipe).model, "pooling": "cls"}
    assert read_recipe("esc50", FinetuningRecipe, ["model.pooling=cls"]).model == expected
    (tmp_path / "base.yaml").write_text((FinetuningRecipe.FOLDER / "esc50.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nmodel: {pooling: cls}\n")
    assert read_recipe(tmp_path / "mine.yaml", FinetuningRecipe).model == expected
    assert read_recipe("esc50", FinetuningRecipe).model == {
        "drop_path_rate": 0.1, "time_stride": 10, "frequency_stride": 10}


@pytest.mark.parametrize("overrides, strides", [
    ([], [10, 10]), (["checkpoint=ssamba_starter"], [64, 4]), (["model.patch_size=[128, 2]"], [128, 2]),
    (["checkpoint=ssamba_starter", "model.time_stride=2"], [64, 2]),
])
def test_strides_go_with_the_patches(overrides, strides):
    """They also stay when a fold's recipe is derived from the set's."""
    recipe = read_recipe("esc50", FinetuningRecipe, overrides)
    for config in (recipe.config(), dataclasses.replace(recipe, fold="1").config()):
        assert [config.frequency_stride, config.time_stride] == strides
        assert config.num_hidden_layers == (12 if recipe.checkpoint else 24)
        assert config.drop_path_rate == 0.1


def test_all_recipes_of_the_package_are_compared():
    assert {file.stem for file in FinetuningRecipe.FOLDER.glob("*.yaml")} == PUBLISHED.keys()


# The command

def test_the_command(tmp_path, recipe_file, capsys, monkeypatch):
    out, few = ["--out", str(tmp_path / "run")], ["--set", "epochs=1", "--device", "cpu"]
    with monkeypatch.context() as patch:
        stop_at(patch, "1", 2)
        assert main(["finetune", str(recipe_file(data="folds")), *out, *few]) == 130
    assert main(["finetune", str(recipe_file(data="folds")), *out, *few]) == 1
    assert "is not empty. Resume the run" in capsys.readouterr().err
    assert main(["finetune", str(recipe_file(data="folds")), *out, *few, "--resume"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert printed == [f"test {name} {results['test'][name]:.4f} ± {results['deviation'][name]:.4f}"
                       for name in ("accuracy", "mAP", "mAUC")]
    one = ["--out", str(tmp_path / "one"), *few, "--set", "fold=3"]
    assert main(["finetune", str(recipe_file(data="folds")), *one]) == 0
    accuracy = json.loads((tmp_path / "one" / "results.json").read_text())["test"]["accuracy"]
    assert f"test accuracy {accuracy:.4f}\n" in capsys.readouterr().out
    for arguments, message in (
        (["esc51", *out], "no recipe esc51: it is neither a file nor one of audioset20k, esc50"),
        (["esc50", "--out", str(tmp_path / "none")], "esc50.csv"),
        ([str(recipe_file("seconds.yaml", problem="per_second")), *out], "clip_frames must be whole seconds"),
        ([str(recipe_file()), "--out", str(tmp_path / "none"), "--set", "fold=1"], "'1' is not a fold of"),
        ([str(recipe_file()), "--out", str(tmp_path / "none"), "--set", "checkpoint=nowhere"], "nowhere"),
    ):
        assert main(["finetune", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_without_scikit_learn(tmp_path, recipe_file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    for name in ("metrics", "recipe", "trainer"):
        monkeypatch.delitem(sys.modules, f"ssamba_upstream.finetuning.{name}")
    assert main(["finetune", str(recipe_file()), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "sklearn" in error and "'ssamba-upstream[finetuning]'" in error
