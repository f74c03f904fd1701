"""One-minute scenes out of short excerpts, with a label for every second."""

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
"""Samples at an excerpt's end that are not worth a second of their own; those meant to last 4 s run a little over."""


def mix_scenes(excerpts, folder, seed=0, report=None):
    """Join the excerpts of each fold to scenes of one minute, and write them as FLAC, 16 kHz, mono, 16 bits.

    The excerpts of a fold follow each other in the order of the SHA-256 of the seed and their file name. Each is
    padded with zeros to whole seconds, all of them labelled with its class; what it has beyond whole seconds is cut
    off where that is less than a tenth of a second. Scenes begin and end on a second, if need be within an excerpt.
    What is left of a fold after its last whole minute is in no scene: no second is silent but labelled.

    A scene that is there already, sample for sample, is not written again.

    Args:
        excerpts: (path, class, fold) of each.
        folder: for the scenes, ``{fold}_{number}.flac``, the number of three digits or more.
        seed: of the order.
        report: called with the AudioError of each excerpt that cannot be read, and is left out. Default: it is raised.

    Returns:
        (path, label, fold) of each scene; the label is the classes of its seconds, see
        :func:`ssamba_upstream.corpora.labelled.split_labels`.

    Raises:
        AudioError: an excerpt that cannot be read.
        ValueError: a fold that lasts less than a minute.
    """
    by_fold = {}
    for path, label, fold in excerpts:
        by_fold.setdefault(fold, []).append((path, label))
    scenes = []
    with tqdm(total=len(excerpts), desc="mixing scenes", unit=" excerpts") as progress:
        for fold, members in by_fold.items():
            members.sort(key=lambda member: hashlib.sha256(f"{seed} {member[0].name}".encode()).digest())
            before = len(scenes)
            for number, (samples, classes) in enumerate(_minutes(members, progress, report)):
                path = folder / f"{fold}_{number:03d}.flac"
                _write(path, samples)
                scenes.append((path, join_labels(classes), fold))
            if len(scenes) == before:
                raise ValueError(f"the {len(members)} excerpts of {fold} last less than one scene of "
                                 f"{SCENE_SECONDS} s; add others, or leave the fold out")
    return scenes


def _minutes(members, progress, report):
    """Yields (samples, classes of the seconds) of whole scenes."""
    seconds, classes = [], []
    for path, label in members:
        progress.update()
        try:
            found = _read_seconds(path)
        except AudioError as error:
            if report is None:
                raise
            report(error)
            continue
        seconds.extend(found)
        classes.extend([label] * len(found))
        while len(seconds) >= SCENE_SECONDS:
            yield np.concatenate(seconds[:SCENE_SECONDS]), classes[:SCENE_SECONDS]
            del seconds[:SCENE_SECONDS], classes[:SCENE_SECONDS]


def _read_seconds(path):
    """An excerpt as (seconds, 16000) of 16-bit integers."""
    clip = read_clip(path).numpy()
    seconds = max(1, math.ceil((len(clip) - LARGEST_CUT) / SAMPLE_RATE))
    padded = np.zeros(seconds * SAMPLE_RATE, dtype=np.float32)
    clip = clip[:len(padded)]
    padded[:len(clip)] = clip
    return np.clip(np.rint(padded * 2**15), -2**15, 2**15 - 1).astype(np.int16).reshape(seconds, SAMPLE_RATE)


def _write(path, samples):
    if _is_there(path, samples):
        return
    with replacing(path) as temporary:
        soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")


def _is_there(path, samples):
    try:
        return read_header(path).rate == SAMPLE_RATE and np.array_equal(read_clip(path).numpy() * 2**15, samples)
    except AudioError:
        return False
