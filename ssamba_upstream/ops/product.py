"""The linear product: x W^T + b, and its two gradients, by the library that is faster on this CPU.

torch sends float32 products to MKL, which takes its AVX2 path on processors that are not Intel's; oneDNN, which comes
in the same build of torch, has AVX-512 kernels for all of them. Where those are wider than AVX2's, they are about twice
as fast. Which is the case is measured once a process, for each of the three products of a linear layer, see
:func:`choice`. No global flag of torch's is touched: ``torch.set_float32_matmul_precision`` would choose oneDNN as
well, and let it round to bfloat16.
"""

import contextlib
import os
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIBRARIES = ("torch", "onednn")
PRODUCTS = ("output", "gradient of the input", "gradient of the weight")
FASTER = 1.4  # by how much oneDNN must be: between even and twice as fast, the two cases there are, far from both
SMALLEST = 1 << 22  # multiplications: below, the costs of a call decide
_chosen = None  # (library of each product, why)


def linear(x, weight, bias=None):
    """``torch.nn.functional.linear``, by :func:`choice`'s library where that is a question.

    It is one for large float32 products on a CPU. Everything else goes torch's ordinary way: autocast, other devices
    and dtypes, torch.compile, export, and second derivatives.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,). Default: none.

    Returns:
        (..., outputs).
    """
    if not _is_a_question(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return multiply(0, x, weight, bias)


def apply_linear(module, x):
    """A module's result for x: :func:`linear` for a plain ``nn.Linear``; anything else, such as an adapter or a
    quantised layer, is called."""
    return linear(x, module.weight, module.bias) if is_plain_linear(module) else module(x)


def is_plain_linear(module):
    """Whether a module is an ``nn.Linear`` and nothing more, so that its weight and bias are all there is to it."""
    return type(module) is nn.Linear and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def multiply(product, x, weight, bias=None):
    """x W^T + b without derivatives; ``product``, an index of PRODUCTS, says whose library is to be taken.

    Args:
        x: (..., inputs), float32 for oneDNN, with any strides.
        weight: (outputs, inputs), with any strides.
        bias: (outputs,). Default: none.
    """
    if choice()[0][product] == "onednn" and _is_large(x, weight) and x.dtype == weight.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def unavailable_reason():
    """Why oneDNN's product cannot be had, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of torch does not hand out oneDNN's linear product"
    return None


def choice():
    """(library of each of PRODUCTS, why): made at the first call and kept for the process.

    The environment variable SSAMBA_LINEAR, "torch" or "onednn", decides for all three; otherwise a measurement of some
    milliseconds does, in which oneDNN has to be faster by FASTER.

    Raises:
        ValueError: SSAMBA_LINEAR is something else, or cannot be had.
    """
    global _chosen
    if _chosen is None:
        _chosen = _choose()
    return _chosen


def use(libraries):
    """Make the choice, a library for each of PRODUCTS, for the rest of the process: to repeat another one's results.

    Raises:
        ValueError: there is no such library, or it cannot be had here.
    """
    global _chosen
    libraries = tuple(libraries)
    if len(libraries) != len(PRODUCTS) or not set(libraries) <= set(LIBRARIES):
        expected = f"one of {', '.join(LIBRARIES)} for each of {len(PRODUCTS)} products"
        raise ValueError(f"expected {expected}; got {libraries}")
    if "onednn" in libraries and (reason := unavailable_reason()):
        raise ValueError(f"oneDNN's linear product cannot be had here: {reason}")
    _chosen = libraries, "as it was asked for"


@contextlib.contextmanager
def forced(libraries):
    """Make the choice, see :func:`use`, as long as this context lasts: for comparisons."""
    global _chosen
    before = _chosen
    try:
        use(libraries)
        yield
    finally:
        _chosen = before


def _choose():
    wanted = os.environ.get("SSAMBA_LINEAR")
    reason = unavailable_reason()
    if wanted is not None:
        if wanted not in LIBRARIES:
            raise ValueError(f"SSAMBA_LINEAR={wanted}: expected one of {', '.join(LIBRARIES)}")
        if wanted == "onednn" and reason:
            raise ValueError(f"SSAMBA_LINEAR={wanted}: {reason}")
        return (wanted,) * len(PRODUCTS), f"SSAMBA_LINEAR={wanted}"
    if reason:
        return ("torch",) * len(PRODUCTS), reason
    ratios = [_torch_over_onednn(*operands) for operands in _operands()]
    libraries = tuple("onednn" if ratio > FASTER else "torch" for ratio in ratios)
    return libraries, "measured, torch's time over oneDNN's: " + ", ".join(
        f"{ratio:.2f} ({product})" for product, ratio in zip(PRODUCTS, ratios)
    )


def _operands(tokens=256, inputs=192, outputs=768):
    """(x, weight) of each of PRODUCTS, as they lie in memory in the tiny network."""
    x, weight, grad = (torch.linspace(-1, 1, a * b).view(a, b)
                       for a, b in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
    return (x, weight), (grad, weight.t()), (grad.t(), x.t())


@torch.no_grad()
def _torch_over_onednn(x, weight, rounds=9):
    """The fastest of some calls against the fastest of as many, in turn.

    On one thread: several would wait for one another wherever other work keeps one of them from running.
    """
    times = {F.linear: [], torch.ops.mkldnn._linear_pointwise: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):
            for function, found in times.items():
                extra = () if function is F.linear else ("none", [], "")
                start = time.perf_counter()
                function(x, weight, None, *extra)
                found.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (min(found) for found in times.values())
    return ours / theirs


def _is_large(x, weight):
    return x.numel() * weight.shape[0] >= SMALLEST


def _is_a_question(x, weight, bias):
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _is_large(x, weight):
        return False
    if "onednn" not in choice()[0]:
        return False
    if not all(_is_plain_float32(tensor) for tensor in (x, weight, bias) if tensor is not None):
        return False
    return not torch.is_autocast_enabled("cpu") and torch._C._functorch.maybe_current_level() is None


def _is_plain_float32(tensor):
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return multiply(0, x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        multiply_ = _multiply_differentiably if torch.is_grad_enabled() else multiply
        flat = grad.flatten(0, -2)
        return (
            multiply_(1, grad, weight.t()) if needs_x else None,
            multiply_(2, flat.t(), x.flatten(0, -2).t()) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
        )


def _multiply_differentiably(product, x, weight):
    return F.linear(x, weight)
