"""The table of a campaign's results, from the cells in its folder: results.json and results.md."""

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from ..files import read_json, write_json, write_text
from .campaign import EXPERIMENT, RESULT, better, value
from .cells import Cell, Upstream
from .scorers import Scorers
from .tasks import task_named

COLUMNS = ("task", "upstream", "checkpoint", "test", "by fold", "dev", "chosen", "steps", "")
HEADINGS = {
    "frozen": "Frozen upstream: SUPERB's constrained track",
    "fine-tuned": "Fine-tuned upstream: not comparable with SUPERB's constrained track",
}


def write_results(out, scorers: Scorers | None = None) -> list[dict]:
    """Write ``OUT/results.json`` and ``OUT/results.md`` from all cells in OUT, and return the rows.

    A row is a task with one upstream, mode, config and corpus. Its learning rate, the same in all folds, or its layer
    is the one with the best mean on dev among those of which every fold has finished; the lower of equals. Values
    are in the units of the tasks' metrics.
    """
    out = Path(out)
    series = defaultdict(list)
    for file in sorted(out.glob("cells/*/cell.json")):
        cell = read_json(file)
        result = file.with_name(RESULT)
        if finished := result.is_file():
            cell["result"] = {**read_json(result), "run": str(file.with_name(EXPERIMENT))}
        cell["unfinished"] = not finished
        series[cell["series"]].append(cell)
    rows = [_row(cells, scorers or Scorers()) for cells in series.values()]
    rows.sort(key=lambda row: (row["task"], row["upstream"], row["series"]))
    write_json(rows, out / "results.json")
    write_text(markdown(rows) + "\n", out / "results.md")
    return rows


def _row(cells, scorers):
    first = cells[0]
    task = task_named(first["task"])
    search = defaultdict(dict)
    for cell in cells:
        search[cell[task.searched]][cell["fold"]] = cell.get("result")
    scores = {choice: fmean(results[fold]["dev"] for fold in task.folds) for choice, results in sorted(search.items())
              if all(results.get(fold) and results[fold]["dev"] is not None for fold in task.folds)}
    best = better(task.chosen_by)(scores, key=scores.get, default=None)
    chosen = [] if best is None else [search[best][fold] for fold in task.folds]
    test = {metric.name: _mean([result["test"][metric.name] for result in chosen]) for metric in task.metrics}
    return {
        "task": first["task"], "mode": first["mode"], "series": first["series"],
        "upstream": first["upstream"]["name"], "checkpoint": first["upstream"]["checkpoint"],
        "checkpoint_sha256": first["upstream"]["sha256"], "overrides": first["overrides"],
        "steps": _cell(first).steps,
        "searched": task.searched, "chosen": best, "dev": scores.get(best),
        "test": test,
        "runs": {fold or first["task"]: result for fold, result in zip(task.folds, chosen)},
        "dev_by_choice": {f"{choice:g}": scores.get(choice) for choice in sorted(search)},
        "unfinished": sum(cell["unfinished"] for cell in cells),
        "lacking": scorers.lacking(_cell(first)) if None in test.values() else None,
    }


def _cell(content):
    fields = {name: content[name] for name in Cell.__dataclass_fields__}
    return Cell(**{**fields, "upstream": Upstream(**content["upstream"])})


def _mean(values):
    return fmean(values) if values and None not in values else None


def markdown(rows: list[dict]) -> str:
    """A table for each mode; for ER the mean of the five folds."""
    lines = ["# SUPERB results"]
    for mode, heading in HEADINGS.items():
        if chosen := [row for row in rows if row["mode"] == mode]:
            lines += ["", f"## {heading}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            lines += map(_line, chosen)
    return "\n".join(lines)


def _line(row):
    task, checkpoint = task_named(row["task"]), ""
    if row["checkpoint"] is not None:
        checkpoint = f"{Path(row['checkpoint']).name} ({row['checkpoint_sha256'][:8]})"
    test = ", ".join(f"{metric.name} {value(metric, row['test'][metric.name])}" for metric in task.metrics
                     if row["test"][metric.name] is not None)
    first = task.metrics[0]
    folds = " / ".join(f"{fold}: {value(first, run['test'][first.name])}" for fold, run in row["runs"].items()
                       if fold != row["task"])
    dev = f"{task.chosen_by.name} {value(task.chosen_by, row['dev'])}" if row["dev"] is not None else ""
    chosen = "" if row["chosen"] is None else f"{row['searched'].replace('_', ' ')} {row['chosen']:g}"
    values = [row["task"], row["upstream"], checkpoint, test, folds, dev, chosen, row["steps"]]
    return f"| {' | '.join(map(str, [*values, '; '.join(_notes(row, task))]))} |"


def _notes(row, task):
    notes = []
    if row["unfinished"]:
        notes.append(f"cells of the search not finished: {row['unfinished']}")
    if task.best is None:
        notes.append("no dev set: step and learning rate by the test set, as SUPERB's recipe has it")
    notes += [f"{fold}: {task.best} was never kept, so the last checkpoint" for fold, run in row["runs"].items()
              if task.best is not None and (run["checkpoint"] or task.best) != task.best]
    if row["lacking"]:
        notes.append(row["lacking"])
    overrides = row["overrides"].replace("config.downstream_expert.datarc.", "").replace("config.", "")
    if overrides:
        notes.append(f"`{overrides.replace(',,', ', ')}`")
    return notes
