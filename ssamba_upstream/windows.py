"""Utterances -> windows of log-mel that the network reads, and its tokens -> frames of the utterances.

A frame is one column of patches: the hop is the time stride, and n samples give exactly ceil(n / hop) frames. Frames
of an utterance depend on that utterance alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .frontend import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE

# Tokens sent through the network at once: bounds the memory of long recordings, and keeps a GPU busy.
TOKENS_AT_ONCE = 16384


@dataclass(frozen=True)
class Windowing:
    """How utterances are cut into windows.

    Attributes:
        window_secs: length of a window in seconds.
        time_stride: distance of columns in fbank frames of 10 ms.
        patch_frames: width of a patch in fbank frames.
        padding: "none": the grid of columns runs through the whole utterance, a window is a run of its columns, and
            only the last column may need fbank frames past the end, which are zero. "published": the utterance is
            zero-padded to whole windows, each of which is turned into fbank and patches by itself; the columns this
            loses at each window's end make the later frames come early, and the last frame repeats.
    """

    window_secs: float
    time_stride: int
    patch_frames: int
    padding: str

    @property
    def hop(self):
        """Samples from frame to frame."""
        return self.time_stride * FRAME_SHIFT

    @property
    def window_samples(self):
        return round(self.window_secs * SAMPLE_RATE)

    @property
    def columns(self):
        """Columns in a full window."""
        frames = self.window_samples // FRAME_SHIFT
        if self.padding == "published":
            return (frames - self.patch_frames) // self.time_stride + 1
        return max(1, round(frames / self.time_stride))

    def frames(self, samples):
        """Frames of an utterance of so many samples: ceil(samples / hop)."""
        return -(-samples // self.hop)

    def cut(self, wavs, log_mel):
        """list of (samples,) -> for each utterance, its windows in order: a list of (fbank frames, mel)."""
        return (self._cut_published if self.padding == "published" else self._cut_running)(wavs, log_mel)

    def _cut_running(self, wavs, log_mel):
        counts = [self.frames(len(wav)) for wav in wavs]
        # An utterance shorter than one analysis window still has something to say.
        wavs = [F.pad(wav, (0, max(0, FRAME_LENGTH - len(wav)))) for wav in wavs]
        return [
            [self._columns_of(features, first, min(self.columns, count - first))
             for first in range(0, count, self.columns)]
            for features, count in zip(log_mel(wavs), counts)
        ]

    def _columns_of(self, features, first, count):
        start = first * self.time_stride
        return _fit(features[start:], (count - 1) * self.time_stride + self.patch_frames)

    def _cut_published(self, wavs, log_mel):
        parts = [wav.split(self.window_samples) for wav in wavs]
        padded = [F.pad(part, (0, self.window_samples - len(part))) for run in parts for part in run]
        windows = iter(_fit(features, self.window_samples // FRAME_SHIFT) for features in log_mel(padded))
        return [[next(windows) for _ in run] for run in parts]


def _fit(features, frames):
    """(any number of frames, mel) -> (frames, mel), cut at the end or zero-padded there."""
    return F.pad(features[:frames], (0, 0, 0, max(0, frames - len(features))))


def encode(windows, model, pooling):
    """Send windows through the network, many of the same length at a time.

    Args:
        windows: list of (fbank frames, mel), of any lengths.
        model: a SsambaModel.
        pooling: how the patches of a column become a frame's feature, see :func:`tokens_to_frames`.

    Returns:
        (layers, offsets): for every hidden state, and last for ``last_hidden_state``, the frames of all windows one
        after the other, (total frames, D); and for every window, the index of its first frame among them.
    """
    groups = _groups_of_equal_length(windows, model.config)
    pieces, offsets, total = [], [None] * len(windows), 0
    for group in groups:
        output = model(torch.stack([windows[i] for i in group]), output_hidden_states=True)
        states = (*output.hidden_states, output.last_hidden_state)
        frames = [tokens_to_frames(state, model.config.num_patch_rows, pooling) for state in states]
        del output, states
        for i in group:
            offsets[i] = total
            total += frames[0].shape[1]
        pieces.append([state.flatten(0, 1).float() for state in frames])
    layers = []
    for _ in range(len(pieces[0])):
        layers.append(torch.cat([piece.pop(0) for piece in pieces]))
    return layers, offsets


def _groups_of_equal_length(windows, config):
    by_length = {}
    for i, window in enumerate(windows):
        by_length.setdefault(len(window), []).append(i)
    for length, members in by_length.items():
        columns = (length - config.patch_size[1]) // config.time_stride + 1
        size = max(1, TOKENS_AT_ONCE // (1 + config.num_patch_rows * columns))
        for start in range(0, len(members), size):
            yield members[start : start + size]


def tokens_to_frames(tokens, rows, pooling):
    """Tokens of a window -> its frames.

    Args:
        tokens: (batch, 1 + rows * columns, E), class token first, then frequency-major.
        rows: patches in a column.
        pooling: "concat": the patches of a column one after the other, lowest band first; "mean": their mean.

    Returns:
        (batch, columns, rows * E) or (batch, columns, E).
    """
    grid = tokens[:, 1:].unflatten(1, (rows, -1))
    return grid.mean(dim=1) if pooling == "mean" else grid.transpose(1, 2).flatten(2)


def frame_index(counts, runs):
    """Where each utterance finds its frames.

    Args:
        counts: frames wanted of each utterance.
        runs: for each utterance, the (offset, length) of its windows among all frames.

    Returns:
        (utterances, largest count): indices of frames; -1 where an utterance has ended. Frames that its windows do
        not have repeat their last one.
    """
    index = torch.full((len(counts), max(counts)), -1)
    for row, count, windows in zip(index, counts, runs):
        frames = torch.cat([torch.arange(offset, offset + length) for offset, length in windows])
        row[:count] = frames[torch.arange(count).clamp(max=len(frames) - 1)]
    return index
