"""SsambaForPreTraining: the encoder, two prediction heads, and the losses on masked patches."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from ..devices import send
from ..ops import apply_linear
from .masking import cluster_mask
from .modeling import SsambaModel, SsambaPreTrainedModel, check_one_window, initialise_projection


@dataclass
class SsambaForPreTrainingOutput(ModelOutput):
    """Losses of a pretraining step, as scalars.

    Attributes:
        loss: ``contrastive_weight`` x contrastive loss + ``reconstruction_weight`` x reconstruction loss.
        contrastive_loss: InfoNCE among the masked patches of a clip or of the batch.
        contrastive_accuracy: see :func:`contrastive`; no gradient.
        reconstruction_loss: mean squared error of the masked patches.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    contrastive_accuracy: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None


class SsambaForPreTraining(SsambaPreTrainedModel):
    """SSAMBA with the joint objective of its pretraining (arXiv 2405.11831, section 2.3; SSAST, arXiv 2110.09784).

    Masked patches are replaced by a learned embedding. From the encoder's output, one head predicts a patch to be
    distinguished from the other masked patches, and another head reconstructs it.
    """

    def __init__(self, config):
        super().__init__(config)
        self.ssamba = SsambaModel(config)
        self.mask_embed = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.contrastive_head = PredictionHead(config)
        self.reconstruction_head = PredictionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            nn.init.xavier_normal_(self.mask_embed)
            for head in (self.contrastive_head, self.reconstruction_head):
                initialise_projection(head[0])
                initialise_projection(head[2])

    def forward(self, input_values, mask=None, reconstruction_mask=None, window_lengths=None, streams=None):
        """Compute the losses of clips.

        Args:
            input_values: (batch, frames, mel), normalised log-mel.
            mask: (batch, patches) bool, frequency-major, true for masked patches; equally many in every clip.
                Default: ``config.masked_patches`` in clusters drawn from torch's global generator.
            reconstruction_mask: separate mask for the reconstruction loss, computed in a second pass as in the
                published code. Default: one pass for both losses.
            window_lengths: see :class:`SsambaModel`.
            streams: list to which the residual stream after each block is appended, from the first pass.

        Returns:
            SsambaForPreTrainingOutput of scalars.

        Raises:
            ValueError: If inputs or masks have the wrong shape, clips have unequal numbers of masked patches, or there
                are several windows.
        """
        check_one_window(window_lengths)
        patches = self.patches(input_values)
        if mask is None:
            grid = self.config.num_patch_rows, self.config.columns(input_values.shape[1])
            mask = cluster_mask(len(patches), *grid, self.config.masked_patches, sides=self.config.cluster_sides)
        targets = self.targets(_select(patches, mask))
        hidden = self.masked_tokens(input_values, mask, streams)
        told_apart = self.contrastive_head(hidden), targets
        if self.config.negatives == "batch":
            told_apart = (patches_of_clips.flatten(0, 1).unsqueeze(0) for patches_of_clips in told_apart)
        contrastive_loss, accuracy = contrastive(*told_apart)
        if reconstruction_mask is not None:
            targets = self.targets(_select(patches, reconstruction_mask))
            hidden = self.masked_tokens(input_values, reconstruction_mask)
        reconstruction_loss = F.mse_loss(self.reconstruction_head(hidden).float(), targets)
        return SsambaForPreTrainingOutput(
            loss=(self.config.contrastive_weight * contrastive_loss
                  + self.config.reconstruction_weight * reconstruction_loss),
            contrastive_loss=contrastive_loss,
            contrastive_accuracy=accuracy,
            reconstruction_loss=reconstruction_loss,
        )

    def reconstruct(self, input_values, mask):
        """Map (batch, frames, mel) and a mask to (batch, patches, pixels), with the masked patches reconstructed. If
        targets are normalised, each reconstruction is scaled by its true patch's mean and deviation."""
        patches = self.patches(input_values)
        predictions = self.reconstruction_head(self.masked_tokens(input_values, mask))
        if self.config.normalised_targets:
            mean, deviation = _mean_and_deviation(_select(patches, mask))
            predictions = predictions * deviation + mean
        return patches.masked_scatter(mask.unsqueeze(2), predictions.to(patches.dtype))

    def patches(self, input_values):
        """Map (batch, frames, mel) to raw patches, (batch, patches, pixels), both frequency-major."""
        config = self.config
        stride = (config.frequency_stride, config.time_stride)
        image = input_values.transpose(1, 2).unsqueeze(1)
        return F.unfold(image, tuple(config.patch_size), stride=stride).transpose(1, 2)

    def targets(self, patches):
        """Map masked patches, (..., pixels), to the heads' targets."""
        if not self.config.normalised_targets:
            return patches
        mean, deviation = _mean_and_deviation(patches)
        return (patches - mean) / deviation

    def masked_tokens(self, input_values, mask, streams=None):
        """Return the encoder's output for masked patches, (batch, masked patches, E); see :meth:`SsambaModel.mix`."""
        tokens = self.ssamba.embed(input_values, send(mask, input_values.device), self.mask_embed)
        hidden = self.ssamba.mix(tokens, streams=streams)
        if self.config.final_norm_twice:
            hidden = self.ssamba.norm_f(hidden)
        return _select(hidden[:, 1:], mask)


class PredictionHead(nn.Sequential):
    """A two-layer head that predicts a patch from its token: (..., E) -> (..., pixels)."""

    def __init__(self, config):
        pixels = math.prod(config.patch_size)
        super().__init__(
            nn.Linear(config.hidden_size, config.hidden_size), nn.ReLU(), nn.Linear(config.hidden_size, pixels),
        )

    def forward(self, hidden):
        first, activation, last = self
        return apply_linear(last, activation(apply_linear(first, hidden)))


def contrastive(predictions, targets):
    """Compute InfoNCE within each clip: for each target, a softmax over the clip's predictions (SSAST, equation 1).

    Args:
        predictions, targets: (batch, masked patches, pixels).

    Returns:
        (loss, accuracy): float32 means over all masked patches of the batch, the accuracy without gradient. As in the
        published code, a prediction counts as correct if, of all targets, its own gives it the highest probability.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        scores = targets.float() @ predictions.float().transpose(1, 2)
    own = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
    log_probabilities = scores.log_softmax(dim=2)
    loss = F.nll_loss(log_probabilities.flatten(0, 1), own.flatten())
    return loss, (log_probabilities.detach().argmax(dim=1) == own).float().mean()


def _mean_and_deviation(patches):
    """Return each patch's mean and deviation, (..., 1). Constant patches, such as padding, get a nonzero deviation."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def _select(tokens, mask):
    """Map (batch, patches, width) to (batch, masked patches, width), in patch order.

    The indices of a CPU mask are copied to the GPU asynchronously.
    """
    if mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        raise ValueError(f"a mask must be bool and (batch, patches), here {tuple(tokens.shape[:2])}; got {mask.dtype} "
                         f"and {tuple(mask.shape)}")
    counts = mask.sum(dim=1)
    if (counts != counts[0]).any() or counts[0] == 0:
        raise ValueError(f"every clip needs the same number of masked patches, at least one; got {counts.tolist()}")
    places = send(mask.nonzero()[:, 1].view(len(mask), -1), tokens.device)
    return tokens[torch.arange(len(tokens), device=tokens.device).unsqueeze(1), places]
