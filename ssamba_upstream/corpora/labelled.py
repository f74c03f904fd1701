"""Labelled sets of recordings, from a CSV or from a folder for each class."""

import csv
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..audio import AUDIO_EXTENSIONS
from .report import first

SPLITS = ("train", "dev", "test")
COLUMNS = ("path", "label", "split")
GROUP = "group"
SEPARATOR = ";"


class LabelledSetError(ValueError):
    """Raised for a labelled set that cannot be used for training; says what is wrong and what was expected."""


@dataclass(frozen=True)
class Excerpt(os.PathLike):
    """A part of an audio file with a gain, usable in place of a recording's path.

    Attributes:
        path: the audio file.
        start, stop: bounds in samples at the file's own rate. Default: the whole file.
        gain: gain in dB; samples outside [-1, 1] are clipped.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    gain: float = 0.0

    def __fspath__(self):
        return os.fspath(self.path)


@dataclass
class LabelledSet:
    """Recordings with one label and one split each.

    Attributes:
        paths: audio files.
        labels: each recording's class; or several classes, see :func:`split_labels`; or "" if it contains no class.
        splits: "train", "dev" or "test" for each recording, where only dev can be absent; or the name of its fold, with
            three or more folds.
        groups: each recording's group, such as its speaker or session; None if unknown.

    Raises:
        LabelledSetError: If the set is empty or has only one class, a split is missing, a path occurs twice, or files
            are missing.
    """

    paths: list[Path]
    labels: list[str]
    splits: list[str]
    groups: list[str] | None = None

    def __post_init__(self):
        if not len(self.paths) == len(self.labels) == len(self.splits) == len(self.groups or self.paths):
            raise LabelledSetError("a labelled set needs one label and one split per path; got "
                                   f"{len(self.paths)} paths, {len(self.labels)} labels and "
                                   f"{len(self.splits)} splits")
        if not self.paths:
            raise LabelledSetError("the labelled set is empty; expected recordings of two or more classes")
        if len(self.classes) < 2:
            raise LabelledSetError(f"all {len(self.paths)} recordings are labelled {self.labels[0]!r}; "
                                   "expected two or more classes")
        _check_splits(self.splits)
        twice = [path for path, count in Counter(self.paths).items() if count > 1]
        if twice:
            raise LabelledSetError(f"recordings are listed more than once: {first(twice)}")
        missing = [path for path in self.paths if not Path(path).is_file()]
        if missing:
            raise LabelledSetError(f"{len(missing)} of {len(self.paths)} recordings do not exist: "
                                   f"{first(missing)}")

    def without(self, paths):
        """Return the set without some of its recordings; raise a LabelledSetError if the rest is invalid."""
        columns = [column for column in (self.paths, self.labels, self.splits, self.groups) if column]
        kept = [row for row in zip(*columns) if row[0] not in paths]
        return LabelledSet(*map(list, zip(*kept))) if kept else LabelledSet([], [], [])

    @property
    def classes(self):
        """All labels in the set, sorted."""
        return sorted(set(self.labels))

    @property
    def has_folds(self):
        """True if the splits are folds for cross-validation, False if they are train, dev and test."""
        return not set(self.splits) <= set(SPLITS)

    def check_probes(self):
        """Raise a ValueError if probes cannot be trained on the set, because a recording has an empty label or there is
        neither a dev set nor folds."""
        if unlabelled := [path for path, label in zip(self.paths, self.labels) if not label]:
            raise LabelledSetError(f"{len(unlabelled)} of {len(self.paths)} recordings have no label: "
                                   f"{first(unlabelled)}. Probes need a class for each recording: give these one, such "
                                   "as 'nothing', or leave them out")
        if not self.has_folds:
            members_of_splits(self.splits)

    @property
    def content_hash(self):
        """SHA-256 of the set's paths, labels and splits, in hexadecimal; it does not cover the audio."""
        total = hashlib.sha256()
        for row in zip(map(str, self.paths), self.labels, self.splits):
            total.update(os.fsencode("\0".join(row) + "\n"))
        return total.hexdigest()


def rotate_folds(folds):
    """Use each fold as test once, the next one (in sorted order) as dev, and the others as train.

    Yield the name of the test fold, and "train", "dev" or "test" for each utterance, given the name of its fold. Fewer
    than three folds raise a ValueError.
    """
    names = sorted(set(folds))
    if len(names) < 3:
        raise ValueError(f"cross-validation needs three or more folds; got {', '.join(names) or 'none'}")
    for test, dev in zip(names, names[1:] + names[:1]):
        yield test, ["test" if fold == test else "dev" if fold == dev else "train" for fold in folds]


def members_of_splits(splits):
    """Return the indices of the utterances in train, dev and test; raise a ValueError if a split is empty."""
    parts = {name: [i for i, other in enumerate(splits) if other == name] for name in SPLITS}
    for name, members in parts.items():
        if not members:
            raise ValueError(f"no utterance in {name}; probes need train, dev and test, but the splits are "
                             f"{', '.join(sorted(set(splits)))}")
    return parts


def split_labels(label) -> list[str]:
    """Return the classes in a label: all of a recording's classes, or the class of each of its seconds, in order.

    An empty label has none. A class "" among others marks a second that does not count.
    """
    return label.split(SEPARATOR) if label else []


def join_labels(classes) -> str:
    """Join several classes into one label, see :func:`split_labels`; a semicolon in a name raises an error."""
    for name in classes:
        if SEPARATOR in name:
            raise LabelledSetError(f"the class {name!r} has a {SEPARATOR!r} in its name, but that separates a "
                                   "recording's classes. Rename the class")
    return SEPARATOR.join(classes)


def read_labelled(source: str | os.PathLike) -> LabelledSet:
    """Read a labelled set.

    If the source has no splits, each class is split separately. Its recordings are ordered by the SHA-256 of "0 "
    followed by their path, as written in the CSV or relative to the folder. The first 20 % are test and the next 10 %
    are dev (each rounded, and at least one recording); the rest are train. The split is the same on every machine. It
    can put recordings of one speaker or session into both train and test; give a CSV with splits to keep them apart.

    Args:
        source: a CSV with the columns path and label, and optionally split and group (paths are relative to the
            CSV's folder, and a label can be empty, see :func:`split_labels`); or a folder with one subfolder per
            class, whose name is the label, with audio files at any depth, see
            :data:`ssamba_upstream.audio.AUDIO_EXTENSIONS`. Hidden files are skipped.

    Raises:
        LabelledSetError: see :class:`LabelledSet`; also if a CSV has missing or other columns or incomplete rows,
            or if there is no split and a class has fewer than three recordings.
        FileNotFoundError: If the source does not exist.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no labelled set {source}. Give a CSV with the columns path and label, or a "
                                "folder with one subfolder per class")
    if source.is_dir():
        root = source
        names, labels = _read_folder(source)
        splits = groups = None
    else:
        root = source.parent
        names, labels, splits, groups = _read_csv(source)
    if splits is None:
        splits = {}
        for label in set(labels):
            members = [name for name, other in zip(names, labels) if other == label]
            splits.update(split_by_hash(members, f"class {label!r}"))
        splits = [splits[name] for name in names]
    try:
        return LabelledSet([root / name for name in names], labels, splits, groups)
    except LabelledSetError as error:
        raise LabelledSetError(f"{source}: {error}") from None


def _read_folder(folder):
    found = sorted(path.relative_to(folder) for path in folder.glob("*/**/*"))
    found = [
        path for path in found
        if path.suffix.lower() in AUDIO_EXTENSIONS and not any(part.startswith(".") for part in path.parts)
    ]
    return [path.as_posix() for path in found], [path.parts[0] for path in found]


def _read_csv(file):
    rows = [row for _, row in read_table(file, ("path", "label"), ("split", GROUP), empty=("label",))]
    return [[row[name] for row in rows] if not rows or name in rows[0] else None for name in (*COLUMNS, GROUP)]


def read_table(file, columns, optional=None, empty=()):
    """Yield the place of each row of a CSV or tab-separated ``.tsv``, for errors, and the row as a dictionary.

    Args:
        file: path of the file.
        columns: columns that it must have.
        optional: other columns that it may have; each row then needs a value in each column. Default: any others,
            which are not checked.
        empty: columns whose values may be empty.

    Raises:
        LabelledSetError: If the file is missing or has other columns, or a row lacks a value.
    """
    if not file.is_file():
        raise LabelledSetError(f"{file} is missing")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        found = reader.fieldnames or []
        strict = optional is not None
        if not set(columns) <= set(found) or strict and not set(found) <= {*columns, *optional}:
            more = f", and optionally {' and '.join(optional)}" if strict else " and any others"
            raise LabelledSetError(f"{file} has the columns {', '.join(found) or '(none)'}; expected "
                                   f"{', '.join(columns)}{more}")
        checked = found if strict else columns
        for row in reader:
            where, values = f"{file}, line {reader.line_num}", [row[name] for name in checked if name not in empty]
            if not all(values) or strict and (None in row or None in row.values()):
                raise LabelledSetError(f"{where}: expected a value for each of {', '.join(checked)}; got "
                                       f"{', '.join(map(str, row.values()))}")
            yield where, row


def split_by_hash(names, what):
    """Return "train", "dev" or "test" by name, from the names' SHA-256, see :func:`read_labelled`.

    Fewer than three names raise a LabelledSetError, which describes them by ``what``.
    """
    if len(names) < len(SPLITS):
        raise LabelledSetError(f"{what} has {len(names)} recordings; a split into train, dev and test needs three")
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"0 {name}".encode()).digest())
    test, dev = max(1, round(0.2 * len(names))), max(1, round(0.1 * len(names)))
    sizes = {"test": test, "dev": dev, "train": len(names) - test - dev}
    return dict(zip(ordered, (split for split, size in sizes.items() for _ in range(size))))


def _check_splits(splits):
    found = sorted(set(splits))
    named = set(found) & set(SPLITS)
    if (named and set(found) | {"dev"} != set(SPLITS)) or (not named and len(found) < 3):
        raise LabelledSetError(f"the splits are {first(found, 6)}; expected train, dev and test, or train and test, "
                               "or the names of three or more folds")
