"""The encoder in other benchmarks (``examples``), tested with their own checkers if these are installed."""

import importlib
import sys
import types

import pytest
import torch

from helpers.paths import CHECKOUT
from ssamba_upstream import torchaudio_extension  # noqa: F401 (torchaudio can be imported from here on)

WAVEFORMS = 0.1 * torch.randn(2, 24000, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports an example anew and returns its module."""
    monkeypatch.syspath_prepend(CHECKOUT / "examples")

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_x_ares_has_its_encoder(load):
    example = load("xares_ssamba")
    assert [name for name in vars(example) if name.endswith("Encoder")] == ["SsambaEncoder"]  # it takes the only one
    encoder = example.SsambaEncoder()
    frames = encoder(WAVEFORMS)
    assert frames.shape == (2, 38, encoder.output_dim) and not frames.requires_grad
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16000, 40)


def test_x_ares_s_checker(load):
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="pip install xares")
    assert checker.check_audio_encoder(load("xares_ssamba").SsambaEncoder())


def test_marble(load, monkeypatch):
    """pip cannot install MARBLE. A stand-in replaces its base class, an ``nn.Module`` with an abstract ``forward``."""
    module = types.ModuleType("marble.core.base_encoder")
    module.BaseEncoder = torch.nn.Module
    for name in ("marble", "marble.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "marble.core.base_encoder", module)
    encoder = load("marble_ssamba").SsambaEncoder().train()
    states = encoder(WAVEFORMS[:, None])
    assert len(states) == encoder.encoder.model.config.num_hidden_layers + 1
    assert {state.shape for state in states} == {(2, 38, encoder.encoder.width)}
    assert all(torch.equal(one, other) for one, other in zip(states, encoder(WAVEFORMS), strict=True))


@pytest.mark.slow
def test_avex(load):
    avex = pytest.importorskip("avex", reason="pip install avex")
    load("avex_ssamba")
    model = avex.load_model("ssamba_starter", device="cpu")
    model.register_hooks_for_layers(["layers.0", "last_layer"])
    with torch.no_grad():
        first, last = model.extract_embeddings(WAVEFORMS)
        states = model.encoder(list(WAVEFORMS)).hidden_states
    assert torch.equal(first, states[0]) and torch.equal(last, states[-1])
    assert model.extract_embeddings(WAVEFORMS, aggregation="mean").shape == (2, 2 * model.encoder.width)


@pytest.mark.slow
def test_hear_s_validator(monkeypatch):
    """The validator imports TensorFlow to distinguish TensorFlow's models from torch's."""
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(Module=type("Module", (), {})))
    validate = pytest.importorskip("hearvalidator.validate", reason="pip install --no-deps hearvalidator")
    validate.ValidateModel("ssamba_upstream.hear", "ssamba_starter", device="cpu")()
