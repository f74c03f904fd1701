"""BidirectionalMamba: the mixer of Vision Mamba (arXiv 2401.09417), variant "v2", or its forward half."""

import math

import torch
from torch import nn

from ..ops import apply_linear, mix

DIRECTIONS = {"both": ("", "_b"), "forward": ("",)}


class BidirectionalMamba(nn.Module):
    """Token mixer along the sequence: a selective scan in each direction, between shared projections.

    ``x, z = in_proj(tokens)``. Each direction applies its own causal convolution, SiLU and selective scan to x, gated
    by silu(z), and ``out_proj`` maps the mean of the two directions back to tokens. Parameters are named as in the
    published checkpoints; those of the backward direction, which ``config.directions`` may omit, end in ``_b``.
    """

    def __init__(self, config):
        super().__init__()
        channels, states, rank = config.intermediate_size, config.state_size, config.time_step_rank
        self.config, self.taps, self.suffixes = config, config.conv_kernel, DIRECTIONS[config.directions]
        self.in_proj = nn.Linear(config.hidden_size, 2 * channels, bias=False)
        for direction in self.suffixes:
            convolution = nn.Conv1d(channels, channels, config.conv_kernel, groups=channels)
            setattr(self, f"conv1d{direction}", convolution)
            setattr(self, f"x_proj{direction}", nn.Linear(channels, rank + 2 * states, bias=False))
            setattr(self, f"dt_proj{direction}", nn.Linear(rank, channels))
            setattr(self, f"A{direction}_log", nn.Parameter(torch.empty(channels, states)))
            setattr(self, f"D{direction}", nn.Parameter(torch.empty(channels)))
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=False)

    def forward(self, tokens, time_reversed=False, offsets=None, state=None):
        """Mix tokens along the sequence.

        Args:
            tokens: (batch, length, E).
            time_reversed: if True, swap the two directions, which equals mixing the reversed sequence and reversing
                the result.
            offsets: (sequences + 1,) int64, for a batch of one that holds several sequences, each mixed separately:
                sequence i begins at offsets[i], and the last ends at offsets[-1].
            state: initial state of each sequence, see :func:`ssamba_upstream.ops.mix`.

        Returns:
            (batch, length, E); or, if a state is given, a pair of this and the state after these tokens.
        """
        channels_and_gate = apply_linear(self._modules["in_proj"], tokens)
        mixed = mix(channels_and_gate, self.directions(time_reversed), offsets, state)
        if state is None:
            return apply_linear(self._modules["out_proj"], mixed)
        return apply_linear(self._modules["out_proj"], mixed[0]), mixed[1]

    def directions(self, time_reversed=False):
        """Return the parameters of each direction as :func:`ssamba_upstream.ops.mix` takes them."""
        return [self.direction(suffix, time_reversed != bool(suffix)) for suffix in self.suffixes]

    def direction(self, suffix, reverse):
        """Return the parameters of one direction, "" or "_b", for :func:`ssamba_upstream.ops.mix`."""
        modules = self._modules  # nn.Module's __getattr__ takes far longer
        return {
            "convolution": modules[f"conv1d{suffix}"], "taps": self.taps,
            "input_projection": modules[f"x_proj{suffix}"], "step_projection": modules[f"dt_proj{suffix}"],
            "A_log": getattr(self, f"A{suffix}_log"), "D": getattr(self, f"D{suffix}"), "reverse": reverse,
        }

    @torch.no_grad()
    def initialise(self):
        """Initialise the parameters as Mamba does, both directions alike.

        Step sizes start log-uniform in [time_step_min, time_step_max]; A starts at -1, ..., -states (S4D-Real).
        """
        config = self.config
        nn.init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight /= math.sqrt(config.num_hidden_layers)
        for direction in self.suffixes:
            convolution = getattr(self, f"conv1d{direction}")
            nn.init.kaiming_uniform_(convolution.weight, a=math.sqrt(5))
            nn.init.uniform_(convolution.bias, -config.conv_kernel**-0.5, config.conv_kernel**-0.5)
            nn.init.kaiming_uniform_(getattr(self, f"x_proj{direction}").weight, a=math.sqrt(5))
            step_projection = getattr(self, f"dt_proj{direction}")
            nn.init.uniform_(step_projection.weight, -config.time_step_rank**-0.5, config.time_step_rank**-0.5)
            log_step = torch.empty_like(step_projection.bias).uniform_(
                math.log(config.time_step_min), math.log(config.time_step_max)
            )
            step = log_step.exp().clamp(min=config.time_step_floor)
            step_projection.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus's inverse
            A_log = getattr(self, f"A{direction}_log")
            A_log.copy_(torch.arange(1, config.state_size + 1).log().expand_as(A_log))
            nn.init.ones_(getattr(self, f"D{direction}"))
