"""Frames as audio arrives: a causal network's state, carried from chunk to chunk."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from .frontend import as_tensor, check_waveforms


@dataclass
class StreamOutput(BaseModelOutput):
    """The frames that are complete.

    Attributes:
        last_hidden_state, hidden_states: as of a FrameEncoder, (streams, frames, width) each; zero past a stream's own
            number of frames.
        frames: those of each stream, a list.
    """

    frames: list | None = None


class FrameStream:
    """Streams of audio in, the frames that are complete out; in the end as many as a FrameEncoder gives, and the same.

    Between two chunks it keeps, of each stream, the samples and log-mel that the next column sees, and the state of
    every block: ``state_bytes``, however long the stream is. No gradients are computed.

    Args:
        encoder: the :class:`ssamba_upstream.frames.FrameEncoder` of a causal network.
        count: streams that are heard at the same time, each by itself.

    Raises:
        ValueError: the network is not causal.
    """

    @torch.no_grad()
    def __init__(self, encoder, count=1):
        self.encoder, self.count = encoder, count
        self._device = encoder.model.device
        with encoder.autocast(self._device.type):
            self._start = encoder.model.start(1)
        self.reset()

    @property
    def state_bytes(self):
        """The most bytes that are kept of a stream, in float32."""
        config, front_end = self.encoder.model.config, self.encoder.log_mel.front_end
        of_a_block = config.intermediate_size * (config.conv_kernel - 1 + config.state_size)
        log_mel = config.patch_size[1] * config.num_mel_bins
        return 4 * (config.num_hidden_layers * of_a_block + front_end.frame_samples + log_mel)

    def reset(self, stream=None):
        """Begin anew: a stream by its number, or all. What is not complete is forgotten."""
        if stream is None:
            self._streams = [self._beginning() for _ in range(self.count)]
            self._states = [tuple(part.expand(self.count, -1, -1) for part in state) for state in self._start]
            return
        self._streams[stream] = self._beginning()
        for i, start in enumerate(self._start):
            self._states[i] = tuple(part.clone() for part in self._states[i])
            for part, first in zip(self._states[i], start):
                part[stream] = first[0]

    @torch.no_grad()
    def push(self, wavs):
        """Hear the next samples.

        Args:
            wavs: (samples,) of a single stream, or a list with those of each stream, as a FrameEncoder takes them; any
                number of samples, also none.

        Returns:
            StreamOutput: the frames that these samples complete.

        Raises:
            ValueError: another number of waveforms than streams, or one that a FrameEncoder does not take.
        """
        wavs = [as_tensor(wav) for wav in (wavs if isinstance(wavs, (list, tuple)) else [wavs])]
        if len(wavs) != self.count:
            raise ValueError(f"got {len(wavs)} waveforms for {self.count} streams. Give one for each, empty if it is "
                             "silent for now")
        heard = [i for i, wav in enumerate(wavs) if wav.dim() != 1 or len(wav)]
        if not heard:
            return self._listen([stream.strips(0) for stream in self._streams])
        checked = check_waveforms([wavs[i] for i in heard], self.encoder.sampling_rate)
        self._hear(heard, [wav.to(self._device) for wav in checked])
        return self._listen([stream.strips(stream.complete) for stream in self._streams])

    @torch.no_grad()
    def finish(self):
        """Return the rest as a StreamOutput, the last columns with zeros past the end, and begin anew."""
        log_mel = self.encoder.log_mel
        short = [i for i, stream in enumerate(self._streams) if 0 < stream.heard < log_mel.front_end.frame_samples]
        if short:  # even these have a frame
            wavs = log_mel.at_least_one_frame([self._streams[i].samples for i in short])
            for i, features in zip(short, log_mel(wavs)):
                self._streams[i].log_mel = features
        windowing = self.encoder.windowing
        output = self._listen([stream.strips(windowing.frames(stream.heard) - stream.given)
                               for stream in self._streams])
        self.reset()
        return output

    def _beginning(self):
        config = self.encoder.model.config
        return _Stream(torch.zeros(0, device=self._device), torch.zeros(0, config.num_mel_bins, device=self._device),
                       config.time_stride, config.patch_size[1])

    def _hear(self, numbers, wavs):
        streams, shift = [self._streams[i] for i in numbers], self.encoder.log_mel.front_end.shift_samples
        joined = [torch.cat([stream.samples, wav]) for stream, wav in zip(streams, wavs)]
        for stream, wav, samples, features in zip(streams, wavs, joined, self.encoder.log_mel(joined)):
            stream.heard += len(wav)
            stream.samples = samples[shift * len(features) :].clone()  # a view would keep all of them
            stream.log_mel = torch.cat([stream.log_mel, features])

    def _listen(self, strips):
        """StreamOutput of each stream's columns of log-mel."""
        encoder, counts = self.encoder, [len(columns) for columns in strips]
        if not sum(counts):
            empty = torch.zeros(self.count, 0, encoder.width, device=self._device)
            return StreamOutput(empty, (empty,) * len(self._start) + (empty,), frames=counts)
        offsets = None
        if self.count > 1:
            offsets = torch.tensor([0, *counts]).cumsum(0).to(self._device)
        with encoder.autocast(self._device.type):
            layers = encoder.model.listen(torch.cat(strips), self._states, offsets)
        layers = [layer.mean(1) if encoder.frequency_pooling == "mean" else layer.flatten(1) for layer in layers]
        *hidden, last = [pad_sequence(layer.float().split(counts), batch_first=True) for layer in layers]
        return StreamOutput(last, tuple(hidden), frames=counts)


@dataclass
class _Stream:
    """What is kept of a stream: samples and log-mel (frames, mel), from where the next frame and the next column begin
    on; how many samples were heard, and columns given."""

    samples: torch.Tensor
    log_mel: torch.Tensor
    stride: int
    width: int
    heard: int = 0
    given: int = 0

    @property
    def complete(self):
        """Columns whose log-mel is there."""
        return max(0, (len(self.log_mel) - self.width) // self.stride + 1)

    def strips(self, count):
        """(columns, width, mel): the next columns, with zeros past the end; they are given then."""
        if not count:
            return self.log_mel.new_zeros(0, self.width, self.log_mel.shape[1])
        lacking = (count - 1) * self.stride + self.width - len(self.log_mel)
        columns = F.pad(self.log_mel, (0, 0, 0, max(0, lacking))).unfold(0, self.width, self.stride)[:count]
        self.log_mel, self.given = self.log_mel[count * self.stride :].clone(), self.given + count
        return columns.transpose(1, 2)
