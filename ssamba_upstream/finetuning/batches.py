"""Batches of labelled waveforms for fine-tuning.

As in pretraining, and with the same code, everything random is seeded by a clip's position in the sequence of clips.
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
"""Both parameters of the Beta distribution of mixup's share, as published; nine in ten shares are in 0.32 to 0.68."""


@dataclass(kw_only=True)
class LabelledBatch(Batch):
    """One step's clips and their targets.

    Attributes:
        waveforms, lengths, unreadable, position: see :class:`~ssamba_upstream.training.batches.Batch`.
        targets: ``(clips, classes)`` float32; or ``(clips, seconds)`` int64, the class of each second, -100 for
            unlabelled seconds and after the clip's end.
        indices: ``(clips,)`` int64, index of each clip's recording; for mixed clips, that of the first recording.
    """

    targets: torch.Tensor
    indices: torch.Tensor


def training_batches(paths, targets, batch_size, samples, seed, position=None, rank=0, world_size=1, workers=0,
                     mixup=0.0, weights=None, sampling_rate=SAMPLE_RATE) -> Iterator[LabelledBatch]:
    """Yield batches indefinitely: each recording once per epoch in a seeded order, or recordings drawn by weight.

    Batch m of a rank holds ``batch_size`` clips, starting at ``(m * world_size + rank) * batch_size`` in the sequence
    of all epochs. Unreadable recordings are replaced by others drawn uniformly.

    A mixed clip is ``share * a + (1 - share) * b``, with its targets mixed alike. Here a is the current clip and b a
    clip of a recording drawn uniformly, cut or zero-padded to the length of a; both have their mean removed, and the
    share is drawn from Beta(10, 10).

    Args:
        paths: paths of the recordings.
        targets: ``(recordings, classes)`` floating-point, see :func:`label_targets`; or ``(recordings, seconds)``
            int64, the class of each second from the recording's start, -100 for unlabelled seconds.
        batch_size: clips per process.
        samples: clip length in samples; longer recordings are cropped at random. With labels of seconds the crop is
            the start, and ``samples`` must be ``sampling_rate * seconds``.
        seed: seed, a non-negative integer.
        position: position of the last batch used, i.e. the number of batches used; the sequence resumes exactly there.
        rank, world_size, workers, sampling_rate: see :func:`ssamba_upstream.pretraining.batches.training_batches`.
        mixup: share of the clips that are mixed, from 0 to 1.
        weights: ``(recordings,)``, non-negative: recordings are drawn with replacement, with probability proportional
            to their weight, see :func:`balancing_weights`. Default: each recording once per epoch.

    Raises:
        ValueError: If the arguments are inconsistent (raised at the call).
        ManifestError: If no file is readable (raised during iteration).
    """
    _check_targets(paths, targets, samples, sampling_rate)
    if not 0 <= mixup <= 1:
        raise ValueError(f"mixup is the share of the clips that are mixed, from 0 to 1; got {mixup}")
    if mixup and _are_seconds(targets):
        raise ValueError(f"mixup needs targets of whole clips, but these are labels of seconds. Set it to 0, not "
                         f"{mixup}")
    chances = None if weights is None else _cumulative(weights, len(paths))
    batches = _LabelledBatches(list(paths), batch_size, samples, sampling_rate, seed, rank, world_size, targets,
                               mixup, chances)
    return read_batches(batches, workers, sampler=itertools.count(position or 0))


def evaluation_batches(paths, targets, batch_size, samples, rank=0, world_size=1, workers=0,
                       sampling_rate=SAMPLE_RATE) -> Iterator[LabelledBatch]:
    """Yield batches with each recording once over all ranks, in order, with a centre crop.

    A rank's last batch may be short, and one rank may have one recording fewer than another. Unreadable recordings are
    skipped; the batches' ``indices`` list those present. A rank with no readable recording yields one batch
    without clips that lists them.

    Args:
        paths, targets, batch_size, samples, rank, world_size, workers, sampling_rate: see :func:`training_batches`.
            With labels of seconds the crop is the start.

    Raises:
        ValueError: If the arguments are inconsistent.
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
    """Return targets ``(recordings, classes)`` float32: 1 for each of a recording's labels, otherwise 0.

    Args:
        labels: list of labels for each recording; empty if it has none.
        classes: all distinct labels, in the order of their class indices.

    Raises:
        ValueError: If a class is listed twice, or a label is not among the classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    if len(numbers) < len(classes):
        twice = next(name for number, name in enumerate(classes) if numbers[name] != number)
        raise ValueError(f"the class {twice!r} is listed twice")
    targets = torch.zeros(len(labels), len(classes))
    for recording, names in enumerate(labels):
        for name in names:
            if name not in numbers:
                raise ValueError(f"recording {recording} (counted from 0) has the label {name!r}, which is not one of "
                                 f"the {len(classes)} classes")
            targets[recording, numbers[name]] = 1
    return targets


def balancing_weights(targets):
    """Return weights for :func:`training_batches` that draw rare labels as often as common ones.

    A recording's weight is the sum over its labels of 1 / recordings with that label, as published up to scale.
    Recordings without labels, which the published code does not support, count as one more class.

    Args:
        targets: ``(recordings, classes)``, positive for a recording's labels.

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
            # The mixture's remaining mean does not matter: the log-mel removes the mean of every frame.
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
    """Return a recording's row of targets; labels of seconds after the clip's end are ignored."""
    target = targets[index]
    if _are_seconds(targets):
        return target.where(torch.arange(len(target)) * sampling_rate < len(clip), IGNORED)
    return target.float()


def _check_targets(paths, targets, samples, sampling_rate):
    if not len(paths):
        raise ManifestError("no recordings to read")
    if targets.dim() != 2 or len(targets) != len(paths):
        raise ValueError(f"{len(paths)} recordings need as many rows of targets, over classes or seconds; got targets "
                         f"of shape {tuple(targets.shape)}")
    if not targets.is_floating_point() and targets.dtype != torch.int64:
        raise ValueError("targets must be floating-point rows of classes or int64 labels of seconds; got "
                         f"{targets.dtype}")
    if _are_seconds(targets) and samples != targets.shape[1] * sampling_rate:
        raise ValueError(f"labels of {targets.shape[1]} seconds need clips of {targets.shape[1] * sampling_rate} "
                         f"samples; got {samples}")


def _cumulative(weights, recordings):
    """Return the cumulative distribution of the drawn recording's index."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (recordings,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(f"weights must be one non-negative number for each of {recordings} recordings, not all 0; "
                         f"got {weights}")
    cumulative = weights.cumsum()
    return cumulative / cumulative[-1]
