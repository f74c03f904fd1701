"""Compile the scan's Triton kernels for a GPU, which does not have to be present, and measure their resources.

``python triton_resources.py 90 [bfloat16]`` prints the resources of each kernel as JSON.

It runs in a separate process, because Triton decides only once whether to interpret kernels. The unchanged host code
runs on CPU tensors with a stand-in for the driver: kernels are compiled, not launched.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ssamba_upstream.ops import triton as scan

SHAPE = 1, 384, 1024, 16  # batch, channels, length, states
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class StandInDriver:
    """A driver that only names the GPU to compile for."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compiled_kernels(capability, dtype=torch.float32, backward=True):
    """Return the compiled kernels, by name, that the host code calls for a scan of two directions and its gradients."""
    kernels = {}

    def compile_only(kernel, device, programs, *arguments, warps=1, **constants):
        kernels[kernel.fn.__name__] = kernel.warmup(
            *arguments, grid=programs, **constants, num_warps=warps, enable_fp_fusion=True
        )

    driver.set_active(StandInDriver(capability))
    with mock.patch.object(scan, "_launch", compile_only), \
            mock.patch.object(scan, "_chunk_length", lambda *_: 128):
        output = scan.selective_scan_mean_triton(*_mean_arguments(dtype), True)
        if backward:
            output.float().sum().backward()
    return kernels


def _mean_arguments(dtype):
    """Return (directions, z), with a network's memory layout."""
    batch, channels, length, states = SHAPE

    def sequence(width):
        return torch.zeros(batch, length, width, dtype=dtype).transpose(1, 2).requires_grad_()

    def parameter(*shape):
        return torch.zeros(shape, requires_grad=True)

    return [
        {"u": sequence(channels), "delta": sequence(channels), "A": parameter(channels, states), "B": sequence(states),
         "C": sequence(states), "D": parameter(channels), "delta_bias": parameter(channels), "reverse": reverse}
        for reverse in (False, True)
    ], sequence(channels)


def assemblers_know(capability):
    """Return whether this triton includes an assembler for a GPU of this capability."""
    return any(f"sm_{capability}" in _output(assembler, "--help") for assembler in TOOLS.glob("ptxas*"))


def resources(kernel):
    """Return a kernel's resources per thread (registers, instructions, loads from global memory, accesses to spilled
    registers) and per program (bytes of shared memory)."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _output(TOOLS / "cuobjdump", "--dump-resource-usage", cubin)
        listing = _output(TOOLS / "nvdisasm", "--print-code", cubin)
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)", listing)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "instructions": sum(name != "NOP" for name in names),
        "loads": names.count("LDG"),
        "spills": names.count("STL") + names.count("LDL"),
        "shared": kernel.metadata.shared,
    }


def _output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    found = compiled_kernels(int(sys.argv[1]), getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32"))
    print(json.dumps({name: resources(kernel) for name, kernel in found.items()}, indent=1))
