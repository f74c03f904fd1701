"""Reports on whether a corpus has the layout that s3prl 0.4.18 reads, with the parts shared by all checks.

If a file is missing, s3prl raises an IndexError after minutes of searching, or hours into a run. The checks, one in
each corpus's module, follow the rules of s3prl's downstreams and report all problems at once. Audio is checked by the
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
    """Raised for a corpus without the layout that s3prl needs; the message says what is missing and what to do."""


class Recording(NamedTuple):
    """A recording of a corpus.

    Attributes:
        name: name in the corpus, independent of the corpus's location; the part after the last "/" is the recording's.
        path: the file.
        size: size of the file in bytes.
        file: device and inode, which are the same for all links to a file.
    """

    name: str
    path: Path
    size: int
    file: tuple[int, int]


@dataclass
class CorpusReport:
    """The result of a check.

    Attributes:
        corpus: name of the corpus and its task.
        root: the checked folder.
        override: value for the ``-o`` argument of s3prl's run_downstream that points a config at this corpus.
        counts: number of utterances by split or session and by class.
        problems: sentences about problems that would stop s3prl or change its results.
        notes: sentences that require no action.
        released: True if the number of utterances is that of SUPERB's corpus.
        recordings: recordings that s3prl reads, by split or by another part; the parts must not share recordings.
        texts: lists, metadata, transcripts and lexicons that s3prl reads, by a name independent of the location.
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
        """SHA-256 of what s3prl reads, in hexadecimal; the same for a copy of the corpus in another location.

        It covers the content of all texts, the names and sizes of all recordings and, for each split, the content of
        an even sample of recordings. Modification times are excluded, because copying changes them.
        """
        return json_hash({
            "texts": {name: file_hash(path) for name, path in self.texts.items()},
            "recordings": {split: [(recording.name, recording.size) for recording in recordings]
                           for split, recordings in self.recordings.items()},
            "sampled": {split: [file_hash(recording.path) for recording in sample(recordings)]
                        for split, recordings in self.recordings.items()}})

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems

    def __str__(self):
        verdict = "laid out correctly for s3prl" if self.ok else f"{len(self.problems)} problem(s)"
        lines = [f"{self.corpus} in {self.root}: {verdict}"]
        for part, counts in self.counts.items():
            lines.append(f"  {f'{part} ':9}" + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        lines += [f"  Problem: {problem}" for problem in self.problems]
        lines += [f"  Note: {note}" for note in self.notes]
        if self.ok:
            lines.append(f"  Run with: -o {shlex.quote(self.override)}")
        return "\n".join(lines)

    @contextmanager
    def checking(self, remedy: str, released: dict[str, int] | None = None, one_format: bool = False):
        """Collect the problems of a check, then check that each split has utterances and shares none with another.

        Args:
            remedy: how to mend the splits, as a clause without a full stop.
            released: number of utterances in each split of the released corpus, to be compared with ``counts``.
            one_format: If True, also check that the recordings are 16 kHz mono, which s3prl needs for a corpus that it
                neither resamples nor mixes down.
        """
        with self.collecting():
            yield
            for split, counts in self.counts.items():
                if not counts.get("utterances", 1):
                    self.problems.append(f"{self.root} has no utterances for {split}; {remedy}.")
            self.check_disjoint(remedy)
            if one_format:
                self._check_16_khz_mono()
            if released:
                self.compare({split: counts["utterances"] for split, counts in self.counts.items()}, released)

    @contextmanager
    def collecting(self):
        """Add errors after which a check cannot continue to the report as problems."""
        try:
            yield
        except CorpusError as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(f"{error.filename} cannot be read ({error.strerror}); check its permissions.")

    def require_folder(self):
        """Raise CorpusError if the corpus's folder does not exist."""
        if not os.path.isdir(self.root):
            state = "is not a folder" if os.path.exists(self.root) else "does not exist"
            raise CorpusError(f"{self.root} {state}; give the folder that contains {self.corpus.split(' (')[0]}.")

    def add_problem(self, flaw: str, examples: list, remedy: str):
        """Add the problem "FLAW: EXAMPLES; REMEDY." if there are examples."""
        if examples:
            self.problems.append(f"{flaw}: {first(examples)}; {remedy}.")

    def check_disjoint(self, remedy: str):
        """Report recordings that are in two splits; the remedy is a clause without a full stop.

        Two recordings are the same if they are one file, or if they have the same name and content.
        """
        for (one, some), (other, others) in combinations(self.recordings.items(), 2):
            shared = [recording.name for recording in _shared(some, others)]
            self.add_problem(f"{len(shared):,} of the {len(others):,} recordings in {other} are also in {one}", shared,
                             remedy)

    def check_speakers(self, speakers: dict[str, set[str]]):
        """Add a note about speakers who are in two splits; in the released corpus, none is."""
        for one, other in combinations(speakers, 2):
            if shared := sorted(speakers[one] & speakers[other]):
                self.notes.append(f"{one} and {other} share speakers: {first(shared)}. In the released corpus, each "
                                  "speaker is in only one split.")

    def check_exist(self, paths: list[Path], where: str, remedy: str) -> list[Path]:
        """Return the existing recordings of a list, which ``where`` names in the report; missing ones are reported."""
        found = [path for path in paths if os.path.isfile(path)]
        existing = set(found)
        missing = [path for path in paths if path not in existing]
        self.add_problem(f"{len(missing):,} of the {len(paths):,} recordings in {where} are missing", missing, remedy)
        return found

    def read_headers(self, paths: list[Path], sampled: bool = True) -> list[tuple]:
        """Return (path, header) for the audio files or an even sample; unreadable and empty ones are reported."""
        headers = []
        for path in sample(paths) if sampled else paths:
            try:
                headers.append((path, read_header(path)))
            except AudioError as error:
                problem = f"{error}; restore it from the archive."
                self.problems += [problem] if problem not in self.problems else []
        return headers

    def compare(self, found: dict[str, int], released: dict[str, int]):
        """Add a note on whether the counts match the released corpus."""
        self.released = found == released
        if self.released:
            self.notes.append("The counts are those of the released corpus.")
        else:
            counts = ", ".join(f"{name} {count:,}" for name, count in released.items())
            self.notes.append(f"This is not the whole released corpus, which has {counts} utterances.")

    def _check_16_khz_mono(self):
        for recordings in self.recordings.values():
            for path, header in self.read_headers([recording.path for recording in recordings]):
                if header.rate != SAMPLE_RATE or header.channels != 1:
                    self.problems.append(f"{path} has {header.rate} Hz and {header.channels} channel(s), but s3prl "
                                         "neither resamples nor mixes down this corpus; convert all of it to "
                                         f"{SAMPLE_RATE} Hz mono.")
                    return


def absolute(path) -> Path:
    """Return an absolute path with ``~`` expanded."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def find_named(root: Path, names: tuple[str, ...]) -> Path:
    """Return the path of the first existing file of several names in a folder; if none exists, that of the first."""
    return root / next((name for name in names if os.path.isfile(root / name)), names[0])


def read_text(path: Path, advice: str = "") -> str:
    """Return a file's text; if it cannot be read, raise CorpusError, whose message ends with the advice, a sentence."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror}); restore it or its permissions."
        raise CorpusError(f"{problem} {advice}".rstrip()) from error


def read_lines(path: Path, pattern: str, form: str, advice: str,
               report: CorpusReport | None = None) -> dict[int, tuple]:
    """Return the groups of a regular expression that every line of a file must match, by line number.

    Args:
        path: the file.
        pattern: the regular expression.
        form: description of a line, for the error.
        advice: how to get a missing file, a sentence.
        report: report to which malformed lines are added as a problem.

    Raises:
        CorpusError: If the file cannot be read, or there is no report and a line is malformed.
    """
    lines = dict(enumerate(read_text(path, advice).splitlines(), 1))
    matches = {number: re.fullmatch(pattern, line) for number, line in lines.items()}
    if malformed := [f"line {number} ({lines[number][:60]!r})" for number, match in matches.items() if not match]:
        problem = (f"{path} has lines that are not '{form}': {first(malformed)}; correct or delete them, including "
                   "empty ones.")
        if report is None:
            raise CorpusError(problem)
        report.problems.append(problem)
    return {number: match.groups() for number, match in matches.items() if match}


def sample(items: list) -> list:
    """Return at most ``SAMPLED_FILES`` items, spread evenly."""
    return items[::-(-len(items) // SAMPLED_FILES) or 1]


def recordings_of(named: dict[str, Path]) -> list[Recording]:
    """Return the recordings for paths by name. Missing files are skipped, because each check reports them itself."""
    found = []
    for name, path in named.items():
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.append(Recording(name, path, status.st_size, (status.st_dev, status.st_ino)))
    return found


def _shared(some: list[Recording], others: list[Recording]) -> list[Recording]:
    files, alike = {recording.file for recording in some}, defaultdict(list)
    for recording in some:
        alike[_name_and_size(recording)].append(recording.path)
    return [recording for recording in others
            if recording.file in files or any(filecmp.cmp(recording.path, path, shallow=False)
                                              for path in alike.get(_name_and_size(recording), ()))]


def _name_and_size(recording: Recording):
    return recording.name.rpartition("/")[2], recording.size


def override(fields: dict) -> str:
    """Return options for s3prl's -o, which splits at ',,' and '=' and evaluates values that are valid Python.

    Args:
        fields: paths, or lists of paths, by the names of fields in ``config.downstream_expert``, such as
            "datarc.root".
    """
    return ",,".join(f"config.downstream_expert.{field}={_literal(value)}" for field, value in fields.items())


def _literal(value):
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return str(value) if re.fullmatch(r"[\w./-]+", str(value)) else _quoted(value)


def _quoted(path):
    return repr(str(path)).replace("=", r"\x3d").replace(",", r"\x2c")


def first(items: list, count: int = 3) -> str:
    """Format the first items for a message, and the number of the others."""
    more = f" and {len(items) - count:,} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more
