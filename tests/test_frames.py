"""FrameEncoder and its options; the frames themselves are tested with s3prl's UpstreamExpert, in tests/plugin."""

import pytest
import torch

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions
from ssamba_upstream.plugin.expert import UpstreamExpert


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("frames") / "network.safetensors"
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, drop_path_rate=0.5)), path)
    return path


@pytest.mark.parametrize("options, width", [({}, 12 * 32), ({"frequency_pooling": "mean", "time_stride": 5}, 32)])
def test_the_upstream_is_the_encoder(checkpoint, options, width):
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(**options))
    wavs = [torch.randn(9000), torch.randn(401)]
    output, theirs = encoder(wavs), UpstreamExpert(checkpoint, **options)(wavs)
    assert encoder.width == width and len(output.hidden_states) == 3
    for ours, state in zip(output.hidden_states, theirs["hidden_states"], strict=True):
        assert ours.shape[2] == width and torch.equal(ours, state)
    assert torch.equal(output.last_hidden_state, theirs["last_hidden_state"])


def test_options_come_from_a_file_or_by_name(tmp_path):
    assert UpstreamOptions.read() == UpstreamOptions()
    assert UpstreamOptions.read("default", window_secs=None) == UpstreamOptions()
    assert UpstreamOptions.read("hop_20ms", window_secs=1.0) == UpstreamOptions(window_secs=1.0, time_stride=2)
    (tmp_path / "mine.yaml").write_text("- time_stride\n")
    with pytest.raises(ValueError, match="must hold options, one 'name: value' a line; it holds list"):
        UpstreamOptions.read(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match="none of the package's upstream configs: default, hop_20ms, published_10s"):
        UpstreamOptions.read("hop_20")
