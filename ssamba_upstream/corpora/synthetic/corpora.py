"""Small synthetic corpora in the layouts of all SUPERB tasks, for demonstrations and tests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...audio import SAMPLE_RATE
from ...files import new_folder
from ..superb import libri2mix, voicebank_demand
from ..superb.audio_snips import SPEAKERS, write_audio_snips
from ..superb.clean_and_mixed import write_signals
from ..superb.diarization_mixtures import Mixture, write_diarization_mixtures
from ..superb.fluent_speech_commands import write_fluent_speech_commands
from ..superb.iemocap import write_iemocap
from ..superb.librispeech import write_librispeech
from ..superb.quesst14 import write_quesst14
from ..superb.speech_commands import KEYWORDS, hash_split, write_speech_commands
from ..superb.utterances import Utterance
from ..superb.voxceleb1 import write_voxceleb1
from ..superb.voxceleb1_trials import write_voxceleb1_trials
from .synthesis import STYLES, WORDS, draw_voice, noise, record, speak

UTTERANCES = {"train": 12, "dev": 4, "test": 4}  # in all corpora except Speech Commands, VoxCeleb1 and IEMOCAP
VOWELS = {"iy", "ih", "eh", "ae", "ah", "aa", "ao", "uw", "er", "ow", "ay", "aw"}


def synthesise_corpora(out, seed: int = 0) -> None:
    """Write a small synthetic corpus for each of SUPERB's twelve tasks.

    The larger corpora are ``OUT/speech_commands_v0.01`` and ``OUT/speech_commands_test_set_v0.01`` (20 voices for
    training, 4 for development and 4 for testing say every keyword three times and three other words),
    ``OUT/VoxCeleb1`` (10 voices, 20 utterances each) and ``OUT/IEMOCAP`` (5 sessions of two voices, ten utterances per
    emotion). With 12 utterances for training and 4 each for development and testing, there are ``OUT/LibriSpeech`` with
    lexicons, ``OUT/SNIPS``, ``OUT/fluent_speech_commands_dataset``, ``OUT/VoxCeleb1_trials``, ``OUT/quesst14Database``
    (4 queries each, 12 documents; no scorer), ``OUT/Voicebank`` and ``OUT/Libri2Mix`` with their Kaldi format in
    ``OUT/enhancement`` and ``OUT/separation``, and ``OUT/diarization``. The last three have lists of absolute paths.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        seed: random seed. On one machine, the same seed gives the same files, apart from these paths.
    """
    out = Path(out)
    with new_folder(out) as folder:
        commands = np.random.default_rng([seed, 0])
        backgrounds = {name: 0.02 * noise(8 * SAMPLE_RATE, colour, commands)
                       for name, colour in (("white_noise", 0), ("pink_noise", 1), ("brown_noise", 2))}
        write_speech_commands(folder, _synthetic_commands(commands), backgrounds)
        write_voxceleb1(folder / "VoxCeleb1", _synthetic_speakers(np.random.default_rng([seed, 1])))
        write_iemocap(folder / "IEMOCAP", _synthetic_emotions(np.random.default_rng([seed, 2])))
        write_librispeech(folder / "LibriSpeech", _synthetic_sentences(np.random.default_rng([seed, 3])), _lexicon())
        write_audio_snips(folder / "SNIPS", _synthetic_slots(np.random.default_rng([seed, 4])), ["keyword", "number"])
        write_fluent_speech_commands(folder / "fluent_speech_commands_dataset",
                                     _synthetic_intents(np.random.default_rng([seed, 5])))
        write_voxceleb1_trials(folder / "VoxCeleb1_trials", _synthetic_trials(np.random.default_rng([seed, 6])))
        write_quesst14(folder / "quesst14Database", _synthetic_queries(np.random.default_rng([seed, 7])))
        write_signals(voicebank_demand, folder / "Voicebank", _synthetic_noisy(np.random.default_rng([seed, 8])))
        write_signals(libri2mix, folder / "Libri2Mix", _synthetic_pairs(np.random.default_rng([seed, 9])))
    # These contain absolute paths, so they are written once everything is in its final location.
    voicebank_demand.write_kaldi(out / "Voicebank", out / "enhancement")
    libri2mix.write_kaldi(out / "Libri2Mix", out / "separation")
    write_diarization_mixtures(out / "diarization", _synthetic_turns(np.random.default_rng([seed, 10])))


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


def _utterances(rng: np.random.Generator, corpus: str, unit: str = "utterance"):
    """Return the split, the number and the split's two voices of each utterance of a smaller corpus."""
    voices = {split: [draw_voice(rng, high=bool(number)) for number in range(2)] for split in UTTERANCES}
    return tqdm([(split, number, voices[split]) for split, count in UTTERANCES.items() for number in range(count)],
                desc=corpus, unit=unit)


def _lexicon() -> dict[str, str]:
    """Return the words in capitals with the synthesiser's phones in LibriSpeech's alphabet."""
    def name(phone):
        return f"{phone.upper()}1" if phone in VOWELS else "HH" if phone == "h" else phone.upper()
    return {word.upper(): " ".join(map(name, phones.split())) for word, phones in WORDS.items()}


def _synthetic_sentences(rng: np.random.Generator) -> Iterator[Utterance]:
    for split, number, voices in _utterances(rng, "LibriSpeech"):
        words = _draw_words(rng)
        speaker = 10 * list(UTTERANCES).index(split) + number % 2 + 1
        yield Utterance(_say(words, voices[number % 2], rng), " ".join(words).upper(), str(speaker), "7", split)


def _synthetic_slots(rng: np.random.Generator) -> Iterator[Utterance]:
    numbers = ("two", "five", "six", "seven")
    for split, number, voices in _utterances(rng, "Audio SNIPS"):
        words = [str(rng.choice(KEYWORDS)), "house", str(rng.choice(numbers))]
        label = f"BOS {' '.join(words).upper()} EOS\tO keyword O number Synthetic"
        yield Utterance(_say(words, voices[number % 2], rng), label, SPEAKERS[split][number % 2], split=split)


def _synthetic_intents(rng: np.random.Generator) -> Iterator[Utterance]:
    actions, places = {"on": "activate", "off": "deactivate"}, {"house": "kitchen", "bed": "bedroom"}
    for split, number, voices in _utterances(rng, "Fluent Speech Commands"):
        words = [list(actions)[number % 2], list(places)[number // 2 % 2]]
        label = f"{actions[words[0]]},lights,{places[words[1]]}"
        yield Utterance(_say(words, voices[number % 2], rng), label, f"{split}{number % 2}", split=split)


def _synthetic_trials(rng: np.random.Generator) -> Iterator[Utterance]:
    for speaker in tqdm(range(5), desc="VoxCeleb1, trials", unit="voice"):
        voice, split = draw_voice(rng, high=speaker % 2 == 0), "train" if speaker < 3 else "test"
        for number in range(4 if split == "train" else 2):
            speech = np.concatenate([_say(_draw_words(rng), voice, rng) for _ in range(4)])
            yield Utterance(speech, f"id{10001 + speaker}", recording=f"video{number}", split=split)


def _synthetic_queries(rng: np.random.Generator) -> Iterator[Utterance]:
    voices = {part: draw_voice(rng, high=part == "documents") for part in ("dev", "test", "documents")}
    for part, voice in voices.items():
        for word in KEYWORDS[:4]:
            yield Utterance(_say([word], voice, rng), "nnenglish", split=part)
            if part == "documents":
                for _ in range(2):
                    yield Utterance(_say([*_draw_words(rng), word], voice, rng), "nnenglish", split=part)


def _synthetic_noisy(rng: np.random.Generator) -> Iterator[tuple]:
    speakers = {"train": "p228", "dev": "p226", "test": "p232"}
    for split, number, voices in _utterances(rng, "Voicebank-DEMAND"):
        clean = _say(_draw_words(rng), voices[number % 2], rng)
        noisy = clean + np.std(clean) * 10 ** (-rng.uniform(0, 15) / 20) * noise(len(clean), 1, rng)
        yield split, f"{speakers[split]}_{number:03d}", noisy, clean


def _synthetic_pairs(rng: np.random.Generator) -> Iterator[tuple]:
    for split, number, voices in _utterances(rng, "Libri2Mix", "mixture"):
        one, other = (_say(_draw_words(rng), voice, rng) for voice in voices)
        length = min(len(one), len(other))
        yield split, f"{number:04d}_{number:04d}", one[:length] + other[:length], one[:length], other[:length]


def _synthetic_turns(rng: np.random.Generator) -> Iterator[Mixture]:
    for split, _, voices in _utterances(rng, "Libri2Mix, diarization", "mixture"):
        one, other = (_say(_draw_words(rng), voice, rng) for voice in voices)
        starts = [0, int(rng.uniform(0.5, 1) * len(one))]
        samples = 0.001 * noise(starts[1] + len(other) + len(one), 0, rng)
        turns = []
        for speaker, start, speech in zip("ab", starts, (one, other)):
            samples[start:start + len(speech)] += speech
            turns.append((f"{split}_{speaker}", start / SAMPLE_RATE, (start + len(speech)) / SAMPLE_RATE))
        yield Mixture(samples, turns, split)


def _draw_words(rng: np.random.Generator) -> list[str]:
    return [str(word) for word in rng.choice(list(WORDS), rng.integers(3, 6))]


def _say(words: list[str], voice, rng: np.random.Generator) -> np.ndarray:
    """Return a recording in which a voice says some words, without cutting any off."""
    return record(speak(words, voice, STYLES["neutral"], rng), rng)


def _record_sentence(voice, style, rng: np.random.Generator) -> np.ndarray:
    """Return a recording of 1 to 2.5 s in which a voice says a few random words."""
    words = rng.choice(list(WORDS), rng.integers(2, 6))
    speech = speak(list(words), voice, style, rng)
    return record(speech, rng, seconds=np.clip(len(speech) / SAMPLE_RATE + rng.uniform(0.05, 0.3), 1, 2.5))
