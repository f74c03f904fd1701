"""A picture of a recording as a pretrained network sees it: log-mel, masked log-mel and reconstruction."""

import torch
import torch.nn.functional as F

from ..audio import read_clip
from ..figures import load_pyplot, save_figure
from ..frontend import LogMel
from ..network.masking import cluster_mask


@torch.no_grad()
def show_masks(model, recording, out, seed=0):
    """Draw a recording's log-mel, the log-mel with masked patches left blank, and the network's reconstruction of the
    masked patches.

    Args:
        model: a SsambaForPreTraining.
        recording: path of an audio file; if it is longer than a pretraining clip, the middle is used.
        out: path of the picture, .png, .pdf or .svg.
        seed: seed of the mask.

    Returns:
        the reconstruction's mean squared error on the masked patches of the normalised log-mel.

    Raises:
        AudioError: If the recording cannot be read.
        ValueError: If the recording is shorter than a patch.
    """
    pyplot = load_pyplot()
    config = model.config
    front_end = config.front_end
    clip = read_clip(recording, front_end.samples_of(config.pretraining_frames), "centre",
                     sampling_rate=front_end.sampling_rate)
    fbank, = LogMel(front_end)([clip])
    columns = len(fbank) // config.patch_size[1]
    if not columns:
        raise ValueError(f"{recording} is shorter than a patch of {config.patch_size[1]} frames")
    fbank = fbank[: columns * config.patch_size[1]].unsqueeze(0)
    rows = config.num_patch_rows
    masked = round(config.masked_patches * columns / config.position_grid[1])
    mask = cluster_mask(1, rows, columns, masked, torch.Generator().manual_seed(seed), sides=config.cluster_sides)
    patches, found = model.patches(fbank), model.reconstruct(fbank, mask)
    pictures = {
        "log-mel": patches,
        f"{masked} of {rows * columns} patches masked": patches.masked_fill(mask.unsqueeze(2), torch.nan),
        "reconstruction of the masked patches": found,
    }
    figure, axes = pyplot.subplots(len(pictures), sharex=True, figsize=(10, 7), layout="constrained")
    low, high = patches.min().item(), patches.max().item()
    for axis, (title, picture) in zip(axes, pictures.items()):
        size = tuple(config.patch_size)
        image = F.fold(picture.transpose(1, 2), fbank.shape[:0:-1], size, stride=size)
        axis.imshow(image[0, 0].numpy(), origin="lower", aspect="auto", vmin=low, vmax=high,
                    extent=(0, front_end.seconds_of(fbank.shape[1]), 0, config.num_mel_bins))
        axis.set(title=title, ylabel="mel band")
    axes[-1].set_xlabel("seconds")
    save_figure(figure, out)
    return F.mse_loss(found[mask], patches[mask]).item()
