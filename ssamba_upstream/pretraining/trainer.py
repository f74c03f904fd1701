"""The pretraining loop: clips -> log-mel -> masks -> losses -> a step of AdamW."""

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
from ..training.loop import VALIDATION, Run, clips_at_once, seed_of, signals
from ..training.run_folder import check_continuation, describe_run, lock_run
from ..training.training_state import TrainingError
from .batches import training_batches, validation_batches
from .curves import draw_curves
from .distillation import Student, Targets
from .model_card import save_result
from .recipe import PretrainingRecipe
from .teachers import Teacher, load_teacher

COLLAPSED = 1.5  # effective rank of representations that hardly differ
CLIPS_OF_RANK = 512  # more change little of it
CLIPS_OF_STATISTICS = 256  # of the teacher's features


def pretrain(recipe: PretrainingRecipe, out: str | os.PathLike, resume: bool = False, device: str | None = None,
             teachers: Mapping[str, type[Teacher]] | None = None) -> bool:
    """Pretrain a network.

    Args:
        recipe: a PretrainingRecipe.
        out: the run's folder. Written there: ``best`` and ``last``, checkpoints by validation accuracy and by time;
            ``run.json``, the recipe, the manifests' hashes and the environment; ``states``, what ``resume`` needs;
            ``log.jsonl`` and ``tensorboard``; with a teacher ``teacher``, its outputs; and at the end ``curves.png``.
        resume: go on from the newest state in ``out``, or begin where there is none.
        device: "cpu" or "cuda". Default: CUDA where there is one.
        teachers: further kinds of teachers, see :func:`ssamba_upstream.pretraining.teachers.load_teacher`.

    Returns:
        True when all steps are done, False when a signal (SIGINT, SIGTERM) stopped the run after saving its state.

    Raises:
        ManifestError: no readable audio.
        RecipeError: ``resume`` with a recipe or manifests other than the run began with.
        FileExistsError: something is in ``out``, and not ``resume``.
        BlockingIOError: Another run is writing into ``out``.
        TeacherError: the teacher cannot be used.
        StoreError: the teacher's outputs are not finite.
        TrainingError: ten steps in a row had no finite gradient, or the state cannot be saved or read.
    """
    out = Path(out)
    with start_processes(device) as processes, signals() as stopped, lock_run(out, processes):
        teacher = recipe.teacher and load_teacher(recipe.teacher, processes.device, teachers)
        description = describe_run(recipe, **({"teacher": teacher.description()} if teacher else {}))
        if processes.first:
            check_continuation(out, description, recipe, resume)
        processes.wait()  # the others write the teacher's outputs into the folder, which has to be empty until then
        return _Pretraining(recipe, out, description, processes, teacher).train(stopped)


class _Pretraining(Run):
    LOSSES = ("loss", "contrastive_loss", "contrastive_accuracy", "reconstruction_loss")
    DISTILLATION_LOSSES = ("distillation_loss", "teacher_similarity")

    def __init__(self, recipe, out, description, processes, teacher=None):
        self.config = config = recipe.config()
        torch.manual_seed(recipe.seed)
        model = SsambaForPreTraining(config).to(processes.device)
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
            load_pyplot()  # lest the end of the run find out that it is missing
        self.description, self.labelled = description, None
        if recipe.probe:
            self.labelled = read_labelled(recipe.probe)
            self.labelled.check_probes()  # which would end the run at the first probe
        self.samples = config.front_end.samples_of(config.pretraining_frames)
        lengths = recipe.clip_lengths or [config.pretraining_frames]
        self.training_samples = [*map(config.front_end.samples_of, lengths)]
        self.log_mel = LogMel(config.front_end).to(processes.device)
        super().__init__(recipe, recipe.steps, out, processes, model, _parameter_groups(model, recipe), average)
        self.plateau = ReduceLROnPlateau(self.optimizer, mode="max", factor=0.5, patience=recipe.patience)

    def batches(self):
        recipe, processes = self.recipe, self.processes
        return training_batches(
            recipe.train, clips_at_once(recipe, processes.world_size), self.training_samples, recipe.seed,
            position=self.position, rank=processes.rank, world_size=processes.world_size, workers=recipe.workers,
            join_short=recipe.join_short, sampling_rate=self.config.sampling_rate,
            keep_pieces=self.targets is not None,
        )

    def forward(self, network, batch, generator):
        heard = batch
        if self.recipe.augmentation:
            waveforms = augment_waveforms(send(batch.waveforms, self.processes.device), batch.lengths,
                                          self.config.sampling_rate, self.recipe.augmentation, generator)
            heard = replace(batch, waveforms=waveforms)
        return self._losses(network, self._fbank(heard), generator, self._targets(batch))

    def _fbank(self, batch):
        """(clips, frames, mel)"""
        return batch_to_fbank(batch, self.log_mel, self.config.front_end.frames_of(batch.waveforms.shape[1]))

    def _targets(self, batch):
        """What the network takes beside the log-mel: with a teacher, what is to be predicted of the clean clips."""
        if self.targets is None:
            return {}
        return {name: send(tensor, self.processes.device)
                for name, tensor in zip(("targets", "counted"), self.targets(batch))}

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
        """A cosine to zero; or what the plateau has left of it."""
        recipe = self.recipe
        if recipe.schedule == "plateau":
            return None
        done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))

    def update_average(self, step):
        self.average.update_parameters(self.model)

    def begin(self):
        if self.targets is not None:
            clips = self.processes.world_size * clips_at_once(self.recipe, self.processes.world_size)
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
        self.log.say(f"done; the checkpoints are {self.out / 'best'} and {self.out / 'last'}, the curves "
                     f"{self.out / 'curves.png'}")

    @torch.no_grad()
    def _validate(self, step):
        """Losses on the validation clips under masks that are the same every time, and the effective rank of what the
        encoder makes of the clips; keeps the best network."""
        recipe, processes, model = self.recipe, self.processes, self._evaluated()
        model.eval()
        totals, averages = torch.zeros(len(self.LOSSES) + 1, dtype=torch.float64), []
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, VALIDATION, 0, processes.rank))
        clips = clips_at_once(recipe, processes.world_size)
        batches = validation_batches(recipe.validation, clips, self.samples, processes.rank, processes.world_size,
                                     recipe.workers, recipe.join_short, self.config.sampling_rate,
                                     self.targets is not None)
        for batch in batches:
            self.unreadable += batch.unreadable
            if not len(batch.lengths):
                continue
            fbank = self._fbank(batch)
            output = self._losses(model, fbank, generator, self._targets(batch))
            values = torch.stack([output[name] for name in self.LOSSES]).double().cpu()
            totals += torch.cat([values, values.new_ones(1)]) * len(batch.lengths)
            if len(averages) * clips < CLIPS_OF_RANK // processes.world_size:
                averages.append(self._averages(model, fbank))
        *sums, count = processes.sum(totals.float().to(processes.device)).tolist()
        if not count:
            raise TrainingError(f"none of the validation clips can be read: {', '.join(recipe.validation)}")
        values = {name: total / count for name, total in zip(self.LOSSES, sums)}
        values["effective_rank"] = effective_rank(torch.cat(sum(processes.gather(averages), [])))
        self.log.record(step, "validation", clips=int(count), **values)
        if count > 1 and values["effective_rank"] < COLLAPSED:
            self.log.say(f"step {step}: the network has collapsed, it makes nearly the same of every clip (effective "
                         f"rank {values['effective_rank']:.2f}); a lower learning rate or a longer warm-up may help")
        score = values[self.score]
        if recipe.schedule == "plateau" and step > recipe.warmup_steps:
            self.plateau.step(score)
        if score > self.progress["best"]:
            self.progress["best"] = score
            self._save_result("best", step, values)
        self._save_result("last", step, values)

    def _averages(self, model, fbank):
        """(clips, E) on the CPU: the mean over the patches of each whole clip, nothing masked, after the final norm."""
        with self.autocast():
            return _network(model).ssamba(fbank).last_hidden_state[:, 1:].mean(1).float().cpu()

    def _probe(self, step):
        """Accuracy of a linear probe on the recipe's labelled set, on the layer that its dev part chooses."""
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
        """The network that is validated and kept: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def _save_result(self, name, step, validation):
        if self.processes.first:
            network = _network(self._evaluated())
            network = network if self.recipe.self_supervised else network.ssamba  # whose heads have learned nothing
            save_result(network, self.out / name, self.description, step, validation)

    def state(self):
        state = {**super().state(), "plateau": self.plateau.state_dict()}
        return state if self.targets is None else {**state, "targets": self.targets.state()}

    def restore(self, state):
        super().restore(state)
        if self.targets is not None:
            self.targets.restore(state["targets"])
        self.plateau.load_state_dict(state["plateau"])


def _network(model):
    """The network without the head that predicts a teacher."""
    return model.network if isinstance(model, Student) else model


def _parameter_groups(model, recipe):
    """Groups of AdamW: where the patches' projection learns at a rate of its own, it is the second."""
    if recipe.patch_learning_rate in (0, 1):
        return None
    projection = list(_network(model).ssamba.patch_embed.parameters())
    apart = set(projection)
    return [
        {"params": [parameter for parameter in model.parameters() if parameter not in apart]},
        {"params": projection, "lr": recipe.learning_rate * recipe.patch_learning_rate},
    ]
