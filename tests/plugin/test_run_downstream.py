"""scripts/run_downstream.py: three tasks with s3prl's own runner, and the handling of arguments."""

import argparse
import importlib.metadata
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.paths import CHECKOUT
from helpers.s3prl_runs import run
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.configs import config_names, configs_folder
from ssamba_upstream.corpora.superb.iemocap import write_iemocap
from ssamba_upstream.corpora.superb.speech_commands import write_speech_commands
from ssamba_upstream.corpora.superb.utterances import Utterance
from ssamba_upstream.corpora.superb.voxceleb1 import write_voxceleb1
from ssamba_upstream.plugin import compat, runner
from ssamba_upstream.plugin.overrides import check_field, fields_of
from ssamba_upstream.plugin.repairs.frames import RunError

CPU = ("--device", "cpu")
TASKS = {
    "voxceleb1": "speaker_identification",
    "emotion": "emotion_recognition",
    "speech_commands": "keyword_spotting",
}

pytestmark = [pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"s3prl needs {name}")
              for name in ("librosa", "tensorboardX")]


SECONDS = (0.4, 0.05, 0.3, 0.0125)
"""Lengths of consecutive recordings: all different, and two shorter than a frame."""


def tone(pitch, number, seconds=None):
    samples = np.arange(int(16000 * (seconds or SECONDS[number % len(SECONDS)])))
    noise = np.random.default_rng(number).standard_normal(len(samples))
    return 0.3 * np.sin(2 * np.pi * pitch * samples / 16000) + 0.02 * noise


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The three corpora in their official layouts, with a different pitch per label, as s3prl's paths for each."""
    folder = tmp_path_factory.mktemp("corpora")
    write_voxceleb1(folder / "VoxCeleb1", [
        Utterance(tone(150 * speaker, number), f"id1000{speaker}", recording="video",
                  split={4: "dev", 5: "test"}.get(number, "train"))
        for speaker in (1, 2, 3) for number in range(6)])
    write_iemocap(folder / "IEMOCAP", [
        Utterance(tone(150 * pitch, number), emotion, f"Ses0{session}F", recording="impro01")
        for session in range(1, 6) for pitch, emotion in enumerate(("neu", "hap", "ang", "sad"), start=1)
        for number in range(2)])
    write_speech_commands(folder, [
        Utterance(tone(150 * pitch, number), word, f"{number:08x}", split="test" if number >= 12 else "train")
        for pitch, word in enumerate(("yes", "no", "_unknown_"), start=1) for number in range(14)
    ], backgrounds={"hum": tone(50, 0, seconds=2)})
    return {
        "voxceleb1": {
            "file_path": folder / "VoxCeleb1",
            "meta_data": folder / "VoxCeleb1" / "veri_test_class.txt",
            "train_batch_size": 4,
        },
        "emotion": {
            "root": folder / "IEMOCAP",
            "meta_data": folder / "IEMOCAP" / "meta_data",
        },
        "speech_commands": {
            "speech_commands_root": folder / "speech_commands_v0.01",
            "speech_commands_test_root": folder / "speech_commands_test_set_v0.01",
            "batch_size": 4,
        },
    }


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """The upstream under test, as run_downstream's arguments."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    torch.manual_seed(0)
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=2)), checkpoint)
    return ["-u", "ssamba_tiny", "-k", str(checkpoint)]


@pytest.fixture(scope="module", autouse=True)
def installation_untouched():
    folder = Path(importlib.util.find_spec("s3prl").origin).parent

    def files():
        paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
        return {path: path.stat().st_mtime_ns for path in paths}

    before = files()
    yield
    assert files() == before


def python(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def run_downstream(*arguments, folder):
    return python(CHECKOUT / "scripts" / "run_downstream.py", *arguments, *CPU, folder=folder)


def run_several(*runs, folder):
    """Do several runs in one new process, which imports everything only once."""
    calls = "\n".join(f"main({[*run, *CPU]!r})" for run in runs)
    return python("-c", f"from ssamba_upstream.plugin.runner import main\n{calls}", folder=folder)


def overrides(datarc, **runner):
    values = {f"downstream_expert.datarc.{name}": value for name, value in datarc.items()}
    values |= {f"runner.{name}": value for name, value in runner.items()}
    values |= {"downstream_expert.datarc.num_workers": 0, "optimizer.lr": 0.01}
    return ["-o", ",,".join(f"config.{name}={value}" for name, value in values.items())]


def load_states(path):
    compat.apply()
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("downstream", TASKS)
def test_trains_evaluates_and_resumes(downstream, corpora, upstream, tmp_path):
    train = ["-m", "train", *upstream, "-d", downstream, "-c", TASKS[downstream], "-p", "run"]
    steps = dict(log_step=5, eval_step=10, save_step=20, gradient_accumulate_steps=1)
    printed, losses = run([*train, *overrides(corpora[downstream], total_steps=20, **steps)], folder=tmp_path)
    assert losses is not None, printed
    assert len(losses) == 20 and all(math.isfinite(loss) and loss != 0 for loss in losses), losses
    assert sum(losses[-5:]) < sum(losses[:5]), losses
    log = (tmp_path / "run" / "log.log").read_text()
    best_step = re.findall(r"New best on dev at step (\d+)", log)[-1]
    accuracy = re.search(rf"test at step {best_step}: (.*)", log)[1]

    evaluate = ["-m", "evaluate", "-e", "run/dev-best.ckpt"]
    resume = [*train, "-a", *overrides({}, total_steps=22, **{**steps, "save_step": 2})]
    printed = run_several(evaluate, resume, folder=tmp_path)
    assert f"test acc: {accuracy}" in printed
    fold = "_fold1" if downstream == "emotion" else ""
    predicted, truth = ((tmp_path / "run" / f"test{fold}_{kind}.txt").read_text().splitlines()
                        for kind in ("predict", "truth"))
    assert float(accuracy) == pytest.approx(np.mean([p == t for p, t in zip(predicted, truth, strict=True)]))

    assert "Resume from run/states-20.ckpt" in printed
    resumed = load_states(tmp_path / "run" / "states-22.ckpt")
    assert resumed["Step"] == 22
    assert {float(state["step"]) for state in resumed["Optimizer"]["state"].values()} == {22.0}


@pytest.mark.slow
def test_fine_tuning_trains_the_upstream(corpora, upstream, tmp_path):
    run_downstream("-m", "train", *upstream, "-f", "-d", "speech_commands", "-c", "keyword_spotting_finetune",
                   "-p", "run", *overrides(corpora["speech_commands"], total_steps=2, save_step=2),
                   folder=tmp_path)
    trained = load_states(tmp_path / "run" / "states-2.ckpt")["Upstream"]
    initial = load_file(Path(upstream[-1]) / "model.safetensors")
    moved = [name for name, value in initial.items() if not torch.equal(trained[f"model.{name}"], value)]
    assert len(moved) > 0.9 * len(initial)


DISTRIBUTED = """
import sys
from collections import Counter

import torch
import torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel

from ssamba_upstream.plugin import compat

compat.apply()
from s3prl.downstream.runner import defaultdict
from s3prl.downstream.speech_commands.expert import DownstreamExpert

train, test = sys.argv[1:]
config = {"datarc": {"speech_commands_root": train, "speech_commands_test_root": test, "num_workers": 0,
                     "batch_size": 4},
          "modelrc": {"projector_dim": 16, "select": "UtteranceLevel",
                      "UtteranceLevel": {"pooling": "MeanPooling"}}}
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
expert = DownstreamExpert(upstream_dim=100, downstream_expert=config, expdir=".")
model = DistributedDataParallel(expert, find_unused_parameters=True)
torch.manual_seed(rank)
loader = expert.get_dataloader("train")
loader.sampler.set_epoch(1)

shares, losses, gradients = [None, None], [None, None], [None, None]
distributed.all_gather_object(shares, list(loader.sampler))
records = defaultdict(list)
for wavs, *others in loader:
    features = [torch.from_numpy(wav[:3200]).view(-1, 100) for wav in wavs]
    model("train", features, *others, records=records).backward()
distributed.all_gather_object(losses, records["loss"])
distributed.all_gather_object(gradients, expert.projector.weight.grad)
if rank == 0:
    size = len(expert.train_dataset)
    drawn = Counter(loader.sampler.sampler.__class__(expert.train_dataset.sample_weights, size,
                    generator=torch.Generator().manual_seed(1)))
    shared = Counter(shares[0]) + Counter(shares[1])
    assert not drawn - shared and (shared - drawn).total() == size % 2, (drawn, shared)
    assert losses[0] != losses[1] and len(losses[0]) == len(loader)
    assert torch.equal(*gradients)
    print("shared", size)
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(any(importlib.metadata.distributions(name="catalyst")), reason="catalyst is installed")
def test_keyword_spotting_is_shared_among_processes(corpora, tmp_path):
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    corpus = corpora["speech_commands"]
    printed = python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py",
                     corpus["speech_commands_root"], corpus["speech_commands_test_root"], folder=tmp_path)
    assert re.search(r"shared \d+", printed)


# The arguments


@pytest.fixture
def handed_over(monkeypatch, tmp_path):
    """Return a function that calls the runner with s3prl's main replaced, and returns the arguments it gets."""
    from ssamba_upstream import register

    register()
    from s3prl import run_downstream

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    def call(*arguments, main=lambda: None):
        received = []

        def fake_main():
            received.extend(sys.argv[1:])
            main()

        monkeypatch.setattr(run_downstream, "main", fake_main)
        before = list(sys.argv)
        try:
            runner.main(list(arguments))
        finally:
            assert sys.argv == before
        return received

    return call


def test_other_arguments_pass_unchanged(handed_over):
    arguments = ["-m", "evaluate", "-e", "dev-best.ckpt", "-fa", "-o", "config.runner.total_steps=1", *CPU]
    assert handed_over(*arguments) == arguments


@pytest.mark.parametrize("option", [
    ["-c", "keyword_spotting"], ["-ckeyword_spotting"], ["--config=keyword_spotting"]])
def test_configs_by_short_name(handed_over, option):
    *given, name, path = handed_over(*option, *CPU)
    assert (given, name) == ([*option, *CPU], "--config")
    assert yaml.safe_load(Path(path).read_text())["downstream_expert"]["datarc"]["batch_size"] == 32


def test_upstream_configs_by_short_name(handed_over):
    name, path = handed_over("-g", "published_10s", *CPU)[-2:]
    assert name == "--upstream_model_config"
    assert Path(path).name == "published_10s.yaml" and Path(path).is_file()
    assert handed_over("-g", "https://host/model.yaml", *CPU) == ["-g", "https://host/model.yaml", *CPU]


def test_a_file_comes_before_a_short_name(handed_over, tmp_path):
    (tmp_path / "keyword_spotting").write_text("runner: {}\n")
    assert handed_over("-c", "keyword_spotting", *CPU) == ["-c", "keyword_spotting", *CPU]


@pytest.mark.parametrize("option, named", [("-c", "keyword_spotting_finetune"), ("-g", "hop_20ms")])
def test_an_unknown_name_lists_the_names(handed_over, option, named):
    with pytest.raises(SystemExit, match=f"absent.*{named}"):
        handed_over(option, "absent", *CPU)


def test_torchrun_gives_the_local_rank(handed_over, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert handed_over("--local-rank=1")[-2:] == ["--local_rank", "1"]
    assert handed_over() == []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert handed_over() == ["--local_rank", "3"]
    with pytest.raises(SystemExit, match="one GPU per process"):
        handed_over(*CPU)


def test_devices(handed_over, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ([], ["--device", "cuda:1"]):
        with pytest.raises(SystemExit, match="Add --device cpu"):
            handed_over(*arguments)
    assert handed_over("-o", "args.device='cpu'") == ["-o", "args.device='cpu'"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    handed_over(*CPU)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def opening(path):
    def main():
        open(path)
    return main


def test_missing_files_are_explained(handed_over):
    with pytest.raises(SystemExit, match="-c.*emotion_recognition.*keyword_spotting"):
        handed_over(*CPU, main=opening("./downstream/emotion/config.yaml"))
    with pytest.raises(SystemExit, match="/path/to/VoxCeleb1.*-o"):
        handed_over(*CPU, main=opening("/path/to/VoxCeleb1/split.txt"))
    with pytest.raises(SystemExit, match="^another.txt does not exist. Correct the path.$"):
        handed_over(*CPU, main=opening("another.txt"))


def test_interruption_ends_with_its_status(handed_over, capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        handed_over(*CPU, main=main)
    assert exit.value.code == 130
    assert "-a" in capsys.readouterr().err


# Overrides


@pytest.fixture
def override(monkeypatch):
    """Apply s3prl's -o to a config, as run_downstream does."""
    from ssamba_upstream import register

    register()
    from s3prl import run_downstream

    def override(option, name="keyword_spotting"):
        config = yaml.safe_load((configs_folder("downstream") / f"{name}.yaml").read_text())
        arguments = argparse.Namespace(expdir="run", seed=1)
        run_downstream.override(option, arguments, config)
        return config, arguments

    return override


@pytest.mark.parametrize("option, message", [
    ("config.runner.totalsteps=100", "s3prl reads no such field. Did you mean config.runner.total_steps?"),
    ("config.runner.total_steps=4,,config.optimiser.lr=1", "Did you mean config.optimizer.lr?"),
    ("config.specaug.time_mask_width=[0, 1]", "Did you mean config.specaug.time_mask_width_range?"),
    ("config.xyz=1", "config.xyz: s3prl reads no such field.$"),
    ("args.sed=1", "s3prl has no such argument. Did you mean args.seed?"),
    ("confg.runner.total_steps=1", "expected config.<section>.<field>=<value>"),
    ("config.runner.total_steps", "expected config"), ("config.a=b=c", "with one ="), ("", "expected config"),
    ("config.upstream_config='hop_20ms'", "Give them with -g"),
])
def test_an_override_without_effect_is_refused(override, option, message):
    with pytest.raises(RunError, match=message.replace("?", r"\?")):
        override(option, "slot_filling")


def test_fields_that_s3prl_reads_where_they_are_there(override, capsys):
    config, arguments = override(
        "config.runner.fp16=True,,config.runner.evaluate_ratio=0.5,,config.runner.train_dataloader='dev',,"
        "config.scheduler.name='linear_schedule_with_warmup',,config.scheduler.num_warmup_steps=9,,"
        "config.optimizer.weight_decay=0.1,,config.optimizer.momentum=0.9,,config.specaug.num_time_mask=2,,"
        "config.specaug_hop=320,,args.seed=2,,config.runner.eval_dataloaders=['dev']")
    assert config["runner"]["fp16"] and config["scheduler"]["num_warmup_steps"] == 9 and arguments.seed == 2
    assert config["optimizer"]["momentum"] == 0.9 and config["specaug"] == {"num_time_mask": 2}
    assert "no such field" not in capsys.readouterr().out


def test_a_field_that_only_the_downstream_can_know_is_taken_and_named(override, capsys):
    config, _ = override("config.downstream_expert.datarc.batchsize=3")
    assert config["downstream_expert"]["datarc"]["batchsize"] == 3
    assert "Did you mean config.downstream_expert.datarc.batch_size?" in capsys.readouterr().out


# The configs


@pytest.mark.parametrize("name", config_names("downstream"))
def test_every_field_of_the_configs_is_read(name):
    config = yaml.safe_load((configs_folder("downstream") / f"{name}.yaml").read_text())
    for field in fields_of(config) - {"upstream_config"}:
        check_field({}, field)


def flattened(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("name", TASKS.values())
def test_fine_tuning_differs_in_the_published_values_only(name):
    folder = configs_folder("downstream")
    texts = [(folder / f"{stem}.yaml").read_text() for stem in (name, f"{name}_finetune")]
    frozen, fine_tuned = (dict(flattened(yaml.safe_load(text))) for text in texts)
    assert frozen.keys() == fine_tuned.keys()
    differing = {key.rpartition(".")[2] for key in frozen if frozen[key] != fine_tuned[key]}
    assert differing <= {"total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "lr",
                         "train_batch_size", "num_workers"}
    assert frozen["optimizer.lr"] == 1e-4
