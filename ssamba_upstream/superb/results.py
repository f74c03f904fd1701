"""The table of a campaign's results, from the cells in its folder: results.json and results.md."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from .campaign import RESULT, write_text
from .recipes import TASKS

HEADINGS = {
    "frozen": "Frozen upstream: SUPERB's constrained track",
    "fine-tuned": "Fine-tuned upstream: not comparable with SUPERB's constrained track",
}


def write_results(out) -> list[dict]:
    """Write ``OUT/results.json`` and ``OUT/results.md`` from all cells in OUT, and return the rows.

    A row is a task with one upstream, mode, config and corpus. Its learning rate is the one with the highest dev
    accuracy, averaged over the folds, among those of which every fold has finished; the lower of equals.
    """
    out = Path(out)
    series = defaultdict(list)
    for file in sorted(out.glob("cells/*/cell.json")):
        cell = json.loads(file.read_text())
        result = file.with_name(RESULT)
        cell["result"] = json.loads(result.read_text()) if result.is_file() else None
        series[cell["series"]].append(cell)
    rows = sorted(map(_row, series.values()), key=lambda row: (row["task"], row["upstream"], row["series"]))
    write_text(json.dumps(rows, indent=2), out / "results.json")
    write_text(markdown(rows), out / "results.md")
    return rows


def _row(cells):
    search = defaultdict(dict)
    for cell in cells:
        search[cell["learning_rate"]][cell["fold"]] = cell["result"]
    folds = TASKS[cells[0]["task"]].folds if cells[0]["task"] in TASKS else (None,)
    scores = {rate: fmean(results[fold]["dev_accuracy"] for fold in folds)
              for rate, results in sorted(search.items()) if all(results.get(fold) for fold in folds)}
    best = max(scores, key=scores.get, default=None)
    first = cells[0]
    return {
        "task": first["task"], "mode": first["mode"], "series": first["series"], "upstream": first["upstream"]["name"],
        "checkpoint": first["upstream"]["checkpoint"], "checkpoint_sha256": first["upstream"]["sha256"],
        "steps": first["config"]["runner"]["total_steps"], "overrides": first["overrides"],
        "learning_rate": best, "dev_accuracy": scores.get(best),
        "test_accuracy": None if best is None else fmean(search[best][fold]["test_accuracy"] for fold in folds),
        "folds": {} if best is None or folds == (None,) else {fold: search[best][fold] for fold in folds},
        "dev_accuracy_by_learning_rate": {f"{rate:g}": scores.get(rate) for rate in sorted(search)},
        "unfinished": sum(cell["result"] is None for cell in cells),
        "always_zero_on_dev": best is not None and not scores[best],
    }


def markdown(rows: list[dict]) -> str:
    """A table for each mode; accuracies in percent."""
    lines = ["# SUPERB results"]
    for mode, heading in HEADINGS.items():
        if chosen := [row for row in rows if row["mode"] == mode]:
            lines += ["", f"## {heading}", "",
                      "| task | upstream | checkpoint | test accuracy, % | by fold | dev, % | learning rate | steps | |",
                      "|---|---|---|---|---|---|---|---|---|", *map(_line, chosen)]
    return "\n".join(lines)


def _line(row):
    checkpoint = "" if row["checkpoint"] is None else f"{Path(row['checkpoint']).name} ({row['checkpoint_sha256'][:8]})"
    folds = " / ".join(_percent(result["test_accuracy"]) for result in row["folds"].values())
    notes = [f"{row['unfinished']} cells of the search unfinished"] * (row["unfinished"] > 0)
    notes += ["dev accuracy 0 at every evaluation: the last checkpoint"] * row["always_zero_on_dev"]
    notes += [f"`{row['overrides']}`"] * bool(row["overrides"])
    rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
    values = [row["task"], row["upstream"], checkpoint, _percent(row["test_accuracy"]), folds,
              _percent(row["dev_accuracy"]), rate, row["steps"], "; ".join(notes)]
    return f"| {' | '.join(map(str, values))} |"


def _percent(accuracy):
    return "" if accuracy is None else f"{100 * accuracy:.2f}"
