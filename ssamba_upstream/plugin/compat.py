"""s3prl 0.4 on current versions of torch, torchaudio and huggingface_hub.

``apply`` restores what s3prl expects from its libraries but no longer finds. Every repair checks first: anything that
exists and works is left alone, and neither ``torch.load`` nor a builtin is replaced. Four of s3prl's own bugs occur
with any version of its libraries and are always fixed: it caches file lists in its installation folder, saves states
in place, uses the same seed after every resume, and replaces the builtin ``isinstance``.

This module does not import s3prl; s3prl's modules are patched when something imports them. Worker processes
started by spawn, forkserver or loky (joblib) call ``apply`` before they unpickle their work.
"""

import argparse
import collections
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import sys
import tempfile
import types
import warnings
from typing import NamedTuple

import huggingface_hub
import soundfile
import torch
import torchaudio
from torch.utils.data import DistributedSampler

from .repairs import wrap
from .repairs.sox import apply_effects_tensor

_repairs_made: list[str] | None = None


def apply() -> list[str]:
    """Make s3prl usable in this process and in the worker processes it starts.

    Further calls have no effect.

    Returns:
        Descriptions of the repairs active in this process. With torch < 2.6, torchaudio < 2.9 with libsox,
        huggingface_hub < 1 and catalyst, the list is empty.
    """
    global _repairs_made
    if _repairs_made is None:
        _repairs_made = [name for name, repair in _REPAIRS.items() if repair()]
        _mend_on_import(_MENDED_MODULES)
        multiprocessing.current_process()._config["ssamba_upstream"] = _AppliedInChildren()
    return list(_repairs_made)


def register() -> None:
    """Add SSAMBA's entries to ``s3prl.hub``, after making s3prl run on current versions of its libraries.

    Afterwards ``s3prl.nn.S3PRLUpstream("ssamba_local", path_or_url=...)`` and ``s3prl.run_downstream`` work in this
    process and in the worker processes it starts. It can be called any number of times.
    """
    apply()
    importlib.import_module("s3prl.hub")


# Anything


def _add_missing(owner, **values) -> bool:
    """Add the attributes that an object lacks. Return True if it lacked any."""
    missing = {name: value for name, value in values.items() if not hasattr(owner, name)}
    for name, value in missing.items():
        setattr(owner, name, value)
    return bool(missing)


class _Unusable:
    """An importable stand-in for a missing object; it raises an error with the message when it is called."""

    def __init__(self, message):
        self._message = message

    def __call__(self, *args, **kwargs):
        raise RuntimeError(self._message)

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self


# torchaudio


class AudioMetaData(NamedTuple):
    """The result of ``torchaudio.info``."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int  # 0 if samples have no fixed width
    encoding: str


_ENCODINGS = {
    "PCM_S8": ("PCM_S", 8), "PCM_16": ("PCM_S", 16), "PCM_24": ("PCM_S", 24), "PCM_32": ("PCM_S", 32),
    "PCM_U8": ("PCM_U", 8), "FLOAT": ("PCM_F", 32), "DOUBLE": ("PCM_F", 64), "ULAW": ("ULAW", 8),
    "ALAW": ("ALAW", 8), "VORBIS": ("VORBIS", 0), "OPUS": ("OPUS", 0), "MPEG_LAYER_III": ("MP3", 0),
}


def _info(uri, format=None, buffer_size=4096, backend=None) -> AudioMetaData:
    """``torchaudio.info`` of torchaudio < 2.9, implemented with soundfile."""
    found = soundfile.info(uri)
    encoding, bits_per_sample = _ENCODINGS.get(found.subtype, ("UNKNOWN", 0))
    if found.format == "FLAC":
        encoding = "FLAC"
    return AudioMetaData(found.samplerate, found.frames, found.channels, bits_per_sample, encoding)


def _restore_load() -> bool:
    reads_by_itself = hasattr(torchaudio, "list_audio_backends")
    if reads_by_itself or _imports("torchcodec.decoders"):
        return False
    torchaudio.load = _load
    return True


def _load(uri, frame_offset=0, num_frames=-1, normalize=True, channels_first=True, format=None,
          buffer_size=4096, backend=None) -> tuple[torch.Tensor, int]:
    """``torchaudio.load`` with soundfile: float32 (channels, time) in [-1, 1], and the sample rate."""
    if not normalize:
        raise NotImplementedError("torchaudio.load(normalize=False) needs torchcodec or torchaudio < 2.9.")
    samples, sample_rate = soundfile.read(uri, num_frames, frame_offset, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy() if channels_first else samples), sample_rate


def _restore_sox_effects() -> bool:
    if hasattr(torchaudio, "sox_effects"):
        if _libsox_loads():
            return False
    else:
        torchaudio.sox_effects = _new_module("torchaudio.sox_effects")
    torchaudio.sox_effects.apply_effects_file = _apply_effects_file
    torchaudio.sox_effects.apply_effects_tensor = apply_effects_tensor
    return True


def _libsox_loads() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torchaudio.sox_effects.effect_names()
        except (ImportError, OSError, RuntimeError, AttributeError):
            return False
    return True


def _apply_effects_file(path, effects, normalize=True, channels_first=True,
                        format=None) -> tuple[torch.Tensor, int]:
    """``torchaudio.sox_effects.apply_effects_file`` for the effects that ``apply_effects_tensor`` supports."""
    waveform, sample_rate = _load(path, normalize=normalize)
    waveform, sample_rate = apply_effects_tensor(waveform, sample_rate, effects)
    return (waveform if channels_first else waveform.T), sample_rate


# huggingface_hub


class _HubToken:
    """``huggingface_hub.HfFolder``, removed in 1.0: access to the token of ``hf auth login`` or HF_TOKEN."""

    get_token = staticmethod(huggingface_hub.get_token)

    @staticmethod
    def save_token(token):
        """Do nothing: the token stays where it came from."""


def _restore_hub_downloads() -> bool:
    if hasattr(huggingface_hub.HfApi, "login"):
        return False
    # The hub no longer accepts passwords, so the existing token is used.
    huggingface_hub.HfApi.login = lambda self, username=None, password=None: huggingface_hub.get_token()
    huggingface_hub.snapshot_download = _accept_old_arguments(huggingface_hub.snapshot_download)
    return True


def _accept_old_arguments(download):
    """Return ``snapshot_download`` with s3prl's arguments: the revision in second place, and ``use_auth_token``."""

    @functools.wraps(download)
    def snapshot_download(repo_id, revision=None, *, use_auth_token=None, **options):
        # A public repository needs no token, so use_auth_token=True must not require one.
        token = options.pop("token", None) or (None if use_auth_token is True else use_auth_token)
        return download(repo_id, revision=revision, token=token, **options)

    return snapshot_download


# torch


def _allow_namespace_in_checkpoints() -> bool:
    reads_any_class = torch.__version__ < (2, 6)
    if reads_any_class or argparse.Namespace in torch.serialization.get_safe_globals():
        return False
    torch.serialization.add_safe_globals([argparse.Namespace])
    return True


# catalyst


class DistributedSamplerWrapper(DistributedSampler):
    """Split another sampler's indices among the processes of a distributed run.

    Every process draws the same indices, seeded by ``seed + epoch`` and not by the process's own random
    state, and takes its own part of them. Together the parts contain every drawn index once, apart from the
    padding that makes them equally long.

    Args:
        sampler: a sampler of known length that draws from torch's default generator.
        num_replicas, rank: Default: those of the process group.
        shuffle: If True, the drawn indices are shuffled before they are split.
    """

    def __init__(self, sampler, num_replicas=None, rank=None, shuffle=True):
        super().__init__(range(len(sampler)), num_replicas=num_replicas, rank=rank, shuffle=shuffle)
        self.sampler = sampler

    def __iter__(self):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed + self.epoch)
            drawn = list(self.sampler)
        return map(drawn.__getitem__, super().__iter__())


def _restore_distributed_sampler_wrapper() -> bool:
    if _imports("catalyst.data.sampler"):
        return False
    for name in ("catalyst", "catalyst.data", "catalyst.data.sampler"):
        _new_module(name)
    sys.modules["catalyst.data.sampler"].DistributedSamplerWrapper = DistributedSamplerWrapper
    return True


# sox


def _restore_sox_import() -> bool:
    if _imports("sox"):
        return False
    # s3prl's speaker verification imports it and never uses it.
    _new_module("sox").Transformer = _Unusable("The sox package is not installed. Run: pip install sox")
    return True


# s3prl's own bugs, with any version of its libraries


def _forget_file_lists(module):
    """Make voxceleb1 list its files every time instead of caching the lists in the installation folder.

    The cache is keyed by split, not by corpus, so one corpus could get the files of another.
    """

    @wrap(module.SpeakerClassifiDataset, "__init__")
    def build_without_cache(build, self, *args, **kwargs):
        with tempfile.TemporaryDirectory() as folder:
            module.CACHE_PATH = folder
            build(self, *args, **kwargs)


class _Records(collections.UserDict):
    """A ``defaultdict`` that is not a ``dict``.

    On GPUs, DistributedDataParallel rebuilds every dict among its arguments, which fails for a defaultdict and
    would lose the downstream's writes.
    """

    def __init__(self, default_factory):
        super().__init__()
        self.default_factory = default_factory

    def __missing__(self, key):
        self[key] = self.default_factory()
        return self[key]


def _pass_records_through_distributed_training(module):
    module.defaultdict = _Records


def _keep_isinstance(module):
    """Prevent s3prl from replacing the builtin ``isinstance``, which ``_Records`` makes unnecessary.

    s3prl's replacement breaks every other ``isinstance(a_defaultdict, (some, types))`` in the process.
    """
    module.hack_isinstance = lambda: None


def _later(path, *arguments):
    """Return a repair in ``plugin``, such as "repairs.frames.keep_frames", that is imported on use, because it imports
    the network and this module must not. ``arguments`` follow the module of s3prl."""
    file, _, name = path.rpartition(".")

    def mend(module):
        getattr(importlib.import_module(f"{__package__}.{file}"), name)(module, *arguments)

    return mend


def _both(*mends):
    def mend(module):
        for each in mends:
            each(module)

    return mend


_REPAIRS = {
    "torchaudio.set_audio_backend: accepted, without effect":
        lambda: _add_missing(torchaudio, set_audio_backend=lambda backend: None),
    "torchaudio.info: by soundfile": lambda: _add_missing(torchaudio, info=_info),
    "torchaudio.load: by soundfile": _restore_load,
    "torchaudio.sox_effects: channels, rate, gain, norm, pad, trim, reverse, vad and silence": _restore_sox_effects,
    "huggingface_hub.HfFolder and Repository: the latter importable, not usable":
        lambda: _add_missing(huggingface_hub, HfFolder=_HubToken, Repository=_Unusable(
            "This function of s3prl uses huggingface_hub.Repository, which huggingface_hub 1.0 removed. Install "
            "huggingface_hub < 1.")),
    "huggingface_hub.HfApi.login, snapshot_download(use_auth_token): the existing token": _restore_hub_downloads,
    "torch.load: accepts argparse.Namespace in s3prl's checkpoints": _allow_namespace_in_checkpoints,
    "catalyst.data.sampler.DistributedSamplerWrapper: our own": _restore_distributed_sampler_wrapper,
    "sox.Transformer: importable, not usable": _restore_sox_import,
}

_MENDED_MODULES = {
    "s3prl.hub": _later("hubconf.add_entries"),
    "s3prl.upstream.interfaces": _later("repairs.frames.keep_frames"),
    "s3prl.downstream.runner": _both(
        _pass_records_through_distributed_training, _later("repairs.frames.check_runs"),
        _later("repairs.downstreams.write_whole_files"), _later("repairs.resuming.seed_resumed_runs")),
    "s3prl.problem.base": _later("repairs.resuming.seed_resumed_recipes"),
    "s3prl.utility.helper": _keep_isinstance,
    "s3prl.run_downstream": _both(_keep_isinstance, _later("overrides.check_overrides")),
    "s3prl.downstream.voxceleb1.dataset": _forget_file_lists,
    "s3prl.downstream.ctc.data": _later("repairs.downstreams.keep_corpus_config"),
    **{f"s3prl.downstream.{name}.expert": _later(
        "repairs.frames.report_alignments", "DownstreamExpert", "objective", "log_records") for name in ("ctc", "asr")},
    "s3prl.downstream.ctc.text": _later("repairs.downstreams.find_text_vocabularies"),
    "s3prl.downstream.asr.dictionary": _later("repairs.downstreams.find_dictionaries"),
    "s3prl.downstream.asr.dataset": _later("repairs.downstreams.measure_lengths"),
    "s3prl.task.speech2text_ctc_task": _later(
        "repairs.frames.report_alignments", "Speech2TextCTCTask", "criterion", "reduction"),
    "s3prl.downstream.sv_voxceleb1.dataset": _later("repairs.downstreams.keep_lengths_by_corpus"),
    "s3prl.downstream.sv_voxceleb1.expert": _both(
        _later("repairs.downstreams.stay_on_cpu", "DownstreamExpert", "forward"),
        _later("repairs.downstreams.lengthen_for_x_vectors")),
    "s3prl.downstream.diarization.dataset": _later("repairs.downstreams.skip_frameless"),
    "s3prl.nn.speaker_model": _later("repairs.downstreams.lengthen_for_superb_x_vectors"),
    "s3prl.downstream.sws2013.sws2013_dataset": _later("repairs.downstreams.sample_sets"),
    "s3prl.dataio.corpus.base": _later("repairs.downstreams.restore_iteritems"),
    **{f"s3prl.downstream.{name}.expert": _later("repairs.downstreams.stay_on_cpu", "DownstreamExpert", "forward")
       for name in ("audio_snips", "atis", "voxceleb2_ge2e", "voxceleb2_amsoftmax_segment_eval")},
    **{f"s3prl.downstream.{name}.expert": _later("repairs.downstreams.stay_on_cpu", "DownstreamExpert", "log_records")
       for name in ("sws2013", "quesst14_embedding")},
    **{f"s3prl.downstream.{name}.loss": _later("repairs.downstreams.stay_on_cpu", "SISDRLoss", "__init__")
       for name in ("separation_stft", "separation_stft2", "enhancement_stft", "enhancement_stft2")},
}


# Applying repairs to modules and processes


def _imports(name) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):  # torchcodec without FFmpeg raises RuntimeError
        return False
    return True


def _new_module(name) -> types.ModuleType:
    spec = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return sys.modules[name]


def _mend_on_import(mends):
    for name, mend in mends.items():
        if name in sys.modules:
            mend(sys.modules[name])
    sys.meta_path.insert(0, _MendOnImport(mends))


class _MendOnImport(importlib.abc.MetaPathFinder):
    """A finder that only patches some modules after others have found and loaded them."""

    def __init__(self, mends):
        self.mends = mends

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.mends:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None:
            spec.loader.exec_module = self._and_mend(spec.loader.exec_module, self.mends[fullname])
        return spec

    @staticmethod
    def _and_mend(exec_module, mend):
        def exec_and_mend(module):
            exec_module(module)
            mend(module)
        return exec_and_mend


class _AppliedInChildren:
    """An object that calls ``apply`` when it is unpickled.

    multiprocessing sends ``current_process()._config``, before the work, to every process that does not
    inherit its parent's memory, and passes it on to that process's own children.
    """

    def __reduce__(self):
        return _apply_in_child, ()


def _apply_in_child() -> _AppliedInChildren:
    apply()
    return _AppliedInChildren()
