"""Repairs and checks of the frames passed from an upstream to a downstream: their number, layer and hop."""

import functools
import math

import torch

from ...frames import FrameEncoder
from . import wrap

LONGEST_HOPS = {
    "asr": 640, "ctc": 640, "sv_voxceleb1": 640, "diarization": 640, "quesst14_dtw": 640,
    "enhancement_stft": 320, "enhancement_stft2": 320, "separation_stft": 320, "separation_stft2": 320,
}
"""Longest hop in samples with which a downstream works. CTC needs at least one frame per token, the x-vector 15 frames;
diarization's labels and DTW's queries are as coarse as the frames; an STFT of 512 samples is inverted from overlapping
windows."""

PRESETS = {640: "hop_40ms", 320: "hop_20ms"}

REASONS = {
    "asr": "utterances have more characters than frames", "ctc": "utterances have more tokens than frames",
    "sv_voxceleb1": "the x-vector takes 14 frames from every utterance",
    "diarization": "its labels are as coarse as the frames", "quesst14_dtw": "queries under 5 frames score 0",
}

SPLITS = {"voxceleb1", "emotion", "speech_commands", "fluent_commands", "sv_voxceleb1", "diarization", "ctc",
          "quesst14_dtw", "enhancement_stft", "separation_stft"}
"""Downstreams whose splits are train, dev and test."""


class RunError(ValueError):
    """Raised for a run that s3prl's runner cannot do; says why, and what to do."""


def check_hop(downstream, hop):
    """Raise a RunError, which names the preset to use, if frames every ``hop`` samples at 16 kHz are too far apart for
    a downstream (s3prl's ``-d``)."""
    longest = LONGEST_HOPS.get(downstream, math.inf)
    if hop > longest:
        reason = REASONS.get(downstream, "the windows of its STFT, 512 samples, would not overlap")
        raise RunError(f"-d {downstream} needs a frame at least every {longest / 16:g} ms, but this upstream gives one "
                       f"every {hop / 16:g} ms: {reason}. Add -g {PRESETS[longest]}.")


def scale_time_masks(config, hop):
    """Shorten SpecAugment's time masks for frames that are further apart than their widths are meant for.

    ``specaug_hop`` in a config is the hop in samples for which the widths are meant: 320 for SUPERB's. Frames that are
    closer together keep the widths, as ``fbank`` does in SUPERB. A resumed run finds its own hop in the config, so it
    keeps the widths. The config is changed in place; the hop is in samples at 16 kHz.
    """
    meant_for = config.get("specaug_hop")
    if not config.get("specaug") or not meant_for or hop <= meant_for:
        return
    shortest, longest = config["specaug"]["time_mask_width_range"]
    scaled = [round(shortest * meant_for / hop), max(1, round(longest * meant_for / hop))]
    config["specaug"]["time_mask_width_range"], config["specaug_hop"] = scaled, hop
    print(f"SpecAugment's time masks: {scaled[0]} to {scaled[1]} frames of {hop / 16:g} ms instead of {shortest} to "
          f"{longest} of {meant_for / 16:g} ms (same duration)")


def check_split(downstream, config, split):
    """Raise a RunError, which names the splits that a downstream has, if it lacks one."""
    if downstream == "asr":
        splits = [name for name, value in config["downstream_expert"]["datarc"].items()
                  if isinstance(value, list)]
    elif downstream in SPLITS:
        splits = ["train", "dev", "test"]
    else:
        return
    if split not in splits:
        raise RunError(f"-t {split}: -d {downstream} has no such split. Choose from {', '.join(splits)}.")


def check_runs(module):
    """Make s3prl's runner check the hop and split before it trains or evaluates, and fit time masks to the frames."""

    @wrap(module.Runner, "_get_downstream")
    def get_checked_downstream(get_downstream, self):
        hop = self.featurizer.model.downsample_rate
        check_hop(self.args.downstream, hop)
        if self.args.mode == "train":
            scale_time_masks(self.config, hop)
        if self.args.mode == "evaluate":
            check_split(self.args.downstream, self.config, self.args.evaluate_split)
        return get_downstream(self)


class StackedLayers(list):
    """Hidden states as input for s3prl's Featurizer, a list of (utterances, frames, width).

    Attributes:
        stacked: (layers, utterances, frames, width) in any dtype, of which the list's tensors are views.
        frames: number of frames of each utterance. Later frames are zeros.
    """

    def __init__(self, stacked, frames):
        super().__init__(stacked)
        self.stacked, self.frames = stacked, frames


class WeightedSum(torch.autograd.Function):
    """The weighted sum of kept layers, (layers,) times (layers, features) in any dtype, as (features,) float32.

    On a CPU, blocks of features are widened to float32 one by one, so that they stay in the cache; gradients reach
    only the weights.
    """

    BLOCK = 2**15  # features of all layers

    @staticmethod
    def forward(context, weights, layers):
        context.save_for_backward(layers)
        return torch.cat([weights @ block.float() for block in WeightedSum.blocks(layers)])

    @staticmethod
    def backward(context, gradient):
        layers, = context.saved_tensors
        blocks = WeightedSum.blocks(layers)
        gradients = gradient.split(blocks[0].shape[1])
        return sum(block.float() @ part for block, part in zip(blocks, gradients)), None

    @staticmethod
    def blocks(layers):
        return layers.split(WeightedSum.BLOCK if layers.device.type == "cpu" else max(1, layers.shape[1]), dim=1)


def count_frames(upstream, samples, rate):
    """Return how many of an utterance's frames reach the downstream, at a rate in samples per frame."""
    count = math.ceil if isinstance(getattr(upstream, "module", upstream), FrameEncoder) else round
    return max(1, count(samples / rate))


def keep_frames(module):
    """Make ``Featurizer`` keep all frames; it rounds their number, which drops up to half a frame or a short utterance.

    It then keeps every frame, ceil(samples / hop), of this package's upstreams. For other upstreams the number is
    unchanged, but at least one. A missing feature or layer raises a RunError instead of being replaced or raising an
    IndexError.
    """

    @wrap(module.Featurizer, "__init__")
    def build_and_check(build, self, upstream, feature_selection="hidden_states", *others, **named):
        build(self, upstream, feature_selection, *others, **named)
        if self.feature_selection != feature_selection:
            raise RunError(f"-s {feature_selection}: the upstream has no such feature. Use hidden_states or "
                           "last_hidden_state.")
        self._count = functools.partial(count_frames, upstream)

    @wrap(module.Featurizer, "_select_feature")
    def select_existing(select, self, features):
        layers, layer = features.get(self.feature_selection), self.layer_selection
        if isinstance(layers, StackedLayers) and len(layers) == 1:
            layer = 0
        if isinstance(layers, (list, tuple)) and layer is not None and not -len(layers) <= layer < len(layers):
            raise RunError(f"-l {layer}: the upstream has layers 0 to {len(layers) - 1}")
        if isinstance(layers, StackedLayers) and layer is not None:
            return layers[layer].float()
        return select(self, features)

    def tolist(self, paired_wavs, paired_feature):
        lengths = [self._count(len(wav), self.downsample_rate) for wav in paired_wavs]
        if abs(paired_feature.size(1) - max(lengths)) >= module.TOLERABLE_SEQLEN_DIFF:
            raise RunError(f"the upstream returned {paired_feature.size(1)} frames, but its rate of "
                           f"{self.downsample_rate} samples per frame implies {max(lengths)}")
        if self._frames is not None:
            lengths = map(min, lengths, self._frames)
        return [feature[:length] for feature, length in zip(paired_feature, lengths)]

    @wrap(module.Featurizer, "_weighted_sum")
    def add_up_at_once(add_up, self, layers):
        if not isinstance(layers, StackedLayers):
            return add_up(self, layers)
        if self.normalize:
            return add_up(self, [layer.float() for layer in layers])
        shape = layers.stacked.shape[1:]
        return WeightedSum.apply(self.weights.softmax(dim=0), layers.stacked.flatten(1)).unflatten(0, shape)

    @wrap(module.Featurizer, "forward")
    def forward_known_frames(forward, self, paired_wavs, paired_features):
        layers = paired_features.get(self.feature_selection)
        self._frames = layers.frames if isinstance(layers, StackedLayers) else None
        return forward(self, paired_wavs, paired_features)

    module.Featurizer.tolist = tolist


# CTC


class _CTCAlignments:
    """A counter of utterances that a CTC loss cannot align, and for which the loss is 0 (``zero_infinity``)."""

    def __init__(self, objective):
        self._counts = {"train": [0, 0], "evaluation": [0, 0]}  # utterances with too few frames, all utterances
        objective.register_forward_pre_hook(self._count)

    def _count(self, objective, arguments):
        _, tokens, frames, lengths = arguments
        counts = self._counts["train" if objective.training else "evaluation"]
        counts[0] += int(_have_too_few_frames(tokens, frames, lengths).sum())
        counts[1] += len(lengths)

    def report(self, split):
        """Print the number of such utterances since the last report, if any; if they were all of the training, raise a
        RunError."""
        counts = self._counts["train" if split == "train" else "evaluation"]
        short, total = counts
        counts[:] = 0, 0
        if not short:
            return
        print(f"{split}: {short} of {total} utterances have more tokens than frames; their CTC loss is 0, so nothing "
              "is learnt from them.")
        if split == "train" and short == total:
            raise RunError(f"All of the last {total} utterances have more tokens than frames, so the CTC loss is 0 and "
                           "nothing is learnt. Use frames that are closer together (-g hop_20ms; in s3prl's newer "
                           "recipes --build_upstream.extra_conf \"{'time_stride': 2}\") or other transcripts.")


def _have_too_few_frames(tokens, frames, lengths) -> torch.Tensor:
    """Return (N,) bool: True if CTC needs more frames, one per token and one more between equal tokens."""
    tokens, frames, lengths = tokens.cpu(), frames.cpu(), lengths.cpu()
    within = torch.arange(1, tokens.shape[1]) < lengths[:, None]
    repeats = ((tokens[:, 1:] == tokens[:, :-1]) & within).sum(dim=1)
    return frames < lengths + repeats


def report_alignments(module, owner, objective, report_name):
    """Report utterances with more tokens than frames; raise RunError if training has no others.

    ``owner`` names the class that computes the loss, and the other names its loss and its method that reports metrics.
    """
    owner = getattr(module, owner)

    @wrap(owner, "__init__")
    def build_and_count(build, self, *args, **kwargs):
        build(self, *args, **kwargs)
        self._alignments = _CTCAlignments(getattr(self, objective))

    @wrap(owner, report_name)
    def report_both(report, self, split, *args, **kwargs):
        self._alignments.report(split)
        return report(self, split, *args, **kwargs)
