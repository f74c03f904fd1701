"""``ssamba extract``: writing the frame-level hidden states of recordings, one file each."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from .audio import AudioError, batches_by_length, expected_seconds, identity, read_clip
from .checkpoint import content_hash
from .devices import send
from .files import Journal, locked, replacing, write_json
from .frames import FrameEncoder, UpstreamOptions
from .reading import read_ahead, read_all
from .store import HiddenStateStore, StoreError

FORMATS = ("safetensors", "npy")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
SETTINGS, SOURCES = "extraction.json", "sources.jsonl"


class ExtractionError(ValueError):
    """Hidden states that cannot be extracted as requested. The message says why."""


def extract(recordings: Iterable[str | os.PathLike], checkpoint: str | os.PathLike, out: str | os.PathLike,
            layers: Sequence[int] | None = None, dtype: str = "float32", file_format: str = "safetensors",
            batch_secs: float = 60.0, device: str = "cpu", report: Callable[[str], None] = print,
            cache: str | os.PathLike | None = None, **options) -> tuple[int, int]:
    """Write the hidden states of recordings.

    ``OUT/<path below the recordings' common folder>.<format>`` contains ``hidden_states``, (layers, frames, D); a "npy"
    file contains only that array. ``OUT/extraction.json`` records the settings, and ``OUT/sources.jsonl`` each file's
    recording by absolute path, size and modification time. Files of unchanged recordings are not computed again, so the
    same command continues an interrupted run. Files made from other recordings are not replaced.

    Args:
        recordings: paths of audio files (any sampling rate; channels are averaged).
        checkpoint: see :func:`ssamba_upstream.checkpoint.load_model`.
        out: output folder, new or from an earlier run with the same settings.
        layers: indices of the hidden states to write, from 0 (the tokens) to depth. Default: all.
        dtype: dtype of the files, "float32" (default) or "float16".
        file_format: "safetensors" or "npy".
        batch_secs: seconds of audio per batch; recordings of similar length are batched together.
        device: device that the network runs on.
        report: called with a sentence about each recording that is skipped because it cannot be read, its hidden states
            exceed the dtype's range, or its file was made from another recording.
        cache: folder of a :class:`ssamba_upstream.store.HiddenStateStore`, for example of ``run_downstream.py
            --cache``, from which hidden states are read and to which computed ones are added. Default: none.
        options: fields of :class:`ssamba_upstream.frames.UpstreamOptions`.

    Returns:
        the number of files written, and the number of recordings skipped.

    Raises:
        ExtractionError: If there are no recordings, two have the same name, a layer is unknown, or the folder has
            another checkpoint or other settings.
        BlockingIOError: If another process is writing into the folder.
        CheckpointError, ValueError: see :meth:`ssamba_upstream.frames.FrameEncoder.from_checkpoint`.
    """
    options = UpstreamOptions(**options)
    encoder = FrameEncoder.from_checkpoint(checkpoint, options).to(device).eval()
    depth = encoder.model.config.num_hidden_layers
    layers = list(range(depth + 1)) if layers is None else list(layers)
    if not layers or not all(0 <= layer <= depth for layer in layers):
        raise ExtractionError(f"layers must be from 0 to {depth}; got {layers}")
    out = Path(out)
    targets = _targets(recordings, out, file_format)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _check_settings(out, {
            "checkpoint": content_hash(checkpoint), "config": encoder.model.config.to_dict(), **asdict(options),
            "layers": layers, "dtype": dtype, "format": file_format, "sources": SOURCES,
        })
        with Journal(out / SOURCES) as journal:
            output = _Output(out, file_format, journal)
            missing, refused = _missing(targets, output, report)
            store = cache and HiddenStateStore(cache, encoder.description(), dtype)
            compute = partial(_kept_hidden_states, encoder, store) if store else partial(_hidden_states, encoder)
            written = _write_missing(missing, output, encoder, compute, layers, dtype, batch_secs, report)
    return written, refused + len(missing) - written


def _missing(targets, output, report):
    """Return the recordings without hidden states, each with its target and identity; and the number refused."""
    missing, refused = {}, 0
    for recording, target in targets.items():
        try:
            source = identity(recording)
            if not output.holds(target, source):
                missing[recording] = target, source
        except (AudioError, ExtractionError) as error:
            report(f"{recording} is skipped: {getattr(error, 'reason', error)}")
            refused += 1
    return missing, refused


def _write_missing(missing, output, encoder, compute, layers, dtype, batch_secs, report):
    """Write the hidden states of the readable recordings; return their number."""
    recordings, written = list(missing), 0
    batches = batches_by_length(read_all(expected_seconds, recordings), batch_secs)
    for wavs in read_ahead(
        partial(read_clip, sampling_rate=encoder.sampling_rate), ([recordings[i] for i in batch] for batch in batches),
        lambda error: report(f"{error.file} is skipped: {error.reason}"),
        total=len(recordings), desc="extracting", unit="file",
    ):
        for recording, states in zip(wavs, compute([*wavs.values()])):
            states = states[layers]
            kept = states.to(DTYPES[dtype])
            if kept.isfinite().all():
                output.write(kept, *missing[recording])
                written += 1
            else:
                report(f"{recording} is skipped: its hidden states "
                       + (f"exceed the range of {dtype}; extract float32" if states.isfinite().all() else
                          "are NaN or infinite; check the checkpoint's weights"))
    return written


class _Output:
    """Files of hidden states, and the journal of their sources."""

    def __init__(self, folder, file_format, journal):
        self.folder, self.file_format, self.journal = folder, file_format, journal
        self.sources = {entry["file"]: entry["source"] for entry in journal.entries}

    def holds(self, target, source):
        """Return True if a file exists and was made from the recording with this identity; raise an ExtractionError if
        it was made from another one."""
        if not target.exists():
            return False
        made_from = self.sources.get(self._name(target), ["an unknown recording"])
        if made_from[0] != source[0]:
            raise ExtractionError(f"{target} was made from {made_from[0]}. Extract this one into another folder")
        return made_from == source

    def write(self, states, target, source):
        """Write a file, after recording its source in the journal."""
        target.unlink(missing_ok=True)  # so that an outdated file does not pass for the journal's new source
        self.journal.append({"file": self._name(target), "source": source})
        _write(states, target, self.file_format)

    def _name(self, target):
        return target.relative_to(self.folder).as_posix()


@torch.no_grad()
def _hidden_states(encoder, wavs):
    """Map a list of (samples,) to a list of hidden states, (depth + 1, frames, D) on the CPU."""
    layers = encoder([send(wav, encoder.model.device) for wav in wavs]).hidden_states
    return [states.cpu() for states in encoder.split(layers, wavs)]


def _kept_hidden_states(encoder, store, wavs):
    """Return :func:`_hidden_states` from a store, computing and storing missing ones."""
    try:
        stacked, counts = store.read_or_compute(wavs, partial(_hidden_states, encoder))
    except StoreError:  # some are not finite or too large for the dtype; the caller reports which
        return _hidden_states(encoder, wavs)
    return [states[:, :count] for states, count in zip(stacked.unbind(1), counts)]


def _targets(recordings, out, file_format):
    if file_format not in FORMATS:
        raise ExtractionError(f"the format must be one of {', '.join(FORMATS)}; got {file_format!r}")
    recordings = [Path(recording).absolute() for recording in recordings]
    if not recordings:
        raise ExtractionError("there are no recordings to extract")
    root = recordings[0].parent
    while not all(recording.is_relative_to(root) for recording in recordings):
        root = root.parent
    targets = {r: out / r.relative_to(root).with_suffix(f".{file_format}") for r in recordings}
    if len(set(targets.values())) < len(targets):
        raise ExtractionError("two recordings differ only in their extension. They would be written to the same file")
    return targets


def _check_settings(out, settings):
    file = out / SETTINGS
    settings = json.loads(json.dumps(settings))
    if file.exists():
        before = json.loads(file.read_text())
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ExtractionError(f"{out} has hidden states with other settings ({', '.join(changed)}). Choose a new "
                                  "folder")
        return
    write_json(settings, file)


def _write(states, target, file_format):
    with replacing(target) as temporary:
        if file_format == "npy":
            with temporary.open("wb") as file:
                np.save(file, states.numpy())
        else:
            save_file({"hidden_states": states.contiguous()}, temporary)
