"""Fluent Speech Commands with intents: SUPERB's intent classification."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from ...files import new_folder, write_text
from ..labelled import join_labels
from ..report import CorpusError, CorpusReport, absolute, override, read_text, recordings_of
from .utterances import Utterance, write_wav

NAME = "Fluent Speech Commands (intent classification)"
SLOTS = ("action", "object", "location")
SPLIT_LISTS = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}
RELEASED = {"train": 23132, "dev": 3118, "test": 3793}
RELEASED_VALUES = {
    "action": {"activate", "bring", "change language", "deactivate", "decrease", "increase"},
    "object": {"Chinese", "English", "German", "Korean", "heat", "juice", "lamp", "lights", "music", "newspaper",
               "none", "shoes", "socks", "volume"},
    "location": {"bedroom", "kitchen", "none", "washroom"},
}
REMEDY = ("unpack the archive of https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-"
          "research/ there")


def check(root, _=None) -> CorpusReport:
    """Check Fluent Speech Commands for s3prl's ``fluent_commands`` downstream.

    Args:
        root: folder with ``data/train_data.csv``, ``valid_data.csv`` and ``test_data.csv``. s3prl reads their columns
            ``path`` (relative to root), ``action``, ``object`` and ``location``.
    """
    root = absolute(root)
    report = CorpusReport(NAME, root, override({"datarc.file_path": root}))
    with report.checking(REMEDY, RELEASED, one_format=True):
        report.require_folder()
        rows = {split: read_list(root, split) for split in SPLIT_LISTS}
        for split, entries in rows.items():
            intents = {tuple(row[slot] for slot in SLOTS) for row in entries}
            report.counts[split] = {"utterances": len(entries), "intents": len(intents)}
            report.texts[SPLIT_LISTS[split]] = root / "data" / SPLIT_LISTS[split]
            report.recordings[split] = recordings_of({row["path"]: root / row["path"] for row in entries})
        report.check_speakers({split: {row["speakerId"] for row in entries if row.get("speakerId")}
                               for split, entries in rows.items()})
        _check_values(rows, report)
        report.check_exist([root / row["path"] for entries in rows.values() for row in entries], "the lists", REMEDY)
    return report


def labelled_utterances(root: Path):
    """Yield the path, intent, split and speaker of every utterance in the lists in ``ROOT/data``.

    The paths in the lists are relative to the root. An intent is its action, object and location, see
    :func:`join_labels`.
    """
    for split in SPLIT_LISTS:
        for row in read_list(root, split):
            intent = join_labels([row[slot] for slot in SLOTS])
            yield root / row["path"], intent, split, row.get("speakerId") or row["path"]


def read_list(root: Path, split: str) -> list[dict[str, str]]:
    """Return the rows of a split's list, by column; raise a CorpusError if a column or value is missing."""
    path = root / "data" / SPLIT_LISTS[split]
    rows = list(csv.DictReader(io.StringIO(read_text(path, f"To get it, {REMEDY}."), newline="")))
    for number, row in enumerate(rows, 2):
        if absent := [column for column in ("path", *SLOTS) if not row.get(column)]:
            raise CorpusError(f"{path}, row {number}, has no {', '.join(absent)}; {REMEDY}.")
    return rows


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's utterances, by s3prl's names for them."""
    return {Path(row["path"]).stem: str(corpus / row["path"]) for row in read_list(corpus, "test")}


def write_fluent_speech_commands(out, utterances: Iterable[Utterance]) -> None:
    """Write Fluent Speech Commands: wavs and the three lists.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances with "<action>,<object>,<location>" as labels.
    """
    rows = {split: [] for split in SPLIT_LISTS}
    with new_folder(out) as folder:
        for number, utterance in enumerate(utterances):
            path = f"wavs/speakers/{utterance.speaker}/{number:08x}-0000-11e9-0000-000000000000.wav"
            write_wav(folder / path, utterance.samples)
            rows[utterance.split].append(f"{path},{utterance.label}\n")
        for split, name in SPLIT_LISTS.items():
            write_text("".join([f"path,{','.join(SLOTS)}\n", *rows[split]]), folder / "data" / name)


def _check_values(rows: dict[str, list[dict]], report: CorpusReport):
    """Report values that are not in train: s3prl numbers train's values, and stops at others."""
    for slot in SLOTS:
        known = {row[slot] for row in rows["train"]}
        for split in ("dev", "test"):
            unknown = sorted({row[slot] for row in rows[split]} - known)
            report.add_problem(f"{SPLIT_LISTS[split]} has values of {slot} that are not in {SPLIT_LISTS['train']}, so "
                               "s3prl would stop there", unknown, REMEDY)
