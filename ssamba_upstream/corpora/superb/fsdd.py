"""The Free Spoken Digit Dataset for keyword and speaker classification; joined, for intents and transcripts."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...audio import AudioError, read_clip
from ...files import new_folder
from ..report import CorpusError, first
from .fluent_speech_commands import write_fluent_speech_commands
from .librispeech import write_librispeech
from .speech_commands import KEYWORDS, write_speech_commands
from .utterances import Utterance
from .voxceleb1 import write_voxceleb1

LEXICON = {  # ordered by digit; LibriSpeech's phones
    "ZERO": "Z IH1 R OW0",
    "ONE": "W AH1 N",
    "TWO": "T UW1",
    "THREE": "TH R IY1",
    "FOUR": "F AO1 R",
    "FIVE": "F AY1 V",
    "SIX": "S IH1 K S",
    "SEVEN": "S EH1 V AH0 N",
    "EIGHT": "EY1 T",
    "NINE": "N AY1 N",
}
WORDS = list(LEXICON)
COMMAND_SLOTS = (range(4), range(4, 7), range(7, 10))  # digits used as actions, objects and locations
TRANSCRIPT_SLOTS = (range(10),) * 3
JOINED = {"train": 600, "dev": 120, "test": 300}  # utterances
CHAPTERS = {"train": "1", "dev": "2", "test": "3"}


def arrange_fsdd(recordings, out) -> list[str]:
    """Write the Free Spoken Digit Dataset in the layouts of Speech Commands and VoxCeleb1, resampled to 16 kHz.

    In ``OUT/speech_commands_v0.01``, digit d stands for the d-th keyword (0 for yes, 9 for go); there is no
    ``_unknown_`` or ``_silence_``. Every recording has its own hash, so all speakers are in train, in dev and among the
    tenth of the files that s3prl discards. In ``OUT/VoxCeleb1``, the speakers are id10001 to id10006 in alphabetical
    order; takes 5 to 9 of every digit and speaker are dev. In both, the test set is takes 0 to 4, the dataset's own
    test split.

    Args:
        recordings: the dataset's folder with files ``{digit}_{speaker}_{take}.wav``.
        out: a new or empty folder; for any other, a FileExistsError is raised.

    Returns:
        a sentence for each unreadable recording, which is skipped.

    Raises:
        FileNotFoundError: If ``recordings`` contains no such file.
        CorpusError: If none of the files can be read.
    """
    digits, unreadable = _read_fsdd(Path(recordings))
    speakers = sorted({speaker for _, speaker, _, _ in digits})
    commands = (
        Utterance(samples, KEYWORDS[digit], hashlib.sha1(f"{digit}_{speaker}_{take}".encode()).hexdigest()[:8],
                  split=_split(take))
        for digit, speaker, take, samples in digits)
    identities = (
        Utterance(samples, f"id{10001 + speakers.index(speaker)}", recording=f"digit{digit}", split=_split(take))
        for digit, speaker, take, samples in digits)
    with new_folder(out) as folder:
        write_speech_commands(folder, commands, backgrounds={})
        write_voxceleb1(folder / "VoxCeleb1", identities)
    return unreadable


def join_fsdd(recordings, out) -> list[str]:
    """Join three recordings of one speaker each into utterances for Fluent Speech Commands and LibriSpeech.

    ``OUT/fluent_speech_commands_dataset`` has 36 intents: an action (zero to three), an object (four to six) and a
    location (seven to nine), said in this order. ``OUT/LibriSpeech`` has three of the ten digits, transcripts such as
    ``SEVEN THREE ONE``, and a lexicon of the ten words. Each has 600 utterances for training, 120 for development and
    300 for testing, drawn with a fixed seed. Splits share speakers but not recordings: takes 0 to 4 of every digit
    and speaker, the dataset's own test split, are test, and takes 5 to 9 dev.

    Args:
        recordings: see :func:`arrange_fsdd`.
        out: a new or empty folder; for any other, a FileExistsError is raised.

    Returns:
        a sentence for each unreadable recording, which is skipped.

    Raises:
        FileNotFoundError: If ``recordings`` contains no recordings of the dataset.
        CorpusError: If none of the recordings can be read, or a speaker lacks a digit in one of the splits.
    """
    digits, unreadable = _read_fsdd(Path(recordings))
    takes = {}
    for digit, speaker, take, samples in digits:
        takes.setdefault((_split(take), speaker, digit), []).append(samples)
    speakers = sorted({speaker for _, speaker, _, _ in digits})
    for split in JOINED:
        for speaker in speakers:
            if absent := [str(digit) for digit in range(10) if (split, speaker, digit) not in takes]:
                raise CorpusError(f"{recordings} has no readable recording of {speaker} saying {', '.join(absent)} for "
                                  f"{split}. Restore it, or remove all recordings of {speaker}.")
    commands = (
        Utterance(samples, ",".join(words).lower(), speaker, split=split)
        for split, speaker, words, samples in _join(takes, speakers, COMMAND_SLOTS, np.random.default_rng([0, 0])))
    sentences = (
        Utterance(samples, " ".join(words), str(1 + speakers.index(speaker)), CHAPTERS[split], split)
        for split, speaker, words, samples in _join(takes, speakers, TRANSCRIPT_SLOTS, np.random.default_rng([0, 1])))
    with new_folder(out) as folder:
        write_fluent_speech_commands(folder / "fluent_speech_commands_dataset", commands)
        write_librispeech(folder / "LibriSpeech", sentences, LEXICON)
    return unreadable


def _join(takes, speakers, slots, rng: np.random.Generator) -> Iterator[tuple[str, str, list[str], np.ndarray]]:
    """Yield the split, speaker, words and samples of joined utterances, with the speakers in turn."""
    for split, count in JOINED.items():
        for number in range(count):
            speaker = speakers[number % len(speakers)]
            digits = [int(rng.choice(slot)) for slot in slots]
            recordings = [takes[split, speaker, digit] for digit in digits]
            samples = [choices[rng.integers(len(choices))] for choices in recordings]
            yield split, speaker, [WORDS[digit] for digit in digits], np.concatenate(samples)


def _split(take: int) -> str:
    return "test" if take < 5 else "dev" if take < 10 else "train"


def _read_fsdd(recordings: Path) -> tuple[list[tuple[int, str, int, np.ndarray]], list[str]]:
    """Return (digit, speaker, take, samples at 16 kHz) for every recording, ordered by file name, and a sentence for
    each unreadable one."""
    paths = [path for path in sorted(recordings.glob("*.wav")) if re.fullmatch(r"\d_.+_\d+", path.stem)]
    if not paths:
        raise FileNotFoundError(f"{recordings} has no files {{digit}}_{{speaker}}_{{take}}.wav. Give the "
                                "folder 'recordings' of the Free Spoken Digit Dataset.")
    digits, unreadable = [], []
    for path in tqdm(paths, desc="Free Spoken Digit Dataset", unit="file"):
        digit, speaker, take = path.stem.split("_")
        try:
            digits.append((int(digit), speaker, int(take), read_clip(path).numpy()))
        except AudioError as error:
            unreadable.append(str(error))
    if not digits:
        raise CorpusError(f"none of {len(paths)} recordings can be read: {first(unreadable)}")
    return digits, unreadable
