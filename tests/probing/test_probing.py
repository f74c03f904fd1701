"""Time averages of hidden states, and linear probes."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from helpers.paths import SHARED_AUDIO
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.audio import AudioError
from ssamba_upstream.checkpoint import load_model, save_model
from ssamba_upstream.corpora.labelled import Excerpt, LabelledSet
from ssamba_upstream.frames import FrameEncoder
from ssamba_upstream.frontend import LogMel
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.probing import CrossValidation, cross_validate, log_mel_averages, time_averages, train_probes
from ssamba_upstream.probing.features import read_waveform
from ssamba_upstream.probing.linear import ProbeResults, accuracy_intervals
from ssamba_upstream.probing.study import by_layer

UTTERANCES, SIZE, CLASSES = 400, 24, 4


def network(**options):
    return SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, **options))


def planted(signal):
    """Return features whose layer l encodes the class with strength signal[l], with labels and splits."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.arange(UTTERANCES) % CLASSES
    centres = torch.randn(CLASSES, SIZE, generator=generator)
    noise = torch.randn(len(signal), UTTERANCES, SIZE, generator=generator)
    features = torch.tensor(signal)[:, None, None] * centres[classes] + noise
    splits = ["test" if i % 5 == 0 else "dev" if i % 5 == 1 else "train" for i in range(UTTERANCES)]
    return features * 50 + 7, [f"class {i}" for i in classes.tolist()], splits


def test_a_planted_layer_is_found_and_noise_stays_at_chance():
    results = train_probes(*planted([0.0, 0.3, 3.0, 0.1]))
    assert results.best_layer == 2 and results.best_test_accuracy == 1
    assert results.dev_accuracy[1] > results.dev_accuracy[3] and 0.3 < results.test_accuracy[1] < 1
    assert abs(results.test_accuracy[0] - 1 / CLASSES) < 3 * (0.25 * 0.75 / 80) ** 0.5


@pytest.mark.slow
def test_probes_do_not_depend_on_other_layers_or_on_chunks(monkeypatch):
    features, labels, splits = planted([0.0, 0.5, 1.0])
    together = train_probes(features, labels, splits)
    monkeypatch.setattr("ssamba_upstream.probing.linear.VALUES_AT_ONCE", 700)
    for layer in range(3):
        alone = train_probes(features[[layer]], labels, splits)
        assert alone.penalty[0] == together.penalty[layer]
        assert alone.dev_loss[0] == pytest.approx(together.dev_loss[layer], rel=3e-3)
        assert alone.test_accuracy[0] == pytest.approx(together.test_accuracy[layer], abs=0.02)


def test_test_labels_choose_nothing():
    features, labels, splits = planted([0.2, 0.4, 0.3])
    test = [i for i, split in enumerate(splits) if split == "test"]
    permuted = list(labels)
    for i, j in zip(test, test[1:] + test[:1]):
        permuted[i] = labels[j]
    first, second = train_probes(features, labels, splits), train_probes(features, permuted, splits)
    for name in ("dev_accuracy", "dev_loss", "penalty", "best_layer"):
        assert getattr(first, name) == getattr(second, name)
    assert first.test_accuracy != second.test_accuracy


def test_dev_chooses_the_penalty():
    """A weakly penalised probe on 20 utterances memorises them; on noise, the largest penalty is best."""
    features, labels, _ = planted([0.4, 0.0])
    splits = ["train" if i < 20 else "dev" if i < 200 else "test" for i in range(UTTERANCES)]
    chosen = train_probes(features, labels, splits)
    assert chosen.penalty[0] < chosen.penalty[1] == 0.1 and chosen.dev_loss[1] == pytest.approx(np.log(4), rel=0.05)
    by_penalty = [train_probes(features, labels, splits, penalties=[penalty]) for penalty in (1e-1, 1e-2, 1e-3, 1e-6)]
    for layer in range(2):
        assert chosen.dev_loss[layer] <= 1.01 * min(results.dev_loss[layer] for results in by_penalty)
    assert by_penalty[-1].dev_loss[0] > 1.5 * chosen.dev_loss[0]


@pytest.mark.parametrize("penalty", [0.1, 1e-3, 1e-5])
@pytest.mark.parametrize("utterances", [400, 40])
def test_probes_agree_with_an_independent_logistic_regression(penalty, utterances):
    """The optima of the penalised problem agree; scikit-learn's C is 1 / (penalty * features * utterances).

    There are more or fewer utterances than features, which have different scales and are correlated.
    """
    linear_model, metrics = map(pytest.importorskip, ("sklearn.linear_model", "sklearn.metrics"))
    features, labels, splits = (column[..., :utterances, :] if torch.is_tensor(column) else column[:utterances]
                                for column in planted([0.4, 0.8]))
    mixing = torch.randn(SIZE, 36, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 36)
    features = features @ mixing
    results = train_probes(features, labels, splits, penalties=[penalty])
    parts = {name: [i for i, split in enumerate(splits) if split == name] for name in ("train", "dev", "test")}
    targets = {name: np.array(labels)[members] for name, members in parts.items()}
    for layer, x in enumerate(features.double()):
        x = ((x - x[parts["train"]].mean(0)) / x[parts["train"]].std(0, correction=0)).numpy()
        regression = linear_model.LogisticRegression(C=1 / (penalty * 36 * len(parts["train"])), tol=1e-8,
                                                     max_iter=10_000)
        regression.fit(x[parts["train"]], targets["train"])
        expected = metrics.log_loss(targets["dev"], regression.predict_proba(x[parts["dev"]]))
        assert results.dev_loss[layer] == pytest.approx(expected, rel=0.02, abs=1e-3)
        agree = np.array(results.test_right[layer]) == (regression.predict(x[parts["test"]]) == targets["test"])
        assert agree.mean() > 0.97


def test_all_of_a_large_train_set_counts():
    """The feature is informative only in the last tenth of 100,000 utterances."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (100_000,), generator=generator)
    features = torch.randn(1, 102_000, 1, generator=generator)
    labels = torch.cat([bits, bits[:2000]])
    features[0, 90_000:, 0] += 3.0 * labels[90_000:]
    splits = ["train"] * 100_000 + ["dev", "test"] * 1000
    found = train_probes(features, [*map(str, labels.tolist())], splits, penalties=[1e-6])
    x = torch.cat([features[0, :100_000], torch.ones(100_000, 1)], dim=1).double()
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(20):  # Newton's method on all utterances
        shares = (x @ weights).sigmoid()
        weights += torch.linalg.solve((x.T * shares * (1 - shares)) @ x, x.T @ (bits - shares))
    dev = features[0, 100_000::2, 0].double() * weights[0] + weights[1]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(dev, labels[100_000::2].double())
    assert found.dev_loss[0] == pytest.approx(expected.item(), rel=1e-3)


def test_a_constant_feature_changes_nothing():
    features, labels, splits = planted([0.5])
    constant = torch.full((1, UTTERANCES, 1), 0.1)
    constant[:, [i for i, split in enumerate(splits) if split != "train"]] += 1e-7
    padded = train_probes(torch.cat([features, constant], dim=2), labels, splits)
    alone = train_probes(features, labels, splits)
    assert padded.test_accuracy == pytest.approx(alone.test_accuracy, abs=0.05)


@pytest.mark.slow
def test_folds():
    features, labels, _ = planted([0.0, 3.0])
    folds = [f"fold {i % 5}" for i in range(0, UTTERANCES * 7, 7)]
    results = cross_validate(features, labels, folds)
    assert sorted(results.folds) == [f"fold {i}" for i in range(5)]
    assert results.best_test_accuracy == 1
    assert results.test_accuracy[1] == 1 and results.test_accuracy[0] < 0.45
    by_hand = ["test" if fold == "fold 4" else "dev" if fold == "fold 0" else "train" for fold in folds]
    assert results.folds["fold 4"] == train_probes(features, labels, by_hand)


def report_of(probes, folds):
    rotations = [(test, ["test" if fold == test else "dev" if fold == dev else "train" for fold in folds])
                 for test, dev in zip("abc", "bca")]
    layers = len(next(iter(probes.folds.values())).dev_loss)
    return by_layer(probes, rotations, [*range(len(folds))], {"norms": [1.0] * layers, "cka": []})


def test_each_fold_chooses_its_own_layer():
    """No fold chooses the second layer, which has the lowest mean loss over all dev parts."""
    losses = {"a": [1.0, 2.0, 9.0], "b": [9.0, 2.0, 1.0], "c": [1.0, 2.0, 9.0]}
    right = [[True, False], [True, True], [False, False]]
    probes = CrossValidation({fold: ProbeResults([0.5] * 3, loss, [0.1] * 3, right) for fold, loss in losses.items()})
    found = report_of(probes, [*"aabbcc"])
    assert found["best_layers"] == {"a": 0, "b": 2, "c": 0}
    assert found["test_accuracy"] == probes.best_test_accuracy == pytest.approx(1 / 3)
    assert [layer["test_accuracy"] for layer in found["layers"]] == [0.5, 1, 0]
    assert found["interval"][0] < 1 / 3 < found["interval"][1] and found["resampled"] == 6


@pytest.mark.slow
def test_random_labels_are_reported_at_chance():
    """Choosing one layer by its mean loss over all dev parts would use every label and report 72 %."""
    labels, folds = [str(i % 2) for i in range(30)], ["abc"[i // 2 % 3] for i in range(30)]
    accuracies = []
    for seed in range(3):
        features = torch.randn(60, 30, 2, generator=torch.Generator().manual_seed(seed))
        accuracies.append(report_of(cross_validate(features, labels, folds), folds)["test_accuracy"])
    assert abs(np.mean(accuracies) - 0.5) < 3 * (0.25 / 90) ** 0.5


def test_intervals_of_independent_utterances_are_those_of_a_proportion():
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(2, 2000, generator=generator) < torch.tensor([[0.9], [0.5]])).tolist()
    folds = ["test"] * 2000
    for row, (low, high) in zip(right, accuracy_intervals(right, folds, range(2000))):
        share = np.mean(row)
        half = 1.96 * (share * (1 - share) / 2000) ** 0.5
        assert (low, high) == pytest.approx((share - half, share + half), abs=0.1 * half)


def test_utterances_of_a_group_are_drawn_together():
    """If a group is all right or all wrong, a hundred utterances per group give the same interval as one."""
    right = [number % 2 == 0 for number in range(10)]
    (alone,) = accuracy_intervals([right], ["test"] * 10, range(10))
    hundred = [value for value in right for _ in range(100)]
    (grouped,) = accuracy_intervals([hundred], ["test"] * 1000, [number // 100 for number in range(1000)])
    assert grouped == pytest.approx(alone)
    (independent,) = accuracy_intervals([hundred], ["test"] * 1000, range(1000))
    assert grouped[1] - grouped[0] > 5 * (independent[1] - independent[0])
    assert accuracy_intervals([hundred], ["test"] * 1000, ["one"] * 1000) == [None]


def test_folds_count_alike_whatever_their_sizes():
    right, folds = [True] * 900 + [False] * 100, ["large"] * 900 + ["small"] * 100
    ((low, high),) = accuracy_intervals([right], folds, range(1000))
    assert 0.4 < low < 0.5 < high < 0.6


def test_probes_refuse_what_they_cannot_use():
    features, labels, splits = planted([0.5])
    with pytest.raises(ValueError, match="399 labels and 400 splits"):
        train_probes(features, labels[1:], splits)
    message = "no utterance in dev; probes need train, dev and test, but the .* test, train"
    with pytest.raises(ValueError, match=message):
        train_probes(features, labels, ["train" if split == "dev" else split for split in splits])
    with pytest.raises(ValueError, match="train lacks: new"):
        train_probes(features, ["new", *labels[1:]], splits)
    with pytest.raises(ValueError, match="three or more folds; got 1, 2"):
        cross_validate(features, labels, ["1", "2"] * 200)
    features[0, 17, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        train_probes(features, labels, splits)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "reduced.safetensors"
    save_model(network(), path)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Noise files of very different lengths, rates and numbers of channels."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    made = {"stereo.wav": (44100, (30000, 2)), "click.wav": (16000, (90,)), "long.flac": (16000, (200000,)),
            "short.wav": (8000, (4001,))}
    for name, (rate, shape) in made.items():
        soundfile.write(folder / name, generator.uniform(-0.5, 0.5, shape), rate)
    return [*(folder / name for name in made)]


@pytest.mark.parametrize("options", [
    {"time_stride": 16, "frequency_stride": 16, "window_secs": 10.24}, {"window_secs": 2.0},
    {"window_secs": 10.0},
])
def test_time_averages_are_the_mean_of_the_upstream_s_frames(checkpoint, recordings, options):
    expert = UpstreamExpert(checkpoint, **options).eval()
    strides = {"time_stride": 10, "frequency_stride": 10, **options}
    window_secs = strides.pop("window_secs")
    model = load_model(checkpoint, **strides)
    found = time_averages(model, recordings, window_secs)
    both = time_averages(model, recordings, window_secs, deviations=True)
    torch.testing.assert_close(both[..., :found.shape[2]], found)
    for i, path in enumerate(recordings):
        with torch.no_grad():
            wav = read_waveform(path)
            states = expert([wav])["hidden_states"]
        assert found.shape == (3, len(recordings), states[0].shape[2])
        for layer, state in enumerate(states):
            torch.testing.assert_close(found[layer, i], state[0].mean(0), rtol=1e-5, atol=1e-5)
            deviation = state[0].double().std(0, correction=0).float()
            torch.testing.assert_close(both[layer, i, found.shape[2]:], deviation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [4, 10, 16])
def test_time_averages_by_audio_weigh_frames_by_what_they_have_read_of_it(checkpoint, recordings, stride):
    model = load_model(checkpoint, time_stride=stride, frequency_stride=16)
    found = time_averages(model, recordings, deviations=True, by_audio=True)
    for i, path in enumerate(recordings):
        wav = read_waveform(path)
        fbank_frames = max(1, 1 + (len(wav) - 400) // 160)
        with torch.no_grad():
            states = FrameEncoder(model)([wav]).hidden_states
        read = [sum(frame < fbank_frames for frame in range(stride * t, stride * t + 16))
                for t in range(states[0].shape[1])]
        weights = torch.tensor(read, dtype=torch.float64) / sum(read)
        for layer, state in enumerate(states):
            mean = weights @ state[0].double()
            deviation = (weights @ (state[0].double() - mean).square()).sqrt()
            torch.testing.assert_close(found[layer, i], torch.cat([mean, deviation]).float(), rtol=1e-4, atol=1e-5)


def test_time_averages_do_not_depend_on_batching_or_order(checkpoint, recordings):
    model = load_model(checkpoint)
    together = time_averages(model, recordings)
    torch.testing.assert_close(time_averages(model, recordings, batch_secs=0.1), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(time_averages(model, recordings[::-1]).flip(1), together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(checkpoint, recordings, training):
    model = load_model(checkpoint, drop_path_rate=0.5).train(training)
    averages = time_averages(model, recordings[:2])
    assert model.training is training and not averages.requires_grad
    assert torch.equal(averages, time_averages(model, recordings[:2]))


def test_waveforms_are_mixed_down_and_resampled(recordings):
    import torchaudio

    samples, rate = soundfile.read(recordings[0], dtype="float32")
    expected = torchaudio.functional.resample(torch.from_numpy(samples).mean(1), rate, 16000)
    torch.testing.assert_close(read_waveform(recordings[0]), expected, rtol=0, atol=1e-5)


def test_excerpts(recordings):
    samples, _ = soundfile.read(recordings[2], dtype="float32")
    part = Excerpt(recordings[2], start=1000, stop=33000, gain=-6.0)
    torch.testing.assert_close(read_waveform(part), torch.from_numpy(samples[1000:33000]) * 10**-0.3)
    assert read_waveform(Excerpt(recordings[2], gain=20.0)).abs().max() == 1
    model = network()
    found = time_averages(model, [recordings[1], part, recordings[3]])
    torch.testing.assert_close(found[:, [1]], time_averages(model, [part]), rtol=0, atol=1e-5)
    whole = time_averages(model, [recordings[2]])
    assert (found[:, 1] - whole[:, 0]).abs().max() > 1e-2
    assert torch.equal(time_averages(model, [Excerpt(recordings[2])]), whole)
    assert LabelledSet([part, *recordings[2:], Excerpt(recordings[2])], [*"aabb"], ["train", "dev", "test", "dev"])


def test_log_mel_averages(recordings):
    found = log_mel_averages(recordings)
    assert found.shape == (1, len(recordings), 256) and found.isfinite().all()
    (features,) = LogMel()([read_waveform(recordings[3])])
    torch.testing.assert_close(found[0, 3], torch.cat([features.mean(0), features.std(0, correction=0)]))


@pytest.mark.parametrize("averages", [log_mel_averages, lambda paths: time_averages(network(), paths)])
def test_audio_that_cannot_be_used(averages, tmp_path):
    with pytest.raises(ValueError, match="no recordings"):
        averages([])
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(AudioError, match="text.wav cannot be read as audio"):
        averages([tmp_path / "text.wav"])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match="empty.wav cannot be read as audio: holds no samples"):
        averages([tmp_path / "empty.wav"])


@pytest.mark.parametrize("averages", [log_mel_averages, lambda paths, **to: time_averages(network(), paths, **to)])
def test_audio_that_cannot_be_used_is_skipped_on_request(averages, recordings, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "loud.wav", np.full(9000, 1e30, np.float32), 16000, subtype="FLOAT")
    damaged, errors = [tmp_path / "text.wav", tmp_path / "loud.wav"], []
    torch.manual_seed(0)
    found = averages([recordings[0], *damaged, *recordings[1:]], report=errors.append)
    assert sorted(error.file for error in errors) == sorted(damaged)
    assert found[:, 1:3].isnan().all()
    torch.manual_seed(0)
    torch.testing.assert_close(found[:, [0, 3, 4, 5]], averages(recordings), rtol=0, atol=1e-5)


def test_windows_the_positions_do_not_reach(recordings):
    for window_secs, complaint in ((11.0, "longer than the 10.24 s"), (0.1, "at least one patch, 0.16 s")):
        with pytest.raises(ValueError, match=complaint):
            time_averages(network(), recordings, window_secs=window_secs)


@pytest.mark.slow
def test_spoken_digits_by_the_filterbank_and_a_random_network():
    """Digits zero and one by two speakers: even a random network distinguishes the speakers, far above chance."""
    folder = SHARED_AUDIO / "fsdd" / "recordings"
    if not folder.is_dir():
        pytest.skip("the Free Spoken Digit Dataset is not here (../shared/audio/fsdd)")
    paths = [folder / f"{digit}_{speaker}_{i}.wav" for digit in (0, 1) for speaker in ("jackson", "theo")
             for i in range(20)]
    indices = [int(path.stem.split("_")[2]) for path in paths]
    splits = ["test" if i < 4 else "dev" if i < 8 else "train" for i in indices]
    for column in (0, 1):
        labels = [path.stem.split("_")[column] for path in paths]
        data = LabelledSet(paths, labels, splits)
        for features in (log_mel_averages(data.paths), time_averages(network(), data.paths)):
            assert train_probes(features, data.labels, data.splits).best_test_accuracy > 0.8


@pytest.mark.slow
def test_no_s3prl():
    """Pretraining imports this package, and must run without s3prl."""
    code = "import sys, ssamba_upstream.probing; sys.exit('s3prl' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
