"""Classifiers: the encoder with a head for a clip, or for every second of it."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from ..ops import apply_linear
from .modeling import SsambaModel, SsambaPreTrainedModel, check_one_window, initialise_projection

IGNORED = -100  # the label of a second that has none, as torch's cross-entropy has it
WINDOWS_AT_ONCE = 16
"""Windows of long recordings sent through the network at once, which bounds its memory."""

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


class SsambaClassifier(SsambaPreTrainedModel):
    """Base of the classifiers: the encoder and the published head, a layer norm followed by a linear layer.

    The linear layer is a plain ``nn.Linear``, so that adapters on it can be merged. Its name is HEAD, and the norm's is
    that and "_norm".
    """

    HEAD = "classifier"

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ssamba = SsambaModel(config)
        setattr(self, self.HEAD, nn.Linear(config.hidden_size, config.num_labels))
        setattr(self, f"{self.HEAD}_norm", nn.LayerNorm(config.hidden_size))
        self.post_init()

    @property
    def head(self):
        """(layer norm, linear layer)"""
        return getattr(self, f"{self.HEAD}_norm"), getattr(self, self.HEAD)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.head[1]:
            initialise_projection(module)

    def _logits(self, features):
        """(..., E) -> (..., classes)"""
        norm, layer = self.head
        return apply_linear(layer, norm(features))

    def _encode(self, input_values, output_hidden_states):
        """(tokens that the head reads, (batch, 1 + rows * columns, E); hidden states or None)"""
        if not isinstance(input_values, torch.Tensor):
            raise ValueError("input_values must be a tensor (batch, frames, mel); got "
                             f"{type(input_values).__name__}; clips of unequal lengths are padded by the "
                             "SsambaFeatureExtractor")
        output = self.ssamba(input_values, output_hidden_states, return_dict=True)
        tokens = output.last_hidden_state
        if self.config.final_norm_twice:
            tokens = self.ssamba.norm_f(tokens)
        return tokens, output.hidden_states

    def _returned(self, output, return_dict):
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class SsambaForAudioClassification(SsambaClassifier):
    """SSAMBA with a head for a clip's class or classes.

    The head reads ``config.pooling``: "avgtok", the mean of the patches, or "cls", the class token.
    """

    def forward(self, input_values, labels=None, output_hidden_states=None, return_dict=None, window_lengths=None):
        """
        Args:
            input_values: (batch, frames, mel), normalised log-mel, see
                :class:`ssamba_upstream.feature_extraction.SsambaFeatureExtractor`; or, with ``window_lengths``,
                (batch, windows * frames, mel), the windows of longer recordings one after the other.
            labels: what is to be found. With the problem type "single_label_classification": (batch,) indices of
                classes, or (batch, classes) probabilities of floating point, such as mixup makes; the loss is the
                cross-entropy. With "multi_label_classification": (batch, classes) of floating point from 0 to 1; the
                loss is the binary cross-entropy. Where the configuration does not say: the first for whole numbers,
                the second for floating point.
            output_hidden_states: whether to return ``hidden_states``, see :class:`SsambaModel`.
            return_dict: whether to return a ``SequenceClassifierOutput`` or a tuple.
            window_lengths: (batch, windows), how much of the recording each window holds, in any unit; 0 where a
                recording has fewer windows than others. If there are several, the logits are those of a recording's
                probabilities, see :func:`pool_windows`.

        Returns:
            ``loss``, where there are labels, ``logits`` (batch, classes) and ``hidden_states``.

        Raises:
            ValueError: inputs or labels of another shape or type, labels out of range, or hidden states asked for of
                windows.
        """
        if window_lengths is None or window_lengths.shape == (len(input_values), 1):
            logits, hidden_states = self._classify(input_values, output_hidden_states)
        else:
            if output_hidden_states:
                raise ValueError("hidden states are returned of clips, not of the windows of longer recordings")
            logits, hidden_states = self._classify_windows(input_values, window_lengths), None
        loss = None if labels is None else clip_loss(logits, labels, self.config.problem_type)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return self._returned(output, return_dict)

    def _classify(self, input_values, output_hidden_states):
        """(logits, hidden states or None) of clips"""
        tokens, hidden_states = self._encode(input_values, output_hidden_states)
        features = tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1)
        return self._logits(features), hidden_states

    def _classify_windows(self, input_values, lengths):
        """(batch, windows * frames, mel) and (batch, windows) -> (batch, classes)"""
        if lengths.dim() != 2 or len(lengths) != len(input_values) or input_values.shape[1] % lengths.shape[1]:
            raise ValueError("window_lengths must be (batch, windows), and input_values (batch, windows * frames, mel)"
                             f"; got {tuple(lengths.shape)} and {tuple(input_values.shape)}")
        there = lengths > 0
        windows = input_values.unflatten(1, (lengths.shape[1], -1))[there]
        found = torch.cat([self._classify(part, False)[0] for part in windows.split(WINDOWS_AT_ONCE)])
        logits = found.new_zeros(*lengths.shape, found.shape[1])
        logits[there] = found
        return pool_windows(logits, lengths, self.config.problem_type == MULTI)


class SsambaForAudioFrameClassification(SsambaClassifier):
    """SSAMBA with a head for the class of every second of a clip.

    The columns of patches whose centres lie in it are averaged, over their rows and with one another, and the head
    reads that. The published code does otherwise, see docs/architecture.md.

    Raises:
        ValueError: ``problem_type`` is "multi_label_classification".
    """

    HEAD = "frame_classifier"
    labels_seconds = True
    accepts_loss_kwargs = True  # transformers' Trainer then passes num_items_in_batch

    def __init__(self, config):
        if config.problem_type == MULTI:
            raise ValueError(f"a second has one class; problem_type must be {SINGLE} or None")
        super().__init__(config)

    def forward(
        self, input_values, labels=None, output_hidden_states=None, return_dict=None, window_lengths=None,
        num_items_in_batch=None,
    ):
        """
        Args:
            input_values: (batch, frames, mel), normalised log-mel; what is left after the last whole second is heard,
                but not labelled.
            labels: (batch, seconds) indices of classes, -100 where a second has none; the loss is the cross-entropy,
                averaged over the seconds that have one; 0 if none has.
            output_hidden_states: whether to return ``hidden_states``, see :class:`SsambaModel`.
            return_dict: whether to return a ``TokenClassifierOutput`` or a tuple.
            window_lengths: see :class:`SsambaModel`.
            num_items_in_batch: by how many labelled seconds the sum of the cross-entropies is divided, where a batch is
                a part of a step: transformers' Trainer counts those of all parts. Default: those of ``labels``.

        Returns:
            ``loss``, where there are labels, ``logits`` (batch, seconds, classes) and ``hidden_states``.

        Raises:
            ValueError: inputs or labels of another shape or type, labels out of range, an input shorter than a second,
                a second without the centre of a column, or several windows.
        """
        check_one_window(window_lengths)
        tokens, hidden_states = self._encode(input_values, output_hidden_states)
        columns = tokens[:, 1:].unflatten(1, (self.config.num_patch_rows, -1)).mean(dim=1)
        counts = columns_of_seconds(self.config, input_values.shape[1])
        seconds = columns[:, : sum(counts)].split(counts, dim=1)
        logits = self._logits(torch.stack([second.mean(dim=1) for second in seconds], dim=1))
        loss = None if labels is None else seconds_loss(logits, labels, num_items_in_batch)
        output = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return self._returned(output, return_dict)


def columns_of_seconds(config, frames):
    """How many columns of patches have their centre in each whole second of a clip, which begins with the first.

    Args:
        config: the network's SsambaConfig.
        frames: of the clip.

    Raises:
        ValueError: the clip is shorter than a second, or a second has no column.
    """
    front_end = config.front_end
    counts = [0] * int(front_end.seconds_of(frames))
    if not counts:
        raise ValueError(f"input_values has {frames} frames; a second needs {front_end.frames_in(1)}")
    for column in range(config.columns(frames)):
        second = int(front_end.seconds_of(column * config.time_stride + config.patch_size[1] / 2))
        if second < len(counts):
            counts[second] += 1
    if 0 in counts:
        raise ValueError(f"second {counts.index(0)} holds the centre of no patch; patches of {config.patch_size[1]} "
                         f"frames every {config.time_stride} frames are too long to label seconds")
    return counts


def pool_windows(logits, lengths, several):
    """Logits of recordings: their probabilities are the mean of those of the windows, weighted by the lengths.

    Args:
        logits: of windows, (batch, windows, classes).
        lengths: (batch, windows), 0 where there is no such window; each recording has one at least.
        several: whether a probability is the sigmoid of a logit, as of classes that can be heard together, or a
            softmax over all of them.

    Returns:
        (batch, classes); after a softmax these are logarithms of probabilities.
    """
    scores = _at_least_float32(logits)
    weights = lengths.to(scores.dtype).log().unsqueeze(2)

    def pool(logarithms):
        return (logarithms + weights).logsumexp(dim=1) - weights.logsumexp(dim=1)

    if several:
        pooled = pool(F.logsigmoid(scores)) - pool(F.logsigmoid(-scores))
    else:
        pooled = pool(scores.log_softmax(dim=2))
    return pooled.to(logits.dtype)


def clip_loss(logits, labels, problem_type=None):
    """Loss of clips' logits (batch, classes); see :meth:`SsambaForAudioClassification.forward`."""
    classes, scores = logits.shape[1], _at_least_float32(logits)
    if problem_type is None:
        problem_type = MULTI if labels.is_floating_point() else SINGLE
    if problem_type == SINGLE and not labels.is_floating_point():
        _check_indices(labels, logits.shape[:1], classes)
        return F.cross_entropy(scores, labels.long())
    if not labels.is_floating_point() or labels.shape != logits.shape:
        raise ValueError(f"labels must be floating point and (batch, classes), here {tuple(logits.shape)}; got "
                         f"{labels.dtype} and {tuple(labels.shape)}")
    if not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError("labels of floating point must be from 0 to 1")
    labels = labels.to(scores.dtype)
    if problem_type == MULTI:
        return F.binary_cross_entropy_with_logits(scores, labels)
    if not torch.allclose(labels.sum(dim=1), labels.new_ones(()), atol=1e-2):
        raise ValueError(f"the probabilities of a clip's classes must sum to 1, as {SINGLE} has them; for clips of "
                         f"several classes set problem_type to {MULTI}")
    return F.cross_entropy(scores, labels)


def seconds_loss(logits, labels, labelled=None):
    """Cross-entropy of seconds' logits (batch, seconds, classes); see
    :meth:`SsambaForAudioFrameClassification.forward`."""
    _check_indices(labels, logits.shape[:2], logits.shape[2], IGNORED)
    scores = _at_least_float32(logits)
    total = F.cross_entropy(scores.flatten(0, 1), labels.long().flatten(), ignore_index=IGNORED, reduction="sum")
    return total / ((labels != IGNORED).sum().clamp(min=1) if labelled is None else labelled)


def _check_indices(labels, shape, classes, ignored=None):
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != shape:
        raise ValueError(f"labels must be indices of classes, int64 and {tuple(shape)}; got {labels.dtype} and "
                         f"{tuple(labels.shape)}")
    known, besides = (labels >= 0) & (labels < classes), ""
    if ignored is not None:
        known, besides = known | (labels == ignored), f", or {ignored}"
    if not known.all():
        raise ValueError(f"labels must be from 0 to {classes - 1}{besides}; got {labels.min()} to {labels.max()}")


def _at_least_float32(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
