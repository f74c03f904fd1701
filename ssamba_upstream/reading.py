"""Reading of recordings in several threads, in parallel with computation."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

from .audio import AudioError

THREADS = 8  # more than cores, because decoding a file takes less time than waiting for it


def read_ahead(read, batches):
    """Read batches ahead: the next one is read while the current one is used.

    Args:
        read: function from an entry of a batch to its waveform; may raise AudioError.
        batches: iterable of lists of entries.

    Yields:
        for each batch, a dict from entry to waveform or AudioError, in the order of the batch.
    """
    pool, reading = ThreadPoolExecutor(THREADS), deque()
    try:
        for batch in batches:
            reading.append({entry: pool.submit(_read_or_error, read, entry) for entry in batch})
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


def _read_or_error(read, entry):
    try:
        return read(entry)
    except AudioError as error:
        return error


def _results(futures):
    return {entry: future.result() for entry, future in futures.items()}
