"""Classifiers against golden vectors and explicit definitions, and by transformers' conventions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    pipeline,
)

from helpers.paths import CHECKOUT
from ssamba_upstream import (
    SsambaConfig,
    SsambaFeatureExtractor,
    SsambaForAudioClassification,
    SsambaForAudioFrameClassification,
    SsambaModel,
)
from ssamba_upstream.checkpoint import load_model, new_classifier, save_model, write_classifier
from ssamba_upstream.network.classification import columns_of_seconds

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CLASSES = ["dog", "rain", "sea waves"]
CLIPS, SECONDS = SsambaForAudioClassification, SsambaForAudioFrameClassification


def classifier(model_class=CLIPS, frames=128, **overrides):
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 128, **overrides}
    return new_classifier(None, model_class, CLASSES, frames, **fields)


@pytest.mark.parametrize("pooling", ["avgtok", "cls"])
@pytest.mark.parametrize("prefix, block_order", [("bi", "paired"), ("uni", "sequential")])
def test_golden_features_and_their_logits(golden, official_checkpoint, prefix, block_order, pooling):
    model = new_classifier(official_checkpoint, CLIPS, CLASSES, 1024, block_order=block_order, pooling=pooling)
    norm, layer = model.head
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(golden("input_fbank")["fbank"][:1]).logits
    expected = golden("reduced_encoder")[f"{prefix}_{pooling}"]
    torch.testing.assert_close(seen[0], expected, **CLOSE)
    centred = expected - expected.mean(dim=1, keepdim=True)
    normed = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    normed = normed * norm.weight + norm.bias
    torch.testing.assert_close(logits, normed @ layer.weight.T + layer.bias, rtol=1e-3, atol=1e-4)


def test_the_final_norm_once():
    model, fbank = classifier(), torch.randn(2, 64, 128)
    tokens = model.ssamba(fbank).last_hidden_state
    torch.testing.assert_close(model(fbank).logits, model.classifier(model.classifier_norm(tokens[:, 1:].mean(dim=1))))
    model.config.final_norm_twice = True
    twice = model.ssamba.norm_f(tokens)
    torch.testing.assert_close(model(fbank).logits, model.classifier(model.classifier_norm(twice[:, 1:].mean(dim=1))))


@pytest.mark.parametrize("model_class, name", [(CLIPS, "classifier"), (SECONDS, "frame_classifier")])
def test_checkpoints_whose_norm_was_a_part_of_the_linear_layer(tmp_path, model_class, name):
    model, fbank = classifier(model_class), torch.randn(2, 128, 128)
    norm, layer = model.head
    assert (norm, layer) == (getattr(model, f"{name}_norm"), getattr(model, name))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    write_classifier(model, SsambaFeatureExtractor(max_length=128), tmp_path / "former")
    state = {stored.replace(f"{name}_norm", f"{name}.norm"): tensor for stored, tensor in model.state_dict().items()}
    assert {f"{name}.norm.weight", f"{name}.weight"} <= state.keys()
    save_file(state, tmp_path / "former" / "model.safetensors", metadata={"format": "pt"})
    torch.save({"ssamba_config": model.config.to_dict(), "state_dict": state}, tmp_path / "former.ckpt")
    loaded = model_class.from_pretrained(tmp_path / "former").eval()
    loaded.save_pretrained(tmp_path / "again")
    resumed = torch.optim.swa_utils.AveragedModel(classifier(model_class))  # as the average in a training state
    resumed.load_state_dict({"n_averaged": torch.tensor(1), **{f"module.{key}": state[key] for key in state}})
    found = [loaded, resumed.module, model_class.from_pretrained(tmp_path / "again").eval()]
    found += [load_model(tmp_path / path, model_class=None) for path in ("former", "former.ckpt", "again")]
    with torch.no_grad():
        for other in found:
            assert other.state_dict().keys() == model.state_dict().keys()
            assert torch.equal(other(fbank).logits, model(fbank).logits)
    assert torch.equal(load_model(tmp_path / "former").pos_embed, model.ssamba.pos_embed)


def plain_single(logits, labels):
    return -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels)]).mean()


def plain_soft(logits, labels):
    return -(labels * logits.log_softmax(1)).sum(1).mean()


def plain_multi(logits, labels):
    found = logits.sigmoid()
    return -(labels * found.log() + (1 - labels) * (1 - found).log()).mean()


MIXED = [[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("problem_type, labels, plain", [
    ("single_label_classification", [2, 0], plain_single), (None, [2, 0], plain_single),
    ("single_label_classification", MIXED, plain_soft),
    ("multi_label_classification", MIXED, plain_multi), (None, [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], plain_multi),
])
def test_losses(problem_type, labels, plain):
    model, labels = classifier(problem_type=problem_type).double(), torch.tensor(labels)
    output = model(torch.randn(2, 64, 128, dtype=torch.float64), labels=labels)
    torch.testing.assert_close(output.loss, plain(output.logits, labels))
    assert output.loss.dtype == torch.float64 and model.config.problem_type == problem_type
    if labels.is_floating_point():
        assert model(torch.randn(2, 64, 128, dtype=torch.float64), labels=labels.double()).loss.isfinite()
    else:
        assert model(torch.randn(2, 64, 128, dtype=torch.float64), labels=labels.int()).loss.isfinite()


@pytest.mark.parametrize("model_class", [CLIPS, SECONDS])
def test_losses_of_half_precision_logits_are_float32(model_class):
    labels = torch.zeros((2,) if model_class is CLIPS else (2, 1), dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        output = classifier(model_class)(torch.randn(2, 128, 128), labels=labels)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32


@pytest.mark.parametrize("problem_type, labels, message", [
    (None, torch.tensor([0, 3]), "from 0 to 2; got 0 to 3"),
    (None, torch.tensor([-100, 0]), "from 0 to 2; got -100 to 0"),
    (None, torch.tensor([0, 1, 2]), r"class indices, int64 and \(2,\); got torch.int64 and \(3,\)"),
    (None, torch.tensor([[0, 1], [1, 0]]), r"class indices, int64 and \(2,\)"),
    (None, torch.tensor([True, False]), "class indices, int64.*got torch.bool"),
    (None, torch.rand(2, 4), r"floating point and \(batch, classes\), here \(2, 3\); got torch.float32 and \(2, 4\)"),
    ("single_label_classification", torch.rand(2), r"here \(2, 3\); got torch.float32 and \(2,\)"),
    ("single_label_classification", torch.tensor([[1.0, 1, 0], [0, 0, 1]]), "must sum to 1"),
    ("single_label_classification", torch.tensor([[1.5, -0.5, 0], [0, 0, 1]]), "from 0 to 1"),
    ("multi_label_classification", torch.tensor([0, 1]), "floating point.*got torch.int64"),
    ("multi_label_classification", torch.full((2, 3), float("nan")), "from 0 to 1"),
])
def test_labels_that_cannot_be_learned(problem_type, labels, message):
    with pytest.raises(ValueError, match=message):
        classifier(problem_type=problem_type)(torch.randn(2, 64, 128), labels=labels)


@pytest.mark.parametrize("labels, message", [
    (torch.tensor([[0, 3]]), "from 0 to 2, or -100; got 0 to 3"),
    (torch.tensor([[0, 1, 2]]), r"int64 and \(1, 2\); got torch.int64 and \(1, 3\)"),
    (torch.rand(1, 2), "int64.*got torch.float32"),
])
def test_labels_of_seconds_that_cannot_be_learned(labels, message):
    with pytest.raises(ValueError, match=message):
        classifier(SECONDS, 250)(torch.randn(1, 250, 128), labels=labels)


def test_inputs_that_cannot_be_classified():
    for model_class in (CLIPS, SECONDS):
        with pytest.raises(ValueError, match="must be a tensor.*got list"):
            classifier(model_class)([torch.randn(128, 128)])
        with pytest.raises(ValueError, match=r"\(batch, frames, 128\); got \(128, 128\)"):
            classifier(model_class)(torch.randn(128, 128))
    with pytest.raises(ValueError, match="99 frames; a second needs 100"):
        classifier(SECONDS)(torch.randn(1, 99, 128))
    with pytest.raises(ValueError, match="second 0 contains no patch's centre. Patches of 256 frames"):
        classifier(SECONDS, pretraining_frames=512, patch_size=[16, 256], time_stride=100)(torch.randn(1, 300, 128))
    with pytest.raises(ValueError, match="each second has exactly one class"):
        classifier(SECONDS, problem_type="multi_label_classification")


@pytest.mark.parametrize("fields, message", [
    ({"pooling": "max"}, "pooling must be one of avgtok, cls; got 'max'"),
    ({"problem_type": "regression"}, "problem_type must be one of None, single_label_classification"),
])
def test_configurations_that_no_classifier_can_be_built_from(fields, message):
    with pytest.raises(ValueError, match=message):
        SsambaConfig(**fields)


@pytest.mark.parametrize("block_order", ["sequential", "paired"])
@pytest.mark.parametrize("pooling, model_class", [("avgtok", CLIPS), ("cls", CLIPS), ("avgtok", SECONDS)])
def test_every_parameter_learns(block_order, pooling, model_class):
    model = classifier(model_class, block_order=block_order, pooling=pooling).train()
    labels = torch.tensor([0, 2]) if model_class is CLIPS else torch.tensor([[0], [2]])
    model(torch.randn(2, 128, 128), labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    without = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
    # The last scan that starts at the class token has no state there, so its decays do not affect the class token.
    # In pairs, these scans are block 0's forward scan and block 1's backward scan, which is reversed.
    remembering = {
        "sequential": {"ssamba.layers.1.mixer.A_log"},
        "paired": {"ssamba.layers.0.mixer.A_log", "ssamba.layers.1.mixer.A_b_log"},
    }
    assert without == (remembering[block_order] if pooling == "cls" else set())


@pytest.mark.parametrize("problem_type, probability", [
    ("single_label_classification", lambda logits: logits.softmax(-1)),
    ("multi_label_classification", torch.sigmoid),
])
def test_windows_of_longer_recordings(problem_type, probability):
    model = classifier(problem_type=problem_type).double()
    fbank, lengths = torch.randn(2, 18 * 64, 128, dtype=torch.float64), torch.full((2, 18), 5)
    lengths[0, 17], lengths[1, 1:] = 2, 0
    at_once = []
    hook = model.ssamba.register_forward_pre_hook(lambda module, inputs: at_once.append(len(inputs[0])))
    output = model(fbank, window_lengths=lengths)
    hook.remove()
    assert at_once == [16, 3]
    windows = torch.stack([probability(model(window).logits) for window in fbank.split(64, dim=1)], dim=1)
    expected = (lengths[..., None] * windows).sum(dim=1) / lengths.sum(dim=1, keepdim=True)
    torch.testing.assert_close(probability(output.logits), expected)
    assert output.loss is None and output.hidden_states is None


def test_windows_that_cannot_be_classified():
    model, fbank = classifier(), torch.randn(2, 128, 128)
    for lengths in (torch.ones(2), torch.ones(1, 2), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"window_lengths must be \(batch, windows\).*got .*\(2, 128, 128\)"):
            model(fbank, window_lengths=lengths)
    with pytest.raises(ValueError, match="hidden states are returned for clips"):
        model(fbank, window_lengths=torch.ones(2, 2), output_hidden_states=True)


def slow_seconds(tokens, config, frames):
    """Average the patches of each second, found patch by patch from their centres."""
    rows, columns = config.num_patch_rows, config.columns(frames)
    seconds = []
    for second in range(frames // 100):
        members = [
            tokens[:, 1 + row * columns + column] for row in range(rows) for column in range(columns)
            if 100 * second <= column * config.time_stride + 8 < 100 * (second + 1)
        ]
        seconds.append(sum(members) / len(members))
    return torch.stack(seconds, dim=1)


@pytest.mark.parametrize("frequency_stride, time_stride, frames", [
    (16, 16, 300), (10, 10, 350), (16, 7, 199), (10, 1, 100), (16, 13, 411), (8, 16, 100),
])
def test_seconds_by_their_definition(frequency_stride, time_stride, frames):
    fields = {"frequency_stride": frequency_stride, "time_stride": time_stride, "final_norm_twice": True}
    model, fbank = classifier(SECONDS, frames, **fields).double(), torch.randn(2, frames, 128, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, frames // 100))
    output = model(fbank, labels=labels)
    tokens = model.ssamba.norm_f(model.ssamba(fbank).last_hidden_state)
    expected = model.frame_classifier(model.frame_classifier_norm(slow_seconds(tokens, model.config, frames)))
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.loss, plain_single(expected.flatten(0, 1), labels.flatten()))


def test_seconds_without_a_label_are_skipped():
    model, fbank = classifier(SECONDS, 300), torch.randn(1, 300, 128)
    labels = torch.tensor([[-100, 1, -100]])
    output = model(fbank, labels=labels)
    torch.testing.assert_close(output.loss, -output.logits[0, 1].log_softmax(0)[1])
    torch.testing.assert_close(model(fbank, labels, num_items_in_batch=4).loss, output.loss / 4)
    unlabelled = model(fbank, labels=torch.full((1, 3), -100)).loss
    unlabelled.backward()
    assert unlabelled == 0 and not any(parameter.grad.any() for parameter in model.parameters())


def test_a_second_hears_its_own_time_most():
    """A second's sound changes its own logits most. Averages over runs of frequency-major tokens would fail here."""
    model, fbank = classifier(SECONDS, 400, time_stride=10), torch.randn(1, 400, 128)
    for second in range(4):
        changed = fbank.clone()
        changed[:, second * 100 : (second + 1) * 100] = torch.randn(100, 128)
        moved = (model(changed).logits - model(fbank).logits).abs().sum(dim=2)[0]
        assert moved.argmax() == second


def test_columns_of_a_minute():
    counts = columns_of_seconds(SsambaConfig(time_stride=10), 6000)
    assert len(counts) == 60 and counts[0] == 10 and set(counts) == {10, 9}
    assert sum(counts) == SsambaConfig(time_stride=10).columns(6000)


@pytest.mark.parametrize("model_class", [CLIPS, SECONDS])
def test_outputs_by_convention(model_class):
    model, fbank = classifier(model_class), torch.randn(1, 128, 128)
    assert model(fbank).loss is None and model(fbank).hidden_states is None
    logits, hidden_states = model(fbank, output_hidden_states=True, return_dict=False)
    assert logits.shape == ((1, 3) if model_class is CLIPS else (1, 1, 3))
    assert len(hidden_states) == 3 and hidden_states[0].shape == (1, 65, 32)


# New classifiers


def linear_in_time(grid, columns):
    """Interpolate (E, rows, columns) along the last dimension with numpy, between the centres of learned columns."""
    learned = grid.shape[2]
    places = (np.arange(columns) + 0.5) * learned / columns - 0.5
    return np.stack([[np.interp(places, np.arange(learned), row) for row in channel] for channel in grid])


def test_longer_clips_stretch_the_learned_positions_once(official_checkpoint):
    model = new_classifier(official_checkpoint, SECONDS, CLASSES, 6000, frequency_stride=10, time_stride=10)
    learned = load_model(official_checkpoint).pos_embed.detach()
    assert model.config.pretraining_frames == 6000 and model.ssamba.pos_embed.shape == (1, 1 + 8 * 375, 32)
    assert torch.equal(model.ssamba.pos_embed[:, :1], learned[:, :1])
    expected = linear_in_time(learned[0, 1:].T.unflatten(1, (8, 64)).double().numpy(), 375)
    found = model.ssamba.pos_embed.detach()[0, 1:].T.unflatten(1, (8, 375))
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
    with torch.no_grad():
        assert model(torch.randn(1, 6000, 128)).logits.shape == (1, 60, 3)


def test_the_stretched_grid_is_of_whole_patches(official_checkpoint):
    assert new_classifier(official_checkpoint, CLIPS, CLASSES, 1025).config.position_grid == (8, 65)
    assert classifier(frames=129).config.pretraining_frames == 144


@pytest.mark.parametrize("frames, fields", [(1024, {}), (100, {}), (2000, {"positions": "published"})])
def test_other_clips_need_nothing(official_checkpoint, frames, fields):
    model = new_classifier(official_checkpoint, CLIPS, CLASSES, frames, time_stride=10, **fields)
    assert torch.equal(model.ssamba.pos_embed, load_model(official_checkpoint).pos_embed)
    with torch.no_grad():
        assert model(torch.randn(1, frames, 128)).logits.isfinite().all()


def test_a_new_head_on_a_checkpoint_s_encoder(tmp_path, official_checkpoint):
    model = new_classifier(official_checkpoint, CLIPS, CLASSES, 1024, drop_path_rate=0.2, pooling="cls",
                           problem_type="multi_label_classification")
    assert model.config.id2label == {0: "dog", 1: "rain", 2: "sea waves"} and model.config.label2id["rain"] == 1
    assert model.ssamba.layers[-1].drop_path.probability == pytest.approx(0.2) and not model.training
    for name, tensor in load_model(official_checkpoint).state_dict().items():
        assert torch.equal(model.ssamba.state_dict()[name], tensor), name
    bound = 32**-0.5
    assert bound / 2 < model.classifier.weight.abs().max() <= bound
    save_model(model, tmp_path / "fine-tuned")
    again = new_classifier(tmp_path / "fine-tuned", SECONDS, ["one", "two"], 1024)
    assert again.config.id2label == {0: "one", 1: "two"} and again.config.pooling == "avgtok"
    assert again.config.problem_type is None and again.num_labels == 2
    assert torch.equal(again.ssamba.pos_embed, model.ssamba.pos_embed)


def test_random_weights_of_a_published_size():
    model = new_classifier(None, CLIPS, CLASSES, 100, size="small", num_hidden_layers=2)
    assert model.config.size == "small" and model.config.final_norm_twice is False


@pytest.mark.parametrize("labels", [[], ["dog", "dog"]])
def test_labels_are_named_once(labels):
    with pytest.raises(ValueError, match="distinct class names, at least one"):
        new_classifier(None, CLIPS, labels, 1024)


# Folders, by transformers' conventions.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "best"
    model = classifier(frames=200, frequency_stride=10, time_stride=10)
    write_classifier(model, SsambaFeatureExtractor(max_length=200, mean=-6.6, std=5.4), folder)
    return folder


def test_a_folder_is_whole(folder):
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "ssamba.py"}
    assert {entry.name for entry in folder.iterdir()} == names
    assert [entry.name for entry in folder.parent.iterdir()] == ["best"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["SsambaForAudioClassification"]
    assert config["auto_map"]["AutoModelForAudioClassification"] == "ssamba.SsambaForAudioClassification"


@pytest.mark.parametrize("model_class, auto_class", [
    (CLIPS, AutoModelForAudioClassification), (SECONDS, AutoModelForAudioFrameClassification),
])
def test_auto_classes_and_round_trips(tmp_path, model_class, auto_class):
    model, fbank = classifier(model_class, block_order="paired"), torch.randn(1, 128, 128)
    write_classifier(model, SsambaFeatureExtractor(), tmp_path / "saved")
    loaded = auto_class.from_pretrained(tmp_path / "saved")
    loaded.save_pretrained(tmp_path / "again")
    for found in (loaded, model_class.from_pretrained(tmp_path / "again"), load_model(tmp_path / "again",
                                                                                     model_class=None)):
        assert type(found) is model_class and found.config.id2label == dict(enumerate(CLASSES))
        torch.testing.assert_close(found(fbank).logits, model(fbank).logits, rtol=0, atol=0)
    # A folder written without the code must not refer to it.
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    write_classifier(loaded, SsambaFeatureExtractor(), tmp_path / "third")
    assert str(tmp_path) not in (tmp_path / "third" / "config.json").read_text()


def test_an_encoder_s_folder_gets_a_new_head(tmp_path):
    encoder = SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, pretraining_frames=128))
    encoder.save_pretrained(tmp_path)
    model = CLIPS.from_pretrained(tmp_path, num_labels=5)
    assert torch.equal(model.ssamba.pos_embed, encoder.pos_embed)
    assert model.classifier.weight.std() > 0.01 and (model.classifier_norm.weight == 1).all()


def test_a_run_s_folder_is_written_over_file_by_file(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "best")
    (tmp_path / "best" / "run.json").write_text("{}")
    model = classifier(frames=200, frequency_stride=10, time_stride=10)
    write_classifier(model, SsambaFeatureExtractor(max_length=200), tmp_path / "best")
    assert torch.equal(load_model(tmp_path / "best").pos_embed, model.ssamba.pos_embed)
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "best").std == 4.5689974
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "run.json", "ssamba.py"}
    assert {entry.name for entry in (tmp_path / "best").iterdir()} == names
    before = {entry: entry.read_bytes() for entry in (tmp_path / "best").iterdir()}

    def full_disk(path, content, **options):
        path.open("w").write(content[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_classifier(classifier(), SsambaFeatureExtractor(), tmp_path / "best")
    assert {entry: entry.read_bytes() for entry in (tmp_path / "best").iterdir()} == before


def test_pipeline(folder, tmp_path):
    classify = pipeline("audio-classification", model=str(folder))
    tone = (0.3 * np.sin(np.arange(24000) * 0.2)).astype("float32")
    fbank = SsambaFeatureExtractor(max_length=200, mean=-6.6, std=5.4)(tone, return_tensors="pt").input_values
    with torch.no_grad():
        expected = load_model(folder, model_class=CLIPS)(fbank).logits.softmax(1)[0]
    for audio in (tone, {"array": tone, "sampling_rate": 16000}, torch.from_numpy(tone)):
        found = {answer["label"]: answer["score"] for answer in classify(audio)}
        assert found == pytest.approx(dict(zip(CLASSES, expected.tolist())), abs=1e-5)
    if shutil.which("ffmpeg"):  # transformers reads files with it
        soundfile.write(tmp_path / "tone.wav", tone, 16000, "FLOAT")
        found = {answer["label"]: answer["score"] for answer in classify(str(tmp_path / "tone.wav"))}
        assert found == pytest.approx(dict(zip(CLASSES, expected.tolist())), abs=1e-3)


# Transformers imports torchaudio, which may need this package's repair. It is loaded from its file, so that the package
# itself is not imported.
ANOTHER_PROGRAM = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("ground_floor", sys.argv[1])
ground_floor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ground_floor)
ground_floor.ensure_torchaudio_imports()

import numpy as np
from transformers import AutoModelForAudioClassification, pipeline

assert "ssamba_upstream" not in sys.modules
folder, out, first = sys.argv[2:]
if first == "pipeline":
    classify = pipeline("audio-classification", model=folder, trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
if first == "model":
    classify = pipeline("audio-classification", model=folder, trust_remote_code=True)
answers = classify(np.zeros(16000, dtype="float32"))
model.save_pretrained(out)
classify.feature_extractor.save_pretrained(out)
print(json.dumps([type(model).__module__, type(classify.feature_extractor).__name__, answers]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["model", "pipeline"])
def test_trust_remote_code_without_the_import(folder, tmp_path, first):
    ground_floor = CHECKOUT / "ssamba_upstream" / "torchaudio_extension.py"
    # A separate module cache leaves the user's alone; the path makes the repository importable without an installation.
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(CHECKOUT)}
    program = [sys.executable, "-c", ANOTHER_PROGRAM, str(ground_floor), str(folder), str(tmp_path / "out"), first]
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module, extractor, answers = json.loads(done.stdout.splitlines()[-1])
    assert (module, extractor) == ("ssamba_upstream.network.classification", "SsambaFeatureExtractor")
    silence = pipeline("audio-classification", model=str(folder))(np.zeros(16000, dtype="float32"))
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in silence]
    # Installed code is not copied.
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == names
