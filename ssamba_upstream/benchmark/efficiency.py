"""``ssamba bench efficiency``: SSAMBA compared with SSAST of the same size, over the number of tokens.

SSAST (arXiv 2110.09784) is a vision transformer with 12 blocks, heads of size 64, and two tokens in addition to the
patches. It runs twice, as transformers' AST with random weights: "SSAST" with torch's fused attention, the usual choice
today, and "SSAST eager" with an explicit attention matrix, as in the published code, with which SSAMBA's paper (arXiv
2405.11831) compares. All networks read the same log-mel, in non-overlapping patches of 16 x 16, and have a learned
position for each patch. SSAST's linear products are torch's own. If SSAMBA's are oneDNN's, see
:mod:`ssamba_upstream.ops.product`, SSAMBA_LINEAR=torch gives both the same ones. Everything is float32; torch's setting
for TF32 on a GPU is left unchanged.
"""

import math
import textwrap

import torch
import transformers
from tqdm import tqdm
from transformers import ASTConfig, AutoModel

from .. import ops
from ..figures import load_pyplot, save_figure
from ..files import write_text
from ..network.configuration import HIDDEN_SIZES, SsambaConfig
from ..network.modeling import SsambaModel
from .timing import SECONDS_EACH, available_memory, markdown, median_times, peak_memory, run_step, write_table

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
CLAIMED_TOKENS = 22528
CLAIM = "The paper's claim: tiny, 22k tokens, inference on a GPU, 92.7 % less time and 95.4 % less memory than SSAST."
QUANTITIES = {"ms": "time", "MiB": "memory"}


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
    skipped = {name: known.reason for name, known in series.items() if known.reason}
    remaining = {name: call for name, call in calls.items() if name not in skipped}
    measured, failures = _measure(remaining, rounds, device)
    for name, reason in failures.items():
        series[name].reason = skipped[name] = reason
    for name, result in measured.items():
        series[name].add(tokens, *result)
    row = {f"{name} ms": measured[name][0] if name in measured else "" for name in calls}
    row |= {f"{name} MiB": measured[name][1] / 2**20 if name in measured else "" for name in calls}
    return row | {"skipped": "; ".join(f"{name}: {reason}" for name, reason in skipped.items())}


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


def write_study(out, device="cpu", rounds=5, size="tiny", tokens=TOKENS, depths=DEPTHS):
    """Run :func:`bench_efficiency` and write ``efficiency_SIZE.csv`` after each row; at the end, or if interrupted,
    write ``efficiency_SIZE.md`` and ``efficiency_SIZE.png``.

    Args:
        out: a folder (pathlib.Path), created if it does not exist.

    Returns:
        the Markdown.
    """
    load_pyplot()  # so that a missing matplotlib fails at the start, not after hours

    rows, path = [], out / f"efficiency_{size}"
    try:
        for row in bench_efficiency(device, rounds, size, tokens, depths):
            rows.append(row)
            write_table(rows, path.with_suffix(".csv"))
    finally:
        if rows:
            text = "\n\n".join([
                f"# SSAMBA and SSAST, {size}", _conditions(device, rounds, size), markdown(rows),
                "Number of tokens from which SSAMBA takes less, interpolated between measurements:",
                markdown(crossovers(rows)),
                f"{CLAIM} Measured, {size}, {CLAIMED_TOKENS} tokens, inference on {device}, SSAMBA takes:",
                compare_claim(rows),
            ]) + "\n"
            write_text(text, path.with_suffix(".md"))
            draw(rows, size, path.with_suffix(".png"))
    return text


def crossover(tokens, ours, theirs):
    """Return the number of tokens from which ``ours`` is less than ``theirs``.

    Args:
        tokens, ours, theirs: lists of the same length, tokens ascending.

    Returns:
        the number of tokens where the ratio finally passes 1, interpolated on the log scale between two measurements;
        the first number of tokens if ours is always less; None if ours is not less at the last.
    """
    ratios = [math.log(our / their) for our, their in zip(ours, theirs)]
    last = next((i for i in reversed(range(len(ratios))) if ratios[i] >= 0), None)
    if last is None:
        return tokens[0] if tokens else None
    if last == len(ratios) - 1:
        return None
    (left, right), (above, below) = map(math.log, tokens[last : last + 2]), ratios[last : last + 2]
    return math.exp(left + (right - left) * above / (above - below))


def crossovers(rows):
    """Return a row (dict) for each mode, batch size and peer: where SSAMBA takes less time and less memory."""
    return [
        {"mode": mode, "batch": batch, "against": peer} | {
            quantity: _crossover_text(_of(rows, mode, batch), peer, unit) for unit, quantity in QUANTITIES.items()
        }
        for mode in MODES for batch in BATCHES for peer in _networks(rows)[1:]
    ]


def _crossover_text(rows, peer, unit):
    ours, theirs = f"SSAMBA {unit}", f"{peer} {unit}"
    rows = [row for row in rows if row[ours] != "" and row[theirs] != ""]
    if not rows:
        return "not measured"
    tokens = [row["tokens"] for row in rows]
    found = crossover(tokens, [row[ours] for row in rows], [row[theirs] for row in rows])
    if found is None:
        return f"none up to {tokens[-1]}"
    return f"{found:.0f}" if found > tokens[0] else f"{tokens[0]}, the fewest measured"


def compare_claim(rows):
    """Return SSAMBA's savings at the paper's number of tokens as Markdown, for each batch size and peer."""
    lines = []
    for batch in BATCHES:
        row = next((row for row in _of(rows, "inference", batch) if row["tokens"] == CLAIMED_TOKENS), {})
        for peer in _networks(rows)[1:]:
            saved = [_saving(row.get(f"SSAMBA {unit}", ""), row.get(f"{peer} {unit}", ""), quantity)
                     for unit, quantity in QUANTITIES.items()]
            lines.append(f"- batch {batch}: {' and '.join(saved)} than {peer}" if all(saved) else
                         f"- batch {batch}, against {peer}: not measured")
    return "\n".join(lines)


def _saving(ours, theirs, quantity):
    if ours == "" or theirs == "":
        return None
    percent = 100 * (1 - ours / theirs)
    return f"{abs(percent):.1f} % {'less' if percent >= 0 else 'more'} {quantity}"


def _conditions(device, rounds, size):
    with torch.device("meta"):
        networks = build_networks(size, 512)
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    backend = ops.choose_backend(torch.empty(0, device=device))
    return f"""\
{machine}; torch {torch.__version__}, transformers {transformers.__version__}; scan backend {backend!r}; float32.
SSAMBA's linear products use {ops.product.choice()[0]}, the others' use torch.
Times are medians of {rounds} rounds, fewer if they take more than {SECONDS_EACH} s. Memory is torch's peak allocation
in a call. At 512 tokens SSAMBA has {parameters['SSAMBA']:,} parameters, SSAST {parameters['SSAST']:,}. "SSAST" uses
torch's fused attention; "SSAST eager" computes the attention matrix explicitly, like the published code. A network is
skipped once it has failed or was expected to take more than {MOST_MEMORY:.0%} of the available memory, and after a
call of more than {MOST_SECONDS} s."""


def draw(rows, size, path):
    """Draw time and memory over tokens, a line for each network and batch size, as a PNG."""
    figure, axes = load_pyplot().subplots(
        len(MODES), len(QUANTITIES), sharex=True, figsize=(11, 8), layout="constrained",
    )
    for mode, pair in zip(MODES, axes):
        for (unit, quantity), axis in zip(QUANTITIES.items(), pair):
            for batch, style in zip(BATCHES, ("o-", "s--")):
                measured = _of(rows, mode, batch)
                for number, network in enumerate(_networks(rows)):
                    values = [row[f"{network} {unit}"] for row in measured]
                    axis.loglog(
                        [row["tokens"] for row in measured], [math.nan if value == "" else value for value in values],
                        style, color=f"C{number}", markersize=4, label=f"{network}, batch {batch}",
                    )
            axis.set(title=f"{mode}: {quantity}", ylabel=unit)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("tokens")
    axes[0, 0].legend(fontsize="small")
    figure.suptitle(f"SSAMBA and SSAST, {size}")
    save_figure(figure, path)


def _networks(rows):
    """Return the measured networks, SSAMBA first."""
    return [network for network in MEMORY_GROWTH if f"{network} ms" in rows[0]]


def _of(rows, mode, batch):
    return [row for row in rows if (row["mode"], row["batch"]) == (mode, batch)]
