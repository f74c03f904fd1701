"""Definition of the selective scan: a plain loop over time."""

import torch
import torch.nn.functional as F


def selective_scan_reference(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False, return_last_state=False,
    initial_state=None,
):
    """Implement :func:`ssamba_upstream.ops.selective_scan` step by step, as in Algorithm 2 of Mamba (arXiv 2312.00752).

    Every other backend is tested against this one. It is slow, differentiable any number of times, and computes in
    float64 if its inputs are float64, otherwise in float32.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    batch, channels, length = u.shape
    step = delta.to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        step = F.softplus(step)
    inputs, A, B, C = u.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)

    state = inputs.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(dtype)
    outputs = [None] * length
    for t in range(length - 1, -1, -1) if reverse else range(length):
        decay = torch.exp(step[:, :, t, None] * A)
        state = decay * state + (step[:, :, t] * inputs[:, :, t])[..., None] * B[:, None, :, t]
        outputs[t] = (state * C[:, None, :, t]).sum(-1)
    output = torch.stack(outputs, dim=-1) if length else torch.zeros_like(inputs)

    if D is not None:
        output = output + D.to(dtype)[:, None] * inputs
    if z is not None:
        output = output * F.silu(z.to(dtype))
    output = output.to(u.dtype)
    return (output, state) if return_last_state else output
