"""VoxCeleb1 with speakers: SUPERB's speaker identification."""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ...files import new_folder
from ..report import CorpusError, CorpusReport, absolute, find_named, override, read_lines, recordings_of
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
    """
    root = absolute(root)
    split_file = absolute(split_file or find_named(root, SPLIT_FILES))
    report = CorpusReport(NAME, root, override({"datarc.file_path": root, "datarc.meta_data": split_file}))
    with report.checking(f"correct {split_file}", RELEASED, one_format=True):
        report.require_folder()
        lines, found = _read_split_file(split_file, report), _voxceleb_files(root)
        for digit, split in SPLITS_BY_DIGIT.items():
            names = [name for own, name in lines.values() if own == digit]
            report.counts[split] = {"utterances": len(names), "speakers": len({name[:7] for name in names})}
            report.recordings[split] = recordings_of({name.replace("/", "-"): found[name] for name in names
                                                      if name in found})
        report.texts["split file"] = split_file
        missing = [name for _, name in lines.values() if name not in found]
        report.add_problem(f"{len(missing):,} of the {len(lines):,} utterances in {split_file} are not in "
                           f"{root}/*/wav/", missing, "unpack the archives that contain them (dev, test)")
        speakers = sorted({name[:7] for _, name in lines.values()})
        report.add_problem(f"{split_file} has speakers outside id10001 to id{10000 + SPEAKERS}, the classes of s3prl's "
                           "classifier", [name for name in speakers if not 1 <= int(name[2:]) - 10000 <= SPEAKERS],
                           "rename them within that range")
    return report


def _read_split_file(split_file: Path, report: CorpusReport | None = None) -> dict[int, tuple[str, str]]:
    """Return the digit of the split and ``id10001/<video>/<n>.wav`` by line number, see :func:`read_lines`."""
    return read_lines(split_file, r"\s*([123])\s+(id\d{5}/[^/\s]+/[^/\s]+)\s*", "<1|2|3> id10001/<video>/<n>.wav",
                      "The split file is https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt, which "
                      f"s3prl calls {SPLIT_FILES[0]}; save it in {split_file.parent} or pass its path.", report)


def labelled_utterances(root: Path):
    """Yield the path, speaker, split and video of every utterance in the split file."""
    files = _voxceleb_files(root)
    for digit, name in _read_split_file(find_named(root, SPLIT_FILES)).values():
        yield files[name], name.split("/")[0], SPLITS_BY_DIGIT[digit], name.rpartition("/")[0]


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's utterances, by s3prl's names; ``corpus`` can be the split file."""
    split_file = find_named(corpus, SPLIT_FILES) if corpus.is_dir() else corpus
    found = {Path(name.replace("/", "-")).stem: f"{split_file}, line {number}"
             for number, (digit, name) in _read_split_file(split_file).items() if SPLITS_BY_DIGIT[digit] == "test"}
    if not found:
        raise CorpusError(f"{split_file} lists no utterances for test, on lines that start with 3.")
    return found


def write_voxceleb1(out, utterances: Iterable[Utterance]) -> None:
    """Write VoxCeleb1: ``OUT/dev/wav/<speaker>/<video>/<n>.wav`` and the split file ``OUT/veri_test_class.txt``.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances with speakers ``id10001`` to ``id11251`` as labels.
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
