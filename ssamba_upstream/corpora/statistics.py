"""Mean and deviation of a set's log-mel, for normalising a network's input."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from ..audio import read_clip
from .manifest import read_in_processes

# torch takes seconds to import, so it is imported only to compute a log-mel, which most manifests do not need.

LONGEST_CLIP = 1024
"""Longest measured clip in frames: only the middle of longer files is used, as in pretraining."""


@dataclass
class Statistics:
    """Statistics of the log-mel of some files, over all frames and mel bands.

    Attributes:
        mean, deviation: ``log_mel_mean`` and ``log_mel_std`` of :class:`SsambaConfig`.
        frames: number of frames.
        unreadable: a line for each file that cannot be read.
    """

    mean: float
    deviation: float
    frames: int
    unreadable: list[str]


def measure_statistics(files, front_end, processes=None):
    """Read files and measure their log-mel before normalisation.

    Args:
        files: audio files; only the middle 1024 frames of longer files are used.
        front_end: the :class:`ssamba_upstream.network.configuration.FrontEnd`; its normalisation does not matter.
        processes: number of reading processes. Default: the number of processors.

    Raises:
        ManifestError: If none of the files can be read.
    """
    unreadable, measure = [], partial(_measure, front_end=front_end)
    sums = (found for _, found in read_in_processes(measure, files, unreadable, "measuring", processes))
    frames, total, squares = map(math.fsum, zip(*sums))
    values = frames * front_end.num_mel_bins
    mean = total / values
    return Statistics(mean, math.sqrt(squares / values - mean**2), int(frames), unreadable)


def _measure(file, front_end):
    """Return (frames, sum, sum of squares) of a file's log-mel; raises AudioError."""
    import torch

    torch.set_num_threads(1)  # there is a process for each processor
    clip = read_clip(file, front_end.samples_of(LONGEST_CLIP), sampling_rate=front_end.sampling_rate)
    log_mel = _raw_log_mel(front_end)
    (features,) = log_mel(log_mel.at_least_one_frame([clip]))
    features = features.double()
    return len(features), features.sum().item(), features.square().sum().item()


@lru_cache(maxsize=1)
def _raw_log_mel(front_end):
    """Return a front end's LogMel with statistics that leave the log-mel unchanged."""
    from ..frontend import LogMel

    return LogMel(replace(front_end, normalisation="data", log_mel_mean=0.0, log_mel_std=0.5))
