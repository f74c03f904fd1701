"""The library built from ``kernel.c``: finds it, loads it through ctypes, and calls its functions."""

import array
import contextlib
import ctypes
import importlib.util
import itertools
import os
from pathlib import Path

import torch

from ..ragged import boundaries
from ..registration import count_sequences

TILE, GROUP, WIDEST = 32, 64, 16  # as in kernel.c
LAYOUT = [124, 38]  # number of fields in its structs Scan and Convolution
_KERNELS = ("scan_forward", "scan_backward", "convolution_forward", "convolution_backward")


def load():
    """Load the library. Return (library, name of the instruction set, None), or (None, None, reason for failure)."""
    spec = importlib.util.find_spec(f"{__package__}._kernel")
    if spec is None:
        return None, None, "it was not built: installing the package found no C compiler"
    try:
        found = ctypes.CDLL(spec.origin)
    except OSError as error:
        return None, None, f"it does not load: {error}"
    layout = (ctypes.c_int64 * 2).in_dll(found, "ssamba_layout") if hasattr(found, "ssamba_layout") else ()
    if list(layout) != LAYOUT:
        return None, None, "it was built from another kernel.c: install the package again"
    found.ssamba_select.argtypes, found.ssamba_select.restype = [ctypes.c_char_p], ctypes.c_char_p
    found.ssamba_elementary.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    found.ssamba_sum.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3
    found.ssamba_use_team.argtypes = [ctypes.c_void_p]
    for name in _KERNELS:
        getattr(found, f"ssamba_{name}").argtypes = [ctypes.c_void_p]
    found.ssamba_use_team(torch_team())
    # A forked process has none of the runtime's threads, and the runtime would wait for them.
    os.register_at_fork(after_in_child=lambda: found.ssamba_use_team(None))
    wanted = os.environ.get("SSAMBA_CPU_ISA")
    chosen = found.ssamba_select(wanted.encode() if wanted else None)
    if chosen is None:
        return None, None, f"SSAMBA_CPU_ISA={wanted} is not an instruction set of this CPU"
    return found, chosen.decode(), None


def torch_team():
    """Return the address of GOMP_parallel in torch's OpenMP runtime (GCC's), or None."""
    for name in [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*")), "libgomp.so.1"]:
        with contextlib.suppress(OSError):
            runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # only if torch has loaded it
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    return None


kernels, instruction_set, unavailable_reason = load()


# The kernel's arguments are structs of 64-bit fields, so they are passed as arrays of int, in kernel.c's order. Each
# call rebuilds them, in a microsecond or two, so that they never hold the address of a freed tensor.

NO_SEQUENCE = (0, 0, 0, 0, 0)
_NO_GRADIENTS = (0, 0) + 2 * NO_SEQUENCE + 7 * (0,)
_SET_BY_THE_KERNEL = 0
_PLACE_FIELDS = 6


def run_scan(
    backward, directions, shape, found, states, z, output, grad_z=NO_SEQUENCE, softplus=False, done=0,
    total=None, rank=0, logarithmic=False, sum_width=0,
):
    """Run a scan or its backward pass. The arguments are the fields of the kernel's ``Scan``, see kernel.c.

    Args:
        directions: one :func:`scan_direction` per direction.
        shape: (batch, channels, length).
        found: :func:`places` of the sequences.
        z, output, grad_z: a :func:`sequence` each; in the backward pass, ``output`` is the output's gradient.
    """
    _run(kernels.ssamba_scan_backward if backward else kernels.ssamba_scan_forward, (
        torch.get_num_threads(), *_batch(shape, found), states, softplus, len(directions), done,
        total or len(directions), rank, logarithmic, sum_width, *z, *output, *grad_z, _SET_BY_THE_KERNEL,
        *itertools.chain(*directions),
    ))


def scan_direction(
    u, delta, B, C, A, D, bias, step_weight, reverse, initial_state=None, last_state=None, checkpoints=None,
    gradients=_NO_GRADIENTS,
):
    """Return the kernel's ``Direction``. u, delta, B and C are a :func:`sequence` each; ``gradients`` are
    :func:`scan_gradients`; all others are contiguous tensors that the caller keeps alive."""
    return (
        *u, *delta, *B, *C, A.data_ptr(), _address(D), _address(bias), _address(step_weight), reverse,
        _address(initial_state), _address(last_state), _address(checkpoints), *gradients,
    )


def scan_gradients(
    grad_u, grad_delta, grad_last_state=None, A=None, D=None, bias=None, step_weight=None, low=None, B=None, C=None,
    initial_state=None,
):
    """Return the fields of the kernel's ``Direction`` for the backward pass. The first two are a :func:`sequence` each,
    all others contiguous tensors: the last state's gradient, and buffers for the gradients."""
    parts = map(_address, (A, D, bias, step_weight, low, B, C))
    return _address(grad_last_state), _address(initial_state), *grad_u, *grad_delta, *parts


def run_convolution(backward, taps, shape, found, width, x, grad_x=NO_SEQUENCE):
    """Run a convolution or its backward pass. ``taps`` holds one :func:`convolution_taps` per direction; x and its
    gradient are a :func:`sequence` each; for ``shape`` and ``found`` see :func:`run_scan`."""
    _run(kernels.ssamba_convolution_backward if backward else kernels.ssamba_convolution_forward, (
        torch.get_num_threads(), *_batch(shape, found), width, len(taps), *x, *grad_x, *itertools.chain(*taps),
    ))


def convolution_taps(weight, bias, reverse, output, grad_weight=None, grad_bias=None):
    """Return the kernel's ``Taps``. ``output`` is a :func:`sequence`, in the backward pass the output's gradient."""
    return weight.data_ptr(), bias.data_ptr(), reverse, *output, _address(grad_weight), _address(grad_bias)


def sequence(tensor):
    """Return the kernel's ``Sequence`` for a tensor (batch, channels, length) or None."""
    if tensor is None:
        return NO_SEQUENCE
    size, (batch, channel, time) = tensor.element_size(), tensor.stride()
    return tensor.data_ptr(), batch * size, channel * size, time * size, size


def columns(tensor, *firsts):
    """Return the kernel's ``Sequence`` for a tensor (batch, length, channels), starting at each of these channels."""
    size, (batch, time, channel) = tensor.element_size(), tensor.stride()
    start, strides = tensor.data_ptr(), (batch * size, channel * size, time * size, size)
    return [(start + first * channel * size, *strides) for first in firsts]


def add_up(parts):
    """Sum contiguous parts, (count, ...), always in their order."""
    total = parts.new_empty(parts.shape[1:])
    if kernels.ssamba_sum(parts.data_ptr(), total.data_ptr(), len(parts), total.numel(), torch.get_num_threads()):
        raise MemoryError("the compiled kernel found no memory for its working space")
    return total


def places(length, offsets):
    """Return the kernel's ``Place`` for every sequence, as an array, or None without offsets.

    The longest comes first, so that it is not left to the end, when other threads are idle. The checkpoints of sequence
    i begin at start // TILE + i: enough for its tiles, and their total number follows from the shapes alone.
    """
    if offsets is None:
        return None
    found = [
        (i, 0, start, end - start, start // TILE + i, end // TILE + 1 - start // TILE)
        for i, (start, end) in enumerate(itertools.pairwise(boundaries(length, offsets)))
    ]
    found.sort(key=lambda place: place[3], reverse=True)
    return array.array("q", itertools.chain.from_iterable(found))


def empty_checkpoints(directions, x, offsets, states):
    """Return a buffer for every direction's state before each tile."""
    batch, channels, length = x.shape
    tiles = batch * -(-length // TILE) if offsets is None else length // TILE + count_sequences(x, offsets)
    return empty(x, directions, tiles, states, -(-channels // WIDEST) * WIDEST)


def cleared(checkpoints, x, offsets):
    """Zero the checkpoints if some places will stay unfilled, so that equal inputs give equal outputs for any width of
    the vectors."""
    return checkpoints.zero_() if x.shape[1] % WIDEST or offsets is not None else checkpoints


def empty(like, *shape):
    """Return an empty float32 tensor on another's device."""
    return like.new_empty(shape, dtype=torch.float32)


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _batch(shape, found):
    """Return the kernel's ``Batch``."""
    places = (shape[0], 0) if found is None else (len(found) // _PLACE_FIELDS, found.buffer_info()[0])
    return *shape, *places


def _run(function, fields):
    struct = array.array("q", fields)
    if function(struct.buffer_info()[0]):
        raise MemoryError("the compiled kernel found no memory for its working space")
