"""Features of recordings, computed once: averages over time, or single frames, of a checkpoint or of the log-mel."""

import dataclasses
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from ..audio import identity
from ..files import json_hash, locked, read_json, to_json, write_text
from ..frames import FrameEncoder, UpstreamOptions
from ..store import NUMERICS, HiddenStateStore, StoreError
from .features import averages_shape, iterate_log_mel_averages, iterate_time_averages
from .frame_features import iterate_frames, iterate_log_mel_frames

ROWS_AT_ONCE = 64
LOG_MEL = {"upstream": "log-mel", "weights": "none", "feature": "log-mel"}


def cached_time_averages(checkpoint, recordings, folder, dtype="float32", device="cpu", report=None, **options):
    """Return :func:`time_averages` of a checkpoint, and compute only what the cache does not hold yet.

    The cache is a :class:`ssamba_upstream.store.HiddenStateStore`, and its folder may be that of other commands. A
    recording is known by its path, size and time of modification, and so need not be read again.

    Args:
        checkpoint: path, see :func:`ssamba_upstream.checkpoint.load_model`.
        recordings: paths of audio files, or Excerpts of them.
        folder: of the cache.
        dtype: type of the numbers that are kept: "float32", "float16" or "bfloat16".
        device: on which the network computes.
        report: see :func:`time_averages`. A recording that cannot be read is tried again by the next call.
        options: of :class:`ssamba_upstream.frames.UpstreamOptions`.

    Returns:
        (averages, key): (depth + 1, recordings, width), mapped from a file and not read into memory; and a hash that
        stands for them.

    Raises:
        ValueError: see :func:`time_averages`.
        StoreError: values that are not finite or too large for the dtype, or the disk is full.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
        AudioError: a recording is missing, or cannot be read and there is no ``report``.
    """
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(**options)).to(device)
    store = HiddenStateStore(folder, {**_described(encoder), "time": "average"}, dtype)
    return _completed(store, recordings, averages_shape(encoder),
                      lambda missing: iterate_time_averages(encoder, missing, report=report))


def cached_log_mel_averages(recordings, folder, report=None):
    """Return :func:`log_mel_averages`, see :func:`cached_time_averages`."""
    store = HiddenStateStore(folder, {**LOG_MEL, "time": "average"}, "float32")
    return _completed(store, recordings, (1, 256),
                      lambda missing: iterate_log_mel_averages(missing, report))


def cached_frames(checkpoint, frames, folder, dtype="float32", device="cpu", report=None, **options):
    """Return the hidden states of single frames, see :func:`cached_time_averages`.

    Args:
        frames: list of RecordingFrame, at the hop of the options. Recordings are read once for all of their frames; a
            frame that its recording does not have is NaN.

    Returns:
        (features, key): (depth + 1, frames, width), and a hash that stands for them.
    """
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(**options)).to(device)
    store = HiddenStateStore(folder, {**_described(encoder), "time": "single frames"}, dtype)
    return _completed(store, frames, averages_shape(encoder),
                      lambda missing: iterate_frames(encoder, missing, report))


def cached_log_mel_frames(frames, time_stride, folder, report=None):
    """Return :func:`iterate_log_mel_frames`, (1, frames, 128), see :func:`cached_frames`."""
    store = HiddenStateStore(folder, {**LOG_MEL, "time": "single frames", "time_stride": time_stride}, "float32")
    return _completed(store, frames, (1, 128),
                      lambda missing: iterate_log_mel_frames(missing, time_stride, report))


def remembered(folder, description, compute):
    """Return the result of ``compute()``, or what it was when it was last asked for under this description.

    Args:
        folder: for the results, one file each.
        description: all that the result depends on, made of dicts, lists, strings and numbers.
        compute: returns the like.
    """
    file = Path(folder) / f"{json_hash({**description, 'numerics': NUMERICS})[:32]}.json"
    if not file.is_file():
        write_text(to_json(compute()), file)
    return read_json(file)


def _described(encoder):
    return {"upstream": "ssamba", **encoder.description(), "feature": "hidden_states"}


def _completed(store, items, shape, iterate):
    """Features of recordings, Excerpts or RecordingFrames, see :func:`cached_time_averages`; NaN for those that
    ``iterate`` leaves out."""
    keys = [_key(item) for item in items]
    missing = [i for i, key in enumerate(keys) if key not in store]
    if missing:
        with locked(store.path, wait=True):  # another process may be computing them
            missing = [i for i in missing if keys[i] not in store]
            for batch, found in iterate([items[i] for i in missing]) if missing else ():
                # An item is kept as a single frame: (layers, 1, width).
                values = store.round(found).unsqueeze(2)
                if reason := store.write({keys[missing[i]]: value for i, value in zip(batch, values)}):
                    raise StoreError(f"{store.folder} keeps no more features: {reason}. Make room, or give another "
                                     "folder; what was computed is there.")
    return _gathered(store, keys, shape), json_hash([store.description, [key.hex() for key in keys]])[:32]


def _gathered(store, keys, shape):
    """(layers, items, width), mapped from a file that is removed when nobody uses it any more."""
    rows = _mapped(store.folder, (len(keys), *shape), store.dtype)
    for start in range(0, len(keys), ROWS_AT_ONCE):
        part = range(start, min(start + ROWS_AT_ONCE, len(keys)))
        present = [i for i in part if keys[i] in store]
        if present:
            rows[present] = store.read([keys[i] for i in present])[0].squeeze(2).transpose(0, 1)
        if absent := sorted({*part} - {*present}):
            rows[absent] = torch.nan
    return rows.transpose(0, 1)


def _mapped(folder, shape, dtype):
    size = math.prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash when a page is written
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.from_numpy(np.memmap(file, mode="r+", shape=size, dtype=np.uint8)).view(dtype).view(shape)


def _key(item):
    # The first field of an Excerpt and of a RecordingFrame is the path; the others say which part of it.
    part = dataclasses.astuple(item)[1:] if dataclasses.is_dataclass(item) else ()
    named = [type(item).__name__ if part else "whole", *identity(item), *part]
    return bytes.fromhex(json_hash(named))
