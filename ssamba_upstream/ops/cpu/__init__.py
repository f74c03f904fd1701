"""Compiled CPU kernels: the selective scan and the causal convolution, for one or two directions at once, and a mixer's
whole computation between its outer projections.

All arithmetic is in ``kernel.c``, built when the package is installed. It computes in float32; sequences are read and
written as float32 or bfloat16. ``library.py`` loads it through ctypes, so one build works with every version of torch.
``scan.py``, ``convolution.py`` and ``mixer.py`` register it with torch, so torch.compile, autocast,
DistributedDataParallel and activation checkpointing see ordinary operators with a first derivative.

The kernels use the CPU's best instruction set, unless the environment variable SSAMBA_CPU_ISA selects another one
("avx512", "avx2" or "baseline").
"""

import itertools

import torch
from torch import Tensor

from ..ragged import check_offsets
from ..registration import Scan, one_direction
from . import library
from .convolution import convolution_operator, convolve
from .library import instruction_set  # noqa: F401 (part of the public interface)
from .mixer import mix_forward, mixer_operator
from .scan import scan_forward, scan_operator


def unavailable_reason():
    """Return why the compiled kernels are not available, or None if they are."""
    return library.unavailable_reason


def selective_scan_mean_cpu(directions, z, delta_softplus, offsets=None):
    """Implement :func:`ssamba_upstream.ops.selective_scan_mean`. Differentiable once.

    Raises:
        ValueError: If the offsets do not match the batch.
    """
    return _scan(directions, z, delta_softplus, offsets, False)[0]


def causal_convolutions_cpu(x, weights, biases, reverse, offsets=None):
    """Implement :func:`ssamba_upstream.ops.causal_convolutions`. Differentiable once."""
    weights, biases = [w.float() for w in weights], [b.float() for b in biases]
    tensors = [x, *weights, *biases]
    if offsets is not None:
        check_offsets(x, offsets)
        tensors.append(offsets)
    operator = convolve if _call_directly(tensors) else convolution_operator
    return [output.to(x.dtype) for output in operator(_readable(x), weights, biases, offsets, list(reverse))]


def mix_cpu(channels_and_gate, parameters, reverse, offsets=None, state=None):
    """Implement :func:`ssamba_upstream.ops.mix`. Differentiable once, without a state only.

    Args:
        channels_and_gate, offsets, state: see :func:`ssamba_upstream.ops.mix`.
        parameters: one tuple per direction, in the order of :func:`ssamba_upstream.ops.cpu.mixer.mix_forward`.
        reverse: list of bool, True for each direction that runs backwards in time.
    """
    tensors = [channels_and_gate, *itertools.chain(*parameters)]
    if offsets is not None:
        check_offsets(channels_and_gate, offsets)
        tensors.append(offsets)
    direct = state is not None or _call_directly(tensors)
    keep = not direct and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    lists = [list(map(_as_float32, kind)) for kind in zip(*parameters)]
    operator = mix_forward if direct else mixer_operator
    result = operator(_readable(channels_and_gate), *lists, offsets, reverse, keep, *([] if state is None else [state]))
    output = result[0] if result[0].dtype == channels_and_gate.dtype else result[0].to(channels_and_gate.dtype)
    return output if state is None else (output, result[1])


def exponential2(x, out=None):
    """Compute 2**x of a contiguous float32 tensor as the scan does, on one thread. For tests and speed estimates."""
    powers = torch.empty_like(x) if out is None else out
    library.kernels.ssamba_elementary(1, x.data_ptr(), powers.data_ptr(), x.numel())
    return powers


def _scan(directions, z, delta_softplus, offsets, return_last_state):
    given = Scan.of(directions, None if z is None else _readable(z), delta_softplus, offsets)
    scan = given._replace(**{name: [*map(read, getattr(given, name))] for name, read in _SCAN_INPUTS.items()})
    tensors = scan.tensors
    if offsets is not None:
        check_offsets(given.u[0], offsets)
        tensors.append(offsets)
    if _call_directly(tensors):
        output, last_states, _ = scan_forward(scan, return_last_state, False)
    else:
        keep_checkpoints = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        output, last_states, _ = scan_operator(*scan, return_last_state, keep_checkpoints)
    return output.to(given.u[0].dtype), last_states


selective_scan_cpu = one_direction(_scan)


def _readable(tensor):
    """Return a sequence in a dtype that the kernel reads."""
    return tensor if tensor.dtype in (torch.float32, torch.bfloat16) else tensor.float()


def _as_float32(tensor):
    return tensor if tensor.dtype == torch.float32 else tensor.float()


_SCAN_INPUTS = {"u": _readable, "delta": _readable, "A": _as_float32, "B": _readable, "C": _readable,
                "D": _as_float32, "delta_bias": _as_float32, "initial_state": _as_float32}


def _call_directly(tensors):
    """Return True if torch's dispatcher is not needed; it can take longer than a small scan."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return {Tensor, torch.nn.Parameter}.issuperset(map(type, tensors))
