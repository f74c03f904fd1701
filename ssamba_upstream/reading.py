"""Reading of recordings in several threads, in parallel with computation."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from .audio import AudioError

THREADS = 8  # more than cores, because decoding a file takes less time than waiting for it


def read_ahead(read, batches, report=None, **progress):
    """Read batches ahead: the next one is read while the current one is used.

    Args:
        read: function from an entry of a batch to its waveform; may raise AudioError.
        batches: iterable of lists of entries.
        report: called with the AudioError of each unreadable entry. Default: raise it.
        progress: arguments of the progress bar, a tqdm that counts entries.

    Yields:
        for each batch with readable entries, a dict from entry to waveform, in the order of the batch.
    """
    with tqdm(disable=None, **progress) as bar:
        for found in _read_ahead(read, batches):
            wavs = {}
            for entry, wav in found.items():
                if not isinstance(wav, AudioError):
                    wavs[entry] = wav
                elif report is None:
                    raise wav
                else:
                    report(wav)
            if wavs:
                yield wavs
            bar.update(len(found))


def _read_ahead(read, batches):
    pool, reading = ThreadPoolExecutor(THREADS), deque()
    try:
        for batch in batches:
            reading.append({entry: pool.submit(read_or_error, read, entry) for entry in batch})
            if len(reading) == 2:
                yield _results(reading.popleft())
        while reading:
            yield _results(reading.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def read_all(read, entries):
    """Return the list of ``read``'s results for all entries."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, entries))


def read_or_error(read, entry):
    """Return what ``read`` returns for an entry, or the AudioError that it raises."""
    try:
        return read(entry)
    except AudioError as error:
        return error


def _results(futures):
    return {entry: future.result() for entry, future in futures.items()}
