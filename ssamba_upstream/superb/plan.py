"""A campaign's plan: the cells to run, and an estimate of their time from a short trial of each task."""

import dataclasses
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from ..files import read_json, write_json
from ..plugin.keeping import Keeping, Trial
from .campaign import CACHE, cell_folder, gpus, is_finished, prepare, training_arguments
from .cells import Cell
from .processes import CellError, Processes, run_s3prl
from .scorers import Scorers

TRIAL_STEPS = 4


def plan(cells: list[Cell], out, device: str, jobs: int = 1, scorers: Scorers | None = None,
         compare: bool = False) -> str:
    """Return a table of the cells and an estimate of their time as hours:minutes:seconds.

    Each task with cells to run gets a short trial. The estimate counts an evaluation as the training steps that its
    utterances would fill, which is too much for a fine-tuned upstream. Tasks without training are not included. The
    plan also lists the notes from the corpus checks and anything that a scorer lacks. With ``compare``, tasks that
    train on averages are also timed with waveforms instead, and the total is estimated for both.
    """
    unfinished = [cell for cell in cells if not is_finished(cell, out, scorers)]
    rows = [f"{'cell':>4}  {'task':16} {'mode':10} {'fold':5} {'search':>7} {'steps':>7}"]
    for number, cell in enumerate(cells):
        state = "" if cell in unfinished else "finished"
        searched = f"{cell.learning_rate:g}" if cell.layer is None else cell.choice
        rows.append(f"{number:4}  {cell.task:16} {cell.mode:10} {cell.fold or '':5} {searched:>7} "
                    f"{cell.steps:7}  {state}".rstrip())
    for cell in {cell.series: cell for cell in cells}.values():
        rows += [f"{cell.task}: {note}" for note in cell.corpus.notes]
        if lacking := (scorers or Scorers()).lacking(cell):
            rows.append(f"{cell.task}: {lacking}")
    totals = [0.0, 0.0]  # seconds as planned, and if every step computed its hidden states
    for cell in {cell.series: cell for cell in unfinished}.values():
        if cell.layer is not None:
            rows.append(f"{cell.task}: no estimate, because the task has no training")
            continue
        same = [other for other in unfinished if other.series == cell.series]
        try:
            sentence, *estimate = _estimate(cell, len(same), out, device, compare)
        except CellError as error:
            return "\n".join([*rows, f"No estimate, because the trial of {cell.task} failed: {error}"])
        rows.append(sentence)
        totals = [sum(seconds) for seconds in zip(totals, estimate)]
    at_once = min(jobs, max(1, len(unfinished)))
    planned, computing_always = (timedelta(seconds=round(seconds / at_once)) for seconds in totals)
    rows.append(f"{len(unfinished)} of {len(cells)} cells to run, {sum(cell.steps for cell in unfinished)} steps, "
                f"{jobs} at a time: about {planned}" + (f"; {computing_always} if every step computed its hidden states"
                                            if compare and any(cell.kept for cell in unfinished) else ""))
    return "\n".join(rows)


def _estimate(cell, count, out, device, compare):
    """Return a sentence about a cell's trials, and the seconds that ``count`` such cells take: as planned, and if every
    step computed its hidden states."""
    averages = cell.kept is not None and cell.kept.startswith("averages")
    steps, utterances = cell.steps + _evaluations_in_steps(cell), sum(_utterances(cell).values())
    sentence = f"{cell.task}:"
    if averages:
        start, trial = measure(cell, out, device, cell.kept)
        planned = trial.utterance * utterances + count * (2 * start + steps * trial.step)
        sentence += (f" {_milliseconds(trial.step)} a step from averages, after {_milliseconds(trial.utterance)} for "
                     f"each of {utterances} utterances")
        if not compare:
            return f"{sentence}; {start:.0f} s to start", planned, planned
    start, trial = measure(cell, out, device, None if cell.mode == "fine-tuned" else "frames float16")
    computing_always = count * (2 * start + steps * trial.step)
    once_kept, first_pass = trial.step - trial.computing, trial.computing * utterances / _utterances_of_step(cell)
    if averages:
        sentence += f"; {_milliseconds(trial.step)} a step with --by-runner"
    elif cell.kept:
        planned = first_pass + count * (2 * start + steps * once_kept)
        sentence += (f" {_milliseconds(once_kept)} a step once hidden states are kept, {_milliseconds(trial.step)} "
                     "before")
    else:
        planned = computing_always
        sentence += f" {_milliseconds(trial.step)} a step"
        if cell.mode == "frozen":
            sentence += f", {_milliseconds(once_kept)} if they were kept (--cache FOLDER)"
    return f"{sentence}; {start:.0f} s to start", planned, computing_always


def measure(cell: Cell, out, device: str, kept: str | None) -> tuple[float, Trial]:
    """Return the start-up time in seconds of a cell that keeps hidden states as ``kept`` says, see :class:`Cell`, and a
    Trial of a few of its steps in a temporary store. The measurements are kept in ``OUT/trials``."""
    kind = "runner" if kept is None else kept.replace(" ", "-")
    record = Path(out) / "trials" / f"{cell.task}-{cell.series}-{kind}-{device}.json"
    if not record.is_file():
        runner = {"total_steps": TRIAL_STEPS, "save_step": TRIAL_STEPS, "eval_step": TRIAL_STEPS + 1}
        config = {**cell.config, "runner": {**cell.config["runner"], **runner}}
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=record.parent) as folder:
            trial_cell = dataclasses.replace(cell, config=config, kept=kept)
            prepare([trial_cell], folder)
            keeping = Keeping(trial=Path(folder, "trial.json"))
            arguments = [*training_arguments(trial_cell), "--device", device,
                         *keeping.arguments(kept, Path(folder, CACHE))]
            began = time.perf_counter()
            run_s3prl(Processes(), cell_folder(trial_cell, folder), arguments, gpus(device)[0])
            whole, trial = time.perf_counter() - began, read_json(keeping.trial)
        write_json({"start": max(0.0, whole - TRIAL_STEPS * trial["step"]), "trial": trial}, record)
    content = read_json(record)
    return content["start"], Trial(**content["trial"])


def _utterances(cell):
    """Return the number of utterances by split, or by session for ER."""
    return {split: count.get("utterances", sum(count.values())) for split, count in cell.corpus.counts.items()}


def _evaluations_in_steps(cell):
    """Return the evaluations on dev and test in training steps, by their number of utterances."""
    counts = _utterances(cell)
    if cell.task == "er":  # s3prl's dev set is a fifth of the four training sessions
        utterances = sum(counts.values()) * (0.2 * 4 + 1) / 5
    else:
        utterances = counts.get("dev", 0) + counts.get("test", 0)
    evaluations = cell.steps // cell.config["runner"]["eval_step"] + 1
    return evaluations * utterances / _utterances_of_step(cell)


def _utterances_of_step(cell):
    batch = _batch_size(cell.downstream, cell.config["downstream_expert"])
    return batch * cell.config["runner"]["gradient_accumulate_steps"]


def _milliseconds(seconds):
    return f"{1000 * seconds:.0f} ms"


def _batch_size(downstream, downstream_expert):
    """Return the utterances in a training batch, by any of the names that s3prl's downstreams use."""
    if downstream == "asr":  # ignores train_batch_size and halves batches of recordings over 2000 samples
        return max(1, downstream_expert["datarc"]["batch_size"] // 2)
    names = ("train_batch_size", "batch_size", "train_batchsize")
    sections = (downstream_expert.get(section, {}) for section in ("datarc", "corpus", "loaderrc"))
    return next((section[name] for section in sections for name in names if section.get(name)), 1)
