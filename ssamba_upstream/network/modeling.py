"""SsambaModel: log-mel -> patches -> tokens -> Mamba blocks -> hidden states."""

import functools
import itertools
import math
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import FEATURE_EXTRACTOR_MAPPING, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ..devices import call_unless_finite, send
from ..ops import is_plain, linear
from .configuration import SsambaConfig
from .mixer import BidirectionalMamba
from .positions import packed_positions, position_embedding


def _norm(config):
    norm = nn.RMSNorm if config.norm == "rms_norm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.norm_epsilon)


class PatchEmbedding(nn.Module):
    """Patch embedding: cuts the log-mel into patches and maps each to a token.

    The weights belong to a convolution, as in the published code, but tokens are computed by a linear product of
    flattened patches. In packed windows, each column of patches is a separate image. For such images the product is
    about three times faster, and oneDNN's AMX kernels (3.12) return garbage for strided bfloat16 convolutions whose
    output is one column wide.
    """

    def __init__(self, config):
        super().__init__()
        self.size, self.stride = tuple(config.patch_size), (config.frequency_stride, config.time_stride)
        self.proj = nn.Conv2d(1, config.hidden_size, self.size, self.stride)

    def forward(self, input_values):
        """Map (batch, frames, mel) to (batch, E, rows, columns); row 0 has the lowest bands."""
        images = input_values.to(next(self.parameters()).dtype).transpose(1, 2)
        if not is_plain(self.proj, nn.Conv2d):  # for example an adapter, which must take effect and get gradients
            return self._convolve(images)
        for axis in (0, 1):
            images = images.unfold(1 + axis, self.size[axis], self.stride[axis])
        patches = images.flatten(3)  # (batch, rows, columns, mel bands x frames)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias).permute(0, 3, 1, 2)

    def _convolve(self, images):
        """Map (batch, mel, frames) to (batch, E, rows, columns) by the convolution. A one-column image is padded to two
        columns, and the second output is dropped, so that no convolution's output is one column wide."""
        lacking = self.size[1] + self.stride[1] - images.shape[2]
        if lacking <= 0:
            return self.proj(images.unsqueeze(1))
        return self.proj(F.pad(images, (0, lacking)).unsqueeze(1))[..., :1]


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a sample's branch with the given probability, and scale the others."""

    def __init__(self, probability):
        super().__init__()
        self.probability = probability

    def forward(self, x):
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


class SsambaBlock(nn.Module):
    """A pre-norm residual block: stream + mixer(norm(stream))."""

    def __init__(self, config, drop_path):
        super().__init__()
        self.mixer = BidirectionalMamba(config)
        self.norm = _norm(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, stream, time_reversed=False, offsets=None, state=None):
        """Map (batch, length, E) to (batch, length, E), see :meth:`BidirectionalMamba.forward`."""
        mixed = self.mixer(self.norm(stream), time_reversed, offsets, state)
        if state is None:
            return stream + self.drop_path(mixed)
        return stream + self.drop_path(mixed[0]), mixed[1]


def initialise_projection(layer):
    """Initialise a linear layer's or convolution's weight and bias: uniform within +-1 / sqrt(fan-in)."""
    bound = layer.weight[0].numel() ** -0.5
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    nn.init.uniform_(layer.bias, -bound, bound)


def check_one_window(window_lengths):
    """Raise a ValueError if the feature extractor split recordings into several windows."""
    if window_lengths is not None and window_lengths.shape[-1] > 1:
        raise ValueError(f"input_values has {window_lengths.shape[-1]} windows per recording, which only "
                         "SsambaForAudioClassification reads. Call the feature extractor with truncation=True")


@torch.no_grad()
def _check_finite(*states):
    """Warn if the last residual stream or its norm is not finite. Non-finite values in an earlier hidden state reach
    the last one, and a norm whose squares overflow returns finite zeros, so the stream is checked too."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return
    if all(type(state) is torch.Tensor and state.device.type in ("cpu", "cuda") for state in states):
        stream, normed = (torch.linalg.vector_norm(state, dtype=torch.float64 if state.dtype == torch.float64 else
                                                   torch.float32) for state in states)
        call_unless_finite(stream + normed, _warn_of_states)


@functools.cache  # once per process, which Python's own warning filters do not guarantee
def _warn_of_states():
    warnings.warn("the network's hidden states are NaN, infinite or too large for their norm. Compute in float32 if "
                  "the precision is lower, and check the checkpoint's weights and the audio, whose samples must be in "
                  "[-1, 1]", RuntimeWarning, stacklevel=1)


# Former name of the classifiers' norm, in checkpoints from when it was part of the linear layer.
FORMER_NAMES = {"classifier.norm.": "classifier_norm."}


def current_names(state):
    """Return a state dict with the current parameter names."""
    for former, name in FORMER_NAMES.items():
        state = {stored.replace(former, name): tensor for stored, tensor in state.items()}
    return state


class SsambaPreTrainedModel(PreTrainedModel):
    """Base of all models: initialisation, saving and loading by transformers' conventions."""

    config_class = SsambaConfig
    base_model_prefix = "ssamba"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    labels_seconds = False  # True for a network with logits for each second of a clip

    def get_input_embeddings(self):
        """Return the patch embedding, which peft and gradient checkpointing with frozen weights need."""
        return self.base_model.patch_embed

    @classmethod
    def from_pretrained(cls, *args, key_mapping=None, **kwargs):
        """Load a model as transformers does, including folders with former parameter names."""
        former = {re.escape(name): current for name, current in FORMER_NAMES.items()}
        return super().from_pretrained(*args, key_mapping={**former, **(key_mapping or {})}, **kwargs)

    def _load_from_state_dict(self, state_dict, *args):
        """Load a state dict with current or former parameter names."""
        renamed = current_names(state_dict)
        state_dict.clear()
        state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, *args)

    def save_pretrained(self, save_directory, **kwargs):
        """Save a model as transformers does, with its feature extractor's ``preprocessor_config.json``."""
        super().save_pretrained(save_directory, **kwargs)
        extractor_class = FEATURE_EXTRACTOR_MAPPING[type(self.config)]  # as transformers' Auto classes know it
        extractor_class.for_config(self.config, self.labels_seconds).save_pretrained(save_directory)

    def push_to_hub(self, repo_id, **kwargs):
        """Push a model as transformers does, with the run's model card if its weights are still those of the run."""
        pushed = super().push_to_hub(repo_id, **kwargs)
        if card := self._card_of_run():
            revision = pushed.pr_revision or kwargs.get("revision")
            card.push_to_hub(repo_id, token=kwargs.get("token"), revision=revision)
        return pushed

    def _card_of_run(self):
        """Return the model card in the folder that the model was loaded from, or None if the weights have changed."""
        folder, encoder = Path(self.name_or_path), f"{self.base_model_prefix}."
        if not (folder / "README.md").is_file() or not (folder / "model.safetensors").is_file():
            return None
        stored = load_file(folder / "model.safetensors")
        stored = {name.removeprefix(encoder): tensor for name, tensor in current_names(stored).items()}
        for name, tensor in self.state_dict().items():
            name = name.removeprefix(encoder)
            if name not in stored or not torch.equal(stored[name], tensor.cpu()):
                return None
        return ModelCard.load(folder / "README.md")

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, BidirectionalMamba):
            module.initialise()
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
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

    With ``block_order="sequential"``, blocks run one after another. With ``"paired"``, the order in which the published
    checkpoints were trained, blocks 2i and 2i + 1 both read the same residual stream, the second one reversed in
    time, and their results are added; the stream therefore doubles with every pair. docs/architecture.md lists
    differences from the published code.

    With ``token_order="time_major"``, the blocks read the class token and then column after column, but tokens are
    still returned frequency-major. The class token of a causal network sees no patches: it starts each stream.
    """

    def __init__(self, config):
        super().__init__(config)
        rows, columns = config.learned_grid
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

    def forward(self, input_values, output_hidden_states=None, return_dict=None, window_lengths=None):
        """Encode log-mel.

        Args:
            input_values: (batch, frames, mel), normalised log-mel, see :mod:`ssamba_upstream.frontend`; or a list of
                (frames, mel) of any lengths, which are packed without padding into one batch entry that concatenates
                their tokens. At least one patch long; frames after the last whole patch are ignored.
            output_hidden_states: if True, return ``hidden_states``. Default: the configuration's.
            return_dict: if True, return a ``BaseModelOutput``, otherwise a tuple. Default: the configuration's.
            window_lengths: (batch, 1), accepted because the feature extractor returns it; not used.

        Returns:
            ``last_hidden_state`` (batch, 1 + rows * columns, E): the final norm of the last residual stream, and
            ``hidden_states``, depth + 1 tensors of that shape: the tokens with their positions, and the residual
            stream after each block, in network order. In paired order the stream of pair k (from 0) is divided by
            2**k, which undoes the doubling.

        Raises:
            ValueError: If the input has the wrong shape, is shorter than a patch, holds several windows, or the call is
                traced.
        """
        check_one_window(window_lengths)
        if torch.jit.is_tracing():
            raise ValueError("torch.jit.trace cannot record the scan's kernels. Use torch.compile or torch.export")
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

    @contextmanager
    def patches_apart(self, time_stride):
        """Embed patches at this distance, in fbank frames, while the context lasts."""
        own = self.config.time_stride
        self._set_time_stride(time_stride)
        try:
            yield
        finally:
            self._set_time_stride(own)

    def _set_time_stride(self, time_stride):
        self.config.time_stride = time_stride
        self.patch_embed.stride = self.patch_embed.proj.stride = (self.config.frequency_stride, time_stride)

    def embed(self, input_values, mask=None, mask_embed=None):
        """Map (batch, frames, mel) to (batch, 1 + rows * columns, E): class token and patches, with positions.

        ``mask_embed``, (1, 1, E), replaces the patches for which ``mask``, (batch, rows * columns) bool, is true.
        """
        self._check_input(input_values)
        patches = self.patch_embed(input_values)
        positions = position_embedding(self.pos_embed, self.config, *patches.shape[2:])
        patches = torch.cat(patches.permute(2, 0, 3, 1).unbind(), dim=1)
        if mask is not None:
            patches = torch.where(mask.unsqueeze(2), mask_embed.to(patches.dtype), patches)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + positions

    def mix(self, tokens, offsets=None, streams=None):
        """Apply the blocks and the final norm: (batch, length, E) -> (batch, length, E).

        Each residual stream, as in ``hidden_states``, is appended to ``streams`` if that is a list. Streams that are
        not finite cause one RuntimeWarning per process.
        """
        if self.config.token_order == "frequency_major" or self.config.num_patch_rows == 1:
            return self._blocks(tokens, offsets, streams)
        order, back = self._time_major(tokens, offsets)
        ordered = None if streams is None else []
        normalised = self._blocks(tokens[:, order], offsets, ordered)
        if streams is not None:
            streams += [stream[:, back] for stream in ordered]
        return normalised[:, back]

    def start(self, count):
        """Return each block's state after the class token, for ``count`` new streams; see
        :func:`ssamba_upstream.ops.mix`.

        Raises:
            ValueError: If the network is not causal.
        """
        config = self.config
        if not config.causal:
            raise ValueError("the network is not causal and cannot continue from a state. Train one with "
                             'token_order="time_major" and directions="forward"')
        first = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        zeros = [first.new_zeros(count, config.intermediate_size, width)
                 for width in (config.conv_kernel - 1, config.state_size)]
        states = [tuple(zeros)] * config.num_hidden_layers
        self._blocks(first, None, None, states)
        return states

    def listen(self, columns, states, offsets=None):
        """Continue streams: return the hidden states and the final norm of new columns, each (columns, rows, E).

        Args:
            columns: (columns, frames of a patch, mel), normalised log-mel.
            states: the blocks' states so far, see :meth:`start`; updated in place.
            offsets: (streams + 1,) int64, the boundaries of each stream's columns. Default: one stream.
        """
        rows = self.config.num_patch_rows
        patches = self.patch_embed(columns).squeeze(3).transpose(1, 2)
        tokens = patches + position_embedding(self.pos_embed, self.config, rows, 1)[:, 1:]
        streams = [tokens.flatten(0, 1).unsqueeze(0)]
        streams.append(self._blocks(streams[0], None if offsets is None else offsets * rows, streams, states))
        return [stream.squeeze(0).unflatten(0, (-1, rows)) for stream in streams]

    def _time_major(self, tokens, offsets):
        """Return the permutation of tokens into the order in which the blocks read them, and its inverse."""
        steps, rows = torch.arange(tokens.shape[1], device=tokens.device), self.config.num_patch_rows
        if offsets is None:
            offsets = torch.arange(2, device=tokens.device) * tokens.shape[1]
        sequence = torch.bucketize(steps, offsets[1:-1], right=True)
        begins, patch = offsets[sequence], steps - offsets[sequence] - 1
        columns = (offsets.diff()[sequence] - 1) // rows
        order = torch.where(patch < 0, begins, begins + 1 + patch % rows * columns + patch // rows)
        return order, torch.empty_like(order).scatter_(0, order, steps)

    def _blocks(self, tokens, offsets, streams, states=None):
        if self.config.block_order == "paired":
            stream = self._paired(tokens, offsets, streams)
        else:
            stream = self._sequential(tokens, offsets, streams, states)
        normalised = self.norm_f(stream)
        _check_finite(stream, normalised)
        return normalised

    def _pack(self, windows):
        """Return the tokens of windows of any lengths, (1, total tokens, E), and the windows' offsets among them."""
        for window in windows:
            self._check_input(window.unsqueeze(0))
        config, frames = self.config, torch.cat(windows)
        rows, columns = config.num_patch_rows, [config.columns(len(window)) for window in windows]
        # All columns of patches form a single batch for the embedding, for windows of any lengths.
        begins = itertools.accumulate(map(len, windows), initial=0)
        starts = torch.cat([begin + config.time_stride * torch.arange(count) for begin, count in zip(begins, columns)])
        strips = frames.unfold(0, config.patch_size[1], 1)[send(starts, frames.device)].transpose(1, 2)
        patches = self.patch_embed(strips).squeeze(3).transpose(1, 2).flatten(0, 1)
        firsts = itertools.accumulate((rows * count for count in columns), initial=1)
        places = torch.cat([
            torch.cat([torch.zeros(1, dtype=torch.int64),
                       (first + torch.arange(rows)[:, None] + rows * torch.arange(count)).flatten()])
            for first, count in zip(firsts, columns)
        ])
        tokens = torch.cat([self.cls_token[0], patches])[send(places, frames.device)]
        tokens = tokens + packed_positions(self.pos_embed, config, rows, columns)
        offsets = torch.tensor([0, *(1 + rows * count for count in columns)]).cumsum(0)
        return tokens.unsqueeze(0), send(offsets, frames.device)

    def _check_input(self, input_values):
        config = self.config
        if input_values.dim() != 3 or input_values.shape[2] != config.num_mel_bins:
            raise ValueError(f"input_values must be (batch, frames, {config.num_mel_bins}); "
                             f"got {tuple(input_values.shape)}")
        if input_values.shape[1] < config.patch_size[1]:
            raise ValueError(f"input_values has {input_values.shape[1]} frames; a patch needs {config.patch_size[1]}")

    def _sequential(self, stream, offsets, streams, states):
        for i, block in enumerate(self.layers):
            if states is None:
                stream = self._run(block, stream, False, offsets)
            else:
                stream, states[i] = block(stream, False, offsets, states[i])
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
