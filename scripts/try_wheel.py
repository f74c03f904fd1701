"""Test the wheel installed in this environment: load the kernel and compute with the encoder."""

import sys
from pathlib import Path

import torch

import ssamba_upstream
from ssamba_upstream import FrameEncoder
from ssamba_upstream.ops import cpu

if not Path(ssamba_upstream.__file__).is_relative_to(sys.prefix):
    sys.exit(f"{ssamba_upstream.__file__} does not come from a wheel. Install the wheel first")
if cpu.unavailable_reason() is not None:
    sys.exit(f"The wheel's kernel is not used: {cpu.unavailable_reason()}")
encoder = FrameEncoder.from_checkpoint("ssamba_starter").eval()
with torch.no_grad():
    frames = encoder([torch.randn(16000), torch.randn(40000)]).last_hidden_state
if not frames.isfinite().all():
    sys.exit("The encoder's frames are not finite")
print(f"The wheel works: {cpu.instruction_set}, frames {tuple(frames.shape)}")
