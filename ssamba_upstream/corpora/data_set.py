"""A data set that can be prepared, and functions shared by several readers."""

import csv
from collections.abc import Callable
from dataclasses import dataclass

from ..audio import AUDIO_EXTENSIONS


class PreparationError(ValueError):
    """Raised for a data set that is missing or differs from its release; says what is wrong and what to do."""


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared.

    Attributes:
        title: the data set's name.
        folder: folder in its archive; the root can be this folder or contain it.
        read: function that takes the root and returns (recordings, notes): (path, label, split) of each recording, and
            sentences for the report. Raises PreparationError.
        released: number of recordings in each split of the released set.
        classes: number of classes in the released set.
        layout: the data set's source and the required contents of the root.
        scenes: If True, mix the recordings, which are short excerpts, into scenes with a label for every second.
    """

    title: str
    folder: str
    read: Callable
    released: dict[str, int]
    classes: int
    layout: str
    scenes: bool = False


def audio_of_folders(root):
    """Return the audio files in the root's folders, sorted, without hidden ones."""
    return [path for path in sorted(root.glob("[!.]*/[!.]*")) if path.suffix.lower() in AUDIO_EXTENSIONS]


def read_table(file, columns):
    """Return the rows of a CSV as dictionaries, each with a value in the given columns."""
    if not file.is_file():
        raise PreparationError(f"{file.name} is missing")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if not set(columns) <= set(reader.fieldnames or []):
            found = ", ".join(reader.fieldnames or ["(none)"])
            raise PreparationError(f"{file.name} has the columns {found}; they must include {', '.join(columns)}")
        rows = []
        for row in reader:
            if not all(row[column] for column in columns):
                raise PreparationError(f"{file.name}, line {reader.line_num}: expected a value for each of "
                                       f"{', '.join(columns)}")
            rows.append(row)
    return rows
