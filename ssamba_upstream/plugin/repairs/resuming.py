"""Runs that s3prl resumes go on with other data than they began with.

s3prl seeds every start alike, and begins the epoch anew. A run that is interrupted more often than once an epoch would
see the beginning of that epoch again and again, and never the rest of the data. After a resume at step k, whatever is
drawn is seeded by k: it is another order, and the same one whenever a run is resumed at that step. What has not been
resumed is s3prl's, bit for bit.
"""

import functools
import inspect
import random
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.data import DistributedSampler


def seed_resumed_runs(module):
    """``run_downstream``: seed a resumed run by its step."""
    train = module.Runner.train

    @functools.wraps(train)
    def train_from_its_step(self):
        if step := self.init_ckpt.get("Step"):
            _seed(self.args.seed + step)
            _shift_samplers(self.downstream.model, step)
        train(self)

    module.Runner.train = train_from_its_step


def _seed(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # of all devices


def _shift_samplers(downstream, step):
    """Distributed samplers draw by a seed of their own and the epoch."""
    get_dataloader = downstream.get_dataloader

    def get_shifted(*split, **named):
        loader = get_dataloader(*split, **named)
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            loader.sampler.seed += step
        return loader

    downstream.get_dataloader = get_shifted


def seed_resumed_recipes(module):
    """``s3prl.main``, s3prl's newer recipes: seed a resumed run, and the order of its epochs, by its step."""
    train = module.Problem.train
    signature = inspect.signature(train)

    @functools.wraps(train)
    def train_from_its_step(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        if step := _step_of_recipe(given["train"], given["train_dir"]):
            given["train"] = {**given["train"], "seed": given["train"].get("seed", 0) + step}
            _shift_epochs(given["train_batch_sampler"], step)
        return train(**given)

    module.Problem.train = train_from_its_step


def _step_of_recipe(options, folder):
    """The step at which s3prl is going to resume, or None."""
    if not options.get("auto_resume", True):
        return None
    states = sorted(Path(folder).glob("step_*"), key=lambda path: int(path.name.split("_")[-1]))
    chosen = options.get("resume_ckpt_dir") or (states[-1] if states else None)
    if chosen is None or not Path(chosen).is_dir():
        return None
    return yaml.safe_load((Path(chosen) / "training_stats.yaml").read_text(encoding="utf-8"))["global_step"]


def _shift_epochs(sampler, step):
    if hasattr(sampler, "set_epoch"):
        set_epoch = sampler.set_epoch
        sampler.set_epoch = lambda epoch: set_epoch(epoch + step)
