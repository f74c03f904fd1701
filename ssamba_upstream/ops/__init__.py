"""Operators of a Mamba mixer: linear products, the short causal convolution, the selective scan, and :func:`mix`, which
combines everything between the mixer's outer projections.

Each operator is one function with several backends; ``backend="auto"`` uses the fastest that supports the tensors.
"""

import contextlib
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from . import cpu, cuda, triton
from .chunked import selective_scan_chunked
from .product import apply_linear, is_plain, linear, plain_parameters  # noqa: F401 (part of the public interface)
from .ragged import boundaries, check_offsets, join_inputs
from .reference import selective_scan_reference

# Fastest first: "auto" uses the first one available.
BACKENDS = {
    "triton": triton.selective_scan_triton,
    "mamba_ssm": cuda.selective_scan_cuda,
    "cpu": cpu.selective_scan_cpu,
    "torch": selective_scan_chunked,
    "reference": selective_scan_reference,
}
_PLAIN = ("torch", "reference")  # made of torch's own operators: available everywhere, but several times slower
_RAGGED_SCANS = ("triton", "cpu")  # these accept offsets themselves
_RAGGED_MEANS = {"triton": triton.selective_scan_mean_triton, "cpu": cpu.selective_scan_mean_cpu}
_RAGGED_CONVOLUTIONS = {"triton": triton.causal_convolutions_triton, "cpu": cpu.causal_convolutions_cpu}
_MIXERS = {"cpu": cpu.mix_cpu}

_forced = None
_best = {}  # by device type and dtype; asking every backend each time would take longer than a small scan


@contextlib.contextmanager
def forced_backend(name):
    """Make "auto" mean one backend within this context, or again the fastest one ("auto"). For comparisons."""
    global _forced
    previous, _forced = _forced, None if name == "auto" else name
    try:
        yield
    finally:
        _forced = previous


def choose_backend(tensor):
    """Return the backend that "auto" selects for a tensor."""
    return _forced or _best_backend(tensor.device.type, tensor.dtype)


@torch.compiler.assume_constant_result  # torch.compile cannot trace the backends' availability checks
def _best_backend(*kind):
    if kind not in _best:
        _best[kind] = next(name for name in BACKENDS if unavailable_reason(name, *kind) is None)
    return _best[kind]


def unavailable_reason(backend, device="cpu", dtype=torch.float32):
    """Return why a backend cannot compute on a device ("cpu", "cuda") in a dtype, or None if it can."""
    if backend not in BACKENDS:
        return f"no such backend. Choose one of auto, {', '.join(BACKENDS)}"
    if backend in _PLAIN:
        return None
    home = "cpu" if backend == "cpu" else "cuda"
    if device != home:
        return f"it runs on {home} only"
    if dtype == torch.float64:
        return "it does not support float64"
    return {"mamba_ssm": cuda, "triton": triton, "cpu": cpu}[backend].unavailable_reason()


def why_slow(device="cpu"):
    """Return a sentence that explains why scans are slow on a device ("cpu", "cuda"), or None if they are not."""
    if _best_backend(device, torch.float32) not in _PLAIN:
        return None
    made_for_it = "cpu" if device == "cpu" else "triton"
    return (f"scans take several times longer than with the {made_for_it!r} backend, which is not available: "
            f"{unavailable_reason(made_for_it, device)}")


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False, return_last_state=False,
    initial_state=None, offsets=None, backend="auto",
):
    """Compute Mamba's selective state space scan (arXiv 2312.00752, Algorithm 2).

    With step s_t = softplus(delta_t + delta_bias): state_t = exp(s_t A) state_{t-1} + s_t u_t B_t;
    output_t = (C_t . state_t + D u_t) * silu(z_t). Shapes are as in mamba-ssm.

    Args:
        u: (batch, channels, length), floating point. Need not be contiguous.
        delta: (batch, channels, length), step sizes before bias and softplus.
        A: (channels, states), real.
        B, C: (batch, states, length).
        D: (channels,), skip connection. Default: none.
        z: (batch, channels, length), gate. Default: none.
        delta_bias: (channels,). Default: none.
        delta_softplus: if True, the step is softplus(delta + delta_bias), otherwise delta + delta_bias.
        reverse: if True, scan from the last step to the first.
        return_last_state: if True, return (output, state after the last step scanned). The state is (batch, channels,
            states), or (sequences, channels, states) for a ragged batch.
        initial_state: state before the first step scanned, in the shape of the last state. Default: zero. To scan a
            sequence in pieces, pass the last state of one call as the initial state of the next.
        offsets: boundaries of a ragged batch, see :func:`selective_scan_mean`.
        backend: "triton" (CUDA tensors, needs only triton), "mamba_ssm" (CUDA tensors, needs mamba-ssm and
            causal-conv1d; see :mod:`ssamba_upstream.ops.cuda` for its limits), "cpu" (compiled), "torch" (plain torch,
            any device) or "reference" (the definition). Only the last two support float64, and only the last has
            higher than first derivatives. Default: "auto", the fastest one available.

    Returns:
        (batch, channels, length) in u's dtype. The state is kept in float32, or float64 for float64 inputs.

    Raises:
        ValueError: If shapes do not match, the backend is unknown or not available, or A is complex.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state, offsets)
    if backend == "auto":
        backend = choose_backend(u)
    elif reason := unavailable_reason(backend, u.device.type, u.dtype):
        raise ValueError(f"backend {backend!r} is not available: {reason}")
    scan, options = BACKENDS[backend], (delta_bias, delta_softplus, reverse, return_last_state)
    if offsets is None:
        return scan(u, delta, A, B, C, D, z, *options, initial_state)
    if backend in _RAGGED_SCANS:
        return scan(u, delta, A, B, C, D, z, *options, initial_state, offsets)
    check_offsets(u, offsets)
    pieces = []
    for i, (begin, end) in enumerate(itertools.pairwise(boundaries(u.shape[-1], offsets))):
        inputs = [None if tensor is None else tensor[..., begin:end] for tensor in (u, delta, B, C, z)]
        before = None if initial_state is None else initial_state[i : i + 1]
        pieces.append(scan(*inputs[:2], A, *inputs[2:4], D, inputs[4], *options, before))
    if not return_last_state:
        return torch.cat(pieces, dim=-1)
    outputs, states = zip(*pieces)
    return torch.cat(outputs, dim=-1), torch.cat(states)


def selective_scan_mean(directions, z=None, delta_softplus=False, offsets=None):
    """Return the gated mean of selective scans over the same steps, such as a forward and a backward scan.

    Args:
        directions: one dict per scan with the arguments u, delta, A, B, C, D, delta_bias and reverse of
            :func:`selective_scan`. D and delta_bias are tensors in all of them or in none.
        z, delta_softplus: shared by all scans, see :func:`selective_scan`.
        offsets: (sequences + 1,) int64 on the inputs' device, ascending from 0 to the length, for a ragged batch. The
            batch then has one entry, in which sequence i occupies the steps offsets[i] ... offsets[i + 1] - 1 (none if
            the two are equal) and is scanned separately from a zero state. Default: every batch entry is a sequence.

    Returns:
        (batch, channels, length) in u's dtype.

    Raises:
        ValueError: If shapes or offsets do not match, or A is complex.
    """
    u = directions[0]["u"]
    for scan in directions:
        _check_shapes(*(scan[name] for name in ("u", "delta", "A", "B", "C", "D")), z, scan["delta_bias"])
    if len(directions) <= 2 and (scan_all := _RAGGED_MEANS.get(choose_backend(u))):
        return scan_all(directions, z, delta_softplus, offsets)
    if offsets is not None:
        def scan_one(steps):
            names = "u", "delta", "B", "C"
            inputs = [scan | {name: scan[name][..., steps] for name in names} for scan in directions]
            return [selective_scan_mean(inputs, None if z is None else z[..., steps], delta_softplus)]

        return _each_sequence(scan_one, u, offsets)[0]
    scans = [selective_scan(**scan, z=z, delta_softplus=delta_softplus) for scan in directions]
    return sum(scans) / len(scans)


def causal_convolution(x, weight, bias, reverse=False, initial_inputs=None, offsets=None):
    """Apply a depthwise causal convolution and SiLU, as before every selective scan.

    Args:
        x: (batch, channels, length).
        weight: (channels, 1, width); the last tap applies to the current step, as in ``nn.Conv1d``.
        bias: (channels,).
        reverse: if True, the convolution is causal in reversed time: taps look ahead instead of back.
        initial_inputs: (batch, channels, width - 1), or (sequences, channels, width - 1) for a ragged batch: inputs
            before the first step, in order of time. Default: zeros.
        offsets: boundaries of a ragged batch, see :func:`selective_scan_mean`.

    Returns:
        (batch, channels, length) in x's dtype; or, if initial inputs are given, a pair of this and the initial inputs
        for the next steps.
    """
    if initial_inputs is None:
        return causal_convolutions(x, [weight], [bias], [reverse], offsets)[0]
    joined, joined_offsets, places, last_inputs = join_inputs(initial_inputs, x, reverse, offsets)
    return causal_convolutions(joined, [weight], [bias], [reverse], joined_offsets)[0][..., places], last_inputs


def causal_convolutions(x, weights, biases, reverse, offsets=None):
    """Apply :func:`causal_convolution` to the same x with each weight, bias and reverse, and return a list.

    ``offsets`` divide a ragged batch, see :func:`selective_scan_mean`. No tap reaches into another sequence.
    """
    backend = choose_backend(x)
    if len(weights) <= 2 and (convolve_all := _RAGGED_CONVOLUTIONS.get(backend)):
        return convolve_all(x, weights, biases, reverse, offsets)
    if offsets is not None:
        def convolve_one(steps):
            return causal_convolutions(x[..., steps], weights, biases, reverse)

        return _each_sequence(convolve_one, x, offsets)
    convolve = cuda.causal_convolution_cuda if backend == "mamba_ssm" else _causal_convolution
    return [convolve(x, *parameters) for parameters in zip(weights, biases, reverse)]


def mix(channels_and_gate, directions, offsets=None, state=None):
    """Compute a mixer between its outer projections: the gated mean of its directions' scans.

    Each direction convolves the channels, projects the result to low-rank steps, B and C, and scans; see
    :class:`ssamba_upstream.network.mixer.BidirectionalMamba`. If all modules are plain ones, a backend's fused mixer is
    used if there is one. Otherwise the functions above are combined, and modules that are not plain are called.

    Args:
        channels_and_gate: (batch, length, 2 * channels): the convolution's input, and z.
        directions: one dict per direction: ``convolution``, a depthwise ``nn.Conv1d`` with a bias and without padding,
            or a replacement module, and ``taps``, the width of its kernel; ``input_projection``, a module, (...,
            channels) -> (..., rank + 2 * states); ``step_projection``, a module with a bias, (..., rank) -> (...,
            channels), the softplus's input; ``A_log`` (channels, states), the logarithm of -A; ``D`` (channels,);
            and ``reverse``, True for a direction that runs backwards in time.
        offsets: boundaries of a ragged batch, see :func:`selective_scan_mean`.
        state: state of each sequence before these steps, for a single direction: the initial inputs of
            :func:`causal_convolution` and the initial state of :func:`selective_scan`. Default: zeros.

    Returns:
        (batch, length, channels) in the dtype of ``channels_and_gate``; or, if a state is given, a pair of this and
        the state after these steps.

    Raises:
        ValueError: If offsets do not match, or a state is given with several directions.
    """
    if state is not None and len(directions) > 1:
        raise ValueError(f"{len(directions)} directions cannot continue from a state. Give a single direction")
    reverse = [direction["reverse"] for direction in directions]
    has_derivative = state is None or not torch.is_grad_enabled()  # or needs none
    mix_at_once = _MIXERS.get(choose_backend(channels_and_gate)) if len(directions) <= 2 and has_derivative else None
    if mix_at_once:
        parameters = [_mixer_parameters(direction) for direction in directions]
        if None not in parameters:
            return mix_at_once(channels_and_gate, parameters, reverse, offsets, state)
    plain_steps = all(is_plain(direction["step_projection"], nn.Linear) for direction in directions)
    x, z = channels_and_gate.transpose(1, 2).chunk(2, dim=1)
    convolved_offsets, places = offsets, None
    if state is not None:
        x, convolved_offsets, places, last_inputs = join_inputs(state[0], x, reverse[0], offsets)
    if all(is_plain(direction["convolution"], nn.Conv1d) for direction in directions):
        weights, biases = zip(*((direction["convolution"].weight, direction["convolution"].bias)
                                for direction in directions))
        inputs = causal_convolutions(x, weights, biases, reverse, convolved_offsets)
    else:
        inputs = [_call_convolution(x, direction, convolved_offsets) for direction in directions]
    if state is not None:
        inputs = [inputs[0][..., places]]
    scans = [_scan_arguments(u, direction, plain_steps) for u, direction in zip(inputs, directions)]
    if state is not None:
        scan = scans[0] | {"A": -torch.exp(scans[0]["A"].float())}
        mixed, last_state = selective_scan(**scan, z=z, delta_softplus=True, return_last_state=True,
                                           initial_state=state[1], offsets=offsets)
        return mixed.transpose(1, 2), (last_inputs, last_state)
    if len(scans) <= 2 and choose_backend(channels_and_gate) == "triton":  # its kernel reads the logarithm itself
        mixed = triton.selective_scan_mean_triton(scans, z, True, offsets, logarithmic=True)
    else:
        scans = [scan | {"A": -torch.exp(scan["A"].float())} for scan in scans]
        mixed = selective_scan_mean(scans, z, True, offsets)
    return mixed.transpose(1, 2)


def _mixer_parameters(direction):
    """Return a direction's parameters for a backend's mixer, or None if one of its modules is not plain."""
    weight, bias = plain_parameters(direction["convolution"], nn.Conv1d)
    input_weight, _ = plain_parameters(direction["input_projection"], nn.Linear)
    step_weight, step_bias = plain_parameters(direction["step_projection"], nn.Linear)
    if weight is None or input_weight is None or step_weight is None:
        return None
    return weight, bias, input_weight, step_weight, step_bias, direction["A_log"], direction["D"]


def _scan_arguments(u, direction, plain_steps):
    """Return one direction's arguments for the scan, with A as a logarithm: steps, B and C are projections of u.

    If the projection of the steps is plain, the scan adds its bias in float32: rounding the bias to bfloat16 would
    change a step by one to two percent.
    """
    step_projection, states = direction["step_projection"], direction["A_log"].shape[1]
    projected = apply_linear(direction["input_projection"], u.transpose(1, 2))
    low, B, C = projected.split([projected.shape[-1] - 2 * states, states, states], dim=-1)
    delta = linear(low, step_projection.weight) if plain_steps else step_projection(low)
    return {
        "u": u, "delta": delta.transpose(1, 2), "A": direction["A_log"], "B": B.transpose(1, 2),
        "C": C.transpose(1, 2), "D": direction["D"], "delta_bias": step_projection.bias if plain_steps else None,
        "reverse": direction["reverse"],
    }


def _each_sequence(compute, x, offsets):
    """Call ``compute`` with each sequence's steps, a slice, and concatenate the tensors that it returns along time."""
    check_offsets(x, offsets)
    ends = itertools.pairwise(boundaries(x.shape[-1], offsets))
    not_empty = [slice(begin, end) for begin, end in ends if begin < end] or [slice(0, 0)]
    return [torch.cat(pieces, dim=-1) for pieces in zip(*map(compute, not_empty))]


def _call_convolution(x, direction, offsets):
    """Compute :func:`causal_convolution` by one call of a direction's module, with zeros before each sequence."""
    module, context = direction["convolution"], direction["taps"] - 1
    if direction["reverse"]:
        turned = None if offsets is None else x.shape[-1] - offsets.flip(0)
        return _call_convolution(x.flip(-1), direction | {"reverse": False}, turned).flip(-1)
    if offsets is None:
        return F.silu(module(F.pad(x, (context, 0))))
    check_offsets(x, offsets)
    steps = torch.arange(x.shape[-1], device=x.device)
    places = steps + context * torch.bucketize(steps, offsets[1:-1], right=True)
    padded = x.new_zeros(*x.shape[:2], len(steps) + context * (len(offsets) - 1))
    return F.silu(module(padded.index_copy(-1, places + context, x))[..., places])


def _causal_convolution(x, weight, bias, reverse):
    context = weight.shape[-1] - 1
    if reverse:
        padded, weight = F.pad(x, (0, context)), weight.flip(-1)
    else:
        padded = F.pad(x, (context, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=weight.shape[0]))


def _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state=None, offsets=None):
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must be (batch, channels, length) and A (channels, states); "
                         f"got {tuple(u.shape)} and {tuple(A.shape)}")
    if A.is_complex():
        raise ValueError("A must be real; complex states are not supported")
    batch, channels, length = u.shape
    states = A.shape[1]
    expected = {
        "delta": (delta, (batch, channels, length)), "A": (A, (channels, states)), "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)), "D": (D, (channels,)), "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch if offsets is None else len(offsets) - 1, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} for u {tuple(u.shape)}; got {tuple(tensor.shape)}")
