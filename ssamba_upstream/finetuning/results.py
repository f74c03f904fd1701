"""What fine-tuning leaves behind: a classifier's folder with its model card, and the results of all folds."""

from pathlib import Path
from statistics import mean, stdev

from huggingface_hub import EvalResult

from ..checkpoint import describe_size, write_classifier
from ..files import markdown_table, shown, write_json, write_text
from ..training.model_card import card_header, card_recipe
from ..training.run_folder import write_notes

RESULTS = "results.json"


def save_result(model, extractor, folder, description, step, scores):
    """Write a classifier's folder with its run's description and a model card; one that is there is replaced file by
    file, so that it can be loaded at any moment."""
    write_classifier(model, extractor, folder)
    write_notes(folder, description, step, scores, model_card(model, description, step, scores))


def model_card(model, description, step, scores):
    """The classifier's README in Markdown, with the Hugging Face hub's header."""
    recipe, front_end = description["recipe"], model.config.front_end
    seconds, kilohertz = front_end.seconds_of(recipe["clip_frames"]), front_end.sampling_rate / 1000
    rows = [[split, name, shown(value)] for split in ("dev", "test") if scores.get(split)
            for name, value in metrics_of(scores[split]).items()]
    table = markdown_table(["", "", ""], rows) if rows else "Not tested; `results.json` says what was."
    start = "random weights" if recipe["checkpoint"] is None else f"a checkpoint ({description['checkpoint'][:8]})"
    name = f"SSAMBA ({describe_size(model.config)}), fine-tuned"
    data = Path(recipe["data"]).name
    header = card_header(
        recipe, pipeline_tag="audio-classification", tags=["audio", "mamba", "ssamba"], model_name=name,
        eval_results=[EvalResult("audio-classification", data, data, metric, value, dataset_split="test")
                      for metric, value in metrics_of(scores.get("test") or {}).items() if value is not None],
    )
    fold = "" if recipe["fold"] is None else f", fold {recipe['fold']} for testing"
    return f"""{header}

# {name}

A Self-Supervised Audio Mamba (arXiv 2405.11831), fine-tuned with ssamba-upstream from {start}: {step} steps of
{recipe["batch_size"]} clips of {seconds:g} s at {kilohertz:g} kHz; {model.config.num_labels} classes.

```python
import ssamba_upstream
from transformers import pipeline
pipeline("audio-classification", model="FOLDER")(waveform)  # (samples,) at {front_end.sampling_rate} Hz
```

## Figures

{table}

## Data

`{data}`{fold}, recordings and labels with the sha256 {description["recordings"]}

Classes: {", ".join(model.config.id2label.values())}

{card_recipe(recipe, "data", "checkpoint")}

`run.json` holds the environment as well.
"""


def metrics_of(scores):
    """The metrics among what was found on a split; the others are counts."""
    return {name: value for name, value in scores.items() if not isinstance(value, int)}


def summarise(results):
    """Mean and standard deviation (of a sample) of the metrics on the test set, over the folds that define them.

    Args:
        results: of each fold, by its name, the content of its ``results.json``.

    Returns:
        ``test``, the means, and ``deviation``, by the metrics' names, None with too few folds; and ``folds``, the
        results.
    """
    names = metrics_of(next(iter(results.values()))["test"])
    values = {name: [of_fold["test"][name] for of_fold in results.values()] for name in names}
    defined = {name: [value for value in of_folds if value is not None] for name, of_folds in values.items()}
    return {
        "test": {name: mean(of_folds) if of_folds else None for name, of_folds in defined.items()},
        "deviation": {name: stdev(of_folds) if len(of_folds) > 1 else None for name, of_folds in defined.items()},
        "folds": results,
    }


def write_results(summary, out):
    """Write ``results.json``, and ``results.md``, a table, into a folder; see :func:`summarise`."""
    names = summary["test"]
    rows = [[fold, *(shown(of_fold["test"][name]) for name in names)] for fold, of_fold in summary["folds"].items()]
    together = (f"{shown(summary['test'][name])} ± {shown(summary['deviation'][name])}" for name in names)
    rows.append(["mean ± standard deviation", *together])
    write_json(summary, out / RESULTS)
    write_text(markdown_table(["fold", *names], rows) + "\n", out / "results.md")
