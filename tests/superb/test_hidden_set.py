"""The folder of the hidden-set track, loaded by s3prl's own `--hub huggingface` in a process of its own."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.paths import CHECKOUT
from ssamba_upstream import SsambaConfig, SsambaForPreTraining, SsambaModel
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.cli import main
from ssamba_upstream.corpora.speech_commands import write_speech_commands
from ssamba_upstream.corpora.utterances import Utterance
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.superb import hidden_set
from ssamba_upstream.superb.hidden_set import export_hidden_set
from ssamba_upstream.superb.submission import write_submission

FILES = ["README.md", "expert.py", "model.pt", "requirements.txt"]


@pytest.fixture
def installed(monkeypatch):
    """The package's version, also where the tests run from a checkout that is not installed."""
    if not any(importlib.metadata.distributions(name=hidden_set.PACKAGE)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    return importlib.metadata.version(hidden_set.PACKAGE)


@pytest.fixture
def checkpoint(tmp_path):
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=2)), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


# Downloading is replaced, with today's signature; the rest is s3prl's own, repaired.
RUN = """
import json
import sys

import huggingface_hub

folder, runs = sys.argv[1], json.loads(sys.argv[2])
asked = []


def snapshot_download(repo_id, *, revision=None, token=None):
    asked.append(repo_id)
    return folder


huggingface_hub.snapshot_download = snapshot_download

from ssamba_upstream.plugin.runner import main

for run in runs:
    main(run)
print("asked for", asked, "with", sys.modules["expert"].__file__)
"""


@pytest.mark.slow
def test_s3prl_loads_it_from_the_hub(installed, checkpoint, tmp_path):
    for module in ("librosa", "tensorboardX"):
        pytest.importorskip(module)
    export_hidden_set(checkpoint, tmp_path / "exported")
    random = np.random.default_rng(0)
    write_speech_commands(tmp_path, [
        Utterance(0.1 * random.standard_normal(4000), word, f"{number:08x}", split=split)
        for word in ("yes", "no", "_unknown_") for split in ("train", "test") for number in range(12)
    ], backgrounds={"hum": 0.1 * random.standard_normal(16000)})
    datarc = "config.downstream_expert.datarc"
    evaluate = ["-m", "evaluate", "-d", "speech_commands", "-c", "keyword_spotting", "--device", "cpu", "-o",
                f"{datarc}.speech_commands_root={tmp_path / 'speech_commands_v0.01'},,"
                f"{datarc}.speech_commands_test_root={tmp_path / 'speech_commands_test_set_v0.01'},,"
                f"{datarc}.num_workers=0"]
    runs = [[*evaluate, "-p", "hub", "--hub", "huggingface", "-u", "somebody/ssamba"],
            [*evaluate, "-p", "local", "-u", "ssamba_local", "-k", str(checkpoint)]]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "exported"), json.dumps(runs)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"asked for ['somebody/ssamba'] with {tmp_path / 'exported' / 'expert.py'}" in run.stdout
    assert f"0. {hidden_set.PACKAGE}==" in run.stdout
    hub, local = ((tmp_path / name / "test_predict.txt").read_text() for name in ("hub", "local"))
    assert hub == local and hub.count("\n") == 36
    assert write_submission(tmp_path, {"ks": tmp_path / "hub"}, {"ks": tmp_path}).predictions == {"ks": 36}


# What is in the folder


def import_expert(folder):
    spec = importlib.util.spec_from_file_location("exported_expert", folder / "expert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.UpstreamExpert


def test_the_expert_is_the_checkpoint(installed, checkpoint, tmp_path):
    assert main(["export-hidden-set", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert (tmp_path / "out" / "requirements.txt").read_text() == f"ssamba-upstream=={installed}\n"
    torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    exported = import_expert(tmp_path / "out")(ckpt=str(tmp_path / "out" / "model.pt"))
    wavs = [torch.randn(16000), torch.randn(4001)]
    with torch.no_grad():
        found, expected = (upstream.eval()(wavs)["hidden_states"]
                           for upstream in (exported, UpstreamExpert(checkpoint)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"a list of {len(found)} tensors (utterances, frames, {found[0].shape[-1]})" in readme
    hops = {exported.get_downsample_rates(task) for task in ("PR", "SID", "ER", "SD", "hidden_states")}
    assert hops == {1600} and "a frame every 1600 samples" in readme


def test_other_formats_of_checkpoints(installed, official_checkpoint, tmp_path):
    save_model(SsambaForPreTraining(SsambaConfig(num_hidden_layers=2)), tmp_path / "heads.ckpt")
    for source, name in ((tmp_path / "heads.ckpt", "heads"), (official_checkpoint, "official")):
        export_hidden_set(source, tmp_path / name)
        exported = import_expert(tmp_path / name)(ckpt=tmp_path / name / "model.pt")
        expected = UpstreamExpert(source).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in exported.state_dict().items())
    assert "width 32: 4 Mamba layers" in (tmp_path / "official" / "README.md").read_text()


def not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


def test_refusals_leave_nothing_behind(installed, checkpoint, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["export-hidden-set", str(checkpoint), "--out", str(tmp_path / "full")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["export-hidden-set", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert main(["export-hidden-set", str(checkpoint), "--out", str(tmp_path / "out")]) == 1
    assert "is not installed" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
