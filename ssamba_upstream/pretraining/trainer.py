"""The pretraining loop: clips -> log-mel -> masks -> losses -> AdamW step."""

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoint import content_hash, load_model
from ..corpora.labelled import read_labelled
from ..devices import send
from ..figures import load_pyplot
from ..frontend import LogMel
from ..network.masking import cluster_mask
from ..network.pretraining import SsambaForPreTraining
from ..probing.features import time_averages
from ..probing.geometry import effective_rank
from ..probing.linear import cross_validate, train_probes
from ..training.augmentation import augment_waveforms
from ..training.batches import batch_to_fbank
from ..training.distributed import start_processes
from ..training.loop import VALIDATION, Run, seed_of, signals
from ..training.recipe import RecipeError
from ..training.run_folder import check_continuation, describe_run, lock_run
from ..training.training_state import TrainingError, training_states
from .batches import in_turn, training_batches, validation_batches
from .curves import draw_curves
from .distillation import Student, Targets
from .model_card import save_result
from .recipe import PretrainingRecipe
from .teachers import Teacher, load_teacher

COLLAPSED = 1.5  # effective rank below which representations hardly differ
CLIPS_OF_RANK = 512  # for the effective rank; more clips hardly change it
CLIPS_OF_STATISTICS = 256  # for the statistics of the teacher's features


def pretrain(recipe: PretrainingRecipe, out: str | os.PathLike, resume: bool = False, device: str | None = None,
             teachers: Mapping[str, type[Teacher]] | None = None) -> bool:
    """Pretrain a network.

    Args:
        recipe: a PretrainingRecipe.
        out: the run's folder. It receives the checkpoints ``best`` (by validation accuracy) and ``last``; ``run.json``,
            with the recipe, the manifests' hashes and the environment; ``states``, for ``resume``; ``log.jsonl`` and
            ``tensorboard``; ``teacher``, the outputs of a teacher; and, at the end, ``curves.png``.
        resume: If True, resume from the newest state in ``out``, or start a run if there is none.
        device: "cpu" or "cuda". Default: "cuda" if available.
        teachers: additional kinds of teachers, see :func:`ssamba_upstream.pretraining.teachers.load_teacher`.

    Returns:
        True if all steps are done, False if a signal (SIGINT, SIGTERM) stopped the run after saving its state.

    Raises:
        ManifestError: If no audio is readable.
        CheckpointError: If the recipe's checkpoint cannot be read.
        RecipeError: If the recipe or the manifests differ from those of the run to resume.
        FileExistsError: If ``out`` is not empty and ``resume`` is False.
        BlockingIOError: If another run is writing into ``out``.
        TeacherError: If the teacher cannot be used.
        StoreError: If the teacher's outputs are not finite.
        TrainingError: If ten consecutive steps had no finite gradient, or the state cannot be saved or read.
    """
    out = Path(out)
    with start_processes(device) as processes, signals() as stopped, lock_run(out, processes):
        teacher = recipe.teacher and load_teacher(recipe.teacher, processes.device, teachers)
        hashes = {"teacher": teacher.description()} if teacher else {}
        if recipe.checkpoint:
            hashes["checkpoint"] = content_hash(recipe.checkpoint)
        description = describe_run(recipe, **hashes)
        if processes.first:
            check_continuation(out, description, recipe, resume)
        processes.wait()  # the others write the teacher's outputs into the folder, which must be empty until now
        return _Pretraining(recipe, out, description, processes, teacher).train(stopped)


class _Pretraining(Run):
    LOSSES = ("loss", "contrastive_loss", "contrastive_accuracy", "reconstruction_loss")
    DISTILLATION_LOSSES = ("distillation_loss", "teacher_similarity")

    def __init__(self, recipe, out, description, processes, teacher=None):
        self.config = config = recipe.config()
        torch.manual_seed(recipe.seed)
        model = SsambaForPreTraining(config).to(processes.device)
        if recipe.checkpoint and not training_states(out / "states"):
            _begin_with(model, recipe.checkpoint)
        model.ssamba.gradient_checkpointing = recipe.gradient_checkpointing
        model.ssamba.patch_embed.requires_grad_(recipe.patch_learning_rate > 0)
        self.targets, self.score = None, "contrastive_accuracy"
        if teacher:
            config.taught_by = teacher.credit
            self.targets = Targets(teacher, recipe.teacher_layers or [-1], config,
                                   recipe.teacher_outputs or out / "teacher")
            model = Student(model, recipe, self.targets.shape).to(processes.device)
            self.LOSSES = self.LOSSES if recipe.self_supervised else ("loss",)
            self.LOSSES, self.score = (*self.LOSSES, *self.DISTILLATION_LOSSES), "teacher_similarity"
        average = None
        if recipe.ema_decay:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        if processes.first:
            load_pyplot()  # so that a missing matplotlib fails now, not at the end of the run
        self.description, self.labelled = description, None
        if recipe.probe:
            self.labelled = read_labelled(recipe.probe)
            self.labelled.check_probes()  # otherwise the first probe would end the run
        self.samples = config.front_end.samples_of(config.pretraining_frames)
        self.forms = recipe.clip_forms or [[config.pretraining_frames, config.time_stride]]
        self.in_first_form = round(recipe.first_form_share * recipe.steps)
        self.log_mel = LogMel(config.front_end).to(processes.device)
        super().__init__(recipe, recipe.steps, out, processes, model, _parameter_groups(model, recipe), average)
        self.plateau = ReduceLROnPlateau(self.optimizer, mode="max", factor=0.5, patience=recipe.patience)

    def batches(self):
        recipe, processes, config = self.recipe, self.processes, self.config
        forms = [(max(1, round(self.clips * config.pretraining_frames / frames * stride / config.time_stride)),
                  config.front_end.samples_of(frames)) for frames, stride in self.forms]
        return training_batches(
            recipe.train, forms, recipe.seed, self.position, processes.rank, processes.world_size, recipe.workers,
            recipe.join_short, config.sampling_rate, self.targets is not None, self.in_first_form,
        )

    def forward(self, network, batch, generator):
        augmented = batch
        if self.recipe.augmentation:
            waveforms = augment_waveforms(send(batch.waveforms, self.processes.device), batch.lengths,
                                          self.config.sampling_rate, self.recipe.augmentation, generator)
            augmented = replace(batch, waveforms=waveforms)
        # Shards, whose positions are no numbers, have only one form.
        number = batch.position - 1 if len(self.forms) > 1 else 0
        _, time_stride = self.forms[in_turn(number, len(self.forms), self.in_first_form)]
        return self._losses(network, self._fbank(augmented), generator, self._targets(batch, time_stride))

    def _fbank(self, batch):
        """Return the log-mel of a batch, (clips, frames, mel)."""
        return batch_to_fbank(batch, self.log_mel, self.config.front_end.frames_of(batch.waveforms.shape[1]))

    def _targets(self, batch, time_stride):
        """Return the network's arguments other than the log-mel: with a teacher, the targets from the clean clips."""
        if self.targets is None:
            return {}
        targets, counted = (send(tensor, self.processes.device) for tensor in self.targets(batch, time_stride))
        return {"targets": targets, "counted": counted, "time_stride": time_stride}

    def _losses(self, network, fbank, generator, targets):
        config, recipe = self.config, self.recipe
        masks = [
            cluster_mask(len(fbank), *config.position_grid, config.masked_patches, generator,
                         recipe.masking == "published", config.cluster_sides)
            for _ in range(recipe.masks)
        ]
        with self.autocast():
            return network(fbank, *masks, **targets)

    def learning_rate_factor(self, step):
        """Return the cosine decay to zero; None with the plateau schedule, which sets the rates itself."""
        recipe = self.recipe
        if recipe.schedule == "plateau":
            return None
        done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))

    def update_average(self, step):
        self.average.update_parameters(self.model)

    def begin(self):
        if self.targets is not None:
            clips = self.processes.world_size * self.clips
            first = itertools.islice(self.batches(), -(-CLIPS_OF_STATISTICS // clips))
            self.targets.measure(first, self.processes)
        self._validate(0)

    def after_step(self, step, last):
        recipe = self.recipe
        if step % recipe.validate_every == 0 or last:
            self._validate(step)
        if recipe.probe and (step % recipe.probe_every == 0 or last):
            self._probe(step)

    def end(self):
        if self.processes.first:
            draw_curves(self.out / "log.jsonl", self.out / "curves.png")
        self.log.say(f"done: wrote the checkpoints {self.out / 'best'} and {self.out / 'last'}, and the curves "
                     f"{self.out / 'curves.png'}")

    @torch.no_grad()
    def _validate(self, step):
        """Log the losses on the validation clips, under fixed masks, as means over the distances between patches in the
        clip forms, and the effective rank of their representations; save the best network."""
        recipe, processes, model = self.recipe, self.processes, self._evaluated()
        model.eval()
        totals, averages = torch.zeros(len(self.LOSSES) + 1, dtype=torch.float64), []
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, VALIDATION, 0, processes.rank))
        strides = sorted({stride for _, stride in self.forms})
        batches = validation_batches(recipe.validation, self.clips, self.samples, processes.rank, processes.world_size,
                                     recipe.workers, recipe.join_short, self.config.sampling_rate,
                                     self.targets is not None)
        for batch in batches:
            self.unreadable += batch.unreadable
            if not len(batch.lengths):
                continue
            fbank = self._fbank(batch)
            outputs = [self._losses(model, fbank, generator, self._targets(batch, stride)) for stride in strides]
            losses = torch.stack([torch.stack([output[name] for name in self.LOSSES]) for output in outputs])
            values = losses.double().mean(0).cpu()
            totals += torch.cat([values, values.new_ones(1)]) * len(batch.lengths)
            if len(averages) * self.clips < CLIPS_OF_RANK // processes.world_size:
                averages.append(self._averages(model, fbank))
        *sums, count = processes.sum(totals.float().to(processes.device)).tolist()
        if not count:
            raise TrainingError(f"no validation clip can be read: {', '.join(recipe.validation)}")
        values = {name: total / count for name, total in zip(self.LOSSES, sums)}
        values["effective_rank"] = effective_rank(torch.cat(sum(processes.gather(averages), [])))
        self.log.record(step, "validation", clips=int(count), **values)
        if count > 1 and values["effective_rank"] < COLLAPSED:
            self.log.say(f"step {step}: the network has collapsed to nearly one representation (effective rank "
                         f"{values['effective_rank']:.2f}). Try a lower learning rate or a longer warm-up")
        score = values[self.score]
        if recipe.schedule == "plateau" and step > recipe.warmup_steps:
            self.plateau.step(score)
        if score > self.progress["best"]:
            self.progress["best"] = score
            self._save_result("best", step, values)
        self._save_result("last", step, values)

    def _averages(self, model, fbank):
        """Return the mean over each unmasked clip's patches, after the final norm: (clips, E) on the CPU."""
        with self.autocast():
            return _network(model).ssamba(fbank).last_hidden_state[:, 1:].mean(1).float().cpu()

    def _probe(self, step):
        """Log the accuracy of a linear probe on the recipe's labelled set, at the layer chosen on its dev part."""
        if not self.processes.first:
            return
        unreadable = {}
        features = time_averages(_network(self._evaluated()).ssamba, self.labelled.paths,
                                 report=lambda error: unreadable.update({error.file: error.reason}))
        self.unreadable += [f"{os.fspath(file)}: {reason}" for file, reason in unreadable.items()]
        features = features[:, [path not in unreadable for path in self.labelled.paths]]
        labelled = self.labelled.without(unreadable)
        probe = cross_validate if labelled.has_folds else train_probes
        result = probe(features, labelled.labels, labelled.splits)
        self.log.record(step, "probe", test_accuracy=result.best_test_accuracy)

    def _evaluated(self):
        """Return the network that is validated and saved: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    def _save_result(self, name, step, validation):
        if self.processes.first:
            network = _network(self._evaluated())
            network = network if self.recipe.self_supervised else network.ssamba  # without the untrained heads
            save_result(network, self.out / name, self.description, step, validation)

    def state(self):
        state = {**super().state(), "plateau": self.plateau.state_dict()}
        return state if self.targets is None else {**state, "targets": self.targets.state()}

    def restore(self, state):
        super().restore(state)
        if self.targets is not None:
            self.targets.restore(state["targets"])
        self.plateau.load_state_dict(state["plateau"])


def _begin_with(model, checkpoint):
    """Replace a new network's random encoder by a checkpoint's."""
    try:
        model.ssamba.load_state_dict(load_model(checkpoint).state_dict())
    except RuntimeError as error:
        raise RecipeError(f"{checkpoint} does not have the shape that the recipe gives the network. Set size and model "
                          f"to the checkpoint's. {error}") from error


def _network(model):
    """Return the network without the head that predicts a teacher."""
    return model.network if isinstance(model, Student) else model


def _parameter_groups(model, recipe):
    """Return AdamW's groups: if the patch projection has its own learning rate, it forms the second group."""
    if recipe.patch_learning_rate in (0, 1):
        return None
    projection = list(_network(model).ssamba.patch_embed.parameters())
    apart = set(projection)
    return [
        {"params": [parameter for parameter in model.parameters() if parameter not in apart]},
        {"params": projection, "lr": recipe.learning_rate * recipe.patch_learning_rate},
    ]
