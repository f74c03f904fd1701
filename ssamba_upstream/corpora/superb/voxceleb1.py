"""VoxCeleb1 with speakers: SUPERB's speaker identification."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ...files import new_folder
from ..report import (
    CorpusError,
    CorpusReport,
    absolute,
    compare,
    find_named,
    first,
    override,
    problems_reported,
    read_text,
    recordings_of,
    require_16_khz_mono,
    require_disjoint,
    require_folder,
)
from .utterances import Utterance, write_wav

NAME = "VoxCeleb1 (speaker identification)"
SPLITS_BY_DIGIT = {"1": "train", "2": "dev", "3": "test"}
SPLIT_FILES = ("veri_test_class.txt", "iden_split.txt")
SPEAKERS = 1251
RELEASED = {"train": 138361, "dev": 6904, "test": 8251}


def check(root, split_file=None) -> CorpusReport:
    """Check VoxCeleb1 for s3prl's ``voxceleb1`` downstream.

    Args:
        root: folder with ``dev/wav/id10001/<video>/<n>.wav`` and so on; the first level can have any names.
        split_file: text file with lines ``<1|2|3> id10001/<video>/<n>.wav`` for train, dev and test: VoxCeleb's
            ``iden_split.txt``, which s3prl calls ``veri_test_class.txt``. Default: a file with either name in root.

    Returns:
        The report, with the numbers of utterances and speakers per split. Problems are reported, not raised.
    """
    root = absolute(root)
    split_file = absolute(split_file or find_split_file(root))
    report = CorpusReport(NAME, root,
                          override({"datarc.file_path": root, "datarc.meta_data": split_file}))
    with problems_reported(report):
        require_folder(report)
        utterances = _check_split_file(split_file, report)
        listed = [path for paths in utterances.values() for path in paths.values()]
        found = _voxceleb_files(root)
        missing = [path for path in listed if path not in found]
        if missing:
            report.problems.append(f"{len(missing):,} of the {len(listed):,} utterances in {split_file} are "
                                   f"not in {root}/*/wav/: {first(missing)}; unpack the archives that contain "
                                   "them (dev, test).")
        report.texts["split file"] = split_file
        report.recordings = {split: recordings_of({path.replace("/", "-"): found[path] for path in paths.values()
                                                   if path in found}) for split, paths in utterances.items()}
        require_disjoint(report, f"correct {split_file}")
        require_16_khz_mono([found[path] for path in listed if path in found], report)
        compare(report, {split: len(paths) for split, paths in utterances.items()}, RELEASED)
    return report


def find_split_file(root: Path) -> Path:
    """Return the path of VoxCeleb1's split file in a folder, under either of its names; by default the first."""
    return find_named(root, SPLIT_FILES)


def read_split_file(split_file: Path) -> tuple[dict[str, dict[int, str]], dict[int, str]]:
    """Read VoxCeleb1's split file.

    Returns:
        For train, dev and test, the utterances as ``id10001/<video>/<n>.wav`` by line number; and all malformed
        lines by line number.

    Raises:
        CorpusError: If the file cannot be read.
    """
    lines = read_text(split_file, "The split file is https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/"
                                  f"iden_split.txt, which s3prl calls {SPLIT_FILES[0]}; save it in "
                                  f"{split_file.parent} or pass its path.").splitlines()
    utterances = {split: {} for split in SPLITS_BY_DIGIT.values()}
    malformed = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"\s*([123])\s+(id\d{5}/[^/\s]+/[^/\s]+)\s*", line)
        if match:
            utterances[SPLITS_BY_DIGIT[match[1]]][number] = match[2]
        else:
            malformed[number] = line
    return utterances, malformed


def labelled_utterances(root: Path):
    """Yield the path, speaker, split and video of every utterance in the split file."""
    files = {name.split("/wav/", 1)[1]: root / name for name in glob.iglob("*/wav/*/*/*", root_dir=root)}
    for line in find_split_file(root).read_text().splitlines():
        digit, name = line.split()
        yield files[name], name.split("/")[0], SPLITS_BY_DIGIT[digit], name.rpartition("/")[0]


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's utterances, by s3prl's names; ``corpus`` can be the split file."""
    split_file = find_split_file(corpus) if corpus.is_dir() else corpus
    utterances, malformed = read_split_file(split_file)
    for number, line in malformed.items():
        raise CorpusError(f"{split_file}, line {number}: {line[:60]!r} is not "
                          "'<1|2|3> id10001/<video>/<n>.wav'; correct or delete it.")
    if not utterances["test"]:
        raise CorpusError(f"{split_file} lists no utterances for test, on lines that start with 3.")
    return {Path(path.replace("/", "-")).stem: f"{split_file}, line {number}"
            for number, path in utterances["test"].items()}


def write_voxceleb1(out, utterances: Iterable[Utterance]) -> None:
    """Write VoxCeleb1: ``OUT/dev/wav/<speaker>/<video>/<n>.wav`` and the split file ``OUT/veri_test_class.txt``.

    Args:
        out: a folder that does not exist yet or is empty.
        utterances: utterances with speakers ``id10001`` to ``id11251`` as labels.

    Raises:
        FileExistsError: If ``out`` exists and is not empty.
    """
    digits = {split: digit for digit, split in SPLITS_BY_DIGIT.items()}
    counts = Counter()
    with new_folder(out) as folder, open(folder / SPLIT_FILES[0], "w", encoding="utf-8") as split_file:
        for utterance in utterances:
            video = f"{utterance.label}/{utterance.recording}"
            counts[video] += 1
            name = f"{video}/{counts[video]:05d}.wav"
            write_wav(folder / "dev" / "wav" / name, utterance.samples)
            split_file.write(f"{digits[utterance.split]} {name}\n")


def _check_split_file(split_file: Path, report: CorpusReport) -> dict[str, dict[int, str]]:
    """Return the utterances in every split, see ``read_split_file``; add counts and problems to the report."""
    utterances, malformed = read_split_file(split_file)
    if malformed:
        listing = first([f"line {number} ({line[:60]!r})" for number, line in malformed.items()])
        report.problems.append(f"{split_file} has lines that are not '<1|2|3> id10001/<video>/<n>.wav': "
                               f"{listing}; correct or delete them, including empty ones.")
    speakers = {split: {path[:7] for path in paths.values()} for split, paths in utterances.items()}
    for digit, split in SPLITS_BY_DIGIT.items():
        report.counts[split] = {"utterances": len(utterances[split]), "speakers": len(speakers[split])}
        if not utterances[split]:
            report.problems.append(f"{split_file} lists no utterances for {split}, on lines that start with "
                                   f"{digit}; s3prl needs all three splits.")
    everyone = sorted(set().union(*speakers.values()))
    foreign = [name for name in everyone if not 1 <= int(name[2:]) - 10000 <= SPEAKERS]
    if foreign:
        report.problems.append(f"{split_file} has speakers outside id10001 to id{10000 + SPEAKERS}, the "
                               f"classes of s3prl's classifier: {first(foreign)}; rename them within that "
                               "range.")
    return utterances


def _voxceleb_files(root: Path) -> dict[str, Path]:
    """Return the files by their path in ``wav``, from one listing of the folder; s3prl lists it once per utterance."""
    names = [name.replace(os.sep, "/") for name in glob.iglob("*/wav/*/*/*", root_dir=root)]
    if not names:
        if any(root.glob("wav/id1*")):
            advice = f"give {root.parent}"
        elif any(root.glob("id1*")):
            advice = f"move the id1xxxx folders into {root}/dev/wav/"
        else:
            advice = "unpack vox1_dev_wav.zip into dev/ and vox1_test_wav.zip into test/"
        raise CorpusError(f"{root} contains no files <part>/wav/id10001/<video>/<n>.wav with exactly one "
                          f"folder, such as dev or test, above wav; {advice}.")
    return {name.split("/wav/", 1)[1]: root / name for name in names}
