"""Measure the time and memory that a synthetic data set of millions of files takes before and during reading.

    python scripts/measure_data_sets.py [--files 2000000] [--shards 2000] [--workers 8] [--out OUT.json]

The manifest and the tar files are real, but the manifest's audio files do not exist: reading a clip returns 25 ms of
silence instead. A shard contains 10 such files. Memory is the sum of the proportional set sizes of this process and its
workers (Linux), minus that of the process before it reads anything.
"""

import argparse
import functools
import io
import itertools
import json
import multiprocessing
import os
import resource
import tarfile
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
import soundfile
import torch

from ssamba_upstream.corpora.manifest import read_manifest
from ssamba_upstream.pretraining import batches as reading
from ssamba_upstream.pretraining.batches import training_batches

BATCH, SAMPLES, FILES_IN_A_SHARD = 64, 400, 10
RESUMED_STEP = 300_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {"published manifest": measure_published_manifest(Path(folder), options.files),
                    "manifest": measure_manifest(Path(folder), options.files, options.workers),
                    "shards": measure_shards(Path(folder), options.shards, options.workers)}
    measured["torch"] = torch.__version__
    text = json.dumps({"arguments": {name: vars(options)[name] for name in ("files", "shards", "workers")}, **measured},
                      indent=2)
    print(text)
    if options.out:
        options.out.write_text(text)


def measure_published_manifest(folder, files):
    """Return the seconds to read a manifest in the published format, and the memory: peak, and after reading."""
    manifest, before = folder / "made_up.json", memory()
    with manifest.open("w") as file:
        file.write('{"data": [' + json.dumps({"wav": path_of(0), "labels": "/m/09x0r,/m/04rlf"}))
        file.writelines(",\n" + json.dumps({"wav": path_of(i), "labels": "/m/09x0r,/m/04rlf"}) for i in range(1, files))
        file.write("]}")
    paths, seconds = timed(lambda: read_manifest(manifest))
    assert len(paths) == files
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"reading": seconds, "MiB, at the most": round(most - before), "MiB, read": memory() - before}


def path_of(number):
    return f"/corpora/audioset/unbalanced_train/part{number % 100:02d}/Y{number:011d}.flac"


def measure_manifest(folder, files, workers):
    """Return seconds to the first batch of a new and a resumed run and for a shuffle, and memory after an epoch."""
    manifest = folder / "made_up.jsonl"
    with manifest.open("w") as file:
        file.writelines(json.dumps({
            "path": path_of(i), "duration": 10.0, "rate": 16000, "channels": 1}) + "\n" for i in range(files))
    reading.read_clip = lambda *arguments, **options: torch.zeros(SAMPLES)
    before = memory()
    measured = {"MiB, before": before}
    batches, measured["first batch"] = timed(lambda: begin([manifest], workers))
    measured["MiB, begun"] = memory() - before
    _, measured["walk of an epoch"] = timed(functools.partial(walk, batches, files // BATCH))
    measured["MiB, after an epoch"] = memory() - before
    del batches
    _, measured["first batch, resumed"] = timed(lambda: begin([manifest], workers, position=RESUMED_STEP))
    _, measured["shuffle"] = timed(lambda: np.random.default_rng(0).permutation(files))
    return measured


def measure_shards(folder, shards, workers):
    """Return the seconds until the first batch from tar files, new and resumed after 9/10 of a pass, and memory."""
    audio = io.BytesIO()
    soundfile.write(audio, np.zeros(SAMPLES), 16000, format="FLAC")
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for number in range(FILES_IN_A_SHARD):
                entry = tarfile.TarInfo(f"{shard * FILES_IN_A_SHARD + number:08d}.flac")
                entry.size = len(audio.getvalue())
                tar.addfile(entry, io.BytesIO(audio.getvalue()))
    source, measured, before = f"{folder}/*.tar", {}, memory()
    batches, measured["first batch"] = timed(lambda: begin([source], workers))
    count = shards * FILES_IN_A_SHARD * 9 // 10 // BATCH
    last, measured["walk of 9/10 of a pass"] = timed(functools.partial(walk, batches, count))
    measured["MiB, after the walk"] = memory() - before
    del batches
    _, measured["first batch, resumed"] = timed(lambda: begin([source], workers, position=last.position))
    return measured


def begin(sources, workers, position=None):
    batches = training_batches(sources, [(BATCH, SAMPLES)], seed=0, position=position, workers=workers)
    next(batches)
    return batches


def walk(batches, count):
    """Return the last of ``count`` batches."""
    return deque(itertools.islice(batches, count), maxlen=1).pop()


def timed(call):
    started = time.perf_counter()
    return call(), round(time.perf_counter() - started, 2)


def memory():
    """Return the MiB of this process and its workers; shared memory is counted once."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    kilobytes = 0
    for process in processes:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return round(kilobytes / 1024)


if __name__ == "__main__":
    main()
