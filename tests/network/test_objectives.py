"""Pretraining objectives against golden vectors and plain definitions, and their heads in every checkpoint format."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ssamba_upstream import SsambaConfig, SsambaForPreTraining, SsambaModel
from ssamba_upstream.checkpoint import CheckpointError, load_model, save_model
from ssamba_upstream.network.pretraining import contrastive

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def small_model(**overrides):
    config = {"hidden_size": 32, "num_hidden_layers": 2, "pretraining_frames": 128, **overrides}
    return SsambaForPreTraining(SsambaConfig(**config))


def mask_of(index, patches):
    return torch.zeros(len(index), patches, dtype=torch.bool).scatter_(1, index, True)


def test_a_network_elsewhere_is_not_waited_for():
    """With a CPU mask, a pass runs on the meta device, where no value can be read."""
    model = small_model().to("meta")
    mask = torch.arange(64).expand(3, -1) < 20
    hidden = model.masked_tokens(torch.empty(3, 128, 128, device="meta"), mask)
    hidden.sum().backward()
    assert hidden.shape == (3, 20, 32) and model.mask_embed.grad.shape == (1, 1, 32)


def test_golden_objectives(golden, official_checkpoint):
    expected, fbank = golden("reduced_ssl_m300"), golden("input_fbank")["fbank"]
    model = load_model(official_checkpoint, model_class=SsambaForPreTraining)
    mask = mask_of(expected["mask_index"], 512)
    with torch.no_grad():
        output = model(fbank, mask)
        hidden = model.masked_tokens(fbank, mask)
    for name, found in (("acc", output.contrastive_accuracy), ("nce", output.contrastive_loss),
                        ("mse", output.reconstruction_loss), ("joint", output.loss)):
        torch.testing.assert_close(found, expected[name], **CLOSE)
    targets = model.patches(fbank)[mask].unflatten(0, (2, 300))
    torch.testing.assert_close(targets[:, :40], expected["target"], **CLOSE)
    torch.testing.assert_close(model.contrastive_head(hidden)[:, :40], expected["mpc_pred"], **CLOSE)
    torch.testing.assert_close(model.reconstruction_head(hidden)[:, :40], expected["mpg_pred"], **CLOSE)
    scores = targets[0] @ model.contrastive_head(hidden)[0].T
    torch.testing.assert_close(scores[:40, :40], expected["mpc_total0"], rtol=1e-4, atol=1e-4)


def test_golden_contrastive(golden):
    expected, fbank = golden("nce_unit"), golden("input_fbank")["fbank"]
    patches = small_model().patches(fbank)
    targets = patches[mask_of(expected["mask_index"], 512)].unflatten(0, (2, 64))
    loss, accuracy = contrastive(expected["pred"], targets)
    torch.testing.assert_close(loss, expected["nce"], **CLOSE)
    torch.testing.assert_close(accuracy, expected["acc"], **CLOSE)


def test_contrastive_and_its_gradient_against_a_loop():
    predictions, targets = torch.randn(2, 3, 7, 11).unbind()
    predictions.requires_grad_()
    expected = sum(
        -F.log_softmax(torch.stack([target @ candidate for candidate in clip_predictions]), dim=0)[i]
        for clip_predictions, clip_targets in zip(predictions, targets) for i, target in enumerate(clip_targets)
    ) / 21
    loss, _ = contrastive(predictions, targets)
    torch.testing.assert_close(loss, expected)
    found, = torch.autograd.grad(loss, predictions)
    torch.testing.assert_close(found, *torch.autograd.grad(expected, predictions))


def test_negatives_of_the_whole_batch():
    model, fbank = small_model(negatives="batch").eval(), torch.randn(3, 128, 128)
    mask = torch.zeros(3, 64, dtype=torch.bool).scatter_(1, torch.rand(3, 64).topk(20).indices, True)
    output = model(fbank, mask)
    predictions = model.contrastive_head(model.masked_tokens(fbank, mask)).flatten(0, 1)
    scores = model.patches(fbank)[mask] @ predictions.T
    torch.testing.assert_close(output.contrastive_loss, F.cross_entropy(scores, torch.arange(60)))
    model.config.negatives = "clip"
    assert output.contrastive_loss > model(fbank, mask).contrastive_loss


def test_normalised_targets():
    model, fbank = small_model(normalised_targets=True).eval(), 3 * torch.randn(2, 128, 128) + 5
    fbank[:, :16] = 0  # constant patches
    mask = torch.arange(64).expand(2, -1) < 20
    output = model(fbank, mask)
    patches = model.patches(fbank)[mask].double()
    targets = (patches - patches.mean(1, True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
    found = model.reconstruction_head(model.masked_tokens(fbank, mask)).flatten(0, 1)
    torch.testing.assert_close(output.reconstruction_loss, F.mse_loss(found, targets.float()))
    assert output.loss.isfinite()
    reconstructed = model.reconstruct(fbank, mask)[mask]
    expected = found * (patches.var(1, keepdim=True) + 1e-6).sqrt() + patches.mean(1, True)
    torch.testing.assert_close(reconstructed, expected.float(), **CLOSE)


@pytest.mark.parametrize("wrong", [{"negatives": "all"}, {"cluster_sides": [5, 3]}, {"cluster_sides": [0, 3]},
                                   {"cluster_sides": [3]}])
def test_objectives_that_there_are_not(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        small_model(**wrong)


def test_a_second_mask_means_a_second_pass():
    model, fbank = small_model().eval(), torch.randn(2, 128, 128)
    first, second = torch.zeros(2, 2, 64, dtype=torch.bool).unbind()
    first[:, 5:30] = second[:, 20:50] = True
    both, one, other = model(fbank, first, second), model(fbank, first), model(fbank, second)
    assert both.contrastive_loss == one.contrastive_loss and both.reconstruction_loss == other.reconstruction_loss
    torch.testing.assert_close(both.loss, one.contrastive_loss + 10 * other.reconstruction_loss)


def test_what_is_masked_is_not_seen_and_alone_is_predicted():
    model, fbank = small_model().eval(), torch.randn(1, 128, 128)
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, 8 + 3] = True  # row 1, column 3
    changed = fbank.clone()
    changed[0, 48:64, 16:32] += 1
    assert torch.equal(model.masked_tokens(fbank, mask), model.masked_tokens(changed, mask))
    found, patches = model.reconstruct(fbank, mask), model.patches(fbank)
    assert torch.equal(found[~mask], patches[~mask]) and not torch.allclose(found[mask], patches[mask])
    torch.testing.assert_close(patches[0, 11].view(16, 16), fbank[0, 48:64, 16:32].T)


def test_masks_are_drawn_as_configured():
    model, fbank = small_model(masked_patches=20).eval(), torch.randn(2, 128, 128)
    torch.manual_seed(1)
    first = model(fbank).loss
    torch.manual_seed(1)
    assert model(fbank).loss == first != model(fbank).loss
    assert SsambaConfig().masked_patches == 400 and small_model().config.masked_patches == 50


@pytest.mark.parametrize("mask, message", [
    (torch.ones(2, 63, dtype=torch.bool), r"here \(2, 64\); got torch.bool and \(2, 63\)"),
    (torch.ones(2, 64), "got torch.float32"),
    (torch.zeros(2, 64, dtype=torch.bool), r"at least one; got \[0, 0\]"),
    (torch.arange(64).expand(2, 64) < torch.tensor([[3], [4]]), r"same number of masked patches.*got \[3, 4\]"),
])
def test_masks_that_do_not_fit(mask, message):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.randn(2, 128, 128), mask)


@pytest.mark.parametrize("order", ["sequential", "paired"])
def test_gradients_reach_every_parameter_and_checkpointing_keeps_them(order):
    model = small_model(block_order=order, num_hidden_layers=4).train()
    fbank, mask = torch.randn(2, 128, 128), torch.rand(1, 64).expand(2, -1) < 0.5

    def gradients():
        model.zero_grad()
        model(fbank, mask).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain = gradients()
    model.ssamba.gradient_checkpointing = True
    checkpointed = gradients()
    for name, gradient in plain.items():
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_bfloat16_autocast_keeps_the_losses_in_float32():
    model, fbank, mask = small_model(), torch.randn(2, 128, 128), torch.rand(1, 64).expand(2, -1) < 0.5
    exact = model(fbank, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(fbank, mask)
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["folder", "file.safetensors", "file.ckpt"])
def test_heads_are_kept_in_every_format(tmp_path, name):
    model = small_model().eval()
    save_model(model, tmp_path / name)
    for loaded in (load_model(tmp_path / name, model_class=SsambaForPreTraining),
                   load_model(tmp_path / name, model_class=None)):
        assert type(loaded) is SsambaForPreTraining
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), key
    encoder = load_model(tmp_path / name)
    assert type(encoder) is SsambaModel and torch.equal(encoder.pos_embed, model.ssamba.pos_embed)


def test_transformers_loads_the_encoder_of_a_pretraining_folder(tmp_path):
    model = small_model().eval()
    save_model(model, tmp_path / "pretrained")
    encoder = SsambaModel.from_pretrained(tmp_path / "pretrained").eval()
    fbank = torch.randn(1, 128, 128)
    assert torch.equal(encoder(fbank).last_hidden_state, model.ssamba(fbank).last_hidden_state)
    again = SsambaForPreTraining.from_pretrained(tmp_path / "pretrained")
    assert torch.equal(again.mask_embed, model.mask_embed)


def test_an_encoder_has_no_heads_to_load(tmp_path):
    save_model(small_model().ssamba, tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="the encoder alone, without the heads"):
        load_model(tmp_path / "encoder", model_class=SsambaForPreTraining)
    assert type(load_model(tmp_path / "encoder", model_class=None)) is SsambaModel


def test_official_heads_must_be_whole(tmp_path, official_checkpoint):
    state = load_file(official_checkpoint)
    del state["module.gpredlayer.2.bias"]
    save_file(state, tmp_path / "official.safetensors")
    with pytest.raises(CheckpointError, match="lacks reconstruction_head.2.bias"):
        load_model(tmp_path / "official.safetensors", model_class=SsambaForPreTraining)
