"""Different data order after s3prl resumes a run.

s3prl uses the same seed at every start and restarts the epoch. A run that is interrupted more than once per epoch would
see the beginning of that epoch again and again, and never the rest of the data. After a resume at step k, everything
random is seeded by k, so the order is new, but the same whenever a run is resumed at that step. Runs without a resume
are bit-identical to s3prl's.
"""

import inspect
import random
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.data import DistributedSampler

from . import wrap


def seed_resumed_runs(module):
    """Seed a resumed run of ``run_downstream`` by its step."""

    @wrap(module.Runner, "train")
    def train_from_its_step(train, self):
        if step := self.init_ckpt.get("Step"):
            _seed(self.args.seed + step)
            _shift_samplers(self.downstream.model, step)
        train(self)


def _seed(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # for all devices


def _shift_samplers(downstream, step):
    """Shift the seeds of distributed samplers, which draw by their own seed and the epoch."""

    @wrap(downstream, "get_dataloader")
    def get_shifted(get_dataloader, *split, **named):
        loader = get_dataloader(*split, **named)
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            loader.sampler.seed += step
        return loader


def seed_resumed_recipes(module):
    """Seed a resumed run of ``s3prl.main``, s3prl's newer recipes, and the order of its epochs by its step."""

    @wrap(module.Problem, "train")
    def train_from_its_step(train, *args, **kwargs):
        given = inspect.signature(train).bind(*args, **kwargs).arguments
        if step := _step_of_recipe(given["train"], given["train_dir"]):
            given["train"] = {**given["train"], "seed": given["train"].get("seed", 0) + step}
            sampler = given["train_batch_sampler"]
            if hasattr(sampler, "set_epoch"):
                set_epoch = sampler.set_epoch
                sampler.set_epoch = lambda epoch: set_epoch(epoch + step)
        return train(**given)


def _step_of_recipe(options, folder):
    """Return the step at which s3prl will resume, or None."""
    if not options.get("auto_resume", True):
        return None
    states = sorted(Path(folder).glob("step_*"), key=lambda path: int(path.name.split("_")[-1]))
    chosen = options.get("resume_ckpt_dir") or (states[-1] if states else None)
    if chosen is None or not Path(chosen).is_dir():
        return None
    return yaml.safe_load((Path(chosen) / "training_stats.yaml").read_text(encoding="utf-8"))["global_step"]
