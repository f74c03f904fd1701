"""Reports on corpora: whether one is laid out as s3prl 0.4.18 reads it, and what the checks of each share.

s3prl meets a missing file with an IndexError after minutes of searching, or hours into a run. The checks, each beside
its corpus, restate the rules of s3prl's downstreams and report at once all that would go wrong. Audio is judged by the
headers of a few files, spread evenly over the corpus. Splits are compared by the names and sizes of all recordings.
"""

import filecmp
import os
import re
import shlex
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from ..audio import SAMPLE_RATE, AudioError, read_header
from ..files import file_hash, json_hash

SAMPLED_FILES = 40


class CorpusError(ValueError):
    """A corpus is not laid out as s3prl needs it; the message says what is missing and what to do."""


class Recording(NamedTuple):
    """A recording of a corpus.

    Attributes:
        name: its name in the corpus, wherever the corpus lies; the part after the last "/" tells recordings apart.
        path: the file.
        size: of the file, in bytes.
        file: device and inode, which all names of a file share.
    """

    name: str
    path: Path
    size: int
    file: tuple[int, int]


@dataclass
class CorpusReport:
    """What a check found.

    Attributes:
        corpus: name of the corpus and its task.
        root: the folder that was checked.
        override: value for the ``-o`` argument of s3prl's run_downstream that points a config at this corpus.
        counts: utterances by split or session, and in it by class.
        problems: sentences, each about something that would stop s3prl or change what it measures.
        notes: sentences worth reading that ask for no action.
        released: True if this is SUPERB's corpus, as far as the number of its utterances tells.
        recordings: those that s3prl reads, by split, or by another part that must not share any with the rest.
        texts: lists, metadata, transcripts and lexicons that s3prl reads, by a name without the corpus's place.
    """

    corpus: str
    root: Path
    override: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    released: bool = False
    recordings: dict[str, list[Recording]] = field(default_factory=dict, repr=False)
    texts: dict[str, Path] = field(default_factory=dict, repr=False)

    @property
    def content_hash(self) -> str:
        """The SHA-256 of what s3prl reads, in hexadecimal; the same for a copy of the corpus in another place.

        It covers the content of all texts, the names and sizes of all recordings and, of each split, the content of
        an even sample of recordings. Times do not count, as copying changes them.
        """
        return json_hash({
            "texts": {name: file_hash(path) for name, path in self.texts.items()},
            "recordings": {split: [(recording.name, recording.size) for recording in recordings]
                           for split, recordings in self.recordings.items()},
            "sampled": {split: [file_hash(recording.path) for recording in sample(recordings)]
                        for split, recordings in self.recordings.items()}})

    @property
    def ok(self) -> bool:
        """True when there are no problems."""
        return not self.problems

    def __str__(self):
        verdict = "laid out as s3prl needs it" if self.ok else f"{len(self.problems)} problem(s)"
        lines = [f"{self.corpus} in {self.root}: {verdict}"]
        for part, counts in self.counts.items():
            lines.append(f"  {part:9}" + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        lines += [f"  Problem: {problem}" for problem in self.problems]
        lines += [f"  Note: {note}" for note in self.notes]
        if self.ok:
            lines.append(f"  Run with: -o {shlex.quote(self.override)}")
        return "\n".join(lines)


@contextmanager
def problems_reported(report: CorpusReport):
    """Turn the errors after which a check cannot go on into problems of the report."""
    try:
        yield
    except CorpusError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(f"{error.filename} cannot be read ({error.strerror}); check its permissions.")


def require_folder(report: CorpusReport):
    """See that the corpus's folder is there; raises CorpusError."""
    if not os.path.isdir(report.root):
        state = "is not a folder" if os.path.exists(report.root) else "does not exist"
        raise CorpusError(f"{report.root} {state}; give the folder that holds "
                          f"{report.corpus.split(' (')[0]}.")


def absolute(path) -> Path:
    """An absolute path, with ``~`` expanded."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def find_named(root: Path, names: tuple[str, ...]) -> Path:
    """The file in a folder that has one of some names; where there is none, the place of the first."""
    return root / next((name for name in names if os.path.isfile(root / name)), names[0])


def read_text(path: Path, advice: str = "") -> str:
    """A file's text; raises CorpusError, which ends in the advice, a sentence, where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror}); restore it or its permissions."
        raise CorpusError(f"{problem} {advice}".rstrip()) from error


def read_headers(paths: list[Path], report: CorpusReport, sampled: bool = True) -> list[tuple]:
    """(path, header) of the audio files, or of an even sample; unreadable and empty ones become problems."""
    headers = []
    for path in sample(paths) if sampled else paths:
        try:
            headers.append((path, read_header(path)))
        except AudioError as error:
            problem = f"{error}; restore it from the archive."
            report.problems += [problem] if problem not in report.problems else []
    return headers


def sample(items: list) -> list:
    """At most ``SAMPLED_FILES`` of some items, spread evenly over them."""
    return items[::-(-len(items) // SAMPLED_FILES) or 1]


def recordings_of(named: dict[str, Path]) -> list[Recording]:
    """The recordings of some paths by name. Missing files are left out: a check reports these by itself."""
    found = []
    for name, path in named.items():
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.append(Recording(name, path, status.st_size, (status.st_dev, status.st_ino)))
    return found


def require_disjoint(report: CorpusReport, remedy: str):
    """Make a problem of recordings that are in two splits; the remedy is an advice, without its end.

    Two recordings are the same if they are one file, or have one name and one content.
    """
    for (one, some), (other, others) in combinations(report.recordings.items(), 2):
        if shared := _shared(some, others):
            report.problems.append(f"{len(shared):,} of the {len(others):,} recordings of {other} are in {one}, too: "
                                   f"{first([recording.name for recording in shared])}; {remedy}.")


def _shared(some: list[Recording], others: list[Recording]) -> list[Recording]:
    files, alike = {recording.file for recording in some}, defaultdict(list)
    for recording in some:
        alike[_name_and_size(recording)].append(recording.path)
    return [recording for recording in others
            if recording.file in files or any(filecmp.cmp(recording.path, path, shallow=False)
                                              for path in alike.get(_name_and_size(recording), ()))]


def _name_and_size(recording: Recording):
    return recording.name.rpartition("/")[2], recording.size


def note_shared_speakers(report: CorpusReport, speakers: dict[str, set[str]]):
    """Note speakers in two splits, which the released corpus keeps apart."""
    for one, other in combinations(speakers, 2):
        if shared := sorted(speakers[one] & speakers[other]):
            report.notes.append(f"{one} and {other} share speakers: {first(shared)}. In the released corpus each "
                                "speaker is in one split only.")


def compare(report: CorpusReport, found: dict[str, int], released: dict[str, int]):
    """Note whether the counts are those of the released corpus."""
    report.released = found == released
    if report.released:
        report.notes.append("The counts are those of the released corpus.")
    else:
        counts = ", ".join(f"{name} {count:,}" for name, count in released.items())
        report.notes.append(f"This is not the whole released corpus, which has {counts} utterances.")


def override(fields: dict) -> str:
    """Options for s3prl's -o, which splits at ',,' and '=' and evaluates the values if they are Python.

    Args:
        fields: paths, or lists of them, by the names of fields below ``config.downstream_expert``, such as
            "datarc.root".
    """
    return ",,".join(f"config.downstream_expert.{field}={_literal(value)}" for field, value in fields.items())


def _literal(value):
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return str(value) if re.fullmatch(r"[\w./-]+", str(value)) else _quoted(value)


def _quoted(path):
    return repr(str(path)).replace("=", r"\x3d").replace(",", r"\x2c")


def require_files(paths: list[Path], where: str, remedy: str, report: CorpusReport) -> list[Path]:
    """The recordings that are there, of those that ``where`` lists; the others become a problem of the report."""
    there, missing = [], []
    for path in paths:
        (there if os.path.isfile(path) else missing).append(path)
    if missing:
        report.problems.append(f"{len(missing):,} of the {len(paths):,} recordings of {where} are not there: "
                               f"{first(missing)}; {remedy}.")
    return there


def require_16_khz_mono(paths: list[Path], report: CorpusReport):
    """See, by an even sample, that recordings are as s3prl needs a corpus that it neither resamples nor mixes down."""
    for path, header in read_headers(paths, report):
        if header.rate != SAMPLE_RATE or header.channels != 1:
            report.problems.append(f"{path} has {header.rate} Hz and {header.channels} channel(s), and s3prl neither "
                                   f"resamples nor mixes down this corpus; convert all of it to {SAMPLE_RATE} Hz mono.")
            break


def require_splits(report: CorpusReport, remedy: str):
    """Make a problem of every split without an utterance; the remedy is an advice, without its end."""
    for split, counts in report.counts.items():
        if not counts["utterances"]:
            report.problems.append(f"{report.root} has no utterance for {split}; {remedy}.")


def compare_utterances(report: CorpusReport, released: dict[str, int]):
    """Note whether the utterances of the splits are as many as in the released corpus."""
    compare(report, {split: counts["utterances"] for split, counts in report.counts.items()}, released)


def first(items: list, count: int = 3) -> str:
    """The first of some items for a message, and how many more there are."""
    more = f" and {len(items) - count:,} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more
