"""Windows and frames, compared with explicit definitions."""

import math
from types import SimpleNamespace

import pytest
import torch

from ssamba_upstream import SsambaConfig
from ssamba_upstream.frontend import LogMel
from ssamba_upstream.windows import Windowing, token_index, tokens_to_frames


def columns_of(window, stride=10):
    return (len(window) - 16) // stride + 1


@pytest.mark.parametrize("stride", [1, 2, 10, 16])
@pytest.mark.parametrize("window_secs", [1.0, 10.0])
def test_columns_are_the_frames(stride, window_secs):
    windowing = Windowing(window_secs, stride, 16, "none")
    for samples in (1, 399, 400, 1600, 1601, 15999, 16000, 16001, 40000):
        (windows,) = windowing.cut([torch.randn(samples)], LogMel())
        assert sum(columns_of(window, stride) for window in windows) == math.ceil(samples / (stride * 160))
        assert all(columns_of(window, stride) == windowing.columns for window in windows[:-1])


@pytest.mark.parametrize("pretraining_frames, stride, seconds", [
    (1024, 10, 10.0), (1024, 16, 10.0), (1024, 4, 4.0), (1024, 2, 2.0), (256, 10, 2.56), (256, 4, 2.56), (64, 2, 0.64),
])
def test_windows_have_a_hundred_frames_or_the_length_of_the_pretraining_clips(pretraining_frames, stride, seconds):
    config = SsambaConfig(pretraining_frames=pretraining_frames, time_stride=stride)
    windowing = Windowing.for_model(config)
    assert windowing.window_secs == seconds and windowing.columns <= 100


def test_windows_hold_a_patch_by_default():
    config = SsambaConfig(pretraining_frames=256, patch_size=[16, 128], time_stride=1)
    assert Windowing.for_model(config).window_secs == 1.28


@pytest.mark.parametrize("patch_size", [(16, 16), (32, 8), (64, 4), (128, 4), (128, 2)])
@pytest.mark.parametrize("sampling_rate", [16000, 22050])
def test_windows_end_with_the_learned_positions(patch_size, sampling_rate):
    """For clips of any length and any stride, default windows and windows of the clips' length fit the positions."""
    for frames in [*range(patch_size[1], 60), 103, 251, 255, 501, 1000, 1023]:
        for stride in {1, patch_size[1] // 2, 5 * patch_size[1] // 8, patch_size[1]} - {0}:
            config = SsambaConfig(patch_size=patch_size, time_stride=stride, pretraining_frames=frames,
                                  sampling_rate=sampling_rate)
            windowing = Windowing.for_model(config)
            learned = frames // patch_size[1] * patch_size[1]
            assert 1 <= windowing.columns <= 100
            assert (windowing.columns - 1) * stride < learned
            if stride == patch_size[1]:
                whole = Windowing.for_model(config, config.front_end.seconds_of(frames))
                assert whole.columns == frames // stride


@pytest.mark.parametrize("padding", ["none", "published"])
def test_windows_beyond_the_learned_positions(padding):
    config = SsambaConfig(patch_size=[32, 8], pretraining_frames=103)  # 96 frames in whole patches
    assert Windowing.for_model(config, 1.03, padding).columns == 12
    with pytest.raises(ValueError, match=r"window_secs=1.12 is longer than the 0.96 s for which"):
        Windowing.for_model(config, 1.12, padding)
    config.positions = "published"
    assert Windowing.for_model(config, 1.12, padding).columns == 14


def test_the_grid_of_columns_runs_through_the_windows():
    """Column c of an utterance covers fbank frames 10c ... 10c + 15, whichever window contains it."""
    wav, windowing = torch.randn(56000), Windowing(1.0, 10, 16, "none")
    (features,) = LogMel()([wav])
    (windows,) = windowing.cut([wav], LogMel())
    assert [columns_of(window) for window in windows] == [10, 10, 10, 5]
    for c in range(35):
        window, column = windows[c // 10], c % 10
        found = window[10 * column : 10 * column + 16]
        expected = features[10 * c : 10 * c + 16]
        torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=1e-6)
        assert not found[len(expected) :].any()


def test_published_windows():
    """Each window's fbank is computed separately: 98 frames of 100, so one column fewer than its output frames."""
    wav, windowing = torch.randn(24000), Windowing(1.0, 10, 16, "published")
    (windows,) = windowing.cut([wav], LogMel())
    assert [window.shape for window in windows] == [(100, 128)] * 2 and windowing.columns == 9
    second = torch.cat([wav[16000:], torch.zeros(8000)])
    torch.testing.assert_close(windows[1][:98], LogMel()([second])[0], rtol=0, atol=1e-6)
    assert not windows[1][98:].any()
    assert Windowing(10.0, 10, 16, "published").columns == 99


@pytest.mark.parametrize("pooling", ["concat", "mean"])
def test_frames_of_utterances(pooling):
    """The utterances have two windows and one; the second needs one frame more than its window has columns."""
    rows, width = 3, 2
    grids = [torch.randn(rows, columns, width) for columns in (4, 2, 3)]
    class_token = torch.full((1, width), 9.0)
    tokens = torch.cat([part for grid in grids for part in (class_token, grid.flatten(0, 1))])
    windows = [[torch.zeros(4), torch.zeros(2)], [torch.zeros(3)]]
    config = SimpleNamespace(num_patch_rows=rows, columns=lambda frames: frames)
    index = token_index([6, 4], windows, [0, 13, 20], config)
    frames = tokens_to_frames(tokens, index, pooling)
    assert index.shape == (2, 6, rows) and (index[1, 4:] == -1).all()
    columns = [[grids[0][:, c] for c in range(4)] + [grids[1][:, c] for c in range(2)],
               [grids[2][:, c] for c in (0, 1, 2, 2)]]
    for utterance, expected in zip(frames, columns):
        for frame, column in zip(utterance, expected):
            torch.testing.assert_close(frame, column.mean(0) if pooling == "mean" else column.flatten())
    assert not frames[1, 4:].any()
