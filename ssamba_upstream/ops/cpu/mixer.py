"""What a mixer computes between its outer projections, as one torch operator.

A direction convolves the channels, projects them to steps of low rank and to B and C, and scans; the kernel projects
the steps to all channels tile by tile, so that they are never written. Forward goes through one direction after the
other, each of which needs its convolved channels only as long as it lasts. For the backward pass the input, the
low-rank projections and the state before each tile are kept; the convolved channels are computed again.
"""

import torch

from ..product import multiply
from ..registration import register_mixer
from .convolution import convolve, convolve_backward
from .library import (
    GROUP,
    add_up,
    cleared,
    count_sequences,
    empty,
    empty_checkpoints,
    empty_sequence,
    places,
    run_scan,
    scan_direction,
    sequence,
)


def mix_forward(
    channels_and_gate, convolution, convolution_bias, input_weight, step_weight, step_bias, A_log, D, offsets, reverse,
    keep,
):
    """[output (batch, channels, length)] and, for the backward pass if ``keep``, checkpoints and each direction's
    (batch, length, rank + 2 states).

    Args:
        channels_and_gate: (batch, length, 2 * channels), float32 or bfloat16; what follows is float32.
        convolution: (channels, 1, width) for each direction; convolution_bias: (channels,).
        input_weight: (rank + 2 states, channels), of what gives steps, B and C.
        step_weight, step_bias: (channels, rank) and (channels,).
        A_log: (channels, states); D: (channels,).
        offsets: of a ragged batch, or None.
        reverse: whether each direction runs backwards in time.
    """
    x, z = _halves(channels_and_gate)
    states, rank = A_log[0].shape[1], step_weight[0].shape[1]
    output, found = empty_sequence(x), places(x, offsets)
    checkpoints = cleared(empty_checkpoints(len(reverse), x, offsets, states), x, offsets) if keep else None

    def mix_one(i):  # a function, so that its convolved channels are gone before the next direction's come
        u, = convolve(x, convolution[i : i + 1], convolution_bias[i : i + 1], offsets, reverse[i : i + 1])
        projected = multiply(u.transpose(1, 2), input_weight[i].to(x.dtype))
        parameters = [tensor.contiguous() for tensor in (A_log[i], D[i], step_bias[i], step_weight[i])]
        direction = scan_direction(
            sequence(u), *_low_rank(projected, rank, states), *parameters, reverse[i],
            checkpoints=checkpoints[i] if keep else None,
        )
        run_scan(False, [direction], x, found, states, z, output, softplus=True, done=i, total=len(reverse), rank=rank,
                 logarithmic=True)
        return projected if keep else None

    projections = [mix_one(i) for i in range(len(reverse))]
    return [output, checkpoints, *projections] if keep else [output]


def _outputs(
    channels_and_gate, convolution, convolution_bias, input_weight, step_weight, step_bias, A_log, D, offsets, reverse,
    keep,
):
    x, _ = _halves(channels_and_gate)
    if not keep:
        return [empty_sequence(x)]
    projections = [x.new_empty(x.shape[0], x.shape[2], len(weight)) for weight in input_weight]
    return [empty_sequence(x), empty_checkpoints(len(reverse), x, offsets, A_log[0].shape[1]), *projections]


def _mix_backward(
    grad_output, checkpoints, projections, channels_and_gate, convolution, convolution_bias, input_weight, step_weight,
    step_bias, A_log, D, offsets, reverse,
):
    """Gradients of channels_and_gate and of the parameters, kind after kind, each in every direction."""
    x, z = _halves(channels_and_gate)
    count, states, rank = len(reverse), A_log[0].shape[1], step_weight[0].shape[1]
    sequences, groups, width = count_sequences(x, offsets), -(-x.shape[1] // GROUP), rank + 2 * states
    grad_both = torch.empty_like(channels_and_gate, memory_format=torch.contiguous_format)
    grad_x, grad_z = _halves(grad_both)
    inputs = convolve(x, convolution, convolution_bias, offsets, reverse)
    grad_inputs = [empty_sequence(x) for _ in reverse]

    # What each sequence, or group of channels, contributes is added up afterwards, in a fixed order.
    sums = [empty(x, groups, x.shape[0], x.shape[2], width) for _ in reverse]
    kinds = A_log, D, step_bias, step_weight
    parts = [[empty(x, sequences, *kind[i].shape) for kind in kinds] for i in range(count)]
    parameters = [[kind[i].contiguous() for kind in kinds] for i in range(count)]
    directions = []
    for i in range(count):
        grad_A, grad_D, grad_bias, grad_step_weight = parts[i]
        directions.append(scan_direction(
            sequence(inputs[i]), *_low_rank(projections[i], rank, states), *parameters[i], reverse[i],
            checkpoints=checkpoints[i], grad_u=sequence(grad_inputs[i]), grad_A=grad_A, grad_D=grad_D,
            grad_bias=grad_bias, grad_step_weight=grad_step_weight, grad_low=sums[i],
            grad_B=sums[i][..., rank:], grad_C=sums[i][..., rank + states :],
        ))
    run_scan(True, directions, x, places(x, offsets), states, z, grad_output, grad_z, softplus=True, rank=rank,
             logarithmic=True, sum_width=width)

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
    """(batch, length, 2 * channels) -> what is convolved and the gate, (batch, channels, length) each."""
    return channels_and_gate.transpose(1, 2).chunk(2, dim=1)


def _low_rank(projected, rank, states):
    """The kernel's steps of low rank, B and C, which lie side by side in (batch, length, rank + 2 states)."""
    time_last = projected.transpose(1, 2)
    return [sequence(time_last, first) for first in (0, rank, rank + states)]


mixer_operator = register_mixer("mixer", "the compiled CPU kernels", "cpu", (mix_forward, _outputs),
                                (_mix_backward, _gradients))
