"""``ssamba probe``: linear probes of every layer, SUPERB's classifier and the layers' geometry."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from ..corpora.labelled import LabelledSet, members_of_splits, rotate_folds
from ..files import json_hash
from .cache import cached_log_mel_averages, cached_time_averages, remembered
from .geometry import linear_cka, norms
from .linear import CrossValidation, ProbeResults, accuracy_intervals, train_probes
from .report import write_report
from .superb_head import HeadSchedule, splits_for_fold, train_head, train_layer_heads

LOG_MEL = "log-mel"  # given in place of a checkpoint


def probe(data: LabelledSet, checkpoints: Sequence[str | os.PathLike], out: str | os.PathLike, schedule: HeadSchedule,
          source: str = "", seeds: int = 5, head_learning_rates: Sequence[float] = (1e-4,), layers_alone: bool = False,
          device: str = "cpu", cache: str | os.PathLike | None = None, **options) -> dict:
    """Probe every layer of the checkpoints, and write ``results.json``, ``results.md`` and two pictures.

    Intermediate results are cached: an interrupted call can be repeated to continue, and a call with one more
    checkpoint computes only that one.

    Args:
        data: a LabelledSet. If it has folds, it is cross-validated, and accuracies are means over the folds.
        checkpoints: paths; "log-mel" is the baseline of :func:`log_mel_averages`.
        out: folder for the results.
        schedule: the HeadSchedule of SUPERB's classifier.
        source: name of the labelled set, for the report.
        seeds: number of random starts of the classifiers that ``layers_alone`` trains.
        head_learning_rates: learning rates of SUPERB's classifier; one is chosen on dev.
        layers_alone: If True, also train SUPERB's classifier on each single layer.
        device: device for all computation.
        cache: folder of the cache. Default: ``cache`` in out.
        options: other arguments of :func:`ssamba_upstream.probing.cache.cached_time_averages`.

    Returns:
        the content of ``results.json``. Unreadable recordings are skipped and listed there.

    Raises:
        ValueError: If "fbank" is given in place of a checkpoint, there are neither folds nor dev, or no recording of a
            split can be read; see also :func:`train_probes`.
    """
    check_names(checkpoints)
    data.check_probes()  # otherwise the probes would fail only after all hidden states are computed
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
        "resampled": "groups" if data.groups else "recordings",
    })
    write_report(results, out)
    return results


def _probe_one(data, checkpoint, cache, schedule, seeds, head_learning_rates, layers_alone, device, options,
               unreadable):
    """Return a checkpoint's results; add the AudioError of each unreadable recording to ``unreadable``, by path."""
    seconds = {}

    def note(error):
        unreadable[error.file] = error

    with timed(seconds, "hidden states"):
        if checkpoint == LOG_MEL:
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
        probes = probe_layers(cache, task, features, data.labels, rotations, device)
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
    found = by_layer(probes, rotations, data.groups or [*map(os.fspath, data.paths)], geometry)
    for number, layer in enumerate(found["layers"]):
        layer["weight"] = head["layer_weights"][number]
        if alone:
            layer["alone"] = mean(seed[number] for seed in alone)
    return {**found, "superb_head": head, "seconds": seconds}


class timed:
    """A context that records how many seconds its block took."""

    def __init__(self, seconds, name):
        self.seconds, self.name = seconds, name

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = round(time.perf_counter() - self.start, 2)


def probe_layers(cache, task, features, labels, rotations, device):
    """Train a linear probe on every layer, caching each layer's results.

    Args:
        cache: folder of the cache.
        task: description of features, labels and splits, see :func:`remembered`.
        features, labels: see :func:`train_probes`.
        rotations: list of (name, splits): a fold, or "test", and the splits with that fold as the test set.
        device: device that the probes are trained on.

    Returns:
        CrossValidation, with the single fold "test" if there are no folds.
    """
    def train(layer):
        return {fold: asdict(train_probes(features[layer:layer + 1], labels, splits, device=device))
                for fold, splits in rotations}

    layers = [remembered(cache, {**task, "probe of layer": layer}, partial(train, layer))
              for layer in tqdm(range(len(features)), "probes", leave=False, disable=None)]
    return CrossValidation({
        fold: ProbeResults(**{name: sum((layer[fold][name] for layer in layers), []) for name in layers[0][fold]})
        for fold, _ in rotations
    })


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
    """Return the test accuracy of each layer, averaged over the folds."""
    folds = [train_layer_heads(features, data.labels, splits, schedule, learning_rates, seed, device)
             for _, splits in _head_splits(data)]
    return [mean(accuracies) for accuracies in zip(*folds)]


def _head_splits(data):
    """Return the name of each fold, or "test", and its splits for training SUPERB's classifier."""
    if not data.has_folds:
        return [("test", data.splits)]
    return [(fold, splits_for_fold(data.splits, fold)) for fold in sorted(set(data.splits))]


def geometry_of(cache, key, features):
    """Return the layers' norms and linear CKA (None if undefined), cached by the features' hash."""
    def compute():
        return {"norms": norms(features).tolist(), "cka": linear_cka(features).tolist()}

    return remembered(cache, {"features": key, "geometry": True}, compute)


def by_layer(probes, rotations, groups, geometry):
    """Return the report's entries for each layer, and for the layer chosen on dev or on each fold's own dev part.

    Args:
        probes, rotations: see :func:`probe_layers`.
        groups: group of each utterance, see :func:`accuracy_intervals`.
        geometry: see :func:`geometry_of`.
    """
    folds = [*probes.folds.values()]
    tested = [(name, i) for name, splits in rotations for i in members_of_splits(splits)["test"]]
    right = [sum(of_layer, []) for of_layer in zip(*(fold.test_right for fold in folds))]
    right.append(sum((fold.test_right[fold.best_layer] for fold in folds), []))
    tested_groups = [groups[i] for _, i in tested]
    *intervals, interval = accuracy_intervals(right, [name for name, _ in tested], tested_groups)
    return {
        "best_layers": {name: fold.best_layer for name, fold in probes.folds.items()},
        "test_accuracy": probes.best_test_accuracy,
        "interval": interval,
        "resampled": len(set(tested_groups)),
        "layers": [{
            "layer": layer,
            "test_accuracy": probes.test_accuracy[layer],
            "interval": intervals[layer],
            "dev_accuracy": mean(fold.dev_accuracy[layer] for fold in folds),
            "dev_loss": mean(fold.dev_loss[layer] for fold in folds),
            "norm": norm,
        } for layer, norm in enumerate(geometry["norms"])],
        "cka": geometry["cka"],
    }


def check_names(checkpoints):
    """Refuse "fbank", the former name of "log-mel" and the name of another baseline in s3prl.

    Raises:
        ValueError: If "fbank" is given in place of a checkpoint.
    """
    if "fbank" in checkpoints and not os.path.exists("fbank"):
        raise ValueError(f"probes do not support s3prl's fbank. Use their own baseline {LOG_MEL}, or measure fbank "
                         "with `ssamba superb fbank`")


def short_names(checkpoints):
    """Return the checkpoints' base names if those are unique, otherwise their paths."""
    short = [os.path.basename(os.path.normpath(checkpoint)) for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else [str(checkpoint) for checkpoint in checkpoints]
