"""Batches of waveforms for pretraining, from manifests or WebDataset shards."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Dataset

from ..audio import SAMPLE_RATE, read_clip
from ..corpora.manifest import ManifestError, Paths, read_manifest
from ..training.batches import Batch, ClipsInOrder, NumberedBatches, in_batches, next_pieces, read_batches


def training_batches(sources, forms, seed, position=None, rank=0, world_size=1, workers=0, join_short=False,
                     sampling_rate=SAMPLE_RATE, keep_pieces=False, in_first_form=0) -> Iterator[Batch]:
    """Yield batches indefinitely, with every file once per epoch in a seeded order.

    From manifests, batch m of a rank holds n clips, starting at ``(m * world_size + rank) * n`` in the sequence of all
    epochs, and unreadable files are replaced by random ones. For shards, see
    :class:`~ssamba_upstream.pretraining.shards.ShardBatches`.

    Args:
        sources: manifests (see :func:`~ssamba_upstream.corpora.manifest.read_manifest`), or WebDataset shards:
            paths, globs or URLs that end in ``.tar``, with ``{000..099}`` expanded.
        forms: list of (number of clips, samples) of a process's batches, see :func:`in_turn`; only one for shards.
            Files with more samples are cropped at random.
        seed: seed, a non-negative integer.
        position: position of the last batch used, from which the sequence resumes exactly. With manifests it is the
            number of batches used, the same for all ranks and any ``workers``. With shards it is the rank's own, and
            ``world_size`` and ``workers`` must be unchanged.
        rank, world_size: rank of this process, and number of processes.
        workers: number of reader processes; 0 reads in this process.
        join_short: If True, files shorter than a clip are followed by other random files instead of padding. The
            published recipe pads.
        sampling_rate: sampling rate of the clips in Hz.
        keep_pieces: If True, batches also contain the pieces that clips are joined from, and crops start only at the
            positions of :func:`~ssamba_upstream.audio.crop_starts`, so that the same pieces recur.
        in_first_form: number of batches at the beginning that all have the first form.

    Raises:
        ManifestError: If the sources or the position are invalid (raised at the call), or nothing is readable (raised
            during iteration).
    """
    if _are_shards(sources):
        from .shards import ShardBatches

        if len(forms) > 1:
            raise ManifestError("clips of several forms need manifests, not shards (.tar). Give manifests, or set "
                                "clip_forms=null")
        shards = ShardBatches(sources, *forms[0], seed, position, rank, world_size, max(workers, 1),
                              join_short, sampling_rate, keep_pieces)
        return shards.follow(read_batches(shards, workers))
    files = _files(sources)
    batches = _InTurn([
        _ManifestBatches(files, *form, sampling_rate, seed, rank, world_size, join_short, keep_pieces)
        for form in forms
    ], in_first_form)
    return read_batches(batches, workers, sampler=itertools.count(position or 0))


def validation_batches(sources, batch_size, samples, rank=0, world_size=1, workers=0,
                       join_short=False, sampling_rate=SAMPLE_RATE, keep_pieces=False) -> Iterator[Batch]:
    """Yield batches with each file of the manifests once over all ranks, in order, with a centre crop.

    A rank's last batch may be short, and one rank may have one file fewer than another. Unreadable files are skipped.
    A rank with no readable file yields one batch without clips that lists them.

    Args:
        sources: manifests; shards are not supported, because their order is not reliable.
        batch_size, samples: number of clips in a process's batch, and samples of the longest clip.
        rank, world_size, workers, sampling_rate, keep_pieces: see :func:`training_batches`.
        join_short: If True, files shorter than ``samples`` are joined with the next files instead of padded, and cut
            to ``samples``.

    Raises:
        ManifestError: If the sources are invalid.
    """
    if _are_shards(sources):
        raise ManifestError("validation needs manifests, not shards. Unpack a few shards and run `ssamba manifest`")
    files = _files(sources)[rank::world_size]
    clips = read_batches(ClipsInOrder(files, samples, sampling_rate), workers, sampler=range(len(files)))
    batches = in_batches(_join(clips, samples if join_short else 1), batch_size)
    return (Batch.joined(clips, samples, unreadable, keep_pieces=keep_pieces) for clips, unreadable in batches)


def _join(clips, samples):
    """Yield lists of clips that together fill ``samples``; the last may be shorter. Reasons (str) for unreadable clips
    are passed through."""
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
        raise ManifestError("manifests and shards (.tar) cannot be mixed in one run. Give only one kind")
    return any(shards)


def _files(sources):
    if not sources:
        raise ManifestError("there is no audio to read. Give manifests or shards")
    return Paths(file for source in sources for file in read_manifest(source))


def in_turn(number, count, in_first_form):
    """Return which of ``count`` forms a batch has: the first until batch ``in_first_form``, then all in turn."""
    return 0 if number < in_first_form else number % count


@dataclass
class _InTurn(Dataset):
    """Data sets that take turns: batch m is that of data set :func:`in_turn`."""

    members: list
    in_first_form: int

    def __getitem__(self, number):
        return self.members[in_turn(number, len(self.members), self.in_first_form)][number]


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
