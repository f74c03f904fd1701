"""FrameEncoder and its options; the frames themselves are tested with s3prl's UpstreamExpert, in tests/plugin."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.checkpoint import load_model, save_model
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions, restrided
from ssamba_upstream.plugin.expert import UpstreamExpert

aten = torch.ops.aten

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


@pytest.mark.parametrize("patch_size, strides, frames, width", [
    ([16, 16], (10, 10), 2, 12 * 8), ([16, 8], (10, 8), 3, 12 * 8), ([64, 4], (64, 4), 5, 2 * 8),
    ([128, 2], (128, 2), 10, 8),
])
def test_only_the_published_patches_overlap_by_default(tmp_path, patch_size, strides, frames, width):
    network = SsambaModel(SsambaConfig(hidden_size=8, num_hidden_layers=1, patch_size=patch_size))
    save_model(network, tmp_path / "network")
    encoder = FrameEncoder.from_checkpoint(tmp_path / "network")
    assert (encoder.model.config.frequency_stride, encoder.model.config.time_stride) == strides
    assert encoder([torch.randn(3200)]).last_hidden_state.shape == (1, frames, width)


def test_a_restrided_network_shares_its_parameters_and_draws_no_random_numbers(checkpoint):
    torch.manual_seed(0)
    model = load_model(checkpoint)
    drawn = torch.get_rng_state()
    torch.manual_seed(0)
    encoder = FrameEncoder.from_checkpoint(checkpoint)
    assert torch.equal(torch.get_rng_state(), drawn)
    shared = restrided(model, UpstreamOptions(time_stride=4, positions="published"))
    assert all(one is other for one, other in zip(model.parameters(), shared.parameters(), strict=True))
    assert (shared.config.time_stride, shared.config.positions, shared.config.drop_path_rate) == (4, "published", 0.0)
    assert not shared.training and model.config.time_stride == 16 and encoder.model.config.time_stride == 10


LOWER = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("made", [FrameEncoder.from_checkpoint, UpstreamExpert], ids=["encoder", "upstream"])
@pytest.mark.parametrize("dtype", [*LOWER, torch.float64])
def test_a_network_of_another_dtype_reads_the_same_log_mel(checkpoint, set_default_dtype, made, dtype):
    """A network cast after loading, or loaded in torch's default dtype, differs only by its rounded weights."""
    wavs = [torch.randn(20000), torch.randn(900), torch.randint(-3000, 3000, (5000,), dtype=torch.int16)]
    expected = FrameEncoder.from_checkpoint(checkpoint).eval()(wavs).last_hidden_state
    encoders = [made(checkpoint).eval().to(dtype)]
    set_default_dtype(dtype)
    encoders.append(made(checkpoint).eval())
    for encoder in encoders:
        assert {parameter.dtype for parameter in encoder.parameters()} == {dtype}
        with torch.no_grad():
            output = encoder(wavs)
        found = output["last_hidden_state"]
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.01 * expected.norm()


class Waits(TorchDispatchMode):
    """Records when a tensor's content decides the control flow, where the host would wait for a GPU."""

    READ = aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in self.READ:
            self.found.append(str(function))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("pooling", ["concat", "mean"])
def test_a_forward_pass_looks_twice_whether_all_is_finite(checkpoint, pooling):
    """It checks the waveforms, and the hidden states without waiting for a GPU."""
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(frequency_pooling=pooling))
    with torch.no_grad(), Waits() as waits:
        encoder([torch.randn(samples) for samples in (170000, 9000, 401, 1)])
    assert len(waits.found) == 2


@pytest.mark.gpu
def test_a_gpu_is_waited_for_once(checkpoint):
    encoder = FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions()).cuda()
    wavs = [torch.randn(samples, device="cuda") for samples in (170000, 9000, 401, 1)]
    with torch.no_grad():
        encoder(wavs)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                encoder(wavs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchronizing" in str(wait.message)]) == 1


def test_options_come_from_a_file_or_by_name(tmp_path):
    assert UpstreamOptions.read() == UpstreamOptions()
    assert UpstreamOptions.read("default") == UpstreamOptions()
    assert UpstreamOptions.read("hop_20ms", window_secs=1.0) == UpstreamOptions(window_secs=1.0, time_stride=2)
    (tmp_path / "mine.yaml").write_text("- time_stride\n")
    with pytest.raises(ValueError, match="must hold options, one 'name: value' a line; it holds list"):
        UpstreamOptions.read(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match="upstream configs. Give a path, or one of default, hop_20ms, hop_40ms, "):
        UpstreamOptions.read("hop_20")
