"""Batches for fine-tuning: their clips and targets, and that these do not depend on the number of readers."""

from itertools import islice

import numpy as np
import pytest
import soundfile
import torch

from ssamba_upstream.corpora.manifest import ManifestError
from ssamba_upstream.finetuning.batches import balancing_weights, evaluation_batches, label_targets, training_batches

SAMPLES = 400
CLASSES = ["bark", "chirp", "drip", "echo", "fizz", "gong", "hum"]


@pytest.fixture
def paths(tmp_path):
    """Seven recordings of 300 to 900 samples; sample i of recording k is exactly 1000 (k + 1) + i, in 16 bits."""
    names = [tmp_path / f"{number}.wav" for number in range(7)]
    for number, name in enumerate(names):
        soundfile.write(name, (1000 * (number + 1) + np.arange(300 + 100 * number)) / 2 ** 15, 16000)
    return names


@pytest.fixture
def targets():
    return torch.eye(7)


def take(count, *arguments, **options):
    return list(islice(training_batches(*arguments, **options), count))


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        for name in ("waveforms", "lengths", "targets", "indices"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert (one.unreadable, one.position) == (other.unreadable, other.position)


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


def starts(batches):
    """Return the recording and first sample of each clip, decoded from its waveform."""
    return [divmod(round(value * 2 ** 15), 1000) for value in joined(batches, "waveforms")[:, 0].tolist()]


OPTIONS = [{}, {"mixup": 0.5}, {"weights": [1, 2, 3, 0, 5, 6, 7]}, {"mixup": 0.5, "weights": [1, 2, 3, 0, 5, 6, 7]}]


# The sequence of clips

def test_every_recording_comes_once_per_epoch_in_an_order_of_its_own(paths, targets):
    batches = take(6, paths, targets, 7, SAMPLES, 0)
    orders = [batch.indices.tolist() for batch in batches]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 4
    assert orders != [batch.indices.tolist() for batch in take(6, paths, targets, 7, SAMPLES, 1)]
    assert [batch.position for batch in batches] == [1, 2, 3, 4, 5, 6]
    assert not any(batch.unreadable for batch in batches)


def test_clips_are_random_crops_of_their_recording_with_its_target(paths, targets):
    batches = take(60, paths, targets, 7, SAMPLES, 0)
    crops = {number: set() for number in range(7)}
    for index, target, length, clip, (recording, first) in zip(*(
            joined(batches, name).tolist() for name in ("indices", "targets", "lengths")),
            joined(batches, "waveforms"), starts(batches)):
        assert recording == index + 1
        assert target == [float(number == index) for number in range(7)]
        assert length == min(SAMPLES, 300 + 100 * index)
        assert torch.equal(clip[:length], (1000 * recording + first + torch.arange(length)) / 2 ** 15)
        assert not clip[length:].any()
        crops[index].add(first)
    assert crops[0] == crops[1] == {0}
    assert all(len(crops[number]) > 30 for number in range(2, 7))
    assert max(crops[6]) > 450 and min(crops[6]) < 50
    assert joined(batches, "targets").dtype == torch.float32


@pytest.mark.parametrize("options", OPTIONS)
def test_a_run_is_gone_on_with_exactly(paths, targets, options):
    paths[2].write_bytes(b"damaged")
    whole = take(8, paths, targets, 3, SAMPLES, 5, **options)
    for used in (1, 4):
        same(take(8 - used, paths, targets, 3, SAMPLES, 5, position=whole[used - 1].position, **options), whole[used:])


@pytest.mark.parametrize("options", OPTIONS)
def test_neither_workers_nor_ranks_nor_batch_size_change_the_clips(paths, targets, options):
    paths[2].write_bytes(b"damaged")
    whole = take(6, paths, targets, 4, SAMPLES, 5, **options)
    same(take(6, paths, targets, 4, SAMPLES, 5, workers=2, **options), whole)
    ranks = [take(6, paths, targets, 2, SAMPLES, 5, rank=rank, world_size=2, **options) for rank in (0, 1)]
    for name in ("waveforms", "targets", "indices"):
        parts = zip(*([getattr(batch, name) for batch in rank] for rank in ranks))
        assert torch.equal(torch.cat([part for pair in parts for part in pair]), joined(whole, name))
        assert torch.equal(joined(take(3, paths, targets, 8, SAMPLES, 5, **options), name), joined(whole, name))


def test_torch_s_generator_is_left_alone(paths, targets):
    state = torch.get_rng_state()
    take(2, paths, targets, 3, SAMPLES, 0, workers=1, mixup=1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unreadable_recording_is_replaced_with_its_target_and_reported(paths, targets):
    paths[2].write_bytes(b"damaged")
    paths[5].unlink()
    batches = take(40, paths, targets, 7, SAMPLES, 0)
    assert joined(batches, "indices").tolist() == [recording - 1 for recording, _ in starts(batches)]
    assert torch.equal(joined(batches, "targets"), targets[joined(batches, "indices")])
    counts = joined(batches, "indices").bincount(minlength=7)
    assert counts[2] == counts[5] == 0 and (counts[[0, 1, 3, 4, 6]] >= 40).all()
    for batch in batches:
        assert f"{paths[5]}: does not exist or is not readable" in batch.unreadable
        assert any(line.startswith(f"{paths[2]}: ") for line in batch.unreadable)


@pytest.mark.parametrize("workers", [0, 1])
def test_recordings_all_unreadable_end_the_run_readably(paths, targets, workers):
    for path in paths:
        path.unlink()
    with pytest.raises(ManifestError, match="100 files in a row are unreadable.*does not exist"):
        next(training_batches(paths, targets, 2, SAMPLES, 0, workers=workers))
    (batch,) = evaluation_batches(paths, targets, 2, SAMPLES, workers=workers)
    assert len(batch.indices) == len(batch.waveforms) == len(batch.targets) == 0 and len(batch.unreadable) == 7


# Mixup

@pytest.fixture
def noises(tmp_path):
    """Samples of five recordings of noise with an offset: shorter than a clip, as long, and longer."""
    random = np.random.default_rng(0)
    names, waves = [], []
    for number, length in enumerate((150, 250, 300, 400, 400)):
        wave = np.round(3000 * random.standard_normal(length) + 500 * number) / 2 ** 15
        soundfile.write(tmp_path / f"noise{number}.wav", wave, 16000)
        names.append(tmp_path / f"noise{number}.wav")
        waves.append(torch.from_numpy(wave).float())
    return names, waves


def test_a_mixed_clip_is_mixed_as_its_targets_say(noises):
    paths, waves = noises
    batches = take(60, paths, torch.eye(5), 5, SAMPLES, 0, mixup=1.0)
    shares, partners = [], []
    for index, target, length, clip in zip(*(joined(batches, name) for name in (
            "indices", "targets", "lengths", "waveforms"))):
        own = waves[index] - waves[index].mean()
        assert length == len(own)
        others = [number for number in target.nonzero().flatten().tolist() if number != index]
        partner = others[0] if others else index.item()
        share = target[index] if others else None
        other = waves[partner] - waves[partner].mean()
        other = torch.nn.functional.pad(other, (0, SAMPLES))[:length]
        if others:
            assert len(others) == 1
            shares.append(share.item())
        else:
            share = 0.5
        assert torch.allclose(clip[:length], share * own + (1 - share) * other, atol=1e-6)
        assert target.sum() == pytest.approx(1)
        assert not clip[length:].any()
        partners.append(partner)
    counts = np.bincount(partners, minlength=5)
    assert ((counts - 60) ** 2 / 60).sum() < 18.5  # chi-square, 4 degrees of freedom: one seed in 1000 fails
    # Beta(10, 10): mean 1/2, variance 1/84
    assert np.mean(shares) == pytest.approx(0.5, abs=0.025)
    assert np.var(shares) == pytest.approx(1 / 84, rel=0.3)


def test_a_mixture_with_an_unreadable_recording_takes_another(noises):
    paths, _ = noises
    paths[3].write_bytes(b"damaged")
    batches = take(10, paths, torch.eye(5), 5, SAMPLES, 0, mixup=1.0)
    assert not joined(batches, "targets")[:, 3].any()
    assert torch.allclose(joined(batches, "targets").sum(dim=1), torch.ones(50))
    assert sum(len(batch.unreadable) for batch in batches) > 15, "10 in turn, and about 10 drawn to be mixed in"


def test_so_many_clips_are_mixed_and_the_others_are_left_as_they_are(noises):
    paths, waves = noises
    plain = 0
    batches = take(120, paths, torch.eye(5), 5, SAMPLES, 0, mixup=0.3)
    for index, target, clip in zip(*(joined(batches, name) for name in ("indices", "targets", "waveforms"))):
        wave = waves[index]
        if torch.equal(clip[:len(wave)], wave):
            assert target.tolist() == [float(number == index) for number in range(5)]
            plain += 1
    assert plain / 600 == pytest.approx(0.7, abs=0.06)


def test_a_longer_partner_is_cropped_at_random(paths, targets):
    """A mixture of ramps does not show where its parts began; an impulse does."""
    wave = np.zeros(1000)
    wave[500] = 0.5
    soundfile.write(paths[1], wave, 16000)
    soundfile.write(paths[0], np.zeros(200), 16000)
    batches = take(150, paths[:2], targets[:2], 2, SAMPLES, 0, mixup=1.0)
    places = [clip[:200].argmax().item() for clip, index, target in zip(*(
        joined(batches, name) for name in ("waveforms", "indices", "targets"))) if index == 0 and target[1] > 0]
    assert len(places) > 50
    assert len(set(places)) > 10


# Balanced sampling

def test_recordings_are_drawn_by_weight(paths, targets):
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 4.0, 0.0])
    batches = take(100, paths, targets, 10, SAMPLES, 0, weights=weights)
    counts = joined(batches, "indices").bincount(minlength=7)
    assert counts[[0, 4, 6]].tolist() == [0, 0, 0]
    expected = torch.tensor([100.0, 200.0, 300.0, 400.0])
    statistic = ((counts[[1, 2, 3, 5]] - expected) ** 2 / expected).sum()
    assert statistic < 16.3  # chi-square, 3 degrees of freedom: one seed in 1000 fails


def test_balancing_weights_by_hand():
    targets = label_targets([["a"], ["a"], ["a", "b"], ["b", "c"], []], ["a", "b", "c", "d"])
    weights = balancing_weights(targets)
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3 + 1 / 2, 1 / 2 + 1, 1])


def test_balanced_labels_are_heard_equally_often(paths):
    """Recordings without a label count as one more class."""
    targets = label_targets([["a"]] * 3 + [["b"], [], [], []], ["a", "b"])
    batches = take(90, paths, targets, 10, SAMPLES, 0, weights=balancing_weights(targets))
    targets = joined(batches, "targets")
    heard = torch.cat([targets, 1 - targets.sum(dim=1, keepdim=True)], dim=1).sum(dim=0)
    assert heard.sum() == 900
    assert ((heard - 300) ** 2 / 300).sum() < 13.8  # chi-square, 2 degrees of freedom: one seed in 1000 fails


# Labels of seconds

@pytest.fixture
def minutes(tmp_path):
    """Three recordings of 3, 1.5 and 4 s, whose sample i is i / 2**17, and the classes of their first 3 seconds."""
    names = [tmp_path / f"minute{number}.wav" for number in range(3)]
    for name, length in zip(names, (48000, 24000, 64000)):
        soundfile.write(name, np.arange(length) / 2 ** 17, 16000, subtype="FLOAT")
    return names, torch.tensor([[0, 1, 2], [3, 4, 5], [6, -100, 7]])


def test_labels_of_seconds_stay_with_their_seconds(minutes):
    paths, seconds = minutes
    heard = torch.tensor([[0, 1, 2], [3, 4, -100], [6, -100, 7]])
    for batch in [*take(3, paths, seconds, 3, 48000, 0), *evaluation_batches(paths, seconds, 3, 48000)]:
        assert batch.targets.dtype == torch.int64
        assert torch.equal(batch.targets, heard[batch.indices])
        for index, clip, length in zip(batch.indices, batch.waveforms, batch.lengths):
            assert length == (48000, 24000, 48000)[index]
            assert torch.equal(clip[:length], torch.arange(length) / 2 ** 17)
    assert seconds[1, 2] == 5, "what was passed in is not changed"


def test_labels_of_seconds_are_not_mixed_nor_cut(minutes):
    paths, seconds = minutes
    with pytest.raises(ValueError, match="mixup needs targets of whole clips.*Set it to 0, not 0.5"):
        training_batches(paths, seconds, 3, 48000, 0, mixup=0.5)
    with pytest.raises(ValueError, match="labels of 3 seconds need clips of 48000 samples; got 16000"):
        training_batches(paths, seconds, 3, 16000, 0)


# Evaluation

@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_recording_once_in_order(paths, targets, workers):
    batches = list(evaluation_batches(paths, targets, 3, SAMPLES, workers=workers))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert starts(batches) == [(1, 0), (2, 0), (3, 50), (4, 100), (5, 150), (6, 200), (7, 250)]
    assert torch.equal(joined(batches, "targets"), targets)
    assert joined(batches, "lengths").tolist() == [300] + [400] * 6


def test_evaluation_leaves_out_and_lists_what_is_unreadable(paths, targets):
    for number in (0, 3, 6):
        paths[number].write_bytes(b"damaged")
    batches = list(evaluation_batches(paths, targets, 2, SAMPLES))
    assert [batch.indices.tolist() for batch in batches] == [[1, 2], [4, 5]]
    assert torch.equal(joined(batches, "targets"), targets[[1, 2, 4, 5]])
    assert [line.split(": ")[0] for batch in batches for line in batch.unreadable] == [
        str(paths[number]) for number in (0, 3, 6)]


def test_ranks_share_the_evaluation(paths, targets):
    paths[3].write_bytes(b"damaged")
    ranks = [joined(evaluation_batches(paths, targets, 2, SAMPLES, rank, 3), "indices").tolist() for rank in range(3)]
    assert ranks == [[0, 6], [1, 4], [2, 5]]


# Targets and invalid input

def test_targets_from_labels():
    targets = label_targets([["hum"], ["bark", "echo"], [], ["echo", "echo"]], CLASSES)
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0, 0], [0] * 7, [0, 0, 0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"recording 1 \(counted from 0\) has the label 'woof', which is not one"):
        label_targets([["hum"], ["bark", "woof"]], CLASSES)
    with pytest.raises(ValueError, match="'b' is listed twice"):
        label_targets([], ["a", "b", "b", "c"])


@pytest.mark.parametrize("changed, message", [
    ({"paths": []}, "no recordings"),
    ({"targets": torch.eye(6)}, r"7 recordings need as many rows of targets.*\(6, 6\)"),
    ({"targets": torch.zeros(7)}, r"shape \(7,\)"),
    ({"targets": torch.zeros(7, 3, dtype=torch.int32)}, "int64 labels of seconds; got torch.int32"),
    ({"mixup": 1.5}, "from 0 to 1; got 1.5"),
    ({"weights": [1.0] * 6}, "for each of 7 recordings"),
    ({"weights": [1.0] * 6 + [-1.0]}, "non-negative"),
    ({"weights": [0.0] * 7}, "not all 0"),
    ({"weights": [1.0] * 6 + [float("nan")]}, "weights must be one non-negative number"),
])
def test_what_does_not_fit_is_refused_at_once(paths, targets, changed, message):
    arguments = {"paths": paths, "targets": targets, "batch_size": 2, "samples": SAMPLES, "seed": 0} | changed
    with pytest.raises(ValueError, match=message):
        training_batches(**arguments)
