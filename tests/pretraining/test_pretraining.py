"""Pretraining runs: outputs, resuming after an interruption, and errors."""

import errno
import json
import os
import runpy
import shutil
import signal
import socket
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.multiprocessing as multiprocessing

from helpers.paths import CHECKOUT
from helpers.runs import kill_before, logged, torchrun
from ssamba_upstream import SsambaModel, ops
from ssamba_upstream.checkpoint import load_model
from ssamba_upstream.cli import main
from ssamba_upstream.corpora.manifest import ManifestError, write_manifest
from ssamba_upstream.files import locked
from ssamba_upstream.network.pretraining import SsambaForPreTraining
from ssamba_upstream.pretraining import trainer
from ssamba_upstream.pretraining.recipe import PretrainingRecipe
from ssamba_upstream.pretraining.trainer import pretrain
from ssamba_upstream.training import training_state
from ssamba_upstream.training.distributed import start_processes
from ssamba_upstream.training.loop import Run
from ssamba_upstream.training.recipe import RecipeError, read_recipe
from ssamba_upstream.training.training_state import (
    TrainingError,
    load_training_state,
    save_training_state,
    training_states,
)

NETWORK = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 64, "drop_path_rate": 0.2}
SCHEDULE = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "learning_rate": 1e-3, "validate_every": 3, "save_every": 2,
            "log_every": 1, "workers": 0}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Twelve recordings of harmonics, 0.3 to 0.9 s long, and their manifest."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    for i in range(12):
        seconds = np.arange(int(16000 * random.uniform(0.3, 0.9))) / 16000
        wave = sum(np.sin(2 * np.pi * random.uniform(100, 4000) * seconds) for _ in range(4)) / 8
        soundfile.write(folder / f"{i:02d}.wav", wave + 0.01 * random.standard_normal(len(wave)), 16000)
    write_manifest([folder], folder / "all.jsonl")
    return folder


@pytest.fixture
def recipe_file(tmp_path, audio):
    """Return a function that writes a recipe with the given fields changed."""

    def write(name="recipe.yaml", model=None, **changes):
        manifest = str(audio / "all.jsonl")
        model = {**NETWORK, **(model or {})}
        fields = {"train": manifest, "validation": manifest, **SCHEDULE, "model": model, **changes}
        (tmp_path / name).write_text(json.dumps(fields))  # which is also YAML
        return tmp_path / name

    return write


@pytest.fixture
def recipe(recipe_file):
    return lambda **changes: read_recipe(recipe_file(**changes), PretrainingRecipe)


def weights(out):
    return load_model(out, model_class=SsambaForPreTraining).state_dict()


def assert_same_run(found, expected):
    for kind in ("training", "validation"):
        names = ("loss", "contrastive_accuracy", "reconstruction_loss")
        names += ("gradient_norm", "learning_rate") if kind == "training" else ()
        assert logged(found, *names, kind=kind) == logged(expected, *names, kind=kind)
    for name, tensor in weights(expected / "last").items():
        assert torch.equal(weights(found / "last")[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {},
    {"objective": "two_pass", "masking": "published", "schedule": "cosine", "join_short": True},
    {"accumulation": 2, "ema_decay": 0.9, "gradient_checkpointing": True},
    {"precision": "bfloat16", "model": {"block_order": "paired", "norm": "rms_norm"}},
])
def test_a_run_and_its_checkpoints(tmp_path, recipe, changes):
    assert pretrain(recipe(**changes), tmp_path / "run")
    steps = logged(tmp_path / "run", "loss", "clips_per_second", "waiting_for_data")
    assert [step for step, *_ in steps] == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(steps).all()
    assert [step for step, _ in logged(tmp_path / "run", "loss", kind="validation")] == [0, 3, 6]
    for name in ("best", "last"):
        folder = tmp_path / "run" / name
        encoder, heads = SsambaModel.from_pretrained(folder), load_model(folder, model_class=None)
        assert torch.equal(encoder.pos_embed, heads.ssamba.pos_embed)
        assert "## " not in (folder / "README.md").read_text().split("---")[1]
        description = json.loads((folder / "run.json").read_text())
        assert description["recipe"]["batch_size"] == 4 and list(description["manifests"].values())[0]
    assert main(["info", str(tmp_path / "run" / "best")]) == 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert all(1 < rank <= 12 for _, rank in logged(tmp_path / "run", "effective_rank", kind="validation"))


def test_the_upstream_reads_the_result(tmp_path, recipe):
    from ssamba_upstream.plugin.expert import UpstreamExpert

    pretrain(recipe(steps=1), tmp_path / "run")
    upstream = UpstreamExpert(str(tmp_path / "run" / "best"), window_secs=0.5)
    states = upstream([torch.randn(16000)])["hidden_states"]
    assert len(states) == 3 and states[0].shape == (1, 10, 12 * 32)


@pytest.mark.slow
def test_it_learns(tmp_path, recipe):
    pretrain(recipe(steps=30, learning_rate=5e-3, validate_every=30), tmp_path / "run")
    losses = [loss for _, loss in logged(tmp_path / "run", "loss")]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"workers": 2}, {"log_every": 5},
    {"join_short": True, "ema_decay": 0.5, "accumulation": 2, "objective": "two_pass", "patch_learning_rate": 0.1,
     "weight_decay": 0.1, "weight_decay_of": "projections"},
])
def test_resumed_runs_are_uninterrupted_runs_bit_for_bit(tmp_path, recipe, changes):
    pretrain(recipe(**changes), tmp_path / "whole")
    pretrain(recipe(**changes, steps=3, save_every=2), tmp_path / "parts")
    training_states(tmp_path / "parts" / "states")[0].unlink()  # as if killed during step 3
    assert pretrain(recipe(**changes), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("rate", [1, 0.1, 0])
def test_the_projection_of_the_patches_learns_at_its_own_rate(tmp_path, recipe, rate):
    """Adam's first step is as long as the learning rate, whatever the gradients are."""
    chosen = recipe(steps=1, patch_learning_rate=rate, learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)
    torch.manual_seed(chosen.seed)
    began = SsambaForPreTraining(chosen.config()).state_dict()
    pretrain(chosen, tmp_path / "run")
    learned = {name: (tensor - began[name]).abs().max().item()
               for name, tensor in weights(tmp_path / "run" / "last").items()}
    projection = [learned.pop(f"ssamba.patch_embed.proj.{part}") for part in ("weight", "bias")]
    assert projection == pytest.approx([1e-3 * rate] * 2, rel=0.01)
    assert median(learned.values()) == pytest.approx(1e-3, rel=0.01) and all(learned.values())


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_only_the_weights_of_projections_decay(tmp_path, recipe, norm):
    """A step with zero gradients changes only the weights that decay, by learning rate x decay."""
    chosen = recipe(weight_decay_of="projections", weight_decay=0.5, patch_learning_rate=0.1, model={"norm": norm})
    with start_processes("cpu") as processes:
        run = trainer._Pretraining(chosen, tmp_path, {}, processes)
    began = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    kinds = (".in_proj", ".out_proj", ".x_proj", ".dt_proj", ".conv1d", ".proj.", "_head.")
    decayed = {name for name in began if name.endswith(".weight") and any(kind in name for kind in kinds)}
    assert len(decayed) == 2 * 8 + 1 + 4
    for name, tensor in run.model.state_dict().items():
        factor = 1.0 if name not in decayed else 1 - 1e-3 * 0.5 * (0.1 if "patch_embed" in name else 1)
        torch.testing.assert_close(tensor, began[name] * factor, rtol=1e-6, atol=0, msg=name)
        assert torch.equal(tensor, began[name]) == (name not in decayed), name


@pytest.mark.parametrize("rate, decay", [(1e-4, 5e-8), (5e-4, 5e-8), (3 * 1e-4, 5e-7), (2.5e-4, 5e-7)])
def test_the_published_weight_decay_changes_nothing(rate, decay):
    """Its contribution to a step is below float32's precision for every parameter."""
    stepped = []
    for weight_decay in (0.0, decay):
        parameter = torch.nn.Parameter(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
        parameter.grad = parameter.detach().sin()
        torch.optim.AdamW([parameter], lr=rate, weight_decay=weight_decay).step()
        stepped.append(parameter.detach())
    assert torch.equal(*stepped)


def test_a_state_of_an_earlier_version_is_resumed(tmp_path, recipe):
    """Its state names the libraries of the linear products, which are now chosen by a rule."""
    chosen, run = recipe(steps=3), tmp_path / "run"
    pretrain(chosen, run)
    shutil.copytree(run, tmp_path / "whole")
    training_states(run / "states")[0].unlink()  # as if killed during step 3
    state = load_training_state(run / "states") | {"linear_products": ["onednn", "torch", "torch"]}
    save_training_state(run / "states", 2, state, chosen.keep)
    assert pretrain(chosen, run, resume=True)
    assert_same_run(run, tmp_path / "whole")


def test_a_run_without_the_compiled_kernel_says_that_it_is_slow(tmp_path, recipe, capsys, monkeypatch):
    monkeypatch.setattr(ops, "_best", {})
    monkeypatch.setattr(ops.cpu, "unavailable_reason", lambda: "it was not built")
    pretrain(recipe(steps=1), tmp_path / "run")
    told = "scans take several times longer than with the 'cpu' backend, which is not available: it was not built"
    assert told in capsys.readouterr().out


def test_a_network_that_makes_the_same_of_every_clip_is_told_of(tmp_path, recipe, capsys, monkeypatch):
    pretrain(recipe(steps=1), tmp_path / "sound")
    assert "collapsed" not in capsys.readouterr().out
    monkeypatch.setattr(trainer, "SsambaForPreTraining", constant_network)
    pretrain(recipe(steps=1), tmp_path / "collapsed")
    assert "the network has collapsed" in capsys.readouterr().out


def test_figures_that_are_not_numbers(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(trainer, "effective_rank", lambda averages: float("nan"))
    run = tmp_path / "run"
    assert pretrain(recipe(steps=1), run)
    assert logged(run, "effective_rank", kind="validation") == [[0, None], [1, None]]
    assert json.loads((run / "last" / "run.json").read_text())["validation"]["effective_rank"] is None
    assert "| effective rank | - |" in (run / "last" / "README.md").read_text()
    assert (run / "curves.png").is_file()
    assert not any("NaN" in file.read_text() for file in [*run.rglob("*.json"), *run.rglob("*.jsonl")])


def constant_network(config):
    """Return a network that ignores its patches."""
    model = SsambaForPreTraining(config)
    torch.nn.init.zeros_(model.ssamba.patch_embed.proj.weight)
    return model


@pytest.mark.slow
def test_a_probe_shows_progress_and_changes_nothing(tmp_path, recipe, audio, capfd):
    rows = [f"{audio / f'{i:02d}.wav'},{'ab'[i % 2]}" for i in range(12)]
    (tmp_path / "labelled.csv").write_text("\n".join(["path,label", *rows]))
    pretrain(recipe(probe=str(tmp_path / "labelled.csv"), probe_every=4), tmp_path / "probed")
    accuracies = logged(tmp_path / "probed", "test_accuracy", kind="probe")
    assert [step for step, _ in accuracies] == [4, 6] and all(0 <= accuracy <= 1 for _, accuracy in accuracies)
    shown = capfd.readouterr().err
    assert all(f"probe={accuracy:.4g}" in shown for _, accuracy in accuracies)
    assert f"probe={accuracies[-1][1]:.4g}" in shown.splitlines()[-1].split("\r")[-1]
    pretrain(recipe(), tmp_path / "plain")
    assert_same_run(tmp_path / "probed", tmp_path / "plain")


@pytest.mark.slow
def test_a_recording_that_cannot_be_probed_does_not_end_the_run(tmp_path, recipe, audio):
    soundfile.write(tmp_path / "loud.wav", np.full(16000, 1e30, np.float32), 16000, subtype="FLOAT")
    rows = [f"{audio / f'{i:02d}.wav'},{'ab'[i % 2]}" for i in range(12)] + [f"{tmp_path / 'loud.wav'},a"]
    (tmp_path / "labelled.csv").write_text("\n".join(["path,label", *rows]))
    assert pretrain(recipe(probe=str(tmp_path / "labelled.csv"), probe_every=4), tmp_path / "run")
    assert [step for step, _ in logged(tmp_path / "run", "test_accuracy", kind="probe")] == [4, 6]
    assert all(line.startswith(f"{tmp_path / 'loud.wav'}: holds samples of up to")
               for _, line in logged(tmp_path / "run", "unreadable", kind="event"))
    assert logged(tmp_path / "run", "unreadable", kind="event")


def test_a_probe_without_dev_is_refused_before_the_first_step(tmp_path, recipe, audio):
    rows = [f"{path.name},{i % 2},{'test' if i < 4 else 'train'}" for i, path in enumerate(sorted(audio.glob("*.wav")))]
    (audio / "no_dev.csv").write_text("path,label,split\n" + "\n".join(rows))
    with pytest.raises(ValueError, match="no utterance in dev"):
        pretrain(recipe(probe=str(audio / "no_dev.csv"), probe_every=4), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_another_number_of_processes_goes_on_with_the_mean_of_what_was_to_be_logged():
    reports = [[{"losses": torch.tensor([loss, 1.0]), "clips": 8}] for loss in (2.0, 4.0)]
    for world_size, expected in ((2, 4.0), (1, 3.0), (3, 3.0)):
        run = SimpleNamespace(processes=SimpleNamespace(world_size=world_size, rank=min(1, world_size - 1)))
        (report,) = Run._own_reports(run, reports)
        assert report["losses"].tolist() == [expected, 1.0] and report["clips"] == 8


@pytest.mark.slow
def test_kill_9_and_resume(tmp_path, recipe_file, recipe):
    file = recipe_file(steps=40)
    run = tmp_path / "run"
    kill_before(run, 40, "pretrain", file, "--out", run, "--resume", after=0.4)
    assert len(training_states(run / "states")) <= 3
    assert pretrain(read_recipe(file, PretrainingRecipe), run, resume=True)
    pretrain(read_recipe(file, PretrainingRecipe), tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("method", ["step", "after_step"])
def test_a_signal_saves_and_stops(tmp_path, recipe, monkeypatch, method, number):
    """The signal arrives during the step, or during the validation or probe after it."""
    uninterrupted = getattr(trainer._Pretraining, method)

    def interrupted(self, n, *arguments):
        result = uninterrupted(self, n, *arguments)
        if n == 3:
            os.kill(os.getpid(), number)
        return result

    before = signal.getsignal(number)
    monkeypatch.setattr(trainer._Pretraining, method, interrupted)
    assert not pretrain(recipe(), tmp_path / "run")
    assert signal.getsignal(number) is before
    assert training_states(tmp_path / "run" / "states")[0].name == "step-00000003.pt"
    monkeypatch.undo()
    assert pretrain(recipe(), tmp_path / "run", resume=True)
    pretrain(recipe(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_states_are_few_and_damaged_ones_are_passed_over(tmp_path):
    for step in (1, 2, 3, 10):
        save_training_state(tmp_path, step, {"weights": torch.full((1000,), float(step))}, keep=3)
    assert [file.name for file in training_states(tmp_path)] == [f"step-{n:08d}.pt" for n in (10, 3, 2)]
    newest, second, third = training_states(tmp_path)
    newest.write_bytes(newest.read_bytes()[:2000])
    content = bytearray(second.read_bytes())
    content[2000] ^= 1  # within the weights
    second.write_bytes(content)
    said = []
    assert load_training_state(tmp_path, said.append)["weights"][0] == 2
    assert [str(file) in sentence for file, sentence in zip((newest, second), said)] == [True, True]
    third.write_bytes(b"")
    with pytest.raises(TrainingError, match="no training state in .* can be read"):
        load_training_state(tmp_path, said.append)
    assert load_training_state(tmp_path / "none") is None


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_state(tmp_path, recipe, monkeypatch):
    save = torch.save

    def full_disk(state, file):
        if state.get("progress", {}).get("step") == 4:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(training_state.torch, "save", full_disk)
    with pytest.raises(TrainingError, match="the disk is full. --resume continues from .*, .*step-00000002.pt"):
        pretrain(recipe(), tmp_path / "run")
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "run" / "states").iterdir()] == ["step-00000002.pt"]
    assert pretrain(recipe(), tmp_path / "run", resume=True)
    pretrain(recipe(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("bad_steps, stops", [(range(2, 6), False), (range(2, 100), True)])
def test_gradients_that_are_not_finite(tmp_path, recipe, monkeypatch, bad_steps, stops):
    forward = trainer._Pretraining.forward
    calls = []

    def poisoned(self, network, *arguments):
        output = forward(self, network, *arguments)
        if network.training:
            calls.append(1)
            if len(calls) in bad_steps:
                output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(trainer._Pretraining, "forward", poisoned)
    run = recipe(steps=14, save_every=1, validate_every=14)
    if stops:
        with pytest.raises(TrainingError, match="steps 2 to 11 had gradients that are not finite"):
            pretrain(run, tmp_path / "run")
        return
    pretrain(run, tmp_path / "run")
    assert logged(tmp_path / "run", "skipped")[-1] == [14, 4]
    assert [loss is None for _, loss in logged(tmp_path / "run", "loss")] == [2 <= step < 6 for step in range(1, 15)]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "last").values())


def test_learning_rates(tmp_path, recipe):
    pretrain(recipe(schedule="cosine"), tmp_path / "cosine")
    rates = [rate for _, rate in logged(tmp_path / "cosine", "learning_rate")]
    expected = [5e-4, 1e-3, *(0.5e-3 * (1 + np.cos(np.pi * done / 4)) for done in (1, 2, 3, 4))]
    np.testing.assert_allclose(rates, expected, atol=1e-12)


def test_the_plateau_halves_the_learning_rate(tmp_path, recipe, monkeypatch):
    validations = iter([0.3, 0.5, 0.4, 0.4, 0.6, 0.6, 0.6])

    def constant(self, step):
        self.plateau.step(next(validations))

    monkeypatch.setattr(trainer._Pretraining, "_validate", constant)
    pretrain(recipe(validate_every=1, patience=1, warmup_steps=1), tmp_path / "run")
    rates = [rate for _, rate in logged(tmp_path / "run", "learning_rate")]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4])


@pytest.mark.slow
def test_the_best_checkpoint_is_the_one_of_the_best_validation(tmp_path, recipe):
    pretrain(recipe(steps=12, validate_every=2, learning_rate=3e-3), tmp_path / "run")
    validations = dict(logged(tmp_path / "run", "contrastive_accuracy", kind="validation"))
    best = json.loads((tmp_path / "run" / "best" / "run.json").read_text())
    assert validations[best["step"]] == max(validations.values())
    assert validations[best["step"]] == best["validation"]["contrastive_accuracy"]
    assert json.loads((tmp_path / "run" / "last" / "run.json").read_text())["step"] == 12


def test_a_run_from_before_a_field_goes_on_with_its_default(tmp_path, recipe):
    pretrain(recipe(steps=1), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    description = json.loads(file.read_text())
    del description["recipe"]["patch_learning_rate"], description["recipe"]["weight_decay_of"]
    file.write_text(json.dumps(description))
    with pytest.raises(RecipeError, match="started with weight_decay_of 'all', not 'projections'"):
        pretrain(recipe(steps=2, weight_decay_of="projections"), tmp_path / "run", resume=True)
    with pytest.raises(RecipeError, match="started with patch_learning_rate 1.0, not 0.1"):
        pretrain(recipe(steps=2, patch_learning_rate=0.1), tmp_path / "run", resume=True)
    assert pretrain(recipe(steps=2), tmp_path / "run", resume=True)


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(tmp_path, recipe, monkeypatch):
    with pytest.raises(ManifestError, match="there is no manifest .*nowhere.jsonl"):
        pretrain(recipe(train=str(tmp_path / "nowhere.jsonl")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    first_step = Run.step
    for failing in (1, 2):
        def step(run, number, batches, failing=failing):
            return 1 / 0 if number == failing else first_step(run, number, batches)

        monkeypatch.setattr(Run, "step", step)
        with pytest.raises(ZeroDivisionError):
            pretrain(recipe(), tmp_path / "run")
        assert (tmp_path / "run").exists() == (failing == 2)
    with pytest.raises(FileExistsError):
        pretrain(recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "log.jsonl").is_file()


def test_what_cannot_be_resumed(tmp_path, recipe, audio):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(BlockingIOError, match="another process is writing .*run. Wait"):
        pretrain(recipe(steps=1), tmp_path / "run", resume=True)
    pretrain(recipe(steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(FileExistsError, match="is not empty. Resume the run"):
        pretrain(recipe(), tmp_path / "run")
    with pytest.raises(RecipeError, match="started with learning_rate 0.001, not 0.01"):
        pretrain(recipe(learning_rate=0.01), tmp_path / "run", resume=True)
    shorter = tmp_path / "all.jsonl"
    shorter.write_text("".join((audio / "all.jsonl").read_text().splitlines(keepends=True)[:8]))
    run = recipe(steps=1, train=str(shorter))
    pretrain(run, tmp_path / "other")
    shorter.write_text("".join((audio / "all.jsonl").read_text().splitlines(keepends=True)[:9]))
    with pytest.raises(RecipeError, match="all.jsonl"):
        pretrain(run, tmp_path / "other", resume=True)


def test_unreadable_files_are_counted_and_listed(tmp_path, recipe, audio):
    lines = (audio / "all.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    manifest = tmp_path / "mixed.jsonl"
    manifest.write_text("".join(lines[:6]) + json.dumps({"path": str(tmp_path / "torn.wav")}) + "\n")
    assert pretrain(recipe(train=str(manifest)), tmp_path / "run")
    assert logged(tmp_path / "run", "unreadable")[-1][1] > 0
    assert "torn.wav" in logged(tmp_path / "run", "unreadable", kind="event")[0][1]


def test_validation_without_a_readable_file_ends_the_run_readably(tmp_path, recipe):
    (tmp_path / "gone.jsonl").write_text(json.dumps({"path": str(tmp_path / "gone.wav")}) + "\n")
    with pytest.raises(TrainingError, match="no validation clip can be read: .*gone.jsonl"):
        pretrain(recipe(validation=str(tmp_path / "gone.jsonl")), tmp_path / "run")


@pytest.mark.parametrize("changes, message", [
    ({"steps": 0}, "steps must be a whole number from 1; got 0"),
    ({"learning_rate": "1e-4"}, "learning_rate must be a number above 0; got '1e-4'. YAML reads"),
    ({"patch_learning_rate": -1}, "patch_learning_rate must be a number from 0; got -1"),
    ({"weight_decay_of": "matrices"}, "weight_decay_of must be one of all, projections; got 'matrices'"),
    ({"masking": "random"}, "masking must be one of corrected, published; got 'random'"),
    ({"lr": 1}, "no field lr; the fields are accumulation"),
    ({"train": []}, "train lists no manifest"),
    ({"model": {"deptth": 2}}, "model has no field deptth"),
    ({"model": {"dtype": "float16"}}, "model has no field dtype"),
    ({"model": {"block_order": "odd"}}, "model: block_order must be one of"),
])
def test_bad_recipes(recipe_file, changes, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe_file(**changes), PretrainingRecipe)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_used_where_the_recipe_says_so(tmp_path, recipe, monkeypatch, precision):
    libraries, seen = (torch.backends.cuda.matmul, torch.backends.cudnn), []
    before = [library.allow_tf32 for library in libraries]
    forward = trainer._Pretraining.forward

    def watched(*arguments):
        seen.append([library.allow_tf32 for library in libraries])
        return forward(*arguments)

    monkeypatch.setattr(trainer._Pretraining, "forward", watched)
    pretrain(recipe(precision=precision, steps=1), tmp_path / "run")
    assert seen and all(used == [precision == "tf32"] * 2 for used in seen)
    assert [library.allow_tf32 for library in libraries] == before


def test_recipes_of_the_package():
    for size in ("tiny", "small", "base"):
        half = read_recipe(f"{size}_400_bfloat16", PretrainingRecipe).to_dict()
        assert half == read_recipe(f"{size}_400", PretrainingRecipe).to_dict() | {"precision": "bfloat16"}
    names = {f"{size}_{masked}" for size in ("tiny", "small", "base") for masked in (250, 300, 400)}
    assert names < {file.stem for file in PretrainingRecipe.FOLDER.glob("*.yaml")}
    for name in names:
        recipe = read_recipe(name, PretrainingRecipe)
        assert f"{recipe.config().size}_{recipe.config().masked_patches}" == name
        assert (recipe.batch_size, recipe.learning_rate, recipe.config().drop_path_rate) == (64, 1e-4, 0.1)
        assert (recipe.weight_decay, recipe.weight_decay_of) == (5e-8, "all")
    changed = read_recipe("smoke", PretrainingRecipe, ["steps=7", "model.norm=rms_norm", "train=[a.jsonl, b.jsonl]"])
    assert (changed.steps, changed.config().norm, changed.train) == (7, "rms_norm", ["a.jsonl", "b.jsonl"])
    assert changed.config().pretraining_frames == 256
    little = read_recipe("one_hour", PretrainingRecipe)
    assert (little.patch_learning_rate, little.config().patch_size) == (0.03, [32, 8])
    for name in ("one_hour", "starter"):
        assert read_recipe(name, PretrainingRecipe).weight_decay_of == "projections"
    listening = read_recipe("stream", PretrainingRecipe).config()
    assert listening.causal and listening.position_grid == (1, 32)
    with pytest.raises(RecipeError, match="neither a file nor one of audioset_librispeech, base_250"):
        read_recipe("huge", PretrainingRecipe)


def test_the_recipes_of_the_study_can_be_followed(tmp_path):
    recipe_files = runpy.run_path(str(CHECKOUT / "scripts" / "study.py"))["recipe_files"]
    recipes = recipe_files([], tmp_path)
    assert len(recipes) > 20 and recipe_files(["base", Path("own.yaml")], tmp_path) == [
        tmp_path / "base.yaml", Path("own.yaml")]
    for file in recipes:
        recipe = read_recipe(file, PretrainingRecipe, ["train=train.tsv", "validation=validation.tsv"])
        assert recipe.config().num_hidden_layers == 12


def test_a_recipe_of_ones_own_extends_one_of_the_package(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: tiny_300\nsteps: 9\nmodel: {drop_path_rate: 0.0}\n")
    mine = read_recipe(tmp_path / "mine.yaml", PretrainingRecipe)
    assert (mine.steps, mine.batch_size) == (9, 64)
    assert (mine.config().masked_patches, mine.config().drop_path_rate) == (300, 0.0)
    (tmp_path / "mine.yaml").write_text("extends: huge\n")
    with pytest.raises(RecipeError, match="no recipe huge"):
        read_recipe(tmp_path / "mine.yaml", PretrainingRecipe)


def test_batches_that_cannot_be_divided(tmp_path, recipe):
    with pytest.raises(ValueError, match="batch_size 4 cannot be divided into 3 parts"):
        pretrain(recipe(accumulation=3), tmp_path / "run")


def test_one_process_of_torchrun_joins_its_group(monkeypatch):
    with start_processes("cpu") as processes:
        assert not processes.joined
    started = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with start_processes("cpu") as processes:
        assert processes.joined and processes.any(True) and not processes.any([]) and processes.gather(2) == [2]
        assert processes.sum(torch.tensor(3.0)) == 3
    assert not processes.joined


def _gradient_of_a_rank(rank, port, model, fbank, mask, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    from ssamba_upstream.training.distributed import start_processes

    with start_processes("cpu") as processes:
        network = torch.nn.parallel.DistributedDataParallel(model)
        clips = slice(2 * rank, 2 * rank + 2)
        network(fbank[clips], mask[clips]).loss.backward()
        assert processes.gather(rank) == [0, 1] and processes.any(rank == 1)
        if processes.first:
            torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, folder / "gradient.pt")
        del network


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_joint_batch(tmp_path, recipe):
    model = SsambaForPreTraining(recipe(model={"drop_path_rate": 0}).config())
    fbank, mask = torch.randn(4, 64, 128), torch.arange(32).expand(4, -1) < 20
    model(fbank, mask).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # a free port
    multiprocessing.spawn(_gradient_of_a_rank, (port, model, fbank, mask, tmp_path), nprocs=2)
    found = torch.load(tmp_path / "gradient.pt", weights_only=True)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_torchrun(tmp_path, recipe_file):
    arguments = ["pretrain", recipe_file(steps=3), "--out", tmp_path / "run"]
    assert "done: wrote the checkpoints" in torchrun(*arguments)
    assert [step for step, _ in logged(tmp_path / "run", "loss")] == [1, 2, 3]
    assert "resuming after step 3" in torchrun(*arguments, "--set", "steps=4", "--resume")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_on_a_gpu(tmp_path, recipe, recipe_file, precision):
    """Under torchrun, so that the run uses NCCL; it stops and resumes."""
    changes = {"precision": precision, "workers": 2}
    assert pretrain(recipe(**changes, steps=3), tmp_path / "run", device="cuda")
    goes_on = ["pretrain", recipe_file(**changes), "--out", tmp_path / "run", "--resume"]
    said = torchrun(*goes_on, processes=1, device="cuda")
    assert "resuming after step 3" in said and "done: wrote the checkpoints" in said


@pytest.mark.slow
def test_show_masks(tmp_path, recipe, audio, capsys):
    pretrain(recipe(steps=1), tmp_path / "run")
    picture = tmp_path / "masks.png"
    assert main(["show-masks", str(tmp_path / "run" / "best"), str(audio / "00.wav"), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and "mean squared error" in capsys.readouterr().out
    assert main(["show-masks", str(tmp_path / "run" / "best"), "nowhere.wav", "--out", str(tmp_path / "none.png")]) == 1
    assert "nowhere.wav cannot be read as audio: does not exist" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()
