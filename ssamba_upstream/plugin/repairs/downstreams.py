"""s3prl's downstreams where its package lacks a file, or where they fail beside today's libraries or on a CPU."""

import contextlib
import functools
import hashlib
import os
import pickle
import random
import sys
import tempfile
import types
from pathlib import Path

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from ...configs import configs_folder
from ...files import locked, replacing
from . import ctc_corpora

# The corpora and vocabularies that the wheel lacks


def add_ctc_corpora(module):
    """Put this package's ``LibriPhoneDataset``, ``LibriDataset`` and ``SnipsDataset`` where ``ctc`` looks for them."""
    package = f"{module.__package__}.corpus"
    if (Path(module.__file__).parent / "corpus").is_dir():
        return
    names = {"libriphone": "LibriPhoneDataset", "librispeech": "LibriDataset", "snips": "SnipsDataset"}
    for name in ("", *(f".{name}" for name in names)):
        sys.modules[package + name] = types.ModuleType(package + name)
    for name, dataset in names.items():
        setattr(sys.modules[f"{package}.{name}"], dataset, getattr(ctc_corpora, dataset))


def keep_corpus_config(module):
    """``load_dataset`` pops ``num_workers`` from the config, so that the second split would get twelve."""
    add_ctc_corpora(module)
    load_dataset = module.load_dataset
    module.load_dataset = lambda split, tokenizer, corpus: load_dataset(split, tokenizer, dict(corpus))


def find_vocabulary(name) -> str:
    """A vocabulary file, or one of this package's ("characters", "phonemes", "letters") by its name."""
    ours = configs_folder("downstream") / "vocabularies" / f"{name}.txt"
    return str(ours) if not Path(name).is_file() and ours.is_file() else name


def find_text_vocabularies(module):
    load_text_encoder = module.load_text_encoder
    module.load_text_encoder = lambda mode, vocab_file, **others: load_text_encoder(
        mode, find_vocabulary(vocab_file), **others)


def find_dictionaries(module):
    load = module.Dictionary.load.__func__
    module.Dictionary.load = classmethod(lambda cls, name: load(cls, find_vocabulary(name)))


def measure_lengths(module):
    """ASR sorts utterances by lengths from tables, whose generator the package lacks: measure them instead.

    With a ``bucket_file`` of null, the lengths are read from the headers of the recordings. They are in samples, as in
    the tables of s3prl's ``generate_len_for_bucket.py``, so s3prl halves every batch with a recording of more than
    2000 samples: SUPERB trains ASR on 16 utterances a step.
    """
    build = module.SequenceDataset.__init__

    @functools.wraps(build)
    def build_with_tables(self, split, bucket_size, dictionary, libri_root, bucket_file, **others):
        with tempfile.TemporaryDirectory() as folder:
            if bucket_file is None:
                bucket_file = folder
                for name in others[split]:
                    _write_lengths(Path(libri_root), name, Path(folder) / f"{name}.csv")
            build(self, split, bucket_size, dictionary, libri_root, bucket_file, **others)

    module.SequenceDataset.__init__ = build_with_tables


def _write_lengths(libri_root, name, table):
    recordings = sorted((libri_root / name).rglob("*.flac"))
    if not recordings:
        raise FileNotFoundError(f"{libri_root / name}: expected LibriSpeech's SPEAKER/CHAPTER/*.flac there")
    lines = [f"{path.relative_to(libri_root)},{soundfile.info(path).frames}" for path in recordings]
    table.write_text("file_path,length\n" + "\n".join(lines) + "\n", encoding="utf-8")


# Caches in the installation


class _WholeFiles:
    """The ``torch`` module, with a ``save`` whose files are whole at every moment."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def save(content, path, *others, **named):
        with replacing(path) as temporary:
            torch.save(content, temporary, *others, **named)


def write_whole_files(module):
    """s3prl saves in place: a process that is killed meanwhile leaves half a file under the final name."""
    module.torch = _WholeFiles()


def keep_lengths_by_corpus(module):
    """sv_voxceleb1 keeps the lengths of its recordings in the installation, whatever the corpus: keep them apart.

    They lie in torch's hub folder, under a hash of the recordings' paths, sizes and times. One process at a time
    measures a corpus, others wait for it; what cannot be read is measured again.
    """
    write_whole_files(module)
    build = module.SpeakerVerifi_train.__init__

    @functools.wraps(build)
    def build_with_own_cache(self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=12):
        folder = Path(torch.hub.get_dir()) / "ssamba_upstream" / "lengths" / _fingerprint(file_path)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            _remove_unreadable(folder / ".wav_lengths")
            module.__file__, original = str(folder / "dataset.py"), module.__file__
            try:
                build(self, vad_config, key_list, file_path, meta_data, max_timestep, min(n_jobs, os.cpu_count()))
            finally:
                module.__file__ = original

    module.SpeakerVerifi_train.__init__ = build_with_own_cache


def _remove_unreadable(folder):
    for path in folder.glob("*.pt"):
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            print(f"{path} cannot be read, so the recordings are measured again")
            path.unlink()


def _fingerprint(roots) -> str:
    digest = hashlib.sha256()
    for root in map(Path, roots):
        for path in sorted(root.rglob("*.wav")):
            status = path.stat()
            digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# Short utterances


def _lengthen(frames: torch.Tensor) -> torch.Tensor:
    """Frames (T, D), repeated up to 16 where there are fewer: an x-vector takes 14 away, and averages two or more."""
    return frames.repeat(-(-16 // len(frames)), 1) if len(frames) < 16 else frames


def lengthen_for_x_vectors(module):
    """``sv_voxceleb1`` fails for utterances that are shorter than its x-vector's context: they are repeated."""
    forward = module.DownstreamExpert.forward

    @functools.wraps(forward)
    def forward_of_long_enough(self, mode, features, *others, **named):
        if self.modelrc["module"] == "XVector":
            features = [_lengthen(feature) for feature in features]
        return forward(self, mode, features, *others, **named)

    module.DownstreamExpert.forward = forward_of_long_enough


def lengthen_for_superb_x_vectors(module):
    """The same of s3prl's newer recipe, SuperbASV."""
    forward = module.SuperbXvector.forward

    @functools.wraps(forward)
    def forward_of_long_enough(self, x, x_len):
        utterances = [_lengthen(frames[:length]) for frames, length in zip(x, x_len, strict=True)]
        lengths = torch.tensor([len(frames) for frames in utterances])
        return forward(self, pad_sequence(utterances, batch_first=True), lengths)

    module.SuperbXvector.forward = forward_of_long_enough


def leave_out_frameless(module):
    """Diarization's evaluation ends at a recording that is shorter than a frame of labels: it is left out."""
    build = module.DiarizationDataset.__init__

    @functools.wraps(build)
    def build_with_frames(self, *args, **kwargs):
        build(self, *args, **kwargs)
        if self.mode != "test":
            return
        self.rec_list = [name for name, chunks in self.chunk_indices.items() if chunks]
        if frameless := sorted(self.chunk_indices.keys() - self.rec_list):
            print(f"left out {len(frameless)} recordings that are shorter than a frame: {', '.join(frameless[:5])}")

    module.DiarizationDataset.__init__ = build_with_frames


# Code for a GPU, run on a CPU


@contextlib.contextmanager
def _tensors_stay():
    original = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        torch.Tensor.cuda = original


def stays_on_cpu(class_name, method_name):
    """Mend a module whose method says ``.cuda()`` whatever the device: without a GPU, tensors stay where they are."""

    def mend(module):
        owner = getattr(module, class_name)
        method = getattr(owner, method_name)

        @functools.wraps(method)
        def method_on_any_device(*args, **kwargs):
            if torch.cuda.is_available():
                return method(*args, **kwargs)
            with _tensors_stay():
                return method(*args, **kwargs)

        setattr(owner, method_name, method_on_any_device)

    return mend


# Names that libraries removed


def restore_iteritems(module):
    """``Series.iteritems``, removed in pandas 2."""
    series = module.pd.Series
    if not hasattr(series, "iteritems"):
        series.iteritems = series.items


class _RandomOfSets:
    """The ``random`` module, with ``sample`` of a set, removed in Python 3.11; in sorted order, so that seeds hold."""

    def __getattr__(self, name):
        return getattr(random, name)

    @staticmethod
    def sample(population, k):
        return random.sample(sorted(population) if isinstance(population, (set, frozenset)) else population, k)


def sample_sets(module):
    module.random = _RandomOfSets()
