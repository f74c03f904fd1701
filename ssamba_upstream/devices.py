"""From the CPU to where a network computes."""


def send(tensor, device):
    """A tensor on a device. A GPU is not waited for: what goes there goes through pinned memory, in its stream's
    turn."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
