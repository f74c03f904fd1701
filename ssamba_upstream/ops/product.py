"""The linear product, x W^T + b, and its two gradients, computed by the faster library for this CPU.

torch uses MKL for float32 products, and MKL takes its AVX2 path on non-Intel processors. oneDNN, part of the same
torch build, has AVX-512 kernels for all vendors. On AMD's family 26 (Zen 5), whose units are as wide as these vectors,
oneDNN is about twice as fast; on the four other processors measured it is no faster. The two libraries round
differently, so :func:`choice` follows a rule instead of a measurement, and every process on a machine computes the same
numbers. torch's global flags stay as they are: ``torch.set_float32_matmul_precision`` would also select oneDNN, but
allow it to round to bfloat16.
"""

import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

LIBRARIES = ("torch", "onednn")
FASTER_BY_ONEDNN = ("AuthenticAMD", "26")  # vendor and family, as the system reports them
SMALLEST = 1 << 22  # multiplications; the overhead of a call dominates smaller products


def linear(x, weight, bias=None):
    """Compute ``torch.nn.functional.linear`` with :func:`choice`'s library.

    Only large float32 products on a CPU are affected. torch computes everything else as usual: autocast, other devices
    and dtypes, torch.compile, export, and second derivatives.

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
    """Apply a module to x: by :func:`linear` if it is a plain ``nn.Linear``, otherwise by calling it."""
    weight, bias = plain_parameters(module, nn.Linear)
    return module(x) if weight is None else linear(x, weight, bias)


def plain_parameters(module, kind):
    """Return (weight, bias) of a plain module, see :func:`is_plain`; otherwise (None, None)."""
    if not is_plain(module, kind):
        return None, None
    try:
        return module._parameters["weight"], module._parameters["bias"]  # nn.Module's __getattr__ takes far longer
    except KeyError:  # DataParallel's replicas have them as attributes
        return module.weight, module.bias


def is_plain(module, kind):
    """Return True if a module is exactly of this class, so that its weight and bias fully define it.

    False for adapters and for quantised or parametrised layers, which have other classes; for modules with hooks, such
    as pruned ones; for all modules while global module hooks are registered; and if ``forward`` was replaced.
    """
    return type(module) is kind and "forward" not in module.__dict__ and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def multiply(x, weight, bias=None):
    """Compute :func:`linear` with :func:`choice`'s library, without derivatives.

    x, which must be float32 for oneDNN, and the weight may have any strides.
    """
    if choice()[0] == "onednn" and _is_large(x, weight) and x.dtype == weight.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def unavailable_reason():
    """Return why oneDNN's product is not available, or None if it is."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of torch does not expose oneDNN's linear product"
    return None


@functools.cache
def choice():
    """Return (library, reason), the same in every process on a machine.

    The library is oneDNN on the processors of FASTER_BY_ONEDNN, and torch's default on all others. The environment
    variable SSAMBA_LINEAR, "torch" or "onednn", overrides this rule; it is read once per process.

    Raises:
        ValueError: If SSAMBA_LINEAR names another library, or oneDNN when it is not available.
    """
    wanted, reason, here = os.environ.get("SSAMBA_LINEAR"), unavailable_reason(), processor()
    if wanted is not None:
        if wanted not in LIBRARIES:
            raise ValueError(f"SSAMBA_LINEAR={wanted} is not a known library. Set it to {' or '.join(LIBRARIES)}.")
        if wanted == "onednn" and reason:
            raise ValueError(f"SSAMBA_LINEAR=onednn: {reason}. Set it to torch, or unset it.")
        return wanted, f"SSAMBA_LINEAR={wanted}"
    described = "{}, family {}".format(*here) if here else "unknown processor"
    if here != FASTER_BY_ONEDNN:
        return "torch", f"{described}: of the processors measured, oneDNN is faster only on AMD's family 26"
    return ("torch", f"{described}, but {reason}") if reason else ("onednn", f"{described}: oneDNN is faster")


def processor(description="/proc/cpuinfo"):
    """Return (vendor, family) of an x86 processor under Linux, as strings; otherwise None."""
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
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    if not {Tensor, nn.Parameter}.issuperset(map(type, tensors)):
        return False
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors):
        return False
    return not torch.is_autocast_enabled("cpu") and torch._C._functorch.maybe_current_level() is None


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
