"""Resumed runs see other data than the first steps. Tests use s3prl's training loop and a stand-in for the networks."""

import argparse
import random
import types

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, DistributedSampler

from ssamba_upstream.plugin import compat
from ssamba_upstream.plugin.repairs.resuming import seed_resumed_recipes

pytest.importorskip("tensorboardX")


class Downstream(torch.nn.Module):
    """Records which of ten utterances it sees; an epoch has five batches."""

    def __init__(self, distributed):
        super().__init__()
        self.layer, self.seen, self.distributed = torch.nn.Linear(1, 1), [], distributed

    def get_dataloader(self, split):
        sampler = DistributedSampler(range(10), num_replicas=1, rank=0) if self.distributed else None
        return DataLoader(range(10), 2, shuffle=sampler is None, sampler=sampler,
                          collate_fn=lambda numbers: ([[float(number)] for number in numbers], numbers))

    def forward(self, split, features, numbers, records):
        self.seen.append((numbers, random.random(), np.random.rand(), torch.rand(()).item()))
        return self.layer(torch.stack(features)).square().mean()

    def log_records(self, split, **others):
        return []


@pytest.fixture
def run(tmp_path):
    """Train up to a step, from a saved step or the start, as run_downstream's main does; return the utterances seen."""
    compat.apply()
    from s3prl.downstream.runner import ModelEntry, Runner

    class Trained(Runner):
        distributed = False

        def _get_upstream(self):
            return self._init_model(torch.nn.Identity(), "Upstream", False)

        def _get_featurizer(self):
            return ModelEntry(lambda wavs, features: features, "Featurizer", False, None)

        def _get_downstream(self):
            return self._init_model(Downstream(self.distributed), "Downstream", True)

    def run(until, resume=None, train=Runner.train, distributed=False):
        args = argparse.Namespace(init_ckpt=resume and str(tmp_path / f"states-{resume}.ckpt"), device="cpu", seed=1337,
                                  expdir=str(tmp_path), upstream_trainable=False, push_to_hf_hub=False)
        config = {"optimizer": {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 1e-3}, "runner": {
            "total_steps": until, "gradient_clipping": 1, "gradient_accumulate_steps": 1, "log_step": 1, "save_step": 2,
            "max_keep": 99, "eval_step": 99, "eval_dataloaders": []}}
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(args.seed)
        Trained.distributed = distributed
        runner = Trained(args, config)
        runner.all_entries.remove(runner.featurizer)
        train(runner)
        return runner.downstream.model.seen

    return run


@pytest.mark.parametrize("distributed", [False, True])
def test_a_resumed_run_sees_other_data(run, distributed):
    first, resumed, again = (run(*steps, distributed=distributed) for steps in ((2,), (4, 2), (4, 2)))
    assert len(first) == len(resumed) == 2
    assert resumed == again and not any(a == b for draws in zip(first, resumed) for a, b in zip(*draws))
    seen = {number for numbers, *_ in first + resumed for number in numbers}
    for step in range(4, 24, 2):  # interrupted more than once per epoch
        seen |= {number for numbers, *_ in run(step + 2, step, distributed=distributed) for number in numbers}
    assert seen == set(range(10))


def test_a_run_that_was_not_resumed_is_s3prls(run):
    from s3prl.downstream.runner import Runner

    assert run(12) == run(12, train=Runner.train.__wrapped__)


def test_without_the_repair_the_data_begin_anew(run):
    from s3prl.downstream.runner import Runner

    assert run(2) == run(4, 2, train=Runner.train.__wrapped__)


# s3prl.main


class Problem:
    def train(self, train, train_dir, train_batch_sampler, rank=0):
        train_batch_sampler.set_epoch(3)
        return train["seed"]


@pytest.mark.parametrize("given, steps, expected", [
    ({"seed": 5}, [], (5, 3)), ({"seed": 5}, [90, 100], (105, 103)), ({"seed": 5, "auto_resume": False}, [100], (5, 3)),
    ({"seed": 5, "resume_ckpt_dir": "step_90"}, [90, 100], (95, 93)),
    ({"seed": 5, "resume_ckpt_dir": "step_7"}, [], (5, 3))])
def test_resumed_recipes_go_on_with_another_order(tmp_path, monkeypatch, given, steps, expected):
    class Repaired(Problem):
        train = Problem.train

    seed_resumed_recipes(types.SimpleNamespace(Problem=Repaired))
    for step in steps:
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "training_stats.yaml").write_text(yaml.safe_dump({"global_step": step}))
    epochs = []
    sampler = types.SimpleNamespace(set_epoch=epochs.append)
    monkeypatch.chdir(tmp_path)
    seed = Repaired().train(given, str(tmp_path), train_batch_sampler=sampler)
    assert (seed, *epochs) == expected and given["seed"] == 5


def test_the_recipes_have_what_is_repaired():
    """Checks the installed s3prl, if the recipes' own packages are installed."""
    pytest.importorskip("tensorboard")
    import inspect

    compat.apply()
    base = pytest.importorskip("s3prl.problem.base")
    assert hasattr(base.Problem.train, "__wrapped__")
    assert {"train", "train_dir", "train_batch_sampler"} <= inspect.signature(base.Problem.train).parameters.keys()
