"""Repairs of s3prl's downstreams, and settings that are refused before a run."""

import fcntl
import random
import types
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.configs import find_config
from ssamba_upstream.frames import FrameEncoder
from ssamba_upstream.plugin import compat, runner
from ssamba_upstream.plugin.repairs import ctc_corpora, downstreams
from ssamba_upstream.plugin.repairs.frames import (
    RunError,
    StackedLayers,
    WeightedSum,
    check_hop,
    check_split,
    report_alignments,
    scale_time_masks,
)


@pytest.fixture(scope="module", autouse=True)
def applied():
    compat.apply()


# Frames


@pytest.mark.parametrize("downstream, hop, preset", [
    ("ctc", 1600, "hop_40ms"), ("asr", 1600, "hop_40ms"), ("sv_voxceleb1", 1600, "hop_40ms"),
    ("diarization", 1600, "hop_40ms"), ("enhancement_stft", 640, "hop_20ms"), ("separation_stft", 1600, "hop_20ms")])
def test_frames_too_far_apart_are_refused(downstream, hop, preset):
    with pytest.raises(RunError, match=f"-g {preset}"):
        check_hop(downstream, hop)
    check_hop(downstream, 320)


def test_other_downstreams_take_any_hop():
    check_hop("fluent_commands", 1600)


@pytest.mark.parametrize("task", ["speech_recognition", "slot_filling"])
@pytest.mark.parametrize("hop, widths", [(160, [0, 40]), (320, [0, 40]), (480, [0, 27]), (640, [0, 20])])
def test_time_masks_last_as_long_as_superbs(task, hop, widths, capsys):
    config = yaml.safe_load(find_config(task, "downstream").read_text())
    for _ in range(2):  # the second time like a resumed run, with its checkpoint's config
        scale_time_masks(config, hop)
        assert config["specaug"]["time_mask_width_range"] == widths
    assert capsys.readouterr().out.count("time masks") == (hop > 320)


def test_time_masks_of_other_configs_stay():
    config = {"specaug": {"time_mask_width_range": [0, 40]}}
    scale_time_masks(config, 640)
    assert config == {"specaug": {"time_mask_width_range": [0, 40]}}


def test_splits():
    asr = {"downstream_expert": {"datarc": {"train": ["a"], "test-clean": ["b"], "num_workers": 0}}}
    check_split("asr", asr, "test-clean")
    with pytest.raises(RunError, match="-t nosuch.*train, test-clean"):
        check_split("asr", asr, "nosuch")
    with pytest.raises(RunError, match="train, dev, test"):
        check_split("emotion", {}, "nosuch")


@pytest.fixture(scope="module")
def encoder():
    from ssamba_upstream.plugin.expert import UpstreamExpert

    expert = UpstreamExpert.__new__(UpstreamExpert)
    FrameEncoder.__init__(expert, SsambaModel(SsambaConfig(num_hidden_layers=1, time_stride=10)))
    return expert


def featurizer(upstream, **options):
    from s3prl.upstream.interfaces import Featurizer

    return Featurizer(upstream, upstream_device="cpu", **options)


def test_every_frame_of_ours_is_kept(encoder):
    wavs = [torch.randn(samples) for samples in (160, 800, 1601, 5599)]
    frames = featurizer(encoder)(wavs, encoder(wavs))
    assert [len(frame) for frame in frames] == [1, 1, 2, 4]


def test_frames_of_other_upstreams_are_rounded_but_never_none():
    class Other(torch.nn.Module):
        def forward(self, wavs):
            return {"hidden_states": [torch.ones(len(wavs), 10, 3)] * 2}

        def get_downsample_rates(self, key):
            return 1600

    wavs = [torch.ones(16000), torch.ones(2000), torch.ones(160)]
    frames = featurizer(Other())(wavs, Other()(wavs))
    assert [len(frame) for frame in frames] == [10, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("features", [1, WeightedSum.BLOCK, 2 * WeightedSum.BLOCK + 7])
def test_the_weighted_sum_of_kept_layers_and_its_gradient_follow_the_definition(dtype, features):
    layers = torch.randn(3, features).to(dtype)
    weights, definition = (torch.tensor([0.2, 0.5, 0.3], dtype=wide, requires_grad=True)
                           for wide in (torch.float32, torch.float64))
    gradient = torch.randn(features)
    result = WeightedSum.apply(weights, layers)
    expected = (definition[:, None] * layers.double()).sum(dim=0)
    result.backward(gradient)
    expected.backward(gradient.double())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights.grad.double(), definition.grad, rtol=1e-5, atol=1e-3)


def test_one_layer_and_normalised_layers_are_widened(encoder):
    wavs = [torch.randn(1600), torch.randn(3200)]
    stacked = torch.stack(encoder(wavs)["hidden_states"]).half()
    kept = {"hidden_states": StackedLayers(stacked, [1, 2])}
    layers = {"hidden_states": [*stacked.float()]}
    for options in ({"layer_selection": 1}, {"normalize": True}):
        reads = featurizer(encoder, **options)
        for found, expected in zip(reads(wavs, kept), reads(wavs, layers)):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected)


def test_layers_and_features_that_there_are_not(encoder):
    with pytest.raises(RunError, match="-l 25.*0 to 1"):
        featurizer(encoder, layer_selection=25)
    with pytest.raises(RunError, match="-s nonsense.*hidden_states"):
        featurizer(encoder, feature_selection="nonsense")
    assert featurizer(encoder, layer_selection=1).output_dim == featurizer(encoder).output_dim


# CTC


class Recogniser(torch.nn.Module):
    """The parts of ``ctc`` and ``asr`` that the report uses: a CTC loss and logged metrics."""

    def __init__(self):
        super().__init__()
        self.objective = torch.nn.CTCLoss(zero_infinity=True)

    def log_records(self, split):
        return split

    def loss(self, *transcripts, frames):
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in transcripts], batch_first=True)
        scores = torch.zeros(max(frames), len(transcripts), 5).log_softmax(dim=-1)
        return self.objective(scores, tokens, torch.tensor(frames), torch.tensor(list(map(len, transcripts))))


@pytest.fixture
def recogniser():
    class Owner(Recogniser):
        __init__, log_records = Recogniser.__init__, Recogniser.log_records

    report_alignments(types.SimpleNamespace(DownstreamExpert=Owner), "DownstreamExpert", "objective", "log_records")
    return Owner()


@pytest.mark.parametrize("tokens, frames", [([1], 0), ([1, 2, 3], 2), ([1, 1], 2), ([1, 1, 2, 2, 2], 7)])
def test_ctc_without_enough_frames_is_counted(recogniser, capsys, tokens, frames):
    assert recogniser.loss(tokens, frames=[frames + 1]) > 0
    recogniser.log_records("train")
    assert "more tokens" not in capsys.readouterr().out
    assert recogniser.loss(tokens, [1, 2], frames=[frames, 2]) > 0
    assert recogniser.log_records("train") == "train"
    assert "train: 1 of 2 utterances have more tokens than frames" in capsys.readouterr().out


def test_ctc_that_learns_from_nothing_is_refused_in_training_only(recogniser, capsys):
    assert recogniser.loss([1, 2], [3, 3], frames=[1, 2]) == 0
    recogniser.eval()
    recogniser.loss([1, 2], frames=[1])
    recogniser.log_records("dev")
    assert "dev: 1 of 1" in capsys.readouterr().out
    with pytest.raises(RunError, match="All of the last 2 utterances.*-g hop_20ms"):
        recogniser.log_records("train")


def test_ctc_of_the_newer_recipes_is_counted():
    pytest.importorskip("editdistance")
    pytest.importorskip("sentencepiece")
    from s3prl.dataio.encoder.tokenizer import default_phoneme_tokenizer
    from s3prl.task.speech2text_ctc_task import Speech2TextCTCTask

    task = Speech2TextCTCTask(torch.nn.Identity(), default_phoneme_tokenizer())
    task.criterion(torch.zeros(2, 1, 5), torch.tensor([[1, 2, 3]]), torch.tensor([2]), torch.tensor([3]))
    with pytest.raises(RunError, match="time_stride"):
        task.reduction("train", [])


# Messages


@pytest.mark.parametrize("name, expected", [
    ("editdistance", r"\[superb-all\]"), ("librosa", r"\[superb\]"), ("fairseq.data", "speech translation"),
    ("s3prl.downstream.nosuch", "no downstream nosuch"), ("s3prl.downstream.nosuch.expert", "no downstream nosuch"),
    ("s3prl.downstream.emotion.x", "lacks s3prl.downstream.emotion.x, .*clone.$"), ("s3prl.x", "package lacks s3prl.x"),
    ("pyworld", "pyworld, which no extra of ssamba-upstream installs")])
def test_missing_modules_are_explained(monkeypatch, name, expected):
    def run():
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(SystemExit, match=expected):
        runner._hand_over([], run)


def test_a_corpus_that_s3prls_package_lacks_is_named():
    from s3prl.downstream.ctc import data

    with pytest.raises(SystemExit, match="lacks s3prl.downstream.ctc.corpus.common_voice.*libriphone or snips"):
        runner._hand_over([], lambda: data.load_dataset("train", None, {
            "name": "common_voice", "bucketing": False, "batch_size": 1, "train": []}))


def test_configs_bring_their_preset():
    def given(upstream="ssamba_tiny", config="phone_recognition"):
        return types.SimpleNamespace(upstream=upstream, config=config)

    assert runner._preset_of(given()) == "hop_40ms"
    assert runner._preset_of(given(config="speech_separation")) == "hop_20ms"
    assert runner._preset_of(given(config="keyword_spotting")) is None
    assert runner._preset_of(given(upstream="fbank")) is None


# Corpora


class Words:
    """A tokenizer that encodes each word as its length."""

    unk_idx, token_type = 0, "character-slot"

    def encode(self, text):
        return [len(word) for word in text.split()]

    def vocab_to_idx(self, word):
        return 1 if word != "QQ" else 0


def libri(folder, text):
    (folder / "dev" / "1" / "7").mkdir(parents=True)
    for number in range(3):
        (folder / "dev" / "1" / "7" / f"1-7-{number}.flac").touch()
    (folder / "dev" / "1" / "7" / "1-7.trans.txt").write_text(text)
    (folder / "lexicon").write_text("A AH0\nB B IY1\nB B\nC QQ\n")


def test_phones_are_a_words_first_pronunciation_the_longest_first(tmp_path):
    libri(tmp_path, "1-7-0 A\n1-7-1 B A\n1-7-2 B\n")
    dataset = ctc_corpora.LibriPhoneDataset(["dev"], Words(), 2, tmp_path, [tmp_path / "lexicon"])
    assert len(dataset) == 3
    assert [(path.stem, tokens) for path, tokens in dataset[0]] == [("1-7-1", [1, 3, 3]), ("1-7-2", [1, 3])]
    assert dataset[2] == dataset[1] and len(dataset[2]) == 2
    assert ctc_corpora.LibriDataset(["dev"], Words(), 1, tmp_path)[0][1] == [1, 1]


@pytest.mark.parametrize("text, expected", [
    ("1-7-0 A\n1-7-1 Z\n1-7-2 B\n", "words are in none.*Z"), ("1-7-0 A\n1-7-1 C\n1-7-2 B\n", "phones QQ"),
    ("1-7-0 A\n1-7-1 B\n", "1-7-2.*transcript")])
def test_what_librispeech_lacks_is_named(tmp_path, text, expected):
    libri(tmp_path, text)
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        ctc_corpora.LibriPhoneDataset(["dev"], Words(), 2, tmp_path, [tmp_path / "lexicon"])


@pytest.mark.parametrize("samples, batches", [(2000, [4, 4, 2]), (2001, [2] * 5)])
def test_asr_measures_samples_so_that_s3prl_halves_batches(tmp_path, samples, batches):
    pytest.importorskip("pandas")
    from s3prl.downstream.asr.dataset import SequenceDataset
    from s3prl.downstream.asr.dictionary import Dictionary

    folder = tmp_path / "train" / "1" / "7"
    folder.mkdir(parents=True)
    for number in range(10):
        soundfile.write(folder / f"1-7-{number}.flac", torch.zeros(samples if number else 1000).numpy(), 16000)
    (folder / "1-7.trans.txt").write_text("".join(f"1-7-{number} A\n" for number in range(10)))
    dataset = SequenceDataset("train", 4, Dictionary.load("letters"), str(tmp_path), None, train=["train"])
    assert sorted(map(len, dataset.X), reverse=True) == batches
    assert "1-7-0.flac" in dataset.X[-1][-1]


def test_snips_takes_the_speakers_of_a_split(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("Ivy-1", "Amy-1", "Ivy-2"):
        (tmp_path / "train" / f"{name}.wav").touch()
    (tmp_path / "all.iob.snips.txt").write_text("Ivy-1 BOS a EOS\tO O i\nAmy-1 BOS b EOS\tO O i\n")
    dataset = ctc_corpora.SnipsDataset(["train"], Words(), 1, tmp_path, train_speakers=["Ivy"])
    assert [path.stem for path, _ in dataset] == ["Ivy-1"]
    with pytest.raises(FileNotFoundError, match="Bob"):
        ctc_corpora.SnipsDataset(["train"], Words(), 1, tmp_path, train_speakers=["Bob"])


# Other faults


def test_tensors_stay_where_they_are_without_a_gpu(monkeypatch):
    class Expert:
        def forward(self, tensor):
            return tensor.cuda()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    original, tensor = torch.Tensor.cuda, torch.ones(2)
    downstreams.stay_on_cpu(types.SimpleNamespace(Expert=Expert), "Expert", "forward")
    assert Expert().forward(tensor) is tensor
    assert torch.Tensor.cuda is original


def test_sets_are_sampled_alike():
    module = types.SimpleNamespace()
    downstreams.sample_sets(module)
    module.random.seed(0)
    first = module.random.sample({"a", "b", "c"}, 2)
    random.seed(0)
    assert first == random.sample(["a", "b", "c"], 2)


def test_series_give_their_items():
    pandas = pytest.importorskip("pandas")
    from s3prl.dataio.corpus.base import Corpus

    table = pandas.DataFrame({"path": ["x", "y"], "label": [1, 2]})
    points = Corpus.dataframe_to_datapoints(table, lambda point: point["path"])
    assert points == {"x": {"path": "x", "label": 1}, "y": {"path": "y", "label": 2}}


@pytest.fixture
def lengths(tmp_path, monkeypatch):
    """A stand-in for sv_voxceleb1.dataset, with the files next to it and the number of times it measures a corpus."""

    class Dataset:
        def __init__(self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=12):
            cache = Path(module.__file__).parent / ".wav_lengths" / "Voxceleb1_length.pt"
            cache.parent.mkdir(exist_ok=True)
            with pytest.raises(BlockingIOError), open(cache.parents[1] / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not cache.is_file():
                module.measured.append(cache)
                module.torch.save([file_path[0].name], str(cache))
            self.lengths = module.torch.load(str(cache))

    module = types.SimpleNamespace(
        SpeakerVerifi_train=Dataset, __file__="installed/dataset.py", torch=torch, measured=[],
        build=lambda corpus: Dataset({}, ["Voxceleb1"], [tmp_path / corpus], None).lengths)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    downstreams.keep_lengths_by_corpus(module)
    for corpus in ("one", "two"):
        (tmp_path / corpus).mkdir()
        (tmp_path / corpus / "a.wav").touch()
    return module


def test_lengths_are_kept_by_corpus(lengths, tmp_path):
    assert [lengths.build(corpus) for corpus in ("one", "two", "one")] == [["one"], ["two"], ["one"]]
    assert len(lengths.measured) == 2 and all(path.is_relative_to(tmp_path / "hub") for path in lengths.measured)
    assert lengths.__file__ == "installed/dataset.py"


@pytest.mark.parametrize("rest", [0, 10, 200])
def test_lengths_that_cannot_be_read_are_measured_again(lengths, capsys, rest):
    lengths.build("one")
    cache, = lengths.measured
    cache.write_bytes(cache.read_bytes()[:rest])
    assert lengths.build("one") == ["one"] and len(lengths.measured) == 2
    assert f"{cache} cannot be read" in capsys.readouterr().out
    assert lengths.build("one") == ["one"] and len(lengths.measured) == 2


def test_what_s3prl_saves_is_whole_or_not_there(tmp_path, monkeypatch):
    module, path = types.SimpleNamespace(torch=torch), tmp_path / "states-2.ckpt"
    downstreams.write_whole_files(module)
    module.torch.save({"Step": 2}, str(path))

    def killed(content, place):
        Path(place).write_text("hal")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        module.torch.save({"Step": 4}, str(path))
    assert module.torch.load(path) == {"Step": 2} and list(tmp_path.iterdir()) == [path]
    assert module.torch.nn is torch.nn
