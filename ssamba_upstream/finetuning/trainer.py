"""The fine-tuning loop: labelled clips -> log-mel -> augmentation -> classification loss -> AdamW step."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel

from ..checkpoint import content_hash, load_model, new_classifier
from ..corpora.labelled import read_labelled
from ..devices import send
from ..feature_extraction import SsambaFeatureExtractor
from ..files import read_json, write_json
from ..frontend import LogMel
from ..network.classification import (
    IGNORED,
    MULTI,
    SINGLE,
    SsambaForAudioClassification,
    SsambaForAudioFrameClassification,
)
from ..training.augmentation import noise_and_roll, spec_augment
from ..training.batches import batch_to_fbank
from ..training.distributed import start_processes
from ..training.loop import Run, signals
from ..training.recipe import RecipeError
from ..training.run_folder import check_continuation, describe_run, lock_run
from ..training.training_state import TrainingError
from .batches import balancing_weights, evaluation_batches, training_batches
from .metrics import evaluate
from .recipe import FinetuningRecipe
from .results import RESULTS, save_result, summarise, write_results
from .task import ClassificationTask


def finetune(recipe: FinetuningRecipe, out: str | os.PathLike, resume: bool = False,
             device: str | None = None) -> dict | None:
    """Fine-tune a network. If the labelled set has folds, fine-tune once with each fold as the test set.

    Args:
        recipe: a FinetuningRecipe.
        out: the run's folder. It receives the checkpoints ``last``, ``best`` (if there is a dev set) and ``average``
            (with ``average_epochs``); ``results.json``, the test metrics of the chosen checkpoint; and the files of
            :func:`ssamba_upstream.pretraining.trainer.pretrain`. With folds, each has such a folder, ``fold-NAME``,
            and ``results.json`` and ``results.md`` summarise them.
        resume: If True, resume the run in ``out``, or start one if there is none. Finished folds are not repeated.
        device: "cpu" or "cuda". Default: "cuda" if available.

    Returns:
        the content of ``results.json``; None if a signal (SIGINT, SIGTERM) stopped the run after saving its state.

    Raises:
        OSError: If the recipe's data is missing.
        LabelledSetError, CheckpointError: If the data or the checkpoint cannot be used.
        RecipeError: If the recipe does not suit the data, or recipe, data or checkpoint differ from those of the run
            to resume.
        FileExistsError: If ``out`` is not empty and ``resume`` is False.
        BlockingIOError: If another run is writing into ``out``.
        TrainingError: see :func:`ssamba_upstream.pretraining.trainer.pretrain`.
    """
    out = Path(out)
    labelled = read_labelled(recipe.data)
    folds = _folds(labelled, recipe)
    front_end = recipe.config().front_end
    if front_end.normalisation == "clip" and _statistics(recipe):
        raise RecipeError("mean and std normalise all clips alike, but this checkpoint normalises each clip "
                          "separately. Set both to null")
    recipes = {fold: replace(recipe, fold=fold) for fold in folds or [recipe.fold]}
    tasks = {fold: ClassificationTask.of(labelled, of_fold, front_end) for fold, of_fold in recipes.items()}
    with start_processes(device) as processes, signals() as stopped, lock_run(out, processes):
        description = describe_run(recipe, recordings=labelled.content_hash,
                                   checkpoint=recipe.checkpoint and content_hash(recipe.checkpoint))
        if processes.first:
            check_continuation(out, description, recipe, resume)
        if not folds:
            return _finetune_one(recipe, tasks[recipe.fold], out, description, processes, stopped)
        results = {}
        for fold, of_fold in recipes.items():
            folder = out / f"fold-{fold}"
            described = {**description, "recipe": of_fold.to_dict()}
            if processes.first:
                check_continuation(folder, described, of_fold, resume=True)
            results[fold] = _finetune_one(of_fold, tasks[fold], folder, described, processes, stopped)
            if results[fold] is None:
                return None
        summary = summarise(results)
        if processes.first:
            write_results(summary, out)
        return summary


def _folds(labelled, recipe):
    """Return the folds to be tested in turn; none if there is a single test set."""
    names = sorted(set(labelled.splits))
    if recipe.fold is not None and (not labelled.has_folds or recipe.fold not in names):
        raise RecipeError(f"{recipe.fold!r} is not a fold of {recipe.data}; its splits are {', '.join(names)}")
    return names if labelled.has_folds and recipe.fold is None else []


def _finetune_one(recipe, task, out, description, processes, stopped):
    if (out / RESULTS).is_file():
        return read_json(out / RESULTS)
    processes.wait()
    run = _Finetuning(recipe, task, out, description, processes)
    return run.results if run.train(stopped) else None


class _Finetuning(Run):
    """The run of one classifier, from the encoder to its test metrics."""

    def __init__(self, recipe, task, out, description, processes):
        torch.manual_seed(recipe.seed)
        of_seconds = recipe.problem == "per_second"
        self.model_class = SsambaForAudioFrameClassification if of_seconds else SsambaForAudioClassification
        model = new_classifier(
            recipe.checkpoint, self.model_class, task.classes, recipe.clip_frames, recipe.size,
            **{**recipe.model, **_statistics(recipe),
               "problem_type": MULTI if recipe.loss == "binary_cross_entropy" else SINGLE},
        ).to(processes.device)
        model.ssamba.gradient_checkpointing = recipe.gradient_checkpointing
        self.task, self.description, self.results = task, description, None
        self.extractor = SsambaFeatureExtractor.for_config(model.config, model.labels_seconds)
        self.samples = self.extractor.clip_samples
        self.log_mel = LogMel(model.config.front_end).to(processes.device)
        self.steps_of_epoch = max(1, len(task.paths["train"]) // recipe.batch_size)
        average = AveragedModel(model) if recipe.average_epochs else None
        super().__init__(recipe, recipe.epochs * self.steps_of_epoch, out, processes, model,
                         _parameter_groups(model, recipe), average)

    def batches(self):
        recipe, processes, task = self.recipe, self.processes, self.task
        targets = task.targets["train"]
        return training_batches(
            task.paths["train"], targets, self.clips, self.samples, recipe.seed,
            position=self.position, rank=processes.rank, world_size=processes.world_size, workers=recipe.workers,
            mixup=recipe.mixup, weights=balancing_weights(targets) if recipe.balanced else None,
            sampling_rate=self.model.config.sampling_rate,
        )

    def forward(self, network, batch, generator):
        recipe = self.recipe
        fbank = batch_to_fbank(batch, self.log_mel, recipe.clip_frames)
        fbank = spec_augment(fbank, recipe.frequency_mask, recipe.time_mask, self.log_mel.front_end.padding, generator)
        if recipe.noise_and_roll:
            fbank = noise_and_roll(fbank, generator)
        with self.autocast():
            return network(fbank, labels=send(batch.targets, fbank.device))

    def weight(self, batch):
        """Return the number of labelled seconds, or 1 for labelled clips: all batches have the same number of clips."""
        return (batch.targets != IGNORED).sum().item() if self.task.seconds else 1.0

    def learning_rate_factor(self, step):
        """Return the stepwise decay: by ``decay`` after ``decay_start`` epochs and every ``decay_every`` after."""
        recipe, finished = self.recipe, (step - 1) // self.steps_of_epoch
        if finished < recipe.decay_start:
            return 1.0
        return recipe.decay ** ((finished - recipe.decay_start) // recipe.decay_every + 1)

    def after_step(self, step, last):
        epoch, left = divmod(step, self.steps_of_epoch)
        if left:
            return
        if self.average is not None and self.recipe.average_epochs[0] <= epoch <= self.recipe.average_epochs[1]:
            self.average.update_parameters(self.model)
        if "dev" in self.task.paths:
            self._validate(step)

    def _validate(self, step):
        """Log the metrics on dev, and save the best network."""
        metrics = self._metrics(self.model, "dev")
        self.log.record(step, "validation", **metrics)
        if metrics[self.recipe.metric] is None:
            raise RecipeError(f"{self.recipe.metric} is undefined on dev: every class is in none or all of its "
                              "recordings, or none of its seconds counts. Choose another metric, or add recordings to "
                              "dev")
        if metrics[self.recipe.metric] > self.progress["best"]:
            self.progress.update(best=metrics[self.recipe.metric], best_step=step)
            self._save_result(self.model, "best", step, {"dev": metrics})

    def end(self):
        """Test the chosen network."""
        self.processes.wait()  # until the first process has written the best network
        kept = {"last": self.model}
        if "dev" in self.task.paths:
            kept = {"best": load_model(self.out / "best", model_class=self.model_class).to(self.processes.device)}
            self._save_result(self.model, "last", self.steps, {})
        if self.average is not None:
            kept["average"] = self.average.module
        chosen, dev = [*kept][-1], {}
        if "dev" in self.task.paths:
            dev = {name: self._metrics(model, "dev") for name, model in kept.items()}
            chosen = max(dev, key=lambda name: dev[name][self.recipe.metric])
        test = self._metrics(kept[chosen], "test")
        self.log.record(self.steps, "test", **test)
        self._report_unreadable(self.steps)
        for name, model in kept.items():
            step = self.progress["best_step"] if name == "best" else self.steps
            self._save_result(model, name, step, {"dev": dev.get(name), "test": test if name == chosen else None})
        self.results = {"checkpoint": str(self.out / chosen), "dev": dev.get(chosen), "test": test}
        if self.processes.first:
            write_json(self.results, self.out / RESULTS)
        self.log.say(f"done: tested {self.out / chosen} and wrote {self.out / RESULTS}")

    @torch.no_grad()
    def _metrics(self, model, split):
        """Return the number of a split's readable recordings in all processes, and a network's metrics on them."""
        recipe, processes, task = self.recipe, self.processes, self.task
        model.eval()
        found = []
        clips = max(1, recipe.batch_size // processes.world_size)
        for batch in evaluation_batches(task.paths[split], task.targets[split], clips, self.samples, processes.rank,
                                        processes.world_size, recipe.workers, self.model.config.sampling_rate):
            self.unreadable += batch.unreadable
            if not len(batch.indices):
                continue
            with self.autocast():
                logits = model(batch_to_fbank(batch, self.log_mel, recipe.clip_frames)).logits
            found.append((batch.indices, logits.float().cpu(), batch.targets))
        pieces = [piece for gathered in processes.gather(found) for piece in gathered]
        if not pieces:
            raise TrainingError(f"none of the {len(task.paths[split])} recordings of {split} can be read, such as "
                                f"{task.paths[split][0]}")
        indices, logits, targets = map(torch.cat, zip(*pieces))
        order = indices.argsort()
        return {"recordings": len(indices), **evaluate(logits[order], targets[order], recipe.problem)}

    def _save_result(self, model, name, step, scores):
        if self.processes.first:
            save_result(model, self.extractor, self.out / name, self.description, step, scores)


def _statistics(recipe):
    """Return the SsambaConfig fields for the recipe's mean and standard deviation."""
    given = {"log_mel_mean": recipe.mean, "log_mel_std": recipe.std}
    return {name: value for name, value in given.items() if value is not None}


def _parameter_groups(model, recipe):
    """Return AdamW's parameter groups, with learning rates by depth."""
    depth = len(model.ssamba.layers)
    groups = {}
    for name, parameter in model.named_parameters():
        rate = recipe.learning_rate * _rate_factor(name, depth, recipe)
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _rate_factor(name, depth, recipe):
    """Return a parameter's learning rate relative to the recipe's, from its name."""
    if not name.startswith("ssamba."):
        return recipe.head_learning_rate
    parts = name.split(".")
    if parts[1] == "layers":
        return recipe.layer_decay ** (depth - 1 - int(parts[2]))
    return 1.0 if parts[1] == "norm_f" else recipe.layer_decay ** depth
