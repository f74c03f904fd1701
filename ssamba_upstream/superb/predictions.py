"""The predictions that a submission holds, in the forms in which s3prl writes them, and what each is checked for."""

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
    """Predictions that must not be submitted; names files and lines, and what was expected there."""


@dataclass(frozen=True)
class Checked:
    """Predictions that were found to be well-formed.

    Attributes:
        files: content by name below the task's folder in the zip file.
        count: number of predictions.
        check: how far they could be checked, in a sentence.
        warnings: sentences about what may still not be as wanted.
    """

    files: dict[str, bytes]
    count: int
    check: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lines:
    """A line for every utterance of the test set.

    Attributes:
        source: s3prl's name of the file, in the folder of the run.
        target: its name in the task's folder of the zip file.
        utterance: pattern of the released corpus's names.
        released: how many utterances the released test set has.
        find_test_set: of a corpus's path, returns where each utterance is. Raises CorpusError.
        flaw: of a prediction, says what is wrong with it, or returns None.
        form: of a line, in words.
        pattern: of a line, with groups for the utterance and the prediction.
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
        """Read and check the file of a run; without a corpus, only what can be known without it.

        Raises:
            SubmissionError: it must not be submitted.
            CorpusError: the corpus is not there.
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
            check = ("Form, number and labels are right. Not checked: that they are those of the official test set, "
                     f"which needs {corpus_option(name)}.")
        else:
            check = f"They are the test set of {corpus}, each once."
        return Checked({self.target: content}, len(predictions), check, tuple(warnings))

    def _parse(self, path, content) -> tuple[list[tuple[str, str]], list[str]]:
        """(utterance, prediction) of every line, and what is wrong with the form of the file."""
        if not content:
            return [], [f"{path}, line 1: there is none, the file is empty; expected '{self.form}'"]
        if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return [], [f"{path}, line 1: begins with a byte order mark; save the file as UTF-8 without one"]
        *lines, rest = content.decode("utf-8", errors="replace").split("\n")
        predictions, problems = [], []
        for number, line in enumerate(lines, 1):
            if line.endswith("\r"):
                problems.append(f"{path}, line {number}: ends with CRLF; convert the file to LF line ends")
            elif match := re.fullmatch(self.pattern, line):
                predictions.append(match.groups())
            else:
                problems.append(f"{path}, line {number}: {line[:60]!r} is not '{self.form}'")
        if rest:
            problems.append(f"{path}, line {len(lines) + 1}: has no line end, so the file was cut off there")
        return predictions, problems

    def _check_lines(self, path, predictions, test_set) -> list[str]:
        problems, first_lines = [], {}
        for number, (utterance, prediction) in enumerate(predictions, 1):
            line = f"{path}, line {number}"
            if utterance in first_lines:
                problems.append(f"{line}: {utterance} is there already, in line {first_lines[utterance]}")
            elif test_set is None and not re.fullmatch(self.utterance, utterance):
                problems.append(f"{line}: {utterance} does not have the form of the test set's names, "
                                f"{self.utterance}")
            elif test_set is not None and utterance not in test_set:
                problems.append(f"{line}: {utterance} is not in the test set")
            if flaw := self.flaw(prediction):
                problems.append(f"{line}: {flaw}")
            first_lines.setdefault(utterance, number)
        return problems

    def _check_whole(self, name, path, predictions, test_set) -> list[str]:
        predicted = {utterance for utterance, _ in predictions}
        last = f"{path}, line {len(predictions)}, the last"
        if test_set is None:
            if len(predicted) == self.released:
                return []
            return [f"{last}: this makes {len(predicted):,} utterances, and the released test set has "
                    f"{self.released:,}; {corpus_option(name)} tells which are missing"]
        missing = [f"{utterance} ({place})" for utterance, place in test_set.items() if utterance not in predicted]
        if not missing:
            return []
        return [f"{last}: {len(missing):,} of the {len(test_set):,} utterances of the test set are missing: "
                f"{first(missing)}"]


@dataclass(frozen=True)
class Metrics:
    """Values that s3prl measured: the leaderboard takes them as they are.

    Attributes:
        names: of the values, each on a line "<name> <value>".
        source, target: see :class:`Lines`.
    """

    names: tuple[str, ...]
    source: str = "test_metrics.txt"
    target: str = "metrics.txt"

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """See :meth:`Lines.read`; there is no corpus to compare with."""
        path = find_file(run, self.source)
        content = path.read_bytes()
        problems, values = [], Counter()
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            metric, _, value = line.partition(" ")
            if metric not in self.names or _number(value) is None:
                problems.append(f"{path}, line {number}: {line[:60]!r} is not '<{'|'.join(self.names)}> <number>'")
            values[metric] += 1
        problems += [f"{path}: {metric} is there {values[metric]} times, where once is expected"
                     for metric in self.names if values[metric] != 1]
        refuse(path, problems)
        check = "Not checked: that they were measured on the official test set, for they hold no utterances."
        return Checked({self.target: content}, len(self.names), check)


@dataclass(frozen=True)
class DetectedTerms:
    """A score of every document for every query, in the XML of NIST's spoken term detection.

    Attributes:
        find_test_set: of a corpus's path, returns the queries and the documents. Raises CorpusError.
        source, target: see :class:`Lines`.
    """

    find_test_set: Callable[[Path], tuple[list[str], list[str]]]
    source: str = "benchmark.stdlist.xml"
    target: str = "benchmark.stdlist.xml"

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """See :meth:`Lines.read`."""
        path = find_file(run, self.source)
        content = path.read_bytes()
        try:
            root = ElementTree.parse(io.BytesIO(content)).getroot()
        except ElementTree.ParseError as error:
            raise SubmissionError(f"{path}: is no XML ({error}); evaluate again") from None
        queries = {terms.get("termid"): terms for terms in root.iter("detected_termlist")}
        if root.tag != "stdlist" or not queries:
            raise SubmissionError(f"{path}: expected a stdlist of detected_termlists, and found a {root.tag} of none")
        if corpus is None:
            documents = [term.get("file") for term in next(iter(queries.values())).iter("term")]
            check = ("Every query has a score for every document. Not checked: that they are those of the test set, "
                     f"which needs {corpus_option(name)}.")
            problems = [f"{path}: {query} is a query of dev; evaluate with -t test" for query in queries
                        if "_dev_" in str(query)]
        else:
            expected, documents = self.find_test_set(corpus)
            check = f"They are the queries and documents of {corpus}."
            problems = _differences(path, "query", queries, expected)
        for query, terms in queries.items():
            scored = Counter(term.get("file") for term in terms)
            problems += _differences(path, f"document for {query}", scored, documents)
            problems += [f"{path}: {query}, {term.get('file')}: expected a score and a decision YES or NO"
                         for term in terms
                         if _number(term.get("score", "")) is None or term.get("decision") not in ("YES", "NO")]
        refuse(path, problems)
        return Checked({self.target: content}, len(queries), check)


@dataclass(frozen=True)
class SpeakerActivities:
    """A file for every mixture, ``scoring/predictions/<mixture>.h5``, with two speakers' probabilities in ``T_hat``.

    Attributes:
        released: see :class:`Lines`.
        find_test_set: of a corpus's path, returns where each mixture is. Raises CorpusError.
    """

    released: int
    find_test_set: Callable[[Path], dict[str, str]]

    def read(self, name: str, run: Path, corpus: Path | None) -> Checked:
        """See :meth:`Lines.read`. Also raises ModuleNotFoundError where there is no h5py."""
        frame_shift, folder = run / "frame_shift", run / "scoring" / "predictions"
        paths = sorted(folder.glob("*.h5"))
        if not paths:
            raise SubmissionError(f"{folder} has no .h5; to make them: ssamba run-downstream -m evaluate -e "
                                  f"{run / 'best-states-dev.ckpt'}")
        problems = [problem for path in paths for problem in self._check(path)]
        if not frame_shift.is_file() or not frame_shift.read_text().strip().isdigit():
            problems.append(f"{frame_shift}: expected the samples from frame to frame, which s3prl writes when it "
                            "evaluates; without it 160 would be taken")
        found = {path.stem for path in paths}
        if corpus is not None:
            problems += _differences(folder, "mixture", found, self.find_test_set(corpus))
            check = f"They are the test set of {corpus}, each once."
        else:
            if len(found) != self.released:
                problems.append(f"{folder}: holds {len(found):,} mixtures, and the released test set has "
                                f"{self.released:,}; {corpus_option(name)} tells which are missing")
            check = ("Form and number are right. Not checked: that they are those of the official test set, which "
                     f"needs {corpus_option(name)}.")
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
            return [f"{path}: expected (frames, 2) probabilities, and found {activities.shape}, or others than from 0 "
                    "to 1"]
        return []


def one_of(labels) -> Callable[[str], str | None]:
    """A check that a prediction is one of some labels."""
    known = set(labels)
    listing = ", ".join(labels) if len(labels) <= 12 else f"{labels[0]} to {labels[-1]}"
    return lambda label: None if label in known else f"the label {label} is none of {listing}"


def matching(pattern: str, expected: str) -> Callable[[str], str | None]:
    """A check that a prediction has a form."""
    return lambda text: None if re.fullmatch(pattern, text) else f"{text[:60]!r} is not {expected}"


def words_of(vocabulary) -> Callable[[str], str | None]:
    """A check that a prediction consists of words of a vocabulary, with spaces between them; it may have none."""
    def flaw(text):
        unknown = [word for word in text.split() if word not in vocabulary]
        return f"{unknown[0]} is not in the vocabulary" if unknown else None
    return flaw


def values_of(values: dict[str, set]) -> Callable[[str], str | None]:
    """A check that a prediction has one of the values of every slot, separated by commas."""
    def flaw(text):
        for (slot, known), value in zip(values.items(), text.split(",")):
            if value not in known:
                return f"the {slot} {value} is none of {', '.join(sorted(known))}"
        return None
    return flaw


def finite(score: str) -> str | None:
    """A check that a prediction is a number."""
    return f"the score {score} is no finite number" if _number(score) is None else None


def find_file(run: Path, source: str) -> Path:
    """The file of predictions of a run, which may be the file itself.

    Raises:
        SubmissionError: the run's folder has none.
    """
    if not run.is_dir():
        return run
    path = run / source
    if not path.is_file():
        others = sorted(other.name for other in run.glob("*test*") if other.suffix in (".txt", ".ark", ".csv"))
        found = ", ".join(others) or "no other predictions"
        raise SubmissionError(f"{run} has no {source}, but {found}; to make it: ssamba run-downstream -m evaluate -e "
                              f"{_best_checkpoint(run)}")
    return path


def corpus_option(name: str) -> str:
    """The option of ``ssamba submit`` that gives the corpus for a file of predictions."""
    return f"--{re.sub('_.*', '', name)}-corpus"


def refuse(path, problems: list[str], shown: int = 3):
    """Raise SubmissionError with the first problems, if there are any."""
    if problems:
        more = [f"{path}: {len(problems) - shown:,} more problems"] if len(problems) > shown else []
        raise SubmissionError("\n".join(problems[:shown] + more))


def warn_of_training(path: Path) -> list[str]:
    """s3prl overwrites the predictions at every evaluation; its log tells which one came last."""
    log = path.parent / "log.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    tested = re.findall(r"^test at step (\d+):", text, re.MULTILINE)
    best = re.findall(r"^New best on dev at step (\d+):", text, re.MULTILINE)
    # Evaluations after training are logged as step 0.
    if not tested or not best or tested[-1] in ("0", best[-1]):
        return []
    return [f"{path} was written during training, at step {tested[-1]}, and the best checkpoint on dev is "
            f"that of step {best[-1]}; evaluate that first: ssamba run-downstream -m evaluate -e "
            f"{path.parent / 'dev-best.ckpt'}"]


def _best_checkpoint(run):
    return next((path for name in ("*best*.ckpt", "states-*.ckpt") for path in sorted(run.glob(name))),
                run / "dev-best.ckpt")


def _differences(path, what, found, expected) -> list[str]:
    """What is there that should not be, more than once, or not at all."""
    expected = set(expected)
    problems = [f"{path}: {name} is no {what} of the test set" for name in sorted(map(str, found))
                if name not in expected]
    if isinstance(found, Counter):
        problems += [f"{path}: {name} is there {times} times as a {what}" for name, times in found.items() if times > 1]
    if missing := sorted(expected - set(found)):
        problems.append(f"{path}: {len(missing):,} of {len(expected):,} are missing, as a {what}: {first(missing)}")
    return problems


def _unlike_released(name, what, released, corpus, found) -> str:
    return (f"the released test set for {name} has {released:,} {what}, that of {corpus} {found:,}, and the "
            "leaderboard scores the released one.")


def _number(text) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
