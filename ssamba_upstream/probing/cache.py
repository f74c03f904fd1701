"""Averages over time, or frames, on disk: computed once for a checkpoint, its options and a list of recordings."""

import functools
import json
import os
from dataclasses import asdict, astuple, is_dataclass
from pathlib import Path

import numpy as np
import torch

from ..audio import identity
from ..checkpoint import content_hash
from ..files import json_hash, locked, new_folder, to_json, write_json, write_text
from ..frames import FrameEncoder, UpstreamOptions
from .features import averages_shape, iterate_log_mel_averages, iterate_time_averages
from .frame_features import iterate_frames, iterate_log_mel_frames

# To be raised when the same checkpoint, options and recordings come to mean other values.
FORMAT = 5
DTYPES = ("float32", "float16")


def cached_time_averages(checkpoint, recordings, folder, dtype="float32", device="cpu", report=None, **options):
    """:func:`time_averages` of a checkpoint, computed where the cache does not hold them yet.

    Each set of averages has a folder of its own in the cache, named by a hash of all that they depend on: the
    checkpoint's bytes, the options, and path, size and time of modification of every recording. When
    interrupted at any moment, the next call computes only what is missing. A set that another process is computing is
    waited for.

    Args:
        checkpoint: path, see :func:`ssamba_upstream.checkpoint.load_model`.
        recordings: paths of audio files, or Excerpts of them.
        folder: of the cache; may hold any number of sets of averages.
        dtype: "float32" or "float16", in which they are kept.
        device: on which the network computes.
        report: see :func:`time_averages`. A recording that cannot be read is tried again by the next call.
        options: of :class:`ssamba_upstream.frames.UpstreamOptions`.

    Returns:
        (averages, key): (depth + 1, recordings, width), mapped from the file and not read into memory; and
        the hash, which stands for them.

    Raises:
        ValueError: see :func:`time_averages`; or values that are not finite, or not in that dtype.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
        AudioError: A recording is missing.
        OSError: The checkpoint is missing, or the disk is full.
    """
    return _completed_states(iterate_time_averages, checkpoint, recordings, folder, dtype, device, report, options)


def cached_log_mel_averages(recordings, folder, report=None):
    """:func:`log_mel_averages`, see :func:`cached_time_averages`."""
    return _completed(folder, {"checkpoint": "log-mel"}, recordings, "float32",
                      shape=lambda: (1, 256), iterate=lambda missing: iterate_log_mel_averages(missing, report))


def cached_frames(checkpoint, frames, folder, dtype="float32", device="cpu", report=None, **options):
    """Hidden states of single frames, see :func:`cached_time_averages`.

    Args:
        frames: list of RecordingFrame, at the hop of the options. Recordings are read once for all of their frames; a
            frame that its recording does not have is NaN.

    Returns:
        (features, key): (depth + 1, frames, width); and the hash, which stands for them.
    """
    return _completed_states(iterate_frames, checkpoint, frames, folder, dtype, device, report, options)


def cached_log_mel_frames(frames, time_stride, folder, report=None):
    """:func:`iterate_log_mel_frames`, (1, frames, 128), see :func:`cached_frames`."""
    def iterate(missing):
        return iterate_log_mel_frames(missing, time_stride, report)

    return _completed(folder, {"checkpoint": "log-mel", "time_stride": time_stride}, frames, "float32",
                      shape=lambda: (1, 128), iterate=iterate)


def remembered(folder, description, compute):
    """The result of ``compute()``, or what it was when it was last asked for under this description.

    Args:
        folder: for the results, one file each.
        description: all that the result depends on, made of dicts, lists, strings and numbers.
        compute: returns the like.
    """
    file = Path(folder) / f"{_key({**description, 'format': FORMAT})}.json"
    if not file.is_file():
        write_text(to_json(compute()), file)
    return json.loads(file.read_text())


def _completed_states(iterate, checkpoint, recordings, folder, dtype, device, report, options):
    options = UpstreamOptions(**options)

    @functools.cache
    def encoder():
        return FrameEncoder.from_checkpoint(checkpoint, options).to(device)

    return _completed(
        folder, {"checkpoint": content_hash(checkpoint), **asdict(options)}, recordings, dtype,
        shape=lambda: averages_shape(encoder()), iterate=lambda missing: iterate(encoder(), missing, report=report),
    )


def _completed(folder, description, recordings, dtype, shape, iterate):
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    description = {
        "format": FORMAT, "dtype": dtype, **description, "recordings": [*map(_identity, recordings)],
    }
    key = _key(description)
    entry = Path(folder) / key
    if not entry.is_dir():
        entry.parent.mkdir(parents=True, exist_ok=True)
        with locked(entry.parent, wait=True):
            if not entry.is_dir():
                _create(entry, description, (len(recordings), *shape()), dtype)
    if not np.load(entry / "done.npy").all():
        with locked(entry, wait=True):
            _complete(entry, recordings, dtype, iterate)
    # Copy-on-write, as torch maps no read-only array.
    return torch.from_numpy(np.load(entry / "features.npy", mmap_mode="c")).transpose(0, 1), key


def _complete(entry, recordings, dtype, iterate):
    """Compute the rows that are missing; those of recordings that cannot be read become NaN."""
    rows, done = (np.load(entry / name, mmap_mode="r+") for name in ("features.npy", "done.npy"))
    missing = np.flatnonzero(~done)
    if not len(missing):
        return
    for batch, found in iterate([recordings[i] for i in missing]):
        with np.errstate(over="ignore"):  # told below, with advice
            values = found.numpy().astype(dtype)
        if not np.isfinite(values).all():
            raise ValueError(f"features are NaN, infinite or beyond what {dtype} holds; is the checkpoint sound?")
        rows[missing[batch]] = values
        rows.flush()  # the rows must be on the disk before anything says that they are
        done[missing[batch]] = True
        done.flush()
    rows[np.flatnonzero(~done)] = np.nan


def _create(entry, description, shape, dtype):
    """A folder for features, none of which is done yet; it appears as a whole or not at all."""
    with new_folder(entry) as folder:
        write_json(description, folder / "description.json")
        np.save(folder / "done.npy", np.zeros(shape[0], dtype=bool))
        np.lib.format.open_memmap(folder / "features.npy", "w+", dtype, shape).flush()
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash when a page is written
            with open(folder / "features.npy", "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _key(description):
    return json_hash(description)[:32]


def _identity(recording):
    # The first field of an Excerpt and of a RecordingFrame is the path; the others say which part of it.
    part = astuple(recording)[1:] if is_dataclass(recording) else ()
    return [type(recording).__name__ if part else "whole", *identity(recording), *part]
