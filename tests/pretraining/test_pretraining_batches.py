"""Batches for pretraining: reading clips, and the same clips for any number of processes."""

import io
import json
import multiprocessing
import os
import random
import tarfile
import time
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch

from helpers.paths import SHARED_AUDIO
from ssamba_upstream.audio import AudioError, read_clip
from ssamba_upstream.corpora.manifest import ManifestError
from ssamba_upstream.pretraining.batches import training_batches, validation_batches

SAMPLES = 400


def ramp(start, length):
    """Return samples that encode their file and their place in it, exactly in 16 bits."""
    return (start + np.arange(length)) / 2 ** 15


def write_manifest(path, files):
    path.write_text("".join(json.dumps({"path": str(file)}) + "\n" for file in files))
    return path


@pytest.fixture
def files(tmp_path):
    """Seven files of 300 to 900 samples; sample i of file k is 1000 (k + 1) + i."""
    names = [tmp_path / f"{number}.wav" for number in range(7)]
    for number, name in enumerate(names):
        soundfile.write(name, ramp(1000 * (number + 1), 300 + 100 * number), 16000)
    return names


@pytest.fixture
def manifest(tmp_path, files):
    return write_manifest(tmp_path / "manifest.jsonl", files)


def first_samples(batches):
    """Return the file number and first sample of each clip."""
    return [divmod(round(value * 2 ** 15), 1000) for batch in batches for value in batch.waveforms[:, 0].tolist()]


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        assert torch.equal(one.waveforms, other.waveforms)
        assert torch.equal(one.lengths, other.lengths)
        assert one.unreadable == other.unreadable
        assert one.position == other.position


# Clips

@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_a_tone_of_any_rate_and_format_keeps_its_pitch_and_length(tmp_path, rate, extension):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    soundfile.write(tmp_path / f"tone.{extension}", np.stack([tone, -0.5 * tone], axis=1), rate)
    clip = read_clip(tmp_path / f"tone.{extension}", 8192, "centre")
    assert (clip.dtype, clip.shape) == (torch.float32, (8192,))
    spectrum = torch.fft.rfft(clip * torch.hann_window(8192)).abs()
    assert spectrum.argmax().item() == 1000 * 8192 // 16000
    assert clip[1000:-1000].abs().max() == pytest.approx(0.125, abs=0.03)
    whole = read_clip(str(tmp_path / f"tone.{extension}"), 10 ** 6, "centre")
    assert len(whole) == pytest.approx(16000, abs=0 if extension in ("wav", "flac") else 5000)


class At:
    """A generator that always draws the same fraction."""

    def __init__(self, fraction):
        self.random = lambda: fraction


def test_where_a_gpu_is_used_all_of_a_batch_goes_through_pinned_memory(manifest, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor.shape) or tensor)
    batch = next(training_batches([manifest], [(2, SAMPLES)], seed=0))
    assert not pinned and batch.pin_memory().position == 1 and pinned == [(2, SAMPLES), (2,)]


def test_a_crop_reads_its_part_alone(files, monkeypatch):
    read = []
    monkeypatch.setattr(soundfile.SoundFile, "read", spy(soundfile.SoundFile.read, read))
    assert torch.equal(read_clip(files[6], SAMPLES, "centre"), torch.from_numpy(ramp(7250, 400)).float())
    assert read == [400]
    assert torch.equal(read_clip(files[0], SAMPLES, "centre"), torch.from_numpy(ramp(1000, 300)).float())


def spy(method, lengths):
    def wrapped(*args, **kwargs):
        result = method(*args, **kwargs)
        lengths.append(len(result))
        return result
    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize("generator", [random.Random, np.random.default_rng])
def test_crops_are_seeded_and_uniform(files, generator):
    def starts(seed):
        crop = generator(seed)
        return [round(read_clip(files[1], 391, crop)[0].item() * 2 ** 15) - 2000 for _ in range(1000)]

    drawn = starts(1)
    assert drawn == starts(1) != starts(2)
    counts = np.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert ((counts - 100) ** 2 / 100).sum() < 27.9  # chi-square, 9 degrees of freedom: one seed in 1000 fails


def test_a_file_that_cannot_be_sought_is_read_whole(tmp_path):
    tone = 0.5 * np.sin(np.arange(200000) / 30)
    soundfile.write(tmp_path / "tone.wav", tone, 16000, subtype="G721_32")
    with soundfile.SoundFile(tmp_path / "tone.wav") as audio:
        assert not audio.seekable()
        start = (audio.frames - 1000) // 2
    clip = read_clip(tmp_path / "tone.wav", 1000, "centre")
    assert np.abs(clip.numpy() - tone[start:start + 1000]).max() < 0.05


def test_a_file_object_is_read(files):
    assert torch.equal(read_clip(io.BytesIO(files[0].read_bytes()), SAMPLES, "centre"),
                       read_clip(files[0], SAMPLES, "centre"))


@pytest.mark.parametrize("extension, subtype", [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"),
                                                ("mp3", "MPEG_LAYER_III")])
def test_a_truncated_file_gives_what_it_has(tmp_path, extension, subtype):
    path = tmp_path / f"noise.{extension}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 64000), 16000, subtype=subtype)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])

    # A flac's header still gives the full length; libsndfile reads parts, but none across the end of the data.
    if extension == "flac":
        assert len(read_clip(path, 10000, At(0.0))) == 10000
        with pytest.raises(AudioError, match="is damaged, or shorter than the 64,000 samples"):
            read_clip(path, 80000, "centre")
    else:
        assert 10000 < len(read_clip(path, 80000, "centre")) < 40000
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(AudioError):
        read_clip(path, 80000, "centre")


@pytest.mark.parametrize("channels", [1, 2])
def test_crops_of_an_mp3_are_those_of_the_whole(tmp_path, channels):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(64000) / 16000)
    soundfile.write(tmp_path / "tone.mp3", np.stack([tone] * channels, axis=1), 16000)
    whole, _ = soundfile.read(tmp_path / "tone.mp3", dtype="float32", always_2d=True)
    for fraction in np.linspace(0, 0.999, 20):
        start = int(fraction * (len(whole) - 999))
        clip = read_clip(tmp_path / "tone.mp3", 1000, At(fraction))
        assert np.abs(clip.numpy() - whole[start:start + 1000].mean(axis=1)).max() < 1e-5


def test_a_flac_that_was_streamed_says_why_it_is_not_read(tmp_path):
    soundfile.write(tmp_path / "a.flac", ramp(0, 5000), 16000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # the number of samples is in the last 36 bits before the checksum
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(ValueError, match="its header does not give its length"):
        read_clip(tmp_path / "a.flac", SAMPLES, "centre")


@pytest.mark.parametrize("samples, rate, message", [
    ([], 16000, "holds no samples"), ([0.5, np.nan], 16000, "not finite"), ([np.inf, 0.5], 8000, "not finite"),
    ([0.5] * 10, 16001, "a sampling rate of 16001 Hz cannot be converted to 16000 Hz")])
def test_senseless_files_are_refused(tmp_path, samples, rate, message):
    soundfile.write(tmp_path / "a.wav", np.array(samples, np.float32), rate, subtype="FLOAT")
    with pytest.raises(ValueError, match=message):
        read_clip(tmp_path / "a.wav", SAMPLES, "centre")


def test_one_sample_is_a_clip(tmp_path):
    for rate in (8000, 16000, 44100):
        soundfile.write(tmp_path / "a.wav", [0.25], rate)
        assert 1 <= len(read_clip(tmp_path / "a.wav", SAMPLES, "centre")) <= 2


# Batches from manifests

def test_every_epoch_reads_every_file_once_in_another_order(manifest):
    batches = list(islice(training_batches([manifest], [(7, SAMPLES)], seed=0), 3))
    orders = [[file for file, _ in first_samples([batch])] for batch in batches]
    assert all(sorted(order) == list(range(1, 8)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert batches[0].waveforms.shape == (7, SAMPLES)
    assert batches[0].lengths.dtype == torch.int64
    short = orders[0].index(1)
    assert batches[0].lengths.tolist() == [300 if row == short else 400 for row in range(7)]
    assert batches[0].waveforms[short, 299] != 0
    assert not batches[0].waveforms[short, 300:].any()


def test_the_seed_decides(manifest):
    draw = lambda seed: first_samples(islice(training_batches([manifest], [(3, SAMPLES)], seed), 4))  # noqa: E731
    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(manifest, workers):
    state = torch.get_rng_state()
    same(list(islice(training_batches([manifest], [(3, SAMPLES)], 0, workers=workers), 7)),
         list(islice(training_batches([manifest], [(3, SAMPLES)], 0), 7)))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_ranks_read_what_one_reads(manifest):
    ranks = [list(islice(training_batches([manifest], [(2, SAMPLES)], 5, rank=rank, world_size=2), 6))
             for rank in (0, 1)]
    one = list(islice(training_batches([manifest], [(4, SAMPLES)], 5), 6))
    for batch, first, second in zip(one, *ranks):
        assert torch.equal(batch.waveforms, torch.cat([first.waveforms, second.waveforms]))
        assert torch.equal(batch.lengths, torch.cat([first.lengths, second.lengths]))
        assert batch.position == first.position == second.position


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("join_short", [False, True])
def test_resuming_goes_on_exactly_there(manifest, workers, join_short):
    options = {"forms": [(3, SAMPLES)], "seed": 0, "join_short": join_short}
    whole = list(islice(training_batches([manifest], **options), 9))
    assert whole[3].position == 4
    resumed = training_batches([manifest], **options, position=whole[3].position, workers=workers)
    same(list(islice(resumed, 5)), whole[4:])


def test_forms_in_turn_are_batches_of_each_form(manifest):
    options, forms = {"seed": 0, "join_short": True}, [(2, 1200), (8, 300)]
    in_turn = list(islice(training_batches([manifest], forms, **options), 6))
    each = [list(islice(training_batches([manifest], [form], **options), 6)) for form in forms]
    same(in_turn, [each[number % 2][number] for number in range(6)])
    same(list(islice(training_batches([manifest], forms, **options, position=3, workers=2), 3)), in_turn[3:])


def test_manifests_are_joined(tmp_path, files, manifest):
    other = tmp_path / "other.tsv"
    other.write_text(f"{tmp_path}\n0.wav\t300\n")
    batch = next(training_batches([manifest, str(other)], [(8, SAMPLES)], 0))
    assert sorted(file for file, _ in first_samples([batch])) == [1, 1, 2, 3, 4, 5, 6, 7]


def test_short_files_are_joined_on_request(tmp_path, files):
    manifest = write_manifest(tmp_path / "short.jsonl", files[:1])
    batch = next(training_batches([manifest], [(2, 1000)], 0, join_short=True))
    assert batch.lengths.tolist() == [1000, 1000]
    assert torch.equal(batch.waveforms[0, :900].view(3, 300), batch.waveforms[0, :300].expand(3, 300))
    assert (batch.waveforms[0].diff()[[299, 599, 899]] < 0).all()


def test_joined_files_are_drawn_at_random(manifest):
    batches = list(islice(training_batches([manifest], [(7, 2000)], 0, join_short=True), 3))
    assert all((batch.lengths == 2000).all() for batch in batches)
    followers = {tuple((clip * 2 ** 15 // 1000).unique_consecutive().tolist()[1:])
                 for batch in batches for clip in batch.waveforms}
    assert len(followers) > 15


def test_an_unreadable_file_is_replaced_and_reported(tmp_path, files, manifest):
    files[2].write_bytes(b"damaged")
    files[5].unlink()
    batches = list(islice(training_batches([manifest], [(7, SAMPLES)], 0, workers=2), 6))
    assert all(len(batch.lengths) == 7 for batch in batches)
    reported = {line for batch in batches for line in batch.unreadable}
    assert len(reported) == 2
    assert f"{files[5]}: does not exist or is not readable" in reported
    assert any(line.startswith(f"{files[2]}: ") for line in reported)
    assert all(any(line.startswith(f"{files[2]}: ") for line in batch.unreadable) for batch in batches)
    read = [file for file, _ in first_samples(batches)]
    assert 3 not in read and 6 not in read
    assert all(read.count(file) >= 6 for file in (1, 2, 4, 5, 7))
    same(list(islice(training_batches([manifest], [(7, SAMPLES)], 0), 6)), batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wholly_unreadable_manifest_ends_the_run_readably(tmp_path, workers):
    manifest = write_manifest(tmp_path / "gone.jsonl", [tmp_path / "gone.wav"] * 3)
    with pytest.raises(ManifestError) as error:
        next(training_batches([manifest], [(2, SAMPLES)], 0, workers=workers))
    assert str(error.value) == ("100 files in a row are unreadable. Check that the listed paths still exist; the "
                                f"last: {tmp_path / 'gone.wav'}: does not exist or is not readable")


@pytest.mark.slow
def test_batches_come_from_spawned_workers_too(manifest):
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        spawned = list(islice(training_batches([manifest], [(3, SAMPLES)], 0, workers=1), 3))
    finally:
        multiprocessing.set_start_method(method, force=True)
    same(spawned, list(islice(training_batches([manifest], [(3, SAMPLES)], 0), 3)))


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.01)


def test_workers_are_out_of_reach_of_signals_to_the_group_and_end_with_the_run(manifest):
    batches = training_batches([manifest], [(3, SAMPLES)], 0, workers=2)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    wait_until(lambda: all(os.getpgid(worker.pid) == worker.pid for worker in workers))  # each leaves at its start
    batches.close()
    wait_until(lambda: not any(worker.is_alive() for worker in workers))


def test_sources_that_do_not_fit_are_refused_at_once(manifest):
    with pytest.raises(ManifestError, match="cannot be mixed"):
        training_batches([manifest, "shards-{0..3}.tar"], [(2, SAMPLES)], 0)
    with pytest.raises(ManifestError, match="Give manifests or shards"):
        training_batches([], [(2, SAMPLES)], 0)
    with pytest.raises(ManifestError, match="validation needs manifests"):
        validation_batches(["a.tar"], 2, SAMPLES)


def test_real_audio_of_two_rates(tmp_path):
    files = [*sorted((SHARED_AUDIO / "fsdd" / "recordings").glob("*.wav"))[::600],
             *sorted((SHARED_AUDIO / "esc10").glob("*/*.ogg"))[::80]]
    if len(files) < 10:
        pytest.skip("the real recordings are not here (../shared/audio)")
    manifest = write_manifest(tmp_path / "real.jsonl", files)
    batch = next(training_batches([manifest], [(10, 48000)], 0, workers=1))
    assert batch.unreadable == []
    assert sorted(batch.lengths.tolist())[5:] == [48000] * 5
    for clip, length in zip(batch.waveforms, batch.lengths):
        assert 1e-4 < clip[:length].std() < 1


# Validation

@pytest.mark.parametrize("workers", [0, 2])
def test_validation_reads_every_file_once_in_order(files, manifest, workers):
    state = torch.get_rng_state()
    batches = list(validation_batches([manifest], 3, SAMPLES, workers=workers))
    assert [len(batch.lengths) for batch in batches] == [3, 3, 1]
    assert first_samples(batches) == [(1, 0), (2, 0), (3, 50), (4, 100), (5, 150), (6, 200), (7, 250)]
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_joins_short_files(manifest):
    batches = list(validation_batches([manifest], 3, SAMPLES, join_short=True))
    assert first_samples(batches) == [(1, 0), (3, 50), (4, 100), (5, 150), (6, 200), (7, 250)]
    assert [length for batch in batches for length in batch.lengths.tolist()] == [SAMPLES] * 6
    longer = list(validation_batches([manifest], 3, 20 * SAMPLES, join_short=True))
    assert len(longer) == 1 and 0 < longer[0].lengths.item() < 20 * SAMPLES


def test_ranks_share_the_validation(manifest):
    ranks = [first_samples(validation_batches([manifest], 2, SAMPLES, rank, 3)) for rank in range(3)]
    assert [[file for file, _ in rank] for rank in ranks] == [[1, 4, 7], [2, 5], [3, 6]]


def test_validation_leaves_unreadable_files_out_and_reports_each_once(files, manifest):
    for file in (files[0], files[3], files[6]):
        file.write_bytes(b"damaged")
    batches = list(validation_batches([manifest], 2, SAMPLES))
    assert [[file for file, _ in first_samples([batch])] for batch in batches] == [[2, 3], [5, 6]]
    assert [line.split(": ")[0] for batch in batches for line in batch.unreadable] == [
        str(file) for file in (files[0], files[3], files[6])]


def test_a_rank_without_a_readable_file_does_not_end_the_validation_of_the_others(files, manifest):
    for file in (files[1], files[4]):
        file.unlink()
    (batch,) = validation_batches([manifest], 2, SAMPLES, rank=1, world_size=3, workers=1)
    assert batch.waveforms.shape == (0, SAMPLES) and not len(batch.lengths)
    assert batch.unreadable == [f"{file}: does not exist or is not readable" for file in (files[1], files[4])]
    assert [len(batch.lengths) for batch in validation_batches([manifest], 2, SAMPLES, rank=0, world_size=3)] == [2, 1]


# Shards

@pytest.fixture
def shards(tmp_path):
    """Four shards of 10 files; sample i of file k, counted over all shards, is 500 k + i."""
    pytest.importorskip("webdataset", reason="webdataset is not installed")
    for shard in range(4):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for number in range(10 * shard, 10 * shard + 10):
                add(tar, f"{number:03d}.wav", encode(ramp(500 * number, 450 if number % 2 else 300)))
                add(tar, f"{number:03d}.json", b"{}")
    return tmp_path / "shard-{0..3}.tar"


def encode(wav):
    file = io.BytesIO()
    soundfile.write(file, wav, 16000, format="WAV")
    return file.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def numbers(batches):
    return [round(value * 2 ** 15) // 500 for batch in batches for value in batch.waveforms[:, 0].tolist()]


def test_a_pass_reads_every_file_of_all_shards_once(shards):
    batches = list(islice(training_batches([shards], [(10, SAMPLES)], 0), 8))
    passes = numbers(batches[:4]), numbers(batches[4:])
    assert all(sorted(order) == list(range(40)) for order in passes)
    assert passes[0] != passes[1]
    assert passes[0] != numbers(islice(training_batches([shards], [(10, SAMPLES)], 1), 4))
    assert {length for batch in batches for length in batch.lengths.tolist()} == {300, 400}
    runs = sum(after == before + 1 for before, after in zip(passes[0], passes[0][1:]))
    assert runs < 10, "the shuffle buffer does not shuffle"


def test_ranks_and_workers_divide_a_pass(shards):
    read = [numbers(islice(training_batches([shards], [(10, SAMPLES)], 0, rank=rank, world_size=2, workers=2), 2))
            for rank in (0, 1)]
    assert sorted(read[0] + read[1]) == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("join_short", [False, True])
def test_shards_are_gone_on_with_exactly(shards, workers, join_short):
    options = {"forms": [(3, SAMPLES)], "seed": 0, "workers": workers, "join_short": join_short}
    (shards.parent / "shard-1.tar").write_bytes((shards.parent / "shard-1.tar").read_bytes()[:7000])
    whole = list(islice(training_batches([shards], **options), 18))
    if join_short:
        assert all((batch.lengths == SAMPLES).all() for batch in whole)
    for consumed in (1, 4, 15):
        position = through_checkpoint(whole[consumed - 1].position)
        same(list(islice(training_batches([shards], **options, position=position), 3)), whole[consumed:consumed + 3])


def through_checkpoint(position):
    file = io.BytesIO()
    torch.save(position, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_torn_shard_and_damaged_files_are_skipped_and_reported(shards):
    folder = shards.parent
    torn = folder / "shard-2.tar"
    content = torn.read_bytes()
    torn.write_bytes(content[:content.index(b"023.wav") + 700])
    with tarfile.open(folder / "shard-3.tar", "a") as tar:
        add(tar, "damaged.flac", b"no flac")
    (folder / "shard-1.tar").write_bytes(b"")
    batches = list(islice(training_batches([shards], [(23, SAMPLES)], 0), 2))
    for batch in batches:
        assert sorted(numbers([batch])) == [*range(10), *range(20, 23), *range(30, 40)]
    reported = batches[0].unreadable + batches[1].unreadable
    assert sum(line.startswith(f"{torn}: ") for line in reported) == 2
    assert sum(line.startswith(f"{folder / 'shard-1.tar'}: ") for line in reported) == 2
    assert sum(line.startswith(f"{folder / 'shard-3.tar'}/damaged.flac: ") for line in reported) == 2
    assert len(reported) == 6
    assert f"{torn}: unexpected end of data" in reported


def test_files_of_any_name_are_read(shards):
    """webdataset would take ``a.__b.wav`` for one of its own fields, and ignore names that start with a dot."""
    names = ["a.__b.wav", "a.wav", "a.WAV", ".hidden.wav", "deeper.x/.wav", "deeper.x/_a.b.wav", "__a.wav"]
    with tarfile.open(shards.parent / "other.tar", "w") as tar:
        for number, name in enumerate(names):
            add(tar, name, encode(ramp(500 * number, 300)))
        add(tar, "a.__damaged.wav", b"no wav")
    batch = next(training_batches([shards.parent / "other.tar"], [(len(names), SAMPLES)], 0))
    assert sorted(numbers([batch])) == [*range(len(names))]
    assert all(line.startswith(f"{shards.parent / 'other.tar'}/a.__damaged.wav: ") for line in batch.unreadable)


def test_a_worker_without_a_readable_shard_reads_the_others(shards):
    for shard in range(3):
        (shards.parent / f"shard-{shard}.tar").write_bytes(b"torn")
    for rank in range(2):
        batches = list(islice(training_batches([shards], [(10, SAMPLES)], 0, rank=rank, world_size=2, workers=2), 6))
        assert set(numbers(batches)) == set(range(30, 40))


def test_to_go_on_only_shards_in_the_shuffle_buffer_are_read(shards, monkeypatch):
    from ssamba_upstream.pretraining import shards as reading

    monkeypatch.setattr(reading, "SHUFFLE_BUFFER", 3)
    whole = list(islice(training_batches([shards], [(2, SAMPLES)], 0), 25))
    read, opened = reading._audio_files, []
    monkeypatch.setattr(reading, "_audio_files", lambda url, unreadable: opened.append(url) or read(url, unreadable))
    for consumed in range(1, 22):
        del opened[:]
        gone_on = training_batches([shards], [(2, SAMPLES)], 0, position=whole[consumed - 1].position)
        same(list(islice(gone_on, 1)), whole[consumed:consumed + 1])
        assert len(set(opened)) <= 3
    (shards.parent / opened[0]).write_bytes(b"torn")
    with pytest.raises(ManifestError, match="has changed since the run stopped"):
        next(training_batches([shards], [(2, SAMPLES)], 0, position=whole[consumed - 1].position))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_without_a_readable_file_ends_the_run(shards, workers):
    for shard in range(4):
        (shards.parent / f"shard-{shard}.tar").write_bytes(b"torn")
    with pytest.raises(ManifestError, match="^no readable audio in 4 shards; the last: .*shard-..tar: "):
        next(training_batches([shards], [(2, SAMPLES)], 0, workers=workers))


def test_shards_without_audio_are_named_so(tmp_path, shards):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        add(tar, "0.jpg", b"jpeg")
    with pytest.raises(ManifestError, match=r"no readable audio in 1 shards; they should hold \.wav"):
        next(training_batches([tmp_path / "images.tar"], [(2, SAMPLES)], 0))


def test_globs_and_names_with_dots_are_understood(tmp_path, shards):
    with tarfile.open(tmp_path / "extra-0.tar", "w") as tar:
        for take in range(3):
            add(tar, f"folder.d/digit.{take}.WAV", encode(ramp(500 * take, 300)))
    batch = next(training_batches([f"{tmp_path}/extra-*.tar"], [(3, SAMPLES)], 0))
    assert sorted(numbers([batch])) == [0, 1, 2]


def test_shards_that_do_not_fit_are_refused_at_once(tmp_path, shards):
    with pytest.raises(ManifestError, match="4 shards for 2 processes with 3 workers each"):
        training_batches([shards], [(2, SAMPLES)], 0, world_size=2, workers=3)
    with pytest.raises(ManifestError, match=r"none-0\.tar: no such shard"):
        training_batches([tmp_path / "none-{0..1}.tar"], [(2, SAMPLES)], 0)
    position = next(training_batches([shards], [(2, SAMPLES)], 0, workers=2)).position
    with pytest.raises(ManifestError, match="'workers': 2.*'workers': 3"):
        training_batches([shards], [(2, SAMPLES)], 0, position, workers=3)
    with pytest.raises(ManifestError, match="'rank': 0.*'rank': 1"):
        training_batches([shards], [(2, SAMPLES)], 0, position, rank=1, world_size=2, workers=2)


def test_a_url_that_answers_nothing_is_reported(shards):
    with pytest.raises(ManifestError, match="no readable audio in 1 shards; the last: http://127.0.0.1:9/a.tar: "):
        next(training_batches(["http://127.0.0.1:9/a.tar"], [(2, SAMPLES)], 0))
