"""Batches of waveforms for pretraining, from manifests or from WebDataset shards."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Dataset

from ..audio import SAMPLE_RATE, read_clip
from ..corpora.manifest import ManifestError, Paths, read_manifest
from ..training.batches import Batch, ClipsInOrder, NumberedBatches, in_batches, next_pieces, read_batches


def training_batches(sources, batch_size, samples, seed, position=None, rank=0, world_size=1, workers=0,
                     join_short=False, sampling_rate=SAMPLE_RATE, keep_pieces=False) -> Iterator[Batch]:
    """Batches without end, every file once per epoch in a seeded order.

    From manifests, batch m of a rank holds the clips from ``(m * world_size + rank) * batch_size`` on of the sequence
    of all epochs; a file that cannot be read is replaced by a randomly drawn one. From shards see
    :class:`~ssamba_upstream.pretraining.shards.ShardBatches`.

    Args:
        sources: manifests (see :func:`~ssamba_upstream.corpora.manifest.read_manifest`), or WebDataset shards:
            paths, globs or URLs that end in ``.tar``, with ``{000..099}`` expanded.
        batch_size: clips of each process.
        samples: the longest clip; longer files get a random crop. From manifests it may be a list of lengths, taken in
            turn from batch to batch, with ``batch_size`` clips of the longest, and the more the shorter they are.
        seed: a number from 0 on.
        position: the last used batch's; then what follows is exactly what would have followed it. From manifests
            this is the number of batches used, the same on all ranks and for any ``workers``; from shards it is the
            rank's own, and ``world_size`` and ``workers`` have to be as they were.
        rank, world_size: which process this is, of how many.
        workers: how many processes read; 0 reads in this one.
        join_short: whether further random files follow one shorter than a clip, until nothing is padding. The
            published recipe pads.
        sampling_rate: of the clips, in Hz.
        keep_pieces: If True, batches also hold the pieces that their clips are joined from, and crops begin at a few
            places of a recording only (:func:`~ssamba_upstream.audio.crop_starts`), so that the same pieces come again.

    Raises:
        ManifestError: at once, when the sources or the position do not fit; later, when nothing is readable.
    """
    lengths = [samples] if isinstance(samples, int) else samples
    if _are_shards(sources):
        from .shards import ShardBatches

        if len(lengths) > 1:
            raise ManifestError("clips of several lengths are read from manifests, not from shards (.tar)")
        shards = ShardBatches(sources, batch_size, lengths[0], seed, position, rank, world_size, max(workers, 1),
                              join_short, sampling_rate, keep_pieces)
        return shards.follow(read_batches(shards, workers))
    files = _files(sources)
    batches = _InTurn([
        _ManifestBatches(files, batch_size * round(max(lengths) / length), length, sampling_rate, seed, rank,
                         world_size, join_short, keep_pieces)
        for length in lengths
    ])
    return read_batches(batches, workers, sampler=itertools.count(position or 0))


def validation_batches(sources, batch_size, samples, rank=0, world_size=1, workers=0,
                       join_short=False, sampling_rate=SAMPLE_RATE, keep_pieces=False) -> Iterator[Batch]:
    """Each file of the manifests once over all ranks, in order, with a centre crop.

    A rank's last batch may be short, and a rank may have one file less than another; unreadable files are left out.
    Where none of a rank's files is readable, it has one batch without clips, which names them.

    Args:
        sources: manifests; shards have no order to rely on and are not taken.
        batch_size, samples, rank, world_size, workers, sampling_rate, keep_pieces: as for :func:`training_batches`.
        join_short: whether a file shorter than ``samples`` is followed by the next ones, until nothing is padding; what
            is then too long is cut off.

    Raises:
        ManifestError: the sources do not fit.
    """
    if _are_shards(sources):
        raise ManifestError("validation reads manifests, not shards: unpack a few shards and run `ssamba manifest`")
    files = _files(sources)[rank::world_size]
    clips = read_batches(ClipsInOrder(files, samples, sampling_rate), workers, sampler=range(len(files)))
    batches = in_batches(_join(clips, samples if join_short else 1), batch_size)
    return (Batch.joined(clips, samples, unreadable, keep_pieces=keep_pieces) for clips, unreadable in batches)


def _join(clips, samples):
    """Lists of clips that fill ``samples`` together; the last may be shorter. Reasons (str) why there is no clip are
    passed on."""
    joined, length = [], 0
    for clip in clips:
        if isinstance(clip, str):
            yield clip
            continue
        joined.append(clip)
        length += len(clip)
        if length >= samples:
            yield joined
            joined, length = [], 0
    if joined:
        yield joined


def _are_shards(sources):
    shards = [str(source).endswith(".tar") for source in sources]
    if any(shards) and not all(shards):
        raise ManifestError("manifests and shards (.tar) cannot be mixed in one run; name either")
    return any(shards)


def _files(sources):
    if not sources:
        raise ManifestError("no audio to read: name manifests or shards")
    return Paths(file for source in sources for file in read_manifest(source))


@dataclass
class _InTurn(Dataset):
    """Batch m is batch m of one of several data sets, each in its turn."""

    members: list

    def __getitem__(self, number):
        return self.members[number % len(self.members)][number]


@dataclass
class _ManifestBatches(NumberedBatches):
    join_short: bool
    keep_pieces: bool

    def read(self, file, random):
        return read_clip(file, self.samples, random, sampling_rate=self.sampling_rate, repeating=self.keep_pieces)

    def example(self, readings, random):
        return next_pieces((clip for _, clip in readings), self.samples, self.join_short)

    def batch(self, examples, unreadable, position):
        return Batch.joined(examples, self.samples, unreadable, position, self.keep_pieces)
