"""``ssamba probe``: linear probes of every layer, SUPERB's classifier and the layers' geometry."""

import contextlib
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
from .cache import LOG_MEL, cached_time_averages, remembered
from .geometry import linear_cka, norms
from .linear import CrossValidation, ProbeResults, accuracy_intervals, train_probes
from .report import write_report
from .superb_head import HeadSchedule, splits_for_fold, train_head


def probe(data: LabelledSet, checkpoints: Sequence[str | os.PathLike], out: str | os.PathLike, schedule: HeadSchedule,
          source: str = "", head_learning_rates: Sequence[float] = (1e-4,), device: str = "cpu",
          cache: str | os.PathLike | None = None, **options) -> dict:
    """Probe every layer of the checkpoints, and write ``results.json``, ``results.md`` and two pictures.

    Intermediate results are cached: an interrupted call can be repeated to continue, and a call with one more
    checkpoint computes only that one.

    Args:
        data: a LabelledSet. If it has folds, it is cross-validated, and accuracies are means over the folds.
        checkpoints: paths; "log-mel" is the baseline of :func:`log_mel_averages`.
        out: folder for the results.
        schedule: the HeadSchedule of SUPERB's classifier.
        source: name of the labelled set, for the report.
        head_learning_rates: learning rates of SUPERB's classifier; one is chosen on dev.
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
        "options": {**options, "head": asdict(schedule), "head_learning_rates": [*head_learning_rates]},
        "models": [],
    }
    unreadable = {}

    def note(error):
        unreadable[error.file] = error

    for name, checkpoint in zip(short_names(checkpoints), checkpoints):
        with timed(seconds := {}, "hidden states"):
            features, key = cached_time_averages(
                checkpoint, data.paths, cache, device=device, report=note, **options)
        readable = data
        if unreadable:
            kept = [i for i, path in enumerate(data.paths) if path not in unreadable]
            readable, features = data.without(unreadable), features[:, kept]
            key = json_hash({"features": key, "recordings": kept})
        task = {"features": key, "labels": readable.labels, "splits": readable.splits}
        rotations = [*rotate_folds(readable.splits)] if readable.has_folds else [("test", readable.splits)]
        groups = readable.groups or [*map(os.fspath, readable.paths)]
        found = probe_layers(features, task, rotations, groups, cache, device, seconds)
        with timed(seconds, "head"):
            head = _probe_head(features, task, rotations, schedule, [*head_learning_rates], cache, device)
        for layer, weight in zip(found["layers"], head["layer_weights"]):
            layer["weight"] = weight
        results["models"].append({
            "name": name, "checkpoint": str(checkpoint), **found, "superb_head": head, "seconds": seconds})
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


@contextlib.contextmanager
def timed(seconds, name):
    """Record in a dict how many seconds the context took."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def probe_layers(features, task, rotations, groups, cache, device, seconds, sample=None):
    """Train a linear probe on every layer and measure the layers' geometry, caching the results.

    Args:
        features: (layers, utterances, features).
        task: dict that the results depend on: "features", the features' hash, and "labels" and "splits", the label and
            split of each utterance.
        rotations: list of (name, splits): a fold, or "test", and the splits with that fold as the test set.
        groups: group of each utterance, see :func:`accuracy_intervals`.
        cache: folder of the cache.
        device: device that the probes are trained on.
        seconds: dict to which the times are added.
        sample: indices of the utterances whose geometry is measured. Default: all.

    Returns:
        dict of :func:`by_layer`.
    """
    def train(layer):
        return {fold: asdict(train_probes(features[layer:layer + 1], task["labels"], splits, device=device))
                for fold, splits in rotations}

    def measure():
        shown = features if sample is None else features[:, sample]
        return {"norms": norms(shown).tolist(), "cka": linear_cka(shown).tolist()}

    with timed(seconds, "probes"):
        layers = [remembered(cache, {**task, "probe of layer": layer}, partial(train, layer))
                  for layer in tqdm(range(len(features)), "probes", leave=False, disable=None)]
    with timed(seconds, "geometry"):
        key = task["features"] if sample is None else json_hash({"features": task["features"], "frames": sample})
        geometry = remembered(cache, {"features": key, "geometry": True}, measure)
    probes = CrossValidation({
        fold: ProbeResults(**{name: sum((layer[fold][name] for layer in layers), []) for name in layers[0][fold]})
        for fold, _ in rotations
    })
    return by_layer(probes, rotations, groups, geometry)


def _probe_head(features, task, rotations, schedule, learning_rates, cache, device):
    """Train SUPERB's classifier, caching the results; return them averaged over the folds, and by fold."""
    labels, rotations = task["labels"], dict(rotations)
    if len(rotations) > 1:
        rotations = {fold: splits_for_fold(task["splits"], fold) for fold in rotations}

    def train():
        folds = {fold: asdict(train_head(features, labels, splits, schedule, learning_rates, device=device))
                 for fold, splits in rotations.items()}
        return {
            **{name: mean(fold[name] for fold in folds.values()) for name in ("dev_accuracy", "test_accuracy")},
            "layer_weights": [mean(weights) for weights in zip(*(fold["layer_weights"] for fold in folds.values()))],
            "folds": folds,
        }

    return remembered(cache, {**task, "head": [asdict(schedule), learning_rates]}, train)


def by_layer(probes, rotations, groups, geometry):
    """Return the report's entries for each layer, and for the layer chosen on dev or on each fold's own dev part.

    The probes are a CrossValidation, with the single fold "test" if there are no folds.
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
    """Raise a ValueError for "fbank", the former name of "log-mel" and the name of another baseline in s3prl."""
    if "fbank" in checkpoints and not os.path.exists("fbank"):
        raise ValueError(f"probes do not support s3prl's fbank. Use their own baseline {LOG_MEL}, or measure fbank "
                         "with `ssamba superb fbank`")


def short_names(checkpoints):
    """Return the checkpoints' base names if those are unique, otherwise their paths."""
    short = [os.path.basename(os.path.normpath(checkpoint)) for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else [str(checkpoint) for checkpoint in checkpoints]
