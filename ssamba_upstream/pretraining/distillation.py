"""Distillation: a student predicts a teacher's frames at the student's columns of patches."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from ..audio import SAMPLE_RATE, resampler
from ..devices import send
from ..store import HiddenStateStore
from .teachers import TeacherError

SMALLEST_DEVIATION = 1e-2
"""Lower bound of a teacher feature's deviation over the features' mean, so constant features are not magnified."""


class Targets:
    """A student's targets: the teacher's frames at the student's columns, standardised.

    The teacher processes each piece of a clip separately, before it is cut. Pieces recur in later epochs (the clips
    joined from them do not), so the teacher's outputs are computed once and stored. Targets are interpolated linearly
    between the centres of two frames; before the first and after the last frame they are constant.

    Args:
        teacher: see :class:`ssamba_upstream.pretraining.teachers.Teacher`.
        layers: indices of the predicted hidden states.
        config: the student's SsambaConfig.
        folder: folder of the store with the teacher's outputs.

    Attributes:
        mean, deviation: (layers, width), statistics of the teacher's features on the first training clips.

    Raises:
        TeacherError: If the teacher lacks one of the layers.
    """

    def __init__(self, teacher, layers, config, folder):
        missing = [layer for layer in layers if not -teacher.layers <= layer < teacher.layers]
        if missing:
            raise TeacherError(f"{teacher.name} has no hidden state {missing[0]}. Its {teacher.layers} hidden states "
                               "are numbered from 0.")
        self.teacher, self.layers, self.config, self.rate = teacher, layers, config, config.sampling_rate
        self.shape = len(layers), teacher.width
        self.store = HiddenStateStore(folder, {
            **teacher.description(), "feature": f"hidden states {layers}", "time": "all", "sampling_rate": self.rate,
        })
        self.mean = self.deviation = None

    def __call__(self, batch, time_stride):
        """Return a batch's targets, (clips, columns, layers, width) float32, and a mask of the columns that have one,
        (clips, columns) bool; both on the CPU. The batch has its pieces; patches are ``time_stride`` frames apart."""
        targets, counted = self._raw(batch, time_stride)
        return (targets - self.mean) / self.deviation, counted

    def measure(self, batches, processes):
        """Compute mean and deviation from the batches of all processes."""
        sums = torch.zeros(2, *self.shape, dtype=torch.float64)
        count = 0
        for batch in batches:
            targets, counted = self._raw(batch, self.config.time_stride)
            found = targets[counted].double()
            sums += torch.stack([found.sum(0), found.square().sum(0)])
            count += len(found)
        parts = processes.gather((sums, count))
        mean, square = sum(part for part, _ in parts) / sum(number for _, number in parts)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        self.mean = mean.float()
        self.deviation = deviation.clamp(min=SMALLEST_DEVIATION * deviation.mean().item()).float()

    def state(self):
        return {"mean": self.mean, "deviation": self.deviation}

    def restore(self, state):
        self.mean, self.deviation = state["mean"], state["deviation"]

    def _raw(self, batch, time_stride):
        lengths = [length for clip in batch.piece_lengths for length in clip]
        frames = iter(self._frames(batch.pieces.split(lengths)))
        all_centres = _centres(self.config, batch.waveforms.shape[1], time_stride)
        targets = torch.zeros(len(batch.lengths), len(all_centres), *self.shape)
        counted = torch.zeros(targets.shape[:2], dtype=torch.bool)
        for row, among, pieces, length in zip(targets, counted, batch.piece_lengths, batch.lengths.tolist()):
            centres = all_centres.clone()
            centres[0] = min(centres[0].item(), length - 1)  # for a clip that ends within its first column
            for start, piece in zip(itertools.accumulate(pieces, initial=0), pieces):
                within = (start <= centres) & (centres < min(start + piece, length))
                times = (centres[within] - start) * (SAMPLE_RATE / self.rate)
                row[within] = interpolate(next(frames), (times - self.teacher.centre) / self.teacher.hop)
                among |= within
        return targets, counted

    def _frames(self, pieces):
        """Return the teacher's hidden states of each piece, (frames, layers, width) float32."""
        stacked, counts = self.store.read_or_compute(pieces, self._compute)
        return [states[:, :count].transpose(0, 1).float() for states, count in zip(stacked.unbind(1), counts)]

    def _compute(self, pieces):
        if self.rate != SAMPLE_RATE:
            pieces = [resampler(self.rate, SAMPLE_RATE)(piece) for piece in pieces]
        return [states[self.layers] for states in self.teacher(pieces)]


def _centres(config, samples, time_stride):
    """Return (columns,) float64: the sample at the centre of each column's receptive field."""
    front_end, width = config.front_end, config.patch_size[1]
    seen = (width - 1) * front_end.shift_samples + front_end.frame_samples
    firsts = torch.arange(0, front_end.frames_of(samples) - width + 1, time_stride)
    return firsts.double() * front_end.shift_samples + seen / 2


def interpolate(frames, places):
    """Interpolate linearly between frames, (frames, ...), at places in frames from the first one's centre, (points,).
    Return (points, ...)."""
    places = places.clamp(0, len(frames) - 1)
    before = places.floor().long()
    after = (before + 1).clamp(max=len(frames) - 1)
    share = (places - before).to(frames.dtype).view(-1, *[1] * (frames.dim() - 1))
    return torch.lerp(frames[before], frames[after], share)


class Student(nn.Module):
    """A network with a head that predicts the teacher; the head is discarded after training.

    A column's prediction is a linear function of the mean of its patches' tokens, after the final norm for tokens of
    the last block, otherwise after a norm without parameters.

    Args:
        network: a SsambaForPreTraining.
        recipe: a PretrainingRecipe with a teacher.
        shape: (layers, width) of the targets.
    """

    def __init__(self, network, recipe, shape):
        super().__init__()
        self.network, self.shape = network, shape
        self.block = (recipe.student_layer or len(network.ssamba.layers)) - 1
        self.masked, self.self_supervised = recipe.teacher_input == "masked", recipe.self_supervised
        self.weight = recipe.distillation_weight
        self.head = nn.Linear(network.config.hidden_size, shape[0] * shape[1])
        if not self.self_supervised:
            network.contrastive_head.requires_grad_(False)
            network.reconstruction_head.requires_grad_(False)
            network.mask_embed.requires_grad_(self.masked)

    def forward(self, input_values, *masks, targets, counted, time_stride):
        """Compute the losses of a batch.

        Args:
            input_values: (clips, frames, mel), normalised log-mel.
            masks: see :class:`SsambaForPreTraining`; none if nothing is masked.
            targets, counted, time_stride: see :class:`Targets`.

        Returns:
            dict of scalars: ``loss``, ``distillation_loss``, ``teacher_similarity`` (mean cosine of predictions and
            targets, without gradient), and, with a self-supervised loss, the outputs of SsambaForPreTraining.
        """
        output, streams = {}, []
        if self.self_supervised:
            output = self.network(input_values, *masks, streams=streams)
        if not self.self_supervised or not self.masked:
            with self.network.ssamba.patches_apart(time_stride):
                streams = self._streams(input_values, masks[0] if self.masked else None)
        predictions = self.head(self._columns(streams)).unflatten(2, self.shape)
        loss, similarity = distillation_loss(predictions, targets, counted)
        whole = self.weight * loss + output.get("loss", 0)
        return {**output, "loss": whole, "distillation_loss": loss, "teacher_similarity": similarity}

    def _streams(self, input_values, mask):
        encoder, streams = self.network.ssamba, []
        if mask is not None:
            mask = send(mask, input_values.device)
        encoder.mix(encoder.embed(input_values, mask, self.network.mask_embed), streams=streams)
        return streams

    def _columns(self, streams):
        """Return the mean token of each column, normalised: (clips, columns, E)."""
        encoder, stream = self.network.ssamba, streams[self.block]
        last = self.block == len(streams) - 1
        normalised = encoder.norm_f(stream) if last else F.layer_norm(stream, stream.shape[-1:])
        return normalised[:, 1:].unflatten(1, (encoder.config.num_patch_rows, -1)).mean(1)


def distillation_loss(predictions, targets, counted):
    """Return the squared error plus one minus the cosine, for standardised targets.

    The squared error leads predictions to the mean of the teacher's possible outputs, and the cosine preserves their
    direction when these means are short. Standardised features have no outliers that would require an L1 loss.

    Args:
        predictions, targets: (clips, columns, layers, width).
        counted: (clips, columns) bool, True for columns with a target.

    Returns:
        (loss, similarity): float32 means over the counted columns; the similarity is the cosine, without gradient.
    """
    predictions = predictions.float()
    share = counted / counted.sum()
    error = (predictions - targets).square().mean((2, 3))
    similarity = F.cosine_similarity(predictions, targets, dim=3).mean(2)
    return (share * (error + 1 - similarity)).sum(), (share * similarity).sum().detach()
