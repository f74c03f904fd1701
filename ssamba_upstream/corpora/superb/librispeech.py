"""LibriSpeech with transcripts: SUPERB's phone recognition and speech recognition."""

import os
from collections.abc import Iterable
from pathlib import Path

from ...configs import configs_folder
from ...files import new_folder, write_text
from ..report import CorpusError, CorpusReport, absolute, first, override, read_text, recordings_of
from .utterances import Utterance, write_wav

SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
RELEASED = {"train": 28539, "dev": 2703, "test": 2620}
REMEDY = f"unpack {', '.join(SPLITS.values())} of https://www.openslr.org/12 there"
LEXICONS = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
LEXICON_SOURCE = "https://huggingface.co/datasets/s3prl/g2p/tree/main/lexicon"


def check_speech_recognition(root, _=None) -> CorpusReport:
    """Check LibriSpeech for s3prl's ``asr`` downstream.

    Args:
        root: folder with ``train-clean-100``, ``dev-clean`` and ``test-clean``, each with
            ``<speaker>/<chapter>/<utterance>.flac`` and ``<speaker>-<chapter>.trans.txt`` next to them.
    """
    root = absolute(root)
    report = CorpusReport("LibriSpeech (speech recognition)", root, override({"datarc.libri_root": root}))
    with report.checking(REMEDY, RELEASED, one_format=True):
        _check_recordings(report)
    return report


def check_phone_recognition(root, lexicons=None) -> CorpusReport:
    """Check LibriSpeech and its lexicons for s3prl's ``ctc`` downstream, with phones.

    Args:
        root: see :func:`check_speech_recognition`.
        lexicons: folder of SUPERB's two lexicons, see ``LEXICONS``. Default: root.
    """
    root = absolute(root)
    lexicons = [absolute(lexicons or root) / name for name in LEXICONS]
    report = CorpusReport("LibriSpeech (phone recognition)", root,
                          override({"corpus.path": root, "corpus.lexicon": lexicons}))
    with report.checking(REMEDY, RELEASED, one_format=True):
        words = _check_recordings(report)
        with report.collecting():
            _check_lexicons(lexicons, words, report)
    return report


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's utterances, by s3prl's names for them."""
    recordings = _recordings(corpus / SPLITS["test"])
    if not recordings:
        raise CorpusError(f"{corpus} has no {SPLITS['test']}/<speaker>/<chapter>/*.flac. Give LibriSpeech's folder.")
    return {path.stem: str(path) for path in recordings}


def write_librispeech(out, utterances: Iterable[Utterance], lexicon: dict[str, str]) -> None:
    """Write LibriSpeech's flacs and transcripts, and the two lexicons next to the splits.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances with transcripts in capitals as labels; ``speaker`` and ``recording``, the chapter, are
            digits.
        lexicon: phones by word, separated by spaces; all entries go into the first of the two files.
    """
    transcripts = {}
    with new_folder(out) as folder:
        for utterance in utterances:
            chapter = folder / SPLITS[utterance.split] / utterance.speaker / utterance.recording
            lines = transcripts.setdefault(chapter / f"{utterance.speaker}-{utterance.recording}.trans.txt", [])
            name = f"{utterance.speaker}-{utterance.recording}-{len(lines):04d}"
            write_wav(chapter / f"{name}.flac", utterance.samples)
            lines.append(f"{name} {utterance.label}\n")
        for path, lines in transcripts.items():
            write_text("".join(lines), path)
        write_text("".join(f"{word} {phones}\n" for word, phones in lexicon.items()), folder / LEXICONS[0])
        write_text("", folder / LEXICONS[1])


def _check_recordings(report: CorpusReport) -> set[str]:
    """Add counts and problems of the three splits to the report, and return the words in all transcripts."""
    report.require_folder()
    words, speakers = set(), {}
    for split, name in SPLITS.items():
        found, transcripts = _recordings(report.root / name), _transcripts(report.root / name, report)
        without = [str(path) for path in found if not transcripts.get(path.stem)]
        report.add_problem(f"{len(without):,} of the {len(found):,} recordings in {name} are in no .trans.txt next to "
                           "them", without, f"unpack {name} again")
        spoken = [word for path in found for word in transcripts.get(path.stem, "").split()]
        report.counts[split] = {"utterances": len(found), "words": len(spoken)}
        words.update(spoken)
        speakers[split] = {path.parts[-3] for path in found}
        report.recordings[split] = recordings_of({path.relative_to(report.root / name).as_posix(): path
                                                  for path in found})
    report.check_speakers(speakers)
    return words


def _check_lexicons(lexicons: list[Path], words: set[str], report: CorpusReport):
    absent = [path for path in lexicons if not os.path.isfile(path)]
    if absent:
        raise CorpusError(f"The lexicon {first(absent)} is missing; save {' and '.join(LEXICONS)} of {LEXICON_SOURCE} "
                          f"in {absent[0].parent}, or give their folder as the second path.")
    pronunciations = {}
    for path in lexicons:
        report.texts[path.name] = path
        for line in read_text(path).splitlines():
            word, *phones = line.split() or [""]
            pronunciations.setdefault(word, phones)
    missing, remedy = sorted(words - pronunciations.keys()), f"save both lexicons from {LEXICON_SOURCE} again"
    report.add_problem(f"{len(missing):,} words in the transcripts are in neither lexicon", missing, remedy)
    vocabulary = set(read_text(configs_folder("downstream") / "vocabularies" / "phonemes.txt").split())
    used = {phone for word in words for phone in pronunciations.get(word, ())}
    report.add_problem("The lexicons have phones that the config's vocabulary lacks", sorted(used - vocabulary), remedy)


def _recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.flac"))


def _transcripts(folder: Path, report: CorpusReport) -> dict[str, str]:
    """Return the transcripts by utterance; report lines that s3prl cannot read."""
    transcripts, empty = {}, []
    for path in sorted(folder.glob("*/*/*.trans.txt")):
        report.texts[path.relative_to(report.root).as_posix()] = path
        for number, line in enumerate(read_text(path).splitlines(), 1):
            utterance, _, text = line.strip().partition(" ")
            transcripts[utterance] = text.strip()
            if not utterance:
                empty.append(f"{path}, line {number}")
    report.add_problem("Transcripts have empty lines, which stop s3prl", empty, "delete them")
    return transcripts
