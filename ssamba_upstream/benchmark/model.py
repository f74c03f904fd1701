"""``ssamba bench model``: the whole network on the default upstream's windows, and its parts."""

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .. import ops
from ..network.configuration import HIDDEN_SIZES, SsambaConfig
from ..network.mixer import DIRECTIONS
from ..network.modeling import SsambaModel
from .timing import race, run_step

MODEL_INPUTS = ((1, 1), (8, 1), (1, 10), (8, 10))  # utterances, seconds
DOWNSTREAM_STRIDE = 10
REVERSE = (False, True)


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
                medians = race(model_calls(model, fbank, gradients), rounds, device)
                whole, scans = medians["whole"], medians["scans"]
                rows.append({
                    "size": size, "input": f"{utterances} x {seconds} s", "mode": mode, "ms": whole,
                    "ms, torch scan": medians.get("torch scan", ""), "audio s / s": utterances * seconds / whole * 1e3,
                    "scans' share": scans / whole, "rest / products": (whole - scans) / medians["products"],
                })
    return rows


def model_calls(model, fbank, gradients):
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
    torch_scan = {} if gradients else {"torch scan": lambda: run_step(network_with_torch_scan, (), False)}
    return torch_scan | {
        "whole": lambda: run_step(network, parameters, gradients),
        "scans": lambda: [run_step(scan, scan_inputs, gradients) for _ in range(depth)],
        "products": lambda: [run_step(multiply, product_inputs, gradients) for _ in range(depth)],
    }
