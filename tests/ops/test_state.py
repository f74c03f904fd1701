"""States of the scan, the convolution and the mixer carried from piece to piece, in every backend."""

import functools
import itertools

import pytest
import torch
from test_ops import scan_inputs

from ssamba_upstream import SsambaConfig, ops
from ssamba_upstream.network.mixer import BidirectionalMamba
from ssamba_upstream.ops import chunked, cpu, cuda, triton

OFFSETS = [0, 4, 4, 11, 12]
TRITON = pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.slow])
BACKENDS = ["reference", "torch", "cpu", TRITON]


@pytest.fixture(params=BACKENDS)
def scan(request, monkeypatch):
    """Return selective_scan by each backend, with short chunks; Triton through its interpreter."""
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 60)
    if request.param == "triton":
        kernels = pytest.importorskip("triton", reason="triton is not installed")
        if isinstance(kernels.language.zeros, kernels.JITFunction):
            pytest.skip("triton was imported before TRITON_INTERPRET=1 was set")
        monkeypatch.setattr(triton, "_chunk_length", lambda *_: 4)
        monkeypatch.setattr(triton, "TILE", 4)
        return triton.selective_scan_triton
    if request.param == "cpu" and cpu.unavailable_reason() is not None:
        pytest.skip(cpu.unavailable_reason())
    return functools.partial(ops.selective_scan, backend=request.param)


def ragged_inputs(**options):
    inputs = scan_inputs(1, 5, OFFSETS[-1], 3, dtype=torch.float32, **options)
    state = torch.randn(len(OFFSETS) - 1, 5, 3, requires_grad=True)
    return {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()} | {"initial_state": state}


def outputs_and_gradients(scan, inputs, **options):
    output, state = scan(**inputs, delta_softplus=True, return_last_state=True, **options)
    loss = (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum() + state.pow(2).sum()
    return [output, state, *torch.autograd.grad(loss, list(inputs.values()))]


@pytest.mark.parametrize("reverse", [False, True])
def test_states_and_their_gradients_equal_the_definition(scan, reverse):
    inputs = scan_inputs(2, 5, 11, 3, dtype=torch.float32, requires_grad=True)
    inputs["initial_state"] = torch.randn(2, 5, 3, requires_grad=True)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    expected = outputs_and_gradients(functools.partial(ops.selective_scan, backend="reference"), exact, reverse=reverse)
    for name, found, right in zip(["output", "state", *inputs], outputs_and_gradients(scan, inputs, reverse=reverse),
                                  expected):
        torch.testing.assert_close(found.double(), right, rtol=2e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("reverse", [False, True])
def test_each_sequence_of_a_ragged_batch_has_its_own_state(scan, reverse):
    inputs = ragged_inputs()
    offsets = torch.tensor(OFFSETS)
    found = outputs_and_gradients(scan, inputs, reverse=reverse, offsets=offsets)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}

    def one_by_one(initial_state, u, delta, A, B, C, z, **others):
        results = []
        for i, (begin, end) in enumerate(itertools.pairwise(OFFSETS)):
            u_i, delta_i, B_i, C_i, z_i = (x[..., begin:end] for x in (u, delta, B, C, z))
            results.append(ops.selective_scan(u_i, delta_i, A, B_i, C_i, z=z_i, initial_state=initial_state[i : i + 1],
                                              backend="reference", **others))
        outputs, states = zip(*results)
        return torch.cat(outputs, dim=-1), torch.cat(states)

    expected = outputs_and_gradients(one_by_one, exact, reverse=reverse)
    assert torch.equal(found[1][1], inputs["initial_state"][1])  # an empty sequence leaves its state unchanged
    for name, value, right in zip(["output", "state", *inputs], found, expected):
        torch.testing.assert_close(value.double(), right, rtol=2e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_pieces_of_any_length_equal_the_whole(scan):
    inputs = scan_inputs(2, 5, 40, 3, dtype=torch.float32)
    whole, last = scan(**inputs, delta_softplus=True, return_last_state=True)
    for lengths in ([1] * 40, [3, 1, 0, 17, 19], [39, 1]):
        state, outputs = None, []
        for begin, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
            along_time = {name: inputs[name][..., begin:end] for name in ("u", "delta", "B", "C", "z")}
            output, state = scan(**inputs | along_time, delta_softplus=True, return_last_state=True,
                                 initial_state=state)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs, dim=-1), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_of_states(monkeypatch, backend, reverse):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 40)
    inputs = scan_inputs(2, 3, 7, 2, requires_grad=True)
    inputs["initial_state"] = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)

    def scan(*tensors):
        return ops.selective_scan(
            **dict(zip(inputs, tensors)), delta_softplus=True, reverse=reverse, return_last_state=True, backend=backend
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


def test_what_cannot_be_scanned_is_refused():
    inputs = scan_inputs(2, 5, 4, 3)
    with pytest.raises(ValueError, match=r"initial_state must be \(2, 5, 3\)"):
        ops.selective_scan(**inputs, initial_state=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="zero state only. Use"):
        cuda.selective_scan_cuda(**inputs, initial_state=torch.zeros(2, 5, 3))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_convolutions_continue_from_their_last_inputs(reverse, offsets):
    torch.manual_seed(0)
    offsets = None if offsets is None else torch.tensor(offsets)
    sequences = 2 if offsets is None else 4
    x = torch.randn(2 if offsets is None else 1, 5, 12, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(5, 1, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    before = torch.randn(sequences, 5, 3, dtype=torch.float64, requires_grad=True)

    def convolve(x, before):
        return ops.causal_convolution(x, weight, bias, reverse, before, offsets)

    output, last = convolve(x, before)
    spans = [(0, 12)] * 2 if offsets is None else list(itertools.pairwise(OFFSETS))
    for i, (begin, end) in enumerate(spans):
        steps = x[i if offsets is None else 0, :, begin:end]
        joined = torch.cat([steps, before[i]] if reverse else [before[i], steps], dim=-1)
        whole = ops.causal_convolution(joined[None], weight, bias, reverse)[0]
        found = output[i if offsets is None else 0, :, begin:end]
        torch.testing.assert_close(found, whole[:, : end - begin] if reverse else whole[:, 3:])
        assert torch.equal(last[i], joined[:, :3] if reverse else joined[:, -3:])
    assert torch.autograd.gradcheck(convolve, (x, before))
    zeros, _ = convolve(x, torch.zeros_like(before))
    torch.testing.assert_close(zeros, ops.causal_convolution(x, weight, bias, reverse, offsets=offsets))


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("plain", [True, False])
def test_mixing_in_pieces_equals_mixing_at_once(backend, plain):
    torch.manual_seed(0)
    module = BidirectionalMamba(SsambaConfig(hidden_size=24, state_size=8))
    module.initialise()
    if not plain:
        module.conv1d.register_forward_hook(lambda *_: None)
    directions = [module.direction("", False)]
    x, offsets = torch.randn(1, 12, 96), torch.tensor(OFFSETS)
    with ops.forced_backend(backend), torch.no_grad():
        whole = ops.mix(x, directions, offsets)
        state = torch.zeros(4, 48, 3), torch.zeros(4, 48, 8)
        early, late = [2, 0, 3, 1], [2, 0, 4, 0]
        first = torch.cat([x[:, begin : begin + n] for begin, n in zip(OFFSETS, early)], dim=1)
        second = torch.cat([x[:, begin + m : begin + m + n] for begin, m, n in zip(OFFSETS, early, late)], dim=1)
        outputs = []
        for piece, lengths in ((first, early), (second, late)):
            output, state = ops.mix(piece, directions, torch.tensor([0, *lengths]).cumsum(0), state)
            outputs.append(output.split(lengths, dim=1))
    joined = torch.cat([part for pair in zip(*outputs) for part in pair], dim=1)
    torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-6)


def test_two_directions_carry_no_state():
    module = BidirectionalMamba(SsambaConfig(hidden_size=24, state_size=8))
    directions = [module.direction("", False), module.direction("_b", True)]
    with pytest.raises(ValueError, match="2 directions cannot continue from a state. Give a single"):
        ops.mix(torch.randn(1, 4, 96), directions, state=(torch.zeros(1, 48, 3), torch.zeros(1, 48, 8)))
