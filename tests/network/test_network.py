"""The network against golden vectors of the published definition, and by transformers' conventions."""

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel

from helpers.paths import DATA
from ssamba_upstream import SsambaConfig, SsambaForAudioClassification, SsambaModel
from ssamba_upstream.checkpoint import load_model
from ssamba_upstream.network import modeling
from ssamba_upstream.network.configuration import HIDDEN_SIZES
from ssamba_upstream.network.modeling import PatchEmbedding

aten = torch.ops.aten
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ORDERS = {"bi": "paired", "uni": "sequential"}


def small_config(**overrides):
    return SsambaConfig(**{"hidden_size": 32, "num_hidden_layers": 4, "pretraining_frames": 128, **overrides})


PATCHES = [((16, 16), (16, 16)), ((16, 16), (10, 10)), ((16, 16), (10, 2)), ((32, 8), (32, 8)), ((64, 4), (64, 3)),
           ((128, 2), (128, 2))]
"""Sizes of patches and their strides."""


@pytest.mark.parametrize("size, stride", PATCHES, ids=str)
@pytest.mark.parametrize("columns", [1, 9])
def test_patches_are_embedded_as_by_the_convolution(size, stride, columns):
    """Compares values and gradients with the convolution in float64."""
    config = small_config(patch_size=size, frequency_stride=stride[0], time_stride=stride[1])
    embedding = PatchEmbedding(config)
    log_mel = torch.randn(3, size[1] + (columns - 1) * stride[1] + stride[1] - 1, 128, requires_grad=True)
    exact = copy.deepcopy(embedding).double()
    same = log_mel.detach().double().requires_grad_()
    expected = F.conv2d(same.transpose(1, 2).unsqueeze(1), exact.proj.weight, exact.proj.bias, stride)
    found = embedding(log_mel)
    assert found.shape == (3, 32, config.num_patch_rows, columns)
    with torch.no_grad():
        direction = torch.randn_like(found)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = embedding(log_mel)
        halved = copy.deepcopy(embedding).bfloat16()(log_mel)
    torch.testing.assert_close(found.double(), expected, **CLOSE)
    for lower in (rounded, halved):
        assert lower.dtype == torch.bfloat16 and (lower - expected).norm() < 0.01 * expected.norm()
    inputs = log_mel, *embedding.parameters()
    gradients = torch.autograd.grad(embedding(log_mel), inputs, direction)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, (same, *exact.parameters()),
                                                              direction.double())):
        torch.testing.assert_close(gradient.double(), right, **CLOSE)


class NarrowConvolutions(TorchDispatchMode):
    """Record convolutions with one-column outputs, which oneDNN computes wrongly in bfloat16 with AMX."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        if "convolution" in function.overloadpacket.__name__ and output.shape[-1] == 1:
            self.found.append(function)
        return output


class LowRank(nn.Module):
    """A convolution with an adapter, as peft wraps it."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution.requires_grad_(False)
        self.down = nn.Conv2d(1, 2, convolution.kernel_size, convolution.stride, bias=False)
        self.up = nn.Conv2d(2, convolution.out_channels, 1, bias=False)

    def forward(self, images):
        return self.convolution(images) + self.up(self.down(images))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("size, stride", PATCHES, ids=str)
def test_no_convolution_is_one_column_wide(size, stride, adapted):
    model = SsambaModel(small_config(patch_size=size, frequency_stride=stride[0], time_stride=stride[1],
                                     num_hidden_layers=1)).eval()
    if adapted:
        model.patch_embed.proj = LowRank(model.patch_embed.proj)
    windows = [torch.randn(frames, 128) for frames in (size[1], 40, size[1] + stride[1] - 1)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), NarrowConvolutions() as convolutions:
        packed = model(windows).last_hidden_state
        alone = [model(window.unsqueeze(0)).last_hidden_state for window in windows]
    assert not convolutions.found
    assert (packed - torch.cat(alone, dim=1)).norm() < 0.02 * packed.norm()


@pytest.mark.parametrize("frames", [16, 20, 40])
def test_a_projection_that_is_more_than_a_convolution_is_called(frames):
    """An adapter takes effect and gets gradients, and a hook runs."""
    embedding, log_mel = PatchEmbedding(small_config(time_stride=10)), torch.randn(2, frames, 128)
    plain = embedding(log_mel)
    merged, adapter = copy.deepcopy(embedding), LowRank(embedding.proj)
    embedding.proj = adapter
    with torch.no_grad():
        change = adapter.up.weight.flatten(1) @ adapter.down.weight.flatten(1)
        merged.proj.weight += change.view_as(merged.proj.weight)
    found = embedding(log_mel)
    torch.testing.assert_close(found, merged(log_mel), **CLOSE)
    found.square().sum().backward()
    assert adapter.up.weight.grad.any() and adapter.down.weight.grad.any()
    embedding.proj = adapter.convolution
    embedding.proj.register_forward_hook(lambda module, inputs, output: 2 * output)
    torch.testing.assert_close(embedding(log_mel), 2 * plain, **CLOSE)


@pytest.fixture
def first_warning():
    """Reset the warning, as in a process that has not warned yet."""
    modeling._warn_of_states.cache_clear()
    yield
    modeling._warn_of_states.cache_clear()


@pytest.mark.parametrize("block_order", ["sequential", "paired"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e36])
def test_states_that_are_not_finite_are_warned_of_once(first_warning, block_order, value):
    """A layer norm turns 1e36 in float32, which is finite, into zeros."""
    model = SsambaForAudioClassification(small_config(block_order=block_order, num_labels=2)).eval()
    batch = torch.randn(2, 64, 128)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(batch)
        model.ssamba.cls_token[0, 0, 5] = value
        with pytest.warns(RuntimeWarning, match="hidden states are NaN, infinite .*. Compute in float32") as warned:
            model(batch)
            model.ssamba(list(batch))
    assert len(warned) == 1


def test_a_final_norm_that_is_not_finite_is_warned_of(first_warning):
    model = SsambaModel(small_config()).eval()
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="hidden states are NaN"):
        model.norm_f.weight[3] = torch.nan
        model([torch.randn(40, 128)])


class Operations(TorchDispatchMode):
    """Count torch's operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (aten.convolution, aten.cat, aten.index, aten.add, aten.mul, aten.bmm)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("positions", ["physical", "published"])
@pytest.mark.parametrize("strides", [(10, 10), (16, 16), (4, 16)])
def test_packed_windows_begin_as_each_by_itself(positions, strides):
    config = small_config(positions=positions, frequency_stride=strides[0], time_stride=strides[1])
    model = SsambaModel(config).eval()
    windows = [torch.randn(frames, 128) for frames in (128, 16, 40, 128, 17)]
    tokens, offsets = model._pack(windows)
    alone = [model.embed(window.unsqueeze(0)) for window in windows]
    torch.testing.assert_close(tokens, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)
    assert offsets.diff().tolist() == [embedded.shape[1] for embedded in alone]


def test_windows_of_many_lengths_are_as_few_operations_as_of_one():
    model = SsambaModel(small_config(time_stride=10))
    counts = []
    for lengths in ([100] * 9, range(20, 110, 10)):
        with Operations() as operations:
            model([torch.randn(frames, 128) for frames in lengths])
        counts.append(operations.count)
    # The remaining operations compute places on the CPU, once per length.
    assert counts[1] - counts[0] <= 4 * 9


@pytest.mark.parametrize("mixer_golden", ["mixer0_div2", "mixer0_nodiv"])
def test_golden_mixer(golden, official_checkpoint, mixer_golden):
    x, mixer = golden("mixer_block"), load_model(official_checkpoint).layers[0].mixer
    found = mixer(x["hidden_in"]) * (2 if mixer_golden == "mixer0_nodiv" else 1)
    torch.testing.assert_close(found, x[mixer_golden], **CLOSE)


def test_reversed_mixer_is_the_mixer_on_the_reversed_sequence(golden, official_checkpoint):
    tokens, mixer = golden("mixer_block")["hidden_in"], load_model(official_checkpoint).layers[0].mixer
    torch.testing.assert_close(mixer(tokens, time_reversed=True), mixer(tokens.flip(1)).flip(1), rtol=0, atol=1e-6)


def test_golden_block(golden, official_checkpoint):
    """The published block returns the residual stream and its update separately; ours returns their sum."""
    x, block = golden("mixer_block"), load_model(official_checkpoint).layers[1]
    for residual, suffix in ((0, "_resNone"), (x["residual_in"], "")):
        stream = residual + x["hidden_in"]
        torch.testing.assert_close(stream, x[f"block1_residual{suffix}"], **CLOSE)
        torch.testing.assert_close(block.mixer(block.norm(stream)), x[f"block1_hidden{suffix}"], **CLOSE)
        torch.testing.assert_close(block(stream), x[f"block1_hidden{suffix}"] + stream, **CLOSE)


@pytest.mark.parametrize("prefix", ORDERS)
def test_golden_encoder(golden, official_checkpoint, prefix):
    fbank, expected = golden("input_fbank")["fbank"][:1], golden("reduced_encoder")
    model = load_model(official_checkpoint, block_order=ORDERS[prefix])
    with torch.no_grad():
        output = model(fbank, output_hidden_states=True)
        torch.testing.assert_close(model.patch_embed(fbank).flatten(2).transpose(1, 2), expected["patch_embed"],
                                   **CLOSE)
        twice = model.norm_f(output.last_hidden_state)
    torch.testing.assert_close(output.hidden_states[0], expected["tokens"], **CLOSE)
    torch.testing.assert_close(output.last_hidden_state, expected[f"{prefix}_norm_f"], **CLOSE)
    torch.testing.assert_close(twice[:, 1:].mean(1), expected[f"{prefix}_avgtok"], **CLOSE)
    torch.testing.assert_close(twice[:, 0], expected[f"{prefix}_cls"], **CLOSE)
    assert len(output.hidden_states) == 5


def test_golden_hidden_states_in_sequence(golden, official_checkpoint):
    expected = golden("reduced_encoder")
    model = load_model(official_checkpoint, block_order="sequential")
    states = model(golden("input_fbank")["fbank"][:1], output_hidden_states=True).hidden_states
    for i, (hidden, residual) in enumerate(zip(expected["uni_hidden"], expected["uni_residual"], strict=True)):
        torch.testing.assert_close(states[i + 1], hidden + residual, **CLOSE)
        block = model.layers[i]
        torch.testing.assert_close(block.mixer(block.norm(states[i])), hidden, **CLOSE)


def test_golden_hidden_states_in_pairs(golden, official_checkpoint):
    """The golden files hold a pair's two streams as sums: the updates of both, and twice their common input."""
    expected, model = golden("reduced_encoder"), load_model(official_checkpoint)
    states = model(golden("input_fbank")["fbank"][:1], output_hidden_states=True).hidden_states
    stream = states[0]
    for pair, (hidden, residual) in enumerate(zip(expected["bi_hidden"], expected["bi_residual"], strict=True)):
        forward, backward = (states[1 + 2 * pair + member] * 2**pair for member in (0, 1))
        torch.testing.assert_close(2 * stream, residual, **CLOSE)
        torch.testing.assert_close((forward - stream) + (backward - stream), hidden, rtol=1e-4, atol=1e-5 * 2**pair)
        assert not torch.allclose(forward, backward, atol=1e-3)
        stream = forward + backward


def test_a_pair_by_its_definition(official_checkpoint):
    """Block 1 reads the reversed sequence, and its result is reversed back. The test flips explicitly."""
    block, stream = load_model(official_checkpoint).layers[1], torch.randn(2, 21, 32)
    torch.testing.assert_close(block(stream, time_reversed=True), block(stream.flip(1)).flip(1))


@pytest.mark.parametrize("size", HIDDEN_SIZES)
def test_parameters_are_those_of_the_published_checkpoints(size):
    published = json.loads((DATA / f"state_dict_{size}.json").read_text())
    with torch.device("meta"):
        model = SsambaModel(SsambaConfig.from_size(size))
    assert sum(p.numel() for p in model.parameters()) == published["info"]["encoder_without_heads"]
    shapes = {name.removeprefix("module.v."): tuple(shape) for name, shape, _ in published["entries"]}
    for name, parameter in model.named_parameters():
        assert shapes[name] == tuple(parameter.shape), name


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("block_order", ["sequential", "paired"])
def test_saving_and_loading(tmp_path, norm, block_order):
    model = SsambaModel(small_config(norm=norm, block_order=block_order)).eval()
    model.save_pretrained(tmp_path)
    fbank = torch.randn(1, 64, 128)
    for loaded in (SsambaModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path), load_model(tmp_path)):
        assert loaded.config.block_order == block_order and not loaded.training
        torch.testing.assert_close(loaded(fbank).last_hidden_state, model(fbank).last_hidden_state, rtol=0, atol=0)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SsambaConfig)


def test_initialisation():
    model = SsambaModel(small_config(num_hidden_layers=2))
    for block in model.layers:
        for projection in (block.mixer.dt_proj, block.mixer.dt_proj_b):
            step = torch.nn.functional.softplus(projection.bias)
            assert step.min() >= 1e-4 and step.max() <= 0.1001
        for A_log in (block.mixer.A_log, block.mixer.A_b_log):
            torch.testing.assert_close(A_log.exp(), torch.arange(1.0, 17).expand(64, 16))
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.std() > 0 or name.endswith(("norm.weight", "norm.bias", "D", "D_b")) or "norm_f" in name, name


@pytest.mark.parametrize("block_order", ["sequential", "paired"])
def test_every_parameter_learns(block_order):
    model = SsambaModel(small_config(block_order=block_order))
    with torch.autograd.detect_anomaly(check_nan=True):
        model(torch.randn(2, 64, 128)).last_hidden_state.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_stochastic_depth():
    config = small_config(drop_path_rate=0.5)
    model, fbank = SsambaModel(config), torch.randn(1, 64, 128)
    rates = [block.drop_path.probability for block in model.layers]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])
    outputs = {model(fbank).last_hidden_state.sum().item() for _ in range(8)}
    assert len(outputs) > 1
    assert len({model.eval()(fbank).last_hidden_state.sum().item() for _ in range(2)}) == 1


def test_outputs_by_convention():
    model, fbank = SsambaModel(small_config()).eval(), torch.randn(1, 64, 128)
    assert model(fbank).hidden_states is None
    last_hidden_state, hidden_states = model(fbank, output_hidden_states=True, return_dict=False)
    assert last_hidden_state.shape == (1, 1 + 8 * 4, 32) and len(hidden_states) == 5


@pytest.mark.parametrize("overrides, message", [
    ({"positions": "learned"}, "positions must be one of physical, published"),
    ({"block_order": "paired", "num_hidden_layers": 3}, "even num_hidden_layers"),
    ({"time_stride": 17}, "time_stride must be a whole number from 1 to"),
    ({"norm": "batch_norm"}, "norm must be one of"),
    ({"pretraining_frames": 8}, "does not fit"),
])
def test_configurations_that_cannot_be_built(overrides, message):
    with pytest.raises(ValueError, match=message):
        small_config(**overrides)


def test_inputs_that_cannot_be_read():
    model = SsambaModel(small_config())
    with pytest.raises(ValueError, match=r"\(batch, frames, 128\); got \(1, 128, 64\)"):
        model(torch.randn(1, 128, 64))
    with pytest.raises(ValueError, match="15 frames; a patch needs 16"):
        model(torch.randn(1, 15, 128))
