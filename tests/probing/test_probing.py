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
from ssamba_upstream.probing import cross_validate, log_mel_averages, time_averages, train_probes
from ssamba_upstream.probing.features import read_waveform
from ssamba_upstream.probing.linear import _Adam, retrain_probes

UTTERANCES, SIZE, CLASSES = 400, 24, 4


def network(**options):
    return SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, **options))


def planted(signal):
    """Features whose layer l carries the class with strength signal[l], with labels and splits."""
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
def test_probes_do_not_depend_on_those_beside_them(monkeypatch):
    features, labels, splits = planted([0.0, 0.5, 1.0])
    grid = {"learning_rates": (1e-3, 1e-2), "weight_decays": (0.0, 0.1)}
    together = train_probes(features, labels, splits, **grid)
    monkeypatch.setattr("ssamba_upstream.probing.linear.BYTES_AT_ONCE", 1)
    assert train_probes(features, labels, splits, **grid) == together
    for layer in range(3):
        alone = [
            train_probes(features[[layer]], labels, splits, learning_rates=[rate], weight_decays=[decay])
            for rate in grid["learning_rates"] for decay in grid["weight_decays"]
        ]
        best = min(alone, key=lambda result: result.dev_loss)
        for name in ("dev_accuracy", "dev_loss", "test_accuracy", "learning_rate", "weight_decay"):
            assert getattr(best, name)[0] == pytest.approx(getattr(together, name)[layer], abs=1e-5), name


def test_test_labels_choose_nothing():
    features, labels, splits = planted([0.2, 0.4, 0.3])
    test = [i for i, split in enumerate(splits) if split == "test"]
    permuted = list(labels)
    for i, j in zip(test, test[1:] + test[:1]):
        permuted[i] = labels[j]
    first, second = train_probes(features, labels, splits), train_probes(features, permuted, splits)
    for name in ("dev_accuracy", "dev_loss", "learning_rate", "weight_decay", "best_layer"):
        assert getattr(first, name) == getattr(second, name)
    assert first.test_accuracy != second.test_accuracy


def test_the_best_step_on_dev_is_kept():
    """Training to the end overfits 20 utterances; the early step is remembered, not the last."""
    features, labels, _ = planted([0.4])
    splits = ["train" if i < 20 else "dev" if i < 200 else "test" for i in range(UTTERANCES)]
    rate = {"learning_rates": [1e-2], "weight_decays": [0.0]}
    stopped = train_probes(features, labels, splits, **rate)
    by_length = [train_probes(features, labels, splits, max_steps=steps, patience=1000, **rate)
                 for steps in (5, 50, 300)]
    assert by_length[0].dev_loss > by_length[1].dev_loss >= by_length[2].dev_loss == stopped.dev_loss
    assert train_probes(features, labels, splits, max_steps=3, **rate).dev_accuracy[0] > 0


@pytest.mark.slow
def test_a_seed_is_a_random_start():
    problem = planted([0.3, 0.5])
    assert train_probes(*problem) == train_probes(*problem)
    assert train_probes(*problem).dev_loss != train_probes(*problem, seed=1).dev_loss


def test_adam_is_torchs_with_rates_and_penalties_of_their_own():
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(8, 2, 5, 3, generator=generator, dtype=torch.float64)
    rates, penalties = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64), torch.tensor([0.0, 0.1, 0.5])
    columns = [start[..., i].clone().requires_grad_() for i in range(3)]
    theirs = torch.optim.Adam([{"params": [column], "lr": float(rate), "weight_decay": float(penalty)}
                               for column, rate, penalty in zip(columns, rates, penalties)])
    parameter = start.clone()
    ours = _Adam(parameter, rates, penalties)
    for gradient in gradients:
        ours.step(gradient)
        for i, column in enumerate(columns):
            column.grad = gradient[..., i].clone()
        theirs.step()
        torch.testing.assert_close(parameter, torch.stack([column.detach() for column in columns], dim=2))


@pytest.mark.slow
def test_another_start_with_what_the_first_chose():
    features, labels, splits = planted([0.3, 0.8, 0.5])
    first = train_probes(features, labels, splits)
    again, other = retrain_probes(features, labels, splits, first, seeds=[0, 1])
    assert (again.learning_rate, again.weight_decay) == (first.learning_rate, first.weight_decay)
    assert again.dev_loss == pytest.approx(first.dev_loss, abs=1e-5)
    assert other.dev_loss != first.dev_loss and len(other.test_accuracy) == 3
    (alone,) = retrain_probes(features, labels, splits, first, seeds=[0])
    assert alone.dev_loss == pytest.approx(again.dev_loss, abs=1e-5)


def test_probes_agree_with_an_independent_logistic_regression():
    """At the optimum of the penalised problem; scikit-learn's C is 1 / (penalty * utterances)."""
    linear_model, metrics = map(pytest.importorskip, ("sklearn.linear_model", "sklearn.metrics"))
    features, labels, splits = planted([0.4, 0.8])
    results = train_probes(features, labels, splits, learning_rates=[3e-3], weight_decays=[0.3],
                           max_steps=1000, patience=1000)
    parts = {name: [i for i, split in enumerate(splits) if split == name] for name in ("train", "dev")}
    targets = {name: np.array(labels)[members] for name, members in parts.items()}
    for layer, x in enumerate(features):
        x = (x - x[parts["train"]].mean(0)) / x[parts["train"]].std(0, correction=0)
        regression = linear_model.LogisticRegression(C=1 / (0.3 * len(parts["train"])))
        regression.fit(x[parts["train"]].numpy(), targets["train"])
        expected = metrics.log_loss(targets["dev"], regression.predict_proba(x[parts["dev"]].numpy()))
        assert results.dev_loss[layer] == pytest.approx(expected, rel=0.02)


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


def test_probes_refuse_what_they_cannot_use():
    features, labels, splits = planted([0.5])
    with pytest.raises(ValueError, match="399 labels and 400 splits"):
        train_probes(features, labels[1:], splits)
    message = "no utterance in dev; probes need train, dev and test, and the .* test, train"
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
    """Files of very unequal lengths, rates and channels: all noise."""
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
def test_audio_that_cannot_be_used_is_left_out_on_request(averages, recordings, tmp_path):
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
    """Two speakers of zero and one: even a random network tells them apart, far above chance."""
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
    """Pretraining imports this package, and must run where s3prl is not installed."""
    code = "import sys, ssamba_upstream.probing; sys.exit('s3prl' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
