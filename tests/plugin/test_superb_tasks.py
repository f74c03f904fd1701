"""The tasks of SUPERB beside SID, ER and KS, each through s3prl's own runner, with its config as it comes."""

import importlib.util
import math
import os
import re
import subprocess
import sys

import pytest
import torch

from helpers import superb_corpora
from helpers.paths import CHECKOUT
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model

TASKS = {  # config: downstream, hop in samples, split for evaluation, what it leaves in the run's folder
    "phone_recognition": ("ctc", 640, "test", "test-hyp.ark"),
    "speech_recognition": ("asr", 640, "test-clean", "test-clean-noLM-hyp.ark"),
    "slot_filling": ("ctc", 640, "test", "test-hyp.ark"),
    "intent_classification": ("fluent_commands", 1600, "test", "test_predict.csv"),
    "speaker_verification": ("sv_voxceleb1", 640, "test", "test_predict.txt"),
    "speaker_diarization": ("diarization", 320, "test", "scoring/predictions/rec0.h5"),
    "speech_enhancement": ("enhancement_stft", 320, "test", "test_metrics.txt"),
    "speech_separation": ("separation_stft", 320, "test", "test_metrics.txt"),
}

pytestmark = [pytest.mark.slow] + [
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"s3prl needs {name}: superb-all")
    for name in ("librosa", "tensorboardX", "editdistance", "pandas", "h5py", "dtw", "lxml", "asteroid", "sklearn")]

LOSSES = """
import json, sys
import torch
from ssamba_upstream.plugin.runner import main

backward, losses = torch.Tensor.backward, []

def noted(loss, *args, **kwargs):
    losses.append(loss.item())
    return backward(loss, *args, **kwargs)

torch.Tensor.backward = noted
for arguments in json.loads(sys.argv[1]):
    main([*arguments, "--device", "cpu"])
print("losses", json.dumps(losses))
"""


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    torch.manual_seed(0)
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=1)), checkpoint)
    return ["-u", "ssamba_tiny", "-k", str(checkpoint)]


def run(*runs, folder):
    """Several runs of the runner in a process of their own: what it prints, and the losses."""
    import json

    command = [sys.executable, "-c", LOSSES, json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "TORCH_HOME": str(folder / "hub")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        return done.stdout + done.stderr, None
    printed, losses = done.stdout.rsplit("losses ", 1)
    return printed + done.stderr, json.loads(losses)


def overrides(values, **runner):
    values = {f"downstream_expert.{name}": value for name, value in values.items()}
    values |= {f"runner.{name}": value for name, value in runner.items()}
    return ["-o", ",,".join(f"config.{name}={value}" for name, value in values.items())]


@pytest.mark.parametrize("name", TASKS)
def test_trains_resumes_and_evaluates(name, upstream, tmp_path):
    downstream, hop, split, left = TASKS[name]
    values = getattr(superb_corpora, name)(tmp_path / "corpus")
    train = ["-m", "train", *upstream, "-d", downstream, "-c", name, "-p", "run"]
    steps = dict(log_step=1, eval_step=4, save_step=2, gradient_accumulate_steps=1)
    printed, losses = run(
        [*train, *overrides(values, total_steps=4, **steps)],
        [*train, "-a", *overrides({}, total_steps=6, **steps)],
        ["-m", "evaluate", "-t", split, "-e", "run/states-6.ckpt"], folder=tmp_path)
    assert losses is not None, printed
    assert len(losses) == 6 and all(math.isfinite(loss) and loss != 0 for loss in losses), losses
    assert f"downsample rate is {hop}" in printed
    assert "Resume from run/states-4.ckpt" in printed
    assert (tmp_path / "run" / left).stat().st_size > 0


def test_query_by_example(upstream, tmp_path):
    values = superb_corpora.query_by_example(tmp_path / "corpus")
    printed, losses = run(["-m", "evaluate", "-t", "dev", *upstream, "-d", "quesst14_dtw", "-c", "query_by_example",
                           "-p", "run", *overrides(values)], folder=tmp_path)
    assert losses == [], printed
    scores = re.findall(r'score="(.*?)"', (tmp_path / "run" / "benchmark.stdlist.xml").read_text())
    assert len(scores) == 9 and all(math.isfinite(float(score)) for score in scores)
    assert len(set(scores)) > 3
