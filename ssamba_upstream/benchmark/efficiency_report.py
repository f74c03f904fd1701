"""Files of the efficiency study: the table, where SSAMBA becomes cheaper, the paper's claim, and a plot."""

import math

import torch
import transformers

from .. import ops
from ..figures import load_pyplot, save_figure
from ..files import write_text
from .efficiency import (
    BATCHES,
    DEPTHS,
    MEMORY_GROWTH,
    MODES,
    MOST_MEMORY,
    MOST_SECONDS,
    TOKENS,
    bench_efficiency,
    build_networks,
)
from .timing import SECONDS_EACH, markdown, write_table

CLAIMED_TOKENS = 22528
CLAIM = "The paper's claim: tiny, 22k tokens, inference on a GPU, 92.7 % less time and 95.4 % less memory than SSAST."
QUANTITIES = {"ms": "time", "MiB": "memory"}


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
