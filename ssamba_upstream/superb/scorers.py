"""External scorers for metrics that s3prl does not compute: dscore, MediaEval's, and language-model decoding.

This package includes none of them and has no substitutes. Without a scorer, its value is left empty, and the table
lists what is missing.
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
"""Script that starts dscore with numpy's former aliases of Python types, which numpy has since removed."""

DECODER = "config.downstream_expert.datarc.decoder_args."


class ScorerError(RuntimeError):
    """Raised when a scorer fails or prints no score; gives the last lines of its output."""


@dataclass(frozen=True)
class Scorers:
    """Locations of the scorers.

    Attributes:
        dscore: folder of a clone of dscore, or None.
        language_model: a KenLM model and the lexicon, or None.
    """

    dscore: Path | None = None
    language_model: tuple[Path, Path] | None = None

    def __post_init__(self):
        if self.dscore is not None and not (self.dscore / "score.py").is_file():
            raise ValueError(f"--dscore {self.dscore}: has no score.py. Give the folder of a clone of {DSCORE_SOURCE}.")
        if self.dscore is not None:
            _require("--dscore", ("h5py", "intervaltree", "tabulate"), f"h5py -r {self.dscore / 'requirements.txt'}")
            if shutil.which("perl") is None:
                raise ValueError("--dscore: perl is not installed. dscore's md-eval needs it.")
        for path in self.language_model or ():
            if not path.is_file():
                raise ValueError(f"--language-model: there is no file {path}. Get the 4-gram from "
                                 "https://www.openslr.org/11 and the letter lexicon from "
                                 "https://dl.fbaipublicfiles.com/fairseq/wav2vec/librispeech_lexicon.lst")
        if self.language_model:
            _require("--language-model", ("kenlm", "flashlight"),
                     "https://github.com/kpu/kenlm/archive/master.zip flashlight-text flashlight-sequence")

    def lacking(self, cell: Cell) -> str | None:
        """Return a sentence that lists what a cell's scorer needs and lacks; None if it is complete."""
        if cell.scorer == "dscore":
            if self.dscore is None:
                return f"DER needs dscore: git clone {DSCORE_SOURCE}, and give its folder with --dscore"
            if not _reference(cell).is_file():
                return f"DER needs the reference {_reference(cell)}"
        if cell.scorer == "MediaEval's scorer":
            needed = [_scoring(cell) / name for name in (SCORER, *GROUND_TRUTHS.values())]
            if absent := [str(path) for path in needed if not path.exists()]:
                return f"MTWV, by which the layer is chosen, needs {', '.join(absent)}: {REMEDY}"
        if cell.scorer == "language model" and self.language_model is None:
            return "WER with LM needs --language-model, and is optional"
        return None

    def score(self, cell: Cell, experiment: Path, run: Callable[[str], str]) -> dict:
        """Run a cell's scorer and return the values.

        Args:
            cell: a cell whose scorer is complete.
            experiment: s3prl's folder with the test predictions; the dev predictions are in "<experiment>-dev".
            run: function that takes an override in the form of s3prl's ``-o``, evaluates again and returns the output.

        Returns:
            dict with "test", the values by metric name, and for some tasks "dev", a single value, in the table's units.

        Raises:
            ScorerError: If the scorer failed.
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
    """Return the DER in percent, the lowest over s3prl's medians and thresholds, as SUPERB reports it."""
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
    """Return the MTWV in percent, measured by the script that comes with QUESST 2014."""
    printed = _run([scoring / SCORER, experiment.resolve(), ground_truth, "-10"], cwd=scoring)
    written = experiment / "score.out"
    text = written.read_text(errors="replace") if written.is_file() else printed
    return 100 * float(_found(r"maxTWV:\s+(\S+)", text, SCORER))


def _require(option, packages, install):
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"{option}: missing packages: {', '.join(absent)}. Run: pip install {install}")


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
        raise ScorerError(_message(f"{program} printed no score that matches {pattern}", text))
    return match[1]


def _message(what, printed, shown=6):
    return "\n    ".join([f"{what}; its output ends with:", *printed.strip().splitlines()[-shown:]])
