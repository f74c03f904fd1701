"""Cells -> trained, evaluated and recorded by s3prl, each in processes of its own; resumable at any moment.

``OUT/cells/<name>`` holds ``cell.json`` (what the cell is), ``config.yaml`` (what s3prl reads), ``s3prl`` (its
experiment), ``log.txt`` (what it printed) and, once it has finished, ``result.json``.
"""

import dataclasses
import fcntl
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

import ssamba_upstream

from ..plugin import compat
from .recipes import Cell, checkpoint_hash

RUNNER = (sys.executable, "-m", "ssamba_upstream.cli", "run-downstream")
"""The command that trains and evaluates; s3prl's arguments follow."""

EXPERIMENT = "s3prl"
RESULT = "result.json"
TRIAL_STEPS = 4
SHOWN = 12  # lines of the log of a cell that failed


class CellError(RuntimeError):
    """A cell failed; says why, with the last lines of its log."""


def prepare(cells: list[Cell], out) -> None:
    """Make the cells' folders, each with what the cell is; what is there stays."""
    for cell in cells:
        folder = cell_folder(cell, out)
        if (folder / "cell.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        write_text(yaml.safe_dump(cell.s3prl_config(), sort_keys=False), folder / "config.yaml")
        if cell.upstream.options is not None:
            write_text(yaml.safe_dump(cell.upstream.options), folder / "upstream.yaml")
        write_text(json.dumps({**dataclasses.asdict(cell), "series": cell.series}, indent=2), folder / "cell.json")


def cell_folder(cell: Cell, out) -> Path:
    return Path(out) / "cells" / cell.name


def is_finished(cell: Cell, out) -> bool:
    return (cell_folder(cell, out) / RESULT).is_file()


def run_cells(cells: list[Cell], out, device: str, jobs: int = 1) -> dict[str, str]:
    """Run the cells that have not finished, ``jobs`` at once; on GPUs, each job on the next of them.

    Returns:
        By the name of a cell that failed, why. The others have their result.
    """
    slots = queue.SimpleQueue()
    gpus = _visible_gpus() if device == "cuda" else [""]
    for job in range(jobs):
        slots.put(gpus[job % len(gpus)])

    def run(cell):
        gpu = slots.get()
        try:
            return run_cell(cell, out, device, gpu)
        finally:
            slots.put(gpu)

    failures = {}
    waiting = [cell for cell in cells if not is_finished(cell, out)]
    pool = ThreadPoolExecutor(jobs)
    try:
        running = {pool.submit(run, cell): cell for cell in waiting}
        for number, future in enumerate(as_completed(running), 1):
            cell = running[future]
            try:
                result = future.result()
                print(f"{number}/{len(waiting)} {cell.name}: dev {100 * result['dev_accuracy']:.2f} %", flush=True)
            except (CellError, OSError) as error:
                failures[cell.name] = str(error)
                print(f"{number}/{len(waiting)} {cell.name} FAILED: {error}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def run_cell(cell: Cell, out, device: str, gpu: str = "") -> dict:
    """Train a cell, or go on with its training, evaluate its best dev checkpoint on test and record the result.

    Raises:
        CellError: training or evaluation failed, or the checkpoint is no longer the one of the cell.
    """
    folder = cell_folder(cell, out)
    with _locked(folder) as lock:
        if not is_finished(cell, out):
            experiment = folder / EXPERIMENT
            if not _can_be_continued(experiment):
                shutil.rmtree(experiment, ignore_errors=True)
            began = time.monotonic()
            _run(folder, _training(cell, device), gpu, lock)
            best, dev_accuracy, step = _best_checkpoint(experiment, folder)
            _run(folder, ["-m", "evaluate", "-e", f"{EXPERIMENT}/{best}", "--device", device], gpu, lock)
            if cell.upstream.checkpoint and checkpoint_hash(cell.upstream.checkpoint) != cell.upstream.sha256:
                shutil.rmtree(experiment)
                raise CellError(f"{cell.upstream.checkpoint} changed while the cell ran; copy the checkpoint to where "
                                "nothing writes, and run that")
            write_text(json.dumps({
                "dev_accuracy": dev_accuracy, "test_accuracy": _accuracies(experiment, "test")[-1], "step": step,
                "checkpoint": best, "seconds_of_the_last_run": round(time.monotonic() - began),
            }, indent=2), folder / RESULT)
        return json.loads((folder / RESULT).read_text())


def plan(cells: list[Cell], out, device: str, jobs: int = 1) -> str:
    """A table of the cells and an estimate of their time, from a short trial of each task that is not finished."""
    rows = [f"{'cell':>4}  {'task':16} {'mode':10} {'fold':5} {'rate':>7} {'steps':>7}"]
    for number, cell in enumerate(cells):
        state = "finished" if is_finished(cell, out) else ""
        rows.append(f"{number:4}  {cell.task:16} {cell.mode:10} {cell.fold or '':5} {cell.learning_rate:7g} "
                    f"{cell.steps:7}  {state}".rstrip())
    waiting = [cell for cell in cells if not is_finished(cell, out)]
    seconds, steps = 0.0, sum(cell.steps for cell in waiting)
    for cell in {cell.series: cell for cell in waiting}.values():
        try:
            start, per_step = measure(cell, out, device)
        except CellError as error:
            return "\n".join([*rows, f"No estimate: the trial of {cell.task} failed: {error}"])
        rows.append(f"{cell.task}: {1000 * per_step:.0f} ms a step, {start:.0f} s to start, measured over "
                    f"{TRIAL_STEPS // 2} steps")
        same = [other for other in waiting if other.series == cell.series]
        seconds += len(same) * (2 * start + per_step * (cell.steps + _evaluations_in_steps(cell)))
    days, rest = divmod(round(seconds / min(jobs, max(1, len(waiting)))), 86400)
    clock = f"{days} d {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return "\n".join([*rows, f"{len(waiting)} of {len(cells)} cells to run, {steps} steps, {jobs} at once: "
                             f"about {clock}"])


def measure(cell: Cell, out, device: str) -> tuple[float, float]:
    """(seconds to start, seconds per step) of a cell like this one, from a few steps; measured once per OUT.

    Raises:
        CellError: the trial failed, as the cell would.
    """
    record = Path(out) / "trials" / f"{cell.task}-{cell.series}-{device}.json"
    if not record.is_file():
        half = TRIAL_STEPS // 2
        runner = {"total_steps": TRIAL_STEPS, "save_step": half, "eval_step": TRIAL_STEPS + 1}
        config = {**cell.config, "runner": {**cell.config["runner"], **runner}}
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=record.parent) as trial:
            trial_cell = dataclasses.replace(cell, config=config)
            prepare([trial_cell], trial)
            folder, began = cell_folder(trial_cell, trial), time.time()
            _run(folder, _training(trial_cell, device), _visible_gpus()[0] if device == "cuda" else "")
            states = (folder / EXPERIMENT / f"states-{step}.ckpt" for step in (half, TRIAL_STEPS))
            middle, end = (path.stat().st_mtime for path in states)
        per_step = (end - middle) / half
        write_text(json.dumps([max(0.0, middle - began - half * per_step), per_step]), record)
    return tuple(json.loads(record.read_text()))


def write_text(text: str, path: Path) -> None:
    """Write a file that is whole at every moment, whoever reads or writes it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _evaluations_in_steps(cell):
    """How many training steps the evaluations on dev and test are worth, by the number of utterances."""
    counts = {split: count.get("utterances", sum(count.values())) for split, count in cell.corpus.items()}
    if cell.task == "er":  # s3prl's dev set is a fifth of the four sessions that train
        utterances = sum(counts.values()) * (0.2 * 4 + 1) / 5
    else:
        utterances = counts.get("dev", 0) + counts.get("test", 0)
    runner, datarc = cell.config["runner"], cell.config["downstream_expert"]["datarc"]
    batch = datarc.get("train_batch_size") or datarc.get("batch_size") or 1
    evaluations = cell.steps // runner["eval_step"] + 1
    return evaluations * utterances / (batch * runner["gradient_accumulate_steps"])


def _training(cell, device):
    arguments = ["-m", "train", "-a", "-u", cell.upstream.name, "-d", cell.downstream, "-c", "config.yaml",
                 "-p", EXPERIMENT, "--device", device]
    arguments += ["-k", cell.upstream.checkpoint] if cell.upstream.checkpoint else []
    arguments += ["-g", "upstream.yaml"] if cell.upstream.options is not None else []
    return arguments + (["-f"] if cell.mode == "fine-tuned" else [])


def _run(folder, arguments, gpu, lock=None):
    """Run s3prl in a cell's folder, where its relative paths begin, so that OUT may be moved between runs."""
    path = [str(Path(ssamba_upstream.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with open(folder / "log.txt", "ab") as log:
        # Whoever holds the lock's file keeps the cell: s3prl goes on when this process is killed.
        status = subprocess.run([*RUNNER, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock] if lock else []).returncode
    if status:
        lines = re.split(r"[\r\n]+", (folder / "log.txt").read_text(errors="replace").strip())[-SHOWN:]
        raise CellError("\n    ".join([f"status {status} of s3prl's {arguments[1]}; the end of {folder / 'log.txt'}:",
                                       *lines]))


@contextmanager
def _locked(folder):
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.name}: waiting for a process that already runs it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _can_be_continued(experiment):
    """True when there are states to go on from; a checkpoint that was cut off in writing is none.

    Without the cut off best checkpoint, the better of the steps trained so far would be unknown.
    """
    for states in experiment.glob("states-*.ckpt"):
        if not zipfile.is_zipfile(states):
            states.unlink()
    best = experiment / "dev-best.ckpt"
    return any(experiment.glob("states-*.ckpt")) and (not best.exists() or zipfile.is_zipfile(best))


def _best_checkpoint(experiment, folder):
    """(file name, dev accuracy, step) of the checkpoint to be evaluated.

    s3prl keeps a checkpoint as the best only if its accuracy is above 0. Where it was 0 at every evaluation all are
    equally good, and the last one is taken.
    """
    best = "dev-best.ckpt"
    if not (experiment / best).is_file():
        states = sorted(experiment.glob("states-*.ckpt"), key=_step)
        if not states or any(_accuracies(experiment, "dev")):
            raise CellError(f"s3prl left neither {best} nor states with a dev accuracy of 0; see {folder / 'log.txt'}")
        return states[-1].name, 0.0, _step(states[-1])
    compat.apply()
    states = torch.load(experiment / best, map_location="cpu", weights_only=True, mmap=True)
    # The log also has lines of what an interruption undid; the checkpoint speaks for itself.
    return best, states["Downstream"]["best_score"].item(), states["Step"]


def _step(states):
    return int(states.stem.split("-")[1])


def _accuracies(experiment, split):
    log = experiment / "log.log"
    found = re.findall(rf"^{split} at step \d+: (\S+)$", log.read_text() if log.is_file() else "", re.MULTILINE)
    if not found:
        raise CellError(f"{log} has no accuracy on {split}")
    return [float(accuracy) for accuracy in found]


def _visible_gpus():
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [gpu for gpu in named.split(",") if gpu] or [str(gpu) for gpu in range(torch.cuda.device_count())]
