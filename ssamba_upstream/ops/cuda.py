"""The CUDA kernels of mamba-ssm and causal-conv1d, when they are installed.

Both only walk forwards in time, so the reverse direction flips its inputs and its output.
"""

import importlib.util


def unavailable_reason():
    """Why these kernels cannot serve, or None. The packages are imported at first use only."""
    missing = [name for name in ("mamba_ssm", "causal_conv1d") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} is not installed" if missing else None


def selective_scan_cuda(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False, return_last_state=False
):
    """Arguments and results: see :func:`ssamba_upstream.ops.selective_scan`; CUDA tensors only, no float64."""
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
    """Arguments and results: see :func:`ssamba_upstream.ops.causal_convolution`; CUDA tensors only, no float64."""
    from causal_conv1d import causal_conv1d_fn

    x = x.flip(-1) if reverse else x
    output = causal_conv1d_fn(x, weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu")
    return output.flip(-1) if reverse else output
