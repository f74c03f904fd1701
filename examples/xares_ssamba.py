"""X-ARES: run ``python -m xares.run examples/xares_ssamba.py src/tasks/*.py`` in a folder that has ``examples``.

X-ARES uses the only name in this file that ends in "Encoder".
"""

import torch

from ssamba_upstream import frames


class SsambaEncoder(torch.nn.Module):
    """A checkpoint for X-ARES: a frame every 40 ms, the final norm of the last block."""

    def __init__(self, checkpoint="ssamba_starter"):
        super().__init__()
        options = frames.UpstreamOptions(time_stride=4, frequency_pooling="mean")
        self.encoder = frames.FrameEncoder.from_checkpoint(checkpoint, options).eval()
        self.sampling_rate, self.output_dim = self.encoder.sampling_rate, self.encoder.width
        self.hop_size_in_ms = 1000 * self.encoder.windowing.hop // self.sampling_rate

    def forward(self, audio):
        """Return (batch, frames, output_dim) for (batch, samples)."""
        with torch.no_grad():
            return self.encoder(list(audio)).last_hidden_state
