"""Classifiers and embeddings over recordings of any length, with memory bounded by the length of a window.

A recording is split into windows of equal length that start at regular intervals. The last window is the first that
reaches the recording's end, and may be shorter. Windows overlap if they are longer than the interval.
"""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ..audio import AudioError, identity, read_header, read_windows
from ..checkpoint import CheckpointError, content_hash, find_checkpoint, load_model
from ..feature_extraction import SsambaFeatureExtractor
from ..files import Journal, locked
from ..network.classification import MULTI, WINDOWS_AT_ONCE, SsambaClassifier

COLUMNS = ("file", "start", "end", "label", "score")
TABLE_FORMAT = 2  # of the journal; raise it when older journals cannot be continued
THRESHOLD = 0.5
"""Smallest score at which a multi-label classifier reports a label."""


class ClassificationError(ValueError):
    """Recordings that cannot be classified as requested. The message says why."""


def window_starts(samples, window, every, first=0):
    """Yield the samples at which windows start, from window number ``first``.

    The lengths of the recording, of a window, and of the interval between starts are in samples; the latter may be
    fractional.
    """
    for number in itertools.count(first):
        start = round(number * every)
        if start >= samples or number and round((number - 1) * every) + window >= samples:
            return
        yield start


def load_extractor(folder, model):
    """Load the feature extractor of a classifier's folder; raise a CheckpointError if there is none."""
    if not (folder / "preprocessor_config.json").is_file():
        raise CheckpointError(f"{folder} has no preprocessor_config.json, which defines a classifier's input. Give the "
                              "folder that fine-tuning wrote")
    extractor = SsambaFeatureExtractor.from_pretrained(folder)
    extractor.whole_seconds = model.labels_seconds  # missing in folders older than this field
    return extractor


class WindowClassifier:
    """A fine-tuned classifier, of clips or of seconds, that scores recordings window by window.

    Args:
        folder: classifier's folder, as written by fine-tuning; or its name, see
            :func:`ssamba_upstream.downloads.find_checkpoint`.
        every: interval between window starts in seconds. Default: the window length, which is the clip length of the
            classifier's feature extractor, or the whole seconds in it.
        device: device that the network runs on.

    Attributes:
        labels: names of the classes.
        window, every: window length and interval in seconds.
        span: length of a scored part in seconds: the window length, or one second for a classifier of seconds.
        several: True if a span can have several labels, each with its own probability.

    Raises:
        ClassificationError: If the folder does not contain a classifier, or ``every`` is not above 0.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
    """

    def __init__(self, folder, every=None, device="cpu"):
        folder = find_checkpoint(folder)
        model = load_model(folder, model_class=None)
        if not isinstance(model, SsambaClassifier):
            raise ClassificationError(f"{folder} contains a {type(model).__name__}; expected a "
                                      "SsambaForAudioClassification or SsambaForAudioFrameClassification")
        self.model, self.device = model.to(device), device
        self.extractor = load_extractor(folder, model)
        self.labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.several = model.config.problem_type == MULTI
        self.samples = self.extractor.clip_samples
        self.window = self.samples / self.extractor.sampling_rate
        self.span = 1.0 if model.labels_seconds else self.window
        self.every = self.window if every is None else every
        if not self.every > 0:
            raise ClassificationError(f"every must be above 0 seconds; got {every}")

    def scores(self, path, first=0):
        """Yield the scores of an audio file's windows, several windows at a time.

        Args:
            path: path of the file.
            first: number of the first window to score, from 0.

        Yields:
            the number of windows; a list of their spans' (start, end) in seconds, see ``span``; and the probabilities,
            (spans, classes) float32 on the CPU: softmax over the classes, or sigmoids if a span can have several.

        Raises:
            AudioError: If the file cannot be read to its end; earlier windows have been yielded.
        """
        header = read_header(path)
        windows = _windows(path, header, self.samples, self.extractor.sampling_rate, self.every, first)
        for batch in _at_once(windows, WINDOWS_AT_ONCE):
            starts, wavs = zip(*batch)
            spans = [self._spans(start, header) for start in starts]
            scores = [window[: len(run)] for window, run in zip(self._probabilities(list(wavs)), spans)]
            yield len(batch), list(itertools.chain.from_iterable(spans)), torch.cat(scores)

    def recording_scores(self, path):
        """Return the mean probabilities of a file's spans, (classes,), weighted by their lengths; see :meth:`scores`.

        The last span may be shorter."""
        seconds, total = 0.0, 0.0
        for _, spans, probabilities in self.scores(path):
            lengths = torch.tensor([end - start for start, end in spans])
            seconds, total = seconds + lengths.sum(), total + lengths @ probabilities
        return total / seconds

    def _spans(self, start, header):
        """Return (start, end) in seconds of each span of the window that starts at a sample of the file."""
        starts = [start + round(i * self.span * header.rate) for i in range(round(self.window / self.span))]
        return [(begin / header.rate, min(begin / header.rate + self.span, header.duration))
                for begin in starts if begin < header.samples]

    @torch.no_grad()
    def _probabilities(self, wavs):
        """Return the probabilities of windows, list of (samples,), as (windows, spans per window, classes)."""
        inputs = self.extractor(wavs, return_tensors="pt")["input_values"]
        logits = self.model(inputs.to(self.device)).logits.float()
        probabilities = logits.sigmoid() if self.several else logits.softmax(dim=-1)
        return probabilities.reshape(len(wavs), -1, len(self.labels)).cpu()


@torch.no_grad()
def embed_recording(encoder, path, every=None):
    """Return the embedding of an audio file of any length.

    Args:
        encoder: a :class:`ssamba_upstream.frames.FrameEncoder`, whose options determine the windows, see
            :class:`ssamba_upstream.frames.UpstreamOptions`.
        path: path of the file.
        every: interval between window starts in seconds. Default: the window length, without overlap.

    Returns:
        (D,) float32: the mean over all windows' frames of the last hidden state's norm. Windows are processed
        separately, and frames in several windows count several times. A causal network processes the recording as one
        stream.

    Raises:
        AudioError: If the file cannot be read to its end.
        ValueError: If ``every`` is not above 0, or is given for a causal network.
    """
    windowing = encoder.windowing
    if windowing.whole and every is not None:
        raise ValueError("a causal network processes recordings as one stream. Leave every out")
    every = windowing.window_secs if every is None else every
    if not every > 0:
        raise ValueError(f"every must be above 0 seconds; got {every}")
    windows = _windows(path, read_header(path), windowing.window_samples, windowing.front_end.sampling_rate, every)
    if windowing.whole:
        stream = encoder.stream()
        outputs = itertools.chain((stream.push(wav) for _, wav in windows), (stream.finish() for _ in range(1)))
    else:
        outputs = (encoder([wav.to(encoder.model.device)]) for _, wav in windows)
    count, total = 0, 0.0
    for frames in (output.last_hidden_state[0] for output in outputs):
        count, total = count + len(frames), total + frames.sum(dim=0)
    return (total / count).cpu()


def classify(model: str | os.PathLike, recordings: Iterable[str | os.PathLike], out: str | os.PathLike,
             every: float | None = None, all_labels: bool = False, device: str = "cpu",
             report: Callable[[str], None] = print) -> tuple[int, int]:
    """Classify recordings into a CSV with the columns file, start, end, label and score.

    Each line has a label and its probability for a window, or, with a classifier of seconds, for one second, from
    ``start`` to ``end`` in seconds; ``file`` is the recording's path as given. Lines are written as windows are
    processed. ``OUT.progress`` stores each recording's progress, absolute path, size and modification time, so the same
    command continues an interrupted run in the middle of a recording and skips finished recordings.

    Args:
        model: folder of a classifier, see :class:`WindowClassifier`.
        recordings: paths of audio files (any sampling rate; channels are averaged).
        out: path of the CSV, new or from an earlier run with the same classifier and settings.
        every: interval between window starts in seconds. Default: the window length.
        all_labels: If True, write a line for every label. Default: for the best label only, or, if a window can have
            several, for those with a score of at least 0.5.
        device: device that the network runs on.
        report: called with a sentence about each recording that is skipped: it cannot be read to its end (earlier
            windows stay), it has changed since it was added to the table, or the table has another recording with its
            name.

    Returns:
        the number of recordings processed to their end, and the number skipped.

    Raises:
        ClassificationError: If there are no recordings, or the table has another classifier or other settings.
        BlockingIOError: If another process is writing the table.
        CheckpointError: see :class:`WindowClassifier`.
    """
    recordings = [str(recording) for recording in recordings]
    if not recordings:
        raise ClassificationError("there are no recordings to classify")
    classifier = WindowClassifier(model, every, device)
    settings = {
        "model": content_hash(model), "every": classifier.every, "all_labels": all_labels, "format": TABLE_FORMAT,
    }
    processed = skipped = 0
    with _open_table(Path(out), settings) as table, tqdm(unit="window", desc="classifying", disable=None) as progress:
        for recording in dict.fromkeys(recordings):
            windows = 0
            try:
                entry = table.entry(recording, identity(recording))
                windows = entry["windows"]
                if entry["finished"]:
                    continue
                for count, spans, probabilities in classifier.scores(recording, windows):
                    windows += count
                    table.append({**entry, "windows": windows},
                                 _lines(entry["recording"], spans, probabilities, classifier, all_labels))
                    progress.update(count)
            except AudioError as error:
                report(f"{recording} is skipped from window {windows} on: {error.reason}")
                skipped += 1
            except ClassificationError as error:
                report(f"{recording} is skipped: {error}")
                skipped += 1
            else:
                table.append({**entry, "windows": windows, "finished": True}, [])
                processed += 1
    return processed, skipped


def _windows(path, header, samples, sampling_rate, every, first=0):
    """Return an iterator over an audio file's windows from number ``first``: each one's first sample in the file, and
    its waveform. Windows have ``samples`` at the sampling rate, and one starts every ``every`` seconds."""
    window = math.ceil(samples * header.rate / sampling_rate)  # window length in the file's own samples
    starts = list(window_starts(header.samples, window, every * header.rate, first))
    return zip(starts, read_windows(path, starts, samples, sampling_rate))


def _at_once(windows, count):
    """Yield lists of ``count`` windows. If one cannot be read, yield those before it, then raise its AudioError."""
    while True:
        batch, error = [], None
        try:
            for window in itertools.islice(windows, count):
                batch.append(window)
        except AudioError as unreadable:
            error = unreadable
        if batch:
            yield batch
        if error:
            raise error
        if len(batch) < count:
            return


def _lines(recording, spans, probabilities, classifier, all_labels):
    for (start, end), scores in zip(spans, probabilities.tolist()):
        found = sorted(zip(scores, classifier.labels), reverse=True)
        if not all_labels:
            found = [pair for pair in found if pair[0] >= THRESHOLD] if classifier.several else found[:1]
        yield from ((recording, f"{start:.3f}", f"{end:.3f}", label, f"{score:.4f}") for score, label in found)


@contextmanager
def _open_table(path, settings):
    journal = path.with_name(f"{path.name}.progress")
    with locked(path):
        if path.exists() and not journal.exists():
            raise ClassificationError(f"{path} exists without {journal.name}, which lists its contents. Choose another "
                                      "name, or remove the file first")
        with Journal(journal) as entries, open(path, "a+b") as file:
            yield _Table(file, entries, settings)


class _Table:
    """A growing CSV, and a journal of its contents: the settings, then an entry for every batch of windows."""

    def __init__(self, file, journal, settings):
        if not journal.entries:
            journal.append(settings)
        self.file, self.journal = file, journal
        began, *entries = journal.entries
        if began != settings:
            raise ClassificationError(f"{file.name} was made with {json.dumps(began)}, but the settings are now "
                                      f"{json.dumps(settings)}. Choose another name")
        size = entries[-1]["size"] if entries else 0
        if os.path.getsize(file.name) < size:
            raise ClassificationError(f"{file.name} has lost lines since it was written. Choose another name")
        file.truncate(size)
        if not size:
            self._write([COLUMNS])
        self.entries = {entry["source"][0]: entry for entry in entries}
        self.names = {entry["recording"]: entry["source"][0] for entry in entries}

    def entry(self, recording, source):
        """Return a recording's last entry, or a first one."""
        path = self.names.get(recording, source[0])
        if path != source[0]:
            raise ClassificationError(f"the table has {path} under this name. Give the absolute path")
        first = {"recording": recording, "source": source, "windows": 0, "finished": False}
        entry = self.entries.get(path, first)
        if entry["source"] != source:
            raise ClassificationError("it has changed since it was added to the table. Choose another table")
        return entry

    def append(self, entry, lines):
        """Append lines, then the entry that describes the table with them."""
        entry = {**entry, "size": self._write(lines)}
        self.journal.append(entry)
        self.entries[entry["source"][0]], self.names[entry["recording"]] = entry, entry["source"][0]

    def _write(self, lines):
        """Append lines; return the table's size in bytes."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self.file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        self.file.flush()
        return self.file.tell()
