"""``ssamba probe``: what a labelled set's probes, SUPERB's classifier and the layers' geometry say of checkpoints."""

import os
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import mean


from .cache import cached_log_mel_averages, cached_time_averages, remembered
from .geometry import linear_cka, norms
from .probes import cross_validate, train_probes
from .report import confidence_interval, write_report
from .superb_head import splits_for_fold, train_head

FBANK = "fbank"  # stands for the filterbank, in the place of a checkpoint


def probe(data, checkpoints, out, recipe, source="", seeds=5, head_learning_rates=(1e-4,), device="cpu", cache=None,
          **options):
    """Probe every layer of some checkpoints, and write ``results.json``, ``results.md`` and two pictures.

    What has been computed is kept, so that an interrupted call goes on where it was, and a call with one more
    checkpoint, or seed, computes only that.

    Args:
        data: a LabelledSet; one with folds is cross-validated, and accuracies are means over the folds.
        checkpoints: paths; "fbank" is the filterbank, see :func:`log_mel_averages`.
        out: folder for the results.
        recipe: the HeadRecipe of SUPERB's classifier.
        source: name of the labelled set, for the report.
        seeds: number of random starts of the probes.
        head_learning_rates: of SUPERB's classifier.
        device: on which everything is computed.
        cache: folder for what is kept. Default: ``cache`` in out.
        options: of :func:`ssamba_upstream.probing.cache.cached_time_averages`.

    Returns:
        the content of ``results.json``.
    """
    out = Path(out)
    cache = Path(cache or out / "cache")
    results = {
        "set": source,
        "recordings": dict(Counter(data.splits)),
        "classes": len(data.classes),
        "most_frequent_class": max(Counter(data.labels).values()) / len(data.labels),
        "options": {**options, "seeds": seeds, "head": asdict(recipe), "head_learning_rates": [*head_learning_rates]},
        "models": [],
    }
    for name, checkpoint in zip(_names(checkpoints), checkpoints):
        seconds = {}
        with _timed(seconds, "hidden states"):
            if checkpoint == FBANK:
                features, key = cached_log_mel_averages(data.paths, cache)
            else:
                features, key = cached_time_averages(checkpoint, data.paths, cache, device=device, **options)
        task = {"features": key, "labels": data.labels, "splits": data.splits}
        with _timed(seconds, "probes"):
            probes = [
                remembered(cache, {**task, "probes": seed}, lambda: _train_probes(features, data, seed, device))
                for seed in range(seeds)
            ]
        with _timed(seconds, "head"):
            head_options = {"recipe": asdict(recipe), "learning_rates": [*head_learning_rates]}
            head = remembered(
                cache, {**task, "head": head_options},
                lambda: _train_head(features, data, recipe, head_learning_rates, device),
            )
        with _timed(seconds, "geometry"):
            geometry = remembered(cache, {"features": key, "geometry": 0}, lambda: _geometry(features))
        results["models"].append(
            {"name": name, "checkpoint": str(checkpoint), **_by_layer(probes, head, geometry), "seconds": seconds}
        )
    write_report(results, out)
    return results


class _timed:
    """Notes how many seconds its block took."""

    def __init__(self, seconds, name):
        self.seconds, self.name = seconds, name

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = round(time.perf_counter() - self.start, 2)


def _train_probes(features, data, seed, device):
    """Dev loss, dev accuracy and test accuracy of every layer, means over the folds if there are any."""
    if data.has_folds:
        folds = cross_validate(features, data.labels, data.splits, seed=seed, device=device).folds.values()
    else:
        folds = [train_probes(features, data.labels, data.splits, seed=seed, device=device)]
    return {
        name: [mean(values) for values in zip(*(getattr(fold, name) for fold in folds))]
        for name in ("dev_loss", "dev_accuracy", "test_accuracy")
    }


def _train_head(features, data, recipe, learning_rates, device):
    if data.has_folds:
        folds = {fold: splits_for_fold(data.splits, fold) for fold in sorted(set(data.splits))}
    else:
        folds = {"test": data.splits}
    results = {
        fold: asdict(train_head(features, data.labels, splits, recipe, learning_rates, device=device))
        for fold, splits in folds.items()
    }
    return {
        **{name: mean(result[name] for result in results.values()) for name in ("dev_accuracy", "test_accuracy")},
        "layer_weights": [mean(weights) for weights in zip(*(fold["layer_weights"] for fold in results.values()))],
        "folds": results,
    }


def _geometry(features):
    similarities = linear_cka(features)
    return {
        "norms": norms(features).tolist(),
        "cka": [[None if value != value else value for value in row] for row in similarities.tolist()],
    }


def _by_layer(probes, head, geometry):
    layers = []
    for layer, norm in enumerate(geometry["norms"]):
        accuracies = [seed["test_accuracy"][layer] for seed in probes]
        layers.append({
            "layer": layer,
            "test_accuracy": mean(accuracies),
            "interval": confidence_interval(accuracies),
            "test_accuracy_by_seed": accuracies,
            "dev_accuracy": mean(seed["dev_accuracy"][layer] for seed in probes),
            "dev_loss": mean(seed["dev_loss"][layer] for seed in probes),
            "norm": norm,
            "weight": head["layer_weights"][layer],
        })
    best = min(layers, key=lambda layer: layer["dev_loss"])["layer"]
    return {"best_layer": best, "layers": layers, "superb_head": head, "cka": geometry["cka"]}


def _names(checkpoints):
    """Short names of checkpoints where those are different, and their paths where they are not."""
    short = [os.path.basename(os.path.normpath(checkpoint)) for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else [str(checkpoint) for checkpoint in checkpoints]
