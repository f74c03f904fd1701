"""The linear product by either library against float64, its exceptions, and the choice of the library."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssamba_upstream import ops
from ssamba_upstream.ops import product

needs_onednn = pytest.mark.skipif(product.unavailable_reason() is not None, reason=str(product.unavailable_reason()))


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(product, "choice", lambda: ("onednn", "for a test"))
    monkeypatch.setattr(product, "SMALLEST", 1)


def derivatives(function, inputs):
    """Return the result, and gradients and second derivatives of some loss for all inputs that are tensors."""
    tensors = [x for x in inputs if x is not None]
    result = function(*inputs)
    gradients = torch.autograd.grad(result.sin().sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)
    return [result, *gradients, *second]


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape, outputs", [((513, 192), 768), ((2, 33, 384), 44), ((3, 1, 5), 1), ((1, 2, 3, 12), 7)])
def test_equals_the_product_in_float64(onednn, shape, outputs, bias):
    inputs = torch.randn(*shape) / 4, torch.randn(outputs, shape[-1]) / 4, torch.randn(outputs) if bias else None
    found, exact = (
        derivatives(function, [x if x is None else x.to(dtype).requires_grad_() for x in inputs])
        for function, dtype in ((product.linear, torch.float32), (F.linear, torch.float64))
    )
    assert type(found[0].grad_fn).__name__ == "_LinearBackward"
    for a, b in zip(found, exact):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@needs_onednn
def test_strides_of_any_kind(onednn):
    x = torch.randn(2, 64, 30)
    for view in (x, x.transpose(1, 2), x[:, ::2], x[..., 3:20]):
        weight = torch.randn(view.shape[-1], 9).t()
        torch.testing.assert_close(product.linear(view, weight), view @ weight.t(), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_what_goes_the_ordinary_way(onednn):
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    assert "Linear" in type(product.linear(x, weight).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert product.linear(x, weight).dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        result = product.linear(x.to(dtype), weight.to(dtype))
        assert result.dtype == dtype and torch.equal(result, F.linear(x.to(dtype), weight.to(dtype)))
    assert torch.equal(torch.func.vmap(lambda row: product.linear(row, weight))(x), F.linear(x, weight))
    compiled = torch.compile(product.linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), F.linear(x, weight))


def test_small_products_stay_with_torch(monkeypatch):
    monkeypatch.setattr(product, "choice", lambda: ("onednn", "for a test"))
    x, weight = torch.randn(8, 6), torch.randn(5, 6)
    assert torch.equal(product.linear(x, weight), F.linear(x, weight))


def test_nothing_in_nothing_out(onednn):
    x, weight = torch.randn(0, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    result = product.linear(x, weight)
    result.sum().backward()
    assert result.shape == (0, 5) and not weight.grad.any()


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_only_a_plain_linear_layer_is_looked_into():
    x, plain = torch.randn(3, 4), nn.Linear(4, 2)
    assert product.is_plain(plain, nn.Linear) and torch.equal(product.apply_linear(plain, x), plain(x))
    for other in (Scaled(4, 2), nn.Sequential(plain), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))):
        assert not product.is_plain(other, nn.Linear) and torch.equal(product.apply_linear(other, x), other(x))
    hooked = copy.deepcopy(plain)
    hooked.register_forward_hook(lambda module, inputs, output: 3 * output)
    assert torch.equal(product.apply_linear(hooked, x), 3 * plain(x))


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model name\t: AMD: EPYC

processor\t: 1
vendor_id\t: other
"""


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """Return a function: processor or None, value of SSAMBA_LINEAR -> the library chosen, and why."""
    monkeypatch.setattr(product, "unavailable_reason", lambda: None)

    def choose(found, wanted=None):
        monkeypatch.setattr(product, "processor", lambda: found)
        monkeypatch.delenv("SSAMBA_LINEAR", raising=False)
        if wanted is not None:
            monkeypatch.setenv("SSAMBA_LINEAR", wanted)
        return product.choice.__wrapped__()

    return choose


@pytest.mark.parametrize("found, library, why", [
    (("AuthenticAMD", "26"), "onednn", "AuthenticAMD, family 26: "), (("AuthenticAMD", "25"), "torch", "family 25: "),
    (("GenuineIntel", "26"), "torch", "GenuineIntel"), (None, "torch", "unknown processor"),
])
def test_the_processor_decides(chosen, monkeypatch, found, library, why):
    assert chosen(found)[0] == library and why in chosen(found)[1]
    monkeypatch.setattr(product, "unavailable_reason", lambda: "there is none")
    assert chosen(found)[0] == "torch"


def test_the_environment_decides(chosen, monkeypatch):
    assert chosen(("AuthenticAMD", "26"), "torch") == ("torch", "SSAMBA_LINEAR=torch")
    assert chosen(None, "onednn") == ("onednn", "SSAMBA_LINEAR=onednn")
    with pytest.raises(ValueError, match="SSAMBA_LINEAR=blas is not a known library. Set it to torch or onednn"):
        chosen(None, "blas")
    monkeypatch.setattr(product, "unavailable_reason", lambda: "there is none")
    with pytest.raises(ValueError, match="there is none"):
        chosen(None, "onednn")


def test_processors_are_recognised(tmp_path):
    file = tmp_path / "cpuinfo"
    assert product.processor(file) is None
    file.write_text(CPUINFO)
    assert product.processor(file) == ("AuthenticAMD", "26")
    file.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n")
    assert product.processor(file) is None


@needs_onednn
@pytest.mark.slow
def test_the_whole_network_by_either_library():
    """In separate processes, because the environment is read only once."""
    program = ("import torch; from ssamba_upstream import SsambaConfig, SsambaModel; torch.manual_seed(0); "
               "m = SsambaModel(SsambaConfig(num_hidden_layers=2)); "
               "print(m(torch.randn(1, 1024, 128))[0].double().sum())")
    results = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True,
            env={**os.environ, "SSAMBA_LINEAR": library, "OMP_NUM_THREADS": "1"},
        ).stdout
        for library in product.LIBRARIES
    ]
    sums = [float(result[len("tensor("):].split(",")[0]) for result in results]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4, abs=1e-2)


def test_ops_hands_it_out():
    assert ops.linear is product.linear
