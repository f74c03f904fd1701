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
    """The encoder with the attributes that HEAR asks of a model.

    Attributes:
        sample_rate: of the audio taken, the checkpoint's, in Hz.
        timestamp_embedding_size, scene_embedding_size: width of a frame, patches in a column x E.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.sample_rate = encoder.sampling_rate
        self.timestamp_embedding_size = self.scene_embedding_size = encoder.width
        # From the first sample that a column of patches reads to its middle.
        config = encoder.model.config
        self.lead = config.front_end.samples_of(config.patch_size[1]) // 2


def load_model(model_file_path="", time_stride=None):
    """Load a checkpoint.

    Args:
        model_file_path: see :func:`ssamba_upstream.checkpoint.load_model`. Default: the published ``ssamba_tiny``.
        time_stride: fbank frames between timestamps. Default: 5, with frames of 10 ms the 50 ms that HEAR suggests at
            most; of patches that are narrower, their width.
    """
    checkpoint = model_file_path or find_named("ssamba_tiny")
    time_stride = time_stride or min(LONGEST_STRIDE, load_config(checkpoint).patch_size[1])
    return HearModel(FrameEncoder.from_checkpoint(checkpoint, UpstreamOptions(time_stride=time_stride))).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio, model):
    """Embeddings over time: the final norm of the last residual stream.

    Args:
        audio: (sounds, samples) in [-1, 1] at the model's sample rate, a tensor or an array.
        model: what :func:`load_model` returns.

    Returns:
        (sounds, timestamps, size) in float32, and (sounds, timestamps), the middle in milliseconds of what each of
        them has read: 0, 50, 100, ..., for as long as the audio lasts.
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
    """(sounds, size) in float32: the mean of :func:`get_timestamp_embeddings` over time."""
    return get_timestamp_embeddings(audio, model)[0].mean(dim=1)
