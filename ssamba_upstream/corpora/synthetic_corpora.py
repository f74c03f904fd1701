"""Small synthetic corpora in the three layouts of SUPERB's utterance-level tasks, for demonstrations and tests."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from ..audio import SAMPLE_RATE
from ..files import new_folder
from .iemocap import write_iemocap
from .speech_commands import KEYWORDS, hash_split, write_speech_commands
from .synthesis import STYLES, WORDS, draw_voice, noise, record, speak
from .utterances import Utterance
from .voxceleb1 import write_voxceleb1


def synthesise_corpora(out, seed: int = 0) -> None:
    """Make a small synthetic corpus for each of SUPERB's three utterance-level tasks.

    Writes ``OUT/speech_commands_v0.01`` and ``OUT/speech_commands_test_set_v0.01`` (20 voices for training, 4 for
    development and 4 for testing say every keyword three times and three other words), ``OUT/VoxCeleb1`` (10
    voices, 20 utterances each) and ``OUT/IEMOCAP`` (5 sessions of two voices, ten utterances per emotion).

    Args:
        out: a folder that does not exist yet or is empty.
        seed: equal seeds give byte-identical files on one machine.

    Raises:
        FileExistsError: ``out`` exists and is not empty.
    """
    with new_folder(out) as folder:
        commands = np.random.default_rng([seed, 0])
        backgrounds = {name: 0.02 * noise(8 * SAMPLE_RATE, colour, commands)
                       for name, colour in (("white_noise", 0), ("pink_noise", 1), ("brown_noise", 2))}
        write_speech_commands(folder, _synthetic_commands(commands), backgrounds)
        write_voxceleb1(folder / "VoxCeleb1", _synthetic_speakers(np.random.default_rng([seed, 1])))
        write_iemocap(folder / "IEMOCAP", _synthetic_emotions(np.random.default_rng([seed, 2])))


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
