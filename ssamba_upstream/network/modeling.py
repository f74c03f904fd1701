"""SsambaModel: log-mel -> patches -> tokens -> Mamba blocks -> hidden states."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration import SsambaConfig
from .mixer import BidirectionalMamba
from .positions import position_embedding


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467) over the last dimension, with a learned scale."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _norm(config):
    if config.norm == "rms_norm":
        return RMSNorm(config.hidden_size, config.norm_epsilon)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)


class PatchEmbedding(nn.Module):
    """Cuts the log-mel into patches and maps each to a token."""

    def __init__(self, config):
        super().__init__()
        stride = (config.frequency_stride, config.time_stride)
        self.proj = nn.Conv2d(1, config.hidden_size, kernel_size=tuple(config.patch_size), stride=stride)

    def forward(self, input_values):
        """(batch, frames, mel) -> (batch, E, rows, columns), row 0 the lowest bands."""
        return self.proj(input_values.transpose(1, 2).unsqueeze(1))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's branch with the given probability, and scales the others."""

    def __init__(self, probability):
        super().__init__()
        self.probability = probability

    def forward(self, x):
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


class SsambaBlock(nn.Module):
    """Adds to the residual stream what the mixer makes of its norm."""

    def __init__(self, config, drop_path):
        super().__init__()
        self.mixer = BidirectionalMamba(config)
        self.norm = _norm(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, stream, time_reversed=False, offsets=None):
        """(batch, length, E) -> (batch, length, E); arguments: see :meth:`BidirectionalMamba.forward`."""
        return stream + self.drop_path(self.mixer(self.norm(stream), time_reversed, offsets))


def initialise_projection(layer):
    """A linear layer's, or convolution's, weight and bias: uniform within +-1 / sqrt(inputs of an output)."""
    bound = layer.weight[0].numel() ** -0.5
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    nn.init.uniform_(layer.bias, -bound, bound)


class SsambaPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading, by transformers' conventions."""

    config_class = SsambaConfig
    base_model_prefix = "ssamba"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, BidirectionalMamba):
            module.initialise()
        elif isinstance(module, (nn.LayerNorm, RMSNorm)):
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, PatchEmbedding):
            initialise_projection(module.proj)
        elif isinstance(module, SsambaModel):
            nn.init.trunc_normal_(module.cls_token, std=0.02)
            nn.init.trunc_normal_(module.pos_embed, std=0.02)


class SsambaModel(SsambaPreTrainedModel):
    """The SSAMBA encoder (arXiv 2405.11831, section 2).

    Tokens are one class token and the patches in frequency-major order: token 1 + f * columns + t is the patch of row
    f (0 the lowest bands) and column t.

    In ``block_order="sequential"`` the blocks follow one another. In ``"paired"``, the order in which the published
    checkpoints were trained, blocks 2i and 2i + 1 both read the same residual stream, the second one reversed in
    time, and their results are added; the stream therefore doubles with every pair. (The published code carries
    the stream in two parts, residual and hidden, which are only ever read as their sum.)
    """

    def __init__(self, config):
        super().__init__(config)
        rows, columns = config.position_grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, config.hidden_size))
        self.patch_embed = PatchEmbedding(config)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            SsambaBlock(config, config.drop_path_rate * i / max(1, depth - 1)) for i in range(depth)
        )
        self.norm_f = _norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_values, output_hidden_states=None, return_dict=None):
        """
        Args:
            input_values: (batch, frames, mel), normalised log-mel, see :mod:`ssamba_upstream.frontend`; or a list of
                (frames, mel) of any lengths, which are then packed: nothing is computed for padding, and the results
                have one batch entry, with the tokens of all one after the other. At least one patch long; frames
                after the last whole patch are not read.
            output_hidden_states: whether to return ``hidden_states``. Default: the configuration's.
            return_dict: whether to return a ``BaseModelOutput`` or a tuple. Default: the configuration's.

        Returns:
            ``last_hidden_state`` (batch, 1 + rows * columns, E): the final norm of the last residual stream, and
            ``hidden_states``, depth + 1 tensors of that shape: the tokens with their positions, and the residual
            stream after each block, in the order of the network. In paired order the stream of pair k (from 0) is
            divided by 2**k, which undoes the doubling.

        Raises:
            ValueError: an input of another shape, or shorter than a patch.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if isinstance(input_values, (list, tuple)):
            tokens, offsets = self._pack(input_values)
        else:
            tokens, offsets = self.embed(input_values), None
        streams = [tokens] if output_hidden_states else None
        output = BaseModelOutput(
            last_hidden_state=self.mix(tokens, offsets, streams),
            hidden_states=tuple(streams) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()

    def embed(self, input_values, mask=None, mask_embed=None):
        """(batch, frames, mel) -> (batch, 1 + rows * columns, E): class token and patches, with positions.

        Where ``mask``, (batch, rows * columns) of bool, is true, ``mask_embed``, (1, 1, E), stands for the patch.
        """
        config = self.config
        if input_values.dim() != 3 or input_values.shape[2] != config.num_mel_bins:
            raise ValueError(f"input_values must be (batch, frames, {config.num_mel_bins}); "
                             f"got {tuple(input_values.shape)}")
        if input_values.shape[1] < config.patch_size[1]:
            raise ValueError(f"input_values has {input_values.shape[1]} frames; a patch needs {config.patch_size[1]}")
        patches = self.patch_embed(input_values)
        positions = position_embedding(self.pos_embed, config, *patches.shape[2:])
        patches = torch.cat(patches.permute(2, 0, 3, 1).unbind(), dim=1)
        if mask is not None:
            patches = torch.where(mask.unsqueeze(2), mask_embed.to(patches.dtype), patches)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + positions

    def mix(self, tokens, offsets=None, streams=None):
        """(batch, length, E) -> (batch, length, E): the blocks and the final norm; each residual stream, as in
        ``hidden_states``, is appended to ``streams`` where that is a list."""
        run = self._paired if self.config.block_order == "paired" else self._sequential
        return self.norm_f(run(tokens, offsets, streams))

    def _pack(self, windows):
        """(1, total tokens, E) of windows of any lengths, and where each begins, and the last ends, among them."""
        by_length = {}
        for i, window in enumerate(windows):
            by_length.setdefault(len(window), []).append(i)
        tokens = [None] * len(windows)
        for members in by_length.values():
            for i, embedded in zip(members, self.embed(torch.stack([windows[i] for i in members]))):
                tokens[i] = embedded
        lengths = torch.tensor([0, *(len(embedded) for embedded in tokens)])
        return torch.cat(tokens).unsqueeze(0), lengths.cumsum(0).to(tokens[0].device)

    def _sequential(self, stream, offsets, streams):
        for block in self.layers:
            stream = self._run(block, stream, False, offsets)
            if streams is not None:
                streams.append(stream)
        return stream

    def _paired(self, stream, offsets, streams):
        for pair in range(len(self.layers) // 2):
            forward = self._run(self.layers[2 * pair], stream, False, offsets)
            backward = self._run(self.layers[2 * pair + 1], stream, True, offsets)
            if streams is not None:
                streams += [forward / 2**pair, backward / 2**pair]
            stream = forward + backward
        return stream

    def _run(self, block, *arguments):
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)
