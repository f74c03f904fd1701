"""SUPERB's three corpora as labelled sets, of the utterances and splits that s3prl uses."""

import glob
import json
from pathlib import Path

from ..audio import read_header
from ..labelled import LabelledSet, LabelledSetError
from ..superb.corpora import BACKGROUND_NOISE, CLASSES, SESSIONS, SPLIT_FILES, SPLITS, hash_split
from .features import Excerpt

TASKS = ("sid", "er", "ks")
KEYWORD_GAIN = -3.0  # dB, which s3prl's keyword spotting applies to all recordings
PIECES_PER_DEV_PIECE = 10


def read_superb(task, root) -> LabelledSet:
    """Read a corpus laid out as s3prl needs it.

    Where s3prl draws a part of an utterance anew for every step, here the utterance stays the same: speaker
    identification trains on whole utterances in place of eight seconds of them, and ``_silence_`` of keyword
    spotting is every second of the background noises, each tenth of which is dev.

    Args:
        task: "sid", VoxCeleb1, by speaker; "er", IEMOCAP, by emotion, whose splits are the five sessions; or
            "ks", Speech Commands, by keyword.
        root: the corpus's folder, see :mod:`ssamba_upstream.superb.corpora`, with the split file or the metadata in it.

    Raises:
        LabelledSetError: the corpus is not there or lacks something.
    """
    try:
        rows = {"sid": _speakers, "er": _emotions, "ks": _keywords}[task](Path(root))
        return LabelledSet(*map(list, zip(*rows)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelledSetError(
            f"{root} is not laid out for {task} ({error}); `ssamba corpora check {task} {root}` says what is missing"
        ) from error


def _speakers(root):
    files = {name.split("/wav/", 1)[1]: root / name for name in glob.iglob("*/wav/*/*/*", root_dir=root)}
    split_file = next(filter(Path.is_file, (root / name for name in SPLIT_FILES)), root / SPLIT_FILES[0])
    for line in split_file.read_text().splitlines():
        digit, name = line.split()
        yield files[name], name.split("/")[0], SPLITS[digit]


def _emotions(root):
    for session in SESSIONS:
        content = json.loads((root / "meta_data" / session / "test_meta_data.json").read_text())
        for entry in content["meta_data"]:
            yield root / entry["path"], entry["label"], session


def _keywords(root):
    train_root = next(root.glob("speech_commands_v0.0[12]"), root / "speech_commands_v0.01")
    test_root = root / train_root.name.replace("speech_commands", "speech_commands_test_set")
    for path in sorted(train_root.glob("*/*.wav")):
        word, split = path.parent.name, hash_split(path.name)
        if word != BACKGROUND_NOISE and split != "discarded":
            yield Excerpt(path, gain=KEYWORD_GAIN), word if word in CLASSES else "_unknown_", split
    for path in sorted((train_root / BACKGROUND_NOISE).glob("*.wav")):
        header = read_header(path)
        for second in range(header.samples // header.rate):
            start = second * header.rate
            piece = Excerpt(path, start, start + header.rate, KEYWORD_GAIN)
            yield piece, "_silence_", "train" if second % PIECES_PER_DEV_PIECE else "dev"
    for path in sorted(test_root.glob("*/*.wav")):
        yield Excerpt(path, gain=KEYWORD_GAIN), path.parent.name, "test"
