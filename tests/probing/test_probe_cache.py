"""Averages over time on disk, which are exact, resumable and never stale, and the layers' geometry."""

import json
import math
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.audio import AudioError
from ssamba_upstream.checkpoint import load_model, save_model
from ssamba_upstream.corpora.labelled import Excerpt
from ssamba_upstream.probing import cache, features
from ssamba_upstream.probing.cache import cached_time_averages, remembered
from ssamba_upstream.probing.features import log_mel_averages, time_averages
from ssamba_upstream.probing.geometry import effective_rank, linear_cka, norms
from ssamba_upstream.store import HiddenStateStore, StoreError

STRIDES = {"time_stride": 10, "frequency_stride": 10}


def save_network(path, seed, **options):
    torch.manual_seed(seed)
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, **options)), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("checkpoint") / "reduced.safetensors", seed=1)


@pytest.fixture
def recordings(tmp_path):
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.wav" for number in range(6)]
    for number, path in enumerate(paths):
        soundfile.write(path, generator.uniform(-0.5, 0.5, 3000 + 4000 * ((5 * number) % 6)), 16000)
    return paths


@pytest.fixture
def computed(monkeypatch):
    """A list of the recordings whose averages are computed, batch by batch."""
    found = []

    def iterate(encoder, missing, report=None):
        for batch, values in features.iterate_time_averages(encoder, missing, 1.0, report):
            found.extend(missing[i] for i in batch)
            yield batch, values

    monkeypatch.setattr(cache, "iterate_time_averages", iterate)
    return found


def test_the_cache_holds_what_is_computed(checkpoint, recordings, computed, tmp_path):
    expected = time_averages(load_model(checkpoint, **STRIDES), recordings)
    found, key = cached_time_averages(checkpoint, recordings, tmp_path / "cache")
    assert sorted(computed) == recordings and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    again, same = cached_time_averages(checkpoint, recordings, tmp_path / "cache")
    assert torch.equal(again, found) and same == key and len(computed) == len(recordings)

    half, other = cached_time_averages(checkpoint, recordings, tmp_path / "cache", dtype="float16")
    assert half.dtype == torch.float16 and other != key
    assert torch.equal(half, found.half())

    fbank, _ = cached_time_averages("log-mel", recordings, tmp_path / "cache")
    assert torch.equal(fbank, log_mel_averages(recordings))


def test_what_is_changed_by_its_user_stays_in_memory(checkpoint, recordings, tmp_path):
    found, _ = cached_time_averages(checkpoint, recordings, tmp_path)
    found.zero_()
    assert cached_time_averages(checkpoint, recordings, tmp_path)[0].abs().sum() > 0


def test_averages_of_pooled_frames(checkpoint, recordings, tmp_path):
    found, _ = cached_time_averages(checkpoint, recordings, tmp_path, frequency_pooling="mean")
    whole, _ = cached_time_averages(checkpoint, recordings, tmp_path)
    torch.testing.assert_close(found, whole.unflatten(2, (12, -1)).mean(dim=2), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_nothing_is_stale(checkpoint, recordings, computed, tmp_path):
    """Each change that affects averages is detected, and only the affected averages are computed."""
    folder = tmp_path / "cache"
    first, key = cached_time_averages(checkpoint, recordings, folder)
    keys = {key}

    def expect_new(checkpoint=checkpoint, recordings=recordings, changed=6, **options):
        computed.clear()
        found, key = cached_time_averages(checkpoint, recordings, folder, **options)
        assert key not in keys and len(computed) == changed
        keys.add(key)
        window_secs = options.pop("window_secs", None)
        model = load_model(checkpoint, **{**STRIDES, **options})
        torch.testing.assert_close(found, time_averages(model, recordings, window_secs), rtol=0, atol=1e-5)

    expect_new(window_secs=1.0)
    expect_new(time_stride=16)
    expect_new(frequency_stride=16)
    expect_new(positions="published")
    expect_new(recordings=recordings[::-1], changed=0)
    expect_new(recordings=recordings[:-1], changed=0)
    expect_new(recordings=[*recordings[:-1], Excerpt(recordings[-1], gain=-3.0)], changed=1)
    expect_new(recordings=[*recordings[:-1], Excerpt(recordings[-1], 0, 2000)], changed=1)
    replaced = tmp_path / "network.safetensors"
    for seed in (2, 3):  # at the same path
        expect_new(checkpoint=save_network(replaced, seed))
    expect_new(checkpoint=save_network(tmp_path / "folder", seed=1, block_order="paired"))

    computed.clear()
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(checkpoint.read_bytes())
    assert torch.equal(cached_time_averages(moved, recordings, folder)[0], first) and not computed

    samples, _ = soundfile.read(recordings[2])
    status = recordings[2].stat()
    soundfile.write(recordings[2], -samples[::-1], 16000)
    assert recordings[2].stat().st_size == status.st_size
    os.utime(recordings[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    expect_new(changed=1)


def compute_and_be_killed(checkpoint, recordings, folder, batches):
    def iterate(encoder, missing, report=None):
        for number, batch in enumerate(features.iterate_time_averages(encoder, missing, batch_secs=0.1)):
            if number == batches:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    cache.iterate_time_averages = iterate
    cached_time_averages(checkpoint, recordings, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process")
@pytest.mark.parametrize("batches", [0, 2])
def test_a_killed_process_leaves_whole_rows(checkpoint, recordings, computed, tmp_path, batches):
    """A process killed while LMDB writes is tested in tests/test_store.py."""
    torch.get_num_threads()  # sets up torch's thread pool in this thread, which a forked process cannot do
    process = multiprocessing.get_context("fork").Process(
        target=compute_and_be_killed, args=(checkpoint, recordings, tmp_path / "cache", batches))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    expected = time_averages(load_model(checkpoint, **STRIDES), recordings)
    found, _ = cached_time_averages(checkpoint, recordings, tmp_path / "cache")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(computed) == len(recordings) - batches


def test_two_processes_compute_a_set_once(checkpoint, recordings, computed, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda _: cached_time_averages(checkpoint, recordings, tmp_path / "cache"), range(2))]
    assert sorted(computed) == recordings and found[0][1] == found[1][1]
    assert torch.equal(found[0][0], found[1][0]) and not found[0][0].isnan().any()


def test_an_error_leaves_no_wrong_row(checkpoint, recordings, computed, tmp_path):
    content = recordings[5].read_bytes()
    status = recordings[5].stat()
    recordings[5].write_bytes(b"x" * len(content))
    os.utime(recordings[5], ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(AudioError, match="5.wav cannot be read as audio"):
        cached_time_averages(checkpoint, recordings, tmp_path / "cache")
    errors = []
    found, _ = cached_time_averages(checkpoint, recordings, tmp_path / "cache", report=errors.append)
    assert [error.file for error in errors] == [recordings[5]]
    assert found[:, 5].isnan().all() and found[:, :5].isfinite().all()
    recordings[5].write_bytes(content)
    os.utime(recordings[5], ns=(status.st_atime_ns, status.st_mtime_ns))
    found, _ = cached_time_averages(checkpoint, recordings, tmp_path / "cache")
    expected = time_averages(load_model(checkpoint, **STRIDES), recordings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_values_that_the_cache_cannot_hold(recordings, tmp_path):
    torch.manual_seed(0)
    model = SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2))
    model.pos_embed.data.fill_(1e5)
    save_model(model, tmp_path / "loud.safetensors")
    with pytest.raises(StoreError, match="too large for float16"):
        cached_time_averages(tmp_path / "loud.safetensors", recordings, tmp_path / "cache", dtype="float16")
    found, _ = cached_time_averages(tmp_path / "loud.safetensors", recordings, tmp_path / "cache")
    assert found.isfinite().all()


def test_a_cache_that_takes_no_more_is_an_error(checkpoint, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(HiddenStateStore, "write", lambda self, states: "its disk is full")
    with pytest.raises(StoreError, match="cannot store more features: its disk is full. Make room"):
        cached_time_averages(checkpoint, recordings, tmp_path / "cache")


def test_remembered(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"values": [0.1, 1 / 3], "number": len(calls)}

    first = remembered(tmp_path / "new", {"seed": 0}, compute)
    assert remembered(tmp_path / "new", {"seed": 0}, compute) == first == {"values": [0.1, 1 / 3], "number": 1}
    assert remembered(tmp_path / "new", {"seed": 1}, compute)["number"] == 2
    (file,) = [file for file in (tmp_path / "new").iterdir() if json.loads(file.read_text())["number"] == 2]
    file.rename(file.with_suffix(".partial"))  # as left by a kill
    assert remembered(tmp_path / "new", {"seed": 1}, compute)["number"] == 3


def test_cka():
    generator = torch.Generator().manual_seed(0)
    layer = torch.randn(60, 100, generator=generator) + 5
    rotation, _ = torch.linalg.qr(torch.randn(100, 100, generator=generator))
    independent = torch.randn(60, 100, generator=generator)
    halfway = layer + independent
    found = linear_cka(torch.stack([layer, layer, 3 * layer @ rotation + 7, independent, halfway]))
    torch.testing.assert_close(found[:3, :3], torch.ones(3, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.diagonal(), torch.ones(5))
    assert found[0, 3].abs() < 0.1 and found[0, 4] > 0.4
    torch.testing.assert_close(found, found.T)
    with pytest.raises(ValueError, match="four or more"):
        linear_cka(torch.randn(2, 3, 5))


def test_cka_is_the_unbiased_estimate_of_its_source():
    """Equation 5 of Song et al. (2012), written out; if there are more utterances than are drawn, on the drawn ones."""
    first, second = torch.randn(2, 30, 8, dtype=torch.float64) + 1

    def dependence(x, y):
        k, m = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))
        n, one = len(x), torch.ones(len(x), dtype=x.dtype)
        k.fill_diagonal_(0), m.fill_diagonal_(0)
        return ((k @ m).trace() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
                - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    expected = dependence(first, second) / (dependence(first, first) * dependence(second, second)).sqrt()
    found = linear_cka(torch.stack([first, second]).float())
    assert found[0, 1].item() == pytest.approx(expected.item(), abs=1e-4)
    many = torch.randn(1, 1500, 4)
    assert linear_cka(torch.cat([many, many])).allclose(torch.ones(2, 2), atol=1e-4)


def test_effective_rank():
    orthogonal = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    assert effective_rank(orthogonal) == pytest.approx(40)
    assert effective_rank(torch.randn(1, 7).expand(40, 7)) == pytest.approx(1, abs=1e-4)
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    found = effective_rank((orthogonal[:, :3] * shares) @ torch.linalg.qr(torch.randn(3, 3).double()).Q)
    assert found == pytest.approx(2 ** 1.5)  # an entropy of 1.5 bits
    assert math.isnan(effective_rank(torch.full((3, 3), torch.nan)))


def test_norms():
    features = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[3e30, 4e30], [0.0, 0.0]]])
    assert norms(features).tolist() == pytest.approx([3.0, 2.5e30])
