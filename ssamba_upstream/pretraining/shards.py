"""Pretraining batches from WebDataset shards: tar files of audio, local or remote."""

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
"""Number of encoded files from which each reader draws the next one."""


class ShardBatches(IterableDataset):
    """Endless batches from tar shards; each shard is read by one reader per pass.

    Readers are the workers of all ranks. In each pass the shards are dealt out to them in a seeded order. Each reader
    makes its own batches from the audio files in its shards, through a seeded shuffle buffer. Files that are damaged or
    cannot be decoded are skipped and reported. A reader that found nothing readable in its share reads all shards in
    the next pass, and gives up if none has readable audio.

    For each worker of its rank, a position contains the pass, the progress in it, and the number of files taken from
    each of the pass's shards. To resume, a reader shuffles the numbers of those files again, and reads only the shards
    whose files were in the shuffle buffer. These hold about seven times the buffer, however far the pass has come.

    Raises:
        ManifestError: If there are fewer shards than readers, or the position has another rank or number of readers.
    """

    def __init__(self, sources, batch_size, samples, seed, position, rank, world_size, workers, join_short,
                 sampling_rate, keep_pieces=False):
        self.urls = [url for source in sources for url in _expand(str(source))]
        self.batch_size, self.samples, self.seed, self.join_short = batch_size, samples, seed, join_short
        self.sampling_rate, self.keep_pieces = sampling_rate, keep_pieces
        self.rank, self.world_size, self.workers = rank, world_size, workers
        if len(self.urls) < world_size * workers:
            raise ManifestError(f"{len(self.urls)} shards for {world_size} processes with {workers} workers each: "
                                "every worker needs its own shard. Make smaller shards, or use fewer workers")
        place = {"rank": rank, "world_size": world_size, "workers": workers}
        start = {"pass": 0, "files": 0, "sizes": [], "whole": False, "heard": False}
        self.position = position or {**place, "next": 0, "readers": [start] * workers}
        if {key: self.position[key] for key in place} != place:
            begun = {key: self.position[key] for key in place}
            raise ManifestError("a run on shards must resume with the same processes and workers: its position has "
                                f"{begun}, this run has {place}")

    def follow(self, batches):
        """Replace the reader's position of each of a loader's batches by the rank's."""
        position = self.position
        for batch in batches:
            readers = list(position["readers"])
            readers[position["next"]] = batch.position
            position = {**position, "next": (position["next"] + 1) % self.workers, "readers": readers}
            batch.position = position
            yield batch

    def __iter__(self):
        info = get_worker_info()
        # The loader starts with its first worker, which must be the one whose turn is next.
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
        """Yield a reader's clips indefinitely; ``state`` is always the state after the last one."""
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
    """Yield the shards that a path, glob or URL with braces refers to."""
    for url in webdataset.shardlists.expand_urls(source):
        found = [url] if "://" in url else sorted(glob.glob(url))
        if not found:
            raise ManifestError(f"{url}: no such shard")
        yield from found


def _shuffled(share, sizes, passed, draw, unreadable):
    """Yield name and content of each audio file in the shards, shuffled by ``draw``, after the first ``passed``.

    ``sizes``, the number of files taken so far from each of the first shards, is updated, and unreadable files are
    added to ``unreadable``.
    """
    taken = sum(sizes)
    files = itertools.chain(range(taken), _count(share, sizes, unreadable))
    files = webdataset.shuffle(SHUFFLE_BUFFER, rng=draw)(files)
    buffered = set(range(taken)).difference(itertools.islice(files, passed))
    contents = _reread(share, sizes, buffered)
    for file in files:
        yield contents.pop(file) if isinstance(file, int) else file


def _count(share, sizes, unreadable):
    """Yield the shards' audio files after those already counted in ``sizes``, and update the counts."""
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
    """Return the wanted audio files by their number among all files taken from the shards."""
    found, first = {}, 0
    for url, size in zip(share, list(sizes)):
        here = wanted.intersection(range(first, first + size))
        if here:
            files = itertools.islice(_audio_files(url, []), max(here) + 1 - first)
            found.update((number, file) for number, file in enumerate(files, first) if number in here)
        if not here <= found.keys():
            raise ManifestError(f"{url} has changed since the run stopped, so the run cannot resume in the same order. "
                                "Restore the shard, or start a new run")
        first += size
    return found


def _audio_files(url, unreadable):
    """Yield name and content of each audio file in a shard, as far as the shard can be read."""
    def report(error):
        # webdataset reports the same damage twice, once with the stream's name appended.
        if not any(line.startswith(f"{url}: ") for line in unreadable[-1:]):
            unreadable.append(f"{url}: {why_unreadable(error).split(' @ ')[0]}")
        return True

    # Single files, because webdataset's grouping into samples drops names that it cannot split at a dot.
    streams = tariterators.url_opener([{"url": url}], handler=report)
    for file in tariterators.tar_file_expander(streams, handler=report, select_files=_is_audio, eof_value=None):
        yield f"{url}/{file['fname']}", file["data"]


def _is_audio(name):
    return name.lower().endswith(AUDIO_EXTENSIONS)
