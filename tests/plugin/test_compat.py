"""Repairs of s3prl: what it lacks with current libraries, and its own faults, each tested for its effect."""

import argparse
import builtins
import collections
import importlib.metadata
import importlib.util
import pickle
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import WeightedRandomSampler

from helpers.paths import CHECKOUT
from ssamba_upstream.plugin import compat
from ssamba_upstream.plugin.repairs.sox import apply_effects_tensor

import torchaudio  # isort: skip  (ssamba_upstream makes it importable)



@pytest.fixture(scope="module", autouse=True)
def applied():
    compat.apply()


def run_script(folder, text):
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n{text}")
    run = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


# apply


@pytest.mark.slow
def test_apply_imports_no_s3prl_and_repeats_itself(tmp_path):
    run_script(tmp_path, """
import sys
import ssamba_upstream
from ssamba_upstream.plugin import compat

assert not any(name.split(".")[0] == "s3prl" for name in sys.modules)
repairs = compat.apply()
assert not any(name.split(".")[0] == "s3prl" for name in sys.modules)

import torchaudio
before = torchaudio.load, torchaudio.info, list(sys.meta_path)
assert compat.apply() == repairs
assert before == (torchaudio.load, torchaudio.info, list(sys.meta_path))
""")


def test_lists_what_this_stack_misses():
    old_torchaudio = hasattr(torchaudio, "list_audio_backends")
    repairs = compat.apply()
    assert any(repair.startswith("torchaudio.info") for repair in repairs) is not old_torchaudio
    assert len(repairs) == len(set(repairs)) <= len(compat._REPAIRS)


def existing(monkeypatch, module, **attributes):
    for name, value in attributes.items():
        monkeypatch.setattr(module, name, value, raising=False)


def importable(monkeypatch, name):
    module = None
    while name:
        module = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
        name = name.rpartition(".")[0]


def test_leaves_what_exists(monkeypatch):
    kept = object()
    effects = types.SimpleNamespace(effect_names=list, apply_effects_file=kept, apply_effects_tensor=kept)
    existing(monkeypatch, torchaudio, set_audio_backend=kept, info=kept, sox_effects=effects)
    existing(monkeypatch, huggingface_hub, HfFolder=kept, Repository=kept)
    existing(monkeypatch, huggingface_hub.HfApi, login=kept)
    importable(monkeypatch, "sox")
    importable(monkeypatch, "catalyst.data.sampler")
    catalyst = sys.modules["catalyst.data.sampler"]
    safe = torch.serialization.get_safe_globals()

    repairs = [repair for repair in compat._REPAIRS.values() if repair is not compat._restore_load]
    assert [repair() for repair in repairs] == [False] * len(repairs)
    assert torchaudio.set_audio_backend is torchaudio.info is kept
    assert effects.apply_effects_file is effects.apply_effects_tensor is kept
    assert huggingface_hub.HfFolder is huggingface_hub.Repository is kept
    assert sys.modules["catalyst.data.sampler"] is catalyst
    assert not hasattr(catalyst, "DistributedSamplerWrapper")
    assert torch.serialization.get_safe_globals() == safe


@pytest.mark.parametrize("reader", ["torchcodec", "torchaudio < 2.9"])
def test_leaves_a_load_that_reads(monkeypatch, reader):
    kept = object()
    existing(monkeypatch, torchaudio, load=kept)
    if reader == "torchcodec":
        monkeypatch.delattr(torchaudio, "list_audio_backends", raising=False)
        importable(monkeypatch, "torchcodec.decoders")
    else:
        existing(monkeypatch, torchaudio, list_audio_backends=list)
    assert compat._restore_load() is False
    assert torchaudio.load is kept


def test_effects_without_libsox_count_as_missing(monkeypatch):
    def effect_names():
        raise OSError("libsox.so: cannot open shared object file")

    effects = types.SimpleNamespace(effect_names=effect_names, apply_effects_file=None)
    existing(monkeypatch, torchaudio, sox_effects=effects)
    assert compat._restore_sox_effects() is True
    assert effects.apply_effects_file is compat._apply_effects_file


# torchaudio


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """A 0.5 s stereo file at 8 kHz, and its samples (time, channels) rounded to PCM-16."""
    path = tmp_path_factory.mktemp("audio") / "stereo.wav"
    samples = np.random.default_rng(0).integers(-30000, 30000, (4001, 2), dtype=np.int16)
    soundfile.write(path, samples, 8000, subtype="PCM_16")
    return path, samples / 2**15


def test_load(stereo):
    path, samples = stereo
    waveform, sample_rate = compat._load(path)
    assert (waveform.dtype, waveform.shape, sample_rate) == (torch.float32, (2, 4001), 8000)
    assert waveform.is_contiguous()
    np.testing.assert_array_equal(waveform.numpy(), samples.T.astype(np.float32))

    waveform, _ = compat._load(str(path), frame_offset=100, num_frames=7)
    np.testing.assert_array_equal(waveform.numpy(), samples[100:107].T.astype(np.float32))
    waveform, _ = compat._load(path, frame_offset=4000, num_frames=7, channels_first=False)
    np.testing.assert_array_equal(waveform.numpy(), samples[4000:].astype(np.float32))
    with open(path, "rb") as file:
        assert compat._load(file)[0].shape == (2, 4001)
    with pytest.raises(NotImplementedError, match="normalize=False"):
        compat._load(path, normalize=False)
    with pytest.raises(RuntimeError, match="absent.wav"):
        compat._load(path.with_name("absent.wav"))


@pytest.mark.parametrize("name, subtype, encoding, bits", [
    ("a.wav", "PCM_16", "PCM_S", 16), ("a.wav", "FLOAT", "PCM_F", 32), ("a.flac", "PCM_24", "FLAC", 24),
    ("a.ogg", "VORBIS", "VORBIS", 0)])
def test_info(tmp_path, name, subtype, encoding, bits):
    soundfile.write(tmp_path / name, np.zeros((1234, 2)), 16000, subtype=subtype)
    found = compat._info(tmp_path / name)
    assert found == (16000, 1234, 2, bits, encoding)
    assert (found.sample_rate, found.num_frames) == (16000, 1234)


def test_effects_of_speech_commands(stereo):
    path, samples = stereo
    waveform, sample_rate = compat._apply_effects_file(path, [["channels", "1"], ["gain", "-3.0"]])
    assert (sample_rate, waveform.dtype) == (8000, torch.float32)
    expected = samples.mean(axis=1, keepdims=True).T * 10 ** (-3 / 20)
    np.testing.assert_allclose(waveform.numpy(), expected, atol=1e-6)

    waveform, sample_rate = compat._apply_effects_file(
        str(path), [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]], channels_first=False)
    assert (waveform.shape, sample_rate) == ((8002, 1), 16000)


def test_gain_clips_after_each_effect():
    loud = torch.tensor([[0.9, -0.9, 0.25]])
    waveform, _ = apply_effects_tensor(loud, 16000, [["gain", "6"], ["gain", "-6"]])
    np.testing.assert_allclose(waveform.numpy(), [[10 ** -0.3, -(10 ** -0.3), 0.25]], rtol=1e-6)


@pytest.mark.parametrize("old, new", [(8000, 16000), (44100, 16000)])
def test_rate_keeps_a_tone(old, new):
    def tone(rate, length):
        return torch.sin(2 * torch.pi * 440 * torch.arange(length) / rate).unsqueeze(0) / 2

    resampled, sample_rate = apply_effects_tensor(tone(old, old + 2), old, [["rate", str(new)]])
    length = resampled.size(-1)
    assert (sample_rate, length) == (new, round((old + 2) * new / old))
    torch.testing.assert_close(resampled[:, 500:-500], tone(new, length)[:, 500:-500], atol=1e-3, rtol=0)


def test_effects_time_first(stereo):
    samples = torch.from_numpy(stereo[1]).float()
    waveform, _ = apply_effects_tensor(samples, 8000, [["channels", "1"]], channels_first=False)
    torch.testing.assert_close(waveform, samples.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("effect", [["reverb"], ["gain", "-n"], ["channels", "3"], ["rate", "-h", "16000"]])
def test_other_effects_are_refused(effect):
    with pytest.raises(NotImplementedError, match=" ".join(effect)):
        apply_effects_tensor(torch.zeros(2, 10), 16000, [effect])


# huggingface_hub


@pytest.mark.skipif(int(huggingface_hub.__version__.split(".")[0]) < 1, reason="huggingface_hub has them")
def test_removed_hub_names_fail_when_used():
    from huggingface_hub import Repository

    with pytest.raises(RuntimeError, match="huggingface_hub < 1"):
        Repository(local_dir=".")


@pytest.mark.parametrize("arguments, token", [
    ({"use_auth_token": True}, None), ({"use_auth_token": "mine"}, "mine"), ({"token": "mine"}, "mine"), ({}, None),
])
def test_downloads_as_s3prl_asks_for_them(arguments, token):
    def download(repo_id, *, revision=None, token=None, cache_dir=None):
        return repo_id, revision, token, cache_dir

    found = compat._accept_old_arguments(download)("user/model", "main", cache_dir="here", **arguments)
    assert found == ("user/model", "main", token, "here")


def test_logging_in_takes_the_token_that_is_there(monkeypatch):
    compat.apply()
    monkeypatch.setenv("HF_TOKEN", "hf_there")
    assert huggingface_hub.HfApi().login(username=None, password=None) == "hf_there"


# torch.load


def test_checkpoints_with_arguments_load_and_code_does_not(tmp_path):
    arguments = argparse.Namespace(upstream="fbank", local_rank=None, seed=1337)
    torch.save({"Args": arguments, "Config": {"runner": {"total_steps": 20}}}, tmp_path / "states.ckpt")
    assert torch.load(tmp_path / "states.ckpt", map_location="cpu")["Args"] == arguments

    class Code:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"Args": arguments, "Config": Code()}, tmp_path / "code.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "code.ckpt", weights_only=True)
    assert not (tmp_path / "executed").exists()


# catalyst


def shares(sampler, replicas, epoch, **options):
    parts = []
    for rank in range(replicas):
        torch.manual_seed(rank)
        wrapper = compat.DistributedSamplerWrapper(sampler, replicas, rank, **options)
        wrapper.set_epoch(epoch)
        parts.append(list(wrapper))
        assert len(parts[-1]) == len(wrapper)
    return parts


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length, replicas", [(12, 3), (10, 4), (2, 3)])
def test_ranks_share_one_draw(length, replicas, shuffle):
    weights = torch.arange(1.0, 51.0)
    parts = shares(WeightedRandomSampler(weights, length), replicas, epoch=3, shuffle=shuffle)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = collections.Counter(WeightedRandomSampler(weights, length))
    shared = collections.Counter(index for part in parts for index in part)
    padding = shared - drawn
    assert not drawn - shared
    assert padding.total() == -length % replicas
    assert set(padding) <= set(drawn)


def test_epochs_draw_anew_and_leave_the_random_state_alone():
    sampler = WeightedRandomSampler(torch.ones(1000), 100)
    before = torch.random.get_rng_state()
    wrapper = compat.DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    first = list(wrapper)
    assert list(wrapper) == first
    wrapper.set_epoch(1)
    assert set(wrapper) != set(first)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(any(importlib.metadata.distributions(name="catalyst")), reason="catalyst is installed")
def test_catalyst_is_stood_in_for():
    from catalyst.data.sampler import DistributedSamplerWrapper

    assert DistributedSamplerWrapper is compat.DistributedSamplerWrapper
    assert importlib.util.find_spec("catalyst.data.sampler") is not None


# s3prl's own faults


def s3prl_files():
    folder = Path(importlib.util.find_spec("s3prl").origin).parent
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def make_voxceleb1(folder, videos):
    lines = []
    for split, video in enumerate(videos, start=1):
        path = folder / "dev" / "wav" / "id10001" / video / "00001.wav"
        path.parent.mkdir(parents=True)
        path.touch()
        lines.append(f"{split} id10001/{video}/00001.wav\n")
    (folder / "split.txt").write_text("".join(lines))
    return folder


def test_file_lists_never_leak(tmp_path):
    pytest.importorskip("librosa")
    before = s3prl_files()
    from s3prl.downstream.voxceleb1 import dataset

    first = make_voxceleb1(tmp_path / "first", "abc")
    second = make_voxceleb1(tmp_path / "second", "def")
    for corpus, videos in ((first, "abc"), (second, "def"), (first, "abc")):
        for split, video in zip(("train", "dev", "test"), videos):
            found = dataset.SpeakerClassifiDataset(split, corpus, corpus / "split.txt")
            assert found.dataset == [str(corpus / "dev" / "wav" / "id10001" / video / "00001.wav")]
            assert found.label == [0]
    (first / "dev" / "wav" / "id10001" / "a").rename(first / "dev" / "wav" / "id10001" / "moved")
    (first / "split.txt").write_text("1 id10001/moved/00001.wav\n")
    moved = dataset.SpeakerClassifiDataset("train", first, first / "split.txt").dataset
    assert moved == [str(first / "dev" / "wav" / "id10001" / "moved" / "00001.wav")]
    assert not Path(dataset.CACHE_PATH).exists()
    assert s3prl_files() == before


def test_a_list_left_in_the_installation_is_ignored(tmp_path, monkeypatch):
    pytest.importorskip("librosa")
    from s3prl.downstream.voxceleb1 import dataset

    stale = tmp_path / "installation" / ".cache" / "train.pkl"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(pickle.dumps(["/gone/dev/wav/id10002/x/00001.wav"]))
    monkeypatch.setattr(dataset, "CACHE_PATH", str(stale.parent))
    corpus = make_voxceleb1(tmp_path / "corpus", "abc")
    assert dataset.SpeakerClassifiDataset("train", corpus, corpus / "split.txt").label == [0]
    assert list(stale.parent.iterdir()) == [stale]


def test_isinstance_stays_and_records_pass_through_distributed_training():
    from s3prl.downstream import runner
    from s3prl.utility.helper import hack_isinstance
    from torch.distributed.utils import _to_kwargs

    original = builtins.isinstance
    hack_isinstance()
    assert builtins.isinstance is original
    assert isinstance(collections.defaultdict(list), (dict, list))

    def through_distributed_training(records):
        records["acc"] += [1.0]
        _, kwargs = _to_kwargs((), {"records": records}, torch.device("cpu"), False)
        return kwargs[0]["records"]

    records = runner.defaultdict(list)
    assert through_distributed_training(records) is records
    records["loss"].append(0.5)
    assert dict(records.items()) == {"acc": [1.0], "loss": [0.5]}
    with pytest.raises(TypeError):  # the reason why s3prl replaces isinstance; a plain defaultdict would not do
        through_distributed_training(collections.defaultdict(list))


def test_modules_are_mended_before_and_after_their_import(tmp_path, monkeypatch):
    for name in ("mended_early", "mended_late"):
        (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    import mended_early

    def mend(module):
        module.value += 1

    compat._mend_on_import({"mended_early": mend, "mended_late": mend, "mended_absent": mend})
    import mended_late

    assert (mended_early.value, mended_late.value) == (2, 2)
    assert importlib.reload(mended_late).value == 2
    with pytest.raises(ModuleNotFoundError):
        import mended_absent  # noqa: F401


# Worker processes


WORKERS = """
if __name__ == "__main__":
    from ssamba_upstream.plugin import compat

    compat.apply()
    from pathlib import Path

    from s3prl.downstream.speech_commands.dataset import SpeechCommandsTestingDataset
    from s3prl.util.audio_info import get_audio_info
    from torch.utils.data import DataLoader

    dataset = SpeechCommandsTestingDataset(speech_commands_test_root="test")
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn",
                        collate_fn=dataset.collate_fn)
    (wavs, labels, names), = loader
    print(sorted(zip(names, map(len, wavs))))

    paths = sorted(str(path) for path in Path("test").rglob("*.wav"))
    infos = get_audio_info(paths, ["one", "two"], cache_dir="cache", num_workers=2)
    print([info["num_frames"] for info in infos])
"""


@pytest.mark.slow
def test_workers_of_spawn_and_joblib_are_repaired(tmp_path):
    for word, frames in (("no", 8000), ("yes", 4000)):
        (tmp_path / "test" / word).mkdir(parents=True)
        soundfile.write(tmp_path / "test" / word / "a.wav", np.zeros(frames), 8000)
    printed = run_script(tmp_path, WORKERS).splitlines()
    assert printed == ["[('no-a.wav', 16000), ('yes-a.wav', 8000)]", "[8000, 4000]"]
