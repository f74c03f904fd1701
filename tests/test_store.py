"""Hidden states on disk: reading returns exactly what was written, whatever happens in between."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from ssamba_upstream import SsambaConfig, SsambaModel, store
from ssamba_upstream.frames import FrameEncoder
from ssamba_upstream.store import HiddenStateStore, StoreError, contents, folder_bytes, waveform_key

FORKS = pytest.mark.skipif(sys.platform != "linux", reason="forks processes, and limits the size of their files")


def key(number):
    return waveform_key(torch.tensor([float(number)]))


def states(number, frames=3):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, frames, 4, generator=generator)


@pytest.mark.parametrize("dtype", store.DTYPES)
def test_reads_what_was_written_in_its_dtype_with_zeros_past_the_end(tmp_path, dtype):
    kept = HiddenStateStore(tmp_path, {"upstream": "a"}, dtype)
    written = {key(number): kept.round(states(number, frames)) for number, frames in enumerate((3, 1, 5))}
    assert kept.write(written) is None
    again = HiddenStateStore(tmp_path, {"upstream": "a"}, dtype)
    stacked, frames = again.read([*written])
    assert stacked.dtype == store.DTYPES[dtype] and frames == [3, 1, 5]
    for found, expected, count in zip(stacked.unbind(1), written.values(), frames):
        assert torch.equal(found[:, :count], expected) and not found[:, count:].any()
    one_layer, _ = again.read([*written], layer=-1)
    assert torch.equal(one_layer, stacked[1:])
    with pytest.raises(IndexError):
        again.read([*written], layer=2)
    with pytest.raises(KeyError):
        again.read([key(9)])


def test_a_description_dtype_or_version_of_the_numerics_reads_its_own_only(tmp_path, monkeypatch):
    first = HiddenStateStore(tmp_path, {"upstream": "a"})
    first.write({key(0): first.round(states(0))})
    assert HiddenStateStore(tmp_path, {"upstream": "a"}).missing([key(1), key(0)]) == [0]
    assert HiddenStateStore(tmp_path, {"upstream": "b"}).missing([key(0)])
    assert HiddenStateStore(tmp_path, {"upstream": "a"}, "float32").missing([key(0)])
    monkeypatch.setattr(store, "NUMERICS", store.NUMERICS + 1)
    assert HiddenStateStore(tmp_path, {"upstream": "a"}).missing([key(0)])
    outdated = [found for found in contents(tmp_path) if found.waveforms]
    assert [found.outdated for found in outdated] == [True] and outdated[0].description["upstream"] == "a"


def test_an_encoder_is_described_by_weights_and_options():
    torch.manual_seed(0)
    model = SsambaModel(SsambaConfig(num_hidden_layers=1, hidden_size=32)).eval()
    described = FrameEncoder(model).description()
    assert FrameEncoder(model).description() == described
    assert FrameEncoder(model, window_secs=2.0).description() != described
    assert FrameEncoder(model, frequency_pooling="mean").description() != described
    assert FrameEncoder(model, precision="bfloat16").description() != described
    with torch.no_grad():
        model.layers[0].mixer.D_b[0] += 1e-6
    assert FrameEncoder(model).description()["weights"] != described["weights"]


def test_refuses_values_that_the_dtype_does_not_hold(tmp_path):
    kept = HiddenStateStore(tmp_path, {})
    with pytest.raises(StoreError, match="too large for float16. Use bfloat16 or float32"):
        kept.round(torch.tensor([70000.0]))
    assert HiddenStateStore(tmp_path, {}, "bfloat16").round(torch.tensor([70000.0])).isfinite()
    with pytest.raises(StoreError, match="NaN or infinite"):
        kept.round(torch.tensor([torch.nan]))
    with pytest.raises(StoreError, match="dtype must be one of"):
        HiddenStateStore(tmp_path, {}, "int8")


def test_a_limit_ends_keeping_and_leaves_what_is_there(tmp_path):
    kept = HiddenStateStore(tmp_path, {}, limit=200_000)
    written = {}
    for number in range(200):
        batch = {key(number): kept.round(torch.randn(4, 100, 8))}
        if reason := kept.write(batch):
            break
        written |= batch
    assert reason == "it has reached its limit of 0.00 GB" and len(written) > 5
    assert folder_bytes(tmp_path) <= 210_000
    assert kept.missing([key(number)]) and kept.write({key(number): next(iter(written.values()))}) == reason
    unkept, _ = kept.read([key(number)], unkept=batch)
    assert torch.equal(unkept[:, 0], batch[key(number)])
    found, _ = HiddenStateStore(tmp_path, {}).read([*written])
    assert torch.equal(found, torch.stack([*written.values()], dim=1))


def fill_a_disk(folder, numbers):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # as on a full disk
    kept = HiddenStateStore(folder, {})
    for number in range(200):
        if reason := kept.write({key(number): kept.round(torch.ones(4, 100, 8))}):
            break
    numbers.put((number, reason))


@FORKS
def test_a_full_disk_ends_keeping_and_leaves_what_is_there(tmp_path):
    context = multiprocessing.get_context("fork")
    numbers = context.SimpleQueue()
    process = context.Process(target=fill_a_disk, args=(tmp_path, numbers))
    process.start()
    process.join()
    number, reason = numbers.get()
    assert "disk is full" in reason and number > 5
    kept = HiddenStateStore(tmp_path, {})
    found, _ = kept.read([key(i) for i in range(number)])
    assert (found == 1).all()
    assert kept.write({key(-1): kept.round(states(0))}) is None


def write_many(folder, first):
    kept = HiddenStateStore(folder, {})
    for number in range(first, first + 400):
        kept.write({key(number): kept.round(states(number))})


@FORKS
def test_several_processes_write_and_one_is_killed(tmp_path):
    kept = HiddenStateStore(tmp_path, {})
    context = multiprocessing.get_context("fork")  # this process has already opened the store
    kept.write({key(-1): kept.round(states(0))})
    writers = [context.Process(target=write_many, args=(tmp_path, first)) for first in (0, 200)]
    for writer in writers:
        writer.start()
    while kept.missing([key(5)]) and writers[0].is_alive():
        time.sleep(0.001)
    os.kill(writers[0].pid, signal.SIGKILL)
    for writer in writers:
        writer.join()
    assert writers[1].exitcode == 0
    numbers = [number for number in range(600) if not kept.missing([key(number)])]
    assert {*range(6), *range(200, 600)} <= {*numbers}
    found, _ = kept.read([key(number) for number in numbers])
    assert torch.equal(found, torch.stack([kept.round(states(number)) for number in numbers], dim=1))
