"""The results of ``ssamba probe`` as JSON, Markdown and two pictures."""

import json
import math
from statistics import stdev

from ..figures import load_pyplot, save_figure
from ..files import write_text

# Two-sided 95 % quantiles of Student's t distribution, for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS = len(STUDENT) + 1
ALONE = " Alone: SUPERB's classifier on a layer by itself, mean over the random starts."


def confidence_interval(values):
    """Half the width of the 95 % confidence interval of the mean of 2 to 10 values; None of a single one."""
    if len(values) == 1:
        return None
    return STUDENT[len(values) - 2] * stdev(values) / math.sqrt(len(values))


def write_report(results, out):
    """Write ``results.json``, ``results.md``, ``layers.png`` and, of networks, ``cka.png``.

    Args:
        results: see :func:`ssamba_upstream.probing.study.probe`.
        out: a folder, which is made if it is not there.
    """
    write_text(json.dumps(results, indent=1, allow_nan=False), out / "results.json")
    write_text(markdown(results), out / "results.md")
    save_figure(_draw_layers(results), out / "layers.png")
    networks = [model for model in results["models"] if len(model["layers"]) > 1]
    if networks:
        save_figure(_draw_cka(networks), out / "cka.png")


def markdown(results):
    """The results as text: a summary, then a table of the layers of each network."""
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(results["recordings"].items()))
    lines = [
        f"# Probes of {results['set'] or 'a labelled set'}", "",
        f"{results['classes']} classes, the most frequent {results['most_frequent_class']:.2%} of the recordings "
        f"({counts}). Test accuracy in percent: of linear probes, mean and 95 % confidence interval over "
        f"{results['options']['seeds']} random starts, in the layer with the lowest loss on dev; and of SUPERB's "
        f"weighted sum of the layers, from one start.{ALONE if results['options']['layers_alone'] else ''}", "",
        "| Model | Best layer | Probe | Weighted sum |", "| --- | ---: | ---: | ---: |",
    ]
    for model in results["models"]:
        best = model["layers"][model["best_layer"]]
        lines.append(f"| {model['name']} | {model['best_layer'] if len(model['layers']) > 1 else ''} "
                     f"| {_percent(best)} | {model['superb_head']['test_accuracy'] * 100:.2f} |")
    for model in results["models"]:
        if len(model["layers"]) == 1:
            continue
        lines += ["", f"## {model['name']}", "", *_layer_table(model, results["options"]["layers_alone"])]
    return "\n".join(lines) + "\n"


def _layer_table(model, alone):
    columns = ["Layer", "Test", "Dev", "Dev loss", "Weight", "Norm"]
    if alone:
        columns.append("Alone")
    rows = [columns, ["---:"] * len(columns)]
    for layer in model["layers"]:
        number = f"**{layer['layer']}**" if layer["layer"] == model["best_layer"] else str(layer["layer"])
        row = [number, _percent(layer), f"{layer['dev_accuracy'] * 100:.2f}", f"{layer['dev_loss']:.4f}",
               f"{layer['weight']:.4f}", f"{layer['norm']:.4g}"]
        if alone:
            row.append(f"{layer['alone'] * 100:.2f}")
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _percent(layer):
    interval = "" if layer["interval"] is None else f" ± {layer['interval'] * 100:.2f}"
    return f"{layer['test_accuracy'] * 100:.2f}{interval}"


def _draw_layers(results):
    figure, (accuracy, weights, lengths) = load_pyplot().subplots(
        3, sharex=True, figsize=(8, 8), height_ratios=(3, 1, 1), layout="constrained")
    for number, model in enumerate(results["models"]):
        colour, layers = f"C{number}", model["layers"]
        values = [layer["test_accuracy"] * 100 for layer in layers]
        if len(layers) == 1:
            accuracy.axhline(values[0], color=colour, linestyle=":", label=f"{model['name']}, probe")
            continue
        numbers, best = range(len(layers)), model["best_layer"]
        intervals = [(layer["interval"] or 0) * 100 for layer in layers]
        within = [[min(value, interval) for value, interval in zip(values, intervals)],
                  [min(100 - value, interval) for value, interval in zip(values, intervals)]]
        accuracy.errorbar(numbers, values, within, color=colour, capsize=2,
                          label=f"{model['name']}, probe of each layer")
        accuracy.plot(best, values[best], "*", color=colour, markersize=14, label=f"best on dev: layer {best}")
        accuracy.axhline(model["superb_head"]["test_accuracy"] * 100, color=colour, linestyle="--",
                         label=f"{model['name']}, SUPERB's weighted sum")
        weights.plot(numbers, [layer["weight"] for layer in layers], "o-", color=colour, markersize=3)
        lengths.semilogy(numbers, [layer["norm"] for layer in layers], "o-", color=colour, markersize=3)
    accuracy.set(title=f"Probes of {results['set']}" if results["set"] else "Probes", ylabel="test accuracy (%)")
    accuracy.legend(fontsize="small")
    weights.set(ylabel="weight in the sum", ylim=(0, 1.1 * weights.get_ylim()[1]))
    lengths.set(ylabel="norm", xlabel="layer")
    return figure


def _draw_cka(networks):
    figure, axes = load_pyplot().subplots(
        1, len(networks), squeeze=False, figsize=(4.5 * len(networks) + 1, 4.5), layout="constrained")
    for axis, model in zip(axes[0], networks):
        similarities = [[math.nan if value is None else value for value in row] for row in model["cka"]]
        image = axis.imshow(similarities, origin="lower", vmin=0, vmax=1)
        axis.set(title=model["name"], xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=axes, label="linear CKA of the time averages")
    return figure
