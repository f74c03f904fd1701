"""VoxCeleb1 in trials of two recordings: SUPERB's speaker verification."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...audio import SAMPLE_RATE
from ...files import new_folder, write_text
from ..report import (
    CorpusError,
    CorpusReport,
    absolute,
    compare,
    find_named,
    first,
    override,
    problems_reported,
    read_headers,
    read_text,
    recordings_of,
    require_disjoint,
    require_folder,
)
from .utterances import Utterance, write_wav

TRIAL_LISTS = ("voxceleb1_test_v2.txt", "veri_test2.txt", "veri_test.txt")
SHORTEST = 2.0  # seconds after s3prl's removal of silence; shorter recordings do not train
RELEASED = {"speakers for training": 1211, "trials": 37720}
SOURCE = "https://www.openslr.org/resources/49/voxceleb1_test_v2.txt"
ARCHIVES = "unpack vox1_dev_wav.zip into dev/ and vox1_test_wav.zip into test/"


def check(root, trial_list=None) -> CorpusReport:
    """Check VoxCeleb1 and its trials for s3prl's ``sv_voxceleb1`` downstream.

    Args:
        root: folder with ``dev/wav/id10001/<video>/<n>.wav`` for training, of whom every folder is a speaker, and
            ``test/wav`` for the trials.
        trial_list: text file with lines ``<0|1> id10270/<video>/<n>.wav id10271/<video>/<n>.wav``, 1 for one speaker.
            Default: a file in root with one of the names of ``TRIAL_LISTS``.

    Returns:
        The report, with speakers, recordings and trials. Nothing about the corpus raises.
    """
    root = absolute(root)
    trial_list = absolute(trial_list or find_trial_list(root))
    # s3prl opens the list of dev trials as well, and evaluates the one of the test set in either case.
    report = CorpusReport("VoxCeleb1 (speaker verification)", root, override({
        "datarc.file_path": root, "datarc.dev_meta_data": trial_list, "datarc.test_meta_data": trial_list}))
    with problems_reported(report):
        require_folder(report)
        speakers = _check_training(report)
        trials, malformed = read_trials(trial_list)
        _check_trials(trial_list, trials, malformed, report)
        _check_speakers(trials, speakers, report)
        require_disjoint(report, ARCHIVES)
        compare(report, {"speakers for training": len(speakers), "trials": len(trials)}, RELEASED)
    return report


def find_trial_list(root: Path) -> Path:
    """The list of trials in a folder, under any of its names; the first where there is none."""
    return find_named(root, TRIAL_LISTS)


def read_trials(path: Path) -> tuple[dict[int, tuple[str, str, str]], dict[int, str]]:
    """(label, recording, recording) of every trial, and the lines that are something else, both by line number.

    Raises:
        CorpusError: the file cannot be read.
    """
    lines = read_text(path, f"The list of trials is {SOURCE}; save it in {path.parent} or pass its path.").splitlines()
    recording = r"(id\d{5}/[^/\s]+/[^/\s]+\.wav)"
    matches = {number: re.fullmatch(rf"([01])\s+{recording}\s+{recording}\s*", line)
               for number, line in enumerate(lines, 1)}
    trials = {number: match.groups() for number, match in matches.items() if match}
    return trials, {number: lines[number - 1] for number, match in matches.items() if not match}


def find_test_set(corpus: Path) -> dict[str, str]:
    """s3prl's names of the trials -> where the list has them; ``corpus`` may be the list."""
    path = find_trial_list(corpus) if corpus.is_dir() else corpus
    trials, malformed = read_trials(path)
    for number, line in malformed.items():
        raise CorpusError(f"{path}, line {number}: {line[:60]!r} is not '<0|1> id10270/<video>/<n>.wav "
                          "id10271/<video>/<n>.wav'; correct or delete it.")
    return {"_".join(recording.replace("/", "-").split(".")[0] for recording in pair): f"{path}, line {number}"
            for number, (_, *pair) in trials.items()}


def write_voxceleb1_trials(out, utterances: Iterable[Utterance]) -> None:
    """Write VoxCeleb1 for verification: ``dev/wav``, ``test/wav`` and the trials of all pairs of test recordings.

    Args:
        out: a folder that does not exist yet or is empty.
        utterances: of split "train" or "test", with speakers ``id10001`` and so on as labels.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
    """
    tests = []
    with new_folder(out) as folder:
        for number, utterance in enumerate(utterances):
            name = f"{utterance.label}/{utterance.recording}/{number:05d}.wav"
            part = "test" if utterance.split == "test" else "dev"
            write_wav(folder / part / "wav" / name, utterance.samples)
            tests += [name] * (part == "test")
        pairs = [(one, other) for place, one in enumerate(tests) for other in tests[:place]]
        write_text("".join(f"{int(one[:7] == other[:7])} {one} {other}\n" for one, other in pairs),
                   folder / TRIAL_LISTS[0])


def _check_training(report: CorpusReport) -> set[str]:
    """The speakers to train on; flaws go into the report."""
    folder = report.root / "dev" / "wav"
    speakers = {path.name for path in folder.glob("*") if path.is_dir()}
    recordings = sorted(folder.glob("*/*/*.wav"))
    report.counts["train"] = {"utterances": len(recordings), "speakers": len(speakers)}
    report.recordings["train"] = recordings_of({"-".join(path.parts[-3:]): path for path in recordings})
    if len(speakers) < 2 or not recordings:
        raise CorpusError(f"{folder} holds {len(speakers)} speaker(s) and {len(recordings)} recording(s) "
                          f"id10001/<video>/<n>.wav, where s3prl needs two speakers or more; {ARCHIVES}.")
    headers = read_headers(recordings, report)
    if headers and all(header.duration <= SHORTEST for _, header in headers):
        report.problems.append(f"None of {len(headers)} recordings of {folder} is longer than {SHORTEST:g} s, and "
                               "s3prl trains on no shorter ones; restore the released recordings.")
    return speakers


def _check_trials(path, trials, malformed, report: CorpusReport):
    labels = [label for label, *_ in trials.values()]
    report.counts["test"] = {"trials": len(trials), "of one speaker": labels.count("1")}
    if malformed:
        listing = first([f"line {number} ({line[:60]!r})" for number, line in malformed.items()])
        report.problems.append(f"{path} has lines that are not '<0|1> id10270/<video>/<n>.wav "
                               f"id10271/<video>/<n>.wav': {listing}; correct or delete them, empty ones as well.")
    if len(set(labels)) < 2:
        report.problems.append(f"{path} needs trials of one speaker and of two, for the equal error rate is between "
                               f"them; save {SOURCE} anew.")
    folder = report.root / "test" / "wav"
    names = sorted({name for _, *pair in trials.values() for name in pair})
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if missing:
        report.problems.append(f"{len(missing):,} of the {len(names):,} recordings of the trials are not in {folder}: "
                               f"{first(missing)}; {ARCHIVES}.")
    report.texts["trials"] = path
    report.recordings["test"] = recordings_of({name.replace("/", "-"): folder / name for name in names})
    found = [recording.path for recording in report.recordings["test"]]
    for recording, header in read_headers(found, report):
        if header.rate != SAMPLE_RATE:
            report.notes.append(f"{recording} has {header.rate} Hz; s3prl resamples this corpus.")
            break


def _check_speakers(trials, speakers: set[str], report: CorpusReport):
    """Verification is measured with speakers that it has not been trained on."""
    tested = {name.split("/")[0] for _, *pair in trials.values() for name in pair}
    if shared := sorted(tested & speakers):
        report.problems.append(f"{len(shared):,} of the {len(tested):,} speakers of the trials are in "
                               f"{report.root / 'dev' / 'wav'}, whose speakers s3prl trains on: {first(shared)}; move "
                               "their folders to test/wav.")
