"""Utterance-level tasks trained on averages over time, with s3prl's unmodified runner.

s3prl's classifiers for speaker identification, emotion recognition, keyword spotting and intent classification consist
of a weighted sum of the layers, a linear projector, the mean over time and a linear layer. Everything before the mean
is linear, so the mean can come first: an utterance is then a single frame, its average. :class:`AveragedDataset` gives
s3prl's runner numbers instead of waveforms, and :class:`AveragedUpstream` returns the average for each number.
"""

import contextlib
import os
import random
import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..audio import SAMPLE_RATE, crop_starts
from ..files import locked
from ..store import waveform_key
from .kept_states import KeptUpstream
from .repairs import wrap
from .repairs.frames import RunError, count_frames

DOWNSTREAMS = ("voxceleb1", "emotion", "speech_commands", "fluent_commands")
"""s3prl's names for the tasks whose heads use only an utterance's average."""

SECONDS_AT_ONCE = 120.0
TRIAL_ITEMS = 64


def sees_averages_only(downstream, config):
    """Return True if a task's head, according to s3prl's config, uses only an utterance's average."""
    head = config.get("downstream_expert", {}).get("modelrc", {})
    options = head.get("UtteranceLevel", {})
    return (downstream in DOWNSTREAMS and head.get("select") == "UtteranceLevel"
            and options.get("pooling", "MeanPooling") == "MeanPooling" and options.get("pre_net") is None)


class AveragedUpstream(KeptUpstream):
    """A :class:`KeptUpstream` that keeps averages over time, each as a single frame.

    Attributes:
        keys: the store's key for every number that an AveragedDataset uses. While it is empty, the upstream takes
            waveforms, which s3prl's Featurizer passes at the start.
        seconds_per_utterance: seconds to read and compute one utterance of the last averaged data set.
    """

    def __init__(self, upstream, store, selection="hidden_states", layer=None):
        super().__init__(upstream, store, selection, layer)
        self.keys = []
        self.seconds_per_utterance = 0.0

    def forward(self, wavs):
        """Return one frame for each number of an AveragedDataset, a list of (1,), see :class:`KeptUpstream`."""
        if not self.keys:
            return super().forward(wavs)
        keys = [self.keys[int(number)] for number in torch.cat(wavs).tolist()]
        return self.features(*self.store.read(keys, self.layer), wavs[0].device)

    def summarise(self, states, samples):
        frames = count_frames(self.module, samples, self.get_downsample_rates(self.selection))
        return states[:, :frames].mean(dim=1, keepdim=True)

    def number(self, key):
        """Assign a number to a key and return it."""
        self.keys.append(key)
        return len(self.keys) - 1


class AveragedDataset(Dataset):
    """An s3prl data set with numbers instead of waveforms.

    An item whose waveform s3prl crops at random is drawn from several crops, see :func:`crop_starts`. Everything else
    comes from the data set. If there are fewer items than in the data set, as in a trial, they are repeated.
    """

    def __init__(self, dataset, items):
        self.dataset, self.items = dataset, items

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        numbers, others = self.items[index % len(self.items)]
        number = numbers[0] if len(numbers) == 1 else random.choice(numbers)
        return np.array([number], dtype=np.float32), *others

    def __getattr__(self, name):
        # "dataset" is not set yet while unpickling. Special methods, such as Subset's __getitems__ in emotion
        # recognition, would return the data set's waveforms.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def use_averages(expert, upstream, device, trial=False):
    """Make an s3prl expert read averages; each split's are computed when the runner first requests its data.

    The expert is a DownstreamExpert of one of DOWNSTREAMS. A trial uses only TRIAL_ITEMS items of each split.
    """
    expert.model.pooling.forward = _take_only_frame

    @wrap(expert, "get_dataloader")
    def get_dataloader_of_averages(get_dataloader, split, **others):
        name = f"{split}_dataset"
        dataset = getattr(expert, name)
        if not isinstance(dataset, AveragedDataset):
            places = range(0, len(dataset), max(1, len(dataset) // TRIAL_ITEMS) if trial else 1)
            workers = min(expert.datarc["num_workers"], os.cpu_count())
            setattr(expert, name, average(dataset, upstream, split, device, workers, places))
        # Reading a number takes no time. The setting is restored because the config is part of the checkpoint.
        workers, expert.datarc["num_workers"] = expert.datarc["num_workers"], 0
        try:
            return get_dataloader(split, **others)
        finally:
            expert.datarc["num_workers"] = workers


def average(dataset, upstream, split, device, workers=0, places=None):
    """Compute and store the averages of an s3prl data set's waveforms, and return an AveragedDataset.

    Args:
        workers: number of reading processes. Default: read in this process.
        places: indices of the items. Default: all items.

    Raises:
        RunError: If the store is full.
    """
    items, waiting, seconds, began = [], {}, 0.0, time.perf_counter()
    places = range(len(dataset)) if places is None else places
    reader = _Reader(dataset, upstream.store)
    # A separate generator, so that the runner draws the same batches as without averages.
    loader = DataLoader(reader, None, sampler=places, num_workers=workers, generator=torch.Generator())
    with locked(upstream.store.path / split, wait=True):  # another process may be computing the same averages
        for keys, missing, others in tqdm(loader, f"averages of {split}", dynamic_ncols=True):
            items.append(([upstream.number(key) for key in keys], others))
            waiting |= {key: wav.to(device) for key, wav in missing}
            seconds += sum(len(wav) for _, wav in missing) / SAMPLE_RATE
            if seconds > SECONDS_AT_ONCE:
                _keep(waiting, upstream)
                waiting, seconds = {}, 0.0
        _keep(waiting, upstream)
    upstream.seconds_per_utterance = (time.perf_counter() - began) / len(items)
    return AveragedDataset(dataset, items)


def _take_only_frame(features, lengths, **kwargs):
    """MeanPooling for utterances of one frame, without its loop over utterances."""
    return features[:, 0], torch.ones(len(features), dtype=torch.int64)


def _keep(wavs, upstream):
    upstream.store.keep_missing(wavs, upstream.compute)
    if upstream.store.full:
        raise RunError(f"The averages do not fit into {upstream.store.folder}: {upstream.store.full}. Give another "
                       "folder or a higher limit.")


class _Reader(Dataset):
    """A data set's items as the keys of an item's crops, the waveforms missing from the store, and the item's rest."""

    def __init__(self, dataset, store):
        self.dataset, self.store = dataset, store

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        wavs, others = self._crops(index)
        wavs = {waveform_key(wav): wav for wav in map(torch.FloatTensor, wavs)}
        items = [*wavs.items()]
        return [*wavs], [items[i] for i in self.store.missing(wavs)], others

    def _crops(self, index):
        with _draws(self.dataset, lambda first, last: first) as ranges:
            wav, *others = self.dataset[index]
        if not ranges:
            return [wav], others
        wavs = []
        for start in crop_starts(*ranges[0], len(wav)):
            with _draws(self.dataset, lambda first, last, start=start: start):
                wavs.append(self.dataset[index][0])
        return wavs, others


@contextlib.contextmanager
def _draws(dataset, draw):
    """Replace ``random.randint``, with which a data set draws a crop's start; yield the requested ranges."""
    ranges = []

    def randint(first, last):
        ranges.append((first, last))
        return draw(first, last)

    places = [random, sys.modules[type(dataset).__module__]]
    originals = [(place, place.randint) for place in places if hasattr(place, "randint")]
    for place, _ in originals:
        place.randint = randint
    try:
        yield ranges
    finally:
        for place, original in originals:
            place.randint = original
