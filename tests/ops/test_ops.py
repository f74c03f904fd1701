"""The selective scan's backends against its definition, and the definition against golden vectors."""

import pytest
import torch
import torch.nn.functional as F

from ssamba_upstream import SsambaConfig, SsambaModel, ops
from ssamba_upstream.ops import chunked

FAST_BACKENDS = ["torch"]


def scan_inputs(batch, channels, length, states, dtype=torch.float64, device="cpu", full=True, requires_grad=False):
    """Return arguments of selective_scan in token-major memory, as the mixer passes them."""

    def sequence(width):
        return torch.randn(batch, length, width, dtype=dtype, device=device).transpose(1, 2)

    inputs = {
        # Without softplus a step must be positive, or the state grows without bounds.
        "u": sequence(channels), "delta": sequence(channels) - 2 if full else sequence(channels).abs() / 4,
        "A": -torch.rand(channels, states, dtype=dtype, device=device) * 8,
        "B": sequence(states), "C": sequence(states),
    }
    if full:
        inputs |= {
            "D": torch.randn(channels, dtype=dtype, device=device), "z": sequence(channels),
            "delta_bias": torch.randn(channels, dtype=dtype, device=device),
        }
    return {name: tensor.requires_grad_(requires_grad) for name, tensor in inputs.items()}


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
def test_golden_scan(golden, backend):
    x = golden("selective_scan")
    output, last_state = ops.selective_scan(
        x["u"], x["delta"], x["A"], x["B"], x["C"], D=x["D"], z=x["z"], delta_bias=x["delta_bias"],
        delta_softplus=True, return_last_state=True, backend=backend,
    )
    torch.testing.assert_close(output, x["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last_state, x["last_state"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 2, 3), (3, 7, 17, 8), (1, 6, 63, 16), (2, 33, 131, 5)])
def test_backend_equals_definition_in_float64(monkeypatch, backend, reverse, full, shape):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 7 * shape[0] * shape[1] * shape[3])
    inputs = scan_inputs(*shape, full=full, requires_grad=True)
    results = []
    for name in ("reference", backend):
        output, state = ops.selective_scan(
            **inputs, delta_softplus=full, reverse=reverse, return_last_state=True, backend=name
        )
        loss = (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum() + state.square().sum()
        results.append((output, state, *torch.autograd.grad(loss, list(inputs.values()))))
    for name, expected, found in zip(["output", "state", *inputs], *results):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(monkeypatch, backend, reverse):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 40)
    inputs = scan_inputs(2, 3, 7, 2, requires_grad=True)

    def scan(*tensors):
        return ops.selective_scan(
            **dict(zip(inputs, tensors)), delta_softplus=True, reverse=reverse, return_last_state=True, backend=backend
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("delta, A", [(1e-6, -1.0), (50.0, -16.0), (50.0, -1e-6), (0.5, 1.0), (8.0, -1e4)])
def test_extreme_decays(backend, delta, A):
    inputs = scan_inputs(1, 4, 60, 2, full=False)
    inputs["delta"], inputs["A"] = torch.full_like(inputs["delta"], delta), torch.full_like(inputs["A"], A)
    expected = ops.selective_scan(**inputs, backend="reference")
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(ops.selective_scan(**inputs, backend=backend), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_lower_precisions(backend, dtype, rtol):
    inputs = scan_inputs(2, 12, 50, 16, dtype=torch.float32)
    rounded = {name: tensor if name == "A" else tensor.to(dtype) for name, tensor in inputs.items()}
    expected = ops.selective_scan(**{k: v.double() for k, v in rounded.items()}, delta_softplus=True,
                                  backend="reference")
    found = ops.selective_scan(**rounded, delta_softplus=True, backend=backend)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_nothing_in_nothing_out(backend):
    for batch, length in ((0, 5), (2, 0)):
        inputs = scan_inputs(batch, 3, length, 4, requires_grad=True)
        output, state = ops.selective_scan(**inputs, return_last_state=True, backend=backend)
        assert output.shape == (batch, 3, length) and state.shape == (batch, 3, 4)
        output.sum().backward()
        assert not inputs["A"].grad.any()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_inputs_are_left_alone(backend):
    inputs = scan_inputs(1, 3, 9, 2)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    ops.selective_scan(**inputs, delta_softplus=True, backend=backend)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_second_derivative_is_refused(backend):
    inputs = scan_inputs(1, 2, 4, 2, requires_grad=True)
    output = ops.selective_scan(**inputs, backend=backend)
    with pytest.raises(RuntimeError, match='only once. For higher derivatives use backend="reference"'):
        torch.autograd.grad(output.sum(), inputs["u"], create_graph=True)


def test_errors_say_what_is_wrong():
    inputs = scan_inputs(1, 2, 4, 3)
    with pytest.raises(ValueError, match=r"B must be \(1, 3, 4\)"):
        ops.selective_scan(**{**inputs, "B": inputs["B"][..., :3]})
    message = "backend 'fast' is not available: no such backend. Choose one of auto, triton, mamba_ssm"
    with pytest.raises(ValueError, match=message):
        ops.selective_scan(**inputs, backend="fast")
    with pytest.raises(ValueError, match="A must be real"):
        ops.selective_scan(**{**inputs, "A": inputs["A"].to(torch.complex64)})


@pytest.mark.parametrize("reverse", [False, True])
def test_causal_convolution(reverse):
    x, weight, bias = torch.randn(2, 5, 9), torch.randn(5, 1, 4), torch.randn(5)
    expected = torch.zeros_like(x)
    walk = x.flip(-1) if reverse else x
    for t in range(9):
        for tap in range(4):
            if t - 3 + tap >= 0:
                expected[:, :, t] += weight[:, 0, tap] * walk[:, :, t - 3 + tap]
    expected = F.silu(expected + bias[:, None])
    found = ops.causal_convolution(x, weight, bias, reverse)
    torch.testing.assert_close(found, expected.flip(-1) if reverse else expected)


OFFSETS = torch.tensor([0, 1, 8, 8, 10, 19])


def test_ragged_scan_equals_each_sequence():
    """In float64, which no compiled kernel supports, sequences are scanned one at a time."""
    both = [scan_inputs(1, 3, 19, 4, requires_grad=True) for _ in range(2)]
    z = both[0]["z"]
    scans = [{name: x for name, x in scan.items() if name != "z"} for scan in both]
    scans = [scans[0] | {"reverse": False}, scans[1] | {"reverse": True}]
    found = ops.selective_scan_mean(scans, z, True, OFFSETS)
    expected = torch.zeros_like(z)
    for begin, end in zip(OFFSETS[:-1], OFFSETS[1:]):
        for scan in scans:
            cut = {name: scan[name][..., begin:end] for name in ("u", "delta", "B", "C")}
            output = ops.selective_scan(
                **scan | cut, z=z[..., begin:end], delta_softplus=True, backend="reference"
            )
            expected = expected + F.pad(output / 2, (begin, 19 - end))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    inputs = [z, *(x for scan in scans for x in scan.values() if torch.is_tensor(x))]
    weights = torch.randn_like(z)
    gradients, expected = (torch.autograd.grad(output, inputs, weights) for output in (found, expected))
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-10)


def test_ragged_convolutions_equal_each_sequence():
    x, biases = torch.randn(1, 5, 19, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    weights = torch.randn(2, 5, 1, 4, dtype=torch.float64)
    found = ops.causal_convolutions(x, weights, biases, [False, True], OFFSETS)
    for i, output in enumerate(found):
        alone = [
            ops.causal_convolution(x[..., begin:end], weights[i], biases[i], reverse=i == 1)
            for begin, end in zip(OFFSETS[:-1], OFFSETS[1:]) if end > begin
        ]
        torch.testing.assert_close(output, torch.cat(alone, dim=-1))


@pytest.mark.parametrize("offsets", [OFFSETS.int(), OFFSETS[1:], OFFSETS[:-1], OFFSETS.flip(0)])
def test_offsets_that_do_not_fit(offsets):
    x, weight, bias = torch.randn(1, 5, 19).double(), torch.randn(5, 1, 4).double(), torch.randn(5).double()
    with pytest.raises(ValueError, match="offsets must"):
        ops.causal_convolutions(x, [weight], [bias], [False], offsets)


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices_take_the_torch_backend(device):
    able = [backend for backend in ops.BACKENDS if ops.unavailable_reason(backend, device) is None]
    assert able == ["torch", "reference"]


def test_the_torch_backend_is_chosen_where_no_kernel_serves():
    assert ops.choose_backend(torch.empty(0, device="meta")) == "torch"
    model = SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)).to("meta")
    assert model(torch.empty(2, 100, 128, device="meta")).last_hidden_state.shape == (2, 49, 32)


def test_mamba_ssm_without_its_compiled_part_is_not_available(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "selective_scan_cuda, the compiled part of mamba-ssm" in ops.unavailable_reason("mamba_ssm", "cuda")


def test_triton_comes_before_mamba_ssm(monkeypatch):
    monkeypatch.setattr(ops, "_best", {})
    for module in (ops.cuda, ops.triton):
        monkeypatch.setattr(module, "unavailable_reason", lambda: None)
    assert ops.choose_backend(torch.empty(1, device="meta")) == "torch"
    assert next(name for name in ops.BACKENDS if ops.unavailable_reason(name, "cuda") is None) == "triton"


def test_torch_compile_does_not_follow_how_a_backend_is_chosen(monkeypatch):
    """On a GPU, this leads to code that torch.compile cannot trace, in some versions through importlib."""
    monkeypatch.setattr(ops, "_best", {})
    monkeypatch.setattr(ops.cpu, "unavailable_reason", lambda: torch._dynamo.graph_break() or "it does not serve")

    def add_if_torch(x):
        return x + 1 if ops.choose_backend(x) == "torch" else x

    compiled = torch.compile(add_if_torch, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(3)).tolist() == [1, 1, 1]
    assert ops._best == {("cpu", torch.float32): "torch"}


def test_what_mamba_ssm_cannot_do_is_refused():
    inputs = scan_inputs(1, 8, 4, 3, dtype=torch.float32, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient of the last state"):
        ops.cuda.selective_scan_cuda(**inputs, return_last_state=True)
    with pytest.raises(ValueError, match="one dtype; got u torch.bfloat16, delta torch.float32"):
        ops.cuda.selective_scan_cuda(**inputs | {"u": inputs["u"].bfloat16()})
    for channels, width in ((8, 5), (8, 1), (12, 4)):
        with pytest.raises(ValueError, match=f"got {width} taps and {channels} channels"):
            ops.cuda.causal_convolution_cuda(torch.randn(1, channels, 9), torch.randn(channels, 1, width), None)


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
def test_cuda_kernels(dtype, rtol, reverse):
    if ops.cuda.unavailable_reason():
        pytest.skip("needs mamba-ssm and causal-conv1d")
    inputs = scan_inputs(2, 64, 300, 16, dtype=torch.float32, device="cuda")
    inputs = {name: tensor if name == "A" else tensor.to(dtype) for name, tensor in inputs.items()}
    expected = ops.selective_scan(**inputs, delta_softplus=True, reverse=reverse, backend="reference")
    found = ops.selective_scan(**inputs, delta_softplus=True, reverse=reverse, backend="mamba_ssm")
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
