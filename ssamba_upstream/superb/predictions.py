"""The prediction files of a submission, in s3prl's formats, with the checks for each."""

import codecs
import io
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..corpora.report import first


class SubmissionError(ValueError):
    """Raised for predictions that must not be submitted; names the files, the lines and what was expected."""


@dataclass(frozen=True)
class Checked:
    """Well-formed predictions.

    Attributes:
        files: file contents by name within the task's folder in the zip file.
        count: number of predictions.
        check: a sentence on how far they could be checked.
        warnings: sentences about possible mistakes.
    """

    files: dict[str, bytes]
    count: int
    check: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lines:
    """A file with one line for every utterance of the test set.

    Attributes:
        source: s3prl's name for the file, in the run's folder.
        target: name of the file in the task's folder in the zip file.
        utterance: pattern of the utterance names in the released corpus.
        released: number of utterances in the released test set.
        find_test_set: function that takes a corpus's path and returns each utterance's location. Raises CorpusError.
        flaw: function that takes a prediction and returns a description of its fault, or None.
        form: a line's format, in words.
        pattern: pattern of a line, with groups for the utterance and the prediction.
    """

    source: str
    target: str
    utterance: str
    released: int
    find_test_set: Callable[[Path], dict[str, str]]
    flaw: Callable[[str], str | None]
    form: str = "<utterance> <label>"
    pattern: str = r"(\S+) (\S+)"

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """Read and check a run's file; without a corpus, check only what is known without one.

        Raises:
            SubmissionError: If the file must not be submitted.
            CorpusError: If the corpus is missing.
        """
        path = find_file(run, self.source)
        content = path.read_bytes()
        predictions, problems = self._parse(path, content)
        if not problems:
            test_set = None if corpus is None else self.find_test_set(corpus)
            problems = self._check_lines(path, predictions, test_set)
            problems += self._check_whole(name, path, predictions, test_set)
        refuse(path, problems)
        warnings = warn_of_training(path)
        if len(predictions) != self.released:
            warnings.insert(0, _unlike_released(name, "utterances", self.released, corpus, len(predictions)))
        if corpus is None:
            check = f"Format, number and labels are correct. {_unchecked(name)}"
        else:
            check = f"They match the test set of {corpus}, each utterance once."
        return Checked({self.target: content}, len(predictions), check, tuple(warnings))

    def _parse(self, path, content) -> tuple[list[tuple[str, str]], list[str]]:
        """Return (utterance, prediction) for every line, and the problems with the file's format."""
        if not content:
            return [], [f"{path}, line 1: the file is empty; expected '{self.form}'"]
        if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return [], [f"{path}, line 1: starts with a byte order mark; save the file as UTF-8 without one"]
        *lines, rest = content.decode("utf-8", errors="replace").split("\n")
        predictions, problems = [], []
        for number, line in enumerate(lines, 1):
            if line.endswith("\r"):
                problems.append(f"{path}, line {number}: ends with CRLF; convert the file to LF line endings")
            elif match := re.fullmatch(self.pattern, line):
                predictions.append(match.groups())
            else:
                problems.append(f"{path}, line {number}: {line[:60]!r} is not '{self.form}'")
        if rest:
            problems.append(f"{path}, line {len(lines) + 1}: has no line ending, so the file is truncated there")
        return predictions, problems

    def _check_lines(self, path, predictions, test_set) -> list[str]:
        problems, first_lines = [], {}
        for number, (utterance, prediction) in enumerate(predictions, 1):
            line = f"{path}, line {number}"
            if utterance in first_lines:
                problems.append(f"{line}: {utterance} is already in line {first_lines[utterance]}")
            elif test_set is None and not re.fullmatch(self.utterance, utterance):
                problems.append(f"{line}: {utterance} does not match the names in the test set, {self.utterance}")
            elif test_set is not None and utterance not in test_set:
                problems.append(f"{line}: {utterance} is not in the test set")
            if flaw := self.flaw(prediction):
                problems.append(f"{line}: {flaw}")
            first_lines.setdefault(utterance, number)
        return problems

    def _check_whole(self, name, path, predictions, test_set) -> list[str]:
        predicted = {utterance for utterance, _ in predictions}
        last = f"{path}, line {len(predictions)}, the last one"
        if test_set is None:
            if len(predicted) == self.released:
                return []
            return [f"{last}: the file has {len(predicted):,} utterances, but the released test set has "
                    f"{self.released:,}; add {corpus_option(name)} to see which are missing"]
        missing = [f"{utterance} ({place})" for utterance, place in test_set.items() if utterance not in predicted]
        if not missing:
            return []
        return [f"{last}: {len(missing):,} of the {len(test_set):,} utterances of the test set are missing: "
                f"{first(missing)}"]


@dataclass(frozen=True)
class Metrics:
    """Values measured by s3prl, which the leaderboard accepts as they are.

    Attributes:
        names: names of the values, each on a line "<name> <value>".
        source, target: see :class:`Lines`.
    """

    names: tuple[str, ...]
    source: str = "test_metrics.txt"
    target: str = "metrics.txt"

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """Read and check a run's file, see :meth:`Lines.read`; the corpus is not used."""
        path = find_file(run, self.source)
        content = path.read_bytes()
        problems, values = [], Counter()
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            metric, _, value = line.partition(" ")
            if metric not in self.names or _number(value) is None:
                problems.append(f"{path}, line {number}: {line[:60]!r} is not '<{'|'.join(self.names)}> <number>'")
            values[metric] += 1
        problems += [f"{path}: {metric} occurs {values[metric]} times; expected once"
                     for metric in self.names if values[metric] != 1]
        refuse(path, problems)
        check = "Not checked against the official test set, because the file names no utterances."
        return Checked({self.target: content}, len(self.names), check)


@dataclass(frozen=True)
class DetectedTerms:
    """A score for every query and document, in the XML format of NIST's spoken term detection.

    Attributes:
        find_test_set: function that takes a corpus's path and returns the queries and documents. Raises CorpusError.
        source, target: see :class:`Lines`.
    """

    find_test_set: Callable[[Path], tuple[list[str], list[str]]]
    source: str = "benchmark.stdlist.xml"
    target: str = "benchmark.stdlist.xml"

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """Read and check a run's file, see :meth:`Lines.read`."""
        path = find_file(run, self.source)
        content = path.read_bytes()
        try:
            root = ElementTree.parse(io.BytesIO(content)).getroot()
        except ElementTree.ParseError as error:
            raise SubmissionError(f"{path}: not valid XML ({error}); evaluate again") from None
        queries = {terms.get("termid"): terms for terms in root.iter("detected_termlist")}
        if root.tag != "stdlist" or not queries:
            raise SubmissionError(f"{path}: expected a stdlist of detected_termlists, found a {root.tag} without them")
        if corpus is None:
            documents = [term.get("file") for term in next(iter(queries.values())).iter("term")]
            check = f"Every query has a score for every document. {_unchecked(name)}"
            problems = [f"{path}: {query} is a dev query; evaluate with -t test" for query in queries
                        if "_dev_" in str(query)]
        else:
            expected, documents = self.find_test_set(corpus)
            check = f"They match the queries and documents of {corpus}."
            problems = _differences(path, "query", queries, expected)
        for query, terms in queries.items():
            scored = Counter(term.get("file") for term in terms)
            problems += _differences(path, f"document for {query}", scored, documents)
            problems += [f"{path}: {query}, {term.get('file')}: expected a score and a YES or NO decision"
                         for term in terms
                         if _number(term.get("score", "")) is None or term.get("decision") not in ("YES", "NO")]
        refuse(path, problems)
        return Checked({self.target: content}, len(queries), check)


@dataclass(frozen=True)
class SpeakerActivities:
    """A file for every mixture, ``scoring/predictions/<mixture>.h5``, with two speakers' probabilities in ``T_hat``.

    Attributes:
        released: number of mixtures in the released test set.
        find_test_set: function that takes a corpus's path and returns each mixture's location. Raises CorpusError.
    """

    released: int
    find_test_set: Callable[[Path], dict[str, str]]

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """Read and check a run's files, see :meth:`Lines.read`. Raises ModuleNotFoundError if h5py is missing."""
        frame_shift, folder = run / "frame_shift", run / "scoring" / "predictions"
        paths = sorted(folder.glob("*.h5"))
        if not paths:
            raise SubmissionError(f"{folder} has no .h5 files. Make them with: ssamba run-downstream -m evaluate -e "
                                  f"{run / 'best-states-dev.ckpt'}")
        problems = [problem for path in paths for problem in self._check(path)]
        if not frame_shift.is_file() or not frame_shift.read_text().strip().isdigit():
            problems.append(f"{frame_shift}: expected the hop in samples, which s3prl writes when it evaluates; "
                            "without it, 160 would be used")
        found = {path.stem for path in paths}
        if corpus is not None:
            problems += _differences(folder, "mixture", found, self.find_test_set(corpus))
            check = f"They match the test set of {corpus}, each mixture once."
        else:
            if len(found) != self.released:
                problems.append(f"{folder}: contains {len(found):,} mixtures, but the released test set has "
                                f"{self.released:,}; add {corpus_option(name)} to see which are missing")
            check = f"Format and number are correct. {_unchecked(name)}"
        refuse(folder, problems)
        files = {f"scoring/predictions/{path.name}": path.read_bytes() for path in paths}
        warnings = ()
        if len(paths) != self.released:
            warnings = (_unlike_released(name, "mixtures", self.released, corpus, len(paths)),)
        return Checked({**files, "frame_shift": frame_shift.read_bytes()}, len(paths), check, warnings)

    @staticmethod
    def _check(path) -> list[str]:
        import h5py

        try:
            with h5py.File(path, "r") as file:
                activities = file["T_hat"][:]
        except (OSError, KeyError) as error:
            return [f"{path}: cannot be read as HDF5 with a T_hat ({error}); evaluate again"]
        if activities.ndim != 2 or activities.shape[1] != 2 or not np.all((activities >= 0) & (activities <= 1)):
            return [f"{path}: expected (frames, 2) probabilities from 0 to 1, found {activities.shape} or values "
                    "outside that range"]
        return []


def one_of(labels) -> Callable[[str], str | None]:
    """Return a check that a prediction is one of the labels."""
    known = set(labels)
    listing = ", ".join(labels) if len(labels) <= 12 else f"{labels[0]} to {labels[-1]}"
    return lambda label: None if label in known else f"the label {label} is not one of {listing}"


def matching(pattern: str, expected: str) -> Callable[[str], str | None]:
    """Return a check that a prediction matches a pattern."""
    return lambda text: None if re.fullmatch(pattern, text) else f"{text[:60]!r} is not {expected}"


def words_of(vocabulary) -> Callable[[str], str | None]:
    """Return a check that a prediction consists of vocabulary words separated by spaces; it may be empty."""
    def flaw(text):
        unknown = [word for word in text.split() if word not in vocabulary]
        return f"{unknown[0]} is not in the vocabulary" if unknown else None
    return flaw


def values_of(values: dict[str, set]) -> Callable[[str], str | None]:
    """Return a check that a prediction has a known value for every slot, separated by commas."""
    def flaw(text):
        for (slot, known), value in zip(values.items(), text.split(",")):
            if value not in known:
                return f"the {slot} {value} is not one of {', '.join(sorted(known))}"
        return None
    return flaw


def finite(score: str) -> str | None:
    """Check that a prediction is a finite number."""
    return f"the score {score} is not a finite number" if _number(score) is None else None


def find_file(run: Path, source: str) -> Path:
    """Return a run's prediction file, or the run if it is a file; raise a SubmissionError if its folder has no such
    file."""
    if not run.is_dir():
        return run
    path = run / source
    if not path.is_file():
        others = sorted(other.name for other in run.glob("*test*") if other.suffix in (".txt", ".ark", ".csv"))
        found = ", ".join(others) or "no other predictions"
        raise SubmissionError(f"{run} has no {source}, only {found}. Make it with: ssamba run-downstream -m evaluate "
                              f"-e {_best_checkpoint(run)}")
    return path


def corpus_option(name: str) -> str:
    """Return the option of ``ssamba submit`` for the corpus of a prediction file."""
    return f"--{re.sub('_.*', '', name)}-corpus"


def refuse(path, problems: list[str], shown: int = 3):
    """Raise SubmissionError with the first problems, if any."""
    if problems:
        more = [f"{path}: {len(problems) - shown:,} more problems"] if len(problems) > shown else []
        raise SubmissionError("\n".join(problems[:shown] + more))


def warn_of_training(path: Path) -> list[str]:
    """Return a warning if s3prl, which overwrites the predictions, evaluated another checkpoint after the best one."""
    log = path.parent / "log.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    tested = re.findall(r"^test at step (\d+):", text, re.MULTILINE)
    best = re.findall(r"^New best on dev at step (\d+):", text, re.MULTILINE)
    # Evaluations after training are logged as step 0.
    if not tested or not best or tested[-1] in ("0", best[-1]):
        return []
    return [f"{path} was written during training, at step {tested[-1]}, but the best checkpoint on dev is "
            f"that of step {best[-1]}. Evaluate that one first: ssamba run-downstream -m evaluate -e "
            f"{path.parent / 'dev-best.ckpt'}"]


def _best_checkpoint(run):
    return next((path for name in ("*best*.ckpt", "states-*.ckpt") for path in sorted(run.glob(name))),
                run / "dev-best.ckpt")


def _differences(path, what, found, expected) -> list[str]:
    """Return a problem for each unexpected or repeated name, and one for the missing names."""
    expected = set(expected)
    problems = [f"{path}: {name} is not a {what} of the test set" for name in sorted(map(str, found))
                if name not in expected]
    if isinstance(found, Counter):
        problems += [f"{path}: {name} occurs {times} times as a {what}" for name, times in found.items() if times > 1]
    if missing := sorted(expected - set(found)):
        problems.append(f"{path}: {len(missing):,} of {len(expected):,} are missing as a {what}: {first(missing)}")
    return problems


def _unchecked(name) -> str:
    return f"Not checked against the official test set, which needs {corpus_option(name)}."


def _unlike_released(name, what, released, corpus, found) -> str:
    return (f"the released test set for {name} has {released:,} {what}, but that of {corpus} has {found:,}. The "
            "leaderboard scores the released one.")


def _number(text) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
