"""Transfers between the CPU and a network's device."""

import atexit
import collections
import contextlib
import math
import threading

import torch

_unread = collections.deque()  # (number being copied to the CPU, CUDA event of the copy's end, function to call)
_reading = threading.Lock()


def send(tensor, device):
    """Return a tensor on a device. Copies to a GPU are asynchronous, through pinned memory, except under torch.compile,
    which does not support pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def call_unless_finite(number, function):
    """Call a function without arguments if a tensor of one element is NaN or infinite.

    For a CPU tensor it is called immediately. A GPU tensor is copied asynchronously, and no kernel is launched; its
    value is checked by the first later call that finds the copy done, or at the end of the process.
    """
    if number.device.type == "cpu":
        if not math.isfinite(number):
            function()
        return
    with torch.cuda.device(number.device):
        known, event = number.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
    read_numbers()
    _unread.append((known, event, function))


def read_numbers():
    """Check the GPU numbers whose copies have finished, see :func:`call_unless_finite`."""
    functions = []
    with _reading:
        while _unread and _unread[0][1].query():
            known, _, function = _unread.popleft()
            if not math.isfinite(known):
                functions.append(function)
    for function in functions:
        function()


@atexit.register
def _read_the_last_numbers():
    with contextlib.suppress(RuntimeError):  # from a failed GPU, which the process has already reported
        for _, event, _ in [*_unread]:
            event.synchronize()
        read_numbers()
