"""Cells -> trained, evaluated and recorded by s3prl, each in processes of its own; resumable at any moment.

``OUT/cells/<name>`` holds ``cell.json`` (what the cell is), ``config.yaml`` (what s3prl reads), ``s3prl``
(its experiment), ``log.txt`` (what it printed) and, once it has finished, ``result.json``.
"""

import dataclasses
import fcntl
import itertools
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from ..checkpoint import content_hash
from ..files import write_json, write_text
from ..plugin import compat
from .cells import Cell

RUNNER = (sys.executable, "-m", "ssamba_upstream", "run-downstream")
"""The command that trains and evaluates; s3prl's arguments follow."""

EXPERIMENT = "s3prl"
RESULT = "result.json"
SHOWN = 12  # lines of the log of a cell that failed


class CellError(RuntimeError):
    """A cell failed; says why, with the last lines of its log."""


def prepare(cells: list[Cell], out) -> None:
    """Make the cells' folders, each with what the cell is; what is there stays."""
    for cell in cells:
        folder = cell_folder(cell, out)
        if (folder / "cell.json").is_file():
            continue
        write_text(yaml.safe_dump(cell.s3prl_config(), sort_keys=False), folder / "config.yaml")
        if cell.upstream.options is not None:
            write_text(yaml.safe_dump(cell.upstream.options), folder / "upstream.yaml")
        content = {**dataclasses.asdict(cell), "series": cell.series}
        write_json(content, folder / "cell.json")


def cell_folder(cell: Cell, out) -> Path:
    return Path(out) / "cells" / cell.name


def is_finished(cell: Cell, out) -> bool:
    return (cell_folder(cell, out) / RESULT).is_file()


def run_cells(cells: list[Cell], out, device: str, jobs: int = 1) -> dict[str, str]:
    """Run the cells that have not finished, ``jobs`` at once; on GPUs, each job on the next of them.

    Returns:
        By the name of a cell that failed, why. The others have their results.
    """
    slots = queue.SimpleQueue()
    for _, gpu in zip(range(jobs), itertools.cycle(gpus(device))):
        slots.put(gpu)

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
                outcome = f"dev {100 * future.result()['dev_accuracy']:.2f} %"
            except Exception as error:  # whatever it is, the other cells go on
                failures[cell.name] = outcome = f"FAILED: {type(error).__name__}: {error}"
            print(f"{number}/{len(waiting)} {cell.name}: {outcome}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def run_cell(cell: Cell, out, device: str, gpu: str = "") -> dict:
    """Train a cell, or go on training it, evaluate its best dev checkpoint on test and record the result.

    Raises:
        CellError: training or evaluation failed, or the checkpoint is no longer the one of the cell.
    """
    folder = cell_folder(cell, out)
    with _locked(folder) as lock:
        if not is_finished(cell, out):
            experiment = folder / EXPERIMENT
            _remove_what_was_cut_off(experiment)
            run_s3prl(folder, training_arguments(cell, device), gpu, lock)
            best, dev_accuracy, step = _best_checkpoint(experiment)
            run_s3prl(folder, ["-m", "evaluate", "-e", f"{EXPERIMENT}/{best}", "--device", device], gpu, lock)
            checkpoint = cell.upstream.checkpoint
            if checkpoint and content_hash(checkpoint) != cell.upstream.sha256:
                shutil.rmtree(experiment)
                raise CellError(f"{checkpoint} changed while the cell ran; copy it to where nothing writes, "
                                "and run the copy")
            result = {"dev_accuracy": dev_accuracy, "test_accuracy": _accuracies(experiment, "test")[-1],
                      "step": step, "checkpoint": best}
            write_json(result, folder / RESULT)
        return json.loads((folder / RESULT).read_text())


def training_arguments(cell: Cell, device: str) -> list[str]:
    """s3prl's arguments; ``-a`` goes on from the last states, if there are any."""
    arguments = ["-m", "train", "-a", "-u", cell.upstream.name, "-d", cell.downstream,
                 "-c", "config.yaml", "-p", EXPERIMENT, "--device", device]
    arguments += ["-k", cell.upstream.checkpoint] if cell.upstream.checkpoint else []
    arguments += ["-g", "upstream.yaml"] if cell.upstream.options is not None else []
    return arguments + (["-f"] if cell.mode == "fine-tuned" else [])


def run_s3prl(folder: Path, arguments: list[str], gpu: str, lock: int | None = None) -> None:
    """Run s3prl in a cell's folder, where its relative paths begin, so that OUT may be moved between runs.

    Raises:
        CellError: it ended with another status than 0.
    """
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, path))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path}
    with open(folder / "log.txt", "ab") as log:
        # When this process is killed s3prl goes on, and with the lock's file open it keeps the cell.
        status = subprocess.run(
            [*RUNNER, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, pass_fds=[] if lock is None else [lock]).returncode
    if status:
        lines = re.split(r"[\r\n]+", (folder / "log.txt").read_text(errors="replace").strip())
        raise CellError("\n    ".join([f"s3prl's {arguments[1]} ended with status {status}; its log ends:",
                                       *lines[-SHOWN:]]))


@contextmanager
def _locked(folder):
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.name}: waiting for a process that already runs it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _remove_what_was_cut_off(experiment):
    """Leave states that s3prl can go on from, or no experiment at all.

    With a best checkpoint cut off in writing all is begun anew, for the best so far is lost.
    """
    for states in experiment.glob("states-*.ckpt"):
        if not zipfile.is_zipfile(states):
            states.unlink()
    best = experiment / "dev-best.ckpt"
    if not any(experiment.glob("states-*.ckpt")) or best.exists() and not zipfile.is_zipfile(best):
        shutil.rmtree(experiment, ignore_errors=True)


def _best_checkpoint(experiment):
    """(file name, dev accuracy, step) of the checkpoint to be evaluated.

    s3prl keeps a checkpoint as the best only if its accuracy is above 0. Where it was 0 at every evaluation
    all are equally good, and the last one is taken.
    """
    best = "dev-best.ckpt"
    if not (experiment / best).is_file():
        states = sorted(experiment.glob("states-*.ckpt"), key=_step)
        if not states or any(_accuracies(experiment, "dev")):
            raise CellError(f"s3prl left no {best}, and no states that were evaluated with accuracy 0")
        return states[-1].name, 0.0, _step(states[-1])
    compat.apply()
    states = torch.load(experiment / best, map_location="cpu", weights_only=True, mmap=True)
    # The log also has lines of what an interruption undid; the checkpoint speaks for itself.
    return best, states["Downstream"]["best_score"].item(), states["Step"]


def _step(states):
    return int(states.stem.split("-")[1])


def _accuracies(experiment, split):
    log = experiment / "log.log"
    text = log.read_text() if log.is_file() else ""
    found = re.findall(rf"^{split} at step \d+: (\S+)$", text, re.MULTILINE)
    if not found:
        raise CellError(f"{log} has no accuracy on {split}")
    return [float(accuracy) for accuracy in found]


def gpus(device: str) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one for each GPU; for the CPU one that hides them.

    Raises:
        ValueError: there is no GPU.
    """
    if device == "cpu":
        return [""]
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    found = named or [str(gpu) for gpu in range(torch.cuda.device_count())]
    if not found:
        raise ValueError("torch finds no GPU here; add --device cpu")
    return found
