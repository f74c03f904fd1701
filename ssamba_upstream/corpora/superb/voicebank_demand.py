"""Voicebank-DEMAND with noisy and clean speech: SUPERB's speech enhancement."""

import os

from ..report import CorpusError, CorpusReport, absolute
from .clean_and_mixed import check_signals, write_lists

KINDS = ("noisy", "clean")
SPLITS = ("train", "dev", "test")
RELEASED = {"train": 10802, "dev": 770, "test": 824}
DEV_SPEAKERS = ("p226", "p287")  # two of the 28 training speakers
WAV_FOLDERS = {"train": "trainset_28spk_wav_16k", "dev": "trainset_28spk_wav_16k", "test": "testset_wav_16k"}
SOURCE = "https://datashare.ed.ac.uk/handle/10283/2791"
REMEDY = f"write it with `ssamba corpora kaldi se VOICEBANK --out FOLDER` from the wavs of {SOURCE} at 16 kHz"


def check(root, _=None) -> CorpusReport:
    """Check Voicebank-DEMAND in Kaldi's format for s3prl's ``enhancement_stft`` downstream.

    Args:
        root: folder with ``train``, ``dev`` and ``test``, each with ``noisy/wav.scp`` and ``clean/wav.scp``, written by
            :func:`write_kaldi`.
    """
    return check_signals("Voicebank-DEMAND (speech enhancement)", root, KINDS, RELEASED, REMEDY)


def write_kaldi(root, out) -> None:
    """Write the lists of the corpus's wavs that s3prl reads.

    Args:
        root: folder with ``noisy_trainset_28spk_wav_16k``, ``clean_trainset_28spk_wav_16k``,
            ``noisy_testset_wav_16k`` and ``clean_testset_wav_16k``.
        out: a new or empty folder; for any other, a FileExistsError is raised.

    Raises:
        CorpusError: If one of the four contains no wav.
    """
    root = absolute(root)
    write_lists({split: {kind: _recordings(root, kind, split) for kind in KINDS} for split in SPLITS}, out)


def folder(split: str, kind: str) -> str:
    """Return the folder of a split's wavs of one kind; train and dev share one."""
    return f"{kind}_{WAV_FOLDERS[split]}"


def _recordings(root, kind, split):
    wavs = root / folder(split, kind)
    paths = [path for path in sorted(wavs.glob("*.wav"))
             if split == "test" or (split == "dev") == path.name.startswith(DEV_SPEAKERS)]
    if not paths:
        state = "is missing" if not os.path.isdir(wavs) else f"has no wav for {split}"
        raise CorpusError(f"{wavs} {state}; download the corpus from {SOURCE}, and convert it to 16 kHz.")
    return {path.stem: path for path in paths}
