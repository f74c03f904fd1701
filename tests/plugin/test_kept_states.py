"""Hidden states stored during s3prl's runs: the same values, computed once."""

import importlib.util
from argparse import Namespace

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Subset

from helpers import superb_corpora
from helpers.s3prl_runs import run
from ssamba_upstream import SsambaConfig, SsambaModel, audio
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.configs import find_config
from ssamba_upstream.corpora.superb.iemocap import write_iemocap
from ssamba_upstream.corpora.superb.speech_commands import write_speech_commands
from ssamba_upstream.corpora.superb.utterances import Utterance
from ssamba_upstream.corpora.superb.voxceleb1 import write_voxceleb1
from ssamba_upstream.plugin import keeping
from ssamba_upstream.plugin.averages import AveragedDataset
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.plugin.kept_states import KeptUpstream
from ssamba_upstream.plugin.repairs.frames import RunError
from ssamba_upstream.store import HiddenStateStore, contents

NEEDS_S3PRL = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("librosa", "tensorboardX", "pandas")),
    reason="s3prl needs librosa, tensorboardX and pandas")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    torch.manual_seed(0)
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=2)), folder)
    return folder


class Counted(torch.nn.Module):
    """An upstream of another package, whose frames depend on the batch's longest utterance; counts its calls."""

    def __init__(self, layers=2):
        super().__init__()
        self.layers, self.calls = layers, []

    def get_downsample_rates(self, key):
        return 160

    def forward(self, wavs):
        self.calls.append(len(wavs))
        padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        frames = padded.unfold(1, 400, 160)
        return {"hidden_states": [layer + padded.shape[1] + frames[..., :8] for layer in range(self.layers)]}


def waveforms(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_this_package_s_frames_are_those_of_the_batch(checkpoint, tmp_path, dtype, tolerance):
    expert = UpstreamExpert(checkpoint)
    kept = KeptUpstream(expert, HiddenStateStore(tmp_path, {}, dtype))
    wavs = waveforms(16000, 1, 40000)
    expected = expert(wavs)["hidden_states"]
    first, second = kept(wavs), kept(wavs[::-1])
    for layer, cold, warm in zip(expected, first["hidden_states"], second["hidden_states"]):
        assert (cold - layer).abs().max() <= tolerance * layer.abs().max()
        assert torch.equal(warm.flip(0), cold)
    assert first["hidden_states"].frames == [10, 1, 25]


def test_other_upstreams_are_given_one_utterance_at_a_time(tmp_path):
    upstream = Counted()
    kept = KeptUpstream(upstream, HiddenStateStore(tmp_path, {}, "float32"))
    wavs = waveforms(1600, 800)
    found = kept(wavs)["hidden_states"]
    assert upstream.calls == [1, 1] and found.frames == [8, 3]
    for wav, states, frames in zip(wavs, found.stacked.unbind(1), found.frames):
        assert torch.equal(states[:, :frames], torch.cat(Counted()([wav])["hidden_states"]))
    kept([wavs[1], wavs[1]])
    assert upstream.calls == [1, 1]


def test_a_chosen_layer_is_read_by_itself_and_a_missing_one_refused(tmp_path):
    upstream, wavs = Counted(), waveforms(1600)
    store = HiddenStateStore(tmp_path, {}, "float32")
    for _ in range(2):  # computed, then read
        found = KeptUpstream(upstream, store, layer=-1)(wavs)["hidden_states"]
        assert len(found) == 1 and torch.equal(found[0], upstream(wavs)["hidden_states"][1])
        with pytest.raises(RunError, match="-l 2: the upstream has no such layer"):
            KeptUpstream(upstream, store, layer=2)(wavs)


def test_a_store_that_takes_no_more_is_named_once_and_the_run_continues(tmp_path):
    kept = KeptUpstream(Counted(), HiddenStateStore(tmp_path, {}, "float32", limit=1))
    wavs = waveforms(1600, 1200)
    with pytest.warns(RuntimeWarning, match="cannot store more hidden states: it has reached its limit") as warnings:
        found = kept(wavs)["hidden_states"], kept(wavs)["hidden_states"]
    assert torch.equal(found[0].stacked, found[1].stacked) and kept.module.calls == [1, 1, 1, 1]
    assert len(warnings) == 1


def test_a_feature_that_the_upstream_lacks_is_left_to_s3prl(tmp_path):
    kept = KeptUpstream(Counted(), HiddenStateStore(tmp_path, {}), "last_hidden_state")
    assert "hidden_states" in kept(waveforms(1600))


def test_crops_are_spread_over_the_recording():
    assert audio.crop_starts(0, 4000, 16000) == [0, 4000]
    starts = audio.crop_starts(0, 16000, 16000)
    assert starts == [0, 4000, 8000, 12000, 16000]
    assert len(audio.crop_starts(0, 59 * 16000, 16000)) == 59 * audio.CROPS + 1


def overrides(values, **runner):
    values = {f"downstream_expert.{name}": value for name, value in values.items()}
    values |= {"downstream_expert.datarc.num_workers": 0, "optimizer.lr": 3e-3, "runner.gradient_accumulate_steps": 1}
    values |= {f"runner.{name}": value for name, value in {**STEPS, **runner}.items()}
    return ["-o", ",,".join(f"config.{name}={value}" for name, value in values.items())]


STEPS = dict(total_steps=8, eval_step=4, save_step=4, log_step=2)
AVERAGES = ["--cache", "kept", "--averages"]


@pytest.mark.slow
@NEEDS_S3PRL
def test_intents_from_averages_are_those_of_the_runner(checkpoint, tmp_path):
    """Random draws, losses, accuracies, predictions, and s3prl's evaluation of the checkpoint are the same."""
    values = superb_corpora.intent_classification(tmp_path / "corpus")
    train = ["-m", "train", "-u", "ssamba_tiny", "-k", str(checkpoint), "-d", "fluent_commands",
             "-c", "intent_classification", *overrides(values)]
    printed, losses = run(
        [*train, "-p", "by-runner"], [*train, *AVERAGES, "-p", "averages"],
        [*train, "--cache", "kept", "-p", "frames"], [*train, "--cache", "kept", "-p", "frames-again"],
        folder=tmp_path)
    assert losses is not None, printed
    by_runner, from_averages, cold, warm = np.array(losses).reshape(4, -1)
    assert np.allclose(by_runner, from_averages, rtol=1e-4) and np.allclose(by_runner, cold, rtol=1e-2)
    assert (cold == warm).all()
    for name in ("log.log", "test_predict.csv", "dev_predict.csv"):
        assert (tmp_path / "averages" / name).read_text() == (tmp_path / "by-runner" / name).read_text()
    predicted = tmp_path / "averages" / "test_predict.csv"
    before = predicted.read_text()
    predicted.unlink()
    run(["-m", "evaluate", "-e", "averages/dev-best.ckpt"], folder=tmp_path)
    assert predicted.read_text() == before
    assert {found.description["time"]: found.waveforms for found in contents(tmp_path / "kept")} == {
        "average": 7, "all": 7}  # the splits share the same six recordings, and s3prl's Featurizer tries a seventh


def tone(pitch, number, seconds):
    samples = np.arange(int(16000 * seconds))
    noise = np.random.default_rng(number).standard_normal(len(samples))
    return 0.3 * np.sin(2 * np.pi * pitch * samples / 16000) + 0.02 * noise


@pytest.mark.slow
@NEEDS_S3PRL
def test_emotions_from_averages_are_those_of_the_runner(checkpoint, tmp_path):
    """s3prl splits ER's data set with ``random_split``."""
    write_iemocap(tmp_path / "IEMOCAP", [
        Utterance(tone(150 * pitch, session, 0.8 + 0.1 * session), emotion, f"Ses0{session}F", recording="impro01")
        for session in range(1, 6) for pitch, emotion in enumerate(("neu", "hap", "ang", "sad"), start=1)])
    values = {"datarc.root": tmp_path / "IEMOCAP", "datarc.meta_data": tmp_path / "IEMOCAP" / "meta_data",
              "datarc.train_batch_size": 4}
    train = ["-m", "train", "-u", "ssamba_tiny", "-k", str(checkpoint), "-d", "emotion", "-c", "emotion_recognition",
             *overrides(values)]
    printed, losses = run([*train, "-p", "by-runner"], [*train, *AVERAGES, "-p", "averages"], folder=tmp_path)
    assert losses is not None, printed
    by_runner, from_averages = np.array(losses).reshape(2, -1)
    assert np.allclose(by_runner, from_averages, rtol=1e-4)
    for name in ("log.log", "test_fold1_predict.txt", "dev_fold1_predict.txt"):
        assert (tmp_path / "averages" / name).read_text() == (tmp_path / "by-runner" / name).read_text()


def test_a_subset_is_read_as_averages_too():
    dataset = Subset([(np.zeros(5), "a"), (np.ones(5), "b")], [1, 0])
    (batch,) = DataLoader(AveragedDataset(dataset, [([7], "b"), ([8], "a")]), 2, collate_fn=list)
    assert [(wav.tolist(), label) for wav, label in batch] == [([7.0], "b"), ([8.0], "a")]


@pytest.mark.slow
@NEEDS_S3PRL
def test_random_crops_are_drawn_from_several_and_the_checkpoint_is_s3prl_s(checkpoint, tmp_path):
    write_speech_commands(tmp_path, [
        Utterance(tone(150 * pitch, number, 0.3), word, f"{number:08x}", split="test" if number >= 10 else "train")
        for pitch, word in enumerate(("yes", "no", "_unknown_"), start=1) for number in range(12)
    ], backgrounds={"hum": tone(50, 0, seconds=3)})
    write_voxceleb1(tmp_path / "VoxCeleb1", [
        Utterance(tone(150 * speaker, number, 0.5), f"id1000{speaker}", recording="video",
                  split={4: "dev", 5: "test"}.get(number, "train"))
        for speaker in (1, 2) for number in range(6)])
    upstream = ["-u", "ssamba_tiny", "-k", str(checkpoint)]
    words = {"speech_commands_root": tmp_path / "speech_commands_v0.01", "batch_size": 4,
             "speech_commands_test_root": tmp_path / "speech_commands_test_set_v0.01"}
    speakers = {"file_path": tmp_path / "VoxCeleb1", "meta_data": tmp_path / "VoxCeleb1" / "veri_test_class.txt",
                "train_batch_size": 4, "max_timestep": 4000}
    runs = {"ks": ("speech_commands", "keyword_spotting", words),
            "sid": ("voxceleb1", "speaker_identification", speakers)}
    commands = []
    for name, (downstream, config, values) in runs.items():
        values = {f"datarc.{field}": value for field, value in values.items()}
        commands += [
            ["-m", "train", *upstream, "-d", downstream, "-c", config, *overrides(values), *AVERAGES, "-p", name],
            ["-m", "evaluate", "-e", f"{name}/states-8.ckpt", "-o", f"args.expdir={name}-by-s3prl"]]
    printed, losses = run(*commands, folder=tmp_path)
    assert losses is not None and np.isfinite(losses).all() and len(losses) == 16, printed
    for name in runs:
        predicted = (tmp_path / name / "test_predict.txt").read_text()
        assert predicted and (tmp_path / f"{name}-by-s3prl" / "test_predict.txt").read_text() == predicted
    # 33 words that s3prl uses, 9 one-second crops of noise, 8 training recordings in 5 crops of a quarter of a
    # second, 4 whole ones, and the input with which s3prl's Featurizer tries the upstream.
    (found,) = contents(tmp_path / "kept")
    assert found.waveforms == 33 + 9 + 8 * 5 + 4 + 1


def test_refuses_averages_where_the_head_sees_more():
    given = {"downstream": "voxceleb1", "upstream_feature_normalize": False, "local_rank": None}
    config = yaml.safe_load(find_config("speaker_identification", "downstream").read_text())
    keeping.check_averages(Namespace(**given), config)
    with pytest.raises(RunError, match="-d asr uses more of an utterance than its average"):
        keeping.check_averages(Namespace(**{**given, "downstream": "asr"}), config)
    with pytest.raises(RunError, match="normalises each frame"):
        keeping.check_averages(Namespace(**{**given, "upstream_feature_normalize": True}), config)
    with pytest.raises(RunError, match="without torchrun"):
        keeping.check_averages(Namespace(**{**given, "local_rank": 0}), config)
    head = config["downstream_expert"]["modelrc"]["UtteranceLevel"]
    for change in ({"pooling": "AttentivePooling"}, {"pre_net": {"select": "FrameLevel"}}):
        config["downstream_expert"]["modelrc"]["UtteranceLevel"] = {**head, **change}
        with pytest.raises(RunError, match="voxceleb1 uses more of an utterance than its average"):
            keeping.check_averages(Namespace(**given), config)
