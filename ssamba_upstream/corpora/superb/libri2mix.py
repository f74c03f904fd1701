"""Libri2Mix with mixtures and their two speakers: SUPERB's speech separation."""

import os
import random
from pathlib import Path

from ..report import CorpusError, CorpusReport, absolute
from .clean_and_mixed import check_signals, write_lists

KINDS = ("mix_clean", "s1", "s2")
FOLDERS = {"train": "train-100", "dev": "dev", "test": "test"}
RELEASED = {"train": 13900, "dev": 1000, "test": 3000}
REMEDY = ("write it with `ssamba corpora kaldi ss LIBRI2MIX --out FOLDER` from the mixtures made by "
          "generate_librimix_ss.sh of https://github.com/s3prl/LibriMix")


def check(root, _=None) -> CorpusReport:
    """Check Libri2Mix in Kaldi's format for s3prl's ``separation_stft`` downstream.

    Args:
        root: folder with ``train``, ``dev`` and ``test``, each with ``mix_clean/wav.scp``, ``s1/wav.scp`` and
            ``s2/wav.scp``, written by :func:`write_kaldi`.
    """
    return check_signals("Libri2Mix (speech separation)", root, KINDS, RELEASED, REMEDY)


def write_kaldi(root, out) -> None:
    """Write the lists of the corpus's wavs that s3prl reads.

    dev contains the same 1000 mixtures that s3prl's subsample.py selects with its seed.

    Args:
        root: Libri2Mix's folder for one rate and mode, ``wav16k/min``, with ``train-100``, ``dev`` and ``test``; or a
            folder that contains ``wav16k/min``.
        out: a new or empty folder; for any other, a FileExistsError is raised.

    Raises:
        CorpusError: If a split lacks wavs of one kind.
    """
    root = absolute(root)
    root = next((folder for folder in (root / "wav16k" / "min", root) if os.path.isdir(folder)), root)
    sets = {split: {kind: _recordings(root / name / kind) for kind in KINDS} for split, name in FOLDERS.items()}
    chosen = sorted(sets["dev"]["s1"])
    random.Random(7).shuffle(chosen)
    for kind, recordings in sets["dev"].items():
        sets["dev"][kind] = {name: recordings[name] for name in sorted(chosen[:RELEASED["dev"]]) if name in recordings}
    write_lists(sets, out)


def folder(split: str, kind: str) -> Path:
    """Return the folder of a split's wavs of one kind, in the folder that contains ``wav16k``."""
    return Path("wav16k", "min", FOLDERS[split], kind)


def _recordings(folder):
    paths = sorted(folder.glob("*.wav"))
    if not paths:
        raise CorpusError(f"{folder} contains no wav; make the mixtures with generate_librimix_ss.sh of "
                          "https://github.com/s3prl/LibriMix, in min mode at 16 kHz.")
    return {path.stem: path for path in paths}
