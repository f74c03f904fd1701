"""Train and evaluate cells with s3prl, each in its own processes. A campaign can be resumed at any point.

``OUT/cells/<name>`` holds ``cell.json`` (the cell's definition), ``config.yaml`` (s3prl's config), ``s3prl``
(the experiment), ``printed.txt`` (s3prl's output), ``log.txt`` (its progress and errors) and, once finished,
``result.json``: the values on dev and test in the table's units, see :mod:`ssamba_upstream.superb.tasks`.
"""

import dataclasses
import itertools
import os
import queue
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
import yaml

from ..checkpoint import content_hash
from ..files import locked, read_json, write_json, write_text
from ..plugin import compat
from ..plugin.keeping import Keeping
from .cells import Cell, Corpus, Upstream
from .processes import CellError, Processes, run_s3prl
from .scorers import Scorers
from .tasks import Metric, SuperbTask, task_named

EXPERIMENT = "s3prl"
RESULT = "result.json"
CACHE = "cache"


def prepare(cells: list[Cell], out) -> None:
    """Create the cells' folders and write their definitions; if a corpus has moved, its new location is used."""
    for cell in cells:
        folder = cell_folder(cell, out)
        if read_cell(folder) == cell:
            continue
        write_text(yaml.safe_dump(cell.s3prl_config(), sort_keys=False), folder / "config.yaml")
        if cell.upstream.options is not None:
            write_text(yaml.safe_dump(cell.upstream.options), folder / "upstream.yaml")
        write_json(dataclasses.asdict(cell), folder / "cell.json")


def read_cell(folder: Path) -> Cell | None:
    """Return the cell in a folder; None if there is none or an earlier version of this package wrote it."""
    try:
        content = read_json(folder / "cell.json")
        content |= {"upstream": Upstream(**content["upstream"]), "corpus": Corpus(**content["corpus"])}
        cell = Cell(**content)
        return cell if cell.name == folder.name else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_cells(out) -> tuple[dict[Path, Cell], list[str]]:
    """Return the cells in OUT by folder, and the names of folders that :func:`read_cell` cannot read."""
    found = {file.parent: read_cell(file.parent) for file in sorted(Path(out).glob("cells/*/cell.json"))}
    return ({folder: cell for folder, cell in found.items() if cell is not None},
            [folder.name for folder, cell in found.items() if cell is None])


def cell_folder(cell: Cell, out) -> Path:
    return Path(out) / "cells" / cell.name


def is_finished(cell: Cell, out, scorers: Scorers | None = None) -> bool:
    """Return True if a cell has its result, including everything that its scorer, if available, can measure."""
    path = cell_folder(cell, out) / RESULT
    return path.is_file() and not _to_be_scored(cell, read_json(path), scorers or Scorers())


def run_cells(cells: list[Cell], out, device: str, jobs: int = 1, scorers: Scorers | None = None,
              keeping: Keeping | None = None) -> dict[str, str]:
    """Run all unfinished cells, ``jobs`` at a time; jobs are assigned to the GPUs in turn.

    An interruption also ends s3prl's processes and is re-raised. Averages are kept in ``OUT/cache`` unless ``keeping``
    names another folder.

    Returns:
        The reason for each failure, by the cell's name. All other cells have their results.
    """
    slots, processes = queue.SimpleQueue(), Processes()
    for _, gpu in zip(range(jobs), itertools.cycle(gpus(device))):
        slots.put(gpu)

    def run(cell):
        gpu = slots.get()
        try:
            return run_cell(cell, out, device, processes, gpu, scorers, keeping)
        finally:
            slots.put(gpu)

    failures = {}
    unfinished = [cell for cell in cells if not is_finished(cell, out, scorers)]
    pool = ThreadPoolExecutor(jobs)
    try:
        running = {pool.submit(run, cell): cell for cell in unfinished}
        for number, future in enumerate(as_completed(running), 1):
            cell = running[future]
            try:
                outcome = f"dev {value(task_named(cell.task).chosen_by, future.result()['dev'])}"
            except Exception as error:  # of any kind: the other cells continue
                failures[cell.name] = outcome = f"FAILED: {type(error).__name__}: {error}"
            print(f"{number}/{len(unfinished)} {cell.name}: {outcome}", flush=True)
    except BaseException:
        processes.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def run_cell(cell: Cell, out, device: str, processes: Processes, gpu: str = "",
             scorers: Scorers | None = None, keeping: Keeping | None = None) -> dict:
    """Train a cell or resume its training, evaluate its best dev checkpoint on test, and record the result.

    A task without training is evaluated on dev and test; a task without a dev set is evaluated at every ``eval_step``.
    If the task has a scorer, its measurements are added to the result.

    Raises:
        CellError: If training or evaluation failed, or if the cell's checkpoint has changed.
        ScorerError: If the scorer failed; the rest of the result is recorded.
    """
    folder, scorers = cell_folder(cell, out), scorers or Scorers()
    with locked(folder, wait=True) as lock:
        def run(arguments, override=""):
            # s3prl resumes with the checkpoint's config, which may name a former location of the corpus.
            options = ",,".join(filter(None, [cell.corpus.override, override]))
            arguments = [*arguments, *(["-o", options] if options else []), "--device", device,
                         *(keeping or Keeping()).arguments(cell.kept, Path(out, CACHE))]
            return run_s3prl(processes, folder, arguments, gpu, lock)

        if not (folder / RESULT).is_file():
            result = _evaluate(cell, folder, run)
            checkpoint = cell.upstream.checkpoint
            if checkpoint and content_hash(checkpoint) != cell.upstream.sha256:
                shutil.rmtree(folder / EXPERIMENT)
                raise CellError(f"{checkpoint} changed while the cell ran. Copy it to a place where nothing overwrites "
                                "it, and run the copy.")
            write_json(result, folder / RESULT)
        result = read_json(folder / RESULT)
        if _to_be_scored(cell, result, scorers):
            again = _evaluation(task_named(cell.task), f"{EXPERIMENT}/{result['checkpoint']}")
            scores = scorers.score(cell, folder / EXPERIMENT, lambda override: run(again, override))
            result = {**result, **scores, "test": {**result["test"], **scores["test"]}}
            write_json(result, folder / RESULT)
        return result


def _to_be_scored(cell: Cell, result: dict, scorers: Scorers) -> bool:
    open_values = cell.scorer and None in result["test"].values()
    return bool(open_values) and scorers.lacking(cell) is None


def _evaluate(cell: Cell, folder: Path, run) -> dict:
    """Return a cell's result without the scorer's values."""
    task, experiment = task_named(cell.task), folder / EXPERIMENT
    if task.searched == "layer":
        for split, name in ((task.dev, f"{EXPERIMENT}-dev"), (task.test, EXPERIMENT)):
            run(["-m", "evaluate", "-t", split, *upstream_arguments(cell), "-l", str(cell.layer), "-p", name])
        return {"dev": None, "test": {metric.name: None for metric in task.metrics}, "step": 0, "checkpoint": None}
    _remove_what_was_cut_off(experiment)
    run(training_arguments(cell))
    if task.best is None:
        return _evaluate_states(cell, experiment, run)
    best, dev, step = _best_checkpoint(task, folder)
    printed = run(_evaluation(task, f"{EXPERIMENT}/{best}"))
    return {"dev": dev, "test": _test_values(task, printed), "step": step, "checkpoint": best}


def _evaluate_states(cell: Cell, experiment: Path, run) -> dict:
    """Return the result of the best state on test, as SUPERB does for tasks without a dev set; keep its predictions."""
    task, found = task_named(cell.task), {}
    metric, every = task.chosen_by, cell.config["runner"]["eval_step"]
    for states in sorted(experiment.glob("states-*.ckpt"), key=_step):
        if _step(states) % every:
            continue
        place = experiment / states.stem
        if not (place / RESULT).is_file():
            place.mkdir(exist_ok=True)
            printed = run(_evaluation(task, f"{EXPERIMENT}/{states.name}"),
                          f"args.expdir={EXPERIMENT}/{states.stem}")
            write_json(_test_values(task, printed), place / RESULT)
        found[states] = read_json(place / RESULT)
    defined = [states for states, values in found.items() if values[metric.name] is not None]
    if not defined:
        raise CellError(f"no {metric.name} measured by s3prl is a number. See its output in {experiment.parent}.")
    best = better(metric)(defined, key=lambda states: found[states][metric.name])
    for _, form in task.predictions:
        shutil.copyfile(experiment / best.stem / form.source, experiment / form.source)
    return {"dev": found[best][metric.name], "test": found[best], "step": _step(best), "checkpoint": best.name}


def _evaluation(task: SuperbTask, checkpoint: str) -> list[str]:
    return ["-m", "evaluate", "-e", checkpoint, "-t", task.test]


def _test_values(task: SuperbTask, printed: str) -> dict[str, float | None]:
    """Return the metrics that s3prl printed for the test set, and None for those measured by a scorer."""
    return {metric.name: None if metric.pattern is None else _printed(metric, task.test, printed)[-1]
            for metric in task.metrics}


def _printed(metric: Metric, split: str, printed: str) -> list[float]:
    """Return all values of a metric on a split in s3prl's output, in the table's unit."""
    found = re.findall(metric.pattern.replace("{split}", re.escape(split)), printed)
    if not found:
        raise CellError(f"s3prl printed no {metric.name} on {split}; expected a match for {metric.pattern}")
    return [metric.factor * float(number) for number in found]


def better(metric: Metric):
    """Return the function that picks the best of several values of a metric: max or min."""
    return max if metric.higher_is_better else min


def value(metric: Metric, number: float | None) -> str:
    """Format a value for the table."""
    return "-" if number is None else f"{number:.2f} {metric.unit}".rstrip()


def upstream_arguments(cell: Cell) -> list[str]:
    """Return s3prl's arguments for the upstream, the downstream and its config."""
    arguments = ["-u", cell.upstream.name, "-d", cell.downstream, "-c", "config.yaml"]
    arguments += ["-k", cell.upstream.checkpoint] if cell.upstream.checkpoint else []
    return arguments + (["-g", "upstream.yaml"] if cell.upstream.options is not None else [])


def training_arguments(cell: Cell) -> list[str]:
    """Return s3prl's arguments for training; with ``-a`` it resumes from the last states, if any."""
    arguments = ["-m", "train", "-a", *upstream_arguments(cell), "-p", EXPERIMENT]
    return arguments + (["-f"] if cell.mode == "fine-tuned" else [])


def _remove_what_was_cut_off(experiment):
    """Keep only states from which s3prl can resume; remove the experiment if there are none.

    If a best checkpoint is truncated, training starts over, because the best result so far is lost.
    """
    for states in experiment.glob("states-*.ckpt"):
        if not zipfile.is_zipfile(states):
            states.unlink()
    best_cut_off = any(not zipfile.is_zipfile(best) for best in experiment.glob("*best*.ckpt"))
    if not any(experiment.glob("states-*.ckpt")) or best_cut_off:
        shutil.rmtree(experiment, ignore_errors=True)


def _best_checkpoint(task: SuperbTask, folder: Path) -> tuple[str, float, int]:
    """Return (file name, value on dev, step) of the checkpoint to evaluate.

    s3prl keeps a checkpoint as the best only if it beats an initial value, such as an accuracy of 0. If no evaluation
    ever did, the last checkpoint is used.
    """
    metric, experiment = task.chosen_by, folder / EXPERIMENT
    if not (experiment / task.best).is_file():
        found = sorted(experiment.glob("states-*.ckpt"), key=_step)
        values = _printed(metric, task.dev, (folder / "printed.txt").read_text(errors="replace"))
        start = metric.factor * task.start
        if not found or any(better(metric)(number, start) != start for number in values):
            raise CellError(f"s3prl left neither {task.best} nor states that were evaluated as "
                            f"{value(metric, start)} or worse")
        return found[-1].name, values[-1], _step(found[-1])
    compat.apply()
    states = torch.load(experiment / task.best, map_location="cpu", weights_only=True, mmap=True)
    # The output may include steps that an interruption undid, so the checkpoint is the authority.
    return task.best, metric.factor * states["Downstream"]["best_score"].item(), states["Step"]


def _step(states):
    return int(states.stem.split("-")[1])


def gpus(device: str) -> list[str]:
    """Return a value of CUDA_VISIBLE_DEVICES for each GPU; for the CPU, one value that hides all GPUs. If torch finds
    no GPU, raise a ValueError."""
    if device == "cpu":
        return [""]
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    found = named or [str(gpu) for gpu in range(torch.cuda.device_count())]
    if not found:
        raise ValueError("torch finds no GPU. Add --device cpu.")
    return found
