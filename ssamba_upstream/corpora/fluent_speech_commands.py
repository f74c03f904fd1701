"""Fluent Speech Commands, by intent: SUPERB's intent classification."""

import csv
from pathlib import Path

from .labelled import join_labels

SLOTS = ("action", "object", "location")
SPLIT_LISTS = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}


def labelled_utterances(root: Path):
    """Yields path, intent and split of every utterance in the lists of ``ROOT/data``.

    The paths in the lists are relative to the root. An intent is its action, object and location, see
    :func:`join_labels`.
    """
    for split, name in SPLIT_LISTS.items():
        with open(root / "data" / name, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                yield root / row["path"], join_labels([row[slot] for slot in SLOTS]), split
