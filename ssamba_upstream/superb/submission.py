"""predict.zip for SUPERB's leaderboard: the predictions of s3prl's runs, checked line by line.

The layout and file names are those of s3prl's ``submit/submit.py``, which copies the files without checking them.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..corpora.report import CorpusError
from ..files import replacing
from .predictions import SubmissionError
from .tasks import PREDICTIONS, TASKS

FOLDERS = {"asv": "sv"}
"""The leaderboard's task names in the zip's folders, if they differ from ours."""

ER_FOLDS = tuple(name for name, _ in TASKS["er"].predictions)


@dataclass
class Submission:
    """A written submission.

    Attributes:
        path: the zip file.
        predictions: number of predictions (or of values, if measured locally) by name in ``PREDICTIONS``.
        checks: a sentence for each name on how far its predictions could be checked.
        warnings: sentences about well-formed predictions that may still be the wrong ones.
    """

    path: Path
    predictions: dict[str, int] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __str__(self):
        lines = [f"wrote {self.path}"]
        lines += [f"  {name:9}{count:,} predictions. {self.checks[name]}" for name, count in self.predictions.items()]
        absent = dict.fromkeys("er" if name in ER_FOLDS else name for name in PREDICTIONS
                               if name not in self.predictions)
        if absent:
            lines.append(f"  Not included, and so not scored: {', '.join(absent)}.")
        lines.append("  Not included either: st, speech translation, which this package does not run.")
        lines += [f"  Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def write_submission(out, runs: Mapping, corpora: Mapping | None = None) -> Submission:
    """Check the predictions of s3prl's runs and write them in the leaderboard's layout.

    A run is the folder of an s3prl experiment, or the prediction file in it. Tasks without a run are skipped; the
    leaderboard scores the tasks that are included.

    If a corpus is given, the predictions must contain every utterance of its test set exactly once, and no others.
    Otherwise, the names and number of the utterances must match the released corpus, and the result says what was not
    checked.

    Args:
        out: folder for ``predict.zip``, or a file ending in ``.zip``; an existing file is replaced.
        runs: runs by name in ``PREDICTIONS``: ``pr``, ``asr``, ``asr_lm``, ``sf``, ``ic``, ``sid``, ``asv``, ``sd``,
            ``qbe``, ``se``, ``ss``, ``ks``, and ``er_fold1`` to ``er_fold5``, all five or none.
        corpora: paths by the same names, as accepted by the corpora's ``find_test_set``.

    Returns:
        The Submission: what was written and how far it was checked.

    Raises:
        SubmissionError: If there is nothing to submit, a fold is missing, or predictions are empty or have a missing,
            repeated or unknown utterance, an unknown label, a malformed line, CRLF line endings or a byte order mark.
            Nothing is written then.
        OSError: If a file cannot be read or written.
    """
    corpora = corpora or {}
    _check_completeness(runs)
    out = Path(out)
    submission = Submission(out if out.suffix == ".zip" else out / "predict.zip")
    contents, problems = {}, []
    for name in filter(runs.__contains__, PREDICTIONS):
        corpus = Path(corpora[name]) if corpora.get(name) else None
        try:
            checked = PREDICTIONS[name].read(name, Path(runs[name]), corpus)
        except (SubmissionError, CorpusError) as error:
            problems.append(f"{name}: {error}")
            continue
        folder = f"predict/{FOLDERS.get(name, name)}_public"
        contents.update({f"{folder}/{file}": content for file, content in checked.files.items()})
        submission.predictions[name], submission.checks[name] = checked.count, checked.check
        submission.warnings += checked.warnings
    if problems:
        raise SubmissionError("\n".join(["nothing was written, because there are problems:", *problems]))
    with replacing(submission.path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return submission


def _check_completeness(runs: Mapping):
    if not runs:
        raise SubmissionError(f"there is nothing to submit. Give the run of at least one of {', '.join(PREDICTIONS)}.")
    unknown = [name for name in runs if name not in PREDICTIONS]
    if unknown:
        raise SubmissionError(f"the leaderboard has no {', '.join(unknown)}. It has {', '.join(PREDICTIONS)}.")
    missing = [name for name in ER_FOLDS if name not in runs]
    if missing and len(missing) < len(ER_FOLDS):
        raise SubmissionError(f"ER is scored only with all five folds; missing: {', '.join(missing)}. "
                              "Give the runs of all five, or none to submit without ER.")
