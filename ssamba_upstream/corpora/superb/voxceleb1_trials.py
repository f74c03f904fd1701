"""VoxCeleb1 with trials of two recordings: SUPERB's speaker verification."""

from collections.abc import Iterable
from pathlib import Path

from ...audio import SAMPLE_RATE
from ...files import new_folder, write_text
from ..report import CorpusError, CorpusReport, absolute, find_named, override, read_lines, recordings_of
from .utterances import Utterance, write_wav

TRIAL_LISTS = ("voxceleb1_test_v2.txt", "veri_test2.txt", "veri_test.txt")
SHORTEST = 2.0  # seconds after s3prl's removal of silence; shorter recordings are not used for training
RELEASED = {"speakers for training": 1211, "trials": 37720}
SOURCE = "https://www.openslr.org/resources/49/voxceleb1_test_v2.txt"
ARCHIVES = "unpack vox1_dev_wav.zip into dev/ and vox1_test_wav.zip into test/"


def check(root, trial_list=None) -> CorpusReport:
    """Check VoxCeleb1 and its trials for s3prl's ``sv_voxceleb1`` downstream.

    Args:
        root: folder with ``dev/wav/id10001/<video>/<n>.wav`` for training, with a folder for each speaker, and
            ``test/wav`` for the trials.
        trial_list: text file with lines ``<0|1> id10270/<video>/<n>.wav id10271/<video>/<n>.wav``; 1 means the same
            speaker. Default: a file in root with one of the names in ``TRIAL_LISTS``.
    """
    root = absolute(root)
    trial_list = absolute(trial_list or find_named(root, TRIAL_LISTS))
    # s3prl also opens the list of dev trials, but always evaluates that of the test set.
    report = CorpusReport("VoxCeleb1 (speaker verification)", root, override({
        "datarc.file_path": root, "datarc.dev_meta_data": trial_list, "datarc.test_meta_data": trial_list}))
    with report.checking(ARCHIVES):
        report.require_folder()
        speakers = _check_training(report)
        trials = _read_trials(trial_list, report)
        _check_trials(trial_list, trials, report)
        tested = {name.split("/")[0] for _, *pair in trials.values() for name in pair}
        report.add_problem(f"{len(tested & speakers):,} of the {len(tested):,} speakers in the trials are in "
                           f"{root / 'dev' / 'wav'}, on which s3prl trains", sorted(tested & speakers),
                           "move their folders to test/wav")
        report.compare({"speakers for training": len(speakers), "trials": len(trials)}, RELEASED)
    return report


def _read_trials(path: Path, report: CorpusReport | None = None) -> dict[int, tuple[str, str, str]]:
    """Return (label, recording, recording) by line number, see :func:`read_lines`."""
    recording = r"\s+(id\d{5}/[^/\s]+/[^/\s]+\.wav)"
    return read_lines(path, rf"([01]){recording}{recording}\s*",
                      "<0|1> id10270/<video>/<n>.wav id10271/<video>/<n>.wav",
                      f"The list of trials is {SOURCE}; save it in {path.parent} or pass its path.", report)


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the trials in their list, by s3prl's names for them; ``corpus`` can be the list."""
    path = find_named(corpus, TRIAL_LISTS) if corpus.is_dir() else corpus
    return {"_".join(recording.replace("/", "-").split(".")[0] for recording in pair): f"{path}, line {number}"
            for number, (_, *pair) in _read_trials(path).items()}


def write_voxceleb1_trials(out, utterances: Iterable[Utterance]) -> None:
    """Write VoxCeleb1 for verification: ``dev/wav``, ``test/wav`` and the trials of all pairs of test recordings.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances with split "train" or "test", and speakers ``id10001`` and so on as labels.
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
    """Return the training speakers; add problems to the report."""
    folder = report.root / "dev" / "wav"
    speakers = {path.name for path in folder.glob("*") if path.is_dir()}
    recordings = sorted(folder.glob("*/*/*.wav"))
    report.counts["train"] = {"utterances": len(recordings), "speakers": len(speakers)}
    report.recordings["train"] = recordings_of({"-".join(path.parts[-3:]): path for path in recordings})
    if len(speakers) < 2 or not recordings:
        raise CorpusError(f"{folder} contains {len(speakers)} speaker(s) and {len(recordings)} recording(s) "
                          f"id10001/<video>/<n>.wav, but s3prl needs two or more speakers; {ARCHIVES}.")
    headers = report.read_headers(recordings)
    if headers and all(header.duration <= SHORTEST for _, header in headers):
        report.problems.append(f"None of {len(headers)} recordings in {folder} is longer than {SHORTEST:g} s, and "
                               "s3prl does not train on shorter ones; restore the released recordings.")
    return speakers


def _check_trials(path: Path, trials: dict, report: CorpusReport):
    labels = [label for label, *_ in trials.values()]
    report.counts["test"] = {"trials": len(trials), "of one speaker": labels.count("1")}
    if len(set(labels)) < 2:
        report.problems.append(f"{path} needs trials of one speaker and trials of two, because the equal error rate "
                               f"compares them; save {SOURCE} again.")
    folder = report.root / "test" / "wav"
    names = sorted({name for _, *pair in trials.values() for name in pair})
    report.texts["trials"] = path
    report.recordings["test"] = recordings_of({name.replace("/", "-"): folder / name for name in names})
    found = report.check_exist([folder / name for name in names], "the trials", ARCHIVES)
    for recording, header in report.read_headers(found):
        if header.rate != SAMPLE_RATE:
            report.notes.append(f"{recording} has {header.rate} Hz; s3prl resamples this corpus.")
            break
