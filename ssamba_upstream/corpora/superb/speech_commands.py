"""Speech Commands with words: SUPERB's keyword spotting, and versions 1 and 2 for fine-tuning."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...audio import AudioError, read_header
from ...files import new_folder
from ..data_set import DataSet, PreparationError, audio_of_folders
from ..labelled import Excerpt
from ..report import CorpusError, CorpusReport, absolute, first, override, recordings_of
from .utterances import Utterance, write_wav

NAME = "Speech Commands (keyword spotting)"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CLASSES = KEYWORDS + ("_unknown_", "_silence_")
BACKGROUND_NOISE = "_background_noise_"
TEST_SET = "speech_commands_test_set_v0.01"

# Number of utterances in the released corpora; train and dev exclude the background noise.
RELEASED = {
    "v0.01": {"train": 51088, "dev": 6798, "test": 3081},
    "v0.02": {"train": 84843, "dev": 9981, "test": 4890},
}

KEYWORD_GAIN = -3.0  # dB, which s3prl's keyword spotting applies to all recordings
PIECES_PER_DEV_PIECE = 10

SPLIT_LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}


def check(root, test_root=None) -> CorpusReport:
    """Check Speech Commands for s3prl's ``speech_commands`` downstream.

    Args:
        root: folder with ``speech_commands_v0.01`` (SUPERB's choice) or ``speech_commands_v0.02``, and with
            ``speech_commands_test_set_v0.01`` or ``_v0.02``; or, with test_root, the training folder itself.
        test_root: folder of the test set, with one folder per class.
    """
    root = absolute(root)
    version = next((version for version in RELEASED
                    if os.path.isdir(root / f"speech_commands_{version}")), None)
    train_root = root / f"speech_commands_{version}" if version else root
    test_root = absolute(test_root) if test_root else root / f"speech_commands_test_set_{version or 'v0.01'}"
    report = CorpusReport(NAME, root, override({"datarc.speech_commands_root": train_root,
                                                "datarc.speech_commands_test_root": test_root}))
    with report.checking("keep the files of the two archives apart, under their released names"):
        report.require_folder()
        backgrounds = sorted((train_root / BACKGROUND_NOISE).glob("*.wav"))
        for path, header in report.read_headers(backgrounds, sampled=False):
            if header.duration < 1:
                report.problems.append(f"{path} lasts {header.duration:.2f} s, but s3prl cuts "
                                       "one second out of every background noise and stops at shorter ones; "
                                       "delete it.")
        words = _by_hash(path for path in train_root.glob("*/*.wav") if path.parent.name != BACKGROUND_NOISE)
        paths = {"train": words["train"], "dev": words["dev"], "test": _test_set(test_root, report)}
        for split, files in paths.items():
            counts = Counter(map(_class_of, files))
            counts["_silence_"] += len(backgrounds) if split != "test" else 0
            report.counts[split] = {name: counts[name] for name in CLASSES}
        _report_absent_classes(report, train_root, test_root)
        for part, files in {**paths, BACKGROUND_NOISE: backgrounds}.items():
            report.recordings[part] = recordings_of({f"{path.parent.name}/{path.name}": path for path in files})
        report.read_headers([path for files in paths.values() for path in files])
        found = {split: len(files) for split, files in paths.items()}
        report.compare(found, RELEASED["v0.01"])
        if found == RELEASED["v0.02"]:
            report.notes[-1] = ("This is Speech Commands v0.02. SUPERB uses v0.01; compare accuracies only with "
                                "others on v0.02.")
    return report


def hash_split(file_name: str) -> str:
    """Return the split of a Speech Commands recording: "train", "dev", or "discarded" for the original test split.

    This is the corpus's own rule, which keeps every speaker in one split: the SHA-1 of the file name up to
    ``_nohash_``, modulo 2 ** 27, as a percentage. Below 10 is dev, below 20 is test.
    """
    bucket = int(hashlib.sha1(_speaker_of(file_name).encode()).hexdigest(), 16) % 2**27
    percentage = 100 * bucket / (2**27 - 1)
    return "dev" if percentage < 10 else "discarded" if percentage < 20 else "train"


def _speaker_of(file_name: str) -> str:
    """Return the hash that identifies an utterance's speaker, or the whole file name if it has none, as for silence."""
    return re.sub(r"_nohash_.*$", "", file_name)


def labelled_utterances(root: Path):
    """Yield the recording, class, split and speaker of every utterance that s3prl uses and every second of noise."""
    train_root = next(root.glob("speech_commands_v0.0[12]"), root / "speech_commands_v0.01")
    test_root = root / train_root.name.replace("speech_commands", "speech_commands_test_set")
    for path in sorted(train_root.glob("*/*.wav")):
        word, split = path.parent.name, hash_split(path.name)
        if word != BACKGROUND_NOISE and split != "discarded":
            yield Excerpt(path, gain=KEYWORD_GAIN), _class_of(path), split, _speaker_of(path.name)
    for path in sorted((train_root / BACKGROUND_NOISE).glob("*.wav")):
        for number, piece in enumerate(_seconds_of(path)):
            yield piece, "_silence_", "train" if number % PIECES_PER_DEV_PIECE else "dev", path.name
    for path in sorted(test_root.glob("*/*.wav")):
        yield Excerpt(path, gain=KEYWORD_GAIN), path.parent.name, "test", _speaker_of(path.name)


def _seconds_of(noise: Path) -> list[Excerpt]:
    """Return every second of a background noise; if unreadable, return the whole, so that its reader reports it."""
    try:
        header = read_header(noise)
    except AudioError:
        return [Excerpt(noise, gain=KEYWORD_GAIN)]
    starts = range(0, header.samples - header.rate + 1, header.rate)
    return [Excerpt(noise, start, start + header.rate, KEYWORD_GAIN) for start in starts]


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's utterances, by s3prl's names for them."""
    folder = corpus / TEST_SET if (corpus / TEST_SET).is_dir() else corpus
    recordings = [path for path in sorted(folder.glob("*/*.wav")) if path.parent.name in CLASSES]
    if not recordings or (folder / BACKGROUND_NOISE).exists():
        raise CorpusError(f"{folder} is not the test set of Speech Commands, with a folder for each class. Give "
                          f"{TEST_SET} or the folder that contains it.")
    return {f"{path.parent.name}-{path.name}": str(path) for path in recordings}


def write_speech_commands(out, utterances: Iterable[Utterance], backgrounds: dict[str, np.ndarray]) -> None:
    """Write Speech Commands: ``OUT/speech_commands_v0.01`` and ``OUT/speech_commands_test_set_v0.01``.

    Args:
        out: folder for the two folders.
        utterances: words, and the test set's ``_unknown_`` and ``_silence_``.
        backgrounds: samples of the background noises by name, from which s3prl cuts ``_silence_`` for
            training; each lasts at least one second.

    Raises:
        FileExistsError: If one of the two folders exists and is not empty.
    """
    out = Path(out)
    counts = Counter()
    with (new_folder(out / "speech_commands_v0.01") as train,
          new_folder(out / "speech_commands_test_set_v0.01") as test):
        for utterance in utterances:
            folder = (test if utterance.split == "test" else train) / utterance.label
            stem = f"{utterance.speaker}_nohash_"
            write_wav(folder / f"{stem}{counts[folder, stem]}.wav", utterance.samples)
            counts[folder, stem] += 1
        for name, samples in backgrounds.items():
            write_wav(train / BACKGROUND_NOISE / f"{name}.wav", samples)


def _by_hash(words: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the recordings of words by :func:`hash_split`, sorted."""
    splits = {"train": [], "dev": [], "discarded": []}
    for path in sorted(words):
        splits[hash_split(path.name)].append(path)
    return splits


def _test_set(test_root: Path, report: CorpusReport) -> list[Path]:
    """Return the test recordings; report folders that are not a class."""
    paths = sorted(test_root.glob("*/*.wav"))
    foreign = sorted({path.parent.name for path in paths} - set(CLASSES))
    if foreign:
        report.problems.append(f"{test_root} has folders that are not one of the twelve classes "
                               f"({first(foreign)}), and s3prl stops at the first file in them; remove "
                               "them.")
    return [path for path in paths if path.parent.name in CLASSES]


def _class_of(recording: Path) -> str:
    return recording.parent.name if recording.parent.name in CLASSES else "_unknown_"


def _report_absent_classes(report: CorpusReport, train_root: Path, test_root: Path):
    remedies = {
        "train": f"{train_root} needs a folder for each keyword, folders of other words for _unknown_, and "
                 f"{BACKGROUND_NOISE} for _silence_",
        "dev": "s3prl selects it from the training folder by a hash of the file names up to '_nohash_', so "
               "keep the released files and names",
        "test": f"{test_root} needs a folder for each of the twelve classes, as in speech_commands_test_set",
    }
    nowhere = {name for name in CLASSES if not any(counts[name] for counts in report.counts.values())}
    keywords_only = nowhere <= set(CLASSES) - set(KEYWORDS)
    if keywords_only and nowhere:
        report.notes.append(f"There are no utterances of {', '.join(sorted(nowhere))} at all. The task has fewer "
                            "classes than SUPERB's, so its accuracy is not comparable with published ones.")
    for split, counts in report.counts.items():
        absent = [name for name in CLASSES if not counts[name] and not (keywords_only and name in nowhere)]
        if absent:
            listing = "any class" if len(absent) == len(CLASSES) else ", ".join(absent)
            report.problems.append(f"The {split} split has no utterances of {listing}; {remedies[split]}.")


def _read_speech_commands(root):
    words = [path for path in audio_of_folders(root) if not path.parent.name.startswith("_")]
    if not words:
        raise PreparationError("there is no folder with recordings of a word")
    absent = [name for name in SPLIT_LISTS.values() if not (root / name).is_file()]
    if len(absent) == len(SPLIT_LISTS):
        return _split_by_hash(root, words)
    if absent:
        raise PreparationError(f"{absent[0]} is missing")
    splits, missing = {path.relative_to(root).as_posix(): "train" for path in words}, []
    listed = {name: split for split, file in SPLIT_LISTS.items() for name in (root / file).read_text().split()}
    folders = {path.parent.name for path in words}
    for name, split in listed.items():
        if name in splits:
            splits[name] = split
        elif name.split("/")[0] in folders:
            missing.append(name)
    if missing:
        raise PreparationError(f"recordings in the two lists are missing: {first(missing)}")
    return [(path, path.parent.name, split) for path, split in zip(words, splits.values())], []


def _split_by_hash(root, words):
    """Split by the rule that produced the two lists, but prefer a test set of the same words next to the folder."""
    by_rule = _by_hash(words)
    note = "There are no lists of the splits, so they were made by speaker, with the rule that produced the lists"
    test_root = root.with_name(root.name.replace("speech_commands", "speech_commands_test_set"))
    tests = audio_of_folders(test_root) if test_root != root else []
    if tests and {path.parent.name for path in tests} <= {path.parent.name for path in words}:
        note += f". The test set is {test_root}; recordings that the rule assigns to test are skipped, as in SUPERB"
    else:
        tests = by_rule["discarded"]
    parts = {"train": by_rule["train"], "dev": by_rule["dev"], "test": tests}
    return [(path, path.parent.name, split) for split, part in parts.items() for path in part], [f"{note}."]


def _speech_commands(version, recordings, classes):
    return DataSet(
        title=f"Speech Commands v0.0{version}",
        folder=f"speech_commands_v0.0{version}",
        read=_read_speech_commands,
        released=recordings,
        classes=classes,
        layout=f"""\
Speech Commands is described in https://arxiv.org/abs/1804.03209; version {version} is at
http://download.tensorflow.org/data/speech_commands_v0.0{version}.tar.gz
Unpack it, and give the folder ROOT with
  ROOT/WORD/SPEAKER_nohash_N.wav   for each of {classes} words, or some of them
  ROOT/validation_list.txt
  ROOT/testing_list.txt""",
    )


SPEECH_COMMANDS_V1 = _speech_commands(1, {"train": 51088, "dev": 6798, "test": 6835}, 30)
SPEECH_COMMANDS_V2 = _speech_commands(2, {"train": 84843, "dev": 9981, "test": 11005}, 35)
