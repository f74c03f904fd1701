"""predict.zip for SUPERB's leaderboard: the predictions of s3prl's runs, checked line by line.

Layout and file names are those of s3prl's ``submit/submit.py``, which copies the files unread.
"""

import codecs
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..corpora import iemocap, speech_commands, voxceleb1
from ..corpora.iemocap import EMOTIONS, SESSIONS
from ..corpora.report import CorpusError
from ..corpora.speech_commands import CLASSES
from ..files import replacing

SHOWN = 3


class SubmissionError(ValueError):
    """Predictions that must not be submitted; names files and lines, and what was expected there."""


@dataclass
class Submission:
    """What was written.

    Attributes:
        path: the zip file.
        utterances: number of predictions for each of ``sid``, ``ks`` and ``er_fold1`` to ``er_fold5`` that is in it.
        checks: for each of these, how far they could be checked, in a sentence.
        warnings: sentences about predictions that are well-formed and may still not be the ones wanted.
    """

    path: Path
    utterances: dict[str, int] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __str__(self):
        lines = [f"wrote {self.path}"]
        lines += [f"  {name:9}{count:,} utterances. {self.checks[name]}"
                  for name, count in self.utterances.items()]
        absent = [task for task in ("sid", "ks", "er")
                  if not any(name.startswith(task) for name in self.utterances)]
        if absent:
            lines.append(f"  Not in it, and so not scored: {', '.join(absent)}.")
        lines += [f"  Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def write_submission(out, sid=None, ks=None, er_folds: Sequence = (), *, sid_corpus=None, ks_corpus=None,
                     er_corpus=None) -> Submission:
    """Check the predictions of s3prl's runs and write them as the leaderboard wants them.

    A run is the folder of an s3prl experiment, or the prediction file in it. Tasks that are not given are
    left out; the leaderboard scores those that are there.

    With a corpus, every utterance of its test set must be there once, and no other. Without, the form of
    the utterances' names and their number must be the released corpus's, and the result says what was not
    checked.

    Args:
        out: folder for ``predict.zip``, or a file ending in ``.zip``; an older file of that name is replaced.
        sid, ks: runs of ``voxceleb1`` and ``speech_commands``.
        er_folds: runs of ``emotion`` with test_fold fold1 to fold5, in this order; all five or none.
        sid_corpus: VoxCeleb1's split file, or the folder that holds it.
        ks_corpus: the folder of Speech Commands' test set, or the folder that holds it.
        er_corpus: IEMOCAP's folder, with ``Session1`` to ``Session5``.

    Returns:
        What was written and how far it was checked.

    Raises:
        SubmissionError: nothing to submit, a missing fold, or predictions with a missing, repeated or
            unknown utterance, an unknown label, a malformed line, CRLF line ends, a byte order mark, or
            nothing in them. Nothing is written then.
        OSError: a file cannot be read or written.
    """
    runs = {"sid": sid, "ks": ks, **{f"er_fold{fold}": run for fold, run in enumerate(er_folds, 1)}}
    runs = {name: Path(run) for name, run in runs.items() if run is not None}
    _check_completeness(runs)
    corpora = {"sid": sid_corpus, "ks": ks_corpus, **dict.fromkeys(ER_FOLDS, er_corpus)}
    out = Path(out)
    submission = Submission(out if out.suffix == ".zip" else out / "predict.zip")
    contents, problems = {}, []
    for name, run in runs.items():
        corpus = None if corpora[name] is None else Path(corpora[name])
        try:
            contents[name] = _read_checked(name, run, corpus, submission)
        except (SubmissionError, CorpusError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise SubmissionError("\n".join(["nothing was written, for there are problems:", *problems]))
    _write_zip(contents, submission.path)
    return submission


@dataclass(frozen=True)
class _Predictions:
    """What belongs into one of the prediction files."""

    file_name: str  # s3prl's, in the folder of the run
    labels: tuple[str, ...]
    utterance: str  # pattern of the released corpus's names
    released: int  # how many the released test set has
    find_test_set: Callable[[Path], dict[str, str]]
    corpus_option: str


ER_FOLDS = tuple(f"er_fold{fold}" for fold in range(1, len(SESSIONS) + 1))

PREDICTIONS = {
    "sid": _Predictions(
        "test_predict.txt", tuple(f"id{10000 + number}" for number in range(1, voxceleb1.SPEAKERS + 1)),
        r"id1\d{4}-\S+-\d{5}", voxceleb1.RELEASED["test"], voxceleb1.find_test_set, "--sid-corpus"),
    "ks": _Predictions(
        "test_predict.txt", CLASSES,
        rf"(?:{'|'.join(CLASSES)})-\S+\.wav", speech_commands.RELEASED["v0.01"]["test"],
        speech_commands.find_test_set, "--ks-corpus"),
    **{
        f"er_fold{fold}": _Predictions(
            f"test_fold{fold}_predict.txt", tuple(EMOTIONS),
            rf"Ses0{fold}[FM]_\S+", iemocap.RELEASED_SESSIONS[session],
            partial(iemocap.find_test_set, session=session), "--er-corpus")
        for fold, session in enumerate(SESSIONS, 1)
    },
}


# Checks


def _check_completeness(runs: dict[str, Path]):
    if not runs:
        raise SubmissionError("there is nothing to submit; give the run of one or more of sid, ks and er")
    unknown = [name for name in runs if name not in PREDICTIONS]
    if unknown:
        raise SubmissionError(f"ER has five folds; there is no {', '.join(unknown)}")
    missing = [name for name in ER_FOLDS if name not in runs]
    if missing and len(missing) < len(ER_FOLDS):
        raise SubmissionError(f"ER needs all five folds to be scored, and {', '.join(missing)} is missing; "
                              "give the runs of all five, or none to submit without ER")


def _read_checked(name: str, run: Path, corpus: Path | None, submission: Submission) -> bytes:
    """The content of a run's prediction file; what there is to say about it goes into the submission."""
    expected = PREDICTIONS[name]
    path = _prediction_file(run, expected)
    content = path.read_bytes()
    predictions, problems = _parse(path, content)
    if not problems:
        test_set = None if corpus is None else expected.find_test_set(corpus)
        problems = _check_lines(path, predictions, expected, test_set)
        problems += _check_whole(path, predictions, expected, test_set)
    if problems:
        shown = problems[:SHOWN]
        if len(problems) > SHOWN:
            shown.append(f"{path}: {len(problems) - SHOWN:,} more problems")
        raise SubmissionError("\n".join(shown))
    submission.utterances[name] = len(predictions)
    if corpus is None:
        submission.checks[name] = ("Form, number and labels are right. Not checked: that they are those of "
                                   f"the official test set, which needs {expected.corpus_option}.")
    else:
        submission.checks[name] = f"They are the test set of {corpus}, each once."
    if len(predictions) != expected.released:
        submission.warnings.append(f"the released test set for {name} has {expected.released:,} utterances, "
                                   f"that of {corpus} {len(predictions):,}, and the leaderboard scores the "
                                   "released one.")
    submission.warnings += _warn_of_training(path)
    return content


def _prediction_file(run: Path, expected: _Predictions) -> Path:
    if not run.is_dir():
        return run
    path = run / expected.file_name
    if not path.is_file():
        others = sorted(other.name for other in run.glob("test_*predict.txt"))
        found = ", ".join(others) or "no other predictions"
        raise SubmissionError(f"{run} has no {expected.file_name}, but {found}; to make it: "
                              f"ssamba run-downstream -m evaluate -e {run / 'dev-best.ckpt'}")
    return path


def _parse(path: Path, content: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """(utterance, label) of every line, and what is wrong with the form of the file."""
    if not content:
        return [], [f"{path}, line 1: there is none, the file is empty; expected '<utterance> <label>'"]
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return [], [f"{path}, line 1: begins with a byte order mark; save the file as UTF-8 without one"]
    *lines, rest = content.decode("utf-8", errors="replace").split("\n")
    predictions, problems = [], []
    for number, line in enumerate(lines, 1):
        if match := re.fullmatch(r"(\S+) (\S+)", line):
            predictions.append(match.groups())
        elif line.endswith("\r"):
            problems.append(f"{path}, line {number}: ends with CRLF; convert the file to LF line ends")
        else:
            problems.append(f"{path}, line {number}: {line[:60]!r} is not '<utterance> <label>'")
    if rest:
        problems.append(f"{path}, line {len(lines) + 1}: has no line end, so the file was cut off there")
    return predictions, problems


def _check_lines(path, predictions, expected: _Predictions, test_set) -> list[str]:
    problems, first_lines = [], {}
    for number, (utterance, label) in enumerate(predictions, 1):
        line = f"{path}, line {number}"
        if utterance in first_lines:
            problems.append(f"{line}: {utterance} is there already, in line {first_lines[utterance]}")
        elif test_set is None and not re.fullmatch(expected.utterance, utterance):
            problems.append(f"{line}: {utterance} does not have the form of the test set's names, "
                            f"{expected.utterance}")
        elif test_set is not None and utterance not in test_set:
            problems.append(f"{line}: {utterance} is not in the test set")
        if label not in expected.labels:
            problems.append(f"{line}: the label {label} is none of {_listing(expected.labels)}")
        first_lines.setdefault(utterance, number)
    return problems


def _check_whole(path, predictions, expected: _Predictions, test_set) -> list[str]:
    predicted = {utterance for utterance, _ in predictions}
    last = f"{path}, line {len(predictions)}, the last"
    if test_set is None:
        if len(predicted) == expected.released:
            return []
        return [f"{last}: this makes {len(predicted):,} utterances, and the released test set has "
                f"{expected.released:,}; {expected.corpus_option} tells which are missing"]
    missing = [f"{utterance} ({place})" for utterance, place in test_set.items()
               if utterance not in predicted]
    if not missing:
        return []
    more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
    return [f"{last}: {len(missing):,} of the {len(test_set):,} utterances of the test set are missing: "
            f"{', '.join(missing[:SHOWN])}{more}"]


def _listing(labels) -> str:
    return ", ".join(labels) if len(labels) <= len(CLASSES) else f"{labels[0]} to {labels[-1]}"


def _warn_of_training(path: Path) -> list[str]:
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


def _write_zip(contents: dict[str, bytes], path: Path):
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(f"predict/{name}_public/predict.txt", content)
