"""The Free Spoken Digit Dataset, arranged as keyword spotting and speaker identification."""

import hashlib
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..audio import AudioError, read_clip
from ..files import new_folder
from .report import CorpusError, first
from .speech_commands import KEYWORDS, write_speech_commands
from .utterances import Utterance
from .voxceleb1 import write_voxceleb1


def arrange_fsdd(recordings, out) -> list[str]:
    """Arrange the Free Spoken Digit Dataset as Speech Commands and as VoxCeleb1, resampled to 16 kHz.

    In ``OUT/speech_commands_v0.01`` digit d stands for the d-th keyword (0 for yes, 9 for go); there is no
    ``_unknown_`` and no ``_silence_``. Every recording has a hash of its own, so that all speakers are in train, in
    dev and among the tenth of the files that s3prl discards. In ``OUT/VoxCeleb1`` the speakers are id10001 to id10006
    in alphabetical order; takes 5 to 9 of every digit and speaker are dev. In both, takes 0 to 4, the dataset's own
    test split, are the test set.

    Args:
        recordings: the dataset's folder of files ``{digit}_{speaker}_{take}.wav``.
        out: a folder that does not exist yet or is empty.

    Returns:
        a sentence for each recording that cannot be read, and is left out.

    Raises:
        FileNotFoundError: ``recordings`` holds no such file.
        CorpusError: none of them can be read.
        FileExistsError: ``out`` exists and is not empty.
    """
    digits, unreadable = _read_fsdd(Path(recordings))
    speakers = sorted({speaker for _, speaker, _, _ in digits})
    commands = (
        Utterance(samples, KEYWORDS[digit], _hash(f"{digit}_{speaker}_{take}"),
                  split="test" if take < 5 else "train")
        for digit, speaker, take, samples in digits)
    identities = (
        Utterance(samples, f"id{10001 + speakers.index(speaker)}", recording=f"digit{digit}",
                  split="test" if take < 5 else "dev" if take < 10 else "train")
        for digit, speaker, take, samples in digits)
    with new_folder(out) as folder:
        write_speech_commands(folder, commands, backgrounds={})
        write_voxceleb1(folder / "VoxCeleb1", identities)
    return unreadable


def _hash(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()[:8]


def _read_fsdd(recordings: Path) -> tuple[list[tuple[int, str, int, np.ndarray]], list[str]]:
    """(digit, speaker, take, samples at 16 kHz) of every recording, in the order of the file names; and a sentence for
    each that cannot be read."""
    paths = [path for path in sorted(recordings.glob("*.wav")) if re.fullmatch(r"\d_.+_\d+", path.stem)]
    if not paths:
        raise FileNotFoundError(f"{recordings} holds no files {{digit}}_{{speaker}}_{{take}}.wav; give the "
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
