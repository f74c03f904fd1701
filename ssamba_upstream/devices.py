"""Between the CPU and where a network computes."""

import atexit
import collections
import contextlib
import math
import threading

import torch

_unread = collections.deque()  # (flag on its way to the CPU, the CUDA event after which it is there, what to call)
_reading = threading.Lock()


def send(tensor, device):
    """A tensor on a device. A GPU is not waited for: what goes there goes through pinned memory, in its stream's
    turn; but for torch.compile, which knows no pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def call_unless_finite(number, function):
    """Call a function without arguments if a tensor of one element is NaN or infinite.

    On a CPU it is called at once. A GPU is not waited for: its numbers are read by the later calls that find them
    known, and at the end of the process. Nothing is launched there but the copy.
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
    """Read the numbers of GPUs that are known by now, see :func:`call_unless_finite`."""
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
    with contextlib.suppress(RuntimeError):  # from a GPU that has failed, as the process has said already
        for _, event, _ in [*_unread]:
            event.synchronize()
        read_numbers()
