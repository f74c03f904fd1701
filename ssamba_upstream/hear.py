"""HEAR's common API (hearbenchmark.com): ``load_model``, ``get_timestamp_embeddings``, ``get_scene_embeddings``.

    hear-validator ssamba_upstream.hear -m CHECKPOINT
"""

import torch
import torch.nn.functional as F
from torch import nn

from .checkpoint import load_config
from .downloads import find_named
from .frames import FrameEncoder, UpstreamOptions
from .frontend import as_tensor

LONGEST_STRIDE = 5  # fbank frames between timestamps, by default


class HearModel(nn.Module):
    """The encoder with the attributes that HEAR requires of a model.

    Attributes:
        sample_rate: the checkpoint's sampling rate in Hz.
        timestamp_embedding_size, scene_embedding_size: width of a frame, patches in a column x E.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.sample_rate = encoder.sampling_rate
        self.timestamp_embedding_size = self.scene_embedding_size = encoder.width
        # Samples from the start of a column's receptive field to its middle.
        config = encoder.model.config
        self.lead = config.front_end.samples_of(config.patch_size[1]) // 2


def load_model(model_file_path="", time_stride=None):
    """Load a checkpoint.

    Args:
        model_file_path: see :func:`ssamba_upstream.checkpoint.load_model`. Default: the published ``ssamba_tiny``.
        time_stride: fbank frames between timestamps. Default: 5, which with frames of 10 ms is HEAR's suggested maximum
            of 50 ms; if patches are narrower, their width.
    """
    checkpoint = model_file_path or find_named("ssamba_tiny")
    time_stride = time_stride or min(LONGEST_STRIDE, load_config(checkpoint).patch_size[1])
    return HearModel(FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(time_stride=time_stride))).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio, model):
    """Return embeddings over time: the final norm of the last residual stream.

    Args:
        audio: (sounds, samples) in [-1, 1] at the model's sample rate, a tensor or an array.
        model: a model from :func:`load_model`.

    Returns:
        (sounds, timestamps, size) float32, and (sounds, timestamps), the middle of each embedding's receptive field in
        milliseconds: 0, 50, 100, ..., up to the end of the audio.
    """
    audio = as_tensor(audio)
    if audio.dim() != 2:
        raise ValueError(f"audio must be (sounds, samples); got {tuple(audio.shape)}")
    model.eval()
    windowing = model.encoder.windowing
    count = windowing.frames(audio.shape[1])
    frames = model.encoder(list(F.pad(audio, (model.lead, 0)))).last_hidden_state[:, :count]
    step = 1000 * windowing.hop / model.sample_rate
    milliseconds = step * torch.arange(count, dtype=torch.float32, device=audio.device)
    return frames, milliseconds.expand(len(audio), -1)


def get_scene_embeddings(audio, model):
    """Return the mean of :func:`get_timestamp_embeddings` over time, (sounds, size) float32."""
    return get_timestamp_embeddings(audio, model)[0].mean(dim=1)
