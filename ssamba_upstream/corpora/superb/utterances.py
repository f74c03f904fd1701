"""Labelled utterances on their way into a corpus, and the recordings that they become."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ...audio import SAMPLE_RATE


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance on its way into a corpus.

    Attributes:
        samples: (n,) float array at 16 kHz, between -1 and 1.
        label: what s3prl is to predict, as the corpus's writer says.
        speaker: in Speech Commands eight hexadecimal digits, which decide between train and dev (``hash_split``).
        recording: what the utterance is a part of: VoxCeleb1's video, IEMOCAP's scene, LibriSpeech's chapter.
        split: ``train``, ``dev`` or ``test``, where the corpus's writer says nothing else; in Speech Commands only
            ``test`` counts, in IEMOCAP none does.
    """

    samples: np.ndarray
    label: str
    speaker: str = ""
    recording: str = ""
    split: str = "train"


def write_wav(path: Path, samples: np.ndarray):
    """Write samples at 16 kHz in 16 bits, as wav or flac by the path's ending; makes the folder where it is absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
