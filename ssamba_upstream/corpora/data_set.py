"""A data set that can be prepared."""

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
