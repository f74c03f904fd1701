"""Small corpora of noise in the official layouts of SUPERB's tasks, and the fields of s3prl's configs for them."""

import numpy as np
import soundfile

SECONDS = (1.5, 0.9, 1.2, 2.0, 0.01, 0.05)
"""Lengths of consecutive recordings: all different, and two shorter than a frame of 100 ms."""


def write_noise(path, number, seconds=None, subtype="PCM_16"):
    """Write noise with a tone; the number determines pitch, length and noise."""
    samples = int(16000 * (seconds or SECONDS[number % len(SECONDS)]))
    noise = np.random.default_rng(number).standard_normal(samples)
    tone = np.sin(2 * np.pi * 110 * (1 + number % 5) * np.arange(samples) / 16000)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.05 * noise + 0.2 * tone, 16000, subtype=subtype)


def librispeech(root, words=("A", "CAB"), seconds=None):
    for number, split in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        lines = []
        for utterance in range(6):
            name = f"{number + 1}-7-{utterance:04d}"
            write_noise(root / split / f"{number + 1}" / "7" / f"{name}.flac", utterance, seconds)
            lines.append(f"{name} {words[utterance % len(words)]}\n")
        (root / split / f"{number + 1}" / "7" / f"{number + 1}-7.trans.txt").write_text("".join(lines))


def phone_recognition(root):
    librispeech(root)
    (root / "lexicon.txt").write_text("A AH0\nCAB K AE1 B\nCAB K AA1 B\n")
    return {"corpus.path": root, "corpus.lexicon": [str(root / "lexicon.txt")], "corpus.batch_size": 3,
            "corpus.num_workers": 0}


def speech_recognition(root):
    """Write LibriSpeech; s3prl halves the batches, so a step has three utterances."""
    librispeech(root)
    return {"datarc.libri_root": root, "datarc.batch_size": 6, "datarc.num_workers": 0, "modelrc.project_dim": 16,
            "modelrc.RNNs.dim": [16, 16]}


def slot_filling(root):
    lines = []
    for split, speaker in (("train", "Ivy"), ("valid", "Amy"), ("test", "Emma")):
        for number in range(6):
            write_noise(root / split / f"{speaker}-{split}-{number}.wav", number)
            lines.append(f"{speaker}-{split}-{number} BOS GO BY EOS\tO O B O intent\n".replace(" B O ", " city O "))
    (root / "all.iob.snips.txt").write_text("".join(lines))
    (root / "slots.txt").write_text("O\ncity")
    return {"corpus.path": root, "corpus.batch_size": 3, "corpus.num_workers": 0,
            "text.slots_file": root / "slots.txt", "model.project_dim": 16, "model.RNNs.dim": [16, 16]}


def intent_classification(root):
    for split in ("train", "valid", "test"):
        lines = [",path,speakerId,transcription,action,object,location\n"]
        for number in range(6):
            path = f"wavs/speakers/{split}/{split}-{number}.wav"
            write_noise(root / path, number)
            slots = ("activate,lights,none", "increase,lights,kitchen")[number % 2]
            lines.append(f"{number},{path},{split},Words,{slots}\n")
        (root / "data").mkdir(exist_ok=True)
        (root / "data" / f"{split}_data.csv").write_text("".join(lines))
    return {"datarc.file_path": root, "datarc.train_batch_size": 3, "datarc.num_workers": 0}


def speaker_verification(root):
    """Write training recordings above the minimum length for training, and trials of any length."""
    for speaker in range(3):
        for number in range(3):
            write_noise(root / "dev" / "wav" / f"id1000{speaker}" / "video" / f"{number}.wav", number, 2.2)
            write_noise(root / "test" / "wav" / f"id2000{speaker}" / "video" / f"{number}.wav", number + 2)
    trials = [f"{int(one == other)} id{{}}000{one}/video/0.wav id{{}}000{other}/video/1.wav\n"
              for one in range(3) for other in range(3)]
    for name, prefix in (("dev", 1), ("test", 2)):
        (root / f"{name}_trials.txt").write_text("".join(line.format(prefix, prefix) for line in trials))
    return {"datarc.file_path": root, "datarc.train_batch_size": 3, "datarc.num_workers": 0,
            "datarc.dev_meta_data": root / "dev_trials.txt", "datarc.test_meta_data": root / "test_trials.txt",
            "modelrc.input_dim": 16}


def s3prl_speaker_verification(root, cache):
    """Write VoxCeleb1 for s3prl's SuperbASV, with the two lists that it would download in ``cache``."""
    splits, tests = [], []
    for speaker in ("id10001", "id10002", "id10270", "id10271"):
        part = "dev" if speaker < "id10270" else "test"  # s3prl's test speakers start at id10270
        for number in range(3):
            name = f"{speaker}/video/{number:05d}.wav"
            write_noise(root / part / "wav" / name, number + 2, 2.2 if part == "dev" else None)
            splits.append(f"1 {name}\n")
            tests += [name] * (part == "test")
    trials = [f"{int(one[:7] == other[:7])} {one} {other}\n"
              for place, one in enumerate(tests) for other in tests[:place]]
    cache.mkdir()
    (cache / "iden_split.txt").write_text("".join(splits))
    (cache / "voxceleb1_test_v2.txt").write_text("".join(trials))


def speaker_diarization(root):
    for split in ("train", "dev", "test"):
        folder, files = root / split, {"wav.scp": [], "segments": [], "utt2spk": [], "spk2utt": [], "reco2dur": []}
        for number in range(6):
            path, name, seconds = folder / "wav" / f"{number}.wav", f"rec{number}", SECONDS[number]
            write_noise(path, number)
            files["wav.scp"].append(f"{name} {path}")
            files["reco2dur"].append(f"{name} {seconds}")
            for speaker, (start, end) in {"a": (0, 0.6 * seconds), "b": (0.4 * seconds, seconds)}.items():
                files["segments"].append(f"{name}{speaker} {name} {start} {end}")
                files["utt2spk"].append(f"{name}{speaker} {name}{speaker}")
                files["spk2utt"].append(f"{name}{speaker} {name}{speaker}")
        for name, lines in files.items():
            (folder / name).write_text("\n".join(lines) + "\n")
    return {f"loaderrc.{split}_dir": root / split for split in ("train", "dev", "test")} | {
        "loaderrc.num_workers": 0, "loaderrc.train_batchsize": 2, "modelrc.hidden_size": 16}


def query_by_example(root):
    lists = {"language_key_utterances.lst": [], "language_key_dev.lst": [], "language_key_eval.lst": []}
    for name, lines in lists.items():
        for number in range(4):
            path = f"Audio/{name.split('_')[-1][:-4]}_{number}.wav"
            write_noise(root / path, number + 2, 2.0 if "utterances" in name else None)
            lines.append(f"quesst14Database/{path} {'nnenglish' if number < 3 else 'czech'}\n")
        (root / "scoring").mkdir(exist_ok=True)
        (root / "scoring" / name).write_text("".join(lines))
    return {"datarc.dataset_root": root, "datarc.num_workers": 0, "max_workers": 1}


def _stft_task(root, kinds):
    """Write training recordings of all lengths and evaluation recordings for STOI and PESQ, of a second or more."""
    for split in ("train", "dev", "test"):
        for place, kind in enumerate(kinds):
            lines = []
            for number in range(6 if split == "train" else 2):
                path = root / split / "wav" / kind / f"{number}.wav"
                write_noise(path, 10 * place + number, SECONDS[number])
                lines.append(f"utt{number} {path}\n")
            (root / split / kind).mkdir()
            (root / split / kind / "wav.scp").write_text("".join(lines))
    return {f"loaderrc.{split}_dir": root / split for split in ("train", "dev", "test")} | {
        "loaderrc.num_workers": 0, "loaderrc.train_batchsize": 3, "modelrc.hidden_size": 16}


def speech_enhancement(root):
    return _stft_task(root, ("noisy", "clean"))


def speech_separation(root):
    return _stft_task(root, ("mix_clean", "s1", "s2"))
