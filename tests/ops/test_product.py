"""The linear product by either library against float64, what leaves it alone, and how it is chosen."""

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
    monkeypatch.setattr(product, "_chosen", (("onednn",) * 3, "for a test"))
    monkeypatch.setattr(product, "SMALLEST", 1)


def derivatives(function, inputs):
    """Result, gradients and second derivatives of some loss, for the inputs that are tensors."""
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
    monkeypatch.setattr(product, "_chosen", (("onednn",) * 3, "for a test"))
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
    assert product.is_plain_linear(plain) and torch.equal(product.apply_linear(plain, x), plain(x))
    for other in (Scaled(4, 2), nn.Sequential(plain), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))):
        assert not product.is_plain_linear(other) and torch.equal(product.apply_linear(other, x), other(x))
    hooked = copy.deepcopy(plain)
    hooked.register_forward_hook(lambda module, inputs, output: 3 * output)
    assert torch.equal(product.apply_linear(hooked, x), 3 * plain(x))


def test_the_choice_is_made_once_and_explained(monkeypatch):
    monkeypatch.setattr(product, "_chosen", None)
    monkeypatch.delenv("SSAMBA_LINEAR", raising=False)
    libraries, why = product.choice()
    assert set(libraries) <= set(product.LIBRARIES) and len(libraries) == len(product.PRODUCTS)
    assert "measured" in why or product.unavailable_reason() in why
    monkeypatch.setattr(product, "_choose", lambda: pytest.fail("chosen twice"))
    assert product.choice() == (libraries, why)


@pytest.mark.parametrize("ratio, expected", [(1.1, "torch"), (1.9, "onednn")])
@needs_onednn
def test_onednn_has_to_be_clearly_faster(monkeypatch, ratio, expected):
    monkeypatch.delenv("SSAMBA_LINEAR", raising=False)
    monkeypatch.setattr(product, "_torch_over_onednn", lambda x, weight: ratio)
    assert product._choose()[0] == (expected,) * 3


def test_measuring_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    product._choose()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("SSAMBA_LINEAR", "torch")
    assert product._choose() == (("torch",) * 3, "SSAMBA_LINEAR=torch")
    monkeypatch.setenv("SSAMBA_LINEAR", "blas")
    with pytest.raises(ValueError, match="SSAMBA_LINEAR=blas: expected one of torch, onednn"):
        product._choose()
    monkeypatch.setenv("SSAMBA_LINEAR", "onednn")
    monkeypatch.setattr(product, "unavailable_reason", lambda: "there is none")
    with pytest.raises(ValueError, match="there is none"):
        product._choose()


def test_another_run_s_choice_can_be_made(monkeypatch):
    monkeypatch.setattr(product, "_chosen", None)
    product.use(["torch"] * 3)
    assert product.choice()[0] == ("torch",) * 3
    with pytest.raises(ValueError, match="expected one of torch, onednn for each of 3"):
        product.use(["torch"])
    monkeypatch.setattr(product, "unavailable_reason", lambda: "there is none")
    with pytest.raises(ValueError, match="there is none"):
        product.use(["torch", "torch", "onednn"])


@needs_onednn
@pytest.mark.slow
def test_the_whole_network_by_either_library():
    """In processes of their own: the environment is read once."""
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
