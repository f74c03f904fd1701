"""The pretraining loop: clips -> log-mel -> masks -> losses -> a step of AdamW."""

import itertools
import math
import signal
import time
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..frontend import FRAME_LENGTH, FRAME_SHIFT, LOG_MEL_MEAN, LOG_MEL_STD, LogMel
from ..labelled import read_labelled
from ..probing.features import time_averages
from ..probing.probes import cross_validate, train_probes
from .data import training_batches, validation_batches
from .distributed import start_processes
from .log import RunLog
from .masking import cluster_mask
from .objectives import SsambaForPreTraining
from .recipe import Recipe
from .result import check_continuation, describe_run, save_result
from .training_state import TrainingError, load_training_state, save_training_state

# Where a clip is shorter than the network's input, the recipe pads its log-mel with zeros before normalising it.
PADDING = -LOG_MEL_MEAN / (2 * LOG_MEL_STD)
MOST_SKIPPED = 10  # steps in a row with a gradient that is not finite
LOSSES = ("loss", "contrastive_loss", "contrastive_accuracy", "reconstruction_loss")
TRAINING, VALIDATION, NETWORK = range(3)  # what a random draw is for, as part of its seed


def pretrain(recipe, out, resume=False, device=None):
    """Pretrain a network.

    Args:
        recipe: a Recipe.
        out: the run's folder. Written there: ``best`` and ``last``, checkpoints by validation accuracy and by time;
            ``run.json``, the recipe, the manifests' hashes and the environment; ``states``, what ``resume`` needs;
            ``log.jsonl`` and ``tensorboard``.
        resume: go on from the newest state in ``out``, or begin where there is none.
        device: "cpu" or "cuda". Default: CUDA where there is one.

    Returns:
        True when all steps are done, False when a signal (SIGINT, SIGTERM) stopped the run after saving its state.

    Raises:
        ManifestError: no readable audio.
        RecipeError: ``resume`` with a recipe or manifests other than the run began with.
        FileExistsError: something is in ``out``, and not ``resume``.
        TrainingError: ten steps in a row had no finite gradient, or the state cannot be saved or read.
    """
    out = Path(out)
    with start_processes(device) as processes, _signals() as stopped:
        description = describe_run(recipe)
        if processes.first:
            check_continuation(out, description, resume)
        return _Run(recipe, out, description, processes).train(stopped)


class _Run:
    """A run between two steps: network, optimizer, and how far it has come."""

    def __init__(self, recipe, out, description, processes):
        self.recipe, self.out, self.description, self.processes = recipe, out, description, processes
        config, device = recipe.config(), processes.device
        torch.manual_seed(recipe.seed)
        self.model = SsambaForPreTraining(config).to(device)
        self.model.ssamba.gradient_checkpointing = recipe.gradient_checkpointing
        self.grid = config.position_grid
        self.samples = (config.pretraining_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
        self.log_mel = LogMel(config.num_mel_bins).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.plateau = ReduceLROnPlateau(self.optimizer, mode="max", factor=0.5, patience=recipe.patience)
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self.progress = {"step": 0, "best": -math.inf, "skipped": 0, "skipped_in_a_row": 0, "unreadable": 0}
        self.position, self.unreadable = None, []
        state = load_training_state(out / "states", print if processes.first else lambda sentence: None)
        if state is not None:
            self._restore(state)
        self.network = self.model
        if processes.world_size > 1:
            self.network = DistributedDataParallel(self.model)
        if recipe.compile:
            self.network = torch.compile(self.network)
        self.log = RunLog(out, self.progress["step"], recipe.steps, recipe.batch_size, processes.first)

    def train(self, stopped):
        """Make the steps that are left; see :func:`pretrain`."""
        with closing(self.log):
            return self._train(stopped)

    def _train(self, stopped):
        recipe, processes = self.recipe, self.processes
        if self.progress["step"]:
            self.log.say(f"going on after step {self.progress['step']}")
        else:
            self._validate(0)
        batches = training_batches(
            recipe.train, clips_at_once(recipe, processes.world_size), self.samples, recipe.seed,
            position=self.position, rank=processes.rank, world_size=processes.world_size, workers=recipe.workers,
            join_short=recipe.join_short,
        )
        meter = _Meter()
        for step in range(self.progress["step"] + 1, recipe.steps + 1):
            meter.add(self.step(step, batches))
            self.log.advance()
            last, interrupted = step == recipe.steps, processes.any(stopped)
            if step % recipe.log_every == 0 or last:
                self.log.record(step, "training", **meter.means(processes), **self._counts(step))
                meter = _Meter()
            if step % recipe.validate_every == 0 or last:
                self._validate(step)
            if recipe.probe and (step % recipe.probe_every == 0 or last):
                self._probe(step)
            if step % recipe.save_every == 0 or last or interrupted:
                self._save(step)
            if interrupted and not last:
                self.log.say(f"stopped by a signal after step {step}; --resume goes on from {self.out / 'states'}")
                return False
        self.log.say(f"done; the checkpoints are {self.out / 'best'} and {self.out / 'last'}")
        return True

    def step(self, step, batches):
        """One step of the optimizer; returns what there is to report about it."""
        recipe, parts = self.recipe, self.recipe.accumulation
        torch.manual_seed(_seed(recipe.seed, NETWORK, step, self.processes.rank))  # drop path
        generator = torch.Generator().manual_seed(_seed(recipe.seed, TRAINING, step, self.processes.rank))
        self.model.train()
        totals, started, waited = torch.zeros(len(LOSSES), device=self.processes.device), time.perf_counter(), 0.0
        for part in range(parts):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self.unreadable += batch.unreadable
            self.position = batch.position
            last = part == parts - 1
            with nullcontext() if last else getattr(self.network, "no_sync", nullcontext)():
                output = self._forward(self.network, batch, generator)
                (output.loss / parts).backward()
            totals += torch.stack([output[name].detach() for name in LOSSES]) / parts
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self._set_learning_rate(step)
        self._update(step, norm)
        self.progress["step"] = step
        seconds = time.perf_counter() - started
        return {
            "losses": totals, "gradient_norm": norm, "learning_rate": self.optimizer.param_groups[0]["lr"],
            "clips": recipe.batch_size, "seconds": seconds, "waited": waited,
        }

    def _forward(self, network, batch, generator):
        """Losses of a batch under masks drawn from a generator."""
        config, recipe = self.model.config, self.recipe
        fbank = clips_to_fbank(batch, self.log_mel, config.pretraining_frames)
        masks = [
            cluster_mask(len(fbank), *self.grid, config.masked_patches, generator, recipe.masking == "published")
            .to(fbank.device) for _ in range(2 if recipe.objective == "two_pass" else 1)
        ]
        with torch.autocast(fbank.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            return network(fbank, *masks)

    def _update(self, step, norm):
        """Step with the gradient there is, unless it is not finite."""
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress["skipped"] += not finite
        self.progress["skipped_in_a_row"] = 0 if finite else self.progress["skipped_in_a_row"] + 1
        if not finite:
            self.log.record(step, "event", skipped=f"the gradient's norm is {norm.item()}")
        if self.progress["skipped_in_a_row"] == MOST_SKIPPED:
            raise TrainingError(
                f"steps {step - MOST_SKIPPED + 1} to {step} had gradients that are not finite (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.3g}, {self.recipe.precision}); the states in "
                f"{self.out / 'states'} are from before: resume with a lower learning rate or in float32"
            )

    def _set_learning_rate(self, step):
        """Linear warm-up, then a cosine to zero, or what the plateau has left of it."""
        recipe, group = self.recipe, self.optimizer.param_groups[0]
        if step <= recipe.warmup_steps:
            group["lr"] = recipe.learning_rate * step / recipe.warmup_steps
        elif recipe.schedule == "cosine":
            done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
            group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def _validate(self, step):
        """Losses on the validation clips under masks that are the same every time; keeps the best network."""
        recipe, processes, model = self.recipe, self.processes, self._evaluated()
        model.eval()
        totals = torch.zeros(len(LOSSES) + 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(_seed(recipe.seed, VALIDATION, 0, processes.rank))
        clips = clips_at_once(recipe, processes.world_size)
        batches = validation_batches(recipe.validation, clips, self.samples, processes.rank, processes.world_size,
                                     recipe.workers, recipe.join_short)
        for batch in batches:
            self.unreadable += batch.unreadable
            output = self._forward(model, batch, generator)
            values = torch.tensor([*(output[name].item() for name in LOSSES), 1.0], dtype=torch.float64)
            totals += values * len(batch.lengths)
        *sums, count = processes.sum(totals.float().to(processes.device)).tolist()
        if not count:
            raise TrainingError(f"none of the validation clips can be read: {', '.join(recipe.validation)}")
        values = {name: total / count for name, total in zip(LOSSES, sums)}
        self.log.record(step, "validation", clips=int(count), **values)
        accuracy = values["contrastive_accuracy"]
        if recipe.schedule == "plateau" and step > recipe.warmup_steps:
            self.plateau.step(accuracy)
        if accuracy > self.progress["best"]:
            self.progress["best"] = accuracy
            self._save_result("best", step, values)
        self._save_result("last", step, values)

    def _probe(self, step):
        """Accuracy of a linear probe on the recipe's labelled set, on the layer that its dev part chooses."""
        if not self.processes.first:
            return
        labelled = read_labelled(self.recipe.probe)
        features = time_averages(self._evaluated().ssamba, labelled.paths)
        probe = cross_validate if labelled.has_folds else train_probes
        result = probe(features, labelled.labels, labelled.splits)
        self.log.record(step, "probe", test_accuracy=result.best_test_accuracy)

    def _evaluated(self):
        """The network that is validated and kept: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def _save_result(self, name, step, validation):
        if self.processes.first:
            save_result(self._evaluated(), self.out / name, self.description, step, validation)

    def _save(self, step):
        self._counts(step)
        positions = self.processes.gather(self.position)
        if self.processes.first:
            state = {
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "plateau": self.plateau.state_dict(), "progress": self.progress, "positions": positions,
                "average": None if self.average is None else self.average.state_dict(),
            }
            save_training_state(self.out / "states", step, state, self.recipe.keep)

    def _restore(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        self.progress = state["progress"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        positions = state["positions"]
        if len(positions) != self.processes.world_size and not all(isinstance(p, int) for p in positions):
            raise TrainingError(
                f"the run read its shards with {len(positions)} processes, and cannot go on in the same order with "
                f"{self.processes.world_size}"
            )
        self.position = positions[min(self.processes.rank, len(positions) - 1)]

    def _counts(self, step):
        """Steps skipped and files that could not be read so far; lists what has been added to the latter."""
        files = sorted(itertools.chain(*self.processes.gather(self.unreadable)))
        for file in files:
            self.log.record(step, "event", unreadable=file)
        self.progress["unreadable"] += len(files)
        self.unreadable = []
        return {name: self.progress[name] for name in ("skipped", "unreadable")}


class _Meter:
    """Means over the steps since the last report."""

    def __init__(self):
        self.steps = []

    def add(self, report):
        self.steps.append(report)

    def means(self, processes):
        losses = processes.sum(torch.stack([step["losses"] for step in self.steps]).mean(0)) / processes.world_size
        seconds = sum(step["seconds"] for step in self.steps)
        return {
            **dict(zip(LOSSES, losses.tolist())),
            "gradient_norm": torch.stack([step["gradient_norm"] for step in self.steps]).mean().item(),
            "learning_rate": self.steps[-1]["learning_rate"],
            "clips_per_second": sum(step["clips"] for step in self.steps) / seconds,
            "waiting_for_data": sum(step["waited"] for step in self.steps) / seconds,
        }


def clips_at_once(recipe: Recipe, world_size):
    """Clips that a process sends through the network at once."""
    parts = world_size * recipe.accumulation
    if recipe.batch_size % parts:
        raise ValueError(f"batch_size {recipe.batch_size} cannot be divided into {recipe.accumulation} parts for each "
                         f"of {world_size} processes")
    return recipe.batch_size // parts


def clips_to_fbank(batch, log_mel, frames):
    """Batch of waveforms -> (clips, frames, mel) of normalised log-mel on the device of ``log_mel``; what is missing
    of a short clip is padded as the recipe does."""
    waveforms = batch.waveforms.to(log_mel.window.device, non_blocking=True)
    clips = log_mel([waveform[:length] for waveform, length in zip(waveforms, batch.lengths.tolist())])
    return torch.stack([F.pad(clip[:frames], (0, 0, 0, frames - len(clip[:frames])), value=PADDING) for clip in clips])


def _seed(*numbers):
    """A seed of its own for every purpose, step and process of a run."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextmanager
def _signals():
    """A list that is empty until SIGINT or SIGTERM arrives; a second SIGINT interrupts at once."""
    received = []

    def note(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
