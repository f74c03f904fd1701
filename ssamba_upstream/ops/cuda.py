"""The CUDA kernels of mamba-ssm and causal-conv1d, when they are installed.

Both only walk forwards in time, so the reverse direction flips its inputs and its output. They take less than the other
backends do, and refuse the rest with a ValueError: a scan's sequences are of one dtype, it begins from a zero state and
its last state has no gradient; a convolution has from 2 to 4 taps and channels that are a multiple of 8. Gradients are
summed with atomics, and so are not the same to the last bit from call to call.
"""

import importlib

import torch

# The compiled parts: mamba-ssm installs without its own unless MAMBA_KEEP_CUDA_BUILD=TRUE is set.
EXTENSIONS = {"selective_scan_cuda": "mamba-ssm", "causal_conv1d_cuda": "causal-conv1d"}
WIDTHS = (2, 3, 4)


def unavailable_reason():
    """Why these kernels cannot serve, or None."""
    for extension, package in EXTENSIONS.items():
        try:
            importlib.import_module(extension)
        except ImportError as error:
            return f"{extension}, the compiled part of {package}, cannot be imported ({error})"
    return None


def selective_scan_cuda(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False, return_last_state=False,
    initial_state=None,
):
    """Arguments and results: see :func:`ssamba_upstream.ops.selective_scan`; CUDA tensors only, no float64.

    Raises:
        ValueError: u, delta, B, C and z are not of one dtype, an initial state, or a last state whose gradient would be
            lost.
    """
    if initial_state is not None:
        raise ValueError('mamba_ssm scans from a zero state only. Use backend="triton" for an initial state')
    given = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    sequences = {name: tensor for name, tensor in given.items() if tensor is not None}
    if len({tensor.dtype for tensor in sequences.values()}) > 1:
        raise ValueError("mamba_ssm scans sequences of one dtype; got " + ", ".join(
            f"{name} {tensor.dtype}" for name, tensor in sequences.items()))
    inputs = (*sequences.values(), A, D, delta_bias)
    if return_last_state and torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise ValueError('mamba_ssm has no gradient of the last state; use backend="triton", or torch.no_grad()')
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def in_order(sequence):
        if sequence is None:
            return None
        return (sequence.flip(-1) if reverse else sequence).contiguous()

    output, last_state = selective_scan_fn(
        in_order(u), in_order(delta), A.float(), in_order(B), in_order(C), None if D is None else D.float(),
        z=in_order(z), delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus, return_last_state=True,
    )
    output = output.flip(-1) if reverse else output
    return (output, last_state) if return_last_state else output


def causal_convolution_cuda(x, weight, bias, reverse=False):
    """Arguments and results: see :func:`ssamba_upstream.ops.causal_convolution`; CUDA tensors only, no float64.

    Raises:
        ValueError: other than 2 to 4 taps, or channels that are no multiple of 8.
    """
    channels, _, width = weight.shape
    if width not in WIDTHS or channels % 8:
        raise ValueError(f"causal-conv1d has from 2 to 4 taps, and channels that are a multiple of 8; got {width} taps "
                         f"and {channels} channels")
    from causal_conv1d import causal_conv1d_fn

    x = x.flip(-1) if reverse else x
    output = causal_conv1d_fn(x, weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu")
    return output.flip(-1) if reverse else output
