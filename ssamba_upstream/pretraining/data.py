"""Batches of waveforms for pretraining, from manifests or from WebDataset shards.

Everything random here is seeded by where a clip stands in the sequence of all clips, so that a run goes on exactly
where it stopped, and one on more processes sees the same clips.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..audio import read_clip
from .manifest import ManifestError, read_manifest, why_unreadable

UNREADABLE = (OSError, RuntimeError, ValueError)
"""What reading a damaged, vanished or senseless audio file raises."""

ATTEMPTS = 100
"""So many unreadable files in a row, where one clip was wanted, stop a run."""


@dataclass
class Batch:
    """Clips of one step.

    Attributes:
        waveforms: ``(clips, samples)`` float32 at 16 kHz, padded with zeros at the end.
        lengths: ``(clips,)`` int64, samples of each clip that are not padding.
        unreadable: path and reason of each file that was met and skipped on the way to this batch.
        position: what :func:`training_batches` needs to go on after this batch; plain integers, lists and dicts.
    """

    waveforms: torch.Tensor
    lengths: torch.Tensor
    unreadable: list[str]
    position: object = None


def training_batches(sources, batch_size, samples, seed, position=None, rank=0, world_size=1, workers=0,
                     join_short=False) -> Iterator[Batch]:
    """Batches without end, every file once per epoch in a seeded order.

    From manifests, batch m of a rank holds the clips from ``(m * world_size + rank) * batch_size`` on of the sequence
    of all epochs; a file that cannot be read is replaced by a randomly drawn one. From shards see
    :class:`~ssamba_upstream.pretraining.shards.ShardBatches`.

    Args:
        sources: manifests (see :func:`~ssamba_upstream.pretraining.manifest.read_manifest`), or WebDataset shards:
            paths, globs or URLs that end in ``.tar``, with ``{000..099}`` expanded.
        batch_size: clips of each process.
        samples: the longest clip; longer files get a random crop.
        seed: a number from 0 on.
        position: the last used batch's; then what follows is exactly what would have followed it. From manifests
            this is the number of batches used, the same on all ranks and for any `workers`; from shards it is the
            rank's own, and `world_size` and `workers` have to be as they were.
        rank, world_size: which process this is, of how many.
        workers: how many processes read; 0 reads in this one.
        join_short: whether further random files follow one shorter than `samples`, until nothing is padding. The
            published recipe pads.

    Raises:
        ManifestError: at once, when the sources or the position do not fit; later, when nothing is readable.
    """
    if _are_shards(sources):
        from .shards import ShardBatches

        shards = ShardBatches(sources, batch_size, samples, seed, position, rank, world_size, max(workers, 1),
                              join_short)
        return shards.follow(load(shards, workers))
    batches = _ManifestBatches(_files(sources), batch_size, samples, seed, rank, world_size, join_short)
    return load(batches, workers, sampler=itertools.count(position or 0))


def validation_batches(sources, batch_size, samples, rank=0, world_size=1, workers=0,
                       join_short=False) -> Iterator[Batch]:
    """Each file of the manifests once over all ranks, in order, with a centre crop.

    A rank's last batch may be short, and a rank may have one file less than another; unreadable files are left out.

    Args:
        sources: manifests; shards have no order to rely on and are not taken.
        batch_size, samples, rank, world_size, workers: as for :func:`training_batches`.
        join_short: whether a file shorter than `samples` is followed by the next ones, until nothing is padding; what
            is then too long is cut off.

    Raises:
        ManifestError: at once, when the sources do not fit; later, when none of the rank's files is readable.
    """
    if _are_shards(sources):
        raise ManifestError("validation reads manifests, not shards: unpack a few shards and run `ssamba manifest`")
    files = _files(sources)[rank::world_size]
    clips = load(ClipsInOrder(files, samples), workers, sampler=range(len(files)))
    batches = in_batches(_join(clips, samples) if join_short else clips, batch_size)
    return (Batch(*pad(clips, samples), unreadable) for clips, unreadable in batches)


def _join(clips, samples):
    """Clips of `samples`, each of as many as it takes, one after the other; the last may be short. Reasons (str) why
    there is none are passed on."""
    joined, length = [], 0
    for clip in clips:
        if isinstance(clip, str):
            yield clip
            continue
        joined.append(clip)
        length += len(clip)
        if length >= samples:
            yield torch.cat(joined)[:samples]
            joined, length = [], 0
    if joined:
        yield torch.cat(joined)


def in_batches(clips, batch_size):
    """Lists of clips, each with the reasons (str) met on the way to it why there is none.

    Raises:
        ManifestError: there are reasons only.
    """
    batch, unreadable = [], []
    for clip in clips:
        if isinstance(clip, str):
            unreadable.append(clip)
            continue
        if len(batch) == batch_size:
            yield batch, unreadable
            batch, unreadable = [], []
        batch.append(clip)
    if batch:
        yield batch, unreadable
    elif unreadable:
        raise ManifestError(f"none of {len(unreadable)} audio files can be read; the first: {unreadable[0]}")


def _are_shards(sources):
    shards = [str(source).endswith(".tar") for source in sources]
    if any(shards) and not all(shards):
        raise ManifestError("manifests and shards (.tar) cannot be mixed in one run; name either")
    return any(shards)


def _files(sources):
    if not sources:
        raise ManifestError("no audio to read: name manifests or shards")
    return [file for source in sources for file in read_manifest(source)]


def load(dataset, workers, sampler=None):
    """The items of a data set, read by so many processes; one that is a ManifestError is raised."""
    # The loader seeds its workers from torch's generator, which is the training's and has to stay as it is.
    loader = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, generator=torch.Generator(),
                        worker_init_fn=_leave_process_group)
    for item in loader:
        if isinstance(item, ManifestError):
            raise item
        yield item


def _leave_process_group(worker):
    """Keep a signal for the whole process group (Ctrl-C, torchrun's SIGTERM) for the training process to handle."""
    os.setpgrp()


def pad(clips, samples):
    """Clips as rows ``(clips, samples)``, padded with zeros at the end, and their lengths ``(clips,)``."""
    waveforms = torch.zeros(len(clips), samples)
    for row, clip in zip(waveforms, clips):
        row[:len(clip)] = clip
    return waveforms, torch.tensor([len(clip) for clip in clips])


def fill(clips, samples, join_short):
    """The next of some clips; with `join_short`, so many of them one after the other as `samples` hold."""
    clip = next(clips)
    while join_short and len(clip) < samples:
        clip = torch.cat([clip, next(clips)[:samples - len(clip)]])
    return clip


@dataclass
class NumberedBatches(Dataset):
    """Batches by their number: of the sequence of all clips, batch m of a rank holds those from
    ``(m * world_size + rank) * batch_size`` on.

    A subclass makes an example of the clips read for a place of the sequence, ``example(readings, random)``, and a
    batch of the examples, ``batch(examples, unreadable, position)``. An error is an item too: DataLoader would bury
    its message under a traceback.
    """

    files: list[str]
    batch_size: int
    samples: int
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
            except UNREADABLE as error:
                unreadable.append(f"{file}: {why_unreadable(error, file)}")
                failures += 1
            else:
                yield index, clip
                failures = 0
            index = int(random.integers(len(self.files)))
        raise ManifestError(f"no readable file among {ATTEMPTS} in a row; do the manifest's paths still exist? "
                            f"The last: {unreadable[-1]}")

    def index_at(self, position, random):
        epoch, place = divmod(position, len(self.files))
        return int(_order(self.seed, epoch, len(self.files))[place])

    def read(self, file, random):
        return read_clip(file, self.samples, random)


@lru_cache(maxsize=2)
def _order(seed, epoch, count):
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


@dataclass
class _ManifestBatches(NumberedBatches):
    join_short: bool

    def example(self, readings, random):
        return fill((clip for _, clip in readings), self.samples, self.join_short)

    def batch(self, examples, unreadable, position):
        return Batch(*pad(examples, self.samples), unreadable, position)


@dataclass
class ClipsInOrder(Dataset):
    """Clips by their number, or the reason (str) why there is none."""

    files: list[str]
    samples: int
    crop: str = "centre"

    def __getitem__(self, number):
        file = self.files[number]
        try:
            return read_clip(file, self.samples, self.crop)
        except UNREADABLE as error:
            return f"{file}: {why_unreadable(error, file)}"
