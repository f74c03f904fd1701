"""``ssamba bench``: what the scan, the whole network and its pretraining cost, everything side by side in one process.

Machines are noisy, so nothing here is a single time: all candidates of a row run one after the other in every round,
and what is reported is the median over the rounds. Compare within a row.
"""

import csv
import statistics
import tempfile
import time
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from . import ops
from .audio import read_clip
from .configuration import HIDDEN_SIZES, SsambaConfig
from .frontend import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE, LogMel
from .mixer import DIRECTIONS
from .modeling import SsambaModel
from .pretraining.masking import cluster_mask
from .pretraining.objectives import SsambaForPreTraining

SCAN_SHAPES = ((1, 384, 1189), (8, 384, 497), (8, 768, 497))  # batch, channels, length
STATES = 16
LOOPS = ("reference", "transformers")  # over time: their gradients and the profiler's record of them take minutes
MODEL_INPUTS = ((1, 1), (8, 1), (1, 10), (8, 10))  # utterances, seconds
PRETRAINING_CLIPS = 8
DOWNSTREAM_STRIDE = 10
REVERSE = (False, True)
SECONDS_EACH = 20  # a candidate that has taken as long makes no further round: some peers need ten seconds a call


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
            for name, milliseconds in race(calls, rounds, device).items():
                rows.append({
                    "batch x channels x length": " x ".join(map(str, shape)), "mode": mode, "scan": name,
                    "ms": milliseconds, "x bound": milliseconds / bound,
                    "peak MiB": "" if name in LOOPS else peak_memory(calls[name], device) / 2**20,
                })
    return rows


def bench_model(device="cpu", rounds=5, sizes=tuple(HIDDEN_SIZES)):
    """Time the network on the default upstream's windows, and what of that is scan and what matrix product.

    Returns:
        a row (dict) for each size, input and mode ("forward": all hidden states, no gradients; "training step":
        forward and backward): median milliseconds, forward with the plain torch scan as well (whose training step takes
        minutes), seconds of audio per second, the share of the scans with their convolutions, and what else there is
        over the matrix products alone.
    """
    rows = []
    for size in sizes:
        config = SsambaConfig.from_size(size, time_stride=DOWNSTREAM_STRIDE, frequency_stride=DOWNSTREAM_STRIDE)
        model = SsambaModel(config).to(device).eval()
        for utterances, seconds in tqdm(MODEL_INPUTS, desc=size, unit="input"):
            frames = seconds * 100 + config.patch_size[1] - DOWNSTREAM_STRIDE
            fbank = torch.randn(utterances, frames, config.num_mel_bins, device=device)
            for mode, gradients in (("forward", False), ("training step", True)):
                medians = race(_model_calls(model, fbank, gradients), rounds, device)
                whole, scans = medians["whole"], medians["scans"]
                rows.append({
                    "size": size, "input": f"{utterances} x {seconds} s", "mode": mode, "ms": whole,
                    "ms, torch scan": medians.get("torch scan", ""), "audio s / s": utterances * seconds / whole * 1e3,
                    "scans' share": scans / whole, "rest / products": (whole - scans) / medians["products"],
                })
    return rows


def bench_pretraining(device="cpu", rounds=5, sizes=tuple(HIDDEN_SIZES)):
    """Time pretraining's forward and backward passes on clips of 10.24 s, float32, and what they and their input cost.

    Returns:
        a row (dict) for each size and objective: median milliseconds of a batch's passes, clips per second, peak MiB
        that torch allocates meanwhile; and over those milliseconds, as shares: the scans with their convolutions, the
        matrix products, log-mel from waveforms, and reading the clips from 16 kHz WAV files in one process. The last
        two are not part of the passes; reading goes on in other processes.
    """
    rows = []
    for size in tqdm(sizes, desc="pretraining", unit="size"):
        model = SsambaForPreTraining(SsambaConfig.from_size(size)).to(device).train()
        config, log_mel = model.config, LogMel().to(device)
        samples = (config.pretraining_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
        waveforms = torch.rand(PRETRAINING_CLIPS, samples, device=device) - 0.5
        fbank = torch.stack(log_mel(list(waveforms)))
        masks = cluster_mask(2 * len(fbank), *config.position_grid, config.masked_patches).to(device).chunk(2)
        parameters = list(model.parameters())

        def step(masks):
            return lambda: _step(lambda: [model(fbank, *masks).loss], parameters, True)

        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            soundfile.write(file.name, waveforms[0].cpu().numpy(), SAMPLE_RATE)
            parts = _model_calls(model.ssamba, fbank, True)
            calls = {
                "shared_mask": step(masks[:1]), "two_pass": step(masks), "scans": parts["scans"],
                "products": parts["products"], "log-mel": lambda: log_mel(list(waveforms)),
                "reading": lambda: [read_clip(file.name, samples, "centre") for _ in fbank],
            }
            medians = race(calls, rounds, device)
        for passes, objective in enumerate(("shared_mask", "two_pass"), start=1):
            whole = medians[objective]
            rows.append({
                "size": size, "objective": objective, "ms": whole, "clips / s": len(fbank) / whole * 1e3,
                "peak MiB": peak_memory(calls[objective], device) / 2**20, "scans": passes * medians["scans"] / whole,
                "products": passes * medians["products"] / whole, "log-mel": medians["log-mel"] / whole,
                "reading": medians["reading"] / whole,
            })
    return rows


def race(calls, rounds, device="cpu"):
    """name -> median milliseconds of each call; every round makes each call once, after a first that is not counted.
    Calls that have taken SECONDS_EACH make no further round."""
    times = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            if sum(times[name]) > SECONDS_EACH * 1e3:
                continue
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if i:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(measured) for name, measured in times.items()}


def peak_memory(call, device="cpu"):
    """Bytes that torch allocates in a call at the most, beyond what is there before it."""
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


def measure_machine(device="cpu"):
    """This machine's rates from short trials, all its threads together: powers of two per second of numbers that lie in
    a cache, floating-point operations per second in a matrix product, bytes per second in a large copy."""
    small, large = torch.rand(1 << 16, device=device) - 1, torch.empty(1 << 26, device=device)
    powers, matrix = torch.empty_like(small), torch.randn(2048, 2048, device=device)
    power = ops.cpu.exponential2 if device == "cpu" and not ops.cpu.unavailable_reason() else torch.exp2
    calls = {
        "powers": lambda: [power(small, out=powers) for _ in range(16)], "copy": large.clone, "product": lambda: matrix @ matrix,
    }
    seconds = {name: milliseconds / 1e3 for name, milliseconds in race(calls, 7, device).items()}
    threads = torch.get_num_threads() if device == "cpu" else 1  # so few numbers keep one thread busy
    return {
        "powers": threads * 16 * small.numel() / seconds["powers"],
        "operations": 2 * len(matrix) ** 3 / seconds["product"],
        "bytes": 2 * 4 * large.numel() / seconds["copy"],
    }


def write_table(rows, path):
    """Write rows as CSV, and return them as a Markdown table."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_short(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(value):
    return value if isinstance(value, str) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


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
    return lambda: _step(lambda: [scan(**inputs)], inputs.values(), gradients)


def _model_calls(model, fbank, gradients):
    """The whole network; the same with the plain torch scan; its scans and convolutions, and its products, alone."""
    mixer = model.layers[0].mixer
    tokens = torch.randn(len(fbank), model.config.tokens(fbank.shape[1]), model.config.hidden_size, device=fbank.device)
    with torch.no_grad():
        channels_and_gate = mixer.in_proj(tokens)
        channels = channels_and_gate[..., : model.config.intermediate_size].contiguous()
        ranks = torch.randn(*tokens.shape[:2], model.config.time_step_rank, device=fbank.device)
        scans = [mixer.scan_arguments(channels.transpose(1, 2), *direction) for direction in zip(DIRECTIONS, REVERSE)]
    products = [(tokens, mixer.in_proj), (channels, mixer.out_proj), (channels, mixer.x_proj),
                (channels, mixer.x_proj_b), (ranks, mixer.dt_proj), (ranks, mixer.dt_proj_b)]
    for tensor in (channels_and_gate, tokens, channels, ranks, *(t for scan in scans for t in scan.values())):
        if isinstance(tensor, torch.Tensor):
            tensor.requires_grad_(gradients)

    def network():
        return model(fbank, output_hidden_states=True).hidden_states

    def network_with_torch_scan():
        with ops.forced_backend("torch"):
            return network()

    def scan():
        x, z = channels_and_gate.transpose(1, 2).chunk(2, dim=1)
        return [*mixer.convolve(x, REVERSE), ops.selective_scan_mean(scans, z, delta_softplus=True)]

    def multiply():
        return [F.linear(x, projection.weight) for x, projection in products]

    depth = model.config.num_hidden_layers
    parameters = list(model.parameters())
    scan_inputs = [channels_and_gate, *(t for scan in scans for t in scan.values() if isinstance(t, torch.Tensor))]
    product_inputs = [tensor for x, projection in products for tensor in (x, projection.weight)]
    torch_scan = {} if gradients else {"torch scan": lambda: _step(network_with_torch_scan, (), False)}
    return torch_scan | {
        "whole": lambda: _step(network, parameters, gradients),
        "scans": lambda: [_step(scan, scan_inputs, gradients) for _ in range(depth)],
        "products": lambda: [_step(multiply, product_inputs, gradients) for _ in range(depth)],
    }


def _step(function, inputs, gradients):
    """Call a function that returns tensors, and, if asked, find their gradients for all inputs."""
    with torch.set_grad_enabled(gradients):
        outputs = function()
    if gradients:
        torch.autograd.grad(outputs, list(inputs), [output.detach() for output in outputs], allow_unused=True)


def _wait(device):
    if device != "cpu":
        torch.cuda.synchronize()
