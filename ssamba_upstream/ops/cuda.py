"""The CUDA kernels of mamba-ssm and causal-conv1d, if they are installed.

Both run forwards in time only, so the reverse direction flips its inputs and its output. They support less than the
other backends, and everything else raises a ValueError: a scan's sequences must have one dtype, it starts from a zero
state, and its last state has no gradient; a convolution needs 2 to 4 taps and a multiple of 8 channels. Gradients are
summed with atomics and therefore differ in the last bits from call to call.
"""

import importlib

import torch

# The compiled extensions; mamba-ssm installs without its own unless MAMBA_KEEP_CUDA_BUILD=TRUE is set.
EXTENSIONS = {"selective_scan_cuda": "mamba-ssm", "causal_conv1d_cuda": "causal-conv1d"}
WIDTHS = (2, 3, 4)


def unavailable_reason():
    """Return why these kernels are not available, or None if they are."""
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
    """Implement :func:`ssamba_upstream.ops.selective_scan` for CUDA tensors other than float64.

    Raises:
        ValueError: If u, delta, B, C and z differ in dtype, an initial state is given, or the last state would lose its
            gradient.
    """
    if initial_state is not None:
        raise ValueError('mamba_ssm starts from a zero state only. Use backend="triton" for an initial state')
    given = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    sequences = {name: tensor for name, tensor in given.items() if tensor is not None}
    if len({tensor.dtype for tensor in sequences.values()}) > 1:
        raise ValueError("mamba_ssm needs sequences of one dtype; got " + ", ".join(
            f"{name} {tensor.dtype}" for name, tensor in sequences.items()))
    inputs = (*sequences.values(), A, D, delta_bias)
    if return_last_state and torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise ValueError('mamba_ssm has no gradient of the last state. Use backend="triton", or torch.no_grad()')
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
    """Implement :func:`ssamba_upstream.ops.causal_convolution` for CUDA tensors other than float64.

    Raises:
        ValueError: If there are not 2 to 4 taps, or the number of channels is not a multiple of 8.
    """
    channels, _, width = weight.shape
    if width not in WIDTHS or channels % 8:
        raise ValueError(f"causal-conv1d needs 2 to 4 taps and a multiple of 8 channels; got {width} taps "
                         f"and {channels} channels")
    from causal_conv1d import causal_conv1d_fn

    x = x.flip(-1) if reverse else x
    output = causal_conv1d_fn(x, weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu")
    return output.flip(-1) if reverse else output
