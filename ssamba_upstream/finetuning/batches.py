"""Batches of labelled waveforms for fine-tuning.

What pretraining promises of its batches holds here too, by the same code: everything random is seeded by where a clip
stands in the sequence of all clips.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..audio import SAMPLE_RATE, read_clip
from ..corpora.manifest import ManifestError
from ..network.classification import IGNORED
from ..training.batches import Batch, ClipsInOrder, NumberedBatches, in_batches, pad, read_batches

MIXUP_BETA = 10
"""Both parameters of the Beta distribution of a mixture's share, as published: nine in ten are from 0.32 to 0.68."""


@dataclass(kw_only=True)
class LabelledBatch(Batch):
    """Clips of one step and what they are to be recognised as.

    Attributes:
        waveforms, lengths, unreadable, position: as of :class:`~ssamba_upstream.training.batches.Batch`.
        targets: ``(clips, classes)`` float32; or ``(clips, seconds)`` int64, classes of each second, -100 where there
            is none or the clip has ended.
        indices: ``(clips,)`` int64, which of the recordings a clip is of; of a mixed clip, the one it began with.
    """

    targets: torch.Tensor
    indices: torch.Tensor


def training_batches(paths, targets, batch_size, samples, seed, position=None, rank=0, world_size=1, workers=0,
                     mixup=0.0, weights=None, sampling_rate=SAMPLE_RATE) -> Iterator[LabelledBatch]:
    """Batches without end, every recording once per epoch in a seeded order, or drawn by weight.

    Batch m of a rank holds the clips from ``(m * world_size + rank) * batch_size`` on of the sequence of all epochs. A
    recording that cannot be read is replaced by one drawn uniformly from all.

    A mixed clip is ``share * a + (1 - share) * b``, and so are its targets: a is the clip in turn and b one of a
    recording drawn uniformly from all, cut or padded with zeros to the length of a, both with their mean taken off;
    the share is drawn from Beta(10, 10).

    Args:
        paths: the recordings.
        targets: of each recording: ``(recordings, classes)`` floating-point, see :func:`label_targets`; or
            ``(recordings, seconds)`` int64, the class of each second from its start, -100 where there is none.
        batch_size: clips of each process.
        samples: the longest clip; longer recordings get a random crop. Labels of seconds stay with their seconds: the
            crop is then from the start, and ``samples`` has to be ``sampling_rate * seconds``.
        seed: a number from 0 on.
        position: the last used batch's, the number of batches used; what follows is exactly what would have followed.
        rank, world_size: which process this is, of how many.
        workers: how many processes read; 0 reads in this one.
        mixup: which part of the clips is mixed, from 0 to 1.
        weights: ``(recordings,)``, not negative: each clip is of a recording drawn with a probability in proportion
            to its weight, with replacement, see :func:`balancing_weights`. Default: every recording once per epoch.
        sampling_rate: of the clips, in Hz.

    Raises:
        ValueError: at once, when the arguments do not fit each other.
        ManifestError: later, when nothing is readable.
    """
    _check_targets(paths, targets, samples, sampling_rate)
    if not 0 <= mixup <= 1:
        raise ValueError(f"mixup is the part of the clips that are mixed, from 0 to 1; got {mixup}")
    if mixup and _are_seconds(targets):
        raise ValueError(f"mixup mixes targets of whole clips, but these are labels of seconds; set it to 0, not "
                         f"{mixup}")
    chances = None if weights is None else _cumulative(weights, len(paths))
    batches = _LabelledBatches(list(paths), batch_size, samples, sampling_rate, seed, rank, world_size, targets,
                               mixup, chances)
    return read_batches(batches, workers, sampler=itertools.count(position or 0))


def evaluation_batches(paths, targets, batch_size, samples, rank=0, world_size=1, workers=0,
                       sampling_rate=SAMPLE_RATE) -> Iterator[LabelledBatch]:
    """Each recording once over all ranks, in order, with a centre crop.

    A rank's last batch may be short, and a rank may have one recording less than another; recordings that cannot be
    read are left out, and the batches' ``indices`` say which are there. Where none of a rank's recordings is readable,
    it has one batch without clips, which names them.

    Args:
        paths, targets, batch_size, samples, rank, world_size, workers, sampling_rate: as for :func:`training_batches`.
            With labels of seconds the crop is from the start.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    _check_targets(paths, targets, samples, sampling_rate)
    mine = range(rank, len(paths), world_size)
    crop = "start" if _are_seconds(targets) else "centre"
    files = [paths[index] for index in mine]
    clips = read_batches(ClipsInOrder(files, samples, sampling_rate, crop), workers, sampler=range(len(mine)))
    examples = (clip if isinstance(clip, str) else (index, clip, _target(targets, index, clip, sampling_rate))
                for index, clip in zip(mine, clips))
    return (_batch(rows, samples, unreadable) for rows, unreadable in in_batches(examples, batch_size))


def label_targets(labels, classes):
    """Targets ``(recordings, classes)`` float32: 1 for each of a recording's labels, else 0.

    Args:
        labels: a list of labels for each recording; an empty one where nothing is heard.
        classes: all labels, each once; a class's place here is its number.

    Raises:
        ValueError: a class named twice, or a label that is none of the classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if len(numbers) < len(classes):
        twice = next(name for number, name in enumerate(classes) if numbers[name] != number)
        raise ValueError(f"the class {twice!r} is named twice")
    targets = torch.zeros(len(labels), len(classes))
    for recording, names in enumerate(labels):
        for name in names:
            if name not in numbers:
                raise ValueError(f"recording {recording} (from 0) has the label {name!r}, which is none of the "
                                 f"{len(classes)} classes")
            targets[recording, numbers[name]] = 1
    return targets


def balancing_weights(targets):
    """Weights for :func:`training_batches` by which rare labels are heard as often as common ones.

    A recording weighs the sum over its labels of 1 / recordings with that label, as published up to scale. Nothing
    counts as a label of the recordings without any, which the published code does not know.

    Args:
        targets: ``(recordings, classes)``, above 0 for a recording's labels.

    Returns:
        (recordings,) float64.
    """
    labelled = targets > 0
    labelled = torch.cat([labelled, ~labelled.any(dim=1, keepdim=True)], dim=1).double()
    return labelled @ (1 / labelled.sum(dim=0).clamp(min=1))


@dataclass
class _LabelledBatches(NumberedBatches):
    targets: torch.Tensor
    mixup: float
    chances: np.ndarray | None

    def index_at(self, position, random):
        if self.chances is None:
            return super().index_at(position, random)
        return int(np.searchsorted(self.chances, random.random(), side="right"))

    def read(self, file, random):
        crop = "start" if _are_seconds(self.targets) else random
        return read_clip(file, self.samples, crop, sampling_rate=self.sampling_rate)

    def example(self, readings, random):
        index, clip = next(readings)
        target = _target(self.targets, index, clip, self.sampling_rate)
        if random.random() < self.mixup:
            partner, other = next(readings)
            share = random.beta(MIXUP_BETA, MIXUP_BETA)
            clip = share * _centred(clip)
            # The mean that the mixture may be left with is of no account: the log-mel takes it off every frame.
            clip[:len(other)] += (1 - share) * _centred(other)[:len(clip)]
            target = share * target + (1 - share) * _target(self.targets, partner, other, self.sampling_rate)
        return index, clip, target

    def batch(self, examples, unreadable, position):
        return _batch(examples, self.samples, unreadable, position)


def _batch(examples, samples, unreadable, position=None):
    indices, clips, targets = zip(*examples) if examples else ((), (), ())
    return LabelledBatch(*pad(clips, samples), unreadable, position,
                         targets=torch.stack(targets) if targets else torch.empty(0),
                         indices=torch.tensor(indices, dtype=torch.int64))


def _centred(clip):
    return clip - clip.mean()


def _are_seconds(targets):
    return not targets.is_floating_point()


def _target(targets, index, clip, sampling_rate):
    """The row of a recording; of labels of seconds, without those after the clip's end."""
    target = targets[index]
    if _are_seconds(targets):
        heard = torch.arange(len(target)) * sampling_rate < len(clip)
        return target.where(heard, IGNORED)
    return target.float()


def _check_targets(paths, targets, samples, sampling_rate):
    if not len(paths):
        raise ManifestError("no recordings to read")
    if targets.dim() != 2 or len(targets) != len(paths):
        raise ValueError(f"{len(paths)} recordings need as many rows of targets, of classes or of seconds; got targets "
                         f"of shape {tuple(targets.shape)}")
    if not targets.is_floating_point() and targets.dtype != torch.int64:
        raise ValueError(f"targets are floating-point rows of classes or int64 labels of seconds; got {targets.dtype}")
    if _are_seconds(targets) and samples != targets.shape[1] * sampling_rate:
        raise ValueError(f"labels of {targets.shape[1]} seconds go with clips of {targets.shape[1] * sampling_rate} "
                         f"samples, not of {samples}")


def _cumulative(weights, recordings):
    """Probability that a drawn recording is this one or one before it."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (recordings,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(f"weights are one number, not negative, for each of {recordings} recordings, and not all 0; "
                         f"got {weights}")
    cumulative = weights.cumsum()
    return cumulative / cumulative[-1]
