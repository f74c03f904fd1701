"""``ssamba bench scan``: every backend of the selective scan compared with its peers."""

import itertools

import torch
from tqdm import tqdm

from .. import ops
from .timing import median_times, peak_memory, run_step

SCAN_SHAPES = ((1, 384, 1189), (8, 384, 497), (8, 768, 497))  # batch, channels, length
SHAPES_ON_A_GPU = ((8, 768, 512), (8, 768, 4096), (8, 768, 22528))  # for the compiled backends only
DTYPES_ON_A_GPU = (torch.float32, torch.bfloat16)
STATES = 16
COMPILED = ("triton", "mamba_ssm")
LOOPS = ("reference", "transformers")  # over time: their gradients and the profiler's record of them take minutes


def bench_scan(device="cpu", rounds=5):
    """Time every backend of the scan and every installed peer, in one direction and float32; on a GPU, also time the
    compiled backends in bfloat16 and on longer sequences.

    Peers are the scans of transformers' Mamba: its loop, its associative scan under torch.compile, and mambapy's if
    mambapy is installed.

    Returns:
        a row (dict) for each shape, dtype, mode and candidate: median milliseconds, the peak MiB that torch allocates
        in a call, and the ratio of the median to a bound estimated from the machine's own rates. Memory and gradients
        of the loops over time are not measured.
    """
    machine = measure_machine(device)
    rows, shapes, dtypes = [], SCAN_SHAPES, [torch.float32]
    if device != "cpu":
        shapes, dtypes = SCAN_SHAPES + SHAPES_ON_A_GPU, DTYPES_ON_A_GPU
    modes = ("forward", False), ("forward + backward", True)
    trials = [*itertools.product(shapes, dtypes, modes)]
    for shape, dtype, (mode, gradients) in tqdm(trials, desc="scan", unit="trial"):
        inputs = _scan_inputs(*shape, device, dtype)
        available = [name for name in ops.BACKENDS if ops.unavailable_reason(name, device) is None]
        candidates = {name: _backend(name) for name in available} | _peers()
        if shape in SHAPES_ON_A_GPU or dtype != torch.float32:
            candidates = {name: scan for name, scan in candidates.items() if name in COMPILED}
        calls = {name: _scan_call(scan, inputs, gradients) for name, scan in candidates.items()}
        if gradients:
            calls = {name: call for name, call in calls.items() if name not in LOOPS}
        bound = _scan_bound(machine, *shape, gradients, dtype)
        for name, milliseconds in median_times(calls, rounds, device).items():
            rows.append({
                "batch x channels x length": " x ".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch."),
                "mode": mode, "scan": name, "ms": milliseconds,
                "x bound": milliseconds / bound,
                "peak MiB": "" if name in LOOPS else peak_memory(calls[name], device) / 2**20,
            })
    return rows


def measure_machine(device="cpu"):
    """Measure this machine's rates in short trials with all threads: powers of two per second for numbers in a cache,
    floating-point operations per second in a matrix product, and bytes per second in a large copy."""
    large, matrix = torch.empty(1 << 26, device=device), torch.randn(2048, 2048, device=device)
    count, powers = _powers(device)
    calls = {"powers": powers, "copy": large.clone, "product": lambda: matrix @ matrix}
    seconds = {name: milliseconds / 1e3 for name, milliseconds in median_times(calls, 7, device).items()}
    return {
        "powers": count / seconds["powers"],
        "operations": 2 * len(matrix) ** 3 / seconds["product"],
        "bytes": 2 * 4 * large.numel() / seconds["copy"],
    }


def _powers(device):
    """Return the number of powers of two that a call computes, and the call."""
    if device == "cpu":
        numbers = torch.rand(1 << 16) - 1
        power, out = torch.exp2 if ops.cpu.unavailable_reason() else ops.cpu.exponential2, torch.empty_like(numbers)
        # So few numbers use only one thread.
        return torch.get_num_threads() * 16 * len(numbers), lambda: [power(numbers, out=out) for _ in range(16)]
    # One launch that reads each number once; all values stay within (-1, 0).
    numbers = torch.rand(1 << 24, device=device) - 1
    power = torch.cuda.jiterator._create_jit_fn(
        "template <typename T> T powers(T x) { for (int i = 0; i < 256; ++i) x = exp2f(x) - T(1); return x; }")
    return 256 * len(numbers), lambda: power(numbers)


def _scan_bound(machine, batch, channels, length, gradients, dtype=torch.float32):
    """Return a lower bound on a scan's milliseconds: a power of two and four fused multiply-adds per state and step, or
    the traffic of u, delta, z and the output, whichever takes longer. A backward pass recomputes the states and needs
    the same amount again for their gradients."""
    steps = batch * channels * length
    arithmetic = steps * STATES * (1 / machine["powers"] + 8 / machine["operations"])
    traffic = 4 * dtype.itemsize * steps / machine["bytes"]
    return 1e3 * (3 if gradients else 1) * max(arithmetic, traffic)


def _scan_inputs(batch, channels, length, device, dtype=torch.float32):
    """Return arguments in token-major memory, with the step sizes of a newly initialised network."""

    def sequence(width):
        return torch.randn(batch, length, width, device=device).transpose(1, 2).to(dtype)

    return {
        "u": sequence(channels), "delta": 0.5 * sequence(channels),
        "A": -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1), "B": sequence(STATES),
        "C": sequence(STATES), "D": torch.ones(channels, device=device), "z": sequence(channels),
        "delta_bias": torch.randn(channels, device=device) - 4,
    }


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
