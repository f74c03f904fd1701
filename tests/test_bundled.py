"""The checkpoints included in the package."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForAudioClassification

from helpers.paths import CHECKOUT, SHARED_AUDIO
from ssamba_upstream.checkpoint import content_hash, load_model
from ssamba_upstream.cli import main
from ssamba_upstream.downloads import BUNDLED, CheckpointError, find_checkpoint, find_published
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions
from ssamba_upstream.network.modeling import SsambaModel
from ssamba_upstream.network.pretraining import SsambaForPreTraining
from ssamba_upstream.probing.features import time_averages

STARTER = "ssamba_starter"
TAUGHT = ["Google's speech embedding", "Apache-2.0", "Asterisk", "CC BY 3.0", "espeak-ng", "flite"]


def test_a_path_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(STARTER) == BUNDLED[STARTER]
    assert content_hash(STARTER) == content_hash(BUNDLED[STARTER])
    (tmp_path / STARTER).mkdir()
    assert find_checkpoint(STARTER) == (tmp_path / STARTER).relative_to(tmp_path)
    with pytest.raises(CheckpointError, match="ssamba_starter is not a checkpoint"):
        load_model(STARTER)


@pytest.mark.parametrize("name, model_class", [
    (STARTER, SsambaForPreTraining), ("ssamba_distilled", SsambaModel), ("ssamba_stream", SsambaModel),
])
def test_is_small_in_half_precision_and_computes_in_single(name, model_class):
    weights = BUNDLED[name] / "model.safetensors"
    assert weights.stat().st_size <= 16 * 2**20
    with safe_open(weights, framework="pt") as stored:
        assert {stored.get_slice(key).get_dtype() for key in stored.keys()} == {"F16"}
    model = load_model(name, model_class=None)
    assert type(model) is model_class
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_classifier_on_it_is_in_single_precision_if_asked_for(name):
    """The classifier is trained as in docs/transformers.md; transformers 5 loads it in its stored dtype by default."""
    model = AutoModelForAudioClassification.from_pretrained(find_checkpoint(name), dtype=torch.float32, num_labels=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} == {model.config.dtype}
    expected = load_model(name).state_dict()
    assert all(torch.equal(model.ssamba.state_dict()[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name, others", [
    (STARTER, ["no substitute for the published"]),
    ("ssamba_distilled", TAUGHT), ("ssamba_stream", TAUGHT),
])
def test_its_card_says_what_it_is(name, others):
    card = ModelCard.load(BUNDLED[name] / "README.md")
    assert card.data.license == "cc-by-sa-4.0"
    for said in ("Free Spoken Digit Dataset", "ESC-10", *others):
        assert said in " ".join(card.text.split())
    listed = CHECKOUT / "setup.cfg"
    assert re.search(r"^ssamba_upstream = checkpoints/\*/\*$", listed.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("options, hop", [({}, None), ({"config": "hop_20ms"}, 320), ({"config": "hop_40ms"}, 640)])
def test_every_preset_s_frames(name, options, hop):
    encoder = FrameEncoder.from_checkpoint(name, UpstreamOptions.read(**options)).eval()
    with torch.no_grad():
        states = encoder([torch.randn(40000)]).hidden_states
    assert len(states) == encoder.model.config.num_hidden_layers + 1
    assert hop in (None, encoder.windowing.hop)
    assert states[0].shape[1] == -(-40000 // encoder.windowing.hop)


@pytest.mark.parametrize("name", ["ssamba_tiny", "ssamba_tiny_400", "ssamba_base_250"])
def test_never_stands_in_for_a_published_checkpoint(name, monkeypatch):
    monkeypatch.delenv("SSAMBA_CHECKPOINTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"no checkpoint {name}"):
        find_published(name)


def test_half_precision_is_refused_where_weights_are_too_large(tmp_path, capsys):
    model = load_model(STARTER)
    with torch.no_grad():
        model.cls_token.fill_(1e5)
    model.save_pretrained(tmp_path / "large")
    convert = ["convert", str(tmp_path / "large"), "--dtype", "float16", "--out", str(tmp_path / "half")]
    assert main(convert) == 1
    assert "not finite in float16" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_its_layers_tell_spoken_digits_apart_better_than_random_ones(name):
    """Nearest centroids classify an unseen speaker's digits far better with trained weights than with random ones."""
    recordings = SHARED_AUDIO / "fsdd" / "recordings"
    if not recordings.is_dir():
        pytest.skip("the Free Spoken Digit Dataset is not here (../shared/audio/fsdd)")
    trained = load_model(name)
    torch.manual_seed(0)
    untrained = SsambaModel(trained.config).eval()
    files = [recordings / f"{digit}_{speaker}_{take}.wav"
             for digit in range(10) for speaker in ("george", "jackson", "lucas", "theo") for take in range(5)]
    digits = torch.tensor([int(file.name[0]) for file in files])
    heldout = torch.tensor([file.stem.split("_")[1] == "theo" for file in files])
    accuracies = []
    for model in (trained, untrained):
        features = time_averages(model, files, deviations=True)
        features = (features - features.mean(1, keepdim=True)) / (features.std(1, keepdim=True) + 1e-6)
        centroids = torch.stack([features[:, ~heldout & (digits == digit)].mean(1) for digit in range(10)], dim=1)
        found = torch.cdist(features[:, heldout], centroids).argmin(2)
        accuracies.append((found == digits[heldout]).float().mean(1).max().item())
    assert accuracies[0] > accuracies[1] + 0.1
