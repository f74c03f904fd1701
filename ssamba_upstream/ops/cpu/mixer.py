"""A mixer's computation between its outer projections, as one torch operator.

A direction convolves the channels, projects them to low-rank steps, B and C, and scans. The kernel expands the steps to
all channels tile by tile, so the full steps are never written to memory. The forward pass runs one direction at a time,
and all share one buffer for convolved channels. The backward pass keeps the input, the low-rank projections and the
state before each tile; it recomputes the convolved channels.
"""

import torch

from ..product import multiply
from ..ragged import join_inputs
from ..registration import count_sequences, empty_sequence, register_mixer
from .convolution import convolve, convolve_backward
from .library import (
    GROUP,
    NO_SEQUENCE,
    add_up,
    cleared,
    columns,
    convolution_taps,
    empty,
    empty_checkpoints,
    places,
    run_convolution,
    run_scan,
    scan_direction,
    scan_gradients,
    sequence,
)


def mix_forward(
    channels_and_gate, convolution, convolution_bias, input_weight, step_weight, step_bias, A_log, D, offsets, reverse,
    keep, state=None,
):
    """Return [output (batch, length, channels)]; if ``keep``, also checkpoints and each direction's projections,
    (batch, length, rank + 2 states), for the backward pass.

    Args:
        channels_and_gate: (batch, length, 2 * channels), float32 or bfloat16; all other tensors are float32.
        convolution: (channels, 1, width) for each direction; convolution_bias: (channels,).
        input_weight: (rank + 2 states, channels), the projection to steps, B and C.
        step_weight, step_bias: (channels, rank) and (channels,).
        A_log: (channels, states); D: (channels,).
        offsets: boundaries of a ragged batch, or None.
        reverse: True for each direction that runs backwards in time.
        state: state of a single direction, see :func:`ssamba_upstream.ops.mix`; returns (output, next state) instead.
    """
    batch, length, width = channels_and_gate.shape
    channels, states, rank = width // 2, A_log[0].shape[1], step_weight[0].shape[1]
    shape, found, dtype = (batch, channels, length), places(length, offsets), channels_and_gate.dtype
    checkpoints, projections, initial_state, last_state = None, [], None, None
    if keep:
        half, _ = _halves(channels_and_gate)
        checkpoints = cleared(empty_checkpoints(len(reverse), half, offsets, states), half, offsets)
    u = channels_and_gate.new_empty(batch, length, channels)  # reused by each direction
    output = channels_and_gate.new_empty(batch, length, channels)
    (x, z), (convolved,), (mixed,) = columns(channels_and_gate, 0, channels), columns(u, 0), columns(output, 0)
    for i, backwards in enumerate(reverse):
        weight, bias = convolution[i].contiguous(), convolution_bias[i].contiguous()
        if state is None:
            taps = convolution_taps(weight, bias, backwards, convolved)
            run_convolution(False, [taps], shape, found, weight.shape[2], x)
        else:
            before, now = state[0], _halves(channels_and_gate)[0]
            joined, joined_offsets, steps, last_inputs = join_inputs(before, now, backwards, offsets)
            u = convolve(joined, [weight], [bias], joined_offsets, [backwards])[0][..., steps].transpose(1, 2)
            (convolved,), initial_state = columns(u, 0), state[1].float().contiguous()
            last_state = torch.empty_like(initial_state)
        projected = multiply(u, input_weight[i] if dtype == torch.float32 else input_weight[i].to(dtype))
        parameters = A_log[i].contiguous(), D[i].contiguous(), step_bias[i].contiguous(), step_weight[i].contiguous()
        direction = scan_direction(
            convolved, *columns(projected, 0, rank, rank + states), *parameters, backwards,
            initial_state=initial_state, last_state=last_state, checkpoints=checkpoints[i] if keep else None,
        )
        run_scan(False, [direction], shape, found, states, z, mixed, softplus=True, done=i, total=len(reverse),
                 rank=rank, logarithmic=True)
        if keep:
            projections.append(projected)
    if state is not None:
        return output, (last_inputs, last_state)
    return [output, checkpoints, *projections] if keep else [output]


def _outputs(
    channels_and_gate, convolution, convolution_bias, input_weight, step_weight, step_bias, A_log, D, offsets, reverse,
    keep,
):
    x, _ = _halves(channels_and_gate)
    batch, channels, length = x.shape
    output = x.new_empty(batch, length, channels)
    if not keep:
        return [output]
    projections = [x.new_empty(batch, length, len(weight)) for weight in input_weight]
    return [output, empty_checkpoints(len(reverse), x, offsets, A_log[0].shape[1]), *projections]


def _mix_backward(
    grad_output, checkpoints, projections, channels_and_gate, convolution, convolution_bias, input_weight, step_weight,
    step_bias, A_log, D, offsets, reverse,
):
    """Return the gradients of channels_and_gate and of the parameters, grouped by kind, then by direction."""
    x, z = _halves(channels_and_gate)
    count, states, rank = len(reverse), A_log[0].shape[1], step_weight[0].shape[1]
    sequences, groups, width = count_sequences(x, offsets), -(-x.shape[1] // GROUP), rank + 2 * states
    grad_both = torch.empty_like(channels_and_gate, memory_format=torch.contiguous_format)
    grad_x, grad_z = _halves(grad_both)
    inputs = convolve(x, convolution, convolution_bias, offsets, reverse)
    grad_inputs = [empty_sequence(x) for _ in reverse]

    # Contributions of sequences and groups of channels are summed afterwards, in a fixed order.
    sums = [empty(x, groups, x.shape[0], x.shape[2], width) for _ in reverse]
    kinds = A_log, D, step_bias, step_weight
    parts = [[empty(x, sequences, *kind[i].shape) for kind in kinds] for i in range(count)]
    parameters = [[kind[i].contiguous() for kind in kinds] for i in range(count)]
    directions = []
    for i in range(count):
        grad_A, grad_D, grad_bias, grad_step_weight = parts[i]
        low_rank = columns(projections[i], 0, rank, rank + states)
        gradients = scan_gradients(
            sequence(grad_inputs[i]), NO_SEQUENCE, None, grad_A, grad_D, grad_bias, grad_step_weight, sums[i],
            sums[i][..., rank:], sums[i][..., rank + states :],
        )
        directions.append(scan_direction(
            sequence(inputs[i]), *low_rank, *parameters[i], reverse[i], checkpoints=checkpoints[i], gradients=gradients,
        ))
    found, grad_output = places(x.shape[2], offsets), sequence(grad_output.transpose(1, 2))
    run_scan(True, directions, x.shape, found, states, sequence(z), grad_output, sequence(grad_z), softplus=True,
             rank=rank, logarithmic=True, sum_width=width)

    grad_input_weight = []
    for i in range(count):
        grad_projected = add_up(sums[i]).flatten(0, 1).to(x.dtype)
        flat = inputs[i].transpose(1, 2).flatten(0, 1)
        grad_input_weight.append(multiply(grad_projected.t(), flat.t()).float())
        grad_inputs[i].transpose(1, 2).flatten(0, 1).addmm_(grad_projected, input_weight[i].to(x.dtype))
    grad_taps = convolve_backward(grad_inputs, x, convolution, convolution_bias, offsets, reverse, grad_x)
    grad_A, grad_D, grad_bias, grad_step_weight = zip(*([add_up(part) for part in direction] for direction in parts))
    grad_convolution, grad_convolution_bias = grad_taps
    return [grad_both, *grad_convolution, *grad_convolution_bias, *grad_input_weight, *grad_step_weight, *grad_bias,
            *grad_A, *grad_D]


def _gradients(grad_output, checkpoints, projections, channels_and_gate, *arguments):
    inputs = [channels_and_gate, *(tensor for tensors in arguments[:-2] for tensor in tensors)]
    return [tensor.new_empty(tensor.shape) for tensor in inputs]


def _halves(channels_and_gate):
    """Split (batch, length, 2 * channels) into the convolution's input and the gate, (batch, channels, length) each."""
    return channels_and_gate.transpose(1, 2).chunk(2, dim=1)


mixer_operator = register_mixer("mixer", "the compiled CPU kernels", "cpu", (mix_forward, _outputs),
                                (_mix_backward, _gradients))
