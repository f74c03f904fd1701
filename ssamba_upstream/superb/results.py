"""The table of a campaign's results, from the cells in its folder: results.json and results.md."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from ..files import write_json, write_text
from .campaign import EXPERIMENT, RESULT
from .cells import TASKS

COLUMNS = ("task", "upstream", "checkpoint", "test, %", "by fold", "dev, %", "learning rate", "steps", "")
HEADINGS = {
    "frozen": "Frozen upstream: SUPERB's constrained track",
    "fine-tuned": "Fine-tuned upstream: not comparable with SUPERB's constrained track",
}


def write_results(out) -> list[dict]:
    """Write ``OUT/results.json`` and ``OUT/results.md`` from all cells in OUT, and return the rows.

    A row is a task with one upstream, mode, config and corpus. Its learning rate, the same in all folds, is
    the one with the highest mean dev accuracy among those of which every fold has finished; the lower of
    equals.
    """
    out = Path(out)
    series = defaultdict(list)
    for file in sorted(out.glob("cells/*/cell.json")):
        cell = json.loads(file.read_text())
        result = file.with_name(RESULT)
        if finished := result.is_file():
            cell["result"] = {**json.loads(result.read_text()), "run": str(file.with_name(EXPERIMENT))}
        cell["unfinished"] = not finished
        series[cell["series"]].append(cell)
    rows = sorted(map(_row, series.values()), key=lambda row: (row["task"], row["upstream"], row["series"]))
    write_json(rows, out / "results.json")
    write_text(markdown(rows) + "\n", out / "results.md")
    return rows


def _row(cells):
    search = defaultdict(dict)
    for cell in cells:
        search[cell["learning_rate"]][cell["fold"]] = cell.get("result")
    folds = TASKS[cells[0]["task"]].folds if cells[0]["task"] in TASKS else (None,)
    scores = {rate: fmean(results[fold]["dev_accuracy"] for fold in folds)
              for rate, results in sorted(search.items()) if all(results.get(fold) for fold in folds)}
    best = max(scores, key=scores.get, default=None)
    chosen = [] if best is None else [search[best][fold] for fold in folds]
    first = cells[0]
    return {
        "task": first["task"], "mode": first["mode"], "series": first["series"],
        "upstream": first["upstream"]["name"], "checkpoint": first["upstream"]["checkpoint"],
        "checkpoint_sha256": first["upstream"]["sha256"], "overrides": first["overrides"],
        "steps": first["config"]["runner"]["total_steps"],
        "learning_rate": best, "dev_accuracy": scores.get(best),
        "test_accuracy": fmean(result["test_accuracy"] for result in chosen) if chosen else None,
        "runs": {fold or first["task"]: result for fold, result in zip(folds, chosen)},
        "dev_accuracy_by_learning_rate": {f"{rate:g}": scores.get(rate) for rate in sorted(search)},
        "unfinished": sum(cell["unfinished"] for cell in cells),
    }


def markdown(rows: list[dict]) -> str:
    """A table for each mode; accuracies in percent, for ER the mean of the five folds."""
    lines = ["# SUPERB results"]
    for mode, heading in HEADINGS.items():
        if chosen := [row for row in rows if row["mode"] == mode]:
            lines += ["", f"## {heading}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
            lines += map(_line, chosen)
    return "\n".join(lines)


def _line(row):
    checkpoint = ""
    if row["checkpoint"] is not None:
        checkpoint = f"{Path(row['checkpoint']).name} ({row['checkpoint_sha256'][:8]})"
    folds = " / ".join(f"{fold}: {_percent(run['test_accuracy'])}" for fold, run in row["runs"].items()
                       if fold != row["task"])
    notes = []
    if row["unfinished"]:
        notes.append(f"cells of the search not finished: {row['unfinished']}")
    notes += [f"{fold}: dev accuracy 0 at every evaluation, so the last checkpoint"
              for fold, run in row["runs"].items() if not run["dev_accuracy"]]
    overrides = row["overrides"].replace("config.downstream_expert.datarc.", "").replace("config.", "")
    if overrides:
        notes.append(f"`{overrides.replace(',,', ', ')}`")
    rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
    values = [row["task"], row["upstream"], checkpoint, _percent(row["test_accuracy"]), folds,
              _percent(row["dev_accuracy"]), rate, row["steps"], "; ".join(notes)]
    return f"| {' | '.join(map(str, values))} |"


def _percent(accuracy):
    return "" if accuracy is None else f"{100 * accuracy:.2f}"
