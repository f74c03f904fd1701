"""Labelled utterances to be written to a corpus, and a writer for recordings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ...audio import SAMPLE_RATE


@dataclass(frozen=True)
class Utterance:
    """A labelled utterance to be written to a corpus.

    Attributes:
        samples: (n,) float array at 16 kHz, between -1 and 1.
        label: the label to predict, in the format of the corpus's writer.
        speaker: the speaker; in Speech Commands eight hexadecimal digits, which decide between train and dev
            (``hash_split``).
        recording: recording that contains the utterance: VoxCeleb1's video, IEMOCAP's scene, LibriSpeech's chapter.
        split: ``train``, ``dev`` or ``test``, unless the corpus's writer says otherwise. Speech Commands uses only
            ``test``, and IEMOCAP none.
    """

    samples: np.ndarray
    label: str
    speaker: str = ""
    recording: str = ""
    split: str = "train"


def write_wav(path: Path, samples: np.ndarray):
    """Write 16-bit samples at 16 kHz, as wav or flac by the path's extension; create the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
