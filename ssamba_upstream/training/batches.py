"""Batches of waveforms: reading clips, replacing unreadable ones, padding and counting.

Everything random is seeded by a clip's position in the sequence of all clips, so a run resumes exactly where it
stopped, and runs with more processes see the same clips.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..audio import AudioError, read_clip
from ..corpora.manifest import ManifestError
from ..devices import send

ATTEMPTS = 100
"""Number of consecutive unreadable files, while reading one clip, that stops a run."""


@dataclass
class Batch:
    """One step's clips.

    Attributes:
        waveforms: ``(clips, samples)`` float32 at the network's sampling rate, zero-padded at the end.
        lengths: ``(clips,)`` int64, length of each clip in samples, without padding.
        unreadable: path and reason of each file that was skipped while reading this batch.
        position: state from which the sequence of batches resumes after this batch; plain integers, lists and dicts.
        pieces: ``(samples,)``, everything read for the clips, concatenated. A piece may be longer than the part its
            clip uses. None without a teacher.
        piece_lengths: for each clip, a list of its pieces' lengths in samples.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    unreadable: list[str]
    position: object = None
    pieces: torch.Tensor | None = None
    piece_lengths: list | None = None

    @classmethod
    def joined(cls, clips, samples, unreadable, position=None, keep_pieces=False):
        """Return a batch of clips, each joined from a list of pieces and cut to ``samples``."""
        waveforms, lengths = pad([torch.cat(pieces)[:samples] for pieces in clips], samples)
        if not keep_pieces or not clips:
            return cls(waveforms, lengths, unreadable, position)
        # One tensor, because each tensor that a worker sends takes a file descriptor.
        pieces = torch.cat([piece for pieces in clips for piece in pieces])
        return cls(waveforms, lengths, unreadable, position, pieces, [[*map(len, pieces)] for pieces in clips])

    def pin_memory(self):
        """Return the batch with its tensors in pinned memory, for asynchronous copies to a GPU."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in vars(self).items()
                                if torch.is_tensor(tensor)})


@dataclass
class NumberedBatches(Dataset):
    """Numbered batches: batch m of a rank holds ``batch_size`` clips of the sequence of all clips, starting at
    ``(m * world_size + rank) * batch_size``.

    A subclass defines ``example(readings, random)``, which makes an example from the clips read for a position, and
    ``batch(examples, unreadable, position)``. Errors are returned as items, because DataLoader would bury their
    message under a traceback.

    Attributes:
        files: all files; their number is the length of an epoch.
        batch_size: clips per process.
        samples: clip length in samples; longer files are cropped.
        seed: seed of the order, the crops and all other draws.
        rank, world_size: rank of this process, and number of processes.
    """

    files: Sequence[str]
    batch_size: int
    samples: int
    sampling_rate: int
    seed: int
    rank: int
    world_size: int

    def __getitem__(self, number):
        first = (number * self.world_size + self.rank) * self.batch_size
        examples, unreadable = [], []
        try:
            for position in range(first, first + self.batch_size):
                random = np.random.default_rng([self.seed, 1, position])
                examples.append(self.example(self._readings(position, random, unreadable), random))
        except ManifestError as error:
            return error
        return self.batch(examples, unreadable, number + 1)

    def _readings(self, position, random, unreadable):
        """Yield index and clip of the file at a position, then those of random files that replace or accompany it."""
        index = self.index_at(position, random)
        failures = 0
        while failures < ATTEMPTS:
            file = self.files[index]
            try:
                clip = self.read(file, random)
            except AudioError as error:
                unreadable.append(f"{file}: {error.reason}")
                failures += 1
            else:
                yield index, clip
                failures = 0
            index = int(random.integers(len(self.files)))
        raise ManifestError(f"{ATTEMPTS} files in a row are unreadable. Check that the listed paths still exist; the "
                            f"last: {unreadable[-1]}")

    def index_at(self, position, random):
        epoch, place = divmod(position, len(self.files))
        return int(_order(self.seed, epoch, len(self.files))[place])

    def read(self, file, random):
        return read_clip(file, self.samples, random, sampling_rate=self.sampling_rate)


@lru_cache(maxsize=2)
def _order(seed, epoch, count):
    order = np.random.default_rng([seed, 0, epoch]).permutation(count)
    return order.astype(np.uint32)  # half the memory, in each worker


@dataclass
class ClipsInOrder(Dataset):
    """Clips by number; an unreadable clip is replaced by the reason (str)."""

    files: Sequence[str]
    samples: int
    sampling_rate: int
    crop: str = "centre"

    def __getitem__(self, number):
        file = self.files[number]
        try:
            return read_clip(file, self.samples, self.crop, sampling_rate=self.sampling_rate)
        except AudioError as error:
            return f"{file}: {error.reason}"


def in_batches(clips, batch_size):
    """Yield lists of clips, each with the reasons (str) for unreadable clips before its last; if all are unreadable,
    one empty list with the reasons."""
    batch, unreadable = [], []
    for clip in clips:
        if isinstance(clip, str):
            unreadable.append(clip)
            continue
        if len(batch) == batch_size:
            yield batch, unreadable
            batch, unreadable = [], []
        batch.append(clip)
    if batch or unreadable:
        yield batch, unreadable


def next_pieces(clips, samples, join_short):
    """Return the next clip in a list, or with ``join_short`` enough clips to fill ``samples``."""
    pieces = [next(clips)]
    while join_short and sum(map(len, pieces)) < samples:
        pieces.append(next(clips))
    return pieces


def read_batches(dataset, workers, sampler=None):
    """Yield the items of a data set, read by ``workers`` processes; raise an item that is a ManifestError. If this
    process uses a GPU, batches are in pinned memory."""
    # A separate generator: the loader would seed its workers from torch's global one, and thereby advance it.
    loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, generator=torch.Generator(),
                        worker_init_fn=_leave_process_group, pin_memory=torch.cuda.is_initialized())
    for item in loader:
        if isinstance(item, ManifestError):
            raise item
        yield item


def _leave_process_group(worker):
    """Leave signals to the whole process group (Ctrl-C, torchrun's SIGTERM) to the training process."""
    os.setpgrp()


def pad(clips, samples):
    """Return clips as rows ``(clips, samples)``, zero-padded at the end, and their lengths ``(clips,)``."""
    waveforms = torch.zeros(len(clips), samples, dtype=torch.float32)
    for row, clip in zip(waveforms, clips):
        row[:len(clip)] = clip
    return waveforms, torch.tensor([len(clip) for clip in clips])


def batch_to_fbank(batch, log_mel, frames):
    """Return a batch's normalised log-mel, (clips, frames, mel), on the device of ``log_mel``; short clips are padded
    as in :meth:`LogMel.fixed_length`."""
    waveforms = send(batch.waveforms, log_mel.window.device)
    return log_mel.fixed_length([waveform[:length] for waveform, length in zip(waveforms, batch.lengths.tolist())],
                                frames)
