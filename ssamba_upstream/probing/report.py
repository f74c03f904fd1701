"""Reports of ``ssamba probe`` and ``ssamba probe-frames``: JSON, Markdown and two pictures."""

import math

from ..figures import load_pyplot, save_figure
from ..files import markdown_table, to_json, write_text


def write_report(results, out):
    """Write ``results.json``, ``results.md``, ``layers.png`` and, if a model is a network, ``cka.png``.

    Only the results of :func:`ssamba_upstream.probing.study.probe` have models with a ``superb_head``.
    """
    write_text(to_json(results, indent=1), out / "results.json")
    write_text(markdown(results), out / "results.md")
    save_figure(_draw_layers(results), out / "layers.png")
    networks = [model for model in results["models"] if len(model["layers"]) > 1]
    if networks:
        save_figure(_draw_cka(networks), out / "cka.png")


def markdown(results):
    """Return the results as Markdown: a summary, then a table of each network's layers."""
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(results[results["unit"]].items()))
    columns, summary = _columns(results), [*_SUMMARY, *([_WEIGHTED_SUM] if _has_heads(results) else [])]
    lines = [
        f"# Probes of {results['set'] or 'a labelled set'}", "",
        f"{results['classes']} classes, the most frequent {results['most_frequent_class']:.2%} of the "
        f"{results['unit']} ({counts}). {_explanation(results)}", "",
        _table(summary, results["models"]),
    ]
    for model in results["models"]:
        if len(model["layers"]) == 1:
            continue
        best = _best(model)
        number = "Layer", lambda layer, best=best: f"**{layer['layer']}**" if layer["layer"] in best else layer["layer"]
        lines += ["", f"## {model['name']}", "", _table([number, *columns], model["layers"])]
    return "\n".join(lines) + "\n"


def _table(columns, of):
    """Return a Markdown table of columns, each a name and a function from an entry to its cell."""
    return markdown_table([name for name, _ in columns], [[value(entry) for _, value in columns] for entry in of])


def _explanation(results):
    first = results["models"][0]
    chosen = "the layer with the lowest loss on dev"
    if len(first["best_layers"]) > 1:
        chosen = f"the layer that each of {len(first['best_layers'])} folds chooses by the loss on its own dev part"
    heads = " Weighted sum: SUPERB's weighted sum of the layers, from one random start." if _has_heads(results) else ""
    return (f"Probe: test accuracy in percent of a linear probe on {chosen}, with a 95 % confidence interval by "
            f"bootstrap over the {first['resampled']:,} {results['resampled']} of the test set.{heads}")


def _best(model):
    """Return the layers chosen on dev, or by the folds."""
    return sorted(set(model["best_layers"].values()))


def _has_heads(results):
    return "superb_head" in results["models"][0]


def _accuracy_columns(name):
    """Return columns for the accuracy of a layer or model, in percent, and the ends of its interval."""
    def end(number):
        return lambda of: "-" if of["interval"] is None else f"{of['interval'][number] * 100:.2f}"

    return [(name, lambda of: f"{of['test_accuracy'] * 100:.2f}"), ("From", end(0)), ("To", end(1))]


_SUMMARY = [
    ("Model", lambda model: model["name"]),
    ("Best layer", lambda model: ", ".join(map(str, _best(model))) if len(model["layers"]) > 1 else ""),
    *_accuracy_columns("Probe"),
]
_WEIGHTED_SUM = ("Weighted sum", lambda model: f"{model['superb_head']['test_accuracy'] * 100:.2f}")


def _columns(results):
    """Return the name of each column of the layers' tables, and a function from a layer to its cell."""
    columns = [
        *_accuracy_columns("Test"),
        ("Dev", lambda layer: f"{layer['dev_accuracy'] * 100:.2f}"),
        ("Dev loss", lambda layer: f"{layer['dev_loss']:.4f}"),
        ("Norm", lambda layer: f"{layer['norm']:.4g}"),
    ]
    if _has_heads(results):
        columns.insert(-1, ("Weight", lambda layer: f"{layer['weight']:.4f}"))
    return columns


def _draw_layers(results):
    from matplotlib.ticker import LogFormatter

    names = ["accuracy", *(["weights"] if _has_heads(results) else []), "lengths"]
    figure, axes = load_pyplot().subplots(
        len(names), sharex=True, figsize=(8, 8), height_ratios=(3, 1, 1)[:len(names)], layout="constrained")
    axes = dict(zip(names, axes))
    accuracy, lengths = axes["accuracy"], axes["lengths"]
    for number, model in enumerate(results["models"]):
        colour, layers = f"C{number}", model["layers"]
        values = [layer["test_accuracy"] * 100 for layer in layers]
        if len(layers) == 1:
            accuracy.axhline(values[0], color=colour, linestyle=":", label=f"{model['name']}, probe")
            continue
        numbers, best = range(len(layers)), _best(model)
        within = [layer["interval"] or 2 * [layer["test_accuracy"]] for layer in layers]
        beyond = [[abs(100 * end - value) for end, value in zip(ends, values)] for ends in zip(*within)]
        accuracy.errorbar(numbers, values, beyond, color=colour, capsize=2,
                          label=f"{model['name']}, probe of each layer")
        accuracy.plot(best, [values[layer] for layer in best], "*", color=colour, markersize=14,
                      label=f"best on dev: {', '.join(map(str, best))}")
        if "weights" in axes:
            accuracy.axhline(model["superb_head"]["test_accuracy"] * 100, color=colour, linestyle="--",
                             label=f"{model['name']}, SUPERB's weighted sum")
            axes["weights"].plot(numbers, [layer["weight"] for layer in layers], "o-", color=colour, markersize=3)
        lengths.semilogy(numbers, [layer["norm"] for layer in layers], "o-", color=colour, markersize=3)
    accuracy.set(title=f"Probes of {results['set']}" if results["set"] else "Probes", ylabel="test accuracy (%)")
    accuracy.legend(fontsize="small")
    if "weights" in axes:
        axes["weights"].set(ylabel="weight in the sum", ylim=(0, 1.1 * axes["weights"].get_ylim()[1]))
    lengths.set(ylabel="norm", xlabel="layer")
    lengths.yaxis.set_major_formatter(LogFormatter())
    lengths.yaxis.set_minor_formatter(LogFormatter())
    return figure


def _draw_cka(networks):
    figure, axes = load_pyplot().subplots(
        1, len(networks), squeeze=False, figsize=(4.5 * len(networks) + 1, 4.5), layout="constrained")
    for axis, model in zip(axes[0], networks):
        similarities = [[math.nan if value is None else value for value in row] for row in model["cka"]]
        image = axis.imshow(similarities, origin="lower", vmin=0, vmax=1)
        axis.set(title=model["name"], xlabel="layer", ylabel="layer")
    figure.colorbar(image, ax=axes, label="linear CKA")
    return figure
