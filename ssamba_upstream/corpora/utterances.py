"""Labelled utterances on their way into a corpus, and the recordings that they become."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..audio import SAMPLE_RATE


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance on its way into a corpus.

    Attributes:
        samples: (n,) float array at 16 kHz, between -1 and 1.
        label: what s3prl is to predict: a word, or in the test set ``_unknown_`` or ``_silence_``; a speaker
            ``id10001`` to ``id11251``; an emotion ``neu``, ``hap``, ``exc``, ``ang``, ``sad`` or another of IEMOCAP's.
        speaker: in Speech Commands eight hexadecimal digits, which decide between train and dev
            (``hash_split``); in IEMOCAP such as ``Ses01F``. Unused in VoxCeleb1, where it is the label.
        recording: VoxCeleb1's video or IEMOCAP's scene such as ``impro01``. Unused in Speech Commands.
        split: ``train``, ``dev`` or ``test``; in Speech Commands only ``test`` counts, in IEMOCAP none does.
    """

    samples: np.ndarray
    label: str
    speaker: str = ""
    recording: str = ""
    split: str = "train"


def write_wav(path: Path, samples: np.ndarray):
    """Write samples at 16 kHz as a wav of 16 bits, in a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
