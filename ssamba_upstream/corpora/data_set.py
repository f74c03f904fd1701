"""A data set that can be prepared, and what the readers of several share."""

import csv
from collections.abc import Callable
from dataclasses import dataclass

from ..audio import AUDIO_EXTENSIONS


class PreparationError(ValueError):
    """A data set that is not there, or not as its authors released it; says what is wrong and what to do."""


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared.

    Attributes:
        title: its name.
        folder: of its archive; the root that is given may be that folder or hold it.
        read: of the root, returns (recordings, notes): (path, label, split) of each recording, and sentences for the
            report. Raises PreparationError.
        released: number of recordings in each split of the released set.
        classes: number of classes in the released set.
        layout: where it comes from, and what has to lie in the root.
        scenes: mix the recordings, which are short excerpts, to scenes with a label for every second.
    """

    title: str
    folder: str
    read: Callable
    released: dict[str, int]
    classes: int
    layout: str
    scenes: bool = False


def audio_of_folders(root):
    """Audio files that lie in a folder of the root, sorted; hidden ones are left out."""
    return [path for path in sorted(root.glob("[!.]*/[!.]*")) if path.suffix.lower() in AUDIO_EXTENSIONS]


def read_table(file, columns):
    """The rows of a CSV, as dictionaries, each with a value in the columns."""
    if not file.is_file():
        raise PreparationError(f"{file.name} is missing")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if not set(columns) <= set(reader.fieldnames or []):
            found = ", ".join(reader.fieldnames or ["(none)"])
            raise PreparationError(f"{file.name} has the columns {found}; expected {', '.join(columns)} among them")
        rows = []
        for row in reader:
            if not all(row[column] for column in columns):
                raise PreparationError(f"{file.name}, line {reader.line_num}: expected a value for each of "
                                       f"{', '.join(columns)}")
            rows.append(row)
    return rows
