"""``ssamba bench scan``: every backend of the selective scan beside its peers."""

import torch
from tqdm import tqdm

from .. import ops
from .timing import median_times, peak_memory, run_step

SCAN_SHAPES = ((1, 384, 1189), (8, 384, 497), (8, 768, 497))  # batch, channels, length
STATES = 16
LOOPS = ("reference", "transformers")  # over time: their gradients and the profiler's record of them take minutes


def bench_scan(device="cpu", rounds=5):
    """Time every backend of the scan and every peer that is installed: one direction, float32.

    Peers are the scans of transformers' Mamba: its loop, its associative scan under torch.compile, and, where mambapy
    is installed, mambapy's.

    Returns:
        a row (dict) for each shape, mode and candidate: median milliseconds, peak MiB that torch allocates in a call
        (not of the loops over time, whose gradients are not measured either), and the median over the bound estimated
        from the machine's own rates.
    """
    machine = measure_machine(device)
    rows = []
    for shape in tqdm(SCAN_SHAPES, desc="scan", unit="shape"):
        inputs = _scan_inputs(*shape, device)
        for mode, gradients in (("forward", False), ("forward + backward", True)):
            calls = {name: _scan_call(scan, inputs, gradients) for name, scan in _candidates(device).items()}
            if gradients:
                calls = {name: call for name, call in calls.items() if name not in LOOPS}
            bound = _scan_bound(machine, *shape, gradients)
            for name, milliseconds in median_times(calls, rounds, device).items():
                rows.append({
                    "batch x channels x length": " x ".join(map(str, shape)), "mode": mode, "scan": name,
                    "ms": milliseconds, "x bound": milliseconds / bound,
                    "peak MiB": "" if name in LOOPS else peak_memory(calls[name], device) / 2**20,
                })
    return rows


def measure_machine(device="cpu"):
    """This machine's rates from short trials, all its threads together: powers of two per second of numbers that lie in
    a cache, floating-point operations per second in a matrix product, bytes per second in a large copy."""
    small, large = torch.rand(1 << 16, device=device) - 1, torch.empty(1 << 26, device=device)
    powers, matrix = torch.empty_like(small), torch.randn(2048, 2048, device=device)
    power = ops.cpu.exponential2 if device == "cpu" and not ops.cpu.unavailable_reason() else torch.exp2
    calls = {
        "powers": lambda: [power(small, out=powers) for _ in range(16)], "copy": large.clone,
        "product": lambda: matrix @ matrix,
    }
    seconds = {name: milliseconds / 1e3 for name, milliseconds in median_times(calls, 7, device).items()}
    threads = torch.get_num_threads() if device == "cpu" else 1  # so few numbers keep one thread busy
    return {
        "powers": threads * 16 * small.numel() / seconds["powers"],
        "operations": 2 * len(matrix) ** 3 / seconds["product"],
        "bytes": 2 * 4 * large.numel() / seconds["copy"],
    }


def _scan_bound(machine, batch, channels, length, gradients):
    """Milliseconds that a scan takes at the least: a power of two and four fused multiply-adds per state and step, or
    the traffic of u, delta, z and the output, whichever is longer. A backward pass computes the states once more, and
    as much again for their gradients."""
    steps = batch * channels * length
    arithmetic = steps * STATES * (1 / machine["powers"] + 8 / machine["operations"])
    traffic = 4 * 4 * steps / machine["bytes"]
    return 1e3 * (3 if gradients else 1) * max(arithmetic, traffic)


def _scan_inputs(batch, channels, length, device):
    """Arguments in token-major memory, with the step sizes of a network at its initialisation."""

    def sequence(width):
        return torch.randn(batch, length, width, device=device).transpose(1, 2)

    return {
        "u": sequence(channels), "delta": 0.5 * sequence(channels),
        "A": -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1), "B": sequence(STATES),
        "C": sequence(STATES), "D": torch.ones(channels, device=device), "z": sequence(channels),
        "delta_bias": torch.randn(channels, device=device) - 4,
    }


def _candidates(device):
    candidates = {name: _backend(name) for name in ops.BACKENDS if ops.unavailable_reason(name, device) is None}
    return candidates | _peers()


def _backend(name):
    return lambda **inputs: ops.selective_scan(**inputs, delta_softplus=True, backend=name)


def _peers():
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan
        from transformers.utils.import_utils import is_mambapy_available
    except ImportError:  # transformers before 5
        return {}

    def peer(**options):
        def scan(u, delta, **inputs):
            return mamba_selective_scan(u, delta, **inputs, delta_softplus=True, **options)

        return scan

    peers = {"transformers": peer(), "transformers, compiled": torch.compile(peer(use_associative_scan=True))}
    return peers | ({"mambapy": peer(use_mambapy=True)} if is_mambapy_available() else {})


def _scan_call(scan, inputs, gradients):
    inputs = {name: tensor.detach().requires_grad_(gradients) for name, tensor in inputs.items()}
    return lambda: run_step(lambda: [scan(**inputs)], inputs.values(), gradients)
