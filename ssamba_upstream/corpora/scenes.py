"""One-minute scenes made of short excerpts, with a label for every second."""

import contextlib
import hashlib
import math

import numpy as np
import soundfile
from tqdm import tqdm

from ..audio import SAMPLE_RATE, AudioError, read_clip, read_header
from ..files import replacing
from .labelled import join_labels

SCENE_SECONDS = 60
LARGEST_CUT = SAMPLE_RATE // 10
"""Most samples at an excerpt's end to cut rather than pad to a second; 4 s excerpts are often slightly longer."""


def mix_scenes(excerpts, folder, report):
    """Join the excerpts of each fold into one-minute scenes, and write them as 16-bit mono FLAC at 16 kHz.

    A fold's excerpts are ordered by the SHA-256 of "0 " followed by their file name. Each is padded with zeros to whole
    seconds, all labelled with its class. An excess of less than a tenth of a second is cut off instead. Scenes start
    and end on a whole second, if necessary within an excerpt. The rest of a fold after its last whole minute is
    dropped, so no labelled second is silent.

    An existing scene with the same samples is not rewritten.

    Args:
        excerpts: (path, class, fold) of each excerpt.
        folder: folder for the scenes, ``{fold}_{number}.flac``; the number has three or more digits.
        report: function called with the AudioError of each unreadable excerpt, which is skipped.

    Returns:
        (path, label, fold) of each scene; the label contains the classes of its seconds, see
        :func:`ssamba_upstream.corpora.labelled.split_labels`.

    Raises:
        ValueError: If a fold lasts less than a minute.
    """
    by_fold = {}
    for path, label, fold in excerpts:
        by_fold.setdefault(fold, []).append((path, label))
    scenes = []
    with tqdm(total=len(excerpts), desc="mixing scenes", unit=" excerpts") as progress:
        for fold, members in by_fold.items():
            members.sort(key=lambda member: hashlib.sha256(f"0 {member[0].name}".encode()).digest())
            before = len(scenes)
            for number, (samples, classes) in enumerate(_minutes(members, progress, report)):
                path = folder / f"{fold}_{number:03d}.flac"
                _write(path, samples)
                scenes.append((path, join_labels(classes), fold))
            if len(scenes) == before:
                raise ValueError(f"the {len(members)} excerpts of {fold} last less than one scene of "
                                 f"{SCENE_SECONDS} s. Add others, or leave out the fold")
    return scenes


def _minutes(members, progress, report):
    """Yield (samples, classes of the seconds) of whole scenes."""
    seconds, classes = [], []
    for path, label in members:
        progress.update()
        try:
            found = _read_seconds(path)
        except AudioError as error:
            report(error)
            continue
        seconds.extend(found)
        classes.extend([label] * len(found))
        while len(seconds) >= SCENE_SECONDS:
            yield np.concatenate(seconds[:SCENE_SECONDS]), classes[:SCENE_SECONDS]
            del seconds[:SCENE_SECONDS], classes[:SCENE_SECONDS]


def _read_seconds(path):
    """Read an excerpt as 16-bit integers of shape (seconds, 16000)."""
    clip = read_clip(path).numpy()
    seconds = max(1, math.ceil((len(clip) - LARGEST_CUT) / SAMPLE_RATE))
    padded = np.zeros(seconds * SAMPLE_RATE, dtype=np.float32)
    clip = clip[:len(padded)]
    padded[:len(clip)] = clip
    return np.clip(np.rint(padded * 2**15), -2**15, 2**15 - 1).astype(np.int16).reshape(seconds, SAMPLE_RATE)


def _write(path, samples):
    """Write a scene, unless the file has the same samples already."""
    with contextlib.suppress(AudioError):
        if read_header(path).rate == SAMPLE_RATE and np.array_equal(read_clip(path).numpy() * 2**15, samples):
            return
    with replacing(path) as temporary:
        soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
