"""UpstreamExpert: a SSAMBA checkpoint as s3prl wants its upstreams."""

from ..audio import SAMPLE_RATE
from ..frames import FrameEncoder, UpstreamOptions, load_encoder


class UpstreamExpert(FrameEncoder):
    """Waveforms in, frame-level hidden states of every Mamba layer out.

    Fine-tuning trains all parameters but the final norm, which hidden states do not pass and for whose gradients DDP
    would wait in vain.

    Args:
        ckpt: path or name of a checkpoint, see :func:`ssamba_upstream.downloads.find_checkpoint`.
        model_config: YAML file of options (s3prl's ``-g``).
        refresh: taken for s3prl's sake; entries that download look at it before they get here.
        options: see :class:`ssamba_upstream.frames.UpstreamOptions`; they come before what the file says.

    Raises:
        ValueError: no checkpoint, one that is not at 16 kHz, an unknown option or a value out of range.
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
    """

    def __init__(self, ckpt=None, model_config=None, refresh=False, **options):
        options = UpstreamOptions.read(model_config, **options)
        if ckpt is None:
            raise ValueError("this upstream needs a checkpoint: give its path with -k (path_or_url in S3PRLUpstream)")
        model = load_encoder(ckpt, options)
        if model.config.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"{ckpt} is of audio at {model.config.sampling_rate} Hz, and SUPERB's is at {SAMPLE_RATE} "
                             "Hz; give a checkpoint that is pretrained at that rate")
        super().__init__(model, **options.framing)
        self.model.norm_f.requires_grad_(False)

    def get_downsample_rates(self, key: str = None) -> int:
        """Samples per frame at 16 kHz, the same for every layer."""
        return self.windowing.hop

    def forward(self, wavs):
        """Waveforms, see :meth:`FrameEncoder.forward` -> dict with ``hidden_states``, a list of depth + 1 tensors
        (utterances, frames, width), and ``last_hidden_state`` of that shape."""
        output = super().forward(wavs)
        return {"hidden_states": list(output.hidden_states), "last_hidden_state": output.last_hidden_state}
