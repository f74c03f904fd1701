"""A cache of recordings' features: time averages or single frames, from a checkpoint or from the log-mel."""

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
from .features import (
    averages_shape,
    iterate_frames,
    iterate_log_mel_averages,
    iterate_log_mel_frames,
    iterate_time_averages,
)

ROWS_AT_ONCE = 64
LOG_MEL = "log-mel"
"""Name of the baseline, given in place of a checkpoint."""


def cached_time_averages(checkpoint, recordings, folder, dtype="float32", device="cpu", report=None, **options):
    """Return a checkpoint's :func:`time_averages`, computing only those that are not yet in the cache.

    The cache is a :class:`ssamba_upstream.store.HiddenStateStore`; other commands may share its folder. Recordings are
    identified by path, size and modification time, so cached ones are not read again.

    Args:
        checkpoint: path, see :func:`ssamba_upstream.checkpoint.load_model`; or "log-mel", the baseline of
            :func:`log_mel_averages`, in float32 and without options.
        recordings: paths of audio files, or Excerpts of them.
        folder: folder of the cache.
        dtype: storage dtype: "float32", "float16" or "bfloat16".
        device: device that the network runs on.
        report: see :func:`time_averages`. The next call tries unreadable recordings again.
        options: fields of :class:`ssamba_upstream.frames.UpstreamOptions`.

    Returns:
        (averages, key): (depth + 1, recordings, width), memory-mapped from a file; and a hash that identifies them.

    Raises:
        ValueError: see :func:`time_averages`.
        StoreError: If values are not finite or too large for the dtype, or the disk is full.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
        AudioError: If a recording is missing, or it cannot be read and ``report`` is not given.
    """
    if checkpoint == LOG_MEL:
        store = HiddenStateStore(folder, _describe_log_mel("average"), "float32")
        return _completed(store, recordings, (1, 256), lambda missing: iterate_log_mel_averages(missing, report))
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(**options)).to(device)
    store = HiddenStateStore(folder, encoder.description("average"), dtype)
    return _completed(store, recordings, averages_shape(encoder),
                      lambda missing: iterate_time_averages(encoder, missing, report=report))


def cached_frames(checkpoint, frames, folder, dtype="float32", device="cpu", report=None, **options):
    """Return the hidden states of single frames, cached as by :func:`cached_time_averages`.

    Args:
        checkpoint: path; or "log-mel", the baseline of :func:`iterate_log_mel_frames`, which needs ``time_stride``.
        frames: list of RecordingFrame, at the options' hop. Each recording is read once for all of its frames. Frames
            past the end of their recording are NaN.

    Returns:
        (features, key): (depth + 1, frames, width), and a hash that identifies them.
    """
    if checkpoint == LOG_MEL:
        stride = options["time_stride"]
        store = HiddenStateStore(folder, {**_describe_log_mel("single frames"), "time_stride": stride}, "float32")
        return _completed(store, frames, (1, 128), lambda missing: iterate_log_mel_frames(missing, stride, report))
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(**options)).to(device)
    store = HiddenStateStore(folder, encoder.description("single frames"), dtype)
    return _completed(store, frames, averages_shape(encoder),
                      lambda missing: iterate_frames(encoder, missing, report))


def remembered(folder, description, compute):
    """Return the result of ``compute()``, or the saved result of an earlier call with the same description.

    The result, and the description of everything that it depends on, are dicts, lists, strings and numbers.
    """
    file = Path(folder) / f"{json_hash({**description, 'numerics': NUMERICS})[:32]}.json"
    if not file.is_file():
        write_text(to_json(compute()), file)
    return read_json(file)


def _describe_log_mel(time):
    return {"upstream": LOG_MEL, "weights": "none", "feature": LOG_MEL, "time": time}


def _completed(store, items, shape, iterate):
    """Return the features of recordings, Excerpts or RecordingFrames; NaN for those that ``iterate`` skips."""
    keys = [_key(item) for item in items]
    if store.missing(keys):
        with locked(store.path, wait=True):  # another process may be computing them
            missing = store.missing(keys)
            for batch, found in iterate([items[i] for i in missing]) if missing else ():
                # Each item is stored as one frame: (layers, 1, width).
                values = store.round(found).unsqueeze(2)
                if reason := store.write({keys[missing[i]]: value for i, value in zip(batch, values)}):
                    raise StoreError(f"{store.folder} cannot store more features: {reason}. Make room or choose "
                                     "another folder; the features computed so far are kept.")
    return _gathered(store, keys, shape), json_hash([store.description, [key.hex() for key in keys]])[:32]


def _gathered(store, keys, shape):
    """Return (layers, items, width), mapped from a file that disappears with its last reference."""
    rows = _mapped(store.folder, (len(keys), *shape), store.dtype)
    missing = store.missing(keys)
    rows[missing] = torch.nan
    present = sorted({*range(len(keys))} - {*missing})
    for part in (present[start:start + ROWS_AT_ONCE] for start in range(0, len(present), ROWS_AT_ONCE)):
        rows[part] = store.read([keys[i] for i in part])[0].squeeze(2).transpose(0, 1)
    return rows.transpose(0, 1)


def _mapped(folder, shape, dtype):
    size = math.prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # reports a full disk as an error; writing to a mapped page would crash
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.from_numpy(np.memmap(file, mode="r+", shape=size, dtype=np.uint8)).view(dtype).view(shape)


def _key(item):
    # The first field of an Excerpt or RecordingFrame is the path; the others identify the part.
    part = dataclasses.astuple(item)[1:] if dataclasses.is_dataclass(item) else ()
    named = [type(item).__name__ if part else "whole", *identity(item), *part]
    return bytes.fromhex(json_hash(named))
