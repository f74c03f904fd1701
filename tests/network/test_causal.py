"""Causal networks: the order and direction in which tokens are read, and the inputs that affect a frame."""

import pytest
import torch

from ssamba_upstream import SsambaConfig, SsambaForAudioClassification, SsambaForPreTraining, SsambaModel, ops
from ssamba_upstream.checkpoint import CheckpointError, load_model, new_classifier, save_model
from ssamba_upstream.frames import FrameEncoder, UpstreamOptions
from ssamba_upstream.windows import Windowing

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "patch_size": [32, 8], "pretraining_frames": 64}
CAUSAL = {"token_order": "time_major", "directions": "forward"}


def network(**fields):
    return SsambaModel(SsambaConfig(**{**SMALL, **CAUSAL, **fields})).eval()


def columns_of(states, rows):
    return [state[:, 1:].unflatten(1, (rows, -1)) for state in states]


@pytest.mark.parametrize("fields, message", [
    ({"token_order": "random"}, "token_order must be one of frequency_major, time_major"),
    ({"directions": "backward"}, "directions must be one of both, forward"),
    ({"block_order": "paired", "num_hidden_layers": 4}, 'Set block_order="sequential"'),
    ({"pooling": "cls"}, 'and pooling="avgtok"'),
    ({"positions": "published"}, 'Set positions="physical"'),
    ({"normalisation": "clip"}, 'normalisation="data"'),
])
def test_what_is_not_causal_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SsambaConfig(**{**SMALL, **CAUSAL, **fields})


def test_one_direction_has_the_parameters_of_the_other_fewer():
    both, forward = (network(token_order="frequency_major", directions=directions).state_dict()
                     for directions in ("both", "forward"))
    mixer = {name for name in both if "_b." in name or "_b_" in name or name.endswith("D_b")}
    assert mixer and set(both) - mixer == set(forward)
    learned_in_time = 4 * (8 - 1) * 32  # positions
    assert sum(map(torch.numel, forward.values())) - sum(map(torch.numel, network().state_dict().values())) == (
        learned_in_time)


@pytest.mark.parametrize("fields", [
    {}, {"patch_size": [128, 8]}, {"frequency_stride": 20, "time_stride": 3}, {"norm": "rms_norm"},
], ids=["rows", "one row", "overlapping", "RMS norm"])
def test_a_frame_depends_on_nothing_after_the_end_of_its_column(fields):
    model = network(**fields)
    stride, width = model.config.time_stride, model.config.patch_size[1]
    log_mel = torch.randn(1, 80, 128)
    rows = model.config.num_patch_rows
    with torch.no_grad():
        before = columns_of(model(log_mel, output_hidden_states=True).hidden_states, rows)
        for column in (0, 3, 6):
            changed = log_mel.clone()
            changed[:, column * stride + width :] += 1
            after = columns_of(model(changed, output_hidden_states=True).hidden_states, rows)
            for layer, (left, right) in enumerate(zip(before, after)):
                same = (left == right).all(-1).all(0).all(0)
                assert same[: column + 1].all() and not same[-1], layer
        changed = log_mel.clone()
        changed[:, 0] += 1
        after = columns_of(model(changed, output_hidden_states=True).hidden_states, rows)
        assert (after[-1] != before[-1]).any(-1).all()


@pytest.mark.parametrize("directions", ["both", "forward"])
def test_blocks_read_column_after_column(directions):
    model = network(directions=directions)
    tokens = model.embed(torch.randn(2, 24, 128))
    by_time = torch.cat([tokens[:, :1], *tokens[:, 1:].unflatten(1, (4, 3)).unbind(2)], dim=1)
    streams = []
    model.mix(tokens, streams=streams)
    expected = by_time
    for block, found in zip(model.layers, streams):
        expected = block(expected)
        back = torch.cat([expected[:, :1], *expected[:, 1:].unflatten(1, (3, 4)).unbind(2)], dim=1)
        torch.testing.assert_close(found, back)


@pytest.mark.parametrize("directions", ["both", "forward"])
def test_packed_windows_equal_each_by_itself(directions):
    model = network(directions=directions)
    windows = [torch.randn(frames, 128) for frames in (8, 61, 8, 24)]
    with torch.no_grad():
        packed = model(windows, output_hidden_states=True).hidden_states
        alone = [model(window[None], output_hidden_states=True).hidden_states for window in windows]
    for layer, states in enumerate(packed):
        expected = torch.cat([states_of_one[layer] for states_of_one in alone], dim=1)
        torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(bool(ops.cpu.unavailable_reason()), reason="the compiled kernels are not there")
def test_ragged_scans_of_one_direction_take_the_compiled_kernels(monkeypatch):
    monkeypatch.setattr(ops, "_each_sequence", lambda *_: pytest.fail("each sequence by itself"))
    inputs = {"u": torch.rand(1, 4, 12), "delta": torch.rand(1, 4, 12), "B": torch.rand(1, 3, 12),
              "C": torch.rand(1, 3, 12), "A": -torch.rand(4, 3), "D": None, "delta_bias": None, "reverse": False}
    ops.selective_scan_mean([inputs], offsets=torch.tensor([0, 5, 12]))


def test_positions_do_not_end():
    model = network()
    assert model.pos_embed.shape == (1, 1 + 4, 32)
    tokens = model.embed(torch.zeros(1, 8 * 500, 128))[:, 1:].unflatten(1, (4, 500))
    assert torch.equal(tokens, tokens[:, :, :1].expand_as(tokens))
    assert not torch.equal(tokens[:, 0], tokens[:, 1])


def test_pretraining_reaches_every_parameter_and_its_own_patches():
    model = SsambaForPreTraining(SsambaConfig(**SMALL, **CAUSAL, masked_patches=7))
    log_mel = torch.randn(2, 64, 128)
    model(log_mel).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for block in model.ssamba.layers:  # so that tokens pass through unchanged
        torch.nn.init.zeros_(block.mixer.out_proj.weight)
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[:, [5, 17, 30]] = True
    tokens = model.ssamba.norm_f(model.ssamba.embed(log_mel, mask, model.mask_embed))[:, 1:]
    torch.testing.assert_close(model.masked_tokens(log_mel, mask), tokens[:, [5, 17, 30]])


def test_utterances_are_read_whole():
    encoder = FrameEncoder(network()).eval()
    wav = torch.randn(5 * 16000) * 0.1
    with torch.no_grad():
        whole, first, both = encoder([wav]), encoder([wav[:20000]]), encoder([wav[:20000], wav])
    complete = (20000 - 400) // 160 // 8
    for layer in range(4):
        torch.testing.assert_close(first.hidden_states[layer][:, :complete], whole.hidden_states[layer][:, :complete],
                                   rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both.hidden_states[layer][1], whole.hidden_states[layer][0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="reads whole utterances. Leave"):
        FrameEncoder(network(), window_secs=1.0)
    with pytest.raises(ValueError, match="reads whole utterances. Leave"):
        Windowing.for_model(network().config, padding="published")


def test_checkpoints_and_classifiers(tmp_path):
    model = network()
    save_model(model, tmp_path / "causal")
    again = load_model(tmp_path / "causal")
    assert again.config.causal and all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert FrameEncoder.from_checkpoint(tmp_path / "causal", UpstreamOptions(time_stride=4)).windowing.hop == 640
    classifier = new_classifier(tmp_path / "causal", SsambaForAudioClassification, ["a", "b"], frames=200)
    assert classifier(torch.randn(1, 200, 128)).logits.shape == (1, 2)
    with pytest.raises(ValueError, match='pooling="avgtok"'):
        new_classifier(tmp_path / "causal", SsambaForAudioClassification, ["a", "b"], frames=200, pooling="cls")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="forward-only network without its configuration. Give"):
        load_model(tmp_path / "bare.pth", block_order="sequential", num_mel_bins=128)


def test_only_causal_networks_carry_a_state_on():
    with pytest.raises(ValueError, match="not causal and cannot continue from a state. Train"):
        network(directions="both").start(1)
