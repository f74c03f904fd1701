"""The Triton kernels against the definition in float64: on a GPU, or through Triton's interpreter on a CPU.

The interpreter runs one program at a time in numpy. It tests the kernels' results and memory accesses, but neither
races between programs nor the compiled code.
"""

import importlib.util
import json
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ssamba_upstream import SsambaConfig, ops
from ssamba_upstream.network import modeling
from ssamba_upstream.network.modeling import SsambaModel
from ssamba_upstream.ops import product, triton as scan
from ssamba_upstream.ops.reference import selective_scan_reference

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NO_LAUNCH = {f"aten::{name}" for name in ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view")}

triton = pytest.importorskip("triton", reason="triton is not installed")
from helpers import triton_resources  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(
        not ON_GPU and isinstance(triton.language.zeros, triton.JITFunction),
        reason="triton was imported before TRITON_INTERPRET=1 was set",
    ),
]


@pytest.fixture
def chunk_length(monkeypatch):
    """Override the chunk length that the heuristic would choose."""
    return lambda steps: monkeypatch.setattr(scan, "_chunk_length", lambda *_: steps)


def sequence(batch, width, length, layout="tokens"):
    """Return (batch, width, length): ``tokens`` with contiguous channels, ``time`` with contiguous steps, ``gaps`` with
    neither."""
    if layout == "tokens":
        return torch.randn(batch, length, width, device=DEVICE).transpose(1, 2)
    if layout == "time":
        return torch.randn(batch, width, length, device=DEVICE)
    return torch.randn(length, width, 2, batch, device=DEVICE).permute(3, 1, 0, 2)[..., 1]


def scan_inputs(batch, channels, length, states, full=True, layout="tokens"):
    inputs = {
        # Without softplus a step must be positive, or the state grows without bounds.
        "u": sequence(batch, channels, length, layout),
        "delta": sequence(batch, channels, length, layout) - 2 if full
        else sequence(batch, channels, length, layout).abs() / 4,
        "A": -torch.rand(channels, states, device=DEVICE) * 8,
        "B": sequence(batch, states, length, layout), "C": sequence(batch, states, length, layout),
    }
    if full:
        inputs |= {
            "D": torch.randn(channels, device=DEVICE), "z": sequence(batch, channels, length, layout),
            "delta_bias": torch.randn(channels, device=DEVICE),
        }
    return inputs


def mean_inputs(batch, channels, length, states, full=True, layout="tokens"):
    both = [scan_inputs(batch, channels, length, states, full, layout) for _ in range(2)]
    inputs = {f"{name}{i}": x for i, one in enumerate(both) for name, x in one.items() if name != "z"}
    return inputs | ({"z": both[0]["z"]} if full else {})


def directions(inputs, reverse=(False, True)):
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    return [
        {name: inputs.get(f"{name}{i}") for name in names} | {"reverse": reverse_one}
        for i, reverse_one in enumerate(reverse)
    ]


def reference_mean(inputs, softplus, reverse=(False, True)):
    scans = directions(inputs, reverse)
    outputs = [selective_scan_reference(**s, z=inputs.get("z"), delta_softplus=softplus) for s in scans]
    return sum(outputs) / len(outputs)


def triton_mean(inputs, softplus, reverse=(False, True), offsets=None):
    return scan.selective_scan_mean_triton(directions(inputs, reverse), inputs.get("z"), softplus, offsets)


def convolution_inputs(batch, channels, length, width, layout="tokens"):
    inputs = {"x": sequence(batch, channels, length, layout)}
    inputs |= {f"weight{i}": torch.randn(channels, 1, width, device=DEVICE) for i in range(2)}
    return inputs | {f"bias{i}": torch.randn(channels, device=DEVICE) for i in range(2)}


def reference_convolutions(x, weight0, weight1, bias0, bias1):
    width = weight0.shape[-1]
    forwards = F.conv1d(F.pad(x, (width - 1, 0)), weight0, bias0, groups=x.shape[1])
    backwards = F.conv1d(F.pad(x, (0, width - 1)), weight1.flip(-1), bias1, groups=x.shape[1])
    return F.silu(forwards), F.silu(backwards)


def triton_convolutions(x, weight0, weight1, bias0, bias1, offsets=None):
    return scan.causal_convolutions_triton(x, [weight0, weight1], [bias0, bias1], [False, True], offsets)


def relative_error(found, exact):
    if not exact.numel():
        return 0.0
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))


def with_gradients(function, inputs, weights):
    """Return (outputs, gradients of the sum of the outputs times the weights, by name)."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = function(inputs)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    loss = sum((output * weight.to(output.dtype)).sum() for output, weight in zip(outputs, weights))
    return outputs, dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values()))))


def assert_same(found_function, exact_function, inputs, rtol=1e-5, gradient_rtol=1e-4):
    """Assert that the first function in the inputs' precision equals the second in float64, with gradients."""
    exact_inputs = {name: x.detach().double() for name, x in inputs.items()}
    with torch.no_grad():
        shapes = exact_function(exact_inputs)
        shapes = shapes if isinstance(shapes, (tuple, list)) else (shapes,)
    weights = [torch.randn_like(output) for output in shapes]
    exact_outputs, exact_gradients = with_gradients(exact_function, exact_inputs, weights)
    outputs, gradients = with_gradients(found_function, inputs, weights)
    for output, exact in zip(outputs, exact_outputs):
        assert output.shape == exact.shape and relative_error(output, exact) < rtol
    for name, gradient in gradients.items():
        assert gradient.dtype == inputs[name].dtype
        assert relative_error(gradient, exact_gradients[name]) < gradient_rtol, name


def assert_scan(inputs, softplus, reverse, rtol=1e-5, gradient_rtol=1e-4):
    def both(function):
        return lambda x: function(**x, delta_softplus=softplus, reverse=reverse, return_last_state=True)

    assert_same(both(scan.selective_scan_triton), both(selective_scan_reference), inputs, rtol, gradient_rtol)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "shape, full, layout, steps",
    [
        ((1, 1, 1, 1), True, "tokens", 16), ((2, 5, 2, 5), False, "time", 16),
        ((1, 33, 17, 16), True, "gaps", 16), ((1, 3, 63, 8), True, "time", 16),
        ((2, 3, 20, 3), True, "tokens", 32),
    ],
)
def test_equals_definition(chunk_length, shape, full, layout, steps, reverse):
    chunk_length(steps)
    assert_scan(scan_inputs(*shape, full, layout), full, reverse)


def test_equals_definition_over_many_chunks(chunk_length):
    """With more chunks than are read at once."""
    chunk_length(16)
    assert_scan(scan_inputs(1, 4, 100, 5), True, False)


@pytest.mark.parametrize("steps", [16, 32])
def test_A_may_be_given_as_a_logarithm(chunk_length, steps):
    chunk_length(steps)

    def found(x):
        return scan.selective_scan_mean_triton(directions(x), x["z"], True, logarithmic=True)

    def exact(x):
        return reference_mean(x | {name: -x[name].exp() for name in ("A0", "A1")}, True)

    inputs = mean_inputs(1, 3, 18, 3)
    assert_same(found, exact, inputs | {name: torch.rand_like(inputs[name]) * 2 - 1 for name in ("A0", "A1")})


@pytest.mark.parametrize("capability, dtype", [(80, "float32"), (90, "float32"), (90, "bfloat16"), (120, "float32")])
def test_compiler_s_registers_spills_and_loads(capability, dtype, record_property):
    """Bounds are slightly above the values of triton 3.6 and 3.9; exceeding them would cost time on GPUs only. With 128
    registers, a multiprocessor holds FORWARD_WARPS, with 255 BACKWARD_WARPS."""
    if not triton_resources.assemblers_know(capability):
        pytest.skip(f"this triton has no assembler for sm_{capability}")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, triton_resources.__file__, str(capability), dtype]
    report = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(report.stdout)
    for kernel, numbers in found.items():
        record_property(f"sm_{capability}, {dtype}, {kernel}",
                        ", ".join(f"{number} {name}" for name, number in numbers.items()))
    for kernel, registers, instructions, loads, spills, shared in (
        ("summarise_chunks", 128, 1100, 60, 0, 0), ("scan_forward", 128, 1650, 90, 0, 64),
        ("gate_mean", 64, 300, 6, 0, 0), ("summarise_adjoints", 128, 1250, 64, 0, 0),
        ("scan_backward", 255, 9500, 260, 600, 64),
    ):
        bounds = {"registers": registers, "instructions": instructions, "loads": loads, "spills": spills,
                  "shared": shared}
        assert {name: number for name, number in found[kernel].items() if number > bounds[name]} == {}, kernel


def launches_of_tiny(inputs):
    """Return the names of all launches in a forward pass of tiny on a GPU, with chunks of 64 steps."""
    launches = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "aten" and not function.is_view and function._schema.name not in NO_LAUNCH:
                launches.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    model = SsambaModel(SsambaConfig()).eval()
    with (
        torch.no_grad(), mock.patch.object(scan, "_launch", lambda kernel, *_, **__: launches.append(kernel)),
        mock.patch.object(scan, "_chunk_length", lambda *_: 64), ops.forced_backend("triton"),
        mock.patch.object(product, "choice", lambda: ("torch", "for a test")),
        mock.patch.object(modeling, "call_unless_finite"), Record(),  # on a GPU this is a copy, not a kernel
    ):
        model(inputs)
    return launches


def test_launches_of_tiny_without_asking_the_device():
    """With a batch of 1, launches dominate the time, and a CUDA graph must not read values from the device."""
    launches = launches_of_tiny(torch.zeros(1, 1024, 128))
    assert 200 < len(launches) <= 300
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"} & set(map(str, launches))


def test_windows_of_many_lengths_are_launched_as_one():
    """The only operations per length compute places, on the CPU."""
    equal = launches_of_tiny([torch.zeros(64, 128)] * 8)
    unequal = launches_of_tiny([torch.zeros(64 + 16 * i, 128) for i in range(8)])
    on_the_cpu = {"aten::arange", "aten::add", "aten::mul", "aten::cat", "aten::cumsum"}
    for found in (equal, unequal):
        found[:] = [launch for launch in found if launch not in on_the_cpu]
    assert len(equal) == len(unequal) <= 320


def test_last_state_and_output_may_be_used_alone(chunk_length):
    chunk_length(16)
    inputs = {name: x.requires_grad_() for name, x in scan_inputs(1, 3, 20, 2).items()}
    output, state = scan.selective_scan_triton(**inputs, delta_softplus=True, return_last_state=True)
    variables = [inputs["u"], inputs["B"]]
    from_state = torch.autograd.grad(state.sum(), variables, retain_graph=True)
    exact, exact_state = selective_scan_reference(**inputs, delta_softplus=True, return_last_state=True)
    for found, expected in zip(from_state, torch.autograd.grad(exact_state.sum(), variables)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(scan.selective_scan_triton(**inputs, delta_softplus=True), exact)


@pytest.mark.parametrize(
    "shape, full, reverse, steps",
    [((1, 5, 18, 3), True, (False, True), 16), ((1, 3, 9, 2), False, (True, False), 16)],
)
def test_mean_of_two_directions(chunk_length, shape, full, reverse, steps):
    chunk_length(steps)
    assert_same(
        lambda x: triton_mean(x, full, reverse), lambda x: reference_mean(x, full, reverse),
        mean_inputs(*shape, full),
    )


@pytest.mark.parametrize("steps, dtype", [(16, torch.int32), (64, torch.int64)])
def test_packed_sequences_are_scanned_as_if_alone(chunk_length, steps, dtype):
    lengths = [17, 0, 1, 3]
    ends = torch.tensor(lengths, device=DEVICE).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends]).to(dtype)
    chunk_length(steps)

    def alone(x):
        parts = [
            reference_mean({k: v[..., a:b] if v.dim() == 3 else v for k, v in x.items()}, True)
            for a, b in zip(offsets[:-1], offsets[1:])
        ]
        return torch.cat(parts, dim=-1)

    assert_same(lambda x: triton_mean(x, True, offsets=offsets), alone, mean_inputs(1, 3, sum(lengths), 4))


def test_last_states_of_packed_sequences(chunk_length):
    chunk_length(16)
    offsets = torch.tensor([0, 18, 18, 23], device=DEVICE)
    inputs = scan_inputs(1, 3, 23, 2)

    def packed(x):
        return scan.selective_scan_triton(
            **x, delta_softplus=True, reverse=True, return_last_state=True, offsets=offsets
        )

    def alone(x):
        results = [
            selective_scan_reference(
                **{k: v[..., a:b] if v.dim() == 3 else v for k, v in x.items()},
                delta_softplus=True, reverse=True, return_last_state=True,
            )
            for a, b in zip(offsets[:-1], offsets[1:])
        ]
        return torch.cat([output for output, _ in results], -1), torch.cat([state for _, state in results])

    assert_same(packed, alone, inputs)


@pytest.mark.parametrize(
    "delta, A", [(1e-6, -1.0), (50.0, -16.0), (50.0, -1e-6), (0.5, 1.0), (8.0, -1e4), (9.0, 1.0)]
)
def test_extreme_decays(chunk_length, delta, A):
    """Including a growing state, and one that would overflow float32 if it were not zero."""
    chunk_length(16)
    inputs = scan_inputs(1, 2, 40, 2, full=False)
    inputs["delta"], inputs["A"] = torch.full_like(inputs["delta"], delta), torch.full_like(inputs["A"], A)
    if A > 0 and delta > 1:
        inputs["u"] = torch.zeros_like(inputs["u"])
        inputs["u"][..., -8:] = 1.0
    exact = selective_scan_reference(**{name: x.double() for name, x in inputs.items()})
    assert torch.isfinite(exact).all()
    assert relative_error(scan.selective_scan_triton(**inputs), exact) < 1e-5


def test_softplus_keeps_its_digits_everywhere():
    steps = torch.cat([torch.linspace(-80, 30, 60), torch.linspace(-1, 1, 4)]).to(DEVICE)
    inputs = scan_inputs(1, 2, 64, 1, full=False)
    # With a decay to zero and unit inputs, the output is the step.
    inputs |= {name: torch.ones_like(inputs[name]) for name in ("u", "B", "C")}
    inputs |= {"delta": steps.expand(1, 2, 64), "A": torch.full_like(inputs["A"], -1e38)}
    found = scan.selective_scan_triton(**inputs, delta_softplus=True)[0, 0].double()
    exact = F.softplus(steps.double())
    assert ((found - exact).abs() / exact).max() < 5e-6


@pytest.mark.parametrize("dtype, rtol", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_lower_precisions(dtype, rtol):
    inputs = {k: v if k[0] in "AD" else v.to(dtype) for k, v in mean_inputs(1, 5, 9, 4).items()}
    assert_same(lambda x: triton_mean(x, True), lambda x: reference_mean(x, True), inputs, rtol, rtol)
    assert triton_mean(inputs, True).dtype == dtype


@pytest.mark.parametrize(
    "shape, layout",
    [((1, 33, 19, 4), "tokens"), ((2, 3, 20, 3), "time"), ((1, 3, 2, 4), "gaps"), ((1, 2, 5, 2), "tokens")],
)
def test_convolutions(shape, layout):
    inputs = convolution_inputs(*shape, layout)
    assert_same(lambda x: triton_convolutions(**x), lambda x: reference_convolutions(**x), inputs)


def test_convolutions_of_packed_sequences():
    offsets = torch.tensor([0, 2, 20, 20, 37], device=DEVICE)

    def alone(x):
        parts = [
            reference_convolutions(**{k: v[..., a:b] if k == "x" else v for k, v in x.items()})
            for a, b in zip(offsets[:-1], offsets[1:]) if a < b
        ]
        return [torch.cat(results, -1) for results in zip(*parts)]

    assert_same(lambda x: triton_convolutions(**x, offsets=offsets), alone, convolution_inputs(1, 3, 37, 4))


def test_nothing_in_nothing_out():
    for batch, length in ((0, 5), (2, 0)):
        inputs = {name: x.requires_grad_() for name, x in scan_inputs(batch, 3, length, 2).items()}
        output, state = scan.selective_scan_triton(**inputs, return_last_state=True)
        assert output.shape == (batch, 3, length) and state.shape == (batch, 3, 2) and not state.any()
        (output.sum() + state.sum()).backward()
        assert not inputs["A"].grad.any()
        inputs = {name: x.requires_grad_() for name, x in convolution_inputs(batch, 3, length, 4).items()}
        sum(output.sum() for output in triton_convolutions(**inputs)).backward()
        assert not inputs["weight0"].grad.any()


def test_inputs_are_left_alone_and_results_repeat(chunk_length):
    chunk_length(16)
    inputs = mean_inputs(1, 3, 17, 2)
    before = {name: x.clone() for name, x in inputs.items()}
    first = with_gradients(lambda x: triton_mean(x, True), inputs, [torch.ones(1, device=DEVICE)])
    second = with_gradients(lambda x: triton_mean(x, True), inputs, [torch.ones(1, device=DEVICE)])
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())
    assert torch.equal(first[0][0], second[0][0])
    assert all(torch.equal(gradient, second[1][name]) for name, gradient in first[1].items())


@pytest.mark.parametrize("offsets", [None, [0, 1, 3]])
def test_operators_keep_torch_s_rules(monkeypatch, offsets):
    monkeypatch.setattr(scan, "TILE", 4)
    offsets = None if offsets is None else torch.tensor(offsets, device=DEVICE)
    x = {name: v.requires_grad_() for name, v in mean_inputs(1, 3, 3, 2).items()}
    lists = [[x[f"{name}{i}"] for i in range(2)] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    sequences = 1 if offsets is None else len(offsets) - 1
    states = [torch.randn(sequences, 3, 2, device=DEVICE, requires_grad=True) for _ in range(2)]
    options = offsets, [False, True], True, True, True, True
    torch.library.opcheck(scan.scan_operator, (*lists, states, x["z"], *options))
    x = {name: v.requires_grad_() for name, v in convolution_inputs(1, 3, 3, 2).items()}
    arguments = (x["x"], [x["weight0"], x["weight1"]], [x["bias0"], x["bias1"]], offsets, [False, True])
    torch.library.opcheck(scan.convolution_operator, arguments)


def test_compiled_models_and_checkpointing_see_an_ordinary_operator():
    inputs = mean_inputs(1, 3, 5, 2)

    def model(x):
        return triton_mean({**x, "u0": 2 * x["u0"]}, True).tanh()

    weights = [torch.ones(1, device=DEVICE)]
    outputs, gradients = with_gradients(model, inputs, weights)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for other in (compiled, lambda x: checkpoint(model, x, use_reentrant=False)):
        found_outputs, found_gradients = with_gradients(other, inputs, weights)
        torch.testing.assert_close(found_outputs[0], outputs[0])
        torch.testing.assert_close(found_gradients, gradients)


def test_autocast_leaves_inputs_as_they_are():
    inputs = scan_inputs(1, 3, 5, 2)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = scan.selective_scan_triton(**inputs, delta_softplus=True)
    assert torch.equal(found, scan.selective_scan_triton(**inputs, delta_softplus=True))


def test_second_derivative_is_refused():
    inputs = {name: x.requires_grad_() for name, x in scan_inputs(1, 2, 3, 2).items()}
    x = {name: x.requires_grad_() for name, x in convolution_inputs(1, 2, 3, 2).items()}
    outputs = scan.selective_scan_triton(**inputs), triton_convolutions(**x)[0]
    message = "first derivatives only. For second derivatives use backend='reference'"
    for output, variable in zip(outputs, (inputs["u"], x["x"])):
        (gradient,) = torch.autograd.grad(output.sum(), variable, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            torch.autograd.grad(gradient.sum(), variable)


def test_errors_say_what_is_wrong():
    inputs = scan_inputs(2, 2, 4, 3)
    with pytest.raises(ValueError, match="bfloat16 and float16. For float64 use backend='reference'"):
        scan.selective_scan_triton(**{name: x.double() for name, x in inputs.items()})
    with pytest.raises(ValueError, match=r"with a batch of 1; got \(3,\) torch.int64, with a batch of 2"):
        scan.selective_scan_triton(**inputs, offsets=torch.tensor([0, 4, 8]))


def test_refuses_cpu_tensors_where_nothing_interprets(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = {name: x.cpu() for name, x in scan_inputs(1, 2, 4, 3).items()}
    with pytest.raises(RuntimeError, match="got CPU tensors. Use another backend"):
        scan.selective_scan_triton(**inputs)


def test_says_why_it_is_not_available(monkeypatch):
    assert scan.unavailable_reason() is None
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in scan.unavailable_reason()
    monkeypatch.setattr(scan, "_version", lambda: (3, 1))
    assert "triton 3.1 is too old: 3.3 is needed" in scan.unavailable_reason()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert scan.unavailable_reason() == "triton is not installed"


def test_division_fills_the_device(monkeypatch):
    """Sequences are divided into chunks only if they are too few to fill the multiprocessors."""
    properties = mock.Mock(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    def chunks(batch, channels, length):
        x = mock.Mock(shape=(batch, channels, length), is_cuda=True)
        return -(-length // scan._chunk_length(x, None, 2, scan.FORWARD_WARPS))

    assert 60 <= chunks(1, 384, 22_000) <= 100
    assert 10 <= chunks(1, 384, 1189) <= 19
    assert chunks(64, 768, 513) == 1 and chunks(1, 384, 20) == 1


# On a GPU, at real sizes


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [(False, True), (True, False)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 384, 1, 16), (3, 100, 63, 8), (8, 384, 497, 16), (1, 384, 1189, 16), (2, 65, 300, 64), (1, 7, 99, 1),
    ],
)
def test_gpu_equals_definition(shape, full, reverse):
    inputs = mean_inputs(*shape, full)
    assert_same(lambda x: triton_mean(x, full, reverse), lambda x: reference_mean(x, full, reverse), inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [5000, 22_000])
def test_gpu_equals_definition_on_long_sequences(length):
    """The float64 "torch" backend stands for the definition, whose gradient takes minutes at this length."""
    from ssamba_upstream.ops.chunked import selective_scan_chunked

    inputs = scan_inputs(1, 384, length, 16)
    assert_same(
        lambda x: scan.selective_scan_triton(**x, delta_softplus=True),
        lambda x: selective_scan_chunked(**x, delta_softplus=True), inputs,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, rtol", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_gpu_packed_sequences_equal_each_alone(dtype, rtol):
    lengths = torch.tensor([1189, 5, 497, 0, 2000, 63], device="cuda")
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    inputs = mean_inputs(1, 384, int(offsets[-1]), 16)
    inputs = {k: v if k[0] in "AD" else v.to(dtype) for k, v in inputs.items()}
    packed = triton_mean(inputs, True, offsets=offsets)
    for a, b in zip(offsets[:-1], offsets[1:]):
        alone = triton_mean({k: v[..., a:b] if v.dim() == 3 else v for k, v in inputs.items()}, True)
        torch.testing.assert_close(packed[..., a:b], alone, rtol=rtol, atol=rtol)


@pytest.mark.gpu
def test_gpu_results_do_not_depend_on_the_order_of_programs():
    inputs = mean_inputs(8, 384, 497, 16)
    weights = [torch.ones(1, device="cuda")]
    runs = [with_gradients(lambda x: triton_mean(x, True), inputs, weights) for _ in range(3)]
    for outputs, gradients in runs[1:]:
        assert torch.equal(outputs[0], runs[0][0][0])
        assert all(torch.equal(gradient, runs[0][1][name]) for name, gradient in gradients.items())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 384, 497, 4), (1, 768, 1189, 4)])
def test_gpu_convolutions(shape):
    inputs = convolution_inputs(*shape)
    assert_same(lambda x: triton_convolutions(**x), lambda x: reference_convolutions(**x), inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [497, 22_000])
def test_gpu_equals_mamba_ssm(length):
    from ssamba_upstream.ops import cuda

    if cuda.unavailable_reason():
        pytest.skip("needs mamba-ssm and causal-conv1d")
    inputs = scan_inputs(2, 384, length, 16)
    weights = [torch.randn(2, 384, length, device="cuda")]
    outputs, gradients = with_gradients(
        lambda x: scan.selective_scan_triton(**x, delta_softplus=True), inputs, weights
    )
    expected, expected_gradients = with_gradients(
        lambda x: cuda.selective_scan_cuda(**x, delta_softplus=True), inputs, weights
    )
    assert relative_error(outputs[0], expected[0].double()) < 1e-4
    for name, gradient in gradients.items():
        assert relative_error(gradient, expected_gradients[name].double()) < 1e-3, name
