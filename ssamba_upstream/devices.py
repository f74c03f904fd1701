"""From the CPU to where a network computes."""

import torch


def send(tensor, device):
    """A tensor on a device. A GPU is not waited for: what goes there goes through pinned memory, in its stream's
    turn; but for torch.compile, which knows no pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
