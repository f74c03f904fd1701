"""The selective scan and the causal convolution on GPUs through Triton, without a compiler or other packages.

This module divides the work and registers the operators with torch, so torch.compile, autocast,
DistributedDataParallel and activation checkpointing see ordinary operators with a first derivative. The arithmetic is
in ``triton_kernels.py``, which is imported (and triton with it) at the first call.

Every operator handles one or two directions at once, and either a batch of equally long sequences or, with
``offsets``, sequences packed into a batch of one, each of which is processed separately.

A scan is sequential in time, and a few sequences with few channels do not fill a GPU. Long sequences are therefore cut
into chunks. A first launch scans each chunk from a zero state. In a second launch, each chunk combines the results of
the chunks before it into its initial state, and is then scanned for its outputs. A chunk's total decay is the
exponential of A times the sum of its steps. For A <= 0 and steps >= 0, all decays are at most 1, so nothing underflows
or overflows that does not in the definition. Otherwise the state passed to a later chunk overflows if it does so in the
definition.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os

import torch

from .registration import (
    Scan,
    convolution_gradients,
    convolution_outputs,
    count_sequences,
    empty_sequence,
    one_direction,
    register_convolution,
    register_scan,
)

OLDEST_TRITON = (3, 3)  # the first version whose kernels accept tuples
OLDEST_CAPABILITY = (8, 0)

# One warp scans BLOCK channels, and each thread holds all states of one channel. The backward pass restarts from the
# state saved before every TILE steps.
BLOCK, TILE = 32, 16
CONVOLUTION_ROWS = 16
GATE_ROWS, GATE_COLUMNS = 8, 128

# A multiprocessor hides its memory latency with about this many warps. Chunks cost a second pass, so they pay off only
# if they provide several times as many warps. Threads of the backward pass use the maximum number of registers, of
# which a multiprocessor holds eight warps' worth.
FORWARD_WARPS, BACKWARD_WARPS = 16, 8  # per multiprocessor
FEWEST_CHUNKS, SHORTEST_CHUNK = 3, 64


@functools.cache
def _version():
    try:
        return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


def unavailable_reason():
    """Return why the Triton kernels cannot run here, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _version() is not None and _version() < OLDEST_TRITON:
        return "triton {}.{} is too old: {}.{} is needed".format(*_version(), *OLDEST_TRITON)
    if _interpreted():
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device (for tests, TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
    if torch.version.hip is None and torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return "the GPU is too old: compute capability {}.{} is needed".format(*OLDEST_CAPABILITY)
    return None


def _interpreted():
    return os.environ.get("TRITON_INTERPRET") == "1"


def selective_scan_mean_triton(directions, z, delta_softplus, offsets=None, logarithmic=False):
    """Implement :func:`ssamba_upstream.ops.selective_scan_mean` for one or two directions. Differentiable once.

    Each input may be bfloat16, float16 or float32, with any strides; channels that are contiguous in memory are read
    fastest. The state is float32.

    Args:
        offsets: boundaries of a ragged batch, int32 or int64, see :func:`ssamba_upstream.ops.selective_scan_mean`.
        logarithmic: If True, each A is given as the logarithm of -A.

    Raises:
        ValueError: If an input is float64, or offsets do not match the batch.
    """
    return _scan(directions, z, delta_softplus, offsets, False, logarithmic)[0]


def causal_convolutions_triton(x, weights, biases, reverse, offsets=None):
    """Implement :func:`ssamba_upstream.ops.causal_convolutions`. Differentiable once.

    For dtypes, strides, ``offsets`` and errors see :func:`selective_scan_mean_triton`.
    """
    _check(x, (x, *weights, *biases), offsets)
    return convolution_operator(x, list(weights), list(biases), offsets, [bool(r) for r in reverse])


def _scan(directions, z, delta_softplus, offsets, return_last_state, logarithmic=False):
    scan = Scan.of(directions, z, delta_softplus, offsets)
    _check(scan.u[0], scan.tensors, offsets)
    keep_checkpoints = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scan.tensors)
    output, last_states, _ = scan_operator(*scan, logarithmic, return_last_state, keep_checkpoints)
    return output, [states.transpose(1, 2) for states in last_states]


selective_scan_triton = one_direction(_scan)


def _check(x, tensors, offsets):
    if any(tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16) for tensor in tensors):
        raise ValueError(
            "the Triton kernels take float32, bfloat16 and float16. For float64 use backend='reference' "
            "or 'torch'"
        )
    if offsets is None:
        return
    if x.shape[0] != 1 or offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "offsets must be (sequences + 1,) int32 or int64, with a batch of 1; "
            f"got {tuple(offsets.shape)} {offsets.dtype}, with a batch of {x.shape[0]}"
        )


# Division of the work


def _slots(x, offsets, steps):
    """Return the number of slots for chunks of this many steps, see _find_sequence in the kernels."""
    batch, _, length = x.shape
    if offsets is None:
        return batch * max(-(-length // steps), 1)
    return length // steps + offsets.shape[0] - 1


def _chunk_length(x, offsets, directions, warps_each):
    """Return the steps in a chunk, given the warps wanted on each multiprocessor: at least the length if whole
    sequences already fill the device."""
    batch, channels, length = x.shape
    sequences = count_sequences(x, offsets)
    multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    warps = sequences * directions * -(-channels // BLOCK)
    chunks = multiprocessors * warps_each // max(warps, 1)
    if chunks < FEWEST_CHUNKS:
        return _round_up(length, TILE)
    return _round_up(max(batch * length // (sequences * chunks), SHORTEST_CHUNK), TILE)


def _round_up(count, unit):
    return max(-(-count // unit), 1) * unit


def _power_of_two(count):
    return 1 << max(count - 1, 0).bit_length()


def _tile_shape(channels, states):
    """Shape of the state of all channels in the kernels' layout: (blocks, STATES, BLOCK)."""
    return -(-channels // BLOCK), _power_of_two(states), BLOCK


def _kernels():
    from . import triton_kernels

    return triton_kernels


def _sequence(tensor):
    return _kernels().Sequence(tensor, *tensor.stride())


def _launch(kernel, device, programs, *arguments, warps=1, **constants):
    if device.type == "cpu" and not _interpreted():
        raise RuntimeError("the Triton kernels run on a GPU; got CPU tensors. Use another backend for these")
    # Triton launches on the current device, not on the tensors' device. The kernels rely on fused multiply-adds,
    # which newer versions of Triton generate only on request.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[programs](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


class _Division:
    """A scan divided into programs for its kernels."""

    def __init__(self, scan, logarithmic, warps_each):
        kernels, count, absent = _kernels(), len(scan.u), [None] * len(scan.u)
        columns = zip(scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D or absent, scan.delta_bias or absent,
                      scan.initial_state or absent, scan.reverse)
        self.directions = tuple(
            kernels.Direction(
                _sequence(u), _sequence(delta), A.contiguous(), _sequence(B), _sequence(C),
                None if D is None else D.contiguous(), None if bias is None else bias.contiguous(),
                None if initial is None else initial.transpose(1, 2).contiguous(), int(reverse),
            )
            for u, delta, A, B, C, D, bias, initial, reverse in columns
        )
        self.u, offsets, states = scan.u[0], scan.offsets, scan.A[0].shape[1]
        _, channels, length = self.u.shape
        self.chunk_length = _chunk_length(self.u, offsets, count, warps_each)
        self.sequences, self.slots = count_sequences(self.u, offsets), _slots(self.u, offsets, self.chunk_length)
        blocks = -(-channels // BLOCK)
        self.layout = kernels.Layout(offsets, self.sequences, length, channels, states, blocks)
        self.tiles_shape = count, self.slots, *_tile_shape(channels, states)
        self.switches = {"SOFTPLUS": scan.delta_softplus, "LOGARITHMIC": bool(logarithmic)}
        self.nothing = (None,) * count

    def walk(self, kernel, *arguments, **constants):
        """Run one program for every block of channels, direction and chunk."""
        _launch(
            kernel, self.u.device, (self.layout.blocks * len(self.directions) * self.slots,), self.directions,
            *arguments, self.layout, self.chunk_length, STATES=_power_of_two(self.layout.states), BLOCK=BLOCK,
            DIRECTIONS=len(self.directions), **self.switches, **constants,
        )

    def summaries(self, kernel, *arguments):
        """Run a kernel that summarises each chunk. Return, per direction, tiles (slots, blocks, STATES, BLOCK) and sums
        of steps (slots, blocks, BLOCK), or None for both if every sequence is a single chunk."""
        if self.chunk_length >= self.u.shape[2]:
            return self.nothing, self.nothing
        count, slots, blocks, _, _ = self.tiles_shape
        alone = self.u.new_empty(self.tiles_shape, dtype=torch.float32).unbind()
        sums = self.u.new_empty(count, slots, blocks * BLOCK, dtype=torch.float32).unbind()
        self.walk(kernel, *arguments, alone, sums)
        return alone, sums


# Implementation of the operators


def _scan_forward(scan, logarithmic, return_last_state, keep_checkpoints):
    """Return (output, last states (directions, sequences, states, channels), checkpoints (directions, tiles, blocks,
    STATES, BLOCK) for the backward pass). The last two are empty unless requested."""
    output, last_states, checkpoints = _scan_outputs(scan, logarithmic, return_last_state, keep_checkpoints)
    if output.numel() == 0:
        last_states.zero_()
        if return_last_state and scan.initial_state:
            last_states.copy_(torch.stack(scan.initial_state).transpose(2, 3))
        return output, last_states, checkpoints.zero_()
    division = _Division(scan, logarithmic, FORWARD_WARPS)
    one, kernels = len(scan.u) == 1, _kernels()
    outputs = [output] if one else [empty_sequence(output, torch.float32) for _ in scan.u]
    gate = None if scan.z is None else _sequence(scan.z)
    division.walk(
        kernels.scan_forward, gate if one else None, *division.summaries(kernels.summarise_chunks),
        tuple(map(_sequence, outputs)), last_states.unbind() if return_last_state else division.nothing,
        checkpoints.unbind() if keep_checkpoints else division.nothing,
        TILE=TILE,
    )
    if not one:
        batch, channels, length = output.shape
        programs = (-(-length // GATE_ROWS), -(-channels // GATE_COLUMNS), batch)
        _launch(
            kernels.gate_mean, output.device, programs, *map(_sequence, outputs), gate, _sequence(output),
            length, channels, warps=4, ROWS=GATE_ROWS, BLOCK=GATE_COLUMNS,
        )
    return output, last_states, checkpoints


def _scan_outputs(scan, logarithmic, return_last_state, keep_checkpoints):
    u, directions, channels, states = scan.u[0], len(scan.u), scan.u[0].shape[1], scan.A[0].shape[1]
    last = (directions, count_sequences(u, scan.offsets), states, channels) if return_last_state else (0,)
    tiles = (directions, _slots(u, scan.offsets, TILE), *_tile_shape(channels, states))
    kept = tiles if keep_checkpoints else (0,)
    new_state = functools.partial(u.new_empty, dtype=torch.float32)
    return empty_sequence(u), new_state(last), new_state(kept)


def _scan_backward(grad_output, grad_last_states, checkpoints, scan, logarithmic):
    """Return the gradients of u, delta, A, B, C, D, delta_bias and initial_state, stacked by direction; then of z."""
    u, _, A, B, C, D, delta_bias, initial_state, z, *_ = scan
    empty = _scan_gradients(grad_output, grad_last_states, checkpoints, scan, logarithmic)
    if grad_output.numel() == 0:
        gradients = [gradient.zero_() for gradient in empty]
        if initial_state and grad_last_states is not None:
            gradients[5 + bool(D) + bool(delta_bias)].copy_(grad_last_states.transpose(2, 3))
        return gradients
    kernels, count = _kernels(), len(u)
    division = _Division(scan, logarithmic, BACKWARD_WARPS)
    batch, channels, length = u[0].shape
    slots, states = division.slots, A[0].shape[1]

    # Contributions of chunks and blocks of channels to a shared gradient are summed afterwards, in a fixed order.
    grad_u, grad_delta = empty[:2]
    new = functools.partial(u[0].new_empty, dtype=torch.float32)
    parts_A = new(division.tiles_shape)
    parts_D = new(count, slots, channels) if D else None
    parts_bias = new(count, slots, channels) if delta_bias else None
    parts_B, parts_C = new(2, count, division.layout.blocks, batch, length, states).unbind()
    grad_initial = new(count, division.sequences, states, channels) if initial_state else None
    parts_z = None
    if z is not None:
        parts_z = [empty[-1]] if count == 1 else [empty_sequence(z, torch.float32) for _ in u]
    gradients = tuple(
        kernels.Gradients(
            _sequence(grad_u[i]), _sequence(grad_delta[i]), parts_z and _sequence(parts_z[i]), parts_A[i],
            _sequence(parts_B[i, 0].transpose(1, 2)), _sequence(parts_C[i, 0].transpose(1, 2)),
            parts_B.stride(1), parts_D[i] if D else None, parts_bias[i] if delta_bias else None,
            grad_initial[i] if initial_state else None,
        )
        for i in range(count)
    )

    gate, grad_output = None if z is None else _sequence(z), _sequence(grad_output)
    boundary = division.nothing if grad_last_states is None else grad_last_states.contiguous().unbind()
    summaries = division.summaries(kernels.summarise_adjoints, gate, grad_output)
    division.walk(
        kernels.scan_backward, gate, grad_output, checkpoints.unbind(), *summaries, boundary, gradients,
        TILE=TILE,
    )
    results = [
        grad_u, grad_delta,
        _add_up(parts_A, A).transpose(2, 3).flatten(1, 2)[:, :channels, :states].contiguous(),
        _add_up(parts_B, B).transpose(2, 3), _add_up(parts_C, C).transpose(2, 3),
    ]
    results += [_add_up(parts_D, D)] if D else []
    results += [_add_up(parts_bias, delta_bias)] if delta_bias else []
    results += [grad_initial.transpose(2, 3).to(initial_state[0].dtype)] if initial_state else []
    if z is not None:
        results.append(parts_z[0] if count == 1 else (parts_z[0] + parts_z[1]).to(z.dtype))
    return results


def _scan_gradients(grad_output, grad_last_states, checkpoints, scan, logarithmic):
    u, delta, A, B, C, D, delta_bias, initial_state, z, *_ = scan
    batch, channels, length = u[0].shape
    states = A[0].shape[1]

    def stacked(like, *shape):
        return like[0].new_empty(len(like), *shape)

    gradients = [stacked(like, batch, length, channels).transpose(2, 3) for like in (u, delta)]
    gradients.append(stacked(A, channels, states))
    gradients += [stacked(like, batch, length, states).transpose(2, 3) for like in (B, C)]
    gradients += [stacked(like, channels) for like in (D, delta_bias) if like]
    gradients += [stacked(initial_state, *initial_state[0].shape)] if initial_state else []
    return gradients if z is None else [*gradients, empty_sequence(z)]


def _add_up(parts, like):
    return parts.sum(1).to(like[0].dtype)


def _convolution_layout(x, offsets):
    """Return (layout, slots, programs)."""
    _, channels, length = x.shape
    slots, blocks = _slots(x, offsets, CONVOLUTION_ROWS), -(-channels // BLOCK)
    layout = _kernels().Layout(offsets, count_sequences(x, offsets), length, channels, 0, blocks)
    return layout, slots, (slots * blocks,)


def _convolution_constants(weights):
    return {
        "WIDTH": weights[0].shape[-1], "ROWS": CONVOLUTION_ROWS, "BLOCK": BLOCK, "DIRECTIONS": len(weights),
        "warps": 4,
    }


def _contiguous(tensors):
    return tuple(tensor.contiguous() for tensor in tensors)


def _convolution(x, weights, biases, offsets, reverse):
    outputs = convolution_outputs(x, weights, biases, offsets, reverse)
    if x.numel() > 0:
        layout, _, programs = _convolution_layout(x, offsets)
        _launch(
            _kernels().convolution_forward, x.device, programs, _sequence(x), _contiguous(weights),
            _contiguous(biases), tuple(map(int, reverse)), tuple(map(_sequence, outputs)), layout,
            **_convolution_constants(weights),
        )
    return outputs


def _convolution_backward(grad_outputs, x, weights, biases, offsets, reverse):
    """Return the gradients of x, every weight and every bias."""
    gradients = convolution_gradients(grad_outputs, x, weights, biases, offsets, reverse)
    if x.numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    layout, slots, programs = _convolution_layout(x, offsets)
    _, channels, _ = x.shape
    count, width = len(weights), weights[0].shape[-1]
    parts_weight = x.new_empty(count, slots, width, channels, dtype=torch.float32)
    parts_bias = x.new_empty(count, slots, channels, dtype=torch.float32)
    _launch(
        _kernels().convolution_backward, x.device, programs, _sequence(x), _contiguous(weights),
        _contiguous(biases), tuple(map(int, reverse)), tuple(map(_sequence, grad_outputs)),
        _sequence(gradients[0]), parts_weight.unbind(), parts_bias.unbind(), layout,
        **_convolution_constants(weights),
    )
    for i in range(count):
        gradients[1 + i].copy_(parts_weight[i].sum(0).T.reshape(weights[i].shape))
        gradients[1 + count + i].copy_(parts_bias[i].sum(0))
    return gradients


def _unstack(gradients, lengths):
    """Split the kernels' gradients, one stack of directions for each kind present, into lists by kind."""
    stacks = iter(gradients)
    return [list(next(stacks).unbind()) if length else [] for length in lengths]


scan_operator = register_scan(
    "selective_scan_triton", "the Triton kernels", None, (_scan_forward, _scan_outputs),
    (_scan_backward, _scan_gradients), _unstack, ", bool logarithmic",
)
convolution_operator = register_convolution(
    "causal_convolutions_triton", "the Triton kernels", None, _convolution, _convolution_backward)
