"""avex (BEANS, BirdSet): importing this file registers the model class "ssamba" and the model "ssamba_starter"."""

import torch
from avex import register_model, register_model_class
from avex.configs import AudioConfig, ModelSpec
from avex.models.base_model import ModelBase

from ssamba_upstream import FrameEncoder


@register_model_class
class SsambaModel(ModelBase):
    """A checkpoint for avex. Its probes read the outputs of the modules ``layers.0``, ``layers.1``, ..."""

    name = "ssamba"

    def __init__(self, device="cpu", audio_config=None, return_features_only=True, model_id="ssamba_starter"):
        super().__init__(device)
        self.encoder = FrameEncoder.from_checkpoint(model_id).to(device)
        states = self.encoder.model.config.num_hidden_layers + 1
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(states))
        self._layer_names = [f"layers.{i}" for i in range(len(self.layers))]

    def forward(self, x, padding_mask=None):
        """Return the final norm, (batch, frames, width), for (batch, samples). Padding is processed as silence."""
        output = self.encoder(list(self.process_audio(x)))
        for layer, states in zip(self.layers, output.hidden_states, strict=True):
            layer(states)
        return output.last_hidden_state


audio = AudioConfig(representation="raw", sample_rate=16000)
register_model("ssamba_starter", ModelSpec(name="ssamba", model_id="ssamba_starter", audio_config=audio))
