"""Streams: pieces of any length give the same frames as the whole, in bounded memory."""

import random

import pytest
import torch

from ssamba_upstream import SsambaConfig, SsambaModel
from ssamba_upstream.frames import FrameEncoder

CAUSAL = {"hidden_size": 32, "num_hidden_layers": 3, "patch_size": [128, 8], "pretraining_frames": 64,
          "token_order": "time_major", "directions": "forward"}
NETWORKS = [({}, {}), ({"patch_size": [32, 8]}, {}), ({"patch_size": [32, 8]}, {"frequency_pooling": "mean"}),
            ({"patch_size": [48, 8], "frequency_stride": 30, "time_stride": 3, "norm": "rms_norm"}, {}),
            ({"time_stride": 1}, {})]


def encoder(options=(), **fields):
    return FrameEncoder(SsambaModel(SsambaConfig(**{**CAUSAL, **fields})), **dict(options)).eval()


def noise(samples):
    return torch.randn(samples) * 0.1


def pieces(wav, longest, seed=0):
    """Split a waveform into pieces of random lengths, some of them empty."""
    lengths, draw = [], random.Random(seed)
    while sum(lengths) < len(wav):
        lengths.append(min(draw.randint(0, longest), len(wav) - sum(lengths)))
    return wav.split(lengths)


def assert_same(outputs, expected, stream=0):
    """Assert that the concatenated outputs of pushes are the frames of a FrameEncoder."""
    for layer in range(len(expected.hidden_states) + 1):
        states = [(*output.hidden_states, output.last_hidden_state)[layer][stream, : output.frames[stream]]
                  for output in outputs]
        whole = (*expected.hidden_states, expected.last_hidden_state)[layer][0]
        torch.testing.assert_close(torch.cat(states), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields, options", NETWORKS, ids=["one row", "rows", "mean", "overlapping", "every 10 ms"])
@pytest.mark.parametrize("samples, longest", [(1, 1), (399, 90), (400, 400), (1280, 999), (1521, 2), (20001, 700),
                                              (20001, 9000), (20480, 20480)])
@torch.no_grad()
def test_pieces_equal_the_whole(fields, options, samples, longest):
    heard = encoder(options, **fields)
    wav, stream = noise(samples), heard.stream()
    expected = heard([wav])
    for seed in range(2):  # after finish(), a new stream begins
        outputs = [stream.push(piece) for piece in pieces(wav, longest, seed)] + [stream.finish()]
        assert sum(output.frames[0] for output in outputs) == -(-samples // heard.windowing.hop)
        assert_same(outputs, expected)


@pytest.mark.parametrize("fields", [{}, {"patch_size": [32, 8]}], ids=["one row", "rows"])
@torch.no_grad()
def test_streams_are_heard_each_by_itself(fields):
    heard = encoder(**fields)
    wavs = [noise(samples) for samples in (9000, 16001, 300)]
    stream = heard.stream(3)
    turns = [pieces(wav, longest) for wav, longest in zip(wavs, (2000, 5000, 20))]
    outputs = []
    for i in range(max(map(len, turns))):
        outputs.append(stream.push([turn[i] if i < len(turn) else noise(0) for turn in turns]))
    outputs.append(stream.finish())
    for number, wav in enumerate(wavs):
        assert_same(outputs, heard([wav]), number)


@torch.no_grad()
def test_a_frame_is_there_as_soon_as_its_column_ends():
    stream = encoder().stream()
    assert stream.push(noise(1519)).frames == [0]
    output = stream.push(noise(1))
    assert output.frames == [1] and output.hidden_states[-1].shape == (1, 1, 32) and len(output.hidden_states) == 4
    assert stream.push(noise(1279)).frames == [0] and stream.push(noise(0)).last_hidden_state.shape == (1, 0, 32)


@torch.no_grad()
def test_one_stream_begins_anew_beside_another():
    heard = encoder()
    first, second = noise(7000), noise(7000)
    stream = heard.stream(2)
    outputs = [stream.push([first[:5000], second[:3000]])]
    stream.reset(1)
    outputs += [stream.push([first[5000:], second]), stream.finish()]
    assert_same(outputs, heard([first]), 0)
    assert_same(outputs[1:], heard([second]), 1)
    stream.push([first, second])
    stream.reset()
    assert_same([stream.push([second, first]), stream.finish()], heard([second]), 0)


@torch.no_grad()
def test_what_is_kept_does_not_grow():
    stream = encoder(patch_size=[32, 8]).stream(2)
    for samples in (100, 3000, 1280, 50000, 1, 1280):
        stream.push([noise(samples), noise(samples)])
        kept = [tensor for state in stream._states for tensor in state]
        kept += stream._samples
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept) <= 2 * stream.state_bytes


@torch.no_grad()
def test_integers_and_lower_precision():
    heard = encoder()
    wav = noise(5000)
    rounded = (wav * 32767).short()
    stream = heard.stream()
    assert_same([stream.push(rounded[:1000].numpy()), stream.push(rounded[1000:]), stream.finish()], heard([rounded]))
    half = FrameEncoder(heard.model, precision="bfloat16").eval()
    stream = half.stream()
    outputs = [stream.push(piece) for piece in pieces(wav, 2000)] + [stream.finish()]
    found = torch.cat([output.last_hidden_state for output in outputs], dim=1)
    torch.testing.assert_close(found, half([wav]).last_hidden_state, rtol=0.1, atol=0.1)


def test_no_gradients_are_kept():
    stream = encoder().stream()
    assert not stream.push(noise(5000)).last_hidden_state.requires_grad
    assert not any(part.requires_grad for state in stream._states for part in state)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="not causal and cannot continue from a state. Train one"):
        encoder(directions="both").stream()
    stream = encoder().stream(2)
    with pytest.raises(ValueError, match="got 1 waveforms for 2 streams. Give one for each"):
        stream.push(noise(100))
    with pytest.raises(ValueError, match="NaN or infinite"):
        stream.push([noise(100), noise(100) / 0])


@torch.no_grad()
def test_single_samples_equal_the_whole():
    heard, wav = encoder(), noise(1521)
    stream = heard.stream()
    assert_same([*map(stream.push, wav.split(1)), stream.finish()], heard([wav]))
