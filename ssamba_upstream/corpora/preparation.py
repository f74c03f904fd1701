"""Prepare downloaded data sets as labelled sets for fine-tuning and probing, and check them."""

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..audio import AudioError, read_header
from ..files import locked, replacing
from .audioset import AUDIOSET20K
from .data_set import PreparationError
from .esc50 import ESC50
from .labelled import COLUMNS, LabelledSet, split_labels
from .report import first
from .scenes import SCENE_SECONDS, mix_scenes
from .superb.speech_commands import SPEECH_COMMANDS_V1, SPEECH_COMMANDS_V2
from .urban_sound8k import URBAN8K_SCENES

SETS = {
    "audioset20k": AUDIOSET20K,
    "esc50": ESC50,
    "speech_commands_v1": SPEECH_COMMANDS_V1,
    "speech_commands_v2": SPEECH_COMMANDS_V2,
    "urban8k_scenes": URBAN8K_SCENES,
}


@dataclass
class PreparationReport:
    """A report on a prepared data set.

    Attributes:
        title: the data set's name.
        root: its folder.
        counts: number of recordings in each split.
        classes: number of classes.
        notes: sentences for the user.
        unreadable: a sentence for each unreadable recording, which is skipped.
    """

    title: str
    root: Path
    counts: dict[str, int]
    classes: int
    notes: list[str]
    unreadable: list[str]

    def __str__(self):
        width = max(map(len, self.counts))
        return "\n".join([
            f"{self.title} in {self.root}: {sum(self.counts.values()):,} recordings, {self.classes} classes",
            *(f"  {split:{width}}  {count:6,}" for split, count in self.counts.items()),
            *(f"  Note: {note}" for note in self.notes),
        ])


def prepare(name, root, out) -> PreparationReport:
    """Write a downloaded data set as a labelled set, see :func:`ssamba_upstream.corpora.labelled.read_labelled`.

    The set can be incomplete, for example with only a few of its classes; the report says what is included. The
    headers of all recordings are read, and unreadable recordings are skipped.

    Args:
        name: a name in SETS.
        root: the data set's folder.
        out: the CSV. Paths to files in its folder are relative, all others absolute. The scenes of "urban8k_scenes" are
            written to a folder next to it, named like it without the extension, see
            :func:`ssamba_upstream.corpora.scenes.mix_scenes`; an existing CSV is removed first.

    Raises:
        PreparationError: If the data set is missing, incomplete or laid out differently; the message describes the
            expected layout. No CSV is written then.
        BlockingIOError: If another process is writing the CSV.
    """
    data_set = SETS[name]
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    if out.suffix != ".csv":
        raise PreparationError(f"{out}: a labelled set's name must end in .csv")
    if (root / data_set.folder).is_dir():
        root = root / data_set.folder
    with locked(out):
        return _prepare(data_set, root, out)


def _prepare(data_set, root, out):
    try:
        if not root.is_dir():
            raise PreparationError("no such folder")
        recordings, notes = data_set.read(root)
        if not recordings:
            raise PreparationError("no recording is listed")
        recordings, unreadable = _readable(recordings)
        counts, classes = _compare(recordings, data_set, notes)
        if data_set.scenes:
            out.unlink(missing_ok=True)  # its labels may belong to other scenes than those written now
            recordings = mix_scenes(recordings, out.with_suffix(""), unreadable.append)
            scenes = Counter(fold for _, _, fold in recordings)
            notes.append(f"They form {len(recordings):,} scenes of {SCENE_SECONDS} s: "
                         + ", ".join(f"{count} of {fold}" for fold, count in scenes.items()) + ".")
        LabelledSet(*map(list, zip(*recordings)))
    except ValueError as error:
        raise PreparationError(f"{data_set.title} in {root}: {error}\n\n{data_set.layout}") from None
    _write(out, recordings)
    return PreparationReport(data_set.title, root, counts, classes, notes, list(map(str, unreadable)))


def _readable(recordings):
    """Return the recordings whose headers can be read, and the AudioErrors of the others."""
    kept, unreadable = [], []
    for recording in tqdm(recordings, "reading headers", unit=" files"):
        try:
            read_header(recording[0])
        except AudioError as error:
            unreadable.append(error)
        else:
            kept.append(recording)
    if not kept:
        raise PreparationError(f"none of {len(recordings):,} recordings can be read: {first(unreadable)}")
    return kept, unreadable


def _compare(recordings, data_set, notes):
    """Return (recordings in each split, number of classes), and add a note that compares them with the released set."""
    found = Counter(split for _, _, split in recordings)
    foreign = sorted(set(found) - set(data_set.released))
    if foreign:
        raise PreparationError(f"there are the splits {first(foreign)}; expected {', '.join(data_set.released)}")
    counts = {split: found[split] for split in data_set.released if found[split]}
    classes = len({name for _, label, _ in recordings for name in split_labels(label)})
    if classes > data_set.classes:
        raise PreparationError(f"there are {classes} classes, but the released set has {data_set.classes}. Check that "
                               "this is the right version")
    if (counts, classes) == (data_set.released, data_set.classes):
        notes.insert(0, "The counts are those of the released set.")
    else:
        released = sum(data_set.released.values())
        notes.insert(0, f"This is only part of the released set: {classes} of {data_set.classes} classes and "
                        f"{len(recordings):,} of {released:,} recordings.")
    return counts, classes


def _write(out, recordings):
    with replacing(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for path, label, split in recordings:
            below = path.is_relative_to(out.parent)
            writer.writerow([path.relative_to(out.parent).as_posix() if below else path, label, split])
