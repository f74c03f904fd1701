"""The checks of s3prl's own test/test_upstream.py, for every entry with a local checkpoint."""

import pytest
import torch

import ssamba_upstream
from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import load_config, save_model
from ssamba_upstream.downloads import BUNDLED
from ssamba_upstream.network.configuration import HIDDEN_SIZES
from ssamba_upstream.plugin.hubconf import ENTRIES

LAYERS = 2
SHORTEST = 0.05  # seconds


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with a file for each published name, and a folder as the hub would provide it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(1)
    for size in HIDDEN_SIZES:
        model = SsambaModel(SsambaConfig.from_size(size, num_hidden_layers=LAYERS))
        for masked in (250, 300, 400):
            save_model(model, folder / f"ssamba_{size}_{masked}.safetensors")
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=LAYERS)), folder / "own")
    return folder


@pytest.fixture(params=sorted(ENTRIES))
def upstream(request, checkpoints, monkeypatch):
    """Create an entry as s3prl does, without downloads."""
    ssamba_upstream.register()
    from s3prl.nn import S3PRLUpstream

    monkeypatch.setenv("SSAMBA_CHECKPOINTS", str(checkpoints))
    for download in ("download_url", "download_repository"):
        monkeypatch.setattr(f"ssamba_upstream.downloads.{download}", lambda name, refresh: checkpoints / "own")
    paths = {"ssamba_local": checkpoints / "own", "ssamba_hub": "user/own", "ssamba_url": "https://somewhere/own.ckpt"}
    path = paths.get(request.param)
    made = S3PRLUpstream(request.param, path_or_url=path and str(path))
    made.upstream_name = request.param
    return made


def states_of(upstream, seed=0, **lengths):
    from s3prl.util.pseudo_data import get_pseudo_wavs

    states, _ = upstream(*get_pseudo_wavs(seed=seed, padded=True, **lengths))
    return states


@pytest.mark.slow
@torch.no_grad()
def test_hidden_states_are_deterministic_and_as_many_in_every_mode(upstream):
    upstream.eval()
    states = states_of(upstream)
    for again, state in zip(states_of(upstream), states):
        assert torch.equal(again, state)
    layers = 1 + (load_config(name).num_hidden_layers if (name := upstream.upstream_name) in BUNDLED else LAYERS)
    assert len(states) == len(states_of(upstream, seed=1)) == layers
    upstream.train()
    assert {len(states_of(upstream, seed=seed)) for seed in (1, 2)} == {layers}


@pytest.mark.slow
def test_forward_and_backward_from_the_shortest_input(upstream):
    with torch.autograd.set_detect_anomaly(True):
        for utterances, longest in ((1, SHORTEST), (2, SHORTEST), (3, 1)):
            upstream.zero_grad()
            states = states_of(upstream, min_secs=SHORTEST, max_secs=longest, n=utterances)
            sum(state.sum() for state in states).backward()
            gradients = [parameter.grad for parameter in upstream.parameters() if parameter.requires_grad]
            assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
            assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layers", [None, [0, 2]])
@pytest.mark.parametrize("upstream", ["ssamba_local"], indirect=True)
def test_featurizer_and_properties(upstream, layers, normalize):
    from s3prl.nn import Featurizer
    from s3prl.util.pseudo_data import get_pseudo_wavs

    featurizer = Featurizer(upstream, layer_selections=layers, normalize=normalize)
    states, lengths = featurizer(*upstream(*get_pseudo_wavs(padded=True)))
    assert isinstance(states, torch.FloatTensor) and isinstance(lengths, torch.LongTensor)
    assert states.shape[2] == featurizer.output_size and states.shape[1] == lengths.max()
    for values in (upstream.hidden_sizes, upstream.downsample_rates):
        assert isinstance(values, (tuple, list)) and isinstance(values[0], int)
    assert isinstance(featurizer.output_size, int) and isinstance(featurizer.downsample_rate, int)
