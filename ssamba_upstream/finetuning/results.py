"""Results of fine-tuning: a classifier's folder with its model card, and the results of all folds."""

from pathlib import Path
from statistics import mean, stdev

from huggingface_hub import EvalResult

from ..checkpoint import describe_size, write_classifier
from ..files import markdown_table, shown, write_json, write_text
from ..training.run_folder import card_header, card_recipe, write_notes

RESULTS = "results.json"


def save_result(model, extractor, folder, description, step, scores):
    """Write a classifier's folder with its run's description and a model card. An existing folder is replaced file by
    file, so it can be loaded at any time."""
    write_classifier(model, extractor, folder)
    write_notes(folder, description, step, scores, model_card(model, description, step, scores))


def model_card(model, description, step, scores):
    """Return the classifier's README in Markdown, with the Hugging Face hub's header."""
    recipe, front_end = description["recipe"], model.config.front_end
    seconds, kilohertz = front_end.seconds_of(recipe["clip_frames"]), front_end.sampling_rate / 1000
    rows = [[split, name, shown(value)] for split in ("dev", "test") if scores.get(split)
            for name, value in metrics_of(scores[split]).items()]
    table = markdown_table(["", "", ""], rows) if rows else "Not tested; see `results.json`."
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

`{data}`{fold}, recordings and labels with the SHA-256 {description["recordings"]}

Classes: {", ".join(model.config.id2label.values())}

{card_recipe(recipe, "data", "checkpoint")}

`run.json` also records the environment.
"""


def metrics_of(scores):
    """Return the metrics among a split's scores; the other scores are counts."""
    return {name: value for name, value in scores.items() if not isinstance(value, int)}


def summarise(results):
    """Return the mean and sample standard deviation of the test metrics, over the folds that define them.

    Args:
        results: dict from fold name to the content of its ``results.json``.

    Returns:
        dict with ``test`` and ``deviation``, the means and deviations by metric name, None if too few folds define the
        metric; and ``folds``, the given results.
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
    """Write a :func:`summarise` result into a folder: ``results.json``, and a table, ``results.md``."""
    names = summary["test"]
    rows = [[fold, *(shown(of_fold["test"][name]) for name in names)] for fold, of_fold in summary["folds"].items()]
    together = (f"{shown(summary['test'][name])} ± {shown(summary['deviation'][name])}" for name in names)
    rows.append(["mean ± standard deviation", *together])
    write_json(summary, out / RESULTS)
    write_text(markdown_table(["fold", *names], rows) + "\n", out / "results.md")
