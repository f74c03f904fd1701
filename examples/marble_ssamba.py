"""MARBLE: set ``class_path: marble_ssamba.SsambaEncoder`` in a config, and add this file's folder to ``PYTHONPATH``."""

import torch
from marble.core.base_encoder import BaseEncoder

from ssamba_upstream import FrameEncoder


class SsambaEncoder(BaseEncoder):
    """A frozen checkpoint for MARBLE, which selects or weights the hidden states."""

    def __init__(self, checkpoint="ssamba_starter"):
        super().__init__()
        self.encoder = FrameEncoder.from_checkpoint(checkpoint).requires_grad_(False)

    def forward(self, x, *args, **kwargs):
        """Return depth + 1 tensors (batch, frames, width) for (batch, samples) or (batch, channels, samples)."""
        with torch.no_grad():
            return self.encoder(list(x.mean(dim=1) if x.dim() == 3 else x)).hidden_states
