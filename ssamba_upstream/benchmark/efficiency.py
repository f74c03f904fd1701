"""``ssamba bench efficiency``: SSAMBA compared with SSAST of the same size, over the number of tokens.

SSAST (arXiv 2110.09784) is a vision transformer with 12 blocks, heads of size 64, and two tokens in addition to the
patches. It runs twice, as transformers' AST with random weights: "SSAST" with torch's fused attention, the usual choice
today, and "SSAST eager" with an explicit attention matrix, as in the published code, with which SSAMBA's paper (arXiv
2405.11831) compares. All networks read the same log-mel, in non-overlapping patches of 16 x 16, and have a learned
position for each patch. SSAST's linear products are torch's own. If SSAMBA's are oneDNN's, see
:mod:`ssamba_upstream.ops.product`, SSAMBA_LINEAR=torch gives both the same ones. Everything is float32; torch's setting
for TF32 on a GPU is left unchanged.
"""

import textwrap

import torch
from tqdm import tqdm
from transformers import ASTConfig, AutoModel

from ..network.configuration import HIDDEN_SIZES, SsambaConfig
from ..network.modeling import SsambaModel
from .timing import available_memory, median_times, peak_memory, run_step

TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384, 22528, 32768, 65536)
BATCHES = (1, 4)
MODES = {"inference": False, "training step": True}  # with gradients?
DEPTHS = (24, 12)  # blocks of SSAMBA and of SSAST, of all sizes
HEAD_SIZE = 64
MEL_BINS = 128
PATCH = 16
# Peak memory grows at most with this power of the number of tokens.
MEMORY_GROWTH = {"SSAMBA": 1, "SSAST": 1, "SSAST eager": 2}
MOST_MEMORY = 0.9  # of the available memory: torch does not track all of a call's allocations
MOST_SECONDS = 120


def build_networks(size, tokens, depths=DEPTHS):
    """Return the networks by name, with random weights, for a number of patches; depths: blocks of SSAMBA and SSAST."""
    frames = _frames(tokens)
    ssamba = SsambaConfig.from_size(
        size, num_hidden_layers=depths[0], num_mel_bins=MEL_BINS, pretraining_frames=frames,
        patch_size=(PATCH, PATCH),
    )
    return {
        "SSAMBA": SsambaModel(ssamba), "SSAST": _build_ssast(HIDDEN_SIZES[size], frames, depths[1], "sdpa"),
        "SSAST eager": _build_ssast(HIDDEN_SIZES[size], frames, depths[1], "eager"),
    }


def _build_ssast(width, frames, depth, attention):
    config = ASTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // HEAD_SIZE,
        intermediate_size=4 * width, num_mel_bins=MEL_BINS, max_length=frames, patch_size=PATCH,
        frequency_stride=PATCH, time_stride=PATCH,
    )
    return AutoModel.from_config(config, attn_implementation=attention)


def bench_efficiency(device="cpu", rounds=5, size="tiny", tokens=TOKENS, depths=DEPTHS):
    """Measure the time and peak memory of all networks, side by side, for increasing numbers of tokens.

    A network is skipped once its memory, extrapolated from fewer tokens, would exceed MOST_MEMORY of the available
    memory, once it fails, or once a call takes longer than MOST_SECONDS. The first number of tokens is always tried.
    Memory is measured in the first call of each network, which is not timed.

    Args:
        tokens: numbers of patches; an input also has one or two class tokens.
        depths: number of blocks in SSAMBA and in SSAST.

    Yields:
        a row (dict) for each number of tokens, batch size and mode ("inference": no gradients; "training step":
        forward and backward, no optimiser). For each network it has the median milliseconds and the peak MiB that torch
        allocates in a call, excluding weights and input, each "" if skipped; and which networks were skipped, and why.

    Raises:
        ValueError: If a number of tokens is not a whole number of patch columns.
    """
    series = {}
    tokens = sorted(set(tokens))
    for count in tokens:
        _frames(count)
    with tqdm(total=len(tokens) * len(BATCHES) * len(MODES), desc=f"efficiency, {size}", unit="row") as bar:
        for count in tokens:
            with torch.device(device):
                networks = build_networks(size, count, depths)
            for batch in BATCHES:
                fbank = torch.randn(batch, _frames(count), MEL_BINS, device=device)
                for mode, gradients in MODES.items():
                    calls = {name: _call(network, fbank, gradients) for name, network in networks.items()}
                    known = series.setdefault((batch, mode), {name: _Series(name) for name in networks})
                    row = _measure_row(calls, known, count, rounds, device)
                    yield {"mode": mode, "batch": batch, "tokens": count} | row
                    bar.update()


class _Series:
    """Measurements of one network with fewer tokens, and the reason why it is skipped, if any."""

    def __init__(self, network):
        self.growth = MEMORY_GROWTH[network]
        self.tokens = self.peak = 0
        self.reason = None

    def check_memory(self, tokens, available):
        """Skip the network if this many tokens might not fit into the available bytes."""
        expected = self.peak * (tokens / self.tokens) ** self.growth if self.tokens else 0
        if self.reason is None and expected > MOST_MEMORY * available:
            self.reason = f"up to {expected / 2**30:.1f} GiB expected, {available / 2**30:.1f} available"

    def add(self, tokens, milliseconds, peak):
        self.tokens, self.peak = tokens, peak
        if milliseconds > MOST_SECONDS * 1e3:
            self.reason = f"a call took {milliseconds / 1e3:.0f} s at {tokens} tokens"


def _measure_row(calls, series, tokens, rounds, device):
    available = available_memory(device)
    for known in series.values():
        known.check_memory(tokens, available)
    left_out = {name: known.reason for name, known in series.items() if known.reason}
    remaining = {name: call for name, call in calls.items() if name not in left_out}
    measured, failures = _measure(remaining, rounds, device)
    for name, reason in failures.items():
        series[name].reason = left_out[name] = reason
    for name, result in measured.items():
        series[name].add(tokens, *result)
    row = {f"{name} ms": measured[name][0] if name in measured else "" for name in calls}
    row |= {f"{name} MiB": measured[name][1] / 2**20 if name in measured else "" for name in calls}
    return row | {"left out": "; ".join(f"{name}: {reason}" for name, reason in left_out.items())}


def _measure(calls, rounds, device):
    """Return name -> (median milliseconds, peak bytes) and name -> failure; one failure does not affect the others."""
    failures = {}

    def guarded(name):
        def call():
            if name not in failures:
                try:
                    calls[name]()
                except (RuntimeError, MemoryError) as error:  # raised by torch when it runs out of memory
                    failures[name] = textwrap.shorten(f"{type(error).__name__}: {error}", 120)

        return call

    attempts = {name: guarded(name) for name in calls}
    if device != "cpu":
        for attempt in attempts.values():
            attempt()  # CUDA's libraries keep memory from their first call, which must not count for a network
    peaks = {name: peak_memory(attempt, device) for name, attempt in attempts.items()}
    medians = median_times(attempts, rounds, device, warm=True)
    return {name: (medians[name], peaks[name]) for name in calls if name not in failures}, failures


def _call(network, fbank, gradients):
    parameters = list(network.parameters())

    def call():
        network.train(gradients)
        run_step(lambda: [network(fbank).last_hidden_state], parameters, gradients)

    return call


def _frames(tokens):
    """Return the number of fbank frames for a number of patches."""
    rows = MEL_BINS // PATCH
    if tokens < rows or tokens % rows:
        raise ValueError(f"{tokens} tokens: expected a multiple of {rows}, the number of patches in a column")
    return tokens // rows * PATCH
