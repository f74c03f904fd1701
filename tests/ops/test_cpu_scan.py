"""The compiled CPU kernels against the definition in float64, and their behaviour as torch operators."""

import itertools
import multiprocessing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ssamba_upstream import SsambaConfig, ops
from ssamba_upstream.network.mixer import BidirectionalMamba
from ssamba_upstream.ops import cpu

pytestmark = pytest.mark.skipif(bool(cpu.unavailable_reason()), reason=f"no kernels: {cpu.unavailable_reason()}")

@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instruction_set(request):
    if cpu.library.kernels.ssamba_select(request.param.encode()) is None:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    cpu.library.kernels.ssamba_select(cpu.instruction_set.encode())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def scan_inputs(batch, channels, length, states, full=True, layout="tokens"):
    """Return float32 arguments of selective_scan: ``tokens`` as the mixer passes them, ``time`` with contiguous steps,
    ``gaps`` with neither steps nor channels contiguous."""

    def sequence(width):
        if layout == "tokens":
            return torch.randn(batch, length, width).transpose(1, 2)
        if layout == "time":
            return torch.randn(batch, width, length)
        return torch.randn(length, width, 2, batch).permute(3, 1, 0, 2)[..., 1]

    inputs = {
        "u": sequence(channels), "delta": sequence(channels) - 2 if full else sequence(channels).abs() / 4,
        "A": -torch.rand(channels, states) * 8, "B": sequence(states), "C": sequence(states),
    }
    if full:
        inputs |= {"D": torch.randn(channels), "z": sequence(channels), "delta_bias": torch.randn(channels)}
    return inputs


def relative_error(found, exact):
    if not exact.numel():
        return 0.0
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))


def gradients(scan, inputs, weights):
    """Return (outputs, gradients of the sum of the outputs times the weights), both as dicts."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = scan(**inputs)
    loss = sum((output * weight.to(output.dtype)).sum() for output, weight in zip(outputs, weights))
    loss = loss + sum(0 * x.sum() for x in inputs.values())
    found = torch.autograd.grad(loss, list(inputs.values()))
    return [output.detach() for output in outputs], dict(zip(inputs, found))


def assert_like_definition(inputs, definition="reference", **options):
    batch, channels, length = inputs["u"].shape
    weights = torch.randn(batch, channels, length), torch.randn(batch, channels, inputs["A"].shape[1])

    def scan(backend):
        return lambda **x: ops.selective_scan(**x, **options, return_last_state=True, backend=backend)

    exact_inputs = {name: x.double() for name, x in inputs.items()}
    exact_outputs, exact_gradients = gradients(scan(definition), exact_inputs, weights)
    outputs, found_gradients = gradients(scan("cpu"), inputs, weights)
    with torch.no_grad():
        assert torch.equal(scan("cpu")(**inputs)[0], outputs[0])
    for name, output, exact in zip(("output", "state"), outputs, exact_outputs):
        assert relative_error(output, exact) < 1e-5, name
    for name, gradient in found_gradients.items():
        assert relative_error(gradient, exact_gradients[name]) < 1e-4, name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "shape, full, layout",
    [
        ((1, 1, 1, 1), True, "tokens"), ((2, 5, 2, 3), False, "time"), ((2, 33, 3, 16), True, "gaps"),
        ((1, 67, 17, 64), True, "tokens"), ((2, 130, 63, 16), False, "tokens"), ((1, 20, 63, 7), True, "time"),
        ((0, 4, 5, 2), True, "tokens"), ((2, 4, 0, 2), True, "tokens"),
    ],
)
def test_equals_definition(instruction_set, shape, full, layout, reverse):
    assert_like_definition(scan_inputs(*shape, full, layout), delta_softplus=full, reverse=reverse)


@pytest.mark.parametrize(
    "shape, reverse",
    [((1, 33, 497, 16), True), ((2, 7, 1189, 8), False), ((1, 3, 5000, 16), True), ((1, 2, 40, 256), False)],
)
def test_equals_definition_over_many_tiles(shape, reverse):
    """The float64 "torch" backend stands for the definition, whose gradient takes time quadratic in the length."""
    assert_like_definition(scan_inputs(*shape), definition="torch", delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize("fastest", [1e-3, 1.0, 1e3])
def test_extreme_steps_and_decays(instruction_set, fastest):
    inputs = scan_inputs(2, 19, 80, 4, full=False)
    inputs["delta"] = torch.logspace(-6, np.log10(50), inputs["delta"].numel()).view_as(inputs["delta"])
    inputs["A"] = -torch.logspace(-3, 0, inputs["A"].numel()).view_as(inputs["A"]) * fastest
    assert_like_definition(inputs)


def test_softplus_of_very_negative_steps_is_not_zero():
    inputs = scan_inputs(1, 16, 40, 2)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"] - 40, torch.zeros(16)
    inputs["D"] = torch.zeros(16)
    assert_like_definition(inputs, delta_softplus=True)
    assert ops.selective_scan(**inputs, delta_softplus=True, backend="cpu").abs().min() > 0


def test_golden_scan(golden):
    x = golden("selective_scan")
    output, state = ops.selective_scan(
        x["u"], x["delta"], x["A"], x["B"], x["C"], D=x["D"], z=x["z"], delta_bias=x["delta_bias"],
        delta_softplus=True, return_last_state=True, backend="cpu",
    )
    torch.testing.assert_close(output, x["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, x["last_state"], rtol=1e-4, atol=1e-5)


def elementary(which, x):
    out = np.empty_like(x)
    cpu.library.kernels.ssamba_elementary(which, x.ctypes.data, out.ctypes.data, x.size)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "which, exact, ulp",
    [(0, np.exp, 2), (1, np.exp2, 2), (2, lambda x: np.logaddexp(0, x), 4)],
    ids=["exp", "exp2", "softplus"],
)
def test_elementary_functions(instruction_set, which, exact, ulp):
    every_exponent = np.arange(2**32, step=4093, dtype=np.uint32).view(np.float32)
    every_exponent = every_exponent[np.isfinite(every_exponent)]
    x = np.concatenate([every_exponent, np.linspace(-160, 130, 1_500_001), np.linspace(-1, 1, 500_001)])
    x = x.astype(np.float32)
    found = elementary(which, x).astype(np.float64)
    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore", under="ignore"):
        expected = exact(x.astype(np.float64))
        finite = expected <= largest
        unit = np.spacing(expected[finite].astype(np.float32)).astype(np.float64)
    assert (np.abs(found[finite] - expected[finite]) <= ulp * unit).all()
    beyond = expected / 2 > largest
    assert np.isinf(found[beyond]).all()
    assert (found[beyond & ((which != 1) | (x < 2**18))] > 0).all()
    special = elementary(which, np.array([-np.inf, np.inf, np.nan], np.float32))
    assert special[0] == 0 and special[1] == np.inf and np.isnan(special[2])


def mean_scan_inputs(batch=3, length=41):
    both = [scan_inputs(batch, 150, length, 16) for _ in range(2)]
    z = both[0]["z"]
    names = [name for name in both[0] if name != "z"]
    return {"z": z} | {f"{name}{i}": scan[name] for i, scan in enumerate(both) for name in names}


def mean_scan(z, offsets=None, **x):
    scans = [{name[:-1]: x[name] for name in x if name[-1] == i} | {"reverse": i == "1"} for i in "01"]
    return (ops.selective_scan_mean(scans, z, delta_softplus=True, offsets=offsets),)


def convolutions(x, offsets=None, **parameters):
    weights, biases = ([parameters[f"{kind}{i}"] for i in "01"] for kind in ("weight", "bias"))
    return ops.causal_convolutions(x, weights, biases, [False, True], offsets)


def convolution_inputs(length=70, width=4, batch=2):
    parameters = {f"weight{i}": torch.randn(150, 1, width) for i in "01"} | {f"bias{i}": torch.randn(150) for i in "01"}
    return {"x": torch.randn(batch, length, 300).transpose(1, 2)[:, 150:], **parameters}


@pytest.mark.parametrize("function, inputs", [
    (mean_scan, mean_scan_inputs), (convolutions, convolution_inputs),
    (convolutions, lambda: convolution_inputs(3, 4)), (convolutions, lambda: convolution_inputs(40, 1)),
    (convolutions, lambda: convolution_inputs(40, 9)),
])
def test_two_directions_equal_definition(instruction_set, function, inputs):
    """In float64, the same functions use plain torch operations."""
    inputs = inputs()
    weights = [torch.randn_like(output) for output in function(**inputs)]
    outputs, found = gradients(function, inputs, weights)
    exact_outputs, exact = gradients(function, {name: x.double() for name, x in inputs.items()}, weights)
    for output, exact_output in zip(outputs, exact_outputs):
        assert output.dtype == torch.float32 and relative_error(output, exact_output) < 1e-5
    for name in inputs:
        assert relative_error(found[name], exact[name]) < 1e-4, name


# Lengths around the tile's 32 and below the convolution's width.
OFFSETS = torch.tensor([0, 1, 18, 18, 51, 115, 120])


def each_sequence(function, last_state=False):
    """Apply ``function`` to each sequence of a ragged batch separately, and concatenate its outputs."""

    def apply(**inputs):
        results = [
            function(**{
                name: x[..., begin:end] if x.dim() == 3 and x.shape[-1] == OFFSETS[-1] else x
                for name, x in inputs.items()
            })
            for begin, end in itertools.pairwise(OFFSETS.tolist())
            if begin < end or last_state
        ]
        if last_state:
            outputs, states = zip(*results)
            return [torch.cat(outputs, dim=-1), torch.cat(states)]
        return [torch.cat(outputs, dim=-1) for outputs in zip(*results)]

    return apply


def assert_ragged_equals_each_sequence(ragged, alone, exact, inputs):
    """Assert that results equal those of separate sequences bit for bit, and are close to the float64 definition."""
    with torch.no_grad():
        outputs = ragged(**inputs)
        assert all(torch.equal(*pair) for pair in zip(outputs, alone(**inputs)))
    weights = [torch.randn_like(output) for output in outputs]
    outputs, found = gradients(ragged, inputs, weights)
    exact_outputs, exact = gradients(exact, {name: x.double() for name, x in inputs.items()}, weights)
    for output, exact_output in zip(outputs, exact_outputs):
        assert relative_error(output, exact_output) < 1e-5
    for name in inputs:
        assert relative_error(found[name], exact[name]) < 1e-4, name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("full, layout", [(True, "tokens"), (False, "time"), (True, "gaps")])
def test_ragged_scan_equals_each_sequence(instruction_set, full, layout, reverse):
    options = {"delta_softplus": full, "reverse": reverse, "return_last_state": True}
    alone, exact = (
        each_sequence(partial(ops.selective_scan, **options, backend=backend), last_state=True)
        for backend in ("cpu", "reference")
    )
    ragged = partial(cpu.selective_scan_cpu, **options, offsets=OFFSETS)
    assert_ragged_equals_each_sequence(ragged, alone, exact, scan_inputs(1, 70, 120, 5, full, layout))


@pytest.mark.parametrize("function, inputs", [
    (mean_scan, lambda: mean_scan_inputs(1, 120)), (convolutions, lambda: convolution_inputs(120, 4, 1)),
    (convolutions, lambda: convolution_inputs(120, 9, 1)),
])
def test_ragged_two_directions_equal_each_sequence(instruction_set, function, inputs):
    alone = each_sequence(function)
    assert_ragged_equals_each_sequence(partial(function, offsets=OFFSETS), alone, alone, inputs())


def test_ragged_batch_of_nothing():
    for offsets in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        inputs = scan_inputs(1, 4, 0, 2)
        outputs, found = gradients(
            partial(cpu.selective_scan_cpu, return_last_state=True, offsets=offsets), inputs, [torch.ones(())] * 2
        )
        assert outputs[0].shape == (1, 4, 0)
        assert torch.equal(outputs[1], torch.zeros(len(offsets) - 1, 4, 2))
        assert not found["A"].any() and not found["D"].any()


@pytest.mark.parametrize("batch, offsets, message", [
    (2, OFFSETS, "a batch of 2"), (1, OFFSETS.int(), "int32"), (1, OFFSETS[None], r"\(1, 7\)"),
    (1, OFFSETS[:0], r"\(0,\)"), (1, OFFSETS.to("meta"), "on meta"), (1, OFFSETS[1:], "from 0 to the length, 120"),
    (1, OFFSETS[:-1], "from 0 to the length, 120"), (1, OFFSETS[[0, 2, 1, 6]], r"ascend .* \[0, 18, 1, 120\]"),
])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_offsets_that_do_not_fit(batch, offsets, message, requires_grad):
    for function, inputs in (
        (mean_scan, mean_scan_inputs(batch, 120)), (convolutions, convolution_inputs(120, 4, batch))
    ):
        with pytest.raises(ValueError, match=message):
            function(**{name: x.requires_grad_(requires_grad) for name, x in inputs.items()}, offsets=offsets)


@pytest.mark.parametrize("function, inputs", [
    (mean_scan, mean_scan_inputs), (convolutions, lambda: convolution_inputs(700)),
    (partial(mean_scan, offsets=OFFSETS), lambda: mean_scan_inputs(1, 120)),
    (partial(convolutions, offsets=9 * OFFSETS), lambda: convolution_inputs(9 * 120, 4, 1)),
])
def test_results_do_not_depend_on_threads(threads, function, inputs):
    inputs = inputs()
    results = []
    for count, team in ((1, None), (2, None), (5, None), (2, cpu.library.torch_team())):
        threads(count)
        cpu.library.kernels.ssamba_use_team(team)
        outputs, grads = gradients(function, inputs, [torch.ones(()), torch.ones(())])
        results.append([*outputs, *grads.values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_torch_s_own_threads_are_found():
    """If torch includes GCC's OpenMP runtime, as its Linux wheels do."""
    bundled = list(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    assert (cpu.library.torch_team() is not None) or not bundled


def operator_arguments(batch=2):
    x = [scan_inputs(batch, 5, 7, 3) for _ in range(2)]
    lists = [[scan[name].requires_grad_() for scan in x] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    return lists, x[0]["z"].requires_grad_()


@pytest.mark.slow
def test_operators_are_well_registered():
    lists, z = operator_arguments()
    states = [torch.randn(2, 5, 3, requires_grad=True) for _ in range(2)]
    weights, biases = [torch.randn(5, 1, 4, requires_grad=True)] * 2, [torch.randn(5, requires_grad=True)] * 2
    torch.library.opcheck(cpu.scan_operator, (*lists, states, z, None, [False, True], True, True, True))
    one_direction = (*(x[:1] for x in lists[:5]), [], [], [], None, None, [True], True, False, True)
    torch.library.opcheck(cpu.scan_operator, one_direction)
    with torch.no_grad():
        plain = [[tensor.clone() for tensor in tensors] for tensors in lists]
    torch.library.opcheck(cpu.scan_operator, (*plain, [], None, None, [False, True], True, False, False))
    torch.library.opcheck(cpu.convolution_operator, (z, weights, biases, None, [False, True]))
    lists, z = operator_arguments(batch=1)
    offsets = torch.tensor([0, 2, 2, 7])
    states = [torch.randn(3, 5, 3)] * 2
    torch.library.opcheck(cpu.scan_operator, (*lists, states, z, offsets, [False, True], True, True, True))
    torch.library.opcheck(cpu.convolution_operator, (z, weights, biases, offsets, [False, True]))


def mixer():
    torch.manual_seed(0)
    module = BidirectionalMamba(SsambaConfig(hidden_size=24, state_size=8))
    module.initialise()
    return module


@pytest.mark.slow
def test_compiles_without_graph_break():
    module, tokens = mixer(), torch.randn(2, 37, 24)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for x in (tokens, tokens.requires_grad_()):
        torch.testing.assert_close(compiled(x), module(x))
    expected = torch.autograd.grad(module(tokens).sum(), [tokens, module.A_log])
    torch.testing.assert_close(torch.autograd.grad(compiled(tokens).sum(), [tokens, module.A_log]), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens), module(tokens))


@pytest.mark.slow
def test_ragged_batch_compiles_without_graph_break():
    inputs = mean_scan_inputs(1, 120)
    weights = [torch.randn_like(inputs["z"])]
    expected, expected_gradients = gradients(partial(mean_scan, offsets=OFFSETS), inputs, weights)
    compiled = torch.compile(mean_scan, fullgraph=True, backend="aot_eager")
    found, found_gradients = gradients(partial(compiled, offsets=OFFSETS), inputs, weights)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found_gradients, expected_gradients)


def test_activation_checkpointing():
    module, tokens = mixer(), torch.randn(2, 37, 24, requires_grad=True)
    expected = torch.autograd.grad(module(tokens).sum(), [tokens, module.D])
    again = torch.autograd.grad(checkpoint(module, tokens, use_reentrant=False).sum(), [tokens, module.D])
    assert all(torch.equal(a, b) for a, b in zip(expected, again))


def test_autocast():
    module, tokens = mixer(), torch.randn(2, 37, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(tokens)
    assert output.dtype == torch.bfloat16
    assert relative_error(output.detach(), module(tokens).detach().double()) < 0.03
    output.sum().backward()
    assert module.A_log.grad.dtype == torch.float32 and module.A_log.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_state_in_float32(dtype):
    inputs = {name: x.to(dtype) for name, x in scan_inputs(1, 20, 400, 16).items()}
    output = ops.selective_scan(**inputs, delta_softplus=True)
    exact = ops.selective_scan(**{name: x.double() for name, x in inputs.items()}, delta_softplus=True)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("function, inputs", [(mean_scan, mean_scan_inputs), (convolutions, convolution_inputs)])
def test_double_backward_is_refused(function, inputs):
    inputs = {name: x.requires_grad_() for name, x in inputs().items()}
    loss = sum(output.square().sum() for output in function(**inputs))
    first = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first[0].sum().backward()


def test_what_the_backend_does_not_serve():
    inputs = scan_inputs(1, 2, 3, 1)
    with pytest.raises(ValueError, match="float64"):
        ops.selective_scan(**{name: x.double() for name, x in inputs.items()}, backend="cpu")


def test_instruction_set_can_be_named(monkeypatch):
    monkeypatch.setenv("SSAMBA_CPU_ISA", "sse9")
    library, _, reason = cpu.library.load()
    assert library is None and "sse9" in reason


class Scans(torch.utils.data.Dataset):
    """A data set whose items are scans, computed in the worker with threads."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)
        return ops.selective_scan(**self.inputs, delta_softplus=True, backend="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_data_loader_workers(threads, method):
    threads(2)
    data = Scans(scan_inputs(2, 128, 300, 16))
    expected = data[0]
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=1, multiprocessing_context=method, timeout=600
    )
    assert all(torch.equal(found, expected) for found in loader)


def test_a_library_of_another_kernel_is_refused(monkeypatch):
    monkeypatch.setattr(cpu.library, "LAYOUT", [0, 0])
    assert cpu.library.load() == (None, None, "it was built from another kernel.c: install the package again")
