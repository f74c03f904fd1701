"""`ssamba superb`: planning, resuming, reporting and refusing, with s3prl and with a stand-in for it."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from helpers.paths import CHECKOUT
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import content_hash, save_model
from ssamba_upstream.cli import main
from ssamba_upstream.configs import find_config
from ssamba_upstream.corpora.superb import speech_commands
from ssamba_upstream.corpora.superb.iemocap import write_iemocap
from ssamba_upstream.corpora.superb.speech_commands import CLASSES, write_speech_commands
from ssamba_upstream.corpora.superb.utterances import Utterance
from ssamba_upstream.plugin.keeping import Trial
from ssamba_upstream.superb import cells, plan, processes, results, tasks

STEPS = ",,".join([
    "config.runner.total_steps=4", "config.runner.eval_step=2", "config.runner.save_step=2",
    "config.downstream_expert.datarc.num_workers=0"])
BATCH = {"ks": ",,config.downstream_expert.datarc.batch_size=4", "er": ""}
MEASURE = plan.measure


def measured(cell, out, device, kept):
    """Replace the trials: return the seconds to start, and a Trial with the seconds per step and utterance."""
    averages = kept is not None and kept.startswith("averages")
    return 10.0, Trial(step=0.01, computing=0.0, utterance=0.02) if averages else Trial(step=0.5, computing=0.4)


# Leaves the same files as s3prl's runner, controlled by the folder $CONTROL, where it records its calls.
RUNNER = """
import os, pathlib, shutil, sys, time, zipfile, yaml
control, expdir = pathlib.Path(os.environ["CONTROL"]), pathlib.Path("s3prl")
config = yaml.safe_load(open("config.yaml"))
rate, fold = config["optimizer"]["lr"], config["downstream_expert"]["datarc"].get("test_fold", "")
mode, steps = sys.argv[2], config["runner"]["total_steps"]
if "--trial" in sys.argv:
    pathlib.Path(sys.argv[sys.argv.index("--trial") + 1]).write_text('{"step": 0.5, "computing": 0.4, "utterance": 0}')
expdir.mkdir(exist_ok=True)
step = max([int(path.stem[7:]) for path in expdir.glob("states-*.ckpt")], default=0)
with open(control / "calls", "a") as calls:
    calls.write(f"{mode} {rate:g}{fold} {step}\\n")
open(control / "arguments", "a").write(" ".join(sys.argv[1:]) + "\\n")
open(control / "gpus", "a").write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
if (control / f"fail-{rate:g}").exists():
    sys.exit("Traceback\\nRuntimeError: the disk is full")
if mode == "evaluate":
    assert (expdir / pathlib.Path(sys.argv[4]).name).exists()
    print(f"test acc: {1 - rate}")
    if (control / "meanwhile").exists():
        pathlib.Path((control / "meanwhile").read_text()).write_text("{}")
while mode == "train" and step < steps:
    step += 2
    best = control / f"best-{rate:g}.ckpt"
    print(f"dev acc: {0.5 if best.exists() else 0.0}")
    if best.exists():
        shutil.copy(best, expdir / "dev-best.ckpt")
    with zipfile.ZipFile(expdir / f"states-{step}.ckpt", "w") as states:
        states.writestr("data", "")
    if (control / f"hang-{rate:g}").exists():
        (control / "hanging").touch()
        time.sleep(3600)  # until it is killed
"""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(0)

    def sound(n=4800):
        return 0.1 * random.standard_normal(n)

    write_speech_commands(folder / "ks", [
        Utterance(sound(), word, f"{number:08x}", split=split)
        for word in CLASSES for split, count in (("train", 24), ("test", 2)) for number in range(count)
        if (split, word) != ("train", "_silence_")
    ], backgrounds={"hum": sound(32000)})
    write_iemocap(folder / "er", [
        Utterance(sound(), emotion, f"Ses0{session}F", recording="impro01")
        for session in range(1, 6) for emotion in ("neu", "hap", "ang", "sad")])
    return {"ks": folder / "ks", "er": folder / "er"}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def control(tmp_path, monkeypatch):
    """The folder that controls the stand-in for s3prl, whose test accuracy falls as its dev accuracy rises."""
    control = tmp_path / "control"
    control.mkdir()
    (control / "runner.py").write_text(RUNNER)
    for rate, accuracy in ((0.01, 0.75), (0.001, 0.5)):
        states = {"Downstream": {"best_score": torch.tensor([accuracy])}, "Step": 2}
        torch.save(states, control / f"best-{rate:g}.ckpt")
    monkeypatch.setenv("CONTROL", str(control))
    monkeypatch.setattr(processes, "RUNNER", (sys.executable, str(control / "runner.py")))
    monkeypatch.setattr(plan, "measure", measured)
    return control


def calls(control):
    """Return the stand-in's calls since the last call of this function."""
    found = (control / "calls").read_text().splitlines() if (control / "calls").exists() else []
    (control / "calls").unlink(missing_ok=True)
    return found


@pytest.fixture
def superb(checkpoint, corpora, tmp_path):
    def run(*arguments, task="ks"):
        return main(["superb", str(checkpoint), "--out", str(tmp_path / "out"), f"--{task}",
                     str(corpora[task]), "--device", "cpu", "-o", STEPS + BATCH[task],
                     "--learning-rates", "1e-2", "1e-3", *arguments])
    return run


def rows(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_plan(control, superb, capsys, tmp_path):
    assert superb("--plan", "--jobs", "2", task="er") == 0
    *table, note, trial, total = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in table[1:]] == [
        [str(2 * fold + number), "er", "frozen", f"fold{fold + 1}", rate]
        for fold in range(5) for number, rate in enumerate(("0.01", "0.001"))]
    assert note.startswith("er: This is not the whole released corpus, which has neu 1,708, ")
    assert trial == ("er: 10 ms a step from averages, after 20 ms for each of 20 utterances; 500 ms a step with "
                     "--by-runner; 10 s to start")
    # Per cell: two starts, 4 steps, and 3 evaluations of 3.2 + 4 utterances (a step takes 4 x 8), and the averages
    # once.
    planned, computing_always = 10 / 2 * 20.047 + 0.2, 10 / 2 * 22.34
    assert total == (f"10 of 10 cells to run, 40 steps, 2 at a time: about 0:01:{round(planned) - 60:02}; "
                     f"0:01:{round(computing_always) - 60:02} if every step computed its hidden states")
    assert superb("--plan", "--by-runner", task="er") == 0
    *_, trial, total = capsys.readouterr().out.splitlines()
    assert trial == "er: 500 ms a step, 100 ms if they were kept (--cache FOLDER); 10 s to start"
    assert total == f"10 of 10 cells to run, 40 steps, 1 at a time: about 0:03:{round(2 * computing_always) - 180}"
    assert superb("--plan", "--by-runner", "--cache", str(tmp_path / "kept"), task="er") == 0
    *_, trial, total = capsys.readouterr().out.splitlines()
    assert trial == "er: 100 ms a step once hidden states are kept, 500 ms before; 10 s to start"
    assert not calls(control) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, batch", [("speech_recognition", 16), ("slot_filling", 32), ("speaker_verification", 10),
                                         ("speaker_diarization", 8), ("keyword_spotting", 32)])
def test_batches_as_the_estimate_has_them(name, batch):
    expert = yaml.safe_load(find_config(name, "downstream").read_text())["downstream_expert"]
    assert plan._batch_size("asr" if name == "speech_recognition" else name, expert) == batch


def test_trial(control, superb, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan, "measure", MEASURE)
    (control / "fail-0.001").touch()
    assert superb("--plan") == 0
    assert "No estimate, because the trial of ks failed: s3prl's train ended" in capsys.readouterr().out
    (control / "fail-0.001").unlink()
    calls(control)
    assert superb("--plan") == 0 and superb("--plan") == 0
    assert calls(control) == ["train 0.001 0"] * 2
    trials = sorted((tmp_path / "out").rglob("*.*"))
    assert [trial.match(f"trials/ks-*-{kept}-cpu.json") for trial, kept in zip(
        trials, ("averages-float32", "frames-float16"), strict=True)] == [True, True]
    for trial in trials:
        content = json.loads(trial.read_text())
        assert content["start"] >= 0 and content["trial"] == {"step": 0.5, "computing": 0.4, "utterance": 0}


def test_the_learning_rate_is_chosen_on_dev_alone(control, superb, tmp_path, capsys):
    assert superb("--jobs", "2") == 0
    row, = rows(tmp_path)
    assert (row["chosen"], row["dev"], row["test"]) == (0.01, 75, {"accuracy": 99})
    assert row["dev_by_choice"] == {"0.001": 50, "0.01": 75} and row["unfinished"] == 0
    assert sorted(calls(control)) == ["evaluate 0.001 4", "evaluate 0.01 4", "train 0.001 0", "train 0.01 0"]
    assert superb() == 0 and superb("--plan") == 0
    assert not calls(control) and "0 of 2 cells to run" in capsys.readouterr().out


@pytest.mark.slow
def test_five_folds_and_fine_tuning_in_a_table_of_its_own(control, superb, tmp_path):
    assert superb(task="er") == 0
    assert superb("--finetune") == 0
    assert len(calls(control)) == 2 * 12
    er, ks = sorted(rows(tmp_path), key=lambda row: row["task"])
    assert list(er["runs"]) == list(tasks.FOLDS) and er["test"]["accuracy"] == pytest.approx(99)
    assert all((Path(run["run"]) / "states-4.ckpt").exists() for run in er["runs"].values())
    frozen, fine_tuned = (tmp_path / "out" / "results.md").read_text().split("## ")[1:]
    assert "constrained track" in frozen and "| er |" in frozen and "| ks |" not in frozen
    assert "not comparable" in fine_tuned and "| ks |" in fine_tuned and "| er |" not in fine_tuned
    folds = " / ".join(f"fold{number}: 99.00 %" for number in range(1, 6))
    assert f"| accuracy 99.00 % | {folds} | accuracy 75.00 % | learning rate 0.01 | 4 |" in frozen


@pytest.mark.slow
def test_no_mean_over_fewer_than_five_folds(control, superb, tmp_path):
    superb(task="er")
    cells = tmp_path / "out" / "cells"
    fold3, fold4 = (next(cells.glob(name)) for name in ("er-*fold3-lr0.01-*", "er-*fold4-lr0.001-*"))
    config = yaml.safe_load((fold3 / "config.yaml").read_text())
    assert config["downstream_expert"]["datarc"]["test_fold"] == "fold3" and config["optimizer"]["lr"] == 0.01
    (fold3 / "result.json").unlink()
    row, = results.write_results(tmp_path / "out")
    assert (row["chosen"], row["unfinished"]) == (0.001, 1)
    (fold4 / "result.json").unlink()
    row, = results.write_results(tmp_path / "out")
    assert (row["chosen"], row["test"], row["runs"]) == (None, {"accuracy": None}, {})


def test_a_failed_cell_does_not_stop_the_others(control, superb, tmp_path, capsys):
    (control / "fail-0.01").touch()
    assert superb() == 1
    error = capsys.readouterr().err
    assert "lr0.01" in error and "CellError: s3prl's train" in error and "the disk is full" in error
    row, = rows(tmp_path)
    assert row["chosen"] == 0.001 and row["unfinished"] == 1
    table = (tmp_path / "out" / "results.md").read_text()
    assert "unfinished cells in the search: 1; trained on averages in float32; `runner.total_steps=4, " in table
    calls(control)
    (control / "fail-0.01").unlink()
    assert superb() == 0
    assert calls(control) == ["train 0.01 0", "evaluate 0.01 4"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_continues_after_interruption(how, control, superb, checkpoint, corpora, tmp_path):
    (control / "hang-0.001").touch()
    arguments = ["superb", str(checkpoint), "--out", str(tmp_path / "out"), "--ks", str(corpora["ks"]),
                 "-o", STEPS + BATCH["ks"], "--device", "cpu", "--learning-rates", "1e-2", "1e-3"]
    script = f"""import signal, sys
from ssamba_upstream.cli import main
from ssamba_upstream.plugin.keeping import Trial
from ssamba_upstream.superb import plan, processes

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background would have ignored

processes.RUNNER = {processes.RUNNER!r}
plan.measure = lambda *arguments: (1, Trial(1, 0.5, 0.5))
sys.exit(main({arguments!r}))"""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True,
                               env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
    while not (control / "hanging").exists():
        assert process.poll() is None
        time.sleep(0.1)
    if how == signal.SIGINT:  # as a terminal does, to the whole group
        os.killpg(process.pid, how)
        assert process.wait() == 130
    elif how == signal.SIGTERM:  # as a batch system does, to the process only
        process.terminate()
        assert process.wait() == 130
        with pytest.raises(ProcessLookupError):  # no process of the group is left
            os.killpg(process.pid, 0)
    else:
        process.kill()
        process.wait()
        with open(next((tmp_path / "out" / "cells").glob("*lr0.001*")) / ".lock") as lock:
            with pytest.raises(BlockingIOError):  # the child was not killed and still holds the cell
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.killpg(process.pid, how)
    assert calls(control) == ["train 0.01 0", "evaluate 0.01 4", "train 0.001 0"]
    (control / "hang-0.001").unlink()
    assert superb() == 0
    assert calls(control) == ["train 0.001 2", "evaluate 0.001 4"]
    assert rows(tmp_path)[0]["unfinished"] == 0


@pytest.mark.parametrize("handler, seconds, status", [
    ("signal.default_int_handler", 60, 3), ("signal.SIG_IGN", 0.1, -signal.SIGKILL)])
def test_interrupted_processes_can_clean_up(handler, seconds, status, tmp_path, monkeypatch):
    """Data-loading workers of a process that is killed may wait for it forever."""
    monkeypatch.setattr(processes, "ENDING", ((None, 0), (signal.SIGINT, seconds), (signal.SIGKILL, 60)))
    code = f"""import pathlib, signal, sys, time
signal.signal(signal.SIGINT, {handler})
try:
    pathlib.Path("ready").touch()
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(3)"""
    running, statuses = processes.Processes(), []
    thread = threading.Thread(
        target=lambda: statuses.append(running.run([sys.executable, "-c", code], cwd=tmp_path)))
    thread.start()
    while not (tmp_path / "ready").exists():
        assert thread.is_alive()
        time.sleep(0.01)
    running.end()
    thread.join()
    assert statuses == [status]
    with pytest.raises(processes.CellError, match="stopped before it started"):
        running.run([sys.executable, "-c", code])


@pytest.mark.slow
@pytest.mark.parametrize("cut_off, begins_at", [
    ("states-4.ckpt", 2), ("dev-best.ckpt", 0), ("states-*.ckpt", 0)])
def test_checkpoints_cut_off_in_writing(control, superb, tmp_path, cut_off, begins_at):
    superb()
    calls(control)
    folder, = (tmp_path / "out" / "cells").glob("*lr0.01*")
    (folder / "result.json").unlink()
    for path in (folder / "s3prl").glob(cut_off):
        path.write_bytes(path.read_bytes()[:-9])
    assert superb() == 0
    assert calls(control) == [f"train 0.01 {begins_at}", "evaluate 0.01 4"]


@pytest.mark.slow
def test_waits_for_a_process_that_runs_the_cell(control, superb, monkeypatch, tmp_path, capsys):
    superb()
    folder, = (tmp_path / "out" / "cells").glob("*lr0.01*")
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    calls(control)
    lock, flock, waits = open(folder / ".lock", "w"), fcntl.flock, threading.Event()
    flock(lock, fcntl.LOCK_EX)

    def flock_noted(file, operation):
        if operation == fcntl.LOCK_EX:
            waits.set()
        flock(file, operation)

    def finish():
        waits.wait(60)
        (folder / "result.json").write_text(result)
        lock.close()

    monkeypatch.setattr(fcntl, "flock", flock_noted)
    other = threading.Thread(target=finish)
    other.start()
    superb()
    other.join()
    assert waits.is_set() and f"{folder.name}: waiting for another process" in capsys.readouterr().out
    assert not calls(control) and rows(tmp_path)[0]["unfinished"] == 0


def test_a_stale_result_is_never_reused(control, superb, checkpoint, tmp_path):
    superb()
    assert len(calls(control)) == 4
    superb("-o", STEPS.replace("total_steps=4", "total_steps=6"))
    assert len(calls(control)) == 4
    shutil.rmtree(checkpoint)
    torch.manual_seed(1)
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), checkpoint)
    superb()
    assert len(calls(control)) == 4
    found = {(row["checkpoint_sha256"], row["steps"]) for row in rows(tmp_path)}
    assert len(found) == 3


@pytest.fixture
def own_corpora(corpora, tmp_path):
    """A separate copy of the corpora."""
    return {task: Path(shutil.copytree(root, tmp_path / "corpora" / task)) for task, root in corpora.items()}


def cell_names(checkpoint, corpora, **options):
    return [cell.name for cell in cells.make_cells(cells.find_upstream(checkpoint), corpora, **options)]


def shuffle_metadata(corpora):
    path = corpora["er"] / "meta_data" / "Session1" / "train_meta_data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"meta_data": content["meta_data"][::-1]}))


def change_samples(corpora):
    """Replace recordings in a part of the corpus by others with the same names and sizes."""
    for path in (corpora["ks"] / "speech_commands_v0.01").glob("*/*.wav"):
        header, samples = path.read_bytes()[:44], path.read_bytes()[44:]
        path.write_bytes(header + samples[2:] + samples[:2])


def remove_a_word(corpora):
    next((corpora["ks"] / "speech_commands_v0.01" / "yes").glob("*.wav")).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("change, others", [
    (shuffle_metadata, "er"), (change_samples, "ks"), (remove_a_word, "ks")])
def test_a_cell_knows_what_is_in_its_corpus(change, others, checkpoint, own_corpora):
    def names():
        return {task: cell_names(checkpoint, {task: root}, overrides=STEPS + BATCH[task], learning_rates=[0.01])
                for task, root in own_corpora.items()}

    before = names()
    change(own_corpora)
    assert {task for task, found in names().items() if found != before[task]} == {others}


def test_a_cell_knows_the_files_that_its_config_names(checkpoint, tmp_path):
    config, folder = tmp_path / "config.yaml", tmp_path / "data"
    (folder / "labels").mkdir(parents=True)
    (folder / "labels" / "train.csv").write_text("1,2\n")
    (tmp_path / "list.txt").write_text("1 a")
    runner = {"total_steps": 4, "eval_step": 2, "save_step": 2, "eval_dataloaders": ["dev"]}
    paths = {"root": str(folder), "lists": [str(tmp_path / "list.txt")], "absent": "/of/no/such/place", "mode": "mean"}
    config.write_text(yaml.safe_dump({"runner": runner, "optimizer": {"lr": 1.0}, "downstream_expert": paths}))

    def name():
        found, = cell_names(checkpoint, {}, downstreams=[("another", config)], learning_rates=[0.01])
        return found

    names = [name(), name()]
    (tmp_path / "list.txt").write_text("2 a")
    names.append(name())
    (folder / "labels" / "train.csv").write_text("2,1\n")
    names.append(name())
    (folder / "labels" / "dev.csv").touch()
    names.append(name())
    assert names[0] == names[1] and len(set(names)) == 4


@pytest.mark.parametrize("which", ["ssamba-upstream", "s3prl", "torch"])
def test_a_cell_knows_the_versions(which, control, superb, tmp_path, monkeypatch):
    assert superb("--cell", "0") == 0
    installed = cells.installed_versions()
    monkeypatch.setattr(cells, "installed_versions", lambda: {**installed, which: "9.9"})
    monkeypatch.setattr(results, "installed_versions", cells.installed_versions)
    calls(control)
    assert superb("--cell", "0") == 0 and len(calls(control)) == 2
    assert {row["versions"][which] for row in rows(tmp_path)} == {installed[which], "9.9"}
    assert (tmp_path / "out" / "results.md").read_text().count(f"{which} {installed[which]}") == 1


@pytest.mark.slow
def test_a_corpus_that_moves_keeps_its_cells(control, superb, own_corpora, checkpoint, tmp_path):
    (control / "fail-0.001").touch()
    superb()
    (control / "fail-0.001").unlink()
    calls(control)
    assert main(["superb", str(checkpoint), "--out", str(tmp_path / "out"), "--ks", str(own_corpora["ks"]), "--device",
                 "cpu", "-o", STEPS + BATCH["ks"], "--learning-rates", "1e-2", "1e-3"]) == 0
    assert calls(control) == ["train 0.001 0", "evaluate 0.001 4"]  # and not the finished ones
    row, = rows(tmp_path)
    assert row["unfinished"] == 0
    for folder in (tmp_path / "out" / "cells").iterdir():
        datarc = yaml.safe_load((folder / "config.yaml").read_text())["downstream_expert"]["datarc"]
        assert datarc["speech_commands_root"] == str(own_corpora["ks"] / "speech_commands_v0.01")
    # s3prl reads the config from the checkpoint it evaluates.
    assert f"datarc.speech_commands_root={own_corpora['ks']}" in (control / "arguments").read_text().splitlines()[-1]


def test_what_was_checked_is_what_runs(superb, capsys):
    assert superb("-o", f"{STEPS},,config.downstream_expert.datarc.speech_commands_root=elsewhere") == 1
    assert "this field names a file checked in" in capsys.readouterr().err


def test_other_corpora_than_superbs_are_in_a_table_of_their_own(control, superb, corpora, tmp_path, monkeypatch):
    assert superb() == 0
    row, = rows(tmp_path)
    table = (tmp_path / "out" / "results.md").read_text()
    assert "## Frozen upstream, tasks or corpora other than SUPERB's: not comparable" in table
    assert "Frozen upstream: SUPERB's constrained track" not in table
    assert f"| not the released corpus ({row['corpus_sha256'][:8]}) |" in table
    shutil.rmtree(tmp_path / "out")
    counts = {split: sum(count for name, count in classes.items() if split == "test" or name != "_silence_")
              for split, classes in speech_commands.check(corpora["ks"]).counts.items()}
    monkeypatch.setattr(speech_commands, "RELEASED", {"v0.01": counts, "v0.02": {}})
    assert superb() == 0
    table = (tmp_path / "out" / "results.md").read_text()
    assert "## Frozen upstream: SUPERB's constrained track" in table and "tasks or corpora other" not in table
    assert f"| released ({row['corpus_sha256'][:8]}) |" in table


def test_cells_of_an_earlier_version_are_skipped_and_named(control, superb, tmp_path, capsys):
    for name, content in (("ks-frozen-lr0.01-0123456789", {"task": "ks", "corpus": {}, "series": "0"}),
                          ("ks-frozen-lr0.1-0123456789", [])):
        folder = tmp_path / "out" / "cells" / name
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(content))
        (folder / "result.json").write_text('{"dev_accuracy": 1.0}')
    (tmp_path / "out" / "cells" / "being made").mkdir()
    assert superb("--plan") == 0
    message = "an earlier version of this package wrote them: ks-frozen-lr0.01-0123456789, ks-frozen-lr0.1-0123456789."
    assert message in capsys.readouterr().err
    assert superb() == 1
    assert message in capsys.readouterr().err and message in (tmp_path / "out" / "results.md").read_text()
    assert [row["chosen"] for row in rows(tmp_path)] == [0.01]
    assert superb("-o", f"{STEPS}{BATCH['ks']},,config.runner.gradient_clipping=1e999") == 1  # infinite
    assert len(results.read_cells(tmp_path / "out")[1]) == 2
    renamed = next((tmp_path / "out" / "cells").glob("ks-frozen-lr0.001-*"))
    renamed.rename(renamed.with_name("ks-frozen-lr0.001-0123456789"))  # its content names another cell
    assert len(results.read_cells(tmp_path / "out")[1]) == 3


def test_a_checkpoint_that_changes_meanwhile_gives_no_result(control, superb, checkpoint, capsys, tmp_path):
    (control / "meanwhile").write_text(str(checkpoint / "config.json"))
    assert superb() == 1
    assert "changed while the cell ran" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/cells/*/result.json"))


def test_accuracy_of_zero_on_dev(control, superb, tmp_path):
    (control / "best-0.01.ckpt").unlink()
    (control / "best-0.001.ckpt").unlink()
    assert superb() == 0
    row, = rows(tmp_path)
    assert (row["dev"], row["chosen"]) == (0, 0.001)
    result = json.loads(next(tmp_path.glob("out/cells/*/result.json")).read_text())
    assert result["checkpoint"] == "states-4.ckpt" and result["step"] == 4
    table = (tmp_path / "out" / "results.md").read_text()
    assert "ks: last checkpoint, as dev-best.ckpt was never written" in table


def test_one_gpu_after_the_other(control, superb, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert superb("--device", "cuda", "--jobs", "2") == 0
    assert sorted((control / "gpus").read_text().split()) == ["5", "5", "7", "7"]


def test_no_gpu(control, superb, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert superb("--device", "cuda") == 1 and "--device cpu" in capsys.readouterr().err


def test_one_cell_of_an_array(control, superb, tmp_path, capsys):
    assert superb("--cell", "1") == 0
    assert calls(control) == ["train 0.001 0", "evaluate 0.001 4"]
    assert rows(tmp_path)[0]["unfinished"] == 1
    assert superb("--cell", "2") == 1 and "from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["-o", "config.optimizer.lr=1"], "--learning-rates"),
    (["-o", "args.seed=1"], "only the config can be overridden"),
    (["-o", "config.runner.totalsteps=100"], "config.runner.totalsteps: s3prl reads no such field. Did you mean "
                                             "config.runner.total_steps?"),
    (["-o", f"{STEPS},,config.specaug.num_time_mask=1"], "no task's config has this field"),
    (["-o", f"{STEPS},,config.downstream_expert.datarc.batchsize=1"],
     "no task's config has this field. Did you mean config.downstream_expert.datarc.batch_size?"),
    (["-o", "config.runner.total_steps=2,,config.runner.eval_step=3"], "nothing is evaluated on dev"),
    (["--er", "nowhere"], "does not exist"),
    (["-g", "nothing"], "published_10s"),
    (["--jobs", "0"], "1 or more"),
    (["-o", f"{STEPS},,config.downstream_expert.datarc.batch_size=1000"], "fewer than one batch of 1000"),
])
def test_refusals_before_anything_runs(control, superb, arguments, message, capsys, tmp_path):
    assert superb(*arguments) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_upstreams(checkpoint, monkeypatch):
    pytest.importorskip("librosa")
    assert cells.find_upstream("fbank") == cells.Upstream("fbank")
    with pytest.raises(ValueError, match="neither a path to a checkpoint nor"):
        cells.find_upstream("nothing_of_this_name")
    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(checkpoint.parent))
    checkpoint.rename(checkpoint.parent / "ssamba_tiny_400")
    found = cells.find_upstream("ssamba_tiny_400", options="published_1s")
    assert found.name == "ssamba_tiny_400" and found.options["window_secs"] == 1
    assert found.sha256 == content_hash(checkpoint.parent / "ssamba_tiny_400")


@pytest.mark.slow
@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("librosa", "tensorboardX")),
                    reason="s3prl needs librosa and tensorboardX")
def test_with_s3prl(superb, tmp_path, capsys):
    assert superb("--learning-rates", "1e-2") == 0
    assert "1 of 1 cells to run, 4 steps" in capsys.readouterr().out
    row, = rows(tmp_path)
    folder, = (tmp_path / "out" / "cells").iterdir()
    predicted, truth = ((folder / "s3prl" / f"test_{kind}.txt").read_text().splitlines()
                        for kind in ("predict", "truth"))
    accuracy = np.mean([p == t for p, t in zip(predicted, truth, strict=True)])
    assert len(predicted) == 24 and row["test"]["accuracy"] == pytest.approx(100 * accuracy)
    assert f"dev at step {json.loads((folder / 'result.json').read_text())['step']}" in \
        (folder / "s3prl" / "log.log").read_text()

    (folder / "result.json").unlink()
    cut_off = folder / "s3prl" / "states-4.ckpt"
    cut_off.write_bytes(cut_off.read_bytes()[:1000])
    assert superb("--learning-rates", "1e-2", "--cell", "0") == 0
    assert "Resume from s3prl/states-2.ckpt" in (folder / "printed.txt").read_text()
    assert rows(tmp_path)[0]["unfinished"] == 0
