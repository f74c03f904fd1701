"""The compiled selective scan as a torch operator, for one or two directions at once.

Sequences are float32 or bfloat16, all other tensors float32.
"""

from ..registration import count_sequences, empty_sequence, register_scan, split
from .library import (
    GROUP,
    add_up,
    cleared,
    empty,
    empty_checkpoints,
    places,
    run_scan,
    scan_direction,
    scan_gradients,
    sequence,
)


def scan_forward(scan, return_last_state, keep_checkpoints):
    """Return (output, last states, checkpoints for the backward pass). The last two are empty unless requested."""
    output, last_state, checkpoints = _outputs(scan, return_last_state, keep_checkpoints)
    u, delta, A, B, C, D, delta_bias, initial_state, z, offsets, reverse, delta_softplus = scan
    if keep_checkpoints:
        cleared(checkpoints, u[0], offsets)
    A, D, delta_bias, initial_state = (_contiguous(tensors, len(u)) for tensors in (A, D, delta_bias, initial_state))
    directions = [
        scan_direction(
            *map(sequence, (u[i], delta[i], B[i], C[i])), A[i], D[i], delta_bias[i], None, reverse[i],
            initial_state=initial_state[i], last_state=last_state[i] if return_last_state else None,
            checkpoints=checkpoints[i] if keep_checkpoints else None,
        )
        for i in range(len(u))
    ]
    x, states = u[0], A[0].shape[1]
    run_scan(False, directions, x.shape, places(x.shape[2], offsets), states, sequence(z), sequence(output),
             softplus=delta_softplus)
    return output, last_state, checkpoints


def _outputs(scan, return_last_state, keep_checkpoints):
    count, x, offsets, states = len(scan.u), scan.u[0], scan.offsets, scan.A[0].shape[1]
    last_state = (count, count_sequences(x, offsets), x.shape[1], states) if return_last_state else (0,)
    checkpoints = empty_checkpoints(count, x, offsets, states) if keep_checkpoints else empty(x, 0)
    return empty_sequence(x), empty(x, *last_state), checkpoints


def _scan_backward(grad_output, grad_last_state, checkpoints, scan):
    """Return the gradients of u, delta, A, B, C, D, delta_bias and initial_state, grouped by kind, then by direction;
    the gradient of z comes last."""
    u, delta, A, B, C, D, delta_bias, initial_state, z, offsets, reverse, delta_softplus = scan
    count, x, states = len(u), u[0], A[0].shape[1]
    sequences, groups = count_sequences(x, offsets), -(-x.shape[1] // GROUP)
    grad_u, grad_delta = [empty_sequence(t) for t in u], [empty_sequence(t) for t in delta]
    grad_z = None if z is None else empty_sequence(z)
    if grad_last_state is not None:
        grad_last_state = grad_last_state.contiguous()

    # Contributions of sequences and groups of channels are summed afterwards, in a fixed order.
    parts_A, parts_D, parts_bias = (
        [empty(x, sequences, *tensor.shape) for tensor in tensors] for tensors in (A, D, delta_bias)
    )
    parts_B, parts_C = ([empty(x, groups, x.shape[0], x.shape[2], states) for _ in u] for _ in range(2))
    grad_initial = [empty(x, *tensor.shape) for tensor in initial_state]
    A, D, delta_bias, initial_state = (_contiguous(tensors, count) for tensors in (A, D, delta_bias, initial_state))
    directions = [
        scan_direction(
            *map(sequence, (u[i], delta[i], B[i], C[i])), A[i], D[i], delta_bias[i], None, reverse[i],
            initial_state=initial_state[i], checkpoints=checkpoints[i], gradients=scan_gradients(
                sequence(grad_u[i]), sequence(grad_delta[i]), None if grad_last_state is None else grad_last_state[i],
                A=parts_A[i], D=parts_D[i] if parts_D else None, bias=parts_bias[i] if parts_bias else None,
                B=parts_B[i], C=parts_C[i], initial_state=grad_initial[i] if grad_initial else None,
            ),
        )
        for i in range(count)
    ]
    run_scan(True, directions, x.shape, places(x.shape[2], offsets), states, sequence(z), sequence(grad_output),
             sequence(grad_z), softplus=delta_softplus, sum_width=states)
    grad_A, grad_D, grad_bias = ([add_up(part) for part in parts] for parts in (parts_A, parts_D, parts_bias))
    grad_B, grad_C = (
        [add_up(part).transpose(1, 2).to(tensor.dtype) for part, tensor in zip(parts, tensors)]
        for parts, tensors in ((parts_B, B), (parts_C, C))
    )
    gradients = [*grad_u, *grad_delta, *grad_A, *grad_B, *grad_C, *grad_D, *grad_bias, *grad_initial]
    return gradients if z is None else [*gradients, grad_z]


def _gradients(grad_output, grad_last_state, checkpoints, scan):
    u, delta, A, B, C, D, delta_bias, initial_state, z, *_ = scan
    gradients = [empty_sequence(tensor) for tensor in (*u, *delta)]
    gradients += [tensor.new_empty(tensor.shape) for tensor in A]
    gradients += [empty_sequence(tensor) for tensor in (*B, *C)]
    gradients += [tensor.new_empty(tensor.shape) for tensor in (*D, *delta_bias, *initial_state)]
    return gradients if z is None else [*gradients, empty_sequence(z)]


def _contiguous(tensors, count):
    return [tensor.contiguous() for tensor in tensors] or [None] * count


scan_operator = register_scan(
    "selective_scan", "the compiled CPU kernels", "cpu", (scan_forward, _outputs), (_scan_backward, _gradients), split,
)
