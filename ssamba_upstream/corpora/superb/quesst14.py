"""QUESST 2014 with queries and the recordings to search: SUPERB's query by example."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...files import new_folder, write_text
from ..report import CorpusError, CorpusReport, absolute, override, read_lines, recordings_of
from .utterances import Utterance, write_wav

LISTS = {"dev": "language_key_dev.lst", "test": "language_key_eval.lst", "documents": "language_key_utterances.lst"}
RELEASED = {"dev": 138, "test": 138, "documents": 2438}  # in English
GROUND_TRUTHS = {"dev": "groundtruth_quesst14_dev", "test": "groundtruth_quesst14_eval"}
SCORER = "score-TWV-Cnxe.sh"
LANGUAGE = "nnenglish"
REMEDY = "unpack https://speech.fit.vutbr.cz/files/quesst14Database.tgz"


def check(root, _=None) -> CorpusReport:
    """Check QUESST 2014 for s3prl's ``quesst14_dtw`` downstream.

    Args:
        root: ``quesst14Database``, with ``scoring/language_key_dev.lst``, ``language_key_eval.lst`` and
            ``language_key_utterances.lst``, whose lines are "quesst14Database/<path in root> <language>". s3prl uses
            the English recordings.
    """
    root = absolute(root)
    report = CorpusReport("QUESST 2014 (query by example)", root, override({"datarc.dataset_root": root}))
    with report.checking(REMEDY):
        report.require_folder()
        for part in LISTS:
            with report.collecting():
                recordings = read_list(root, part)
                report.counts[part] = {"recordings": len(recordings)}
                report.recordings[part] = recordings_of({os.path.relpath(path, root): path for path in recordings})
                report.texts[LISTS[part]] = root / "scoring" / LISTS[part]
                report.read_headers(report.check_exist(recordings, LISTS[part], REMEDY))
        absent = [name for name in (SCORER, *GROUND_TRUTHS.values()) if not os.path.exists(root / "scoring" / name)]
        if absent:
            report.notes.append(f"{root / 'scoring'} has no {', '.join(absent)}, which MediaEval's scorer needs for "
                                f"the MTWV by which the layer is chosen; {REMEDY}.")
        report.compare({part: counts["recordings"] for part, counts in report.counts.items()}, RELEASED)
    return report


def read_list(root: Path, part: str) -> list[Path]:
    """Return the English recordings of the dev queries, the test queries or the documents; if there are none or the
    list is malformed, raise a CorpusError."""
    path = root / "scoring" / LISTS[part]
    lines = read_lines(path, r"\s*(\S+)\s+(\S+)\s*", "<recording> <language>", f"To get it, {REMEDY}.")
    recordings = [root / re.sub(r"^.*?/", "", name) for name, language in lines.values() if language == LANGUAGE]
    if not recordings:
        raise CorpusError(f"{path} has no recording in {LANGUAGE}; {REMEDY}.")
    return recordings


def find_test_set(corpus: Path) -> tuple[list[str], list[str]]:
    """Return s3prl's names for the test queries, and those for the documents."""
    return tuple([path.with_suffix("").name for path in read_list(corpus, part)] for part in ("test", "documents"))


def write_quesst14(out, utterances: Iterable[Utterance]) -> None:
    """Write QUESST 2014's recordings and lists.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances with "dev", "test" or "documents" as split, and the language as label.
    """
    lines = {part: [] for part in LISTS}
    folders = {"dev": "dev_queries/quesst14_dev", "test": "eval_queries/quesst14_eval", "documents": "Audio/quesst14"}
    with new_folder(out) as folder:
        for utterance in utterances:
            part = lines[utterance.split]
            name = f"{folders[utterance.split]}_{1 + len(part):04d}.wav"
            write_wav(folder / name, utterance.samples)
            part.append(f"quesst14Database/{name} {utterance.label}\n")
        for part, name in LISTS.items():
            write_text("".join(lines[part]), folder / "scoring" / name)
