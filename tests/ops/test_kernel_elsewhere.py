"""``kernel.c`` built by other compilers and for 64-bit Arm, against the definition in float64.

Arm is emulated, if ``aarch64-linux-gnu-gcc`` and ``qemu-aarch64`` are installed.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import CHECKOUT
from ssamba_upstream.ops import _causal_convolution
from ssamba_upstream.ops.reference import selective_scan_reference

HARNESS = Path(__file__).with_name("kernel_harness.c")
FLAGS = ["-O2", "-pthread", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas"]
IS_X86 = platform.machine() in ("x86_64", "AMD64")
X86 = ("avx512", "avx2", "baseline") if IS_X86 else ("baseline",)

# compiler -> (runner of its programs, instruction sets)
COMPILERS = {
    "gcc": ([], X86),
    "clang": ([], X86),
    "aarch64-linux-gnu-gcc": (["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"], ("baseline",)),
}


@pytest.fixture(scope="module", params=COMPILERS)
def compiler(request):
    runner, _ = COMPILERS[request.param]
    for program in (request.param, *runner[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    return request.param


@pytest.fixture(scope="module")
def harness(compiler, tmp_path_factory):
    """Return a function: int64 sizes and float32 arrays, instruction set -> all results in float32."""
    folder = tmp_path_factory.mktemp("harness")
    program = folder / "harness"
    source = CHECKOUT / "ssamba_upstream" / "ops" / "cpu"
    subprocess.run([compiler, *FLAGS, "-I", source, HARNESS, "-o", program], check=True)

    def run(sizes, arrays, instruction_set):
        floats = [array.detach().float().numpy().tobytes() for array in arrays]
        contents = [np.array(sizes, np.int64).tobytes(), *floats]
        (folder / "in").write_bytes(b"".join(contents))
        command = [*COMPILERS[compiler][0], program, instruction_set, folder / "in", folder / "out"]
        status = subprocess.run(command).returncode
        if status == 3:
            pytest.skip(f"this processor has no {instruction_set}")
        assert status == 0
        return torch.from_numpy(np.fromfile(folder / "out", np.float32))

    run.program = program
    return run


def take(values, *shape):
    """Split off the first values, in a shape, from the others."""
    size = int(np.prod(shape))
    return values[:size].view(shape), values[size:]


def assert_close(found, exact):
    assert (found.double() - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


def inputs(batch, channels, length, states, width, rank):
    """Return float64 tensors, with sequences as (batch, length, width)."""
    steps = rank or channels
    A = torch.rand(channels, states) * 2 if rank else -torch.rand(channels, states) * 4
    tensors = {
        "u": torch.randn(batch, length, channels), "delta": torch.randn(batch, length, steps),
        "z": torch.randn(batch, length, channels), "B": torch.randn(batch, length, states),
        "C": torch.randn(batch, length, states), "A": A, "D": torch.randn(channels), "bias": torch.randn(channels) - 2,
        "step_weight": torch.randn(channels, rank) / 4, "grad_output": torch.randn(batch, length, channels),
        "taps": torch.randn(channels, width), "taps_bias": torch.randn(channels),
    }
    return {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("sizes, reverse", [
    ((2, 70, 75, 16, 4, 0), False), ((1, 129, 33, 16, 4, 5), True), ((1, 3, 1, 5, 3, 2), False),
], ids=["steps", "projected steps, backwards", "one step"])
def test_values_are_those_of_the_definition(compiler, harness, instruction_set, sizes, reverse):
    if instruction_set not in COMPILERS[compiler][1]:
        pytest.skip(f"{compiler} does not compile for {instruction_set} here")
    batch, channels, length, states, width, rank = sizes
    given = inputs(*sizes)
    values = harness([*sizes, int(reverse)], given.values(), instruction_set)

    u, z, B, C = (given[name].transpose(1, 2) for name in ("u", "z", "B", "C"))
    delta = (given["delta"] @ given["step_weight"].T if rank else given["delta"]).transpose(1, 2)
    A = -given["A"].exp() if rank else given["A"]
    output, last_state = selective_scan_reference(
        u, delta, A, B, C, given["D"], z, given["bias"], True, reverse, return_last_state=True)
    grad_output = given["grad_output"].transpose(1, 2)
    found, values = take(values, batch, length, channels)
    assert_close(found, output.transpose(1, 2))
    found, values = take(values, batch, channels, states)
    assert_close(found, last_state)

    names = ["u", "delta", "z", "B", "C", "A", "D", "bias", "step_weight"][: 9 if rank else 8]
    exact = dict(zip(names, torch.autograd.grad(output, [given[name] for name in names], grad_output)))
    found = {}
    found["u"], values = take(values, batch, length, channels)
    grad_delta, values = take(values, batch, length, channels)
    found["z"], values = take(values, batch, length, channels)
    sums, values = take(values, -(-channels // 64), batch, length, rank + 2 * states)
    low, found["B"], found["C"] = sums.sum(0).split([rank, states, states], dim=-1)
    found["delta"] = low if rank else grad_delta
    for name, shape in (("A", (channels, states)), ("D", (channels,)), ("bias", (channels,)),
                        ("step_weight", (channels, rank))):
        parts, values = take(values, batch, *shape)
        found[name] = parts.sum(0)
    for name, gradient in exact.items():
        assert_close(found[name], gradient)

    taps, bias = given["taps"], given["taps_bias"]
    convolved = _causal_convolution(u, taps.unsqueeze(1), bias, reverse)
    exact = torch.autograd.grad(convolved, [given["u"], taps, bias], grad_output)
    found, values = take(values, batch, length, channels)
    assert_close(found, convolved.transpose(1, 2))
    found, values = take(values, batch, length, channels)
    assert_close(found, exact[0])
    for gradient, shape in zip(exact[1:], [(channels, width), (channels,)]):
        parts, values = take(values, batch, *shape)
        assert_close(parts.sum(0), gradient)
    assert not len(values)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-gcc"], indirect=True)
def test_arm_multiplies_and_adds_at_once(harness):
    """The code must use NEON's fused multiply-add on whole vectors of four."""
    command = ["aarch64-linux-gnu-objdump", "-d", harness.program]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert len(re.findall(r"\bfmla\s+v\d+\.4s", listing)) > 50
