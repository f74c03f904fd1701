"""Batches of waveforms: clips are read, replaced where they cannot be, padded and counted.

Everything random here is seeded by where a clip stands in the sequence of all clips, so that a run goes on exactly
where it stopped, and one on more processes sees the same clips.
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
"""So many unreadable files in a row, where one clip was wanted, stop a run."""


@dataclass
class Batch:
    """Clips of one step.

    Attributes:
        waveforms: ``(clips, samples)`` float32 at the network's sampling rate, padded with zeros at the end.
        lengths: ``(clips,)`` int64, samples of each clip that are not padding.
        unreadable: path and reason of each file that was met and skipped on the way to this batch.
        position: what the sequence of batches needs to go on after this batch; plain integers, lists and dicts.
        pieces: ``(samples,)``, everything that was read for the clips, one piece after the other. A piece may be longer
            than what its clip took of it. None unless a teacher hears the pieces.
        piece_lengths: for each clip, a list of its pieces' samples.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    unreadable: list[str]
    position: object = None
    pieces: torch.Tensor | None = None
    piece_lengths: list | None = None

    @classmethod
    def joined(cls, clips, samples, unreadable, position=None, keep_pieces=False):
        """A batch of clips, each a list of the pieces that it is joined from; what exceeds ``samples`` is cut off."""
        waveforms, lengths = pad([torch.cat(pieces)[:samples] for pieces in clips], samples)
        if not keep_pieces or not clips:
            return cls(waveforms, lengths, unreadable, position)
        # One tensor, because each that a worker hands over takes a file descriptor.
        pieces = torch.cat([piece for pieces in clips for piece in pieces])
        return cls(waveforms, lengths, unreadable, position, pieces, [[*map(len, pieces)] for pieces in clips])

    def pin_memory(self):
        """The batch with its tensors in pinned memory, from which a GPU fetches them in its turn."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in vars(self).items()
                                if torch.is_tensor(tensor)})


@dataclass
class NumberedBatches(Dataset):
    """Batches by their number: of the sequence of all clips, batch m of a rank holds those from
    ``(m * world_size + rank) * batch_size`` on.

    A subclass makes an example of the clips read for a place of the sequence, ``example(readings, random)``, and a
    batch of the examples, ``batch(examples, unreadable, position)``. An error is an item too: DataLoader would bury
    its message under a traceback.

    Attributes:
        files: all that are read from, whose number is the length of an epoch.
        batch_size: clips of each process.
        samples: the longest clip, ``(samples,)``.
        seed: of the order, the crops and what else is drawn.
        rank, world_size: which process this is, of how many.
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
        """Index and clip of the file at a position, and then of random ones to replace it or to go with it."""
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
        raise ManifestError(f"no readable file among {ATTEMPTS} in a row; do the paths that were listed still exist? "
                            f"The last: {unreadable[-1]}")

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
    """Clips by their number, or the reason (str) why there is none."""

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
    """Lists of clips, each with the reasons (str) met on the way to it why there is none; where there are reasons only,
    one list without clips."""
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
    """The next of some clips, in a list; with ``join_short``, as many of them as it takes to fill ``samples``."""
    pieces = [next(clips)]
    while join_short and sum(map(len, pieces)) < samples:
        pieces.append(next(clips))
    return pieces


def read_batches(dataset, workers, sampler=None):
    """Yields the items of a data set, read by so many processes; one that is a ManifestError is raised. Where this
    process uses a GPU, batches are in pinned memory."""
    # The loader seeds its workers from torch's generator, which is the training's and has to stay as it is.
    loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, generator=torch.Generator(),
                        worker_init_fn=_leave_process_group, pin_memory=torch.cuda.is_initialized())
    for item in loader:
        if isinstance(item, ManifestError):
            raise item
        yield item


def _leave_process_group(worker):
    """Keep a signal for the whole process group (Ctrl-C, torchrun's SIGTERM) for the training process to handle."""
    os.setpgrp()


def pad(clips, samples):
    """Clips as rows ``(clips, samples)``, padded with zeros at the end, and their lengths ``(clips,)``."""
    waveforms = torch.zeros(len(clips), samples, dtype=torch.float32)
    for row, clip in zip(waveforms, clips):
        row[:len(clip)] = clip
    return waveforms, torch.tensor([len(clip) for clip in clips])


def batch_to_fbank(batch, log_mel, frames):
    """Batch of waveforms -> (clips, frames, mel) of normalised log-mel on the device of ``log_mel``; a short clip is
    padded as :meth:`LogMel.fixed_length` does."""
    waveforms = send(batch.waveforms, log_mel.window.device)
    return log_mel.fixed_length([waveform[:length] for waveform, length in zip(waveforms, batch.lengths.tolist())],
                                frames)
