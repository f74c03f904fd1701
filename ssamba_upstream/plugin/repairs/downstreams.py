"""Repairs of s3prl's downstreams: files missing from its package, and failures with current libraries or on a CPU."""

import contextlib
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
from . import ctc_corpora, wrap

# Corpora and vocabularies missing from the wheel


def add_ctc_corpora(module):
    """Add this package's ``LibriPhoneDataset``, ``LibriDataset`` and ``SnipsDataset`` where ``ctc`` imports them."""
    package = f"{module.__package__}.corpus"
    if (Path(module.__file__).parent / "corpus").is_dir():
        return
    names = {"libriphone": "LibriPhoneDataset", "librispeech": "LibriDataset", "snips": "SnipsDataset"}
    for name in ("", *(f".{name}" for name in names)):
        sys.modules[package + name] = types.ModuleType(package + name)
    for name, dataset in names.items():
        setattr(sys.modules[f"{package}.{name}"], dataset, getattr(ctc_corpora, dataset))


def keep_corpus_config(module):
    """Pass a copy of the config to ``load_dataset``, which pops ``num_workers``: the second split would get twelve."""
    add_ctc_corpora(module)
    load_dataset = module.load_dataset
    module.load_dataset = lambda split, tokenizer, corpus: load_dataset(split, tokenizer, dict(corpus))


def find_vocabulary(name) -> str:
    """Return a vocabulary file, given its path or a name in this package ("characters", "phonemes", "letters")."""
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
    """Measure utterance lengths for ASR, which sorts by tables whose generator is missing from s3prl's package.

    If ``bucket_file`` is null, the lengths are read from the recordings' headers. They are in samples, as in
    the tables of s3prl's ``generate_len_for_bucket.py``, so s3prl halves every batch with a recording of more than
    2000 samples: SUPERB trains ASR on 16 utterances per step.
    """

    @wrap(module.SequenceDataset, "__init__")
    def build_with_tables(build, self, split, bucket_size, dictionary, libri_root, bucket_file, **others):
        with tempfile.TemporaryDirectory() as folder:
            if bucket_file is None:
                bucket_file = folder
                for name in others[split]:
                    _write_lengths(Path(libri_root), name, Path(folder) / f"{name}.csv")
            build(self, split, bucket_size, dictionary, libri_root, bucket_file, **others)


def _write_lengths(libri_root, name, table):
    recordings = sorted((libri_root / name).rglob("*.flac"))
    if not recordings:
        raise FileNotFoundError(f"{libri_root / name}: expected LibriSpeech's SPEAKER/CHAPTER/*.flac")
    lines = [f"{path.relative_to(libri_root)},{soundfile.info(path).frames}" for path in recordings]
    table.write_text("file_path,length\n" + "\n".join(lines) + "\n", encoding="utf-8")


# Caches in the installation folder


class _ModuleWith:
    """A module with some functions replaced."""

    def __init__(self, module, **replaced):
        vars(self).update(replaced, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


def write_whole_files(module):
    """Make s3prl save atomically: it saves in place, so a killed process would leave half a file."""

    def save(content, path, *others, **named):
        with replacing(path) as temporary:
            torch.save(content, temporary, *others, **named)

    module.torch = _ModuleWith(torch, save=save)


def keep_lengths_by_corpus(module):
    """Cache sv_voxceleb1's recording lengths by corpus; s3prl keeps one cache in its installation for all corpora.

    The lengths are in torch's hub folder, under a hash of the recordings' paths, sizes and times. One process at a time
    measures a corpus, and others wait for it. A cache that cannot be read is measured again.
    """
    write_whole_files(module)

    @wrap(module.SpeakerVerifi_train, "__init__")
    def build_with_own_cache(build, self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=12):
        folder = Path(torch.hub.get_dir()) / "ssamba_upstream" / "lengths" / _fingerprint(file_path)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            _remove_unreadable(folder / ".wav_lengths")
            module.__file__, original = str(folder / "dataset.py"), module.__file__
            try:
                build(self, vad_config, key_list, file_path, meta_data, max_timestep, min(n_jobs, os.cpu_count()))
            finally:
                module.__file__ = original


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
    """Repeat frames (T, D) up to at least 16: an x-vector's context removes 14, and it averages two or more."""
    return frames.repeat(-(-16 // len(frames)), 1) if len(frames) < 16 else frames


def lengthen_for_x_vectors(module):
    """Repeat utterances that are shorter than the context of ``sv_voxceleb1``'s x-vector, for which it fails."""

    @wrap(module.DownstreamExpert, "forward")
    def forward_of_long_enough(forward, self, mode, features, *others, **named):
        if self.modelrc["module"] == "XVector":
            features = [_lengthen(feature) for feature in features]
        return forward(self, mode, features, *others, **named)


def lengthen_for_superb_x_vectors(module):
    """Repeat short utterances in s3prl's newer recipe, SuperbASV, see :func:`lengthen_for_x_vectors`."""

    @wrap(module.SuperbXvector, "forward")
    def forward_of_long_enough(forward, self, x, x_len):
        utterances = [_lengthen(frames[:length]) for frames, length in zip(x, x_len, strict=True)]
        lengths = torch.tensor([len(frames) for frames in utterances])
        return forward(self, pad_sequence(utterances, batch_first=True), lengths)


def skip_frameless(module):
    """Skip recordings shorter than a label frame, which would abort diarization's evaluation."""

    @wrap(module.DiarizationDataset, "__init__")
    def build_with_frames(build, self, *args, **kwargs):
        build(self, *args, **kwargs)
        if self.mode != "test":
            return
        self.rec_list = [name for name, chunks in self.chunk_indices.items() if chunks]
        if frameless := sorted(self.chunk_indices.keys() - self.rec_list):
            print(f"skipped {len(frameless)} recordings that are shorter than a frame: {', '.join(frameless[:5])}")


# Code for a GPU, run on a CPU


@contextlib.contextmanager
def _tensors_stay():
    original = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        torch.Tensor.cuda = original


def stay_on_cpu(module, class_name, method_name):
    """Repair a method that calls ``.cuda()`` on any device: without a GPU, tensors stay where they are."""

    @wrap(getattr(module, class_name), method_name)
    def method_on_any_device(method, *args, **kwargs):
        with contextlib.nullcontext() if torch.cuda.is_available() else _tensors_stay():
            return method(*args, **kwargs)


# Names that libraries removed


def restore_iteritems(module):
    """Restore ``Series.iteritems``, removed in pandas 2."""
    series = module.pd.Series
    if not hasattr(series, "iteritems"):
        series.iteritems = series.items


def sample_sets(module):
    """Restore ``random.sample`` for sets, removed in Python 3.11; sorted, so that a seed determines it."""

    def sample(population, k):
        return random.sample(sorted(population) if isinstance(population, (set, frozenset)) else population, k)

    module.random = _ModuleWith(random, sample=sample)
