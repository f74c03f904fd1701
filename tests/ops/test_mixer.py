"""The mixer between its projections: the compiled kernel against the definition, adapters, and quantisation."""

import copy
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from ssamba_upstream import SsambaConfig, ops
from ssamba_upstream.network.mixer import BidirectionalMamba
from ssamba_upstream.ops import cpu

needs_kernels = pytest.mark.skipif(bool(cpu.unavailable_reason()), reason=f"no kernels: {cpu.unavailable_reason()}")
OFFSETS = torch.tensor([0, 1, 18, 18, 51, 115, 120])


def mixer(**sizes):
    torch.manual_seed(0)
    module = BidirectionalMamba(SsambaConfig(**{"hidden_size": 48, **sizes}))
    module.initialise()
    with torch.no_grad():  # make all parameters different
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return module


def outputs_and_gradients(module, tokens, *arguments):
    tokens = tokens.detach().requires_grad_()
    output = module(tokens, *arguments)
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    gradients = torch.autograd.grad((output.double() * weights).sum(), [tokens, *module.parameters()])
    return dict(zip(["output", "tokens", *dict(module.named_parameters())], [output.detach(), *gradients]))


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instruction_set(request):
    if cpu.library.kernels.ssamba_select(request.param.encode()) is None:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    cpu.library.kernels.ssamba_select(cpu.instruction_set.encode())


@needs_kernels
@pytest.mark.parametrize("time_reversed", [False, True])
@pytest.mark.parametrize("batch, length, sizes, offsets", [
    (2, 41, {}, None), (1, 3, {"state_size": 3, "conv_kernel": 2}, None), (3, 1, {"hidden_size": 7}, None),
    (1, 32, {"time_step_rank": 1}, None), (1, 120, {"hidden_size": 70, "state_size": 5, "time_step_rank": 48}, OFFSETS),
    (0, 4, {}, None),
])
def test_equals_the_definition(instruction_set, batch, length, sizes, offsets, time_reversed):
    """In float64, the mixer uses plain torch operations."""
    module, arguments = mixer(**sizes), (time_reversed, offsets)
    tokens = torch.randn(batch, length, module.config.hidden_size)
    found = outputs_and_gradients(module, tokens, *arguments)
    exact = outputs_and_gradients(copy.deepcopy(module).double(), tokens.double(), *arguments)
    for name, value in exact.items():
        assert found[name].shape == value.shape, name
        if value.numel():
            assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-30), name
    with torch.no_grad():
        assert torch.equal(module(tokens, *arguments), found["output"])


@needs_kernels
@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_bfloat16(instruction_set, offsets):
    module, tokens = mixer(), torch.randn(1, 120, 48)
    exact = outputs_and_gradients(copy.deepcopy(module).double(), tokens.double(), False, offsets)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs_and_gradients(module, tokens, False, offsets)
        with torch.no_grad():
            assert torch.equal(module(tokens, False, offsets), found["output"])
    assert found["output"].dtype == torch.bfloat16
    for name, value in exact.items():
        assert found[name].dtype == (torch.bfloat16 if name == "output" else torch.float32), name
        assert (found[name] - value).norm() <= 0.02 * value.norm(), name


@needs_kernels
def test_a_sequence_is_mixed_by_itself():
    """A sequence's result is the same bit for bit on its own."""
    module, tokens = mixer(), torch.randn(1, 120, 48)
    with torch.no_grad():
        together = module(tokens, offsets=OFFSETS)
        alone = [module(part) for part in tokens.split(OFFSETS.diff().tolist(), dim=1) if part.shape[1]]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)


@needs_kernels
@pytest.mark.slow
def test_operator_is_well_registered():
    module = mixer(hidden_size=8, state_size=3)
    directions = [module.direction("", False), module.direction("_b", True)]
    lists = [[getattr(direction["convolution"], name) for direction in directions] for name in ("weight", "bias")]
    lists += [[direction["input_projection"].weight for direction in directions]]
    lists += [[getattr(direction["step_projection"], name) for direction in directions] for name in ("weight", "bias")]
    lists += [[direction[name] for direction in directions] for name in ("A_log", "D")]
    x = torch.randn(2, 7, 32, requires_grad=True)
    torch.library.opcheck(cpu.mixer_operator, (x, *lists, None, [False, True], True))
    x = torch.randn(1, 7, 32, requires_grad=True)
    torch.library.opcheck(cpu.mixer_operator, (x, *lists, torch.tensor([0, 2, 2, 7]), [False, True], True))


@needs_kernels
def test_offsets_that_do_not_fit():
    module = mixer()
    for batch, offsets, message in ((2, OFFSETS, "a batch of 2"), (1, OFFSETS[1:], "from 0 to the length, 120")):
        with pytest.raises(ValueError, match=message):
            module(torch.randn(batch, 120, 48), False, offsets)


class Adapter(nn.Module):
    """A layer with a low-rank adapter, as peft wraps it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(0.2 * torch.randn(2, layer.weight[0].numel()))
        self.up = nn.Parameter(0.2 * torch.randn(len(layer.weight), 2))

    def change(self):
        return (self.up @ self.down).view_as(self.layer.weight)

    def forward(self, x):
        if isinstance(self.layer, nn.Linear):
            return self.layer(x) + F.linear(x, self.change())
        return self.layer(x) + F.conv1d(x, self.change(), groups=self.layer.groups)


CONVOLUTIONS = ["conv1d", "conv1d_b"]
MODULES = ["in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj", *CONVOLUTIONS]
CALLS = [(False, None), (True, None), (False, OFFSETS), (True, OFFSETS)]  # time_reversed and offsets


@pytest.mark.parametrize("names", [*([name] for name in MODULES), CONVOLUTIONS], ids=" ".join)
def test_an_adapter_takes_effect_and_learns(names):
    """An adapter equals a layer whose weight is changed by the same amount."""
    module, tokens = mixer(), torch.randn(1, 120, 48)
    merged = copy.deepcopy(module)
    adapters = {name: Adapter(getattr(module, name)) for name in names}
    with torch.no_grad():
        for name, adapter in adapters.items():
            getattr(merged, name).weight += adapter.change()
            setattr(module, name, adapter)
    for arguments in CALLS:
        output = module(tokens, *arguments)
        torch.testing.assert_close(output, merged(tokens, *arguments), rtol=1e-4, atol=1e-5)
        for adapter in adapters.values():
            gradients = torch.autograd.grad(output.square().sum(), [adapter.up, adapter.down], retain_graph=True)
            assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("arguments", CALLS)
def test_a_called_convolution_is_the_convolution(arguments):
    """Compares results and gradients in float64, in both directions and with sequences of every length."""
    module, tokens = mixer().double(), torch.randn(1, 120, 48, dtype=torch.float64)
    expected = outputs_and_gradients(module, tokens, *arguments)
    for name in CONVOLUTIONS:
        getattr(module, name).register_forward_hook(lambda module, inputs, output: None)
    for name, value in outputs_and_gradients(module, tokens, *arguments).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_offsets_are_checked_where_convolutions_are_called():
    module = mixer()
    module.conv1d.register_forward_hook(lambda module, inputs, output: None)
    for batch, offsets, message in (
        (2, OFFSETS, "a batch of 2"), (1, OFFSETS[1:], "from 0 to the length"), (1, OFFSETS[:-1], "from 0 to"),
        (1, OFFSETS.int(), "must be int64"),
    ):
        with pytest.raises(ValueError, match=message):
            module(torch.randn(batch, 120, 48), False, offsets)


@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_a_called_convolution_in_bfloat16(offsets):
    module, tokens = mixer(), torch.randn(1, 120, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = module(tokens, False, offsets)
        module.conv1d.register_forward_hook(lambda module, inputs, output: None)
        found = module(tokens, False, offsets)
    assert found.dtype == torch.bfloat16 and (found - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("arguments", CALLS)
def test_pruning_follows_the_weights(arguments):
    """A pruned layer recomputes its weight in each call."""
    module, tokens = mixer(), torch.randn(1, 120, 48)
    for name in MODULES:
        prune.random_unstructured(getattr(module, name), "weight", 0.5)
    with torch.no_grad():
        for name in MODULES:
            getattr(module, name).weight_orig *= 1.5  # as a training step would
    output = module(tokens, *arguments)
    output.square().sum().backward()
    for name in MODULES:
        layer = getattr(module, name)
        assert layer.weight_orig.grad.any() and not layer.weight_orig.grad[layer.weight_mask == 0].any(), name
        prune.remove(layer, "weight")
    torch.testing.assert_close(module(tokens, *arguments), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("register", [
    lambda modules, hook: [module.register_forward_hook(hook) for module in modules],
    lambda modules, hook: [register_module_forward_hook(hook)],
], ids=["each", "all"])
def test_hooks_are_called_once_and_take_effect(register):
    module, tokens, called = mixer(), torch.randn(1, 120, 48), []
    modules, plain = {getattr(module, name): name for name in MODULES}, module(tokens, False, OFFSETS)

    def hook(layer, inputs, output):
        called.append(modules.get(layer))
        return 1.1 * output if layer in (module.conv1d, module.x_proj_b) else output

    handles = register(modules, hook)
    found = module(tokens, False, OFFSETS)
    assert sorted(name for name in called if name) == sorted(MODULES) and not torch.allclose(found, plain, rtol=1e-3)
    for handle in handles:
        handle.remove()
    assert torch.equal(module(tokens, False, OFFSETS), plain)


@pytest.mark.parametrize("name", MODULES)
def test_a_replaced_forward_is_called(name):
    module, tokens = mixer(), torch.randn(2, 20, 48)
    layer, plain = getattr(module, name), module(tokens)
    layer.forward = lambda x: 1.5 * type(layer).forward(layer, x)
    assert not torch.allclose(module(tokens), plain, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*quantization.*deprecated.*", "ignore::DeprecationWarning")
def test_dynamic_quantisation():
    module, tokens = mixer(), torch.randn(2, 20, 48)
    quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.dt_proj, nn.Linear) or callable(quantised.dt_proj.weight)
    with torch.no_grad():
        exact, found = module(tokens), quantised(tokens)
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


class Operations(TorchDispatchMode):
    """Count torch's operations."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


@needs_kernels
@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_besides_the_products_torch_only_allocates(offsets):
    """One torch operation takes as long as scanning a few steps."""
    module, tokens = mixer(), torch.randn(1, 120, 48)
    with torch.no_grad():
        with Operations() as products:
            channels = module.in_proj(tokens)[..., :96].contiguous()
            module.out_proj(channels), module.x_proj(channels), module.x_proj_b(channels)
        with Operations() as all_of_them:
            module(tokens, offsets=offsets)
    beside = all_of_them.found - products.found
    assert beside == {"aten::new_empty": 2}, beside


class Negative(nn.Module):
    def forward(self, x):
        return -x


def replace_data(module):
    for parameter in module.parameters():
        parameter.data = 1.1 * parameter.data


def replace_parameters(module):
    for name in ("A_log", "D_b"):
        setattr(module, name, nn.Parameter(0.9 * getattr(module, name).detach()))
    module.conv1d.weight = nn.Parameter(module.conv1d.weight.detach().flip(0))


def replace_modules(module):
    for name in ("conv1d_b", "x_proj", "dt_proj_b", "in_proj"):
        setattr(module, name, getattr(mixer(), name).requires_grad_(False))


def transpose_storage(module):
    """Keep the values, but change their order in memory."""
    for name in ("A_log", "A_b_log"):
        parameter = getattr(module, name)
        parameter.data = parameter.data.t().contiguous().t()


def parametrise(module):
    for name in ("A_log", "D"):
        nn.utils.parametrize.register_parametrization(module, name, Negative())
    nn.utils.parametrize.register_parametrization(module.dt_proj, "weight", Negative())


def as_plain_attributes(module):
    """Turn parameters into attributes, as in DataParallel's replicas."""
    for layer in (module, module.conv1d, module.x_proj, module.dt_proj):
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            setattr(layer, name, 1.1 * parameter.detach())


@pytest.mark.parametrize("change", [
    lambda module: module.load_state_dict({name: 1.1 * value for name, value in module.state_dict().items()}),
    replace_data, replace_parameters, replace_modules, transpose_storage, parametrise, as_plain_attributes,
    lambda module: module.bfloat16().float(), lambda module: copy.deepcopy(module).requires_grad_(False),
    lambda module: pickle.loads(pickle.dumps(module)),
], ids=["in place", "data", "parameters", "modules", "order in memory", "parametrised", "attributes", "dtype and back",
        "copy", "pickle"])
def test_parameters_may_change_between_calls(change):
    """Parameters may change by any means, because nothing about them is cached between calls."""
    module, tokens = mixer(), torch.randn(1, 120, 48)
    for arguments in CALLS:
        module(tokens, *arguments)
    with torch.no_grad():
        changed = change(module)
        module = changed if isinstance(changed, nn.Module) else module
        for arguments in CALLS:
            with ops.forced_backend("torch"):
                expected = module(tokens, *arguments)
            torch.testing.assert_close(module(tokens, *arguments), expected, rtol=1e-4, atol=1e-5)


def test_several_threads_may_call():
    module, inputs = mixer(), [torch.randn(1, 100 + i, 48) for i in range(12)]
    with torch.no_grad():
        expected = [module(tokens) for tokens in inputs]

    def call(tokens):
        with torch.no_grad():  # gradient mode is set per thread
            return module(tokens)

    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(call, inputs), expected):
            assert torch.equal(found, alone)


def test_ops_mix_is_what_the_mixer_asks():
    module, tokens = mixer(), torch.randn(2, 20, 48)
    directions = [module.direction("", False), module.direction("_b", True)]
    mixed = ops.mix(module.in_proj(tokens), directions)
    assert mixed.shape == (2, 20, 96)
    torch.testing.assert_close(module.out_proj(mixed), module(tokens))
