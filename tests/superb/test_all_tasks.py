"""`ssamba superb` for each of the twelve tasks, with a stand-in that prints the same lines as s3prl's experts."""

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.cli import main
from ssamba_upstream.configs import config_names, find_config
from ssamba_upstream.corpora.superb.sets import CHECKS
from ssamba_upstream.plugin.keeping import Trial
from ssamba_upstream.superb import plan, processes
from ssamba_upstream.superb.cells import Cell, Corpus, Upstream, find_upstream, make_cells
from ssamba_upstream.superb.scorers import ScorerError, Scorers, diarization_error_rate
from ssamba_upstream.superb.tasks import TASKS

pytestmark = pytest.mark.slow

PLACES = {
    "pr": "LibriSpeech", "asr": "LibriSpeech", "sf": "SNIPS", "ic": "fluent_speech_commands_dataset",
    "sid": "VoxCeleb1", "asv": "VoxCeleb1_trials", "sd": "diarization", "qbe": "quesst14Database", "se": "enhancement",
    "ss": "separation", "er": "IEMOCAP", "ks": ".",
}
STEPS = "config.runner.total_steps=4,,config.runner.eval_step=2,,config.runner.save_step=2"

# The stand-in's results improve with the learning rate. It evaluates like the checkpoint's downstream.
RUNNER = """
import os, pathlib, shutil, sys, yaml
control = pathlib.Path(os.environ["CONTROL"])
config, arguments = yaml.safe_load(open("config.yaml")), [argument for argument in sys.argv[1:] if argument != "-a"]
given = dict(zip(arguments[::2], arguments[1::2]))
open(control / "calls", "a").write(" ".join(sys.argv[1:]) + "\\n")
downstream = (control / "downstream").read_text()
expdir = pathlib.Path(given.get("-p", "s3prl"))
if "args.expdir=" in given.get("-o", ""):
    expdir = pathlib.Path(given["-o"].split("args.expdir=")[1])
expdir.mkdir(exist_ok=True)
quality = 0.75 if config.get("optimizer", {}).get("lr") == 0.01 else 0.5

def tell(split, quality):
    error = 1 - quality
    lm = 10 if "kenlm" in given.get("-o", "") else 0
    print({
        "ctc": f"{split} loss: 3.0\\n{split} per: {error}\\n{split} slot_type_f1: {quality}\\n"
               f"{split} slot_value_cer: {error}\\n{split} wer: 0.9",
        "asr": f"{split} loss: 3.0\\n{split} uer: 7.5\\n{split} wer: {100 * error - lm}",
        "sv_voxceleb1": f"sv-voxceleb1/{split}-EER: {error}",
        "diarization": f"mode {split} acc {quality} der {error}",
        "enhancement_stft": f"Average si_sdr of 4 utts is {10 * quality:.4f}\\n"
                            f"Average stoi of 4 utts is {quality:.4f}\\nAverage pesq of 4 utts is {2 * quality:.4f}",
        "separation_stft": f"Average si_sdr of 4 utts: {10 * quality:.4f}\\nAverage stoi of 4 utts: {quality:.4f}\\n"
                           f"Average pesq of 4 utts: {2 * quality:.4f}",
    }.get(downstream, f"{split} acc: {quality}\\n{split} loss: 1.0"))

if given["-m"] == "train":
    best, dev = (control / "best").read_text().split()
    for step in (2, 4):
        shutil.copy(control / f"{quality}.ckpt", expdir / f"states-{step}.ckpt")
        if best != "None":
            tell(dev, quality)
            shutil.copy(control / f"{quality}.ckpt", expdir / best)
elif downstream == "quesst14_dtw":
    layer = int(given["-l"])
    (expdir / "benchmark.stdlist.xml").write_text(f"{layer} {given['-t']}")
else:
    step = 2 if given["-e"].endswith("states-2.ckpt") else 4
    quality += (step == 2) * 0.1 if downstream == "sv_voxceleb1" else -0.25
    tell(given["-t"], quality)
    (expdir / "test_predict.txt").write_text(f"of step {step}")
"""

EXPECTED = {  # results at the better learning rate: dev, test
    "pr": (25, {"PER": 50}), "asr": (25, {"WER": 50, "WER with LM": None}),
    "sf": (75, {"slot type F1": 50, "slot value CER": 50}), "ic": (75, {"accuracy": 50}),
    "sid": (75, {"accuracy": 50}), "asv": (15, {"EER": 15}), "sd": (75, {"DER": None}),
    "se": (1.5, {"PESQ": 1.0, "STOI": 50, "SI-SDRi": 5}), "ss": (7.5, {"SI-SDRi": 5, "PESQ": 1.0, "STOI": 50}),
    "er": (75, {"accuracy": 50}), "ks": (75, {"accuracy": 50}),
}


@pytest.fixture
def checkpoint(tmp_path):
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def superb(checkpoint, corpora, tmp_path, monkeypatch):
    """Return a function that runs a task with the stand-in and returns its status; ``calls`` has its last calls."""
    control = tmp_path / "control"
    control.mkdir()
    (control / "runner.py").write_text(RUNNER)
    monkeypatch.setenv("CONTROL", str(control))
    monkeypatch.setattr(processes, "RUNNER", (sys.executable, str(control / "runner.py")))
    monkeypatch.setattr(plan, "measure", lambda cell, out, device, kept: (10.0, Trial(0.5, 0.4)))

    def run(name, *arguments, root=None):
        (control / "calls").write_text("")
        (control / "downstream").write_text(TASKS[name].downstream)
        (control / "best").write_text(f"{TASKS[name].best} {TASKS[name].dev}")
        for quality in (0.5, 0.75):
            scores = {"pr": 1 - quality, "asr": 100 * (1 - quality), "se": 2 * quality, "ss": 10 * quality}
            states = {"Step": 4, "Downstream": {"best_score": torch.tensor([scores.get(name, quality)])}}
            torch.save(states, control / f"{quality}.ckpt")
        status = main(["superb", str(checkpoint), "--out", str(tmp_path / "out"), "--device", "cpu", "-o", STEPS,
                       "--learning-rates", "1e-2", "1e-3",
                       f"--{name}", str(root or corpora / PLACES[name]), *arguments])
        run.calls = (control / "calls").read_text().splitlines()
        return status
    return run


def row(tmp_path):
    found, = json.loads((tmp_path / "out" / "results.json").read_text())
    return found


def test_every_task_is_complete():
    assert set(TASKS) == set(CHECKS) == set(PLACES) == {*EXPECTED, "qbe"}
    for task in TASKS.values():
        assert task.config in config_names("downstream") and task.metrics and task.predictions


@pytest.mark.parametrize("name", EXPECTED)
def test_searches_evaluates_and_resumes(name, superb, tmp_path, capsys):
    assert superb(name) == 0, capsys.readouterr().err
    found = row(tmp_path)
    dev, test = EXPECTED[name]
    assert found["dev"] == pytest.approx(dev) and found["chosen"] == 0.01
    assert {metric: value and pytest.approx(value) for metric, value in found["test"].items()} == test
    folds = len(TASKS[name].folds)
    assert sum(call.startswith("-m train") for call in superb.calls) == 2 * folds
    evaluations = [call for call in superb.calls if call.startswith("-m evaluate")]
    assert all(f"-t {TASKS[name].test}" in call for call in evaluations)
    assert len(evaluations) == 2 * folds * (2 if name == "asv" else 1)
    columns = capsys.readouterr().out.splitlines()[-3].split(" | ")
    shown = [text.rpartition(" ")[0].rpartition(" ")[0] or text.split()[0] for text in columns[3].split(", ") if text]
    assert shown == [metric for metric, value in test.items() if value is not None]
    assert superb(name) == 0 and not superb.calls
    # The evaluation was cut off: the states are there.
    next((tmp_path / "out" / "cells").glob("*/result.json")).unlink()
    assert superb(name) == 0
    assert [call.split()[1] for call in superb.calls] == ["train"] + ["evaluate"] * (name != "asv")


@pytest.mark.parametrize("name", TASKS)
def test_cells_do_not_depend_on_the_place_of_their_corpus(name, corpora, checkpoint, tmp_path):
    (tmp_path / "elsewhere").symlink_to(corpora)
    here, there = (make_cells(find_upstream(checkpoint), {name: root / PLACES[name]}, learning_rates=[0.01])
                   for root in (corpora, tmp_path / "elsewhere"))
    assert [cell.name for cell in here] == [cell.name for cell in there]
    assert here[0].series == there[0].series and here[0].config != there[0].config
    assert str(tmp_path / "elsewhere") in str(there[0].s3prl_config()) and there[0].corpus.notes


def test_verification_keeps_the_best_predictions(superb, tmp_path):
    assert superb("asv") == 0
    run = Path(row(tmp_path)["runs"]["asv"]["run"])
    assert (run / "test_predict.txt").read_text() == "of step 2" and row(tmp_path)["runs"]["asv"]["step"] == 2
    assert json.loads((run / "states-4" / "result.json").read_text()) == {"EER": 25.0}
    assert "no dev set" in (tmp_path / "out" / "results.md").read_text()


def test_verification_keeps_none_that_is_not_a_number(superb, tmp_path, capsys):
    assert superb("asv") == 0
    run = Path(row(tmp_path)["runs"]["asv"]["run"])
    for lacking, status in ((["states-2"], 0), (["states-2", "states-4"], 1)):
        run.with_name("result.json").unlink()
        for states in lacking:
            (run / states / "result.json").write_text('{"EER": NaN}')
        assert superb("asv") == status
    assert "no EER measured by s3prl is a number" in capsys.readouterr().err


def test_a_learning_rate_whose_dev_is_not_a_number_is_not_chosen(superb, tmp_path):
    assert superb("ks") == 0
    best = Path(row(tmp_path)["runs"]["ks"]["run"]).with_name("result.json")
    best.write_text(json.dumps({**json.loads(best.read_text()), "dev": float("nan")}))
    assert superb("ks") == 0
    assert row(tmp_path)["chosen"] == 0.001 and row(tmp_path)["dev_by_choice"]["0.01"] is None
    assert "NaN" not in (tmp_path / "out" / "results.json").read_text()


def test_several_tasks_in_one_table(superb, corpora, tmp_path, capsys):
    assert superb("ic", "--qbe", str(corpora / PLACES["qbe"]), "--plan") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1:5] for line in printed[1:6]] == [
        ["ic", "frozen", "0.01", "4"], ["ic", "frozen", "0.001", "4"],
        *(["qbe", "frozen", f"layer{layer}", "0"] for layer in range(3))]
    assert any("MTWV, by which the layer is chosen, needs" in line for line in printed)
    assert any("qbe: no estimate, because the task has no training" in line for line in printed)
    assert superb("ic") == 0 and superb("se") == 0
    tasks = [found["task"] for found in json.loads((tmp_path / "out" / "results.json").read_text())]
    assert tasks == ["ic", "se"]


def test_worse_than_the_start_at_every_evaluation(superb, tmp_path, monkeypatch):
    """s3prl's ASR keeps no best checkpoint if the word error rate is 100 % or more."""
    runner = Path(os.environ["CONTROL"]) / "runner.py"
    kept = RUNNER.replace('shutil.copy(control / f"{quality}.ckpt", expdir / best)', "pass")
    runner.write_text(kept.replace("100 * error", "100 + error"))
    assert superb("asr") == 0
    assert row(tmp_path)["dev"] == pytest.approx(100.25)
    assert "dev-clean-best.ckpt was never written" in (tmp_path / "out" / "results.md").read_text()


def test_no_best_checkpoint_though_one_was_better(superb, capsys):
    runner = Path(os.environ["CONTROL"]) / "runner.py"
    runner.write_text(RUNNER.replace('shutil.copy(control / f"{quality}.ckpt", expdir / best)', "pass"))
    assert superb("pr") == 1
    assert "s3prl left neither dev-best.ckpt nor states" in capsys.readouterr().err


def test_what_s3prl_did_not_print(superb, capsys):
    runner = Path(os.environ["CONTROL"]) / "runner.py"
    runner.write_text(RUNNER.replace('slot_value_cer: {error}', 'slot_value_cer'))
    assert superb("sf") == 1
    assert "CellError: s3prl printed no slot value CER on test" in capsys.readouterr().err


def test_fine_tuning_has_three_tasks(superb, capsys):
    assert superb("pr", "--finetune") == 1
    assert "no config for fine-tuning on pr" in capsys.readouterr().err


def test_overrides_reach_the_tasks_that_have_the_field(superb, corpora, tmp_path, capsys):
    """Diarization's data set accepts no batch size, and fails if given one."""
    fields = "config.downstream_expert.loaderrc.train_batchsize=3,,config.downstream_expert.datarc.train_batch_size=5"
    assert superb("sd", "--ic", str(corpora / PLACES["ic"]), "-o", f"{STEPS},,{fields}") == 1  # it runs one task
    configs = {path.parent.name.split("-")[0]: yaml.safe_load(path.read_text())["downstream_expert"]
               for path in (tmp_path / "out" / "cells").glob("*/config.yaml")}
    assert configs["sd"]["loaderrc"]["train_batchsize"] == 3 and "batch_size" not in configs["sd"]["datarc"]
    assert configs["ic"]["datarc"]["train_batch_size"] == 5 and "loaderrc" not in configs["ic"]
    assert superb("ic", "-o", "config.downstream_expert.datarc.batchsize=3") == 1
    assert "no task's config has this field" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["save_step=5", "eval_step=3", "eval_step=6"])
def test_no_checkpoint_for_verification(superb, capsys, steps):
    assert superb("asv", "-o", f"{STEPS},,config.runner.{steps}") == 1
    assert "states are not saved at every eval_step. Override config.runner.eval" in capsys.readouterr().err


def test_verification_is_evaluated_at_every_eval_step(superb, tmp_path):
    """Step 2 has the better state, but is not evaluated, because eval_step is 4."""
    assert superb("asv", "-o", f"{STEPS},,config.runner.eval_step=4") == 0
    found = row(tmp_path)
    assert found["test"] == {"EER": 25} and found["runs"]["asv"]["step"] == 4
    assert sum(call.startswith("-m evaluate") for call in superb.calls) == 2
    runner = yaml.safe_load(find_config("speaker_verification", "downstream").read_text())["runner"]
    evaluated = [step for step in range(runner["save_step"], runner["total_steps"] + 1, runner["save_step"])
                 if step % runner["eval_step"] == 0]
    assert evaluated == [20000 * number for number in range(1, 11)]  # s3prl's sv_voxceleb1/test_expdir.sh


# Scorers

SCORER = """#!/bin/sh
layer=$(cut -d' ' -f1 "$1/benchmark.stdlist.xml")
case $2 in *dev) value=0.0$layer;; *eval) value=0.1$layer;; esac
[ "$3" = -10 ] && echo "actTWV: 0.001  maxTWV: $value  Threshold: 1.0" > "$1/score.out"
"""

DSCORE = """import sys
import numpy
from beside import threshold  # as dscore imports its own modules
numpy.int(threshold)
hypothesis = open(sys.argv[sys.argv.index("-s") + 1]).read()
assert open(sys.argv[sys.argv.index("-r") + 1]).read().startswith("SPEAKER")
seconds = sum(float(line.split()[4]) for line in hypothesis.splitlines())
print(f"File   DER   JER\\n----\\nmix  1.0 2.0\\n*** OVERALL ***   {abs(10 - seconds):.2f}  26.75  0.81")
"""


def add_scorer(root):
    for name in ("groundtruth_quesst14_dev", "groundtruth_quesst14_eval"):
        (root / "scoring" / name).mkdir()
    (root / "scoring" / "score-TWV-Cnxe.sh").write_text(SCORER)
    (root / "scoring" / "score-TWV-Cnxe.sh").chmod(0o755)


def test_query_by_example_chooses_the_layer_on_dev(superb, corpora, tmp_path):
    root = shutil.copytree(corpora / PLACES["qbe"], tmp_path / "quesst14Database")
    assert superb("qbe", root=root) == 0
    found = row(tmp_path)
    assert (found["chosen"], found["test"]) == (None, {"MTWV": None})
    assert f"{root}/scoring/score-TWV-Cnxe.sh" in (tmp_path / "out" / "results.md").read_text()
    assert len(superb.calls) == 6 and "-t dev" in superb.calls[0] and "-l 2" in superb.calls[-1]
    add_scorer(root)
    assert superb("qbe", root=root) == 0 and not superb.calls
    found = row(tmp_path)
    assert (found["chosen"], found["searched"], found["dev"]) == (2, "layer", pytest.approx(2))
    assert found["test"] == {"MTWV": pytest.approx(12)} and found["lacking"] is None
    run = Path(found["runs"]["qbe"]["run"])
    assert (run / "benchmark.stdlist.xml").read_text() == "2 test"  # the submitted prediction


def test_a_scorer_that_fails(superb, corpora, tmp_path, capsys):
    root = shutil.copytree(corpora / PLACES["qbe"], tmp_path / "quesst14Database")
    add_scorer(root)
    (root / "scoring" / "score-TWV-Cnxe.sh").write_text("#!/bin/sh\necho no java here; exit 3")
    assert superb("qbe", root=root) == 1
    assert "ended with status 3; its output ends with:\n    no java here" in capsys.readouterr().err
    add_scorer(shutil.rmtree(root / "scoring" / "groundtruth_quesst14_dev") or
               shutil.rmtree(root / "scoring" / "groundtruth_quesst14_eval") or root)
    assert superb("qbe", root=root) == 0 and row(tmp_path)["chosen"] == 2


def test_diarization_error_rate(corpora, tmp_path, superb):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "dscore").mkdir()
    (tmp_path / "dscore" / "score.py").write_text(DSCORE)
    (tmp_path / "dscore" / "beside.py").write_text("threshold = 1.0")
    run = tmp_path / "run"
    (run / "scoring" / "predictions").mkdir(parents=True)
    (run / "frame_shift").write_text("320\n")
    # One speaker with 0.45 for 8 s and 0.55 for 4 s: 12 s count as speech at thresholds up to 0.4, and 4 s from 0.5.
    activities = np.concatenate([np.full(400, 0.45), np.full(200, 0.55)])
    with h5py.File(run / "scoring" / "predictions" / "mix0016.h5", "w") as file:
        file["T_hat"] = np.stack([activities, np.zeros(600)], 1)
    reference = corpora / "diarization" / "test" / "rttm"
    assert diarization_error_rate(run, reference, tmp_path / "dscore") == pytest.approx(2)
    (tmp_path / "dscore" / "score.py").write_text("print('File DER')")
    with pytest.raises(ScorerError, match="dscore printed no score"):
        diarization_error_rate(run, reference, tmp_path / "dscore")


def test_dscore_is_found_or_named(superb, corpora, tmp_path, capsys, monkeypatch):
    assert superb("sd") == 0
    assert "DER needs dscore: git clone https://github.com/ftshijt/dscore" in \
        (tmp_path / "out" / "results.md").read_text()
    assert superb("sd", "--dscore", str(tmp_path)) == 1
    assert "has no score.py" in capsys.readouterr().err
    (tmp_path / "dscore").mkdir()
    (tmp_path / "dscore" / "score.py").touch()
    with monkeypatch.context() as lacking:
        lacking.setattr(importlib.util, "find_spec", lambda name: None if name == "intervaltree" else pytest.__spec__)
        assert superb("sd", "--dscore", str(tmp_path / "dscore")) == 1
    assert "missing packages: intervaltree" in capsys.readouterr().err
    monkeypatch.setattr(Scorers, "__post_init__", lambda scorers: None)
    monkeypatch.setattr("ssamba_upstream.superb.scorers.diarization_error_rate",
                        lambda experiment, reference, dscore: 5.0 if "lr0.01" in str(experiment) else 7.0)
    assert superb("sd", "--dscore", str(tmp_path / "dscore")) == 0
    assert not superb.calls and row(tmp_path)["test"] == {"DER": 5.0} and row(tmp_path)["lacking"] is None


def test_language_model(superb, tmp_path, capsys, monkeypatch):
    assert superb("asr") == 0
    paths = [tmp_path / "4-gram.arpa", tmp_path / "lexicon.lst"]
    assert superb("asr", "--language-model", *map(str, paths)) == 1
    assert "there is no file" in capsys.readouterr().err
    for path in paths:
        path.touch()
    if importlib.util.find_spec("kenlm") is None:
        assert superb("asr", "--language-model", *map(str, paths)) == 1
        assert "missing packages: kenlm" in capsys.readouterr().err
    monkeypatch.setattr(Scorers, "__post_init__", lambda scorers: None)
    assert superb("asr", "--language-model", *map(str, paths)) == 0
    assert row(tmp_path)["test"] == {"WER": 50, "WER with LM": 40}
    assert len(superb.calls) == 2 and all("decoder_type='kenlm'" in call and str(paths[0]) in call and
                                          "dev-clean-best.ckpt -t test-clean" in call for call in superb.calls)


def test_scorers_lack_nothing_for_other_tasks(checkpoint):
    cell = Cell("ic", "fluent_commands", "frozen", Upstream("fbank"), {}, "", Corpus(""), {}, 0.1)
    assert Scorers().lacking(cell) is None
    assert Scorers().lacking(dataclasses.replace(cell, task="another")) is None
