"""Classifiers and embeddings over recordings of any length, by windows: memory is bounded by a window's length.

A recording is cut into windows of equal length, of which one begins every so many seconds; the last one is the first
that reaches the recording's end, and may be shorter. Windows overlap where they are longer than that distance.
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
from ..network.classification import (
    MULTI,
    WINDOWS_AT_ONCE,
    SsambaClassifier,
)

COLUMNS = ("file", "start", "end", "label", "score")
TABLE_FORMAT = 2  # of the journal; to be raised when an older one cannot be continued
THRESHOLD = 0.5
"""From which score on a classifier for several labels at once is taken to have heard one."""


class ClassificationError(ValueError):
    """Recordings that cannot be classified as asked for; the message says why."""


def window_starts(samples, window, every, first=0):
    """Yield the samples at which windows begin.

    Args:
        samples: length of the recording, above 0.
        window: length of a window.
        every: distance from the start of one window to that of the next; need not be whole.
        first: number of the first window wanted, from 0. Default: 0.
    """
    for number in itertools.count(first):
        start = round(number * every)
        if start >= samples or number and round((number - 1) * every) + window >= samples:
            return
        yield start


class WindowClassifier:
    """A fine-tuned classifier, of clips or of seconds, and how it reads a recording.

    Args:
        folder: of the classifier, as fine-tuning writes it; or its name, see
            :func:`ssamba_upstream.downloads.find_checkpoint`.
        every: from the start of one window to that of the next, in seconds. Default: the windows' length, that of the
            clips of the classifier's feature extractor, or the whole seconds in it.
        device: on which the network computes.

    Attributes:
        labels: names of the classes.
        window, every: in seconds.
        span: what is scored, in seconds: a window, or, by a classifier of seconds, one second of it.
        several: whether a span can have several labels, each with a probability of its own.

    Raises:
        ClassificationError: the folder holds no classifier, or ``every`` is not above 0.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
    """

    def __init__(self, folder, every=None, device="cpu"):
        folder = find_checkpoint(folder)
        model = load_model(folder, model_class=None)
        if not isinstance(model, SsambaClassifier):
            raise ClassificationError(f"{folder} holds a {type(model).__name__}; expected a "
                                      "SsambaForAudioClassification or SsambaForAudioFrameClassification")
        if not (folder / "preprocessor_config.json").is_file():
            raise CheckpointError(f"{folder} has no preprocessor_config.json, which tells a classifier's input; give "
                                  "the folder that fine-tuning wrote")
        self.model, self.device = model.to(device), device
        self.extractor = SsambaFeatureExtractor.from_pretrained(folder)
        self.labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.several = model.config.problem_type == MULTI
        self.extractor.whole_seconds = model.labels_seconds  # folders written before this field do not say
        self.samples = self.extractor.clip_samples
        self.window = self.samples / self.extractor.sampling_rate
        self.span = 1.0 if model.labels_seconds else self.window
        self.every = self.window if every is None else every
        if not self.every > 0:
            raise ClassificationError(f"every must be above 0 seconds; got {every}")

    def scores(self, path, first=0):
        """Yields the windows of an audio file, some at a time.

        Args:
            path: the file.
            first: the number of the first window wanted, from 0.

        Yields:
            how many windows these are, a list of (start, end) in seconds of what is scored in them, see ``span``, and
            the probabilities (spans, classes) of float32 on the CPU: softmax over the classes, or a sigmoid of each
            where a span can have several.

        Raises:
            AudioError: The file cannot be read, or not to its end; the windows before have been yielded.
        """
        header = read_header(path)
        windows = _windows(path, header, self.samples, self.extractor.sampling_rate, self.every, first)
        for batch in _at_once(windows, WINDOWS_AT_ONCE):
            starts, wavs = zip(*batch)
            spans = [self._spans(start, header) for start in starts]
            scores = [window[: len(run)] for window, run in zip(self._probabilities(list(wavs)), spans)]
            yield len(batch), list(itertools.chain.from_iterable(spans)), torch.cat(scores)

    def recording_scores(self, path):
        """(classes,): the mean of the probabilities of a file's spans, weighted by their lengths, of which the last
        may be shorter; see :meth:`scores`."""
        seconds, total = 0.0, 0.0
        for _, spans, probabilities in self.scores(path):
            lengths = torch.tensor([end - start for start, end in spans])
            seconds, total = seconds + lengths.sum(), total + lengths @ probabilities
        return total / seconds

    def _spans(self, start, header):
        """(start, end) in seconds of what is scored in the window that begins at a sample of the file."""
        starts = [start + round(i * self.span * header.rate) for i in range(round(self.window / self.span))]
        return [(begin / header.rate, min(begin / header.rate + self.span, header.duration))
                for begin in starts if begin < header.samples]

    @torch.no_grad()
    def _probabilities(self, wavs):
        """list of (samples,) -> (windows, spans in each, classes)"""
        inputs = self.extractor(wavs, return_tensors="pt")["input_values"]
        logits = self.model(inputs.to(self.device)).logits.float()
        probabilities = logits.sigmoid() if self.several else logits.softmax(dim=-1)
        return probabilities.reshape(len(wavs), -1, len(self.labels)).cpu()


@torch.no_grad()
def embed_recording(encoder, path, every=None):
    """The embedding of an audio file of any length.

    Args:
        encoder: a :class:`ssamba_upstream.frames.FrameEncoder`; windows are those that it reads, see
            :class:`ssamba_upstream.frames.UpstreamOptions`.
        path: the file.
        every: from the start of one window to that of the next, in seconds. Default: the windows' length, without
            overlap.

    Returns:
        (D,) float32: the mean over all frames of all windows of the last hidden state's norm. Each window is heard by
        itself; a frame that lies in several counts as often. A causal network hears the recording as one stream.

    Raises:
        AudioError: the file cannot be read, or not to its end.
        ValueError: ``every`` is not above 0, or is given for a causal network.
    """
    windowing = encoder.windowing
    if windowing.whole and every is not None:
        raise ValueError("a causal network hears recordings as one stream. Leave every out")
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
    """Write what a classifier hears in recordings as a CSV with the columns file, start, end, label and score.

    A line is a label of a window, or, by a classifier of seconds, of one second of it, from ``start`` to ``end`` in
    seconds, with its probability. Lines are there as soon as windows are heard; ``OUT.progress`` says how far each
    recording got, and its absolute path, size and time of modification. So the same command continues an interrupted
    run in the middle of a recording, and recordings that are done are not heard again. ``file`` is the recording as it
    was given.

    Args:
        model: folder of a classifier, see :class:`WindowClassifier`.
        recordings: audio files of any rate; channels are averaged.
        out: the CSV, new or of an earlier run with the same classifier and settings.
        every: from the start of one window to that of the next, in seconds. Default: the windows' length.
        all_labels: a line for every label. Default: for the best one; where a window can have several, for those from
            0.5.
        device: on which the network computes.
        report: called with a sentence about each recording that cannot be read to its end, of which the windows before
            stay, or that the table cannot take: it has changed since the table heard it, or the table has another
            recording of its name. The other recordings are heard.

    Returns:
        the number of recordings heard to their end, and of those left out.

    Raises:
        ClassificationError: no recordings, or the table of another classifier or other settings.
        BlockingIOError: Another process is writing the table.
        CheckpointError: see :class:`WindowClassifier`.
    """
    recordings = [str(recording) for recording in recordings]
    if not recordings:
        raise ClassificationError("there are no recordings to classify")
    classifier = WindowClassifier(model, every, device)
    settings = {
        "model": content_hash(model), "every": classifier.every, "all_labels": all_labels, "format": TABLE_FORMAT,
    }
    heard = left_out = 0
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
                report(f"{recording} is left out from window {windows} on: {error.reason}")
                left_out += 1
            except ClassificationError as error:
                report(f"{recording} is left out: {error}")
                left_out += 1
            else:
                table.append({**entry, "windows": windows, "finished": True}, [])
                heard += 1
    return heard, left_out


def _windows(path, header, samples, sampling_rate, every, first=0):
    """An iterator over the windows of an audio file: the sample of the file at which each begins, and its waveform.

    Args:
        samples: length of a window, at the sampling rate.
        every: in seconds.
        first: number of the first window wanted.
    """
    window = math.ceil(samples * header.rate / sampling_rate)  # as many of the file's samples as a window is read from
    starts = list(window_starts(header.samples, window, every * header.rate, first))
    return zip(starts, read_windows(path, starts, samples, sampling_rate))


def _at_once(windows, count):
    """Yield lists of ``count`` windows. If one cannot be read, those before it come first, then its AudioError."""
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
            raise ClassificationError(f"{path} is there without {journal.name}, which says what is in it; give another "
                                      "name, or remove it first")
        with Journal(journal) as entries, open(path, "a+b") as file:
            yield _Table(file, entries, settings)


class _Table:
    """A CSV that grows, and a journal of what is in it: the settings, then an entry for every batch of windows.

    Args:
        file: the CSV, opened to be read and appended to.
        journal: its Journal.
        settings: that the lines are made with.

    Raises:
        ClassificationError: The table was made with other settings, or has lost lines.
    """

    def __init__(self, file, journal, settings):
        if not journal.entries:
            journal.append(settings)
        self.file, self.journal = file, journal
        began, *entries = journal.entries
        if began != settings:
            raise ClassificationError(f"{file.name} was made with {json.dumps(began)}; now it is "
                                      f"{json.dumps(settings)}: give another name")
        size = entries[-1]["size"] if entries else 0
        if os.path.getsize(file.name) < size:
            raise ClassificationError(f"{file.name} has lost lines since it was written. Give another name")
        file.truncate(size)
        if not size:
            self._write([COLUMNS])
        self.entries = {entry["source"][0]: entry for entry in entries}
        self.names = {entry["recording"]: entry["source"][0] for entry in entries}

    def entry(self, recording, source):
        """The last entry of a recording, or a first one.

        Raises:
            ClassificationError: The table holds another recording of that name, or this one before it changed.
        """
        path = self.names.get(recording, source[0])
        if path != source[0]:
            raise ClassificationError(f"the table has {path} under this name. Give the absolute path")
        first = {"recording": recording, "source": source, "windows": 0, "finished": False}
        entry = self.entries.get(path, first)
        if entry["source"] != source:
            raise ClassificationError("it has changed since the table heard it. Give another table")
        return entry

    def append(self, entry, lines):
        """Add lines, after which the entry holds."""
        entry = {**entry, "size": self._write(lines)}
        self.journal.append(entry)
        self.entries[entry["source"][0]], self.names[entry["recording"]] = entry, entry["source"][0]

    def _write(self, lines):
        """Append lines; return the size of the table."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self.file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        self.file.flush()
        return self.file.tell()
