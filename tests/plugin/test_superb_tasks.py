"""SUPERB's tasks other than SID, ER and KS, with s3prl's own runner and the package's configs unchanged."""

import importlib.util
import math
import re

import pytest
import torch

from helpers import superb_corpora
from helpers.s3prl_runs import run
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model

TASKS = {  # config: downstream, hop in samples, split for evaluation, output in the run's folder
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

@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    torch.manual_seed(0)
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=1)), checkpoint)
    return ["-u", "ssamba_tiny", "-k", str(checkpoint)]


def overrides(values, learning_rate=None, **runner):
    values = {f"downstream_expert.{name}": value for name, value in values.items()}
    values |= {} if learning_rate is None else {"optimizer.lr": learning_rate}
    values |= {f"runner.{name}": value for name, value in runner.items()}
    return ["-o", ",,".join(f"config.{name}={value}" for name, value in values.items())]


@pytest.mark.parametrize("name", TASKS)
def test_trains_resumes_and_evaluates(name, upstream, tmp_path):
    downstream, hop, split, left = TASKS[name]
    values = getattr(superb_corpora, name)(tmp_path / "corpus")
    train = ["-m", "train", *upstream, "-d", downstream, "-c", name, "-p", "run"]
    steps = dict(log_step=1, eval_step=14, save_step=2, gradient_accumulate_steps=1)
    printed, losses = run(
        [*train, *overrides(values, learning_rate=3e-3, total_steps=14, **steps)],
        [*train, "-a", *overrides({}, total_steps=16, **steps)],
        ["-m", "evaluate", "-t", split, "-e", "run/states-16.ckpt"], folder=tmp_path)
    assert losses is not None, printed
    assert len(losses) == 16 and all(math.isfinite(loss) and loss != 0 for loss in losses), losses
    assert sum(losses[-4:]) < sum(losses[:4]), losses
    assert ("utterances have more tokens than frames" in printed) == (downstream in ("ctc", "asr"))
    assert f"downsample rate is {hop}" in printed
    assert printed.count("time masks: 0 to 20 frames of 40 ms") == (name in ("speech_recognition", "slot_filling"))
    assert "Resume from run/states-14.ckpt" in printed
    assert (tmp_path / "run" / left).stat().st_size > 0


def test_query_by_example(upstream, tmp_path):
    values = superb_corpora.query_by_example(tmp_path / "corpus")
    printed, losses = run(["-m", "evaluate", "-t", "dev", *upstream, "-d", "quesst14_dtw", "-c", "query_by_example",
                           "-p", "run", *overrides(values)], folder=tmp_path)
    assert losses == [], printed
    scores = re.findall(r'score="(.*?)"', (tmp_path / "run" / "benchmark.stdlist.xml").read_text())
    assert len(scores) == 9 and all(math.isfinite(float(score)) for score in scores)
    assert len(set(scores)) > 3
