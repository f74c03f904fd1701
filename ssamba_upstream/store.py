"""A store of hidden states on disk, computed once for each waveform and each description of the computation.

``FOLDER/<hash>`` contains the hidden states of one description, such as a checkpoint with its options. It has a
``description.json`` and an LMDB environment, which several processes can read and write at once. Waveforms are
identified by their samples, so random crops, splits and corpora need no bookkeeping. LMDB commits a batch entirely or
not at all, so incomplete entries are never read.
"""

import hashlib
import json
import os
import shutil
import struct
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import torch

from .files import json_hash, write_json

# Raise this when the same checkpoint, options and waveform give different hidden states.
NUMERICS = 6

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DESCRIPTION = "description.json"
MOST_OPEN = 8  # environments; each maps as many bytes of address space as its disk has
HEADER = "<qqq"  # layers, frames and width, before the values of an entry


class StoreError(ValueError):
    """Hidden states that cannot be stored as requested. The message says what to do."""


@dataclass(frozen=True)
class StoredStates:
    """The hidden states of one description in a store's folder.

    Attributes:
        path: folder of the hidden states.
        description: see :class:`HiddenStateStore`.
        waveforms: number of stored waveforms.
        layers, width: number of hidden states and of their features; 0 if nothing is stored.
        size: size on disk in bytes.
        used: time of the last use, in seconds since the epoch.
    """

    path: Path
    description: dict
    waveforms: int
    layers: int
    width: int
    size: int
    used: float

    @property
    def outdated(self):
        """True if these hidden states come from another version of the numerics, so they are never read."""
        return self.description.get("numerics") != NUMERICS


class HiddenStateStore:
    """A store for the hidden states of one description.

    Args:
        folder: folder of the store, which can contain the hidden states of any number of descriptions.
        description: everything that determines the hidden states of a waveform, as dicts, lists, strings and numbers;
            ``dtype`` and the version of the numerics are added.
        dtype: storage dtype: "float16", "bfloat16" or "float32". Values that are read differ from those written by the
            rounding to it.
        limit: size limit of the whole folder in bytes. Default: the disk.

    Raises:
        StoreError: If the dtype is unknown.
    """

    def __init__(self, folder, description, dtype="float16", limit=None):
        if dtype not in DTYPES:
            raise StoreError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
        self.folder, self.limit, self.dtype = Path(folder), limit, DTYPES[dtype]
        self.description = {**description, "dtype": dtype, "numerics": NUMERICS}
        self.path = self.folder.resolve() / json_hash(self.description)[:32]
        self.full = None
        if (self.path / DESCRIPTION).is_file():
            os.utime(self.path / DESCRIPTION)  # its modification time is that of the last use
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.description, self.path / DESCRIPTION)

    def read_or_compute(self, wavs, compute, layer=None):
        """Return the hidden states of waveforms, and store those that had to be computed.

        Args:
            wavs: list of (samples,) float32.
            compute: function from a list of waveforms to a list of their hidden states, (layers, frames, width).
            layer: see :meth:`read`.

        For results and errors see :meth:`read` and :meth:`round`. Stored and computed values are both rounded to the
        store's dtype.
        """
        keys = [waveform_key(wav) for wav in wavs]
        return self.read(keys, layer, self.keep_missing(dict(zip(keys, wavs)), compute))

    def keep_missing(self, wavs, compute):
        """Compute and store the missing hidden states of waveforms, a dict by key. Return a dict of those that could
        not be stored because the store is full."""
        keys = [*wavs]
        missing = [keys[i] for i in self.missing(keys)]
        if not missing:
            return {}
        computed = dict(zip(missing, (self.round(states).cpu() for states in compute([wavs[key] for key in missing]))))
        was_full = self.full
        if self.write(computed) and not was_full:
            warnings.warn(f"{self.folder} cannot store more hidden states: {self.full}. Work continues; missing hidden "
                          "states are computed.", RuntimeWarning, stacklevel=2)
        return computed if self.full else {}

    def read(self, keys, layer=None, unkept=None):
        """Read the hidden states of several waveforms.

        Args:
            keys: see :func:`waveform_key`.
            layer: index of the only layer to read. Default: all layers.
            unkept: hidden states by key that could not be stored, as passed to :meth:`write`.

        Returns:
            (layers, waveforms, frames, width) in the store's dtype, zero-padded to the longest waveform; and the number
            of frames of each waveform. Layers come first so that their weighted sum is one pass over memory.

        Raises:
            KeyError: If a key is in neither the store nor ``unkept``.
            IndexError: If there is no such layer.
        """
        unkept = {key: _encode(states) for key, states in (unkept or {}).items()}
        with self._begin(buffers=True) as transaction:
            found = [unkept.get(key) or transaction.get(key) for key in keys]
            if None in found:
                raise KeyError(keys[found.index(None)])
            found = [_decode(value, self.dtype, layer) for value in found]
            layers, _, width = found[0].shape
            frames = [states.shape[1] for states in found]
            stacked = _empty((layers, len(keys), max(frames), width), self.dtype)
            for states, count, place in zip(found, frames, _as_numpy(stacked).swapaxes(0, 1)):
                place[:, :count], place[:, count:] = states, 0
        return stacked, frames

    def missing(self, keys):
        """Return the indices of the keys that are not in the store."""
        with self._begin(buffers=True) as transaction:
            return [i for i, key in enumerate(keys) if transaction.get(key) is None]

    def write(self, states):
        """Store hidden states: all of them, or none once the limit is reached or the disk is full.

        Args:
            states: dict from key to (layers, frames, width) in the store's dtype.

        Returns:
            None, or the reason why nothing is stored from now on. Earlier entries stay readable.
        """
        encoded = {key: _encode(values) for key, values in states.items()}
        size = sum(map(len, encoded.values()))
        if not self.full and self.limit is not None and folder_bytes(self.folder) + size > self.limit:
            self.full = f"it has reached its limit of {gigabytes(self.limit)}"
        if self.full or not states:
            return self.full
        try:
            with self._begin(write=True) as transaction:
                for key, value in encoded.items():
                    transaction.put(key, value, overwrite=False)
        except lmdb.Error as error:  # a full disk is also reported as an input/output error
            self.full = f"its disk is full, or cannot be written to ({error})"
        return self.full

    def round(self, states):
        """Convert hidden states of any shape to the store's dtype.

        Raises:
            StoreError: If values are not finite, or too large for that dtype.
        """
        rounded = states.to(self.dtype)
        if torch.isfinite(rounded).all():
            return rounded
        if torch.isfinite(states).all():
            raise StoreError(f"Hidden states of up to {states.abs().max():.3g} are too large for float16. Use bfloat16 "
                             "or float32.")
        raise StoreError("Hidden states are NaN or infinite. Check the checkpoint, and compute in float32 if you use "
                         "another precision.")

    def _begin(self, **options):
        return _environment(self.path).begin(**options)


def waveform_key(wav):
    """Return the key of a waveform, (samples,) float32: the SHA-256 of its samples."""
    return hashlib.sha256(wav.detach().cpu().contiguous().numpy()).digest()


def state_hash(module):
    """Return the SHA-256 of a module's parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def contents(folder):
    """Return a store's contents as a list of :class:`StoredStates`, most recently used first."""
    found = [_stored_states(path.parent) for path in Path(folder).glob(f"*/{DESCRIPTION}")]
    return sorted(found, key=lambda states: states.used, reverse=True)


def remove_unused(folder, days):
    """Remove hidden states that have not been used for some days, and those of other versions of the numerics. Return
    a list of their :class:`StoredStates`."""
    oldest = time.time() - 86400 * days
    removed = [states for states in contents(folder) if states.outdated or states.used <= oldest]
    for states in removed:
        (states.path / DESCRIPTION).unlink()  # from now on the rest is never read
        if environment := _environments.pop(states.path.resolve(), None):
            environment.close()
        shutil.rmtree(states.path)
    return removed


def folder_bytes(folder):
    """Return the size of a store's folder on disk in bytes."""
    return sum(file.stat().st_size for file in Path(folder).glob("*/data.mdb"))


def gigabytes(size):
    """Format a number of bytes, for example "1.50 GB"."""
    return f"{size / 1e9:.2f} GB"


_environments = {}  # by path, because LMDB allows only one environment per process and path


def _environment(path):
    if path not in _environments:
        largest = shutil.disk_usage(path).total
        environment = lmdb.open(str(path), map_size=largest, max_readers=512, readahead=False)
        environment.reader_check()  # frees the slots of killed readers
        _environments[path] = environment
        if len(_environments) > MOST_OPEN:
            _environments.pop(next(iter(_environments))).close()
    return _environments[path]


def _close_environments():
    while _environments:
        _environments.popitem()[1].close()


os.register_at_fork(after_in_child=_close_environments)  # a forked process must open its own


def _stored_states(path):
    description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    used = (path / DESCRIPTION).stat().st_mtime
    if not (path / "data.mdb").is_file():
        return StoredStates(path, description, 0, 0, 0, 0, used)
    with _environment(path.resolve()).begin(buffers=True) as transaction:
        cursor = transaction.cursor()
        layers, _, width = struct.unpack_from(HEADER, cursor.value()) if cursor.first() else (0, 0, 0)
        waveforms = transaction.stat()["entries"]
    return StoredStates(path, description, waveforms, layers, width, (path / "data.mdb").stat().st_size, used)


def _empty(shape, dtype):
    """Return an uninitialised CPU tensor of NumPy's memory, for which it requests huge pages: fewer page faults."""
    return torch.from_numpy(np.empty(shape, _WHOLE[dtype.itemsize])).view(dtype)


def _encode(states):
    return struct.pack(HEADER, *states.shape) + _as_numpy(states.contiguous()).tobytes()


def _decode(value, dtype, layer):
    """View an entry as (layers, frames, width) of whole numbers as wide as the dtype, without a copy."""
    layers, frames, width = struct.unpack_from(HEADER, value)
    found = np.frombuffer(value, _WHOLE[dtype.itemsize], offset=struct.calcsize(HEADER)).reshape(layers, frames, width)
    return found if layer is None else found[range(layers)[layer]][None]


def _as_numpy(states):
    return states.view(_WHOLE_IN_TORCH[states.dtype.itemsize]).numpy()  # numpy has no bfloat16


_WHOLE, _WHOLE_IN_TORCH = {2: np.int16, 4: np.int32}, {2: torch.int16, 4: torch.int32}
