"""``ssamba bench model``: the whole network on the default upstream's windows, its parts, and pushes to a stream."""

import functools

import torch
from tqdm import tqdm

from .. import ops
from ..frames import FrameEncoder
from ..network.configuration import HIDDEN_SIZES, SsambaConfig
from ..network.modeling import SsambaModel
from .timing import median_times, peak_memory, run_step

MODEL_INPUTS = ((1, 1), (8, 1), (1, 10), (8, 10))  # utterances, seconds
MODES = {"forward": (False, False), "forward, bfloat16": (False, True), "training step": (True, False)}
DOWNSTREAM_STRIDE = 10
STREAM = {"num_hidden_layers": 12, "patch_size": (128, 8), "token_order": "time_major", "directions": "forward"}


def bench_model(device="cpu", rounds=5, sizes=tuple(HIDDEN_SIZES)):
    """Time the network on the default upstream's windows, and the parts in and between the outer projections.

    Returns:
        a row (dict) for each size, input and mode ("forward": all hidden states, no gradients; "forward, bfloat16":
        forward under autocast; "training step": forward and backward): median milliseconds, for "forward" also with the
        plain torch scan; seconds of audio per second; the share of everything between the mixers' outer projections
        (convolutions, small projections, scans); the remaining time divided by that of the outer projections alone; and
        the peak MiB that torch allocates. The last row of a size ("push") is a causal network of 12 blocks that
        processes a stream of samples in chunks of one hop.
    """
    rows = []
    for size in sizes:
        config = SsambaConfig.from_size(size, time_stride=DOWNSTREAM_STRIDE, frequency_stride=DOWNSTREAM_STRIDE)
        model = SsambaModel(config).to(device).eval()
        for utterances, seconds in tqdm(MODEL_INPUTS, desc=size, unit="input"):
            frames = config.front_end.frames_in(seconds) + config.patch_size[1] - DOWNSTREAM_STRIDE
            fbank = torch.randn(utterances, frames, config.num_mel_bins, device=device)
            for mode, (gradients, bfloat16) in MODES.items():
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
                    calls = model_calls(model, fbank, gradients)
                    if mode == "forward":
                        calls |= {"torch scan": _with_torch_scan(calls["whole"])}
                    medians = median_times(calls, rounds, device)
                    peak = peak_memory(calls["whole"], device)
                whole, mixing = medians["whole"], medians["mixing"]
                rows.append({
                    "size": size, "input": f"{utterances} x {seconds} s", "mode": mode, "ms": whole,
                    "ms, torch scan": medians.get("torch scan", ""),
                    "audio s / s": utterances * seconds / whole * 1e3, "mixing's share": mixing / whole,
                    "rest / products": (whole - mixing) / medians["products"], "peak MiB": peak / 2**20,
                })
        encoder = FrameEncoder(SsambaModel(SsambaConfig.from_size(size, **STREAM))).to(device).eval()
        push = functools.partial(encoder.stream().push, 0.1 * torch.randn(encoder.windowing.hop))
        whole = median_times({"push": push}, 20 * rounds, device)["push"]
        rows.append({**dict.fromkeys(rows[0], ""), "size": size, "input": "1 x 0.08 s", "mode": "push", "ms": whole,
                     "audio s / s": 80 / whole, "peak MiB": peak_memory(push, device) / 2**20})
    return rows


def model_calls(model, fbank, gradients):
    """Return calls for the whole network, for the part between its mixers' outer projections, and for these alone."""
    mixer = model.layers[0].mixer
    tokens = torch.randn(len(fbank), model.config.tokens(fbank.shape[1]), model.config.hidden_size, device=fbank.device)
    with torch.no_grad():
        channels_and_gate = ops.apply_linear(mixer.in_proj, tokens)
    channels = channels_and_gate[..., : model.config.intermediate_size].contiguous()
    for tensor in (channels_and_gate, tokens, channels):
        tensor.requires_grad_(gradients)
    directions = mixer.directions()
    outer = {mixer.in_proj: tokens, mixer.out_proj: channels}
    inner = [parameter for name, parameter in mixer.named_parameters() if not name.startswith(("in_proj", "out_proj"))]

    def network():
        return model(fbank, output_hidden_states=True).hidden_states

    def mix():
        return [ops.mix(channels_and_gate, directions)]

    def multiply():
        return [ops.apply_linear(projection, x) for projection, x in outer.items()]

    depth = model.config.num_hidden_layers
    product_inputs = [*outer.values(), *(projection.weight for projection in outer)]
    return {
        "whole": lambda: run_step(network, list(model.parameters()), gradients),
        "mixing": lambda: [run_step(mix, [channels_and_gate, *inner], gradients) for _ in range(depth)],
        "products": lambda: [run_step(multiply, product_inputs, gradients) for _ in range(depth)],
    }


def _with_torch_scan(whole):
    """Return the call of the whole network with the plain torch scan."""

    def call():
        with ops.forced_backend("torch"):
            whole()

    return call
