"""``ssamba bench efficiency``: SSAMBA against SSAST of the same size, over the number of tokens.

SSAST (arXiv 2110.09784) is a vision transformer: 12 blocks, heads of 64, and two tokens beside the patches.
It runs twice, as transformers' AST with random weights: "SSAST" with torch's fused attention, as one would run it
today, and "SSAST eager" with the attention matrix written out, as in the published code, which SSAMBA's paper (arXiv
2405.11831) compared with. All networks read the same log-mel, cut into patches of 16 x 16 that do not overlap, and have
a learned position for each patch. SSAST's linear products are torch's own. Where SSAMBA's are oneDNN's, see
:mod:`ssamba_upstream.ops.product`, SSAMBA_LINEAR=torch gives both the same ones. Everything is float32; whether a GPU
may use TF32 is left as torch sets it.
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
# The power of the tokens that no peak outgrows.
MEMORY_GROWTH = {"SSAMBA": 1, "SSAST": 1, "SSAST eager": 2}
MOST_MEMORY = 0.9  # of what is available: not all that a call takes passes through torch
MOST_SECONDS = 120


def build_networks(size, tokens, depths=DEPTHS):
    """name -> network with random weights for so many patches; depths: blocks of SSAMBA and of SSAST."""
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
    """Measure time and peak memory of all networks, side by side, from few tokens to many.

    A network is left out where its memory, extrapolated from fewer tokens, would exceed MOST_MEMORY of what is
    available, where it failed, and after a call that took longer than MOST_SECONDS; and from there on. The first
    number of tokens is tried in any case. The first call of each network, which is not timed, tells its memory.

    Args:
        tokens: numbers of patches; an input has one or two tokens more, of a class.
        depths: blocks of SSAMBA and of SSAST.

    Yields:
        a row (dict) for each number of tokens, batch size and mode ("inference": no gradients; "training step":
        forward and backward, no optimiser): of each network the median milliseconds and the peak MiB that torch
        allocates in a call, beyond weights and input, each "" where it was left out; and who was left out, and
        why.

    Raises:
        ValueError: a number of tokens that is no whole number of patch columns.
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
    """What is known of one network from fewer tokens, and why it is left out, if it is."""

    def __init__(self, network):
        self.growth = MEMORY_GROWTH[network]
        self.tokens = self.peak = 0
        self.reason = None

    def check_memory(self, tokens, available):
        """Leave the network out if so many tokens might not fit into so many bytes."""
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
    """name -> (median milliseconds, peak bytes), and name -> how it failed; a failure of one leaves the others."""
    failures = {}

    def guarded(name):
        def call():
            if name not in failures:
                try:
                    calls[name]()
                except (RuntimeError, MemoryError) as error:  # which torch raises when it is out of memory
                    failures[name] = textwrap.shorten(f"{type(error).__name__}: {error}", 120)

        return call

    attempts = {name: guarded(name) for name in calls}
    if device != "cpu":
        for attempt in attempts.values():
            attempt()  # CUDA's libraries keep what they allocate in their first call, which is no network's
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
    """Fbank frames of so many patches."""
    rows = MEL_BINS // PATCH
    if tokens < rows or tokens % rows:
        raise ValueError(f"{tokens} tokens: expected a multiple of {rows}, the patches in a column")
    return tokens // rows * PATCH
