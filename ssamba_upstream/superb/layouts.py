"""Labelled utterances on disk, in the layouts of Speech Commands, VoxCeleb1 and IEMOCAP as s3prl reads them.

The writers take utterances from anywhere. Two corpora are made with them here: a synthetic one for
demonstrations and tests, and the Free Spoken Digit Dataset arranged as keyword spotting and speaker
identification.
"""

import hashlib
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from ..audio import SAMPLE_RATE, read_clip
from .corpora import (BACKGROUND_NOISE, KEYWORDS, SPLIT_FILES, SPLITS, build_emotion_metadata,
                      hash_split)
from .synthesis import STYLES, WORDS, draw_voice, noise, record, speak


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance on its way into a corpus.

    Attributes:
        samples: (n,) float array at 16 kHz, between -1 and 1.
        label: what s3prl is to predict: a word, or in the test set `_unknown_` or `_silence_`; a speaker
            `id10001` to `id11251`; an emotion `neu`, `hap`, `exc`, `ang`, `sad` or another of IEMOCAP's.
        speaker: in Speech Commands eight hexadecimal digits, which decide between train and dev
            (`hash_split`); in IEMOCAP such as `Ses01F`. Unused in VoxCeleb1, where it is the label.
        recording: VoxCeleb1's video or IEMOCAP's scene such as `impro01`. Unused in Speech Commands.
        split: `train`, `dev` or `test`; in Speech Commands only `test` counts, in IEMOCAP none does.
    """

    samples: np.ndarray
    label: str
    speaker: str = ""
    recording: str = ""
    split: str = "train"


def write_speech_commands(out, utterances: Iterable[Utterance], backgrounds: dict[str, np.ndarray]) -> None:
    """Write Speech Commands: `OUT/speech_commands_v0.01` and `OUT/speech_commands_test_set_v0.01`.

    Args:
        out: folder for the two folders.
        utterances: words, and the test set's `_unknown_` and `_silence_`.
        backgrounds: names and samples of the background noises, from which s3prl cuts `_silence_` for
            training; each at least one second.

    Raises:
        FileExistsError: one of the two folders exists and is not empty.
    """
    out = Path(out)
    counts = Counter()
    with (_new_folder(out / "speech_commands_v0.01") as train,
          _new_folder(out / "speech_commands_test_set_v0.01") as test):
        for utterance in utterances:
            folder = (test if utterance.split == "test" else train) / utterance.label
            stem = f"{utterance.speaker}_nohash_"
            _write_wav(folder / f"{stem}{counts[folder, stem]}.wav", utterance.samples)
            counts[folder, stem] += 1
        for name, samples in backgrounds.items():
            _write_wav(train / BACKGROUND_NOISE / f"{name}.wav", samples)


def write_voxceleb1(out, utterances: Iterable[Utterance]) -> None:
    """Write VoxCeleb1: `OUT/dev/wav/<speaker>/<video>/<n>.wav` and the split file `OUT/veri_test_class.txt`.

    Raises:
        FileExistsError: `out` exists and is not empty.
    """
    digits = {split: digit for digit, split in SPLITS.items()}
    counts = Counter()
    with _new_folder(out) as folder, open(folder / SPLIT_FILES[0], "w", encoding="utf-8") as split_file:
        for utterance in utterances:
            video = f"{utterance.label}/{utterance.recording}"
            counts[video] += 1
            name = f"{video}/{counts[video]:05d}.wav"
            _write_wav(folder / "dev" / "wav" / name, utterance.samples)
            split_file.write(f"{digits[utterance.split]} {name}\n")


def write_iemocap(out, utterances: Iterable[Utterance]) -> None:
    """Write IEMOCAP's wavs and emotion labels, and the metadata that s3prl needs in `OUT/meta_data`.

    Raises:
        CorpusError: a session has no utterance, so that there are no five folds.
        FileExistsError: `out` exists and is not empty.
    """
    turns = defaultdict(list)
    with _new_folder(out) as folder:
        for utterance in utterances:
            session = folder / f"Session{int(utterance.speaker[3:5])}"
            dialog = f"{utterance.speaker}_{utterance.recording}"
            label_file = session / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
            turn = f"{dialog}_{utterance.speaker[-1]}{len(turns[label_file]):03d}"
            _write_wav(session / "sentences" / "wav" / dialog / f"{turn}.wav", utterance.samples)
            turns[label_file].append((turn, utterance.label, len(utterance.samples) / SAMPLE_RATE))
        for label_file, labelled in turns.items():
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_text(_emotion_labels(labelled), encoding="utf-8")
        build_emotion_metadata(folder, folder / "meta_data")


def synthesise_corpora(out, seed: int = 0) -> None:
    """Make a small synthetic corpus for each of SUPERB's three utterance-level tasks.

    Writes `OUT/speech_commands_v0.01` and `OUT/speech_commands_test_set_v0.01` (20 voices for training, 4 for
    development and 4 for testing say every keyword three times and three other words), `OUT/VoxCeleb1` (10
    voices, 20 utterances each) and `OUT/IEMOCAP` (5 sessions of two voices, ten utterances per emotion).

    Args:
        out: a folder that does not exist yet or is empty.
        seed: equal seeds give byte-identical files on one machine.

    Raises:
        FileExistsError: `out` exists and is not empty.
    """
    with _new_folder(out) as folder:
        commands = np.random.default_rng([seed, 0])
        backgrounds = {name: 0.02 * noise(8 * SAMPLE_RATE, colour, commands)
                       for name, colour in (("white_noise", 0), ("pink_noise", 1), ("brown_noise", 2))}
        write_speech_commands(folder, _synthetic_commands(commands), backgrounds)
        write_voxceleb1(folder / "VoxCeleb1", _synthetic_speakers(np.random.default_rng([seed, 1])))
        write_iemocap(folder / "IEMOCAP", _synthetic_emotions(np.random.default_rng([seed, 2])))


def arrange_fsdd(recordings, out) -> None:
    """Arrange the Free Spoken Digit Dataset as Speech Commands and as VoxCeleb1, resampled to 16 kHz.

    In `OUT/speech_commands_v0.01` digit d stands for the d-th keyword (0 for yes, 9 for go); there is no
    `_unknown_` and no `_silence_`. Every recording has a hash of its own, so that all speakers are in train,
    in     dev and among the tenth of the files that s3prl discards. In `OUT/VoxCeleb1` the speakers are
    id10001 to     id10006 in alphabetical order; takes 5 to 9 of every digit and speaker are dev. In both,
    takes 0 to 4, the     dataset's own test split, are the test set.

    Args:
        recordings: the dataset's folder of files `{digit}_{speaker}_{take}.wav`.
        out: a folder that does not exist yet or is empty.

    Raises:
        FileNotFoundError: `recordings` holds no such file.
        FileExistsError: `out` exists and is not empty.
    """
    digits = _read_fsdd(Path(recordings))
    speakers = sorted({speaker for _, speaker, _, _ in digits})
    commands = (
        Utterance(samples, KEYWORDS[digit], _hash(f"{digit}_{speaker}_{take}"),
                  split="test" if take < 5 else "train")
        for digit, speaker, take, samples in digits)
    identities = (
        Utterance(samples, f"id{10001 + speakers.index(speaker)}", recording=f"digit{digit}",
                  split="test" if take < 5 else "dev" if take < 10 else "train")
        for digit, speaker, take, samples in digits)
    with _new_folder(out) as folder:
        write_speech_commands(folder, commands, backgrounds={})
        write_voxceleb1(folder / "VoxCeleb1", identities)


def _hash(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()[:8]


def _read_fsdd(recordings: Path) -> list[tuple[int, str, int, np.ndarray]]:
    """(digit, speaker, take, samples at 16 kHz) of every recording, in the order of the file names."""
    paths = [path for path in sorted(recordings.glob("*.wav")) if re.fullmatch(r"\d_.+_\d+", path.stem)]
    if not paths:
        raise FileNotFoundError(f"{recordings} holds no files {{digit}}_{{speaker}}_{{take}}.wav; give the "
                                "folder 'recordings' of the Free Spoken Digit Dataset.")
    digits = []
    for path in tqdm(paths, desc="Free Spoken Digit Dataset", unit="file"):
        digit, speaker, take = path.stem.split("_")
        digits.append((int(digit), speaker, int(take), read_clip(path).numpy()))
    return digits


def _synthetic_commands(rng: np.random.Generator) -> Iterator[Utterance]:
    others = [word for word in WORDS if word not in KEYWORDS]
    bands = ["train"] * 20 + ["dev"] * 4 + ["discarded"] * 4
    for number, band in enumerate(tqdm(bands, desc="Speech Commands", unit="voice")):
        voice = draw_voice(rng, high=number % 2 == 0)
        speaker = _draw_speaker_hash(rng, band)
        split = "test" if band == "discarded" else band
        for word in [*KEYWORDS * 3, *rng.choice(others, 3, replace=False)]:
            recording = record(speak([word], voice, STYLES["neutral"], rng), rng, seconds=1)
            label = "_unknown_" if split == "test" and word in others else word
            yield Utterance(recording, label, speaker, split=split)
        if split == "test":
            for _ in range(3):
                silence = rng.uniform(0.002, 0.05) * noise(SAMPLE_RATE, rng.uniform(0, 2), rng)
                yield Utterance(silence, "_silence_", speaker, split=split)


def _draw_speaker_hash(rng: np.random.Generator, band: str) -> str:
    while True:
        speaker = f"{rng.integers(2**32):08x}"
        if hash_split(speaker) == band:
            return speaker


def _synthetic_speakers(rng: np.random.Generator) -> Iterator[Utterance]:
    for number in tqdm(range(10), desc="VoxCeleb1", unit="voice"):
        voice = draw_voice(rng, high=number % 2 == 0)
        for video, split in enumerate(["train"] * 3 + ["dev", "test"]):
            for _ in range(4):
                yield Utterance(_record_sentence(voice, STYLES["neutral"], rng), f"id{10001 + number}",
                                recording=f"video{video}", split=split)


def _synthetic_emotions(rng: np.random.Generator) -> Iterator[Utterance]:
    labels = {"neutral": ["neu"], "happy": ["hap", "exc"], "angry": ["ang"], "sad": ["sad"]}
    speakers = [f"Ses{session:02d}{sex}" for session in range(1, 6) for sex in "FM"]
    for speaker in tqdm(speakers, desc="IEMOCAP", unit="voice"):
        voice = draw_voice(rng, high=speaker.endswith("F"))
        for number in range(5):
            for style, names in labels.items():
                yield Utterance(_record_sentence(voice, STYLES[style], rng), names[number % len(names)],
                                speaker, recording=f"impro{1 + number % 2:02d}")


def _record_sentence(voice, style, rng: np.random.Generator) -> np.ndarray:
    """A recording of 1 to 2.5 s in which a voice says a few random words."""
    words = rng.choice(list(WORDS), rng.integers(2, 6))
    speech = speak(list(words), voice, style, rng)
    return record(speech, rng, seconds=np.clip(len(speech) / SAMPLE_RATE + rng.uniform(0.05, 0.3), 1, 2.5))


def _emotion_labels(turns: list[tuple[str, str, float]]) -> str:
    """A file of IEMOCAP's EmoEvaluation; the ratings of valence, activation and dominance are all 3 of 5."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    start = 0.0
    for turn, label, seconds in turns:
        end = start + seconds
        lines += [f"[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t[3.0000, 3.0000, 3.0000]",
                  "A-E1:\tval 3; act 3; dom  3;\t()", ""]
        start = end
    return "\n".join(lines) + "\n"


def _write_wav(path: Path, samples: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


@contextmanager
def _new_folder(folder) -> Iterator[Path]:
    """Yield a temporary sibling that takes the folder's name at the end, or vanishes when something fails."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; delete it or give another name.")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
