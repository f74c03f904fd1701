"""``ssamba probe``: checkpoints by their layers' probes, SUPERB's classifier and the layers' geometry."""

import os
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean

from ..corpora.labelled import rotate_folds
from ..files import json_hash
from .cache import cached_log_mel_averages, cached_time_averages, remembered
from .geometry import linear_cka, norms
from .linear import ProbeResults, retrain_probes, train_probes
from .report import confidence_interval, write_report
from .superb_head import splits_for_fold, train_head, train_layer_heads

FBANK = "fbank"  # stands for the filterbank, in the place of a checkpoint


def probe(data, checkpoints, out, schedule, source="", seeds=5, head_learning_rates=(1e-4,), layers_alone=False,
          device="cpu", cache=None, **options):
    """Probe every layer of some checkpoints, and write ``results.json``, ``results.md`` and two pictures.

    What has been computed is kept, so that an interrupted call goes on where it was, and a call with one more
    checkpoint, or seed, computes only that.

    Args:
        data: a LabelledSet; one with folds is cross-validated, and accuracies are means over the folds.
        checkpoints: paths; "fbank" is the filterbank, see :func:`log_mel_averages`.
        out: folder for the results.
        schedule: the HeadSchedule of SUPERB's classifier.
        source: name of the labelled set, for the report.
        seeds: number of random starts of the probes; the first chooses each layer's learning rate and weight
            decay.
        head_learning_rates: of SUPERB's classifier.
        layers_alone: train that classifier on each layer by itself, too, from as many random starts as the probes.
        device: on which everything is computed.
        cache: folder for what is kept. Default: ``cache`` in out.
        options: of :func:`ssamba_upstream.probing.cache.cached_time_averages`.

    Returns:
        the content of ``results.json``. Recordings that cannot be read are left out, and listed there.

    Raises:
        ValueError: no folds and no dev, none left of a split, or see :func:`train_probes`.
    """
    data.check_probes()  # which would fail only after all hidden states are computed
    out = Path(out)
    cache = Path(cache or out / "cache")
    results = {
        "set": source,
        "unit": "recordings",
        "options": {**options, "seeds": seeds, "head": asdict(schedule), "head_learning_rates": [*head_learning_rates],
                    "layers_alone": layers_alone},
        "models": [],
    }
    unreadable = {}
    for name, checkpoint in zip(short_names(checkpoints), checkpoints):
        found = _probe_one(data, checkpoint, cache, schedule, seeds, [*head_learning_rates], layers_alone, device,
                           options, unreadable)
        results["models"].append({"name": name, "checkpoint": str(checkpoint), **found})
    data = data.without(unreadable)
    results.update({
        "recordings": dict(Counter(data.splits)),
        "unreadable": sorted(map(str, unreadable.values())),
        "classes": len(data.classes),
        "most_frequent_class": max(Counter(data.labels).values()) / len(data.labels),
    })
    write_report(results, out)
    return results


def _probe_one(data, checkpoint, cache, schedule, seeds, head_learning_rates, layers_alone, device, options,
               unreadable):
    """Adds the AudioError of each recording that cannot be read to ``unreadable``, by its path."""
    seconds = {}

    def note(error):
        unreadable[error.file] = error

    with timed(seconds, "hidden states"):
        if checkpoint == FBANK:
            features, key = cached_log_mel_averages(data.paths, cache, report=note)
        else:
            features, key = cached_time_averages(checkpoint, data.paths, cache, device=device, report=note, **options)
    if unreadable:
        kept = [i for i, path in enumerate(data.paths) if path not in unreadable]
        data, features = data.without(unreadable), features[:, kept]
        key = json_hash({"features": key, "recordings": kept})
    task = {"features": key, "labels": data.labels, "splits": data.splits}
    with timed(seconds, "probes"):
        rotations = [*rotate_folds(data.splits)] if data.has_folds else [("test", data.splits)]
        probes = probes_by_seed(cache, task, features, data.labels, rotations, seeds, device)
    with timed(seconds, "head"):
        head = remembered(
            cache, {**task, "head": [asdict(schedule), head_learning_rates]},
            lambda: _train_head(features, data, schedule, head_learning_rates, device),
        )
    alone = []
    if layers_alone:
        with timed(seconds, "layers alone"):
            alone = [remembered(
                cache, {**task, "layers alone": [asdict(schedule), head_learning_rates, seed]},
                partial(_train_layer_heads, features, data, schedule, head_learning_rates, seed, device),
            ) for seed in range(seeds)]
    with timed(seconds, "geometry"):
        geometry = geometry_of(cache, key, features)
    found = by_layer(probes, geometry)
    for number, layer in enumerate(found["layers"]):
        layer["weight"] = head["layer_weights"][number]
        if alone:
            layer["alone"] = mean(seed[number] for seed in alone)
    return {**found, "superb_head": head, "seconds": seconds}


class timed:
    """Notes how many seconds its block took."""

    def __init__(self, seconds, name):
        self.seconds, self.name = seconds, name

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = round(time.perf_counter() - self.start, 2)


def probes_by_seed(cache, task, features, labels, rotations, seeds, device):
    """Linear probes of every layer from some random starts, of which the first chooses; remembered.

    Args:
        cache: folder for what is kept.
        task: description of features, labels and splits, see :func:`remembered`.
        features, labels: see :func:`train_probes`.
        rotations: list of the name of each fold, or "test", and the splits with that fold as the test set.
        seeds: number of random starts.
        device: on which the probes are trained.

    Returns:
        for each seed, the fields of ProbeResults by fold.
    """
    def train():
        return {fold: asdict(train_probes(features, labels, splits, device=device)) for fold, splits in rotations}

    def retrain():
        folds = {
            fold: retrain_probes(features, labels, splits, ProbeResults(**first[fold]), range(1, seeds), device=device)
            for fold, splits in rotations
        }
        return [{fold: asdict(found[i]) for fold, found in folds.items()} for i in range(seeds - 1)]

    first = remembered(cache, {**task, "probes": 0}, train)
    return [first] if seeds == 1 else [first, *remembered(cache, {**task, "probes": [1, seeds]}, retrain)]


def _train_head(features, data, schedule, learning_rates, device):
    results = {
        fold: asdict(train_head(features, data.labels, splits, schedule, learning_rates, device=device))
        for fold, splits in _head_splits(data)
    }
    return {
        **{name: mean(result[name] for result in results.values()) for name in ("dev_accuracy", "test_accuracy")},
        "layer_weights": [mean(weights) for weights in zip(*(fold["layer_weights"] for fold in results.values()))],
        "folds": results,
    }


def _train_layer_heads(features, data, schedule, learning_rates, seed, device):
    """Test accuracy of each layer, a mean over the folds."""
    folds = [train_layer_heads(features, data.labels, splits, schedule, learning_rates, seed, device)
             for _, splits in _head_splits(data)]
    return [mean(accuracies) for accuracies in zip(*folds)]


def _head_splits(data):
    """The name of each fold, or "test", and the splits by which SUPERB's classifier is trained."""
    if not data.has_folds:
        return [("test", data.splits)]
    return [(fold, splits_for_fold(data.splits, fold)) for fold in sorted(set(data.splits))]


def geometry_of(cache, key, features):
    """The norms of the layers and their linear CKA, None where it is not defined; remembered by the features' hash."""
    def compute():
        return {"norms": norms(features).tolist(), "cka": linear_cka(features).tolist()}

    return remembered(cache, {"features": key, "geometry": True}, compute)


def by_layer(probes, geometry):
    """What the report says of each layer, from :func:`probes_by_seed` and :func:`geometry_of`."""
    layers = []
    for layer, norm in enumerate(geometry["norms"]):
        test_accuracy, dev_accuracy, dev_loss = (
            [mean(fold[name][layer] for fold in seed.values()) for seed in probes]
            for name in ("test_accuracy", "dev_accuracy", "dev_loss")
        )
        layers.append({
            "layer": layer,
            "test_accuracy": mean(test_accuracy),
            "interval": confidence_interval(test_accuracy),
            "test_accuracy_by_seed": test_accuracy,
            "dev_accuracy": mean(dev_accuracy),
            "dev_loss": mean(dev_loss),
            "norm": norm,
        })
    best = min(layers, key=lambda layer: layer["dev_loss"])["layer"]
    return {"best_layer": best, "layers": layers, "cka": geometry["cka"]}


def short_names(checkpoints):
    """Short names of checkpoints where those are different, and their paths where they are not."""
    short = [os.path.basename(os.path.normpath(checkpoint)) for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else [str(checkpoint) for checkpoint in checkpoints]
