"""The compiled kernels for CPUs: the selective scan and the causal convolution, one direction or two at once.

``kernel.c`` beside this file is built by the package's setup and holds all arithmetic, in float32. Here it is loaded
through ctypes, so that one build serves every version of torch, and registered with torch: torch.compile, autocast,
DistributedDataParallel and activation checkpointing see ordinary operators with a first derivative.

The best instruction set of the CPU is taken, or the one that the environment variable SSAMBA_CPU_ISA names: "avx512",
"avx2" or "baseline".
"""

import contextlib
import ctypes
import importlib.util
import itertools
import os
from pathlib import Path

import torch
from torch import Tensor

from ..ragged import boundaries, check_offsets
from ..registration import register_convolution, register_scan, split

TILE, GROUP, WIDEST = 32, 64, 16  # as in kernel.c
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _load():
    """(library, name of the instruction set, None), or (None, None, why there is none)."""
    spec = importlib.util.find_spec(f"{__name__}._kernel")
    if spec is None:
        return None, None, "it was not built: installing the package found no C compiler"
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        return None, None, f"it does not load: {error}"
    library.ssamba_select.argtypes, library.ssamba_select.restype = [ctypes.c_char_p], ctypes.c_char_p
    library.ssamba_elementary.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.ssamba_sum.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3
    library.ssamba_use_team.argtypes = [ctypes.c_void_p]
    library.ssamba_use_team(_torch_team())
    # The runtime's threads are not there in a forked process, and it would wait for them.
    os.register_at_fork(after_in_child=lambda: library.ssamba_use_team(None))
    wanted = os.environ.get("SSAMBA_CPU_ISA")
    chosen = library.ssamba_select(wanted.encode() if wanted else None)
    if chosen is None:
        return None, None, f"SSAMBA_CPU_ISA={wanted} is not an instruction set of this CPU"
    return library, chosen.decode(), None


def _torch_team():
    """Address of the function that starts a parallel region in torch's OpenMP runtime (GCC's), or None."""
    for name in [*map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*")), "libgomp.so.1"]:
        with contextlib.suppress(OSError):
            runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # only where torch has loaded it
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    return None


_library, instruction_set, _unavailable_reason = _load()


def is_available() -> bool:
    """Whether the compiled kernels are there."""
    return _library is not None


def unavailable_reason():
    """Why the compiled kernels are not there, or None."""
    return _unavailable_reason


def selective_scan_cpu(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False,
    return_last_state=False, offsets=None,
):
    """Arguments and results: see :func:`ssamba_upstream.ops.selective_scan`. Differentiable once.

    Args:
        offsets: as in :func:`ssamba_upstream.ops.selective_scan_mean`. The last state then is
            (sequences, channels, states), zero for an empty sequence.

    Raises:
        ValueError: the offsets do not fit.
    """
    scan = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "reverse": reverse}
    output, last_state = _scan([scan], z, delta_softplus, offsets, return_last_state)
    return (output, last_state[0]) if return_last_state else output


def selective_scan_mean_cpu(directions, z, delta_softplus, offsets=None):
    """Arguments and result: see :func:`ssamba_upstream.ops.selective_scan_mean`. Differentiable once."""
    return _scan(directions, z, delta_softplus, offsets, False)[0]


def causal_convolutions_cpu(x, weights, biases, reverse, offsets=None):
    """Arguments and results: see :func:`ssamba_upstream.ops.causal_convolutions`. Differentiable once."""
    weights, biases = [w.float() for w in weights], [b.float() for b in biases]
    tensors = [x, *weights, *biases]
    if offsets is not None:
        check_offsets(x, offsets)
        tensors.append(offsets)
    operator = _convolution if _call_directly(tensors) else convolution_operator
    return [output.to(x.dtype) for output in operator(x.float(), weights, biases, offsets, list(reverse))]


def _scan(directions, z, delta_softplus, offsets, return_last_state):
    lists = [
        [scan[name].float() for scan in directions if scan[name] is not None]
        for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")
    ]
    reverse = [scan["reverse"] for scan in directions]
    tensors = [tensor for tensors in lists for tensor in tensors]
    if z is not None:
        z = z.float()
        tensors.append(z)
    if offsets is not None:
        check_offsets(directions[0]["u"], offsets)
        tensors.append(offsets)
    direct = _call_directly(tensors)
    keep_checkpoints = not direct and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    operator = _scan_forward if direct else scan_operator
    options = reverse, delta_softplus, return_last_state, keep_checkpoints
    output, last_state, _ = operator(*lists, z, offsets, *options)
    return output.to(directions[0]["u"].dtype), last_state


def _call_directly(tensors):
    """Whether torch's dispatcher, which can take longer than a small scan, would do nothing with the call."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)


def exponential2(x, out=None):
    """2**x of a contiguous float32 tensor as the scan computes it, on one thread: for tests and estimates of speed."""
    powers = torch.empty_like(x) if out is None else out
    _library.ssamba_elementary(1, x.data_ptr(), powers.data_ptr(), x.numel())
    return powers


# What follows deals with float32 tensors in lists of one entry per direction; D and delta_bias may be empty lists.


def _scan_forward(
    u, delta, A, B, C, D, delta_bias, z, offsets, reverse, delta_softplus, return_last_state, keep_checkpoints
):
    """(output, last states, checkpoints for the backward pass), of which the latter are empty unless asked for."""
    places = _places(u[0], offsets)
    output, last_state, checkpoints = _scan_outputs(
        u, delta, A, B, C, D, delta_bias, z, offsets, reverse, delta_softplus, return_last_state, keep_checkpoints
    )
    A, D, delta_bias = _contiguous(A), _contiguous(D), _contiguous(delta_bias)
    arguments = _scan_arguments(u, places, A, delta_softplus, z, output, None)
    for i in range(len(u)):
        arguments += (
            *_sequence(u[i]), *_sequence(delta[i]), *_sequence(B[i]), *_sequence(C[i]),
            *_parameters(A, D, delta_bias, i), reverse[i],
            last_state[i].data_ptr() if return_last_state else 0,
            checkpoints[i].data_ptr() if keep_checkpoints else 0,
            *_NO_GRADIENTS,
        )
    _run(_library.ssamba_scan_forward, arguments)
    return output, last_state, checkpoints


def _scan_outputs(
    u, delta, A, B, C, D, delta_bias, z, offsets, reverse, delta_softplus, return_last_state, keep_checkpoints
):
    batch, channels, length = u[0].shape
    states, sequences = A[0].shape[1], _sequences(u[0], offsets)
    last_state = (len(u), sequences, channels, states) if return_last_state else (0,)
    tiles = batch * -(-length // TILE) if offsets is None else length // TILE + sequences
    checkpoints = (len(u), tiles, states, -(-channels // WIDEST) * WIDEST) if keep_checkpoints else (0,)
    return _empty_sequence(u[0]), u[0].new_empty(last_state), u[0].new_empty(checkpoints)


def _scan_backward(
    grad_output, grad_last_state, checkpoints, u, delta, A, B, C, D, delta_bias, z, offsets, reverse,
    delta_softplus,
):
    """Gradients of u, delta, A, B, C, D and delta_bias, one after the other, each in every direction; then of z."""
    gradients = _scan_gradients(
        grad_output, grad_last_state, checkpoints, u, delta, A, B, C, D, delta_bias, z, offsets, reverse,
        delta_softplus,
    )
    directions = len(u)
    lengths = [len(tensors) for tensors in (u, delta, A, B, C, D, delta_bias)]
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias = split(gradients, lengths)
    places, groups = _places(u[0], offsets), -(-u[0].shape[1] // GROUP)
    A, D, delta_bias = _contiguous(A), _contiguous(D), _contiguous(delta_bias)
    if grad_last_state is not None:
        grad_last_state = grad_last_state.contiguous()

    # What each sequence, or group of channels, contributes is added up afterwards, in a fixed order.
    sequences = _sequences(u[0], offsets)
    parts_A, parts_D, parts_bias = (_parts(totals, sequences) for totals in (grad_A, grad_D, grad_bias))
    parts_B, parts_C = (_parts(totals, groups) for totals in (grad_B, grad_C))
    arguments = _scan_arguments(u, places, A, delta_softplus, z, grad_output, None if z is None else gradients[-1])
    for i in range(directions):
        arguments += (
            *_sequence(u[i]), *_sequence(delta[i]), *_sequence(B[i]), *_sequence(C[i]),
            *_parameters(A, D, delta_bias, i), reverse[i], 0, checkpoints[i].data_ptr(),
            0 if grad_last_state is None else grad_last_state[i].data_ptr(),
            *_sequence(grad_u[i]), *_sequence(grad_delta[i]),
            *_parameters(parts_A, parts_D, parts_bias, i), parts_B[i].data_ptr(), parts_C[i].data_ptr(),
        )
    _run(_library.ssamba_scan_backward, arguments)
    _sum([*parts_A, *parts_D, *parts_bias, *parts_B, *parts_C], [*grad_A, *grad_D, *grad_bias, *grad_B, *grad_C])
    return gradients


def _scan_gradients(
    grad_output, grad_last_state, checkpoints, u, delta, A, B, C, D, delta_bias, z, offsets, reverse,
    delta_softplus,
):
    gradients = [_empty_sequence(tensor) for tensor in (*u, *delta)]
    gradients += [tensor.new_empty(tensor.shape) for tensor in A]
    gradients += [_empty_sequence(tensor) for tensor in (*B, *C)]
    gradients += [tensor.new_empty(tensor.shape) for tensor in (*D, *delta_bias)]
    return gradients if z is None else [*gradients, _empty_sequence(z)]


def _convolution(x, weights, biases, offsets, reverse):
    places = _places(x, offsets)
    outputs = _convolution_outputs(x, weights, biases, offsets, reverse)
    weights, biases = _contiguous(weights), _contiguous(biases)
    arguments = _convolution_arguments(x, places, None, weights)
    for weight, bias, reverse_one, output in zip(weights, biases, reverse, outputs):
        arguments += (weight.data_ptr(), bias.data_ptr(), reverse_one, *_sequence(output), 0, 0)
    _run(_library.ssamba_convolution_forward, arguments)
    return outputs


def _convolution_outputs(x, weights, biases, offsets, reverse):
    return [_empty_sequence(x) for _ in weights]


def _convolution_backward(grad_outputs, x, weights, biases, offsets, reverse):
    """Gradients of x, every weight and every bias."""
    gradients = _convolution_gradients(grad_outputs, x, weights, biases, offsets, reverse)
    grad_x, parameters = gradients[0], gradients[1:]
    directions, places = len(weights), _places(x, offsets)
    parts = _parts(parameters, _sequences(x, offsets))
    weights, biases = _contiguous(weights), _contiguous(biases)
    arguments = _convolution_arguments(x, places, grad_x, weights)
    for i in range(directions):
        arguments += (
            weights[i].data_ptr(), biases[i].data_ptr(), reverse[i], *_sequence(grad_outputs[i]),
            parts[i].data_ptr(), parts[directions + i].data_ptr(),
        )
    _run(_library.ssamba_convolution_backward, arguments)
    _sum(parts, parameters)
    return gradients


def _convolution_gradients(grad_outputs, x, weights, biases, offsets, reverse):
    return [_empty_sequence(x), *(tensor.new_empty(tensor.shape) for tensor in (*weights, *biases))]


# The kernel's arguments, in the order of the structs in kernel.c, all of whose fields are as wide as an int64.

_NO_SEQUENCE = (0, 0, 0, 0)
_NO_GRADIENTS = (0, *_NO_SEQUENCE, *_NO_SEQUENCE, 0, 0, 0, 0, 0)


def _sequence(tensor):
    return _NO_SEQUENCE if tensor is None else (tensor.data_ptr(), *tensor.stride())


def _parameters(A, D, delta_bias, i):
    return A[i].data_ptr(), D[i].data_ptr() if D else 0, delta_bias[i].data_ptr() if delta_bias else 0


def _sequences(x, offsets):
    return x.shape[0] if offsets is None else offsets.shape[0] - 1


def _places(x, offsets):
    """The kernel's ``Place`` of every sequence, or None without offsets.

    The longest comes first, so that no thread is left alone with it. Sequence i has its checkpoints from
    start // TILE + i on: enough for its tiles, and in all as many as the shapes alone tell.
    """
    if offsets is None:
        return None
    places = [
        (i, 0, start, end - start, start // TILE + i, end // TILE + 1 - start // TILE)
        for i, (start, end) in enumerate(itertools.pairwise(boundaries(x, offsets)))
    ]
    places.sort(key=lambda place: place[3], reverse=True)
    return torch.tensor(places, dtype=torch.int64)


def _batch(x, places):
    return *x.shape, *((x.shape[0], 0) if places is None else (len(places), places.data_ptr()))


def _scan_arguments(u, places, A, delta_softplus, z, output, grad_z):
    return [
        torch.get_num_threads(), *_batch(u[0], places), A[0].shape[1], delta_softplus, len(u), *_sequence(z),
        *_sequence(output), *_sequence(grad_z),
    ]


def _convolution_arguments(x, places, grad_x, weights):
    return [
        torch.get_num_threads(), *_batch(x, places), weights[0].shape[-1], len(weights), *_sequence(x),
        *_sequence(grad_x),
    ]


_ARGUMENTS = ctypes.c_int64 * 128  # the longer struct, with room for what the kernel itself adds


def _run(function, arguments):
    if function(_ARGUMENTS(*arguments)):
        raise MemoryError("the compiled kernel found no memory for its working space")


def _parts(totals, count):
    return [total.new_empty(count, *total.shape) for total in totals]


def _sum(parts, totals):
    for part, total in zip(parts, totals):
        if _library.ssamba_sum(part.data_ptr(), total.data_ptr(), len(part), total.numel(), torch.get_num_threads()):
            raise MemoryError("the compiled kernel found no memory for its working space")


def _contiguous(tensors):
    return [tensor.contiguous() for tensor in tensors]


def _empty_sequence(like):
    """An empty tensor of that (batch, channels, length) whose channels are neighbours in memory."""
    batch, channels, length = like.shape
    return like.new_empty(batch, length, channels).transpose(1, 2)


scan_operator = register_scan(
    "selective_scan", "the compiled CPU kernels", "cpu", (_scan_forward, _scan_outputs),
    (_scan_backward, _scan_gradients), split,
)
convolution_operator = register_convolution(
    "causal_convolutions", "the compiled CPU kernels", "cpu", (_convolution, _convolution_outputs),
    (_convolution_backward, _convolution_gradients),
)
