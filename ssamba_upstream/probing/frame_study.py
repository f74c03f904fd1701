"""``ssamba probe-frames``: linear probes of every layer at single frames, for labels such as phones."""

import os
from collections import Counter
from pathlib import Path

from ..checkpoint import load_config
from ..corpora.alignments import draw_frames
from ..frames import PUBLISHED_STRIDE, UpstreamOptions, default_strides
from ..network.configuration import PUBLISHED_FRONT_END
from .cache import LOG_MEL, cached_frames
from .geometry import MOST_UTTERANCES
from .report import write_report
from .study import check_names, probe_layers, short_names, timed

LONGEST_HOP = 0.04  # seconds; a phone lasts 80 ms on average, a stop much less
UNUSABLE = "unusable"  # the split of frames that belong to no other


def probe_frames(aligned, checkpoints, out, source="", most_frames=10_000, device="cpu", cache=None, dtype="float32",
                 **options):
    """Probe every layer of the checkpoints at single frames; write ``results.json``, ``results.md`` and two pictures.

    The frames are drawn once for all checkpoints and layers; memory and the cache hold only those. As in s3prl's
    frame-level downstreams, a frame's label is that of the time given by its index; a patch wider than the hop also
    covers later audio. Intermediate results are cached, as by :func:`ssamba_upstream.probing.study.probe`.

    Args:
        aligned: an AlignedSet.
        checkpoints: paths; "log-mel" is the baseline of :func:`iterate_log_mel_frames`.
        out: folder for the results.
        source: name of the set, for the report.
        most_frames: see :func:`ssamba_upstream.corpora.alignments.draw_frames`.
        device: device for all computation.
        cache: folder of the cache. Default: ``cache`` in out.
        dtype: storage dtype of the cache.
        options: fields of UpstreamOptions.

    Returns:
        the content of ``results.json``. Unreadable recordings are skipped and listed there. Frames past the end of
        their recording, and frames of classes missing from train, are skipped and counted.

    Raises:
        ValueError: If "fbank" is given in place of a checkpoint, the hop is longer than 40 ms, the checkpoints' hops
            differ, or a split has no frames left; see also :func:`ssamba_upstream.corpora.alignments.draw_frames`.
    """
    check_names(checkpoints)
    configs = {checkpoint: load_config(checkpoint) for checkpoint in checkpoints if checkpoint != LOG_MEL}
    strides = {checkpoint: default_strides(config)[1] for checkpoint, config in configs.items()}
    stride = UpstreamOptions(**options).time_stride or _common(
        strides, "default time strides", str, "Give one for all, as in -g hop_20ms") or PUBLISHED_STRIDE
    options["time_stride"] = stride
    out = Path(out)
    cache = Path(cache or out / "cache")
    drawn = draw_frames(aligned, _hop(checkpoints, configs, stride), most_frames)
    results = {
        "set": source,
        "unit": "frames",
        "options": {**options, "dtype": dtype, "most_frames": most_frames},
        "resampled": "groups" if aligned.groups else "recordings",
        "models": [],
    }
    groups = [aligned.groups.get(frame.path) or os.fspath(frame.path) for frame in drawn.frames]
    unreadable = {}

    def note(error):
        unreadable[error.file] = error

    for name, checkpoint in zip(short_names(checkpoints), checkpoints):
        with timed(seconds := {}, "hidden states"):
            features, key = cached_frames(checkpoint, drawn.frames, cache, dtype, device, note, **options)
        splits = _usable_splits(drawn, features)
        usable = [i for i, split in enumerate(splits) if split != UNUSABLE]
        # The features stay in their file: probes read one layer at a time, and the geometry needs only some frames.
        found = probe_layers(features, {"features": key, "labels": drawn.labels, "splits": splits}, [("test", splits)],
                             groups, cache, device, seconds, usable[::-(-len(usable) // MOST_UTTERANCES)])
        results["models"].append({"name": name, "checkpoint": str(checkpoint), **found, "seconds": seconds})
    usable = [label for label, split in zip(drawn.labels, splits) if split != UNUSABLE]
    results.update({
        "frames": dict(Counter(split for split in splits if split != UNUSABLE)),
        "frames_skipped": splits.count(UNUSABLE),
        "unreadable": sorted([*aligned.skipped, *map(str, unreadable.values())]),
        "classes": len(set(usable)),
        "most_frequent_class": max(Counter(usable).values()) / len(usable),
    })
    write_report(results, out)
    return results


def _hop(checkpoints, configs, stride):
    """Return the checkpoints' common hop in seconds; raise ValueError if they differ or the hop skips phones."""
    hops = {}
    for checkpoint in checkpoints:
        front_end = configs[checkpoint].front_end if checkpoint in configs else PUBLISHED_FRONT_END
        hops[checkpoint] = front_end.seconds_of(stride)
    hop = _common(hops, "hops", lambda hop: f"{1000 * hop:g} ms", "Probe those with another hop separately")
    if hop > LONGEST_HOP:
        raise ValueError(f"a hop of {1000 * hop:g} ms skips phones; expected {1000 * LONGEST_HOP:g} ms or less. Use "
                         "the upstream config hop_20ms, as in -g hop_20ms")
    return hop


def _common(values, what, show, advice):
    """Return the value that all checkpoints share, None without checkpoints; raise ValueError if they differ."""
    if len(set(values.values())) > 1:
        found = ", ".join(f"{show(value)} of {checkpoint}" for checkpoint, value in values.items())
        raise ValueError(f"checkpoints are compared at the same frames, but their {what} differ: {found}. {advice}")
    return next(iter(values.values()), None)


def _usable_splits(drawn, features):
    """Return the frames' splits, UNUSABLE if a frame has no features or its class is missing from train."""
    finite = features[0].isfinite().all(dim=1).tolist()
    known = {label for label, split, found in zip(drawn.labels, drawn.splits, finite) if split == "train" and found}
    return [split if found and label in known else UNUSABLE
            for label, split, found in zip(drawn.labels, drawn.splits, finite)]
