"""The result tables of a campaign, results.json and results.md, from the cells in its folder."""

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from ..files import markdown_table, read_json, write_json, write_text
from .campaign import EXPERIMENT, RESULT, better, read_cells, value
from .cells import Cell, installed_versions
from .scorers import Scorers
from .tasks import task_named

COLUMNS = ("task", "upstream", "checkpoint", "test", "by fold", "dev", "chosen", "steps", "corpus", "")
FINE_TUNED = "Fine-tuned upstream: not comparable with SUPERB's constrained track"
CONSTRAINED = "Frozen upstream: SUPERB's constrained track"
ELSEWHERE = "Frozen upstream, tasks or corpora other than SUPERB's: not comparable with its constrained track"


def write_results(out, scorers: Scorers | None = None) -> list[dict]:
    """Write ``OUT/results.json`` and ``OUT/results.md`` from all cells in OUT, and return the rows.

    A row is a task with one upstream, mode, config, corpus and set of versions. Its learning rate (the same in all
    folds) or layer is the one with the best mean on dev among those with all folds finished; on a tie, the lower one.
    Values are in the units of the tasks' metrics. Cells from an earlier version of this package are skipped and listed
    below the tables.
    """
    out = Path(out)
    cells, earlier = read_cells(out)
    series = defaultdict(list)
    for folder, cell in cells.items():
        result = None
        if (folder / RESULT).is_file():
            result = {**read_json(folder / RESULT), "run": str(folder / EXPERIMENT)}
        series[cell.series].append((cell, result))
    rows = [_row(cells, scorers or Scorers()) for cells in series.values()]
    rows.sort(key=lambda row: (row["task"], row["upstream"], row["series"]))
    write_json(rows, out / "results.json")
    write_text("\n\n".join(filter(None, [markdown(rows), note_on_earlier(earlier)])) + "\n", out / "results.md")
    return rows


def note_on_earlier(names: list[str]) -> str:
    """Return a note on cells written by an earlier version of this package; empty if there are none."""
    if not names:
        return ""
    return (f"Skipped, because an earlier version of this package wrote them: {', '.join(names)}. Delete these folders "
            "in `cells` or move them elsewhere.")


def _row(cells: list[tuple[Cell, dict | None]], scorers):
    first = cells[0][0]
    task = task_named(first.task)
    search = defaultdict(dict)
    for cell, result in cells:
        search[getattr(cell, task.searched)][cell.fold] = result
    scores = {choice: fmean(results[fold]["dev"] for fold in task.folds) for choice, results in sorted(search.items())
              if all(results.get(fold) and results[fold]["dev"] is not None for fold in task.folds)}
    best = better(task.chosen_by)(scores, key=scores.get, default=None)
    chosen = [] if best is None else [search[best][fold] for fold in task.folds]
    measured = {metric.name: [result["test"][metric.name] for result in chosen] for metric in task.metrics}
    test = {name: fmean(values) if values and None not in values else None for name, values in measured.items()}
    return {
        "task": first.task, "mode": first.mode, "series": first.series,
        "upstream": first.upstream.name, "checkpoint": first.upstream.checkpoint,
        "checkpoint_sha256": first.upstream.sha256, "overrides": first.overrides,
        "steps": first.steps, "kept": first.kept,
        "corpus_sha256": first.corpus.content, "released_corpus": first.corpus.released, "versions": first.versions,
        "searched": task.searched, "chosen": best, "dev": scores.get(best),
        "test": test,
        "runs": {fold or first.task: result for fold, result in zip(task.folds, chosen)},
        "dev_by_choice": {f"{choice:g}": scores.get(choice) for choice in sorted(search)},
        "unfinished": sum(result is None for _, result in cells),
        "lacking": scorers.lacking(first) if None in test.values() else None,
    }


def markdown(rows: list[dict]) -> str:
    """Return a Markdown table for each heading; ER is the mean of the five folds."""
    lines = ["# SUPERB results"]
    for heading in (CONSTRAINED, ELSEWHERE, FINE_TUNED):
        if chosen := [row for row in rows if _heading(row) == heading]:
            lines += ["", f"## {heading}", "", markdown_table(COLUMNS, map(_cells, chosen))]
    return "\n".join(lines)


def _heading(row):
    if row["mode"] == "fine-tuned":
        return FINE_TUNED
    return CONSTRAINED if row["released_corpus"] else ELSEWHERE


def _cells(row):
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
    kind = {True: "released ", False: "not the released corpus ", None: ""}[row["released_corpus"]]
    corpus = f"{kind}({row['corpus_sha256'][:8]})"
    return [row["task"], row["upstream"], checkpoint, test, folds, dev, chosen, row["steps"], corpus,
            "; ".join(_notes(row, task))]


def _notes(row, task):
    notes = []
    if row["unfinished"]:
        notes.append(f"unfinished cells in the search: {row['unfinished']}")
    if task.best is None:
        notes.append("no dev set: step and learning rate were chosen on the test set, as in SUPERB's recipe")
    notes += [f"{fold}: last checkpoint, as {task.best} was never written" for fold, run in row["runs"].items()
              if task.best is not None and (run["checkpoint"] or task.best) != task.best]
    if row["lacking"]:
        notes.append(row["lacking"])
    if row["kept"]:
        notes.append("trained on {} in {}".format(*row["kept"].split()))
    installed = installed_versions()
    notes += [f"{name} {version}" for name, version in row["versions"].items() if version != installed.get(name)]
    overrides = row["overrides"].replace("config.downstream_expert.datarc.", "").replace("config.", "")
    if overrides:
        notes.append(f"`{overrides.replace(',,', ', ')}`")
    return notes
