"""The compiled causal convolutions as a torch operator: one or two directions of the same x, float32 or bfloat16."""

from ..registration import convolution_outputs, count_sequences, empty_sequence, register_convolution
from .library import add_up, convolution_taps, empty, places, run_convolution, sequence


def convolve(x, weights, biases, offsets, reverse):
    """Implement :func:`ssamba_upstream.ops.causal_convolutions`, without derivatives."""
    outputs = convolution_outputs(x, weights, biases, offsets, reverse)
    weights, biases = _contiguous(weights), _contiguous(biases)
    taps = [convolution_taps(*parameters) for parameters in zip(weights, biases, reverse, map(sequence, outputs))]
    run_convolution(False, taps, x.shape, places(x.shape[2], offsets), weights[0].shape[-1], sequence(x))
    return outputs


def convolve_backward(grad_outputs, x, weights, biases, offsets, reverse, grad_x):
    """Return the gradients of the weights and of the biases, and write the gradient of x into ``grad_x``."""
    sequences = count_sequences(x, offsets)
    parts_weight, parts_bias = (
        [empty(x, sequences, *tensor.shape) for tensor in tensors] for tensors in (weights, biases)
    )
    weights, biases = _contiguous(weights), _contiguous(biases)
    taps = [
        convolution_taps(*parameters)
        for parameters in zip(weights, biases, reverse, map(sequence, grad_outputs), parts_weight, parts_bias)
    ]
    run_convolution(
        True, taps, x.shape, places(x.shape[2], offsets), weights[0].shape[-1], sequence(x), sequence(grad_x)
    )
    return [add_up(part) for part in parts_weight], [add_up(part) for part in parts_bias]


def _backward(grad_outputs, x, weights, biases, offsets, reverse):
    grad_x = empty_sequence(x)
    grad_weights, grad_biases = convolve_backward(grad_outputs, x, weights, biases, offsets, reverse, grad_x)
    return [grad_x, *grad_weights, *grad_biases]


def _contiguous(tensors):
    return [tensor.contiguous() for tensor in tensors]


convolution_operator = register_convolution(
    "causal_convolutions", "the compiled CPU kernels", "cpu", convolve, _backward)
