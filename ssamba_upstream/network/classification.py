"""Classifiers: the encoder with a head for a whole clip, or for each of its seconds."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from ..ops import apply_linear
from .modeling import SsambaModel, SsambaPreTrainedModel, check_one_window, initialise_projection

IGNORED = -100  # the label of an unlabelled second, torch's default for cross-entropy
WINDOWS_AT_ONCE = 16
"""Windows of long recordings processed at once, which bounds memory use."""

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


class SsambaClassifier(SsambaPreTrainedModel):
    """Base of the classifiers: the encoder and the published head, a layer norm followed by a linear layer.

    The linear layer is a plain ``nn.Linear``, so adapters on it can be merged. It is named HEAD, and the norm is named
    HEAD + "_norm".
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
        """The layer norm and the linear layer."""
        return getattr(self, f"{self.HEAD}_norm"), getattr(self, self.HEAD)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.head[1]:
            initialise_projection(module)

    def _logits(self, features):
        """Map (..., E) to (..., classes)."""
        norm, layer = self.head
        return apply_linear(layer, norm(features))

    def _encode(self, input_values, output_hidden_states):
        """Return the tokens for the head, (batch, 1 + rows * columns, E), and the hidden states or None."""
        if not isinstance(input_values, torch.Tensor):
            raise ValueError("input_values must be a tensor (batch, frames, mel); got "
                             f"{type(input_values).__name__}. Pad clips of unequal lengths with the "
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
    """SSAMBA with a head for the class or classes of a clip.

    ``config.pooling`` selects the head's input: "avgtok", the mean of the patches, or "cls", the class token.
    """

    def forward(self, input_values, labels=None, output_hidden_states=None, return_dict=None, window_lengths=None):
        """Classify clips or longer recordings.

        Args:
            input_values: (batch, frames, mel), normalised log-mel, see
                :class:`ssamba_upstream.feature_extraction.SsambaFeatureExtractor`; or, with ``window_lengths``,
                (batch, windows * frames, mel), each recording's windows concatenated in time.
            labels: targets. With the problem type "single_label_classification": (batch,) class indices, or
                (batch, classes) floating-point probabilities, as from mixup; the loss is the cross-entropy. With
                "multi_label_classification": (batch, classes) floating point from 0 to 1; the loss is the binary
                cross-entropy. If the configuration has no problem type, integers imply the first and floating point
                the second.
            output_hidden_states: if True, return ``hidden_states``, see :class:`SsambaModel`.
            return_dict: if True, return a ``SequenceClassifierOutput``, otherwise a tuple.
            window_lengths: (batch, windows), the length of audio in each window, in any unit; 0 for windows that a
                shorter recording lacks. With several windows, their probabilities are averaged, see
                :func:`pool_windows`.

        Returns:
            ``loss``, if labels are given, ``logits`` (batch, classes) and ``hidden_states``.

        Raises:
            ValueError: If inputs or labels have the wrong shape or type, labels are out of range, or hidden states of
                windows are requested.
        """
        if window_lengths is None or window_lengths.shape == (len(input_values), 1):
            logits, hidden_states = self._classify(input_values, output_hidden_states)
        else:
            if output_hidden_states:
                raise ValueError("hidden states are returned for clips only, not for windows of longer recordings. "
                                 "Leave output_hidden_states out")
            logits, hidden_states = self._classify_windows(input_values, window_lengths), None
        loss = None if labels is None else clip_loss(logits, labels, self.config.problem_type)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return self._returned(output, return_dict)

    def _classify(self, input_values, output_hidden_states):
        """Return the logits of clips, and their hidden states or None."""
        tokens, hidden_states = self._encode(input_values, output_hidden_states)
        features = tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1)
        return self._logits(features), hidden_states

    def _classify_windows(self, input_values, lengths):
        """Map (batch, windows * frames, mel) and the windows' lengths, (batch, windows), to (batch, classes)."""
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
    """SSAMBA with a head for the class of each second of a clip.

    The head reads the mean of all patches whose column is centred in that second. The published code differs, see
    docs/architecture.md.

    Raises:
        ValueError: If ``problem_type`` is "multi_label_classification".
    """

    HEAD = "frame_classifier"
    labels_seconds = True
    accepts_loss_kwargs = True  # transformers' Trainer then passes num_items_in_batch

    def __init__(self, config):
        if config.problem_type == MULTI:
            raise ValueError(f"each second has exactly one class. Set problem_type to {SINGLE} or None")
        super().__init__(config)

    def forward(
        self, input_values, labels=None, output_hidden_states=None, return_dict=None, window_lengths=None,
        num_items_in_batch=None,
    ):
        """Classify each second of clips.

        Args:
            input_values: (batch, frames, mel), normalised log-mel. The network reads frames after the last whole
                second, but they get no label.
            labels: (batch, seconds) class indices, -100 for unlabelled seconds. The loss is the mean cross-entropy over
                labelled seconds, or 0 if there are none.
            output_hidden_states: if True, return ``hidden_states``, see :class:`SsambaModel`.
            return_dict: if True, return a ``TokenClassifierOutput``, otherwise a tuple.
            window_lengths: see :class:`SsambaModel`.
            num_items_in_batch: number of labelled seconds by which the summed cross-entropy is divided. With gradient
                accumulation, transformers' Trainer passes the count over all parts. Default: the count in ``labels``.

        Returns:
            ``loss``, if labels are given, ``logits`` (batch, seconds, classes) and ``hidden_states``.

        Raises:
            ValueError: If inputs or labels have the wrong shape or type, labels are out of range, the input is shorter
                than a second, a second contains no column's centre, or there are several windows.
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
    """Count the columns of patches centred in each whole second of a clip, whose length is in fbank frames.

    Raises:
        ValueError: If the clip is shorter than a second, or a second has no column.
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
        raise ValueError(f"second {counts.index(0)} contains no patch's centre. Patches of {config.patch_size[1]} "
                         f"frames every {config.time_stride} frames are too long to label seconds")
    return counts


def pool_windows(logits, lengths, several):
    """Return recordings' logits, whose probabilities are the windows' probabilities averaged by length.

    Args:
        logits: logits of windows, (batch, windows, classes).
        lengths: (batch, windows), 0 for windows that a recording lacks; each recording has at least one.
        several: if True, a probability is the sigmoid of its logit, for classes that can occur together; otherwise
            probabilities are a softmax over all classes.

    Returns:
        (batch, classes); log-probabilities in the softmax case.
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
    """Return the loss of clips' logits (batch, classes); see :meth:`SsambaForAudioClassification.forward`."""
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
        raise ValueError("floating-point labels must be from 0 to 1")
    labels = labels.to(scores.dtype)
    if problem_type == MULTI:
        return F.binary_cross_entropy_with_logits(scores, labels)
    if not torch.allclose(labels.sum(dim=1), labels.new_ones(()), atol=1e-2):
        raise ValueError(f"a clip's class probabilities must sum to 1 if problem_type is {SINGLE}. For clips with "
                         f"several classes, set problem_type to {MULTI}")
    return F.cross_entropy(scores, labels)


def seconds_loss(logits, labels, labelled=None):
    """Return the loss of seconds' logits (batch, seconds, classes); see
    :meth:`SsambaForAudioFrameClassification.forward`."""
    _check_indices(labels, logits.shape[:2], logits.shape[2], IGNORED)
    scores = _at_least_float32(logits)
    total = F.cross_entropy(scores.flatten(0, 1), labels.long().flatten(), ignore_index=IGNORED, reduction="sum")
    return total / ((labels != IGNORED).sum().clamp(min=1) if labelled is None else labelled)


def _check_indices(labels, shape, classes, ignored=None):
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != shape:
        raise ValueError(f"labels must be class indices, int64 and {tuple(shape)}; got {labels.dtype} and "
                         f"{tuple(labels.shape)}")
    known, besides = (labels >= 0) & (labels < classes), ""
    if ignored is not None:
        known, besides = known | (labels == ignored), f", or {ignored}"
    if not known.all():
        raise ValueError(f"labels must be from 0 to {classes - 1}{besides}; got {labels.min()} to {labels.max()}")


def _at_least_float32(logits):
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
