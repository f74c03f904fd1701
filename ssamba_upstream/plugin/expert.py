"""UpstreamExpert: a SSAMBA checkpoint as an s3prl upstream."""

from ..audio import SAMPLE_RATE
from ..checkpoint import load_model
from ..frames import FrameEncoder, UpstreamOptions, restrided


class UpstreamExpert(FrameEncoder):
    """An s3prl upstream that takes waveforms and returns frame-level hidden states of every Mamba layer.

    Fine-tuning trains all parameters except the final norm. The hidden states do not pass through it, so DDP would wait
    for its gradients forever.

    Args:
        ckpt: path or name of a checkpoint, see :func:`ssamba_upstream.downloads.find_checkpoint`.
        model_config: YAML file of options (s3prl's ``-g``).
        refresh: accepted for s3prl and ignored; the entries that download use it.
        options: see :class:`ssamba_upstream.frames.UpstreamOptions`; they override the file.

    Raises:
        ValueError: If there is no checkpoint, it is not for 16 kHz, or an option is unknown or out of range.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
    """

    def __init__(self, ckpt=None, model_config=None, refresh=False, **options):
        options = UpstreamOptions.read(model_config, **options)
        if ckpt is None:
            raise ValueError("this upstream needs a checkpoint. Give its path with -k (path_or_url in S3PRLUpstream).")
        model = restrided(load_model(ckpt), options)
        if model.config.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"{ckpt} is for audio at {model.config.sampling_rate} Hz, but SUPERB uses {SAMPLE_RATE} "
                             "Hz. Give a checkpoint pretrained at that rate.")
        super().__init__(model, **options.framing)
        self.model.norm_f.requires_grad_(False)

    def get_downsample_rates(self, key: str = None) -> int:
        """Return the samples per frame at 16 kHz, the same for every layer."""
        return self.windowing.hop

    def forward(self, wavs):
        """Encode waveforms, see :meth:`FrameEncoder.forward`. Returns a dict with ``hidden_states``, a list of
        depth + 1 tensors (utterances, frames, width), and ``last_hidden_state`` of the same shape."""
        output = super().forward(wavs)
        return {"hidden_states": list(output.hidden_states), "last_hidden_state": output.last_hidden_state}
