"""Pretraining batches from WebDataset shards: tar files of audio, on this machine or behind URLs."""

import copy
import glob
import io
import itertools
import random

import numpy as np
import webdataset
from torch.utils.data import IterableDataset, get_worker_info
from webdataset import tariterators

from ..audio import AUDIO_EXTENSIONS, AudioError, read_clip, why_unreadable
from ..corpora.manifest import ManifestError
from ..training.batches import Batch, next_pieces

SHUFFLE_BUFFER = 1000
"""Files, still encoded, among which each reader draws its next one."""


class ShardBatches(IterableDataset):
    """Batches without end from tar shards, each shard read by one reader per pass.

    Readers are the workers of all ranks. In each pass the shards, in a seeded order, are dealt out to them; each
    reader makes batches of its own from the audio files in its shards, which go through a seeded shuffle buffer.
    What cannot be decoded and what is torn is skipped and reported. A reader that found nothing readable in its
    share reads all shards in the next pass, and gives up when there is nothing in any.

    A position holds for each worker of its rank how far into which pass it is, and how many files it took from each of
    the pass's shards. To go on there, a reader shuffles the numbers of those files again, and reads only the shards
    whose files were in the shuffle buffer: about as many as hold seven times the buffer, however far the pass is.

    Raises:
        ManifestError: no shard, fewer shards than readers, or a position of another rank or number of readers.
    """

    def __init__(self, sources, batch_size, samples, seed, position, rank, world_size, workers, join_short,
                 sampling_rate, keep_pieces=False):
        self.urls = [url for source in sources for url in _expand(str(source))]
        self.batch_size, self.samples, self.seed, self.join_short = batch_size, samples, seed, join_short
        self.sampling_rate, self.keep_pieces = sampling_rate, keep_pieces
        self.rank, self.world_size, self.workers = rank, world_size, workers
        if len(self.urls) < world_size * workers:
            raise ManifestError(f"{len(self.urls)} shards for {world_size} processes with {workers} workers each: "
                                "every worker needs a shard of its own; cut smaller shards, or use fewer workers")
        place = {"rank": rank, "world_size": world_size, "workers": workers}
        start = {"pass": 0, "files": 0, "sizes": [], "whole": False, "heard": False}
        self.position = position or {**place, "next": 0, "readers": [start] * workers}
        if {key: self.position[key] for key in place} != place:
            begun = {key: self.position[key] for key in place}
            raise ManifestError(f"a run on shards goes on with the processes and workers it was begun with: the "
                                f"position is of {begun}, this is {place}")

    def follow(self, batches):
        """Give each batch of a loader the position of its rank in place of its reader's."""
        position = self.position
        for batch in batches:
            readers = list(position["readers"])
            readers[position["next"]] = batch.position
            position = {**position, "next": (position["next"] + 1) % self.workers, "readers": readers}
            batch.position = position
            yield batch

    def __iter__(self):
        info = get_worker_info()
        # The loader begins with its first worker, which has to be the one whose turn it is.
        worker = (self.position["next"] + (info.id if info else 0)) % self.workers
        state = copy.deepcopy(self.position["readers"][worker])
        unreadable = []
        clips = self._clips(self.rank * self.workers + worker, state, unreadable)
        try:
            while True:
                batch = [next_pieces(clips, self.samples, self.join_short) for _ in range(self.batch_size)]
                yield Batch.joined(batch, self.samples, list(unreadable), copy.deepcopy(state), self.keep_pieces)
                unreadable.clear()
        except ManifestError as error:
            yield error

    def _clips(self, reader, state, unreadable):
        """A reader's clips without end; ``state`` is always that after the last one."""
        while True:
            share = np.random.default_rng([self.seed, 0, state["pass"]]).permutation(self.urls).tolist()
            if not state["whole"]:
                share = share[reader::self.world_size * self.workers]
            draw = random.Random(f"{self.seed} {state['pass']} {reader}")
            for name, content in _shuffled(share, state["sizes"], state["files"], draw, unreadable):
                crop = np.random.default_rng([self.seed, 1, state["pass"], reader, state["files"]])
                state["files"] += 1
                try:
                    clip = read_clip(io.BytesIO(content), self.samples, crop, sampling_rate=self.sampling_rate,
                                     repeating=self.keep_pieces)
                except AudioError as error:
                    unreadable.append(f"{name}: {error.reason}")
                else:
                    state["heard"] = True
                    yield clip
            if not state["heard"] and len(share) == len(self.urls):
                raise ManifestError(f"no readable audio in {len(self.urls)} shards; " +
                                    (f"the last: {unreadable[-1]}" if unreadable else
                                     f"they should hold {', '.join(AUDIO_EXTENSIONS)} files"))
            state.update({"pass": state["pass"] + 1, "files": 0, "sizes": [], "whole": not state["heard"],
                          "heard": False})


def _expand(source):
    """The shards that a path, glob or URL with braces names."""
    for url in webdataset.shardlists.expand_urls(source):
        found = [url] if "://" in url else sorted(glob.glob(url))
        if not found:
            raise ManifestError(f"{url}: no such shard")
        yield from found


def _shuffled(share, sizes, passed, draw, unreadable):
    """Name and content of each audio file in some shards, shuffled.

    Args:
        share: the shards.
        sizes: how many files were taken from each of the first shards; counts on.
        passed: how many of these files have been given already, and are not given again.
        draw: random.Random, by which is shuffled.
        unreadable: list to which what cannot be read is added.

    Raises:
        ManifestError: a shard does not hold any more what it held when its files were counted.
    """
    taken = sum(sizes)
    files = itertools.chain(range(taken), _count(share, sizes, unreadable))
    files = webdataset.shuffle(SHUFFLE_BUFFER, rng=draw)(files)
    buffered = set(range(taken)).difference(itertools.islice(files, passed))
    contents = _reread(share, sizes, buffered)
    for file in files:
        yield contents.pop(file) if isinstance(file, int) else file


def _count(share, sizes, unreadable):
    """The audio files of the shards after those that ``sizes`` counts, which counts on."""
    if len(sizes) > len(share):
        return
    for number in range(max(0, len(sizes) - 1), len(share)):
        if number == len(sizes):
            sizes.append(0)
        for file in itertools.islice(_audio_files(share[number], unreadable), sizes[number], None):
            sizes[number] += 1
            yield file
    sizes.append(0)  # the last shard's end has been seen


def _reread(share, sizes, wanted):
    """Audio files by their number among all that were taken from the shards."""
    found, first = {}, 0
    for url, size in zip(share, list(sizes)):
        here = wanted.intersection(range(first, first + size))
        if here:
            files = itertools.islice(_audio_files(url, []), max(here) + 1 - first)
            found.update((number, file) for number, file in enumerate(files, first) if number in here)
        if not here <= found.keys():
            raise ManifestError(f"{url} does not hold any more what it held when the run stopped; the run cannot go on "
                                "in the same order")
        first += size
    return found


def _audio_files(url, unreadable):
    """Name and content of each audio file in a shard, as far as the shard can be read."""
    def report(error):
        # webdataset tells of the same tear twice, once with the stream's name behind it.
        if not any(line.startswith(f"{url}: ") for line in unreadable[-1:]):
            unreadable.append(f"{url}: {why_unreadable(error).split(' @ ')[0]}")
        return True

    # Files one by one: grouped to samples, webdataset drops those whose names it cannot split at a dot.
    streams = tariterators.url_opener([{"url": url}], handler=report)
    for file in tariterators.tar_file_expander(streams, handler=report, select_files=_is_audio, eof_value=None):
        yield f"{url}/{file['fname']}", file["data"]


def _is_audio(name):
    return name.lower().endswith(AUDIO_EXTENSIONS)
