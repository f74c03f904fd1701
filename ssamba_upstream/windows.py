"""Split utterances into windows of log-mel for the network, and turn its tokens into frames of the utterances.

A frame is one column of patches: the hop is the time stride, and n samples give exactly ceil(n / hop) frames. An
utterance's frames depend on that utterance alone, unless the network's linear layers are quantised dynamically, which
scales their inputs by the largest value of all windows.
"""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .network.configuration import PUBLISHED_FRONT_END, FrontEnd
from .packing import pack

LONGEST_DEFAULT_WINDOW = 10.0  # seconds
DEFAULT_COLUMNS = 100  # in a window, so that the number of tokens does not depend on the hop

# Tokens processed at once: bounds the memory for long recordings, and keeps a GPU busy.
TOKENS_AT_ONCE = 16384


@dataclass(frozen=True)
class Windowing:
    """Rules for splitting utterances into windows.

    Attributes:
        window_secs: length of a window in seconds.
        time_stride: distance between columns in fbank frames.
        patch_width: width of a patch in fbank frames.
        padding: "none": one grid of columns covers the whole utterance, and a window is a run of its columns. Only the
            last column may extend past the end, into zeros. "published": the utterance is zero-padded to whole windows,
            and each is converted to fbank and patches separately. This loses columns at each window's end, so later
            frames come early, and the last frame repeats.
        front_end: FrontEnd of the fbank frames. Default: the published one, with a frame every 10 ms.
        whole: if True, an utterance of any length is a single window, as for causal networks.
    """

    window_secs: float
    time_stride: int
    patch_width: int
    padding: str
    front_end: FrontEnd = PUBLISHED_FRONT_END
    whole: bool = False

    @classmethod
    def for_model(cls, config, window_secs=None, padding="none"):
        """Return the windowing for a network, with the network's strides.

        Args:
            config: the network's SsambaConfig.
            window_secs: window length in seconds. Default: 100 frames, but at most 10 s and at most the whole patches
                of a pretraining clip. A window that ends less than a column after the last "physical" position, as one
                with the length of the pretraining clips can, is cut there.
            padding: see :class:`Windowing`.

        Raises:
            ValueError: If windows are shorter than a patch, or exceed the learned positions and those are "physical";
                or if windows or padding are set for a causal network, which reads whole utterances.
        """
        front_end = config.front_end
        if config.causal and (window_secs is not None or padding != "none"):
            raise ValueError("a causal network reads whole utterances. Leave window_secs and padding out")
        shortest, longest = map(front_end.seconds_of, (config.patch_size[1], config.learned_frames))
        if window_secs is None:
            hundred = front_end.seconds_of(DEFAULT_COLUMNS * config.time_stride)
            window_secs = max(shortest, min(LONGEST_DEFAULT_WINDOW, longest, hundred))
        if not shortest <= window_secs:
            raise ValueError(f"window_secs must be at least one patch, {shortest} s; got {window_secs}")
        windowing = cls(window_secs, config.time_stride, config.patch_size[1], padding, front_end, config.causal)
        if config.positions != "physical" or windowing.columns <= config.most_columns:
            return windowing
        if windowing.fbank_frames // config.time_stride > config.most_columns:
            raise ValueError(
                f"window_secs={window_secs} is longer than the {longest:g} s for which the checkpoint has learned "
                'positions. Use shorter windows, or positions="published", which stretches them'
            )
        return replace(windowing, window_secs=front_end.seconds_of(config.most_columns * config.time_stride))

    @property
    def hop(self):
        """Distance between frames in samples."""
        return self.time_stride * self.front_end.shift_samples

    @property
    def window_samples(self):
        return round(self.window_secs * self.front_end.sampling_rate)

    @property
    def fbank_frames(self):
        """Number of whole fbank frame shifts in a full window."""
        return self.window_samples // self.front_end.shift_samples

    @property
    def columns(self):
        """Number of columns in a full window."""
        if self.padding == "published":
            return (self.fbank_frames - self.patch_width) // self.time_stride + 1
        return max(1, round(self.fbank_frames / self.time_stride))

    def frames(self, samples):
        """Return the number of frames of an utterance, given in samples: ceil(samples / hop)."""
        return -(-samples // self.hop)

    def shares_of_audio(self, samples):
        """Return (frames,): the fraction, from 1 to 0, of each frame's patches that lies within an utterance of this
        length in samples. The rest is zeros past the end. Assumes ``padding="none"``."""
        fbank_frames = max(1, self.front_end.frames_of(samples))
        begins = torch.arange(self.frames(samples)) * self.time_stride
        return (fbank_frames - begins).clamp(0, self.patch_width).float() / self.patch_width

    def cut(self, wavs, log_mel):
        """Map a list of (samples,) to each utterance's windows in order, as a list of (fbank frames, mel)."""
        return (self._cut_published if self.padding == "published" else self._cut_running)(wavs, log_mel)

    def _cut_running(self, wavs, log_mel):
        counts = [self.frames(len(wav)) for wav in wavs]
        # An utterance shorter than one analysis window still has a frame.
        wavs = log_mel.at_least_one_frame(wavs)
        return [self.windows_of(fbank, count) for fbank, count in zip(log_mel(wavs), counts)]

    def windows_of(self, fbank, count):
        """Split log-mel, (fbank frames, mel), into windows of its first ``count`` columns, zero-padded at the end."""
        columns = count if self.whole else self.columns
        return [_fit(fbank[first * self.time_stride:],
                     (min(columns, count - first) - 1) * self.time_stride + self.patch_width)
                for first in range(0, count, columns)]

    def _cut_published(self, wavs, log_mel):
        parts = [wav.split(self.window_samples) for wav in wavs]
        padded = [F.pad(part, (0, self.window_samples - len(part))) for run in parts for part in run]
        windows = iter(_fit(fbank, self.fbank_frames) for fbank in log_mel(padded))
        return [[next(windows) for _ in run] for run in parts]


def _fit(fbank, length):
    """Cut or zero-pad log-mel, (fbank frames, mel), at the end to (length, mel)."""
    return F.pad(fbank[:length], (0, 0, 0, max(0, length - len(fbank))))


def encode(windows, model):
    """Encode windows of any lengths with the network, many at a time.

    Args:
        windows: list of (fbank frames, mel).
        model: a SsambaModel.

    Returns:
        (layers, firsts). ``layers`` holds the concatenated tokens of all windows, (total tokens, E) in float32, for
        every hidden state and finally for ``last_hidden_state``. ``firsts`` holds the index of each window's first
        token, its class token.
    """
    packs, sizes = [], [model.config.tokens(len(window)) for window in windows]
    for members in pack(sizes, TOKENS_AT_ONCE):
        output = model([windows[i] for i in members], output_hidden_states=True)
        packs.append([state.squeeze(0).float() for state in (*output.hidden_states, output.last_hidden_state)])
    layers = []
    while packs[0]:  # free each part as soon as it is concatenated
        parts = [states.pop(0) for states in packs]
        layers.append(torch.cat(parts) if len(parts) > 1 else parts[0])
    return layers, [0, *itertools.accumulate(sizes)][:-1]


def token_index(counts, windows, firsts, config):
    """Return the indices of the tokens that make up each utterance's frames.

    Args:
        counts: number of frames wanted for each utterance.
        windows: each utterance's windows, see :meth:`Windowing.cut`.
        firsts: index of each window's class token, see :func:`encode`.
        config: the network's SsambaConfig.

    Returns:
        (utterances, largest count, rows): token indices, lowest band first, -1 past the end of an utterance. If the
        windows have too few frames, the last one repeats.
    """
    rows, firsts = config.num_patch_rows, iter(firsts)
    index = torch.full((len(counts), max(counts), rows), -1)
    for row, count, run in zip(index, counts, windows, strict=True):
        widths = [config.columns(len(window)) for window in run]
        frames = torch.cat([
            next(firsts) + 1 + torch.arange(width)[:, None] + torch.arange(rows) * width for width in widths
        ])
        row[:count] = frames[torch.arange(count).clamp(max=len(frames) - 1)]
    return index


def tokens_to_frames(tokens, index, pooling):
    """Assemble the utterances' frames from the tokens of all windows.

    Args:
        tokens: (total tokens, E).
        index: (utterances, frames, rows), see :func:`token_index`.
        pooling: "concat": a column's patches concatenated, lowest band first; "mean": their mean.

    Returns:
        (utterances, frames, rows * E) or (utterances, frames, E); zero past the end of an utterance.
    """
    patches = tokens[index.clamp(min=0)]
    frames = patches.mean(dim=2) if pooling == "mean" else patches.flatten(2)
    return frames.masked_fill_(index[..., :1] < 0, 0)
