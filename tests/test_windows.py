"""Windows and frames against definitions written out."""

import math

import pytest
import torch

from ssamba_upstream.frontend import LogMel
from ssamba_upstream.windows import Windowing, frame_index, tokens_to_frames


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


def test_the_grid_of_columns_runs_through_the_windows():
    """Column c of the utterance is fbank frames 10c ... 10c + 15, whichever window it falls into."""
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
    """Each whole window's fbank by itself, 98 frames of 100; one column fewer than the frames it stands for."""
    wav, windowing = torch.randn(24000), Windowing(1.0, 10, 16, "published")
    (windows,) = windowing.cut([wav], LogMel())
    assert [window.shape for window in windows] == [(100, 128)] * 2 and windowing.columns == 9
    second = torch.cat([wav[16000:], torch.zeros(8000)])
    torch.testing.assert_close(windows[1][:98], LogMel()([second])[0], rtol=0, atol=1e-6)
    assert not windows[1][98:].any()
    assert Windowing(10.0, 10, 16, "published").columns == 99


def test_frames_of_tokens():
    rows, columns, width = 3, 4, 2
    grid = torch.randn(5, rows, columns, width)
    tokens = torch.cat([torch.full((5, 1, width), 9.0), grid.flatten(1, 2)], dim=1)
    concatenated = tokens_to_frames(tokens, rows, "concat")
    assert concatenated.shape == (5, columns, rows * width)
    torch.testing.assert_close(concatenated[2, 1], torch.cat([grid[2, row, 1] for row in range(rows)]))
    torch.testing.assert_close(tokens_to_frames(tokens, rows, "mean"), grid.mean(1))


def test_frames_of_utterances():
    index = frame_index([3, 5, 1], [[(10, 2), (4, 2)], [(0, 3)], [(7, 9)]])
    assert index.tolist() == [[10, 11, 4, -1, -1], [0, 1, 2, 2, 2], [7, -1, -1, -1, -1]]
