"""The training loop shared by pretraining and fine-tuning: batches -> losses -> optimizer step."""

import itertools
import math
import signal
import time
from contextlib import closing, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..ops import why_slow
from .log import RunLog
from .training_state import TrainingError, load_training_state, save_training_state

MOST_SKIPPED = 10  # consecutive steps with a gradient that is not finite
TRAINING, VALIDATION, NETWORK = range(3)  # purposes of random draws, as part of their seeds


class Run:
    """A training run: network, optimizer and progress.

    A subclass defines ``batches``, ``forward`` and ``learning_rate_factor``, and the actions before the first step,
    after each step and at the end. Random draws are seeded by the step, so generators have no state to save.

    Args:
        recipe: a TrainingRecipe.
        steps: number of optimizer steps.
        out: the run's folder.
        processes: see :func:`ssamba_upstream.training.distributed.start_processes`.
        model: the network, on the device of the processes.
        parameter_groups: AdamW's parameter groups; a group's "lr" is its highest learning rate. Default: one group of
            all parameters, with the recipe's learning rate.
        average: AveragedModel of the model, or None.

    Attributes:
        clips: number of clips in a process's batch.
    """

    LOSSES = ("loss",)
    """Entries of the output of ``forward`` that are logged; "loss" is minimised."""

    def __init__(self, recipe, steps, out, processes, model, parameter_groups=None, average=None):
        self.recipe, self.steps, self.out, self.processes, self.model = recipe, steps, out, processes, model
        groups = parameter_groups or [{"params": list(model.parameters())}]
        if recipe.weight_decay_of == "projections":
            groups = _decay_projections_only(groups, model)
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay,
        )
        self.highest_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = average
        parts = processes.world_size * recipe.accumulation
        if recipe.batch_size % parts:
            raise ValueError(f"batch_size {recipe.batch_size} cannot be divided into {recipe.accumulation} parts for "
                             f"each of {processes.world_size} processes. Choose a multiple of their product")
        self.clips = recipe.batch_size // parts
        self.progress = {"step": 0, "best": -math.inf, "skipped": 0, "skipped_in_a_row": 0, "unreadable": 0}
        self.position, self.unreadable = None, []
        self.reports = []  # of the steps since the last log line

    def batches(self):
        """Return an endless iterator over batches, starting at ``self.position``."""
        raise NotImplementedError

    def forward(self, network, batch, generator):
        """Return the losses of a batch.

        Args:
            network: the model, possibly wrapped by DistributedDataParallel and torch.compile.
            batch: a batch from :meth:`batches`, on the CPU.
            generator: generator for random draws, on the CPU.

        Returns:
            mapping from the names in LOSSES to scalars on the device of the processes.
        """
        raise NotImplementedError

    def weight(self, batch):
        """Return the number of items that a batch's losses average, or any constant if it is the same for all batches.

        A step's losses are means over the items of all its parts and processes. A batch without items has a loss of 0.
        """
        return 1.0

    def learning_rate_factor(self, step):
        """Return the factor on the highest learning rates after the warm-up; None leaves the rates unchanged."""
        raise NotImplementedError

    def begin(self):
        """Hook called before the first step."""

    def after_step(self, step, last):
        """Hook called after each step, before its state is saved."""

    def end(self):
        """Hook called after the last step, and again if a finished run is resumed."""

    def update_average(self, step):
        """Update the average after each optimizer step, if there is one."""

    def train(self, stopped):
        """Train for the remaining steps. Return True if all are done, False if a signal, see :func:`signals`, stopped
        the run after saving its state."""
        self._restore_newest_state()
        with closing(self.log), _tf32(self.recipe.precision == "tf32"):
            return self._train(stopped)

    def _restore_newest_state(self):
        """Restore the newest saved state, if any, and wrap the network."""
        recipe, processes = self.recipe, self.processes
        state = load_training_state(self.out / "states", print if processes.first else lambda sentence: None)
        if state is not None:
            self.restore(state)
        self.network = self.model
        if processes.joined:
            self.network = DistributedDataParallel(self.model)
        if recipe.compile:
            self.network = torch.compile(self.network)
        self.log = RunLog(self.out, self.progress["step"], self.steps, recipe.batch_size, processes.first)

    def _train(self, stopped):
        recipe, processes = self.recipe, self.processes
        if reason := why_slow(processes.device.type):
            self.log.say(reason)
        if self.progress["step"]:
            self.log.say(f"resuming after step {self.progress['step']}")
        else:
            self.begin()
        batches = self.batches()
        for step in range(self.progress["step"] + 1, self.steps + 1):
            self.reports.append(self.step(step, batches))
            self.log.advance()
            last = step == self.steps
            if step % recipe.log_every == 0 or last:
                self.log.record(step, "training", **self._means(), **self._report_unreadable(step))
                self.reports = []
            self.after_step(step, last)
            interrupted = processes.any(stopped)  # checked last: a signal may arrive during a validation of minutes
            if step % recipe.save_every == 0 or last or interrupted:
                self._save(step)
            if interrupted and not last:
                self.log.say(f"stopped by a signal after step {step}; --resume continues from {self.out / 'states'}")
                return False
        self.end()
        return True

    def step(self, step, batches):
        """Take one optimizer step; return its entries for the log."""
        recipe, processes = self.recipe, self.processes
        torch.manual_seed(seed_of(recipe.seed, NETWORK, step, processes.rank))  # drop path
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, TRAINING, step, processes.rank))
        self.model.train()
        totals, started = torch.zeros(len(self.LOSSES), device=processes.device), time.perf_counter()
        parts = [next(batches) for _ in range(recipe.accumulation)]
        waited = time.perf_counter() - started
        self.unreadable += itertools.chain(*(batch.unreadable for batch in parts))
        self.position = parts[-1].position
        weights = [self.weight(batch) for batch in parts]
        # DistributedDataParallel averages gradients over processes, so shares are relative to the mean weight.
        whole = processes.sum(torch.tensor(sum(weights), dtype=torch.float64)).item() / processes.world_size or 1.0
        for batch, weight in zip(parts, weights):
            last = batch is parts[-1]
            with nullcontext() if last else getattr(self.network, "no_sync", nullcontext)():
                output = self.forward(self.network, batch, generator)
                (output["loss"] * weight / whole).backward()
            totals += torch.stack([output[name].detach() for name in self.LOSSES]) * weight / whole
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self._set_learning_rates(step)
        self._update(step, norm)
        self.progress["step"] = step
        return {
            "losses": totals, "gradient_norm": norm, "learning_rate": self.optimizer.param_groups[0]["lr"],
            "clips": recipe.batch_size, "seconds": time.perf_counter() - started, "waited": waited,
        }

    def autocast(self):
        """Return a context that computes in the recipe's precision."""
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def _update(self, step, norm):
        """Apply the current gradient, unless it is not finite."""
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
            if self.average is not None:
                self.update_average(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress["skipped"] += not finite
        self.progress["skipped_in_a_row"] = 0 if finite else self.progress["skipped_in_a_row"] + 1
        if not finite:
            self.log.record(step, "event", skipped=f"the gradient's norm is {norm.item()}")
        if self.progress["skipped_in_a_row"] == MOST_SKIPPED:
            raise TrainingError(
                f"steps {step - MOST_SKIPPED + 1} to {step} had gradients that are not finite (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.3g}, {self.recipe.precision}). Resume from the earlier states "
                f"in {self.out / 'states'} with a lower learning rate or in float32"
            )

    def _set_learning_rates(self, step):
        """Set the learning rates: linear warm-up, then the subclass's schedule."""
        warmup = self.recipe.warmup_steps
        factor = step / warmup if step <= warmup else self.learning_rate_factor(step)
        if factor is not None:
            for group, highest in zip(self.optimizer.param_groups, self.highest_rates):
                group["lr"] = highest * factor

    def _save(self, step):
        self._report_unreadable(step)
        positions = self.processes.gather(self.position)
        reports = self.processes.gather([
            {name: value.cpu() if torch.is_tensor(value) else value for name, value in report.items()}
            for report in self.reports
        ])
        if self.processes.first:
            state = {**self.state(), "positions": positions, "reports": reports}
            save_training_state(self.out / "states", step, state, self.recipe.keep)

    def state(self):
        """Return everything that resuming needs, except the position in the batches."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "progress": self.progress,
            "average": None if self.average is None else self.average.state_dict(),
        }

    def restore(self, state):
        """Restore a state of :meth:`state`, with positions and reports."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = state["progress"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        positions = state["positions"]
        if len(positions) != self.processes.world_size and not all(isinstance(p, int) for p in positions):
            raise TrainingError(
                f"the run read its shards with {len(positions)} processes, and cannot resume in the same order with "
                f"{self.processes.world_size}"
            )
        self.position = positions[min(self.processes.rank, len(positions) - 1)]
        self.reports = self._own_reports(state["reports"])

    def _own_reports(self, reports):
        """Return this process's reports since the last log line; if the number of processes has changed, their mean."""
        if len(reports) == self.processes.world_size:
            return reports[self.processes.rank]
        return [{**step[0], "losses": torch.stack([report["losses"] for report in step]).mean(0)}
                for step in zip(*reports)]

    def _means(self):
        """Return the means over the steps since the last log line, for the log."""
        losses = torch.stack([report["losses"].to(self.processes.device) for report in self.reports]).mean(0)
        losses = self.processes.sum(losses) / self.processes.world_size
        seconds = sum(report["seconds"] for report in self.reports)
        return {
            **dict(zip(self.LOSSES, losses.tolist())),
            "gradient_norm": torch.stack([report["gradient_norm"].cpu() for report in self.reports]).mean().item(),
            "learning_rate": self.reports[-1]["learning_rate"],
            "clips_per_second": sum(report["clips"] for report in self.reports) / seconds,
            "waiting_for_data": sum(report["waited"] for report in self.reports) / seconds,
        }

    def _report_unreadable(self, step):
        """Log the files that any process could not read since the last call; return the total counts of unreadable
        files and skipped steps."""
        files = sorted(itertools.chain(*self.processes.gather(self.unreadable)))
        for file in files:
            self.log.record(step, "event", unreadable=file)
        self.progress["unreadable"] += len(files)
        self.unreadable = []
        return {name: self.progress[name] for name in ("skipped", "unreadable")}


def _decay_projections_only(groups, model):
    """Split each of AdamW's groups in two: weights of linear layers and convolutions, and the rest without decay."""
    decayed = {module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))}
    divided = []
    for group in groups:
        projections = [parameter for parameter in group["params"] if parameter in decayed]
        others = [parameter for parameter in group["params"] if parameter not in decayed]
        divided += [{**group, "params": projections}, {**group, "params": others, "weight_decay": 0.0}]
    return [group for group in divided if group["params"]]


def seed_of(*numbers):
    """Return a distinct seed for each purpose, step and process of a run."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextmanager
def _tf32(allowed):
    """Allow or forbid TF32 in a GPU's float32 products and convolutions; by default torch uses it in convolutions."""
    libraries = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [library.allow_tf32 for library in libraries]
    try:
        for library in libraries:
            library.allow_tf32 = allowed
        yield
    finally:
        for library, was_allowed in zip(libraries, before):
            library.allow_tf32 = was_allowed


@contextmanager
def signals():
    """Collect SIGINT and SIGTERM in a list, empty until one arrives; a second SIGINT interrupts immediately."""
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
