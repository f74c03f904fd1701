"""The programs that measure what s3prl does not: dscore, MediaEval's scorer, and decoding with a language model.

None of them comes with this package, and nothing stands in for one that is not there: the value stays open, and the
table says what would give it.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..corpora.superb.quesst14 import GROUND_TRUTHS, REMEDY, SCORER
from ..files import write_text
from .cells import Cell

MEDIANS = (1, 11)  # frames
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
DSCORE_SOURCE = "https://github.com/ftshijt/dscore"
DSCORE_START = """
import pathlib, runpy, sys
import numpy

for kind in (int, float, bool):
    if kind.__name__ not in vars(numpy):
        setattr(numpy, kind.__name__, kind)
del sys.argv[0]
sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""dscore with numpy's old names of Python's types, which numpy has dropped since and dscore uses."""

DECODER = "config.downstream_expert.datarc.decoder_args."


class ScorerError(RuntimeError):
    """A scorer ended with an error, or printed no score; says what it printed last."""


@dataclass(frozen=True)
class Scorers:
    """Where the scorers are.

    Attributes:
        dscore: folder of a clone of dscore, or None.
        language_model: a model for KenLM and the lexicon, or None.
    """

    dscore: Path | None = None
    language_model: tuple[Path, Path] | None = None

    def __post_init__(self):
        if self.dscore is not None and not (self.dscore / "score.py").is_file():
            raise ValueError(f"--dscore {self.dscore}: has no score.py; give the folder of a clone of {DSCORE_SOURCE}")
        if self.dscore is not None:
            _require("--dscore", ("h5py", "intervaltree", "tabulate"), f"h5py -r {self.dscore / 'requirements.txt'}")
            if shutil.which("perl") is None:
                raise ValueError("--dscore: there is no perl, in which dscore's md-eval is written")
        for path in self.language_model or ():
            if not path.is_file():
                raise ValueError(f"--language-model: there is no file {path}; the 4-gram is on "
                                 "https://www.openslr.org/11, the lexicon of letters on "
                                 "https://dl.fbaipublicfiles.com/fairseq/wav2vec/librispeech_lexicon.lst")
        if self.language_model:
            _require("--language-model", ("kenlm", "flashlight"),
                     "https://github.com/kpu/kenlm/archive/master.zip flashlight-text flashlight-sequence")

    def lacking(self, cell: Cell) -> str | None:
        """What has to be there before a cell's scorer can measure, as a sentence; None where all is there."""
        if cell.scorer == "dscore":
            if self.dscore is None:
                return f"DER needs dscore: git clone {DSCORE_SOURCE}, and --dscore with its folder"
            if not _reference(cell).is_file():
                return f"DER needs the reference {_reference(cell)}"
        if cell.scorer == "MediaEval's scorer":
            needed = [_scoring(cell) / name for name in (SCORER, *GROUND_TRUTHS.values())]
            if absent := [str(path) for path in needed if not path.exists()]:
                return f"MTWV, by which the layer is chosen, needs {', '.join(absent)}: {REMEDY}"
        if cell.scorer == "language model" and self.language_model is None:
            return "WER with LM needs --language-model, and may be left out"
        return None

    def score(self, cell: Cell, experiment: Path, run: Callable[[str], str]) -> dict:
        """What a cell's scorer measures.

        Args:
            cell: whose scorer lacks nothing.
            experiment: s3prl's folder, with the predictions of the test set; beside it, with "-dev", that of dev.
            run: evaluates once more, with an override in the form of s3prl's ``-o``; returns what s3prl printed.

        Returns:
            "dev", a value or nothing, and "test", values by the names of metrics, in the table's units.

        Raises:
            ScorerError: the scorer failed.
        """
        if cell.scorer == "dscore":
            return {"test": {"DER": diarization_error_rate(experiment, _reference(cell), self.dscore)}}
        if cell.scorer == "MediaEval's scorer":
            folders = {"dev": experiment.with_name(f"{experiment.name}-dev"), "test": experiment}
            values = {split: term_weighted_value(folder, _scoring(cell), GROUND_TRUTHS[split])
                      for split, folder in folders.items()}
            return {"dev": values["dev"], "test": {"MTWV": values["test"]}}
        model, lexicon = self.language_model
        printed = run(",,".join([f"{DECODER}decoder_type='kenlm'", f"{DECODER}kenlm_model={str(model)!r}",
                                 f"{DECODER}lexicon={str(lexicon)!r}"]))
        return {"test": {"WER with LM": float(_found(r"test-clean wer: (\S+)", printed, "s3prl"))}}


def diarization_error_rate(experiment: Path, reference: Path, dscore: Path) -> float:
    """DER in percent: the least over s3prl's medians and thresholds, as SUPERB reports it.

    Raises:
        ScorerError: s3prl's make_rttm.py or dscore failed.
    """
    script = Path(importlib.util.find_spec("s3prl").origin).parent / "downstream" / "diarization" / "make_rttm.py"
    scoring, hop = experiment / "scoring", (experiment / "frame_shift").read_text().strip()
    predictions = scoring / "file_list"
    write_text("".join(f"{path}\n" for path in sorted((scoring / "predictions").glob("*.h5"))), predictions)
    rates = []
    for median in MEDIANS:
        for threshold in THRESHOLDS:
            hypothesis = scoring / f"hyp_{threshold}_{median}.rttm"
            _run([sys.executable, script, f"--median={median}", f"--threshold={threshold}", f"--frame_shift={hop}",
                  "--subsampling=1", "--sampling_rate=16000", predictions, hypothesis])
            printed = _run([sys.executable, "-c", DSCORE_START, dscore / "score.py", "-r", reference, "-s", hypothesis])
            rates.append(float(_found(r"\*\*\* OVERALL \*\*\*\s+(\S+)", printed, "dscore")))
    return min(rates)


def term_weighted_value(experiment: Path, scoring: Path, ground_truth: str) -> float:
    """MTWV in percent, by the script that comes with QUESST 2014.

    Raises:
        ScorerError: the script failed.
    """
    printed = _run([scoring / SCORER, experiment.resolve(), ground_truth, "-10"], cwd=scoring)
    written = experiment / "score.out"
    text = written.read_text(errors="replace") if written.is_file() else printed
    return 100 * float(_found(r"maxTWV:\s+(\S+)", text, SCORER))


def _require(option, packages, install):
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"{option}: there is no {' and no '.join(absent)}; pip install {install}")


def _reference(cell):
    return Path(cell.config["downstream_expert"]["loaderrc"]["test_dir"]) / "rttm"


def _scoring(cell):
    return Path(cell.config["downstream_expert"]["datarc"]["dataset_root"]) / "scoring"


def _run(command, cwd=None) -> str:
    done = subprocess.run(list(map(os.fspath, command)), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, errors="replace")
    if done.returncode:
        program = next(Path(part) for part in command if Path(part).suffix in (".py", ".sh"))
        raise ScorerError(_message(f"{program} ended with status {done.returncode}", done.stdout + done.stderr))
    return done.stdout


def _found(pattern, text, program) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ScorerError(_message(f"{program} gave no score that looks like {pattern}", text))
    return match[1]


def _message(what, printed, shown=6):
    return "\n    ".join([f"{what}; it printed last:", *printed.strip().splitlines()[-shown:]])
