"""``s3prl.downstream.ctc.corpus``: the corpora of s3prl's ``ctc`` downstream, which are missing from its package.

Each is a dataset of batches, sorted by the number of tokens. For s3prl's bucketing, item i is the batch of
``bucket_size`` utterances that starts at the i-th; with a ``bucket_size`` of 1, item i is the i-th utterance.
"""

from pathlib import Path

from torch.utils.data import Dataset


class SortedByTokens(Dataset):
    """Utterances as (path, tokens), the longest first.

    Args:
        utterances: pairs of a path and a list of token numbers.
        bucket_size: number of utterances in an item; with 1, an item is the pair itself.
        ascending: If True, the shortest come first.
    """

    def __init__(self, utterances, bucket_size, ascending=False):
        self.utterances = sorted(utterances, key=lambda utterance: len(utterance[1]), reverse=not ascending)
        self.bucket_size = bucket_size

    def __len__(self):
        return len(self.utterances)

    def __getitem__(self, index):
        if self.bucket_size == 1:
            return self.utterances[index]
        first = max(0, min(index, len(self.utterances) - self.bucket_size))
        return self.utterances[first:first + self.bucket_size]


class LibriDataset(SortedByTokens):
    """LibriSpeech and its transcripts, as characters or as other tokens of the tokenizer.

    Args:
        split: names of folders such as "train-clean-100".
        tokenizer: object whose ``encode`` turns a transcript into token numbers.
        bucket_size, ascending: see :class:`SortedByTokens`.
        path: LibriSpeech's folder.

    Raises:
        FileNotFoundError: If a split has no recordings, or a recording has no transcript.
    """

    def __init__(self, split, tokenizer, bucket_size, path, ascending=False, **others):
        utterances = [(recording, tokenizer.encode(text)) for recording, text in librispeech(path, split)]
        super().__init__(utterances, bucket_size, ascending)


class LibriPhoneDataset(SortedByTokens):
    """LibriSpeech as phonemes, from the first pronunciation of each word in the lexicons.

    Args:
        lexicon: files with lines "WORD PHONE PHONE ..."; the first pronunciation of a word is used.
        others: see :class:`LibriDataset`.

    Raises:
        FileNotFoundError: see :class:`LibriDataset`.
        ValueError: If words are missing from all lexicons, or phones from the vocabulary.
    """

    def __init__(self, split, tokenizer, bucket_size, path, lexicon, ascending=False, **others):
        pronunciations = read_lexicons(lexicon)
        transcripts = list(librispeech(path, split))
        words = {word for _, text in transcripts for word in text.split()}
        if missing := sorted(words - pronunciations.keys()):
            raise ValueError(f"{len(missing)} of LibriSpeech's words are in none of {', '.join(map(str, lexicon))}: "
                             f"{', '.join(missing[:5])} ... Give all three in downstream_expert.corpus.lexicon.")
        phones = {phone for word in words for phone in pronunciations[word]}
        if unknown := sorted(phone for phone in phones if tokenizer.vocab_to_idx(phone) == tokenizer.unk_idx):
            raise ValueError(f"the lexicon's phones {', '.join(unknown)} are not in the vocabulary given by "
                             "downstream_expert.text.vocab_file")
        super().__init__([(recording, tokenizer.encode(" ".join(
            phone for word in text.split() for phone in pronunciations[word]))) for recording, text in transcripts],
            bucket_size, ascending)


class SnipsDataset(SortedByTokens):
    """Audio SNIPS for the speakers of a split, with words and slots.

    Args:
        split: ["train"], ["valid"] or ["test"], folders of wav files named SPEAKER-....wav.
        path: folder that contains the splits, ``all.iob.snips.txt`` and, for tokens without slots, ``all-trans.txt``.
        others: ``train_speakers``, ``valid_speakers`` and ``test_speakers``; for the rest see :class:`LibriDataset`.

    Raises:
        FileNotFoundError: If these speakers have no recording with a transcript.
    """

    def __init__(self, split, tokenizer, bucket_size, path, ascending=False, **others):
        name = "all.iob.snips.txt" if "-slot" in tokenizer.token_type else "all-trans.txt"
        lines = (line.split(maxsplit=1) for line in (Path(path) / name).read_text(encoding="utf-8").splitlines())
        transcripts = {line[0]: line[1].strip() for line in lines if len(line) == 2}
        speakers = tuple(others[f"{split[0]}_speakers"])
        recordings = [recording for folder in split for recording in sorted((Path(path) / folder).rglob("*.wav"))
                      if recording.stem.startswith(speakers) and recording.stem in transcripts]
        if not recordings:
            raise FileNotFoundError(f"{Path(path) / split[0]}: no .wav of speakers {', '.join(speakers)} has a line in "
                                    f"{name}")
        super().__init__([(recording, tokenizer.encode(transcripts[recording.stem])) for recording in recordings],
                         bucket_size, ascending)


def librispeech(path, split):
    """Yield the path and transcript of every recording in LibriSpeech's splits.

    Raises:
        FileNotFoundError: If a split has no recordings, or a recording has no transcript.
    """
    for name in split:
        recordings = sorted((Path(path) / name).rglob("*.flac"))
        if not recordings:
            raise FileNotFoundError(f"{Path(path) / name}: expected LibriSpeech's SPEAKER/CHAPTER/*.flac")
        transcripts = {}
        for file in sorted((Path(path) / name).rglob("*.trans.txt")):
            transcripts.update(line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line)
        for recording in recordings:
            if recording.stem not in transcripts:
                raise FileNotFoundError(f"{recording}: no .trans.txt in {Path(path) / name} has its transcript")
            yield recording, transcripts[recording.stem]


def read_lexicons(files) -> dict[str, list[str]]:
    """Return the first pronunciation of every word in some lexicons."""
    pronunciations = {}
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            word, *phones = line.split() or [None]
            if word is not None:
                pronunciations.setdefault(word, phones)
    return pronunciations
