"""What a campaign is going to run, and about how long it will take, from a short trial of each task."""

import dataclasses
import json
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from ..files import write_json
from .campaign import EXPERIMENT, cell_folder, gpus, is_finished, prepare, training_arguments
from .cells import Cell
from .processes import CellError, Processes, run_s3prl
from .scorers import Scorers

TRIAL_STEPS = 4


def plan(cells: list[Cell], out, device: str, jobs: int = 1, scorers: Scorers | None = None) -> str:
    """A table of the cells and an estimate of the time they take, hours:minutes:seconds.

    Each task with cells to run gets a short trial. Evaluations are reckoned by their utterances, as training
    steps; of a fine-tuned upstream they take less than that. Tasks without training are not estimated. The notes of the
    corpora's checks, and what a scorer lacks, are said.
    """
    waiting = [cell for cell in cells if not is_finished(cell, out, scorers)]
    rows = [f"{'cell':>4}  {'task':16} {'mode':10} {'fold':5} {'search':>7} {'steps':>7}"]
    for number, cell in enumerate(cells):
        state = "" if cell in waiting else "finished"
        searched = f"{cell.learning_rate:g}" if cell.layer is None else cell.choice
        rows.append(f"{number:4}  {cell.task:16} {cell.mode:10} {cell.fold or '':5} {searched:>7} "
                    f"{cell.steps:7}  {state}".rstrip())
    seconds, steps = 0.0, sum(cell.steps for cell in waiting)
    for cell in {cell.series: cell for cell in cells}.values():
        rows += [f"{cell.task}: {note}" for note in cell.corpus.notes]
        if lacking := (scorers or Scorers()).lacking(cell):
            rows.append(f"{cell.task}: {lacking}")
    for cell in {cell.series: cell for cell in waiting}.values():
        if cell.layer is not None:
            rows.append(f"{cell.task}: no training, and so no estimate")
            continue
        try:
            start, per_step = measure(cell, out, device)
        except CellError as error:
            return "\n".join([*rows, f"No estimate: the trial of {cell.task} failed: {error}"])
        rows.append(f"{cell.task}: {1000 * per_step:.0f} ms a step, {start:.0f} s to start, measured over "
                    f"{TRIAL_STEPS // 2} steps")
        same = [other for other in waiting if other.series == cell.series]
        seconds += len(same) * (2 * start + per_step * (cell.steps + _evaluations_in_steps(cell)))
    rows.append(f"{len(waiting)} of {len(cells)} cells to run, {steps} steps, {jobs} at once: about "
                f"{timedelta(seconds=round(seconds / min(jobs, max(1, len(waiting)))))}")
    return "\n".join(rows)


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
            run_s3prl(Processes(), folder, [*training_arguments(trial_cell), "--device", device], gpus(device)[0])
            # s3prl tells no times, but writes its states after half of the steps and after all of them.
            after_half = (folder / EXPERIMENT / f"states-{half}.ckpt").stat().st_mtime
            after_all = (folder / EXPERIMENT / f"states-{TRIAL_STEPS}.ckpt").stat().st_mtime
        per_step = (after_all - after_half) / half
        to_start = after_half - began - half * per_step
        write_json([max(0.0, to_start), per_step], record)
    return tuple(json.loads(record.read_text()))


def _evaluations_in_steps(cell):
    """How many training steps the evaluations on dev and test are worth, by the number of utterances."""
    counts = {split: count.get("utterances", sum(count.values())) for split, count in cell.corpus.counts.items()}
    if cell.task == "er":  # s3prl's dev set is a fifth of the four sessions that train
        utterances = sum(counts.values()) * (0.2 * 4 + 1) / 5
    else:
        utterances = counts.get("dev", 0) + counts.get("test", 0)
    runner = cell.config["runner"]
    evaluations = cell.steps // runner["eval_step"] + 1
    batch = _batch_size(cell.downstream, cell.config["downstream_expert"])
    return evaluations * utterances / (batch * runner["gradient_accumulate_steps"])


def _batch_size(downstream, downstream_expert):
    """Utterances in a training batch, by the names that s3prl's downstreams have for it."""
    if downstream == "asr":  # which reads no train_batch_size, and halves batches of recordings over 2000 samples
        return max(1, downstream_expert["datarc"]["batch_size"] // 2)
    names = ("train_batch_size", "batch_size", "train_batchsize")
    sections = (downstream_expert.get(section, {}) for section in ("datarc", "corpus", "loaderrc"))
    return next((section[name] for section in sections for name in names if section.get(name)), 1)
