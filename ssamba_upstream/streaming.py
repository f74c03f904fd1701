"""Streaming: a causal network's frames as audio arrives, with a state carried from chunk to chunk."""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from .frontend import as_tensor, check_waveforms


@dataclass
class StreamOutput(BaseModelOutput):
    """Newly completed frames of all streams: ``hidden_states`` and ``last_hidden_state`` as from a FrameEncoder,
    (streams, frames, width), zero past the end of each stream. ``frames`` lists the number of frames per stream."""

    frames: list | None = None


class FrameStream:
    """Encoder of audio streams that returns frames as they are completed: in total, the same as a FrameEncoder.

    Between chunks it keeps, for each stream, the samples from the next column on and the state of every block: at most
    ``state_bytes``, in float32, however long the stream is. No gradients are computed.

    Args:
        encoder: the :class:`ssamba_upstream.frames.FrameEncoder` of a causal network; others raise a ValueError.
        count: number of simultaneous, independent streams.
    """

    @torch.no_grad()
    def __init__(self, encoder, count=1):
        config, front_end = encoder.model.config, encoder.log_mel.front_end
        self.encoder, self.count, self._device = encoder, count, encoder.model.device
        self._column = front_end.samples_of(config.patch_size[1])
        of_a_block = config.intermediate_size * (config.conv_kernel - 1 + config.state_size)
        self.state_bytes = 4 * (config.num_hidden_layers * of_a_block + self._column)
        with encoder.autocast(self._device.type):
            self._start = encoder.model.start(1)
        self.reset()

    def reset(self, stream=None):
        """Restart one stream, given by its number, or all. Samples of incomplete frames are discarded."""
        if stream is None:
            self._samples, self._given = [torch.zeros(0, device=self._device)] * self.count, [0] * self.count
            self._states = [tuple(part.expand(self.count, -1, -1) for part in state) for state in self._start]
            return
        self._samples[stream], self._given[stream] = torch.zeros(0, device=self._device), 0
        place = torch.tensor([stream], device=self._device)
        self._states = [tuple(part.index_copy(0, place, first) for part, first in zip(*pair))
                        for pair in zip(self._states, self._start)]

    @torch.no_grad()
    def push(self, wavs):
        """Process the next samples.

        Args:
            wavs: (samples,) for a single stream, or a list with the samples of each stream, in a form accepted by
                FrameEncoder; any number of samples, including none.

        Returns:
            StreamOutput: the frames completed by these samples.

        Raises:
            ValueError: If the number of waveforms differs from that of streams, or FrameEncoder rejects a waveform.
        """
        wavs = [as_tensor(wav) for wav in (wavs if isinstance(wavs, (list, tuple)) else [wavs])]
        if len(wavs) != self.count:
            raise ValueError(f"got {len(wavs)} waveforms for {self.count} streams. Give one for each, empty if "
                             "there are no new samples")
        new = {i: wav for i, wav in enumerate(wavs) if wav.dim() != 1 or len(wav)}
        for i, wav in zip(new, check_waveforms([*new.values()], self.encoder.sampling_rate) if new else ()):
            self._samples[i] = torch.cat([self._samples[i], wav.to(self._device)])
        hop = self.encoder.windowing.hop
        return self._listen([max(0, (len(samples) - self._column) // hop + 1) for samples in self._samples])

    @torch.no_grad()
    def finish(self):
        """Return the remaining frames as a StreamOutput, zero-padding the last columns, and restart."""
        counts = [self.encoder.windowing.frames(len(samples)) for samples in self._samples]
        for i, samples in enumerate(self._samples):
            if counts[i] and not self._given[i]:  # even a single sample has a frame
                (self._samples[i],) = self.encoder.log_mel.at_least_one_frame([samples])
        output = self._listen(counts)
        self.reset()
        return output

    def _listen(self, counts):
        """Return a StreamOutput of each stream's next columns, given their numbers."""
        encoder, width = self.encoder, self.encoder.windowing.patch_width
        streams = [i for i, count in enumerate(counts) if count]
        if not streams:
            empty = torch.zeros(self.count, 0, encoder.width, device=self._device)
            return StreamOutput(empty, (empty,) * (len(self._start) + 1), frames=counts)
        strips = []
        for i, features in zip(streams, encoder.log_mel([self._samples[i] for i in streams])):
            (window,) = encoder.windowing.windows_of(features, counts[i])
            strips.append(window.unfold(0, width, encoder.windowing.time_stride).transpose(1, 2))
            self._given[i] += counts[i]
            self._samples[i] = self._samples[i][counts[i] * encoder.windowing.hop :].clone()  # a view keeps all of them
        offsets = torch.tensor([0, *counts]).cumsum(0).to(self._device) if self.count > 1 else None
        with encoder.autocast(self._device.type):
            layers = encoder.model.listen(torch.cat(strips), self._states, offsets)
        layers = [layer.mean(1) if encoder.frequency_pooling == "mean" else layer.flatten(1) for layer in layers]
        *hidden, last = [pad_sequence(layer.float().split(counts), batch_first=True) for layer in layers]
        return StreamOutput(last, tuple(hidden), frames=counts)
