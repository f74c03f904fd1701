"""The folder for the hidden-set track, loaded by s3prl's own `--hub huggingface` in a separate process."""

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
from ssamba_upstream.corpora.superb.speech_commands import write_speech_commands
from ssamba_upstream.corpora.superb.utterances import Utterance
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.superb import hidden_set
from ssamba_upstream.superb.hidden_set import export_hidden_set
from ssamba_upstream.superb.submission import write_submission

FILES = ["README.md", "expert.py", "model.pt", "requirements.txt"]


@pytest.fixture
def installed(monkeypatch):
    """Provide the package's version even if the tests run from a checkout that is not installed."""
    if not any(importlib.metadata.distributions(name=hidden_set.PACKAGE)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    return importlib.metadata.version(hidden_set.PACKAGE)


@pytest.fixture
def checkpoint(tmp_path):
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=2)), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


# The download is replaced by a function with the current signature; the rest is s3prl's own code, repaired.
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
    runs = [[*evaluate, "-p", "hub", "--hub", "huggingface", "-u", "somebody/ssamba", "-s", "KS"],
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


# Contents of the folder


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
                           for upstream in (exported, UpstreamExpert(checkpoint, time_stride=2)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"a list of {len(found)} tensors (utterances, frames, {found[0].shape[-1]})" in readme
    assert "| 1600 | IC, SID, ER, KS |" in readme and "| 320 | hidden_states, SE, SS |" in readme


HOPS = {"PR": 640, "ASR": 640, "SF": 640, "ASV": 640, "SD": 640, "QbE": 640, "SE": 320, "SS": 320, "SID": 1600,
        "ER": 1600, "KS": 1600, "IC": 1600, "ST": 320, "hidden_states": 320, None: 320}


def test_every_task_has_the_hop_it_needs(checkpoint):
    """The track's validator and s3prl require these hops."""
    upstream = hidden_set.HiddenSetExpert(checkpoint).eval()
    assert {key: upstream.get_downsample_rates(key) for key in HOPS} == HOPS
    assert len(list(upstream.parameters())) == len(list(UpstreamExpert(checkpoint).parameters()))
    wavs = [torch.randn(16000), torch.randn(4001)]
    with torch.no_grad():
        results = upstream(wavs)
        expected = {hop: UpstreamExpert(checkpoint, time_stride=hop // 160).eval()(wavs) for hop in (320, 640, 1600)}
    assert isinstance(results, dict)
    for key, hop in HOPS.items():
        states = results.get(key, results["hidden_states"])
        assert all(map(torch.equal, states, expected[hop]["hidden_states"])) and not states[-1].requires_grad
    assert torch.equal(results["last_hidden_state"], expected[320]["last_hidden_state"])
    assert "PR" in results and "ST" not in results and results.get("ST") is None
    assert dict(results.items()).keys() == results.keys() and len(results.values()) == len(results)


def test_nothing_is_computed_for_tasks_that_are_not_read(checkpoint, monkeypatch):
    upstream, computed = hidden_set.HiddenSetExpert(checkpoint), []
    encode = upstream._encode
    monkeypatch.setattr(upstream, "_encode", lambda wavs, stride: computed.append(stride) or encode(wavs, stride))
    for _ in range(2):
        upstream([torch.zeros(8000)]).get("SID")
    assert computed == [2, 10, 10]


@pytest.mark.slow
def test_ones_own_options(installed, checkpoint, tmp_path, capsys):
    """A hop given by the user applies to every task, and is refused if a task does not work with it."""
    arguments = ["export-hidden-set", str(checkpoint), "-g"]
    (tmp_path / "mean.yaml").write_text("frequency_pooling: mean\n")
    assert main([*arguments, str(tmp_path / "mean.yaml"), "--out", str(tmp_path / "mean")]) == 0
    assert main([*arguments, "hop_20ms", "--out", str(tmp_path / "fine")]) == 0
    mean, fine = (import_expert(tmp_path / name)(ckpt=tmp_path / name / "model.pt") for name in ("mean", "fine"))
    assert mean.get_downsample_rates("SID") == 1600 and mean.width == fine.width / 12
    assert {fine.get_downsample_rates(key) for key in HOPS} == {320}
    assert main([*arguments, "hop_40ms", "--out", str(tmp_path / "coarse")]) == 1
    assert "SE needs a frame at least every 20 ms, but this upstream gives one every 40 ms. Remove time" in \
        capsys.readouterr().err
    assert not (tmp_path / "coarse").exists()


def test_the_exported_file_refuses_frames_that_are_too_far_apart(installed, checkpoint, tmp_path):
    """Plain s3prl passes -g on without checking it."""
    export_hidden_set(checkpoint, tmp_path / "out")
    (tmp_path / "options.yaml").write_text("time_stride: 10\n")
    upstream = import_expert(tmp_path / "out")(
        ckpt=tmp_path / "out" / "model.pt", model_config=tmp_path / "options.yaml", refresh=False)
    assert upstream.get_downsample_rates("SID") == 1600
    with pytest.raises(ValueError, match="PR needs a frame at least every 40 ms.*every 100 ms. Remove time_stride"):
        upstream.get_downsample_rates("PR")


def test_hops_fit_the_checkpoint(tmp_path):
    narrow = SsambaConfig(num_hidden_layers=1, patch_size=[128, 2])
    save_model(SsambaModel(narrow), tmp_path / "narrow")
    upstream = hidden_set.HiddenSetExpert(tmp_path / "narrow")
    assert {upstream.get_downsample_rates(key) for key in HOPS} == {320} and not upstream.other_strides
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=1, frame_shift=25.0)), tmp_path / "coarse")
    upstream = hidden_set.HiddenSetExpert(tmp_path / "coarse")
    assert upstream.get_downsample_rates("PR") == 400
    with pytest.raises(ValueError, match="SS needs.*every 25 ms. Use a checkpoint"):
        upstream.get_downsample_rates("SS")


def test_other_formats_of_checkpoints(installed, official_checkpoint, tmp_path):
    save_model(SsambaForPreTraining(SsambaConfig(num_hidden_layers=2)), tmp_path / "heads.ckpt")
    for source, name in ((tmp_path / "heads.ckpt", "heads"), (official_checkpoint, "official")):
        export_hidden_set(source, tmp_path / name)
        exported = import_expert(tmp_path / name)(ckpt=tmp_path / name / "model.pt")
        expected = UpstreamExpert(source).state_dict()
        found = exported.state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert "4 blocks of width 32, " in (tmp_path / "official" / "README.md").read_text()


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
