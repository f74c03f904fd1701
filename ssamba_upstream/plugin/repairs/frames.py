"""The upstream's frames on their way to a downstream: how many, of which layer, and whether they are enough."""

import functools
import math

import torch

from ...frames import FrameEncoder

LONGEST_HOPS = {
    "asr": 640, "ctc": 640, "sv_voxceleb1": 640, "diarization": 640, "quesst14_dtw": 640,
    "enhancement_stft": 320, "enhancement_stft2": 320, "separation_stft": 320, "separation_stft2": 320,
}
"""Samples from frame to frame up to which a downstream works. CTC needs as many frames as tokens, the x-vector 15,
diarization's labels and DTW's queries are as coarse as the frames, and an STFT of 512 samples is inverted from
windows that overlap."""

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
    """What was asked of s3prl's runner cannot be done; says why, and what to do."""


def check_hop(downstream, hop):
    """Refuse frames that are too far apart for a downstream.

    Args:
        downstream: its name, as with ``-d``.
        hop: samples from frame to frame at 16 kHz.

    Raises:
        RunError: they are; names the preset to take.
    """
    longest = LONGEST_HOPS.get(downstream, math.inf)
    if hop > longest:
        reason = REASONS.get(downstream, "the windows of its STFT, 512 samples, would not overlap")
        raise RunError(f"-d {downstream} needs a frame every {longest / 16:g} ms or more often, and this upstream "
                       f"gives one every {hop / 16:g} ms: {reason}. Add -g {PRESETS[longest]}.")


def scale_time_masks(config, hop):
    """Shorten SpecAugment's time masks for frames that are further apart than those their widths are meant for.

    A config says what they are meant for with ``specaug_hop``, in samples: SUPERB's widths with 320. Frames that are
    closer together keep the widths, as ``fbank`` does in SUPERB. A resumed run finds its own hop there, and so the
    widths as they are.

    Args:
        config: s3prl's; changed in place.
        hop: samples from frame to frame at 16 kHz.
    """
    meant_for = config.get("specaug_hop")
    if not config.get("specaug") or not meant_for or hop <= meant_for:
        return
    shortest, longest = config["specaug"]["time_mask_width_range"]
    scaled = [round(shortest * meant_for / hop), max(1, round(longest * meant_for / hop))]
    config["specaug"]["time_mask_width_range"], config["specaug_hop"] = scaled, hop
    print(f"SpecAugment's time masks: {scaled[0]} to {scaled[1]} frames of {hop / 16:g} ms instead of {shortest} to "
          f"{longest} of {meant_for / 16:g} ms, which last as long")


def check_split(downstream, config, split):
    """Refuse a split that a downstream does not have.

    Raises:
        RunError: naming those that it has.
    """
    if downstream == "asr":
        splits = [name for name, value in config["downstream_expert"]["datarc"].items()
                  if isinstance(value, list)]
    elif downstream in SPLITS:
        splits = ["train", "dev", "test"]
    else:
        return
    if split not in splits:
        raise RunError(f"-t {split}: -d {downstream} has no such split; there are {', '.join(splits)}")


def check_runs(module):
    """Have s3prl's runner refuse, before it trains or evaluates, what could only fail or mean nothing, and fit time
    masks to the frames."""
    get_downstream = module.Runner._get_downstream

    @functools.wraps(get_downstream)
    def get_checked_downstream(self):
        hop = self.featurizer.model.downsample_rate
        check_hop(self.args.downstream, hop)
        if self.args.mode == "train":
            scale_time_masks(self.config, hop)
        if self.args.mode == "evaluate":
            check_split(self.args.downstream, self.config, self.args.evaluate_split)
        return get_downstream(self)

    module.Runner._get_downstream = get_checked_downstream


class StackedLayers(list):
    """Hidden states as s3prl's Featurizer takes them, a list of (utterances, frames, width).

    Attributes:
        stacked: (layers, utterances, frames, width), of which the list's tensors are views.
        frames: number of frames of each utterance. Later frames are zeros.
    """

    def __init__(self, stacked, frames):
        super().__init__(stacked)
        self.stacked, self.frames = stacked, frames


def count_frames(upstream, samples, rate):
    """Return how many frames of an utterance reach the downstream, at a rate in samples per frame."""
    count = math.ceil if isinstance(getattr(upstream, "module", upstream), FrameEncoder) else round
    return max(1, count(samples / rate))


def keep_frames(module):
    """``Featurizer`` rounds the number of frames: up to half a frame is lost, and of a short utterance all.

    Of this package's upstreams it keeps every frame, ceil(samples / hop); of any other as many as ever, but never
    none. A feature or a layer that the upstream lacks is refused instead of replaced, or left to an IndexError.
    """
    build, select = module.Featurizer.__init__, module.Featurizer._select_feature
    add_up, forward = module.Featurizer._weighted_sum, module.Featurizer.forward

    @functools.wraps(build)
    def build_and_check(self, upstream, feature_selection="hidden_states", *others, **named):
        build(self, upstream, feature_selection, *others, **named)
        if self.feature_selection != feature_selection:
            raise RunError(f"-s {feature_selection}: the upstream has no such feature; take hidden_states or "
                           "last_hidden_state")
        self._count = functools.partial(count_frames, upstream)

    @functools.wraps(select)
    def select_existing(self, features):
        layers, layer = features.get(self.feature_selection), self.layer_selection
        if isinstance(layers, StackedLayers) and len(layers) == 1:
            return layers[0]
        if isinstance(layers, (list, tuple)) and layer is not None and not -len(layers) <= layer < len(layers):
            raise RunError(f"-l {layer}: the upstream has the layers 0 to {len(layers) - 1}")
        return select(self, features)

    def tolist(self, paired_wavs, paired_feature):
        lengths = [self._count(len(wav), self.downsample_rate) for wav in paired_wavs]
        if abs(paired_feature.size(1) - max(lengths)) >= module.TOLERABLE_SEQLEN_DIFF:
            raise RunError(f"the upstream gave {paired_feature.size(1)} frames where its rate of "
                           f"{self.downsample_rate} samples a frame means {max(lengths)}")
        if self._frames is not None:
            lengths = map(min, lengths, self._frames)
        return [feature[:length] for feature, length in zip(paired_feature, lengths)]

    @functools.wraps(add_up)
    def add_up_at_once(self, layers):
        if not isinstance(layers, StackedLayers) or self.normalize:
            return add_up(self, layers)
        stacked = layers.stacked
        return (self.weights.softmax(dim=0) @ stacked.flatten(1)).unflatten(0, stacked.shape[1:])

    @functools.wraps(forward)
    def forward_known_frames(self, paired_wavs, paired_features):
        layers = paired_features.get(self.feature_selection)
        self._frames = layers.frames if isinstance(layers, StackedLayers) else None
        return forward(self, paired_wavs, paired_features)

    module.Featurizer.__init__ = build_and_check
    module.Featurizer._weighted_sum = add_up_at_once
    module.Featurizer.forward = forward_known_frames
    module.Featurizer._select_feature = select_existing
    module.Featurizer.tolist = tolist


# CTC


class _CTCAlignments:
    """Counts the utterances that a CTC loss cannot align, which it gives a loss of 0 (``zero_infinity``).

    Args:
        objective: the loss, which is counted from now on.
    """

    def __init__(self, objective):
        self._counts = {"train": [0, 0], "evaluation": [0, 0]}  # of those with too few frames, and of all
        objective.register_forward_pre_hook(self._count)

    def _count(self, objective, arguments):
        _, tokens, frames, lengths = arguments
        counts = self._counts["train" if objective.training else "evaluation"]
        counts[0] += int(_have_too_few_frames(tokens, frames, lengths).sum())
        counts[1] += len(lengths)

    def report(self, split):
        """Print how many there were since the last report, if any.

        Raises:
            RunError: in training there was no other.
        """
        counts = self._counts["train" if split == "train" else "evaluation"]
        short, total = counts
        counts[:] = 0, 0
        if not short:
            return
        print(f"{split}: {short} of {total} utterances have more tokens than frames; CTC gives them a loss of 0, and "
              "nothing is learnt from them.")
        if split == "train" and short == total:
            raise RunError(f"All of the last {total} utterances have more tokens than frames: the CTC loss is 0, and "
                           "nothing is learnt. Take frames that are closer together (-g hop_20ms; in s3prl's newer "
                           "recipes --build_upstream.extra_conf \"{'time_stride': 2}\"), or other transcripts.")


def _have_too_few_frames(tokens, frames, lengths) -> torch.Tensor:
    """Whether an utterance (N,) has fewer frames than CTC needs: one a token, one more between equal neighbours."""
    tokens, frames, lengths = tokens.cpu(), frames.cpu(), lengths.cpu()
    within = torch.arange(1, tokens.shape[1]) < lengths[:, None]
    repeats = ((tokens[:, 1:] == tokens[:, :-1]) & within).sum(dim=1)
    return frames < lengths + repeats


def _report_alignments(owner, objective, report_name):
    """Have ``owner`` count for its loss, the attribute ``objective``, and say so where it reports its metrics."""
    build, report = owner.__init__, getattr(owner, report_name)

    @functools.wraps(build)
    def build_and_count(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self._alignments = _CTCAlignments(getattr(self, objective))

    @functools.wraps(report)
    def report_both(self, split, *args, **kwargs):
        self._alignments.report(split)
        return report(self, split, *args, **kwargs)

    owner.__init__ = build_and_count
    setattr(owner, report_name, report_both)


def report_alignments_of_downstream(module):
    """``ctc`` and ``asr``: utterances with more tokens than frames are counted, and refused if there is no other."""
    _report_alignments(module.DownstreamExpert, "objective", "log_records")


def report_alignments_of_task(module):
    """The same of s3prl's newer recipes."""
    _report_alignments(module.Speech2TextCTCTask, "criterion", "reduction")
