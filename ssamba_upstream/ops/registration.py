"""Registration of kernels as torch operators with a first derivative, shared by all backends with kernels.

Tensors come in lists with one entry per direction; D, delta_bias and initial_state may be empty lists. Schemas are
written out because older versions of torch cannot infer them from current type annotations.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

_SCAN_LISTS = "u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state"
_SCAN_INPUTS = ", ".join([*(f"Tensor[] {name}" for name in _SCAN_LISTS), "Tensor? z, Tensor? offsets, bool[] reverse"])
_CONVOLUTION_INPUTS = "Tensor x, Tensor[] weights, Tensor[] biases, Tensor? offsets, bool[] reverse"
_MIXER_PARAMETERS = (
    "convolution", "convolution_bias", "input_weight", "step_weight", "step_bias", "A_log", "D",
)
_MIXER_INPUTS = "Tensor channels_and_gate, {}, Tensor? offsets, bool[] reverse".format(
    ", ".join(f"Tensor[] {name}" for name in _MIXER_PARAMETERS)
)


class Scan(NamedTuple):
    """Inputs of a scan operator, see :func:`ssamba_upstream.ops.selective_scan_mean`."""

    u: list[Tensor]
    delta: list[Tensor]
    A: list[Tensor]
    B: list[Tensor]
    C: list[Tensor]
    D: list[Tensor]
    delta_bias: list[Tensor]
    initial_state: list[Tensor]
    z: Tensor | None
    offsets: Tensor | None
    reverse: list[bool]
    delta_softplus: bool

    @classmethod
    def of(cls, directions, z, delta_softplus, offsets):
        """Return the inputs given as in :func:`ssamba_upstream.ops.selective_scan_mean`."""
        lists = ([scan[name] for scan in directions if scan.get(name) is not None] for name in _SCAN_LISTS)
        return cls(*lists, z, offsets, [bool(scan["reverse"]) for scan in directions], bool(delta_softplus))

    @property
    def tensors(self):
        """List of all tensors but the offsets."""
        return [*itertools.chain(*self[:len(_SCAN_LISTS)]), *([] if self.z is None else [self.z])]


def one_direction(scan_all):
    """Return a backend's ``selective_scan`` from its scan of several directions.

    Args:
        scan_all: function from (directions, z, delta_softplus, offsets, return_last_state) to the output and the last
            state of each direction.
    """
    def selective_scan(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False,
        return_last_state=False, initial_state=None, offsets=None,
    ):
        """Implement :func:`ssamba_upstream.ops.selective_scan`. Differentiable once."""
        scan = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias,
                "initial_state": initial_state, "reverse": reverse}
        output, last_states = scan_all([scan], z, delta_softplus, offsets, return_last_state)
        return (output, last_states[0]) if return_last_state else output

    return selective_scan


def register_scan(name, kernels, device_types, forward, backward, unpack, options=""):
    """Register a scan as ``ssamba_upstream::name``, and its backward pass as ``name_backward``.

    Args:
        name: name of the operator.
        kernels: name of the kernels in messages, such as "the Triton kernels".
        device_types: see ``torch.library.custom_op``.
        forward: (function, fake function that only allocates the results), called with a :class:`Scan`, its options,
            return_last_state and keep_checkpoints; return the output, the last states and the checkpoints.
        backward: a pair of such functions, called with grad_output, grad_last_state, checkpoints, the Scan and its
            options; return the gradients, that of z last.
        unpack: function that splits the list of the other gradients into lists by kind, given each kind's length.
        options: schema of further options of the scan, such as ", bool logarithmic".

    Returns:
        The operator.
    """
    options, count = f"bool delta_softplus{options}", len(_SCAN_LISTS)
    operator, backward_operator = _operators(
        name, kernels, device_types, [_with_scan(function, 0) for function in forward],
        f"({_SCAN_INPUTS}, {options}, bool return_last_state, bool keep_checkpoints) -> (Tensor, Tensor, Tensor)",
        [_with_scan(function, 3) for function in backward],
        f"(Tensor grad_output, Tensor? grad_last_state, Tensor checkpoints, {_SCAN_INPUTS}, {options}) -> Tensor[]",
    )

    def save(ctx, inputs, output):
        lists, (z, offsets, *options, return_last_state, _) = inputs[:count], inputs[count:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[2], z, offsets, *(tensor for tensors in lists for tensor in tensors))
        ctx.lengths = [len(tensors) for tensors in lists]
        ctx.options, ctx.return_last_state = options, return_last_state

    def differentiate(ctx, grad_output, grad_last_state, _):
        checkpoints, z, offsets, *tensors = ctx.saved_tensors
        lists = split(tensors, ctx.lengths)
        if grad_output is None:
            grad_output = torch.zeros_like(lists[0][0])
        if not ctx.return_last_state:  # torch.compile passes a gradient for the empty tensor in its place
            grad_last_state = None
        gradients = backward_operator(grad_output, grad_last_state, checkpoints, *lists, z, offsets, *ctx.options)
        grad_z = None if z is None else gradients.pop()
        return *unpack(gradients, ctx.lengths), grad_z, None, *(None for _ in ctx.options), None, None

    operator.register_autograd(differentiate, setup_context=save)
    return operator


def register_convolution(name, kernels, device_types, forward, backward):
    """Register causal convolutions as ``ssamba_upstream::name``; see :func:`register_scan`.

    ``forward`` and ``backward`` are single functions. They return the outputs, and the gradients in the order of x,
    weights, biases, as :func:`convolution_outputs` and :func:`convolution_gradients` allocate them.
    """
    operator, backward_operator = _operators(
        name, kernels, device_types, (forward, convolution_outputs), f"({_CONVOLUTION_INPUTS}) -> Tensor[]",
        (backward, convolution_gradients), f"(Tensor[] grad_outputs, {_CONVOLUTION_INPUTS}) -> Tensor[]",
    )

    def save(ctx, inputs, output):
        x, weights, biases, offsets, reverse = inputs
        ctx.save_for_backward(x, offsets, *weights, *biases)
        ctx.reverse = reverse

    def differentiate(ctx, grad_outputs):
        x, offsets, *parameters = ctx.saved_tensors
        lengths = [len(ctx.reverse)] * 2
        grad_x, *gradients = backward_operator(grad_outputs, x, *split(parameters, lengths), offsets, ctx.reverse)
        return grad_x, *split(gradients, lengths), None, None

    operator.register_autograd(differentiate, setup_context=save)
    return operator


def register_mixer(name, kernels, device_types, forward, backward):
    """Register the part of a mixer between its projections as ``ssamba_upstream::name``; see :func:`register_scan`.

    The results are the output, checkpoints and each direction's projections. Gradients are in the order of the inputs.
    """
    operator, backward_operator = _operators(
        name, kernels, device_types, forward, f"({_MIXER_INPUTS}, bool keep) -> Tensor[]", backward,
        f"(Tensor grad_output, Tensor checkpoints, Tensor[] projections, {_MIXER_INPUTS}) -> Tensor[]",
    )

    def save(ctx, inputs, output):
        channels_and_gate, *parameters, offsets, reverse, _ = inputs
        _, checkpoints, *projections = output
        ctx.set_materialize_grads(False)
        lists = projections, *parameters
        ctx.save_for_backward(checkpoints, channels_and_gate, offsets, *(t for tensors in lists for t in tensors))
        ctx.reverse = reverse

    def differentiate(ctx, grad_outputs):
        checkpoints, channels_and_gate, offsets, *tensors = ctx.saved_tensors
        lengths = [len(ctx.reverse)] * (1 + len(_MIXER_PARAMETERS))
        projections, *parameters = split(tensors, lengths)
        grad_input, *gradients = backward_operator(
            grad_outputs[0], checkpoints, projections, channels_and_gate, *parameters, offsets, ctx.reverse
        )
        return grad_input, *split(gradients, lengths[1:]), None, None, None

    operator.register_autograd(differentiate, setup_context=save)
    return operator


def convolution_outputs(x, weights, biases, offsets, reverse):
    """Return an empty output for each direction."""
    return [empty_sequence(x) for _ in weights]


def convolution_gradients(grad_outputs, x, weights, biases, offsets, reverse):
    """Return empty gradients of x, each weight and each bias."""
    return [empty_sequence(x), *(tensor.new_empty(tensor.shape) for tensor in (*weights, *biases))]


def empty_sequence(like, dtype=None):
    """Return an empty tensor shaped like (batch, channels, length), with channels contiguous in memory."""
    batch, channels, length = like.shape
    return like.new_empty(batch, length, channels, dtype=dtype).transpose(1, 2)


def count_sequences(x, offsets):
    """Return the number of sequences in a batch (entries, channels, length), ragged or not."""
    return x.shape[0] if offsets is None else offsets.shape[0] - 1


def split(tensors, lengths):
    """Split tensors into consecutive lists of these lengths."""
    tensors = iter(tensors)
    return [list(itertools.islice(tensors, length)) for length in lengths]


def _with_scan(function, place):
    """Return a function that gathers the inputs of a scan, the arguments from a place on, for another function."""
    end = place + len(Scan._fields)
    return lambda *inputs: function(*inputs[:place], Scan(*inputs[place:end]), *inputs[end:])


def _operators(name, kernels, device_types, forward, schema, backward, backward_schema):
    """Register an operator, and that of its backward pass, which has no derivative."""
    def refuse(ctx, *gradients):
        raise RuntimeError(f"{kernels} have first derivatives only. For second derivatives use backend='reference'")

    operator, backward_operator = (
        torch.library.custom_op(
            f"ssamba_upstream::{name}", function, mutates_args=(), device_types=device_types, schema=schema,
        )
        for name, (function, _), schema in ((name, forward, schema), (f"{name}_backward", backward, backward_schema))
    )
    operator.register_fake(forward[1])
    backward_operator.register_fake(backward[1])
    backward_operator.register_autograd(refuse)
    return operator, backward_operator
