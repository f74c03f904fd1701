"""Tools shared by all benchmarks: times side by side, peak memory, one step of a network, tables."""

import csv
import math
import statistics
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..files import markdown_table, replacing

SECONDS_EACH = 20  # total per candidate, after which it is skipped: some peers need ten seconds per call

SHORT = 10  # milliseconds
REPEATS = 10


def median_times(calls, rounds, device="cpu", warm=False):
    """Return the median milliseconds of each call by name. Every round makes each call once; a first round does not
    count unless the calls are ``warm``. Calls that have taken SECONDS_EACH in total skip further rounds.

    On a GPU, its own clock is used, and a call that took less than SHORT is repeated REPEATS times in a row, so that
    the time to launch its first kernel does not count.
    """
    times = {name: [] for name in calls}
    for i in range(1 if warm else 0, rounds + 1):
        for name, call in calls.items():
            if sum(times[name]) > SECONDS_EACH * 1e3:
                continue
            repeats = REPEATS if device != "cpu" and times[name] and times[name][-1] < SHORT else 1
            measured = _milliseconds(call, device, repeats)
            if i:
                times[name].append(measured)
    return {name: statistics.median(measured) for name, measured in times.items()}


def peak_memory(call, device="cpu"):
    """Return the peak bytes that torch allocates in a call, excluding those allocated before it."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    allocated = peak = 0
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        allocated += event.self_cpu_memory_usage
        peak = max(peak, allocated)
    return peak


def available_memory(device="cpu"):
    """Return the bytes that a call can still use, on the GPU or the machine; infinity if unknown (not on Linux)."""
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), math.inf)


def run_step(function, inputs, gradients):
    """Call a function that returns tensors and, if ``gradients``, compute their gradients for all inputs."""
    with torch.set_grad_enabled(gradients):
        outputs = function()
    if gradients:
        torch.autograd.grad(outputs, list(inputs), [output.detach() for output in outputs], allow_unused=True)


def write_table(rows, path):
    """Write rows (dicts with the same keys) as CSV, and return them as a Markdown table."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return markdown(rows)


def markdown(rows):
    """Format rows (dicts with the same keys) as a Markdown table."""
    return markdown_table(list(rows[0]), [map(_short, row.values()) for row in rows])


def _short(value):
    return value if isinstance(value, str) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _milliseconds(call, device, repeats):
    """Return the milliseconds per call, averaged over ``repeats`` calls on a GPU."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats
