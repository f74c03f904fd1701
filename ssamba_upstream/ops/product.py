"""The linear product, x W^T + b, and its two gradients, by the library that suits this CPU.

torch sends float32 products to MKL, which takes its AVX2 path on processors that are not Intel's. oneDNN, which comes
in the same build of torch, has AVX-512 kernels for all of them. On AMD's family 26 (Zen 5), whose units are as wide as
these vectors, oneDNN is about twice as fast; on the four other processors that were measured it gains nothing. The two
round differently, so a rule chooses and not a measurement, see :func:`choice`: every process on a machine computes the
same numbers. No global flag of torch's is touched: ``torch.set_float32_matmul_precision`` would choose oneDNN as well,
and let it round to bfloat16.
"""

import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

LIBRARIES = ("torch", "onednn")
FASTER_BY_ONEDNN = ("AuthenticAMD", "26")  # vendor and family, as the system tells them
SMALLEST = 1 << 22  # multiplications: below, the costs of a call decide


def linear(x, weight, bias=None):
    """``torch.nn.functional.linear``, by :func:`choice`'s library.

    Only large float32 products on a CPU are affected. Everything else goes torch's ordinary way: autocast, other
    devices and dtypes, torch.compile, export, and second derivatives.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,). Default: none.

    Returns:
        (..., outputs).
    """
    if not _goes_to_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return multiply(x, weight, bias)


def apply_linear(module, x):
    """Return a module's result for x: by :func:`linear` if it is a plain ``nn.Linear``; otherwise it is called."""
    weight, bias = plain_parameters(module, nn.Linear)
    return module(x) if weight is None else linear(x, weight, bias)


def plain_parameters(module, kind):
    """Return (weight, bias) of a module if it is a plain one, see :func:`is_plain`; otherwise (None, None)."""
    if not is_plain(module, kind):
        return None, None
    try:
        return module._parameters["weight"], module._parameters["bias"]  # nn.Module's __getattr__ takes far longer
    except KeyError:  # in replicas of DataParallel these are attributes
        return module.weight, module.bias


def is_plain(module, kind):
    """True if a module is of this class and nothing more, so that its weight and bias are all there is to it.

    False for adapters, quantised and parametrised layers, which are of other classes; for modules with hooks, such as
    pruned ones, and for all modules while there are hooks of all modules; and if ``forward`` was replaced.
    """
    return type(module) is kind and "forward" not in module.__dict__ and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def multiply(x, weight, bias=None):
    """Return x W^T + b by :func:`choice`'s library, without derivatives.

    Args:
        x: (..., inputs), float32 for oneDNN, with any strides.
        weight: (outputs, inputs), with any strides.
        bias: (outputs,). Default: none.
    """
    if choice()[0] == "onednn" and _is_large(x, weight) and x.dtype == weight.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def unavailable_reason():
    """Why oneDNN's product is not available, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of torch does not expose oneDNN's linear product"
    return None


@functools.cache
def choice():
    """(library, why), the same in every process on a machine.

    oneDNN on the processors of FASTER_BY_ONEDNN, torch's default on all others. The environment variable SSAMBA_LINEAR,
    "torch" or "onednn", overrides this rule; it is read once a process.

    Raises:
        ValueError: SSAMBA_LINEAR names another library, or oneDNN where it is not available.
    """
    wanted, reason, here = os.environ.get("SSAMBA_LINEAR"), unavailable_reason(), processor()
    if wanted is not None:
        if wanted not in LIBRARIES:
            raise ValueError(f"SSAMBA_LINEAR={wanted} names no library. Set it to {' or '.join(LIBRARIES)}.")
        if wanted == "onednn" and reason:
            raise ValueError(f"SSAMBA_LINEAR=onednn: {reason}. Set it to torch, or unset it.")
        return wanted, f"SSAMBA_LINEAR={wanted}"
    described = "{}, family {}".format(*here) if here else "unknown processor"
    if here != FASTER_BY_ONEDNN:
        return "torch", f"{described}: of the processors measured, oneDNN is faster only on AMD's family 26"
    return ("torch", f"{described}, but {reason}") if reason else ("onednn", f"{described}: oneDNN is faster")


def processor(description="/proc/cpuinfo"):
    """(vendor, family) of an x86 processor under Linux, as strings; otherwise None."""
    try:
        lines = Path(description).read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return None
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found = fields.get("vendor_id"), fields.get("cpu family")
    return found if all(found) else None


def _is_large(x, weight):
    return x.numel() * weight.shape[0] >= SMALLEST


def _goes_to_onednn(x, weight, bias):
    if torch.compiler.is_compiling() or choice()[0] != "onednn":
        return False
    if torch.jit.is_tracing() or not _is_large(x, weight):
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
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        multiply_ = F.linear if torch.is_grad_enabled() else multiply
        flat = grad.flatten(0, -2)
        return (
            multiply_(grad, weight.t()) if needs_x else None,
            multiply_(flat.t(), x.flatten(0, -2).t()) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
        )
