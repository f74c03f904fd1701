"""``ssamba bench pretraining``: the cost of pretraining's passes and of their input."""

import tempfile

import soundfile
import torch
from tqdm import tqdm

from ..audio import read_clip
from ..frontend import LogMel
from ..network.configuration import HIDDEN_SIZES, SsambaConfig
from ..network.masking import cluster_mask
from ..network.pretraining import SsambaForPreTraining
from .model import model_calls
from .timing import median_times, peak_memory, run_step

PRETRAINING_CLIPS = 8


def bench_pretraining(device="cpu", rounds=5, sizes=tuple(HIDDEN_SIZES)):
    """Time pretraining's forward and backward passes on clips of 10.24 s in float32, their parts and their input.

    Returns:
        a row (dict) for each size and objective: median milliseconds of a batch's passes, clips per second, and the
        peak MiB that torch allocates. Shares of those milliseconds: everything between the mixers' outer projections
        (convolutions, small projections, scans), these projections, log-mel from waveforms, and reading the clips from
        16 kHz WAV files in one process. The last two are not part of the passes; other processes do the reading.
    """
    rows = []
    for size in tqdm(sizes, desc="pretraining", unit="size"):
        model = SsambaForPreTraining(SsambaConfig.from_size(size)).to(device).train()
        config, log_mel = model.config, LogMel(model.config.front_end).to(device)
        samples, rate = config.front_end.samples_of(config.pretraining_frames), config.sampling_rate
        waveforms = torch.rand(PRETRAINING_CLIPS, samples, device=device) - 0.5
        fbank = torch.stack(log_mel(list(waveforms)))
        masks = cluster_mask(2 * len(fbank), *config.position_grid, config.masked_patches,
                             sides=config.cluster_sides).to(device).chunk(2)
        parameters = list(model.parameters())

        def step(masks):
            return lambda: run_step(lambda: [model(fbank, *masks).loss], parameters, True)

        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            soundfile.write(file.name, waveforms[0].cpu().numpy(), rate)
            parts = model_calls(model.ssamba, fbank, True)
            calls = {
                "shared_mask": step(masks[:1]), "two_pass": step(masks), "mixing": parts["mixing"],
                "products": parts["products"], "log-mel": lambda: log_mel(list(waveforms)),
                "reading": lambda: [read_clip(file.name, samples, "centre", sampling_rate=rate) for _ in fbank],
            }
            medians = median_times(calls, rounds, device)
        for passes, objective in enumerate(("shared_mask", "two_pass"), start=1):
            whole = medians[objective]
            rows.append({
                "size": size, "objective": objective, "ms": whole, "clips / s": len(fbank) / whole * 1e3,
                "peak MiB": peak_memory(calls[objective], device) / 2**20, "mixing": passes * medians["mixing"] / whole,
                "products": passes * medians["products"] / whole, "log-mel": medians["log-mel"] / whole,
                "reading": medians["reading"] / whole,
            })
    return rows
