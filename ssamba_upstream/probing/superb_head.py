"""SUPERB's classifier on time averages: a weighted sum of the layers, a projector and a linear layer.

In s3prl 0.4.18 the classifiers for speaker identification, emotion recognition, keyword spotting and intent
classification are a weighted sum of the hidden states, a linear projector, the mean over time and a linear layer.
Everything before the mean is linear, and the mean excludes padding, so the mean can come first: the classifiers see
an utterance only through its :func:`ssamba_upstream.probing.time_averages`. (This does not hold with
``--upstream_feature_normalize``, which normalises each frame, or with a fine-tuned upstream.)
"""

import argparse
import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..checkpoint import why_unreadable
from ..corpora.labelled import members_of_splits, split_labels

PROJECTOR_SIZE = 256
BATCH_SIZE = 32  # in all four tasks, after gradient accumulation
GRADIENT_CLIPPING = 1.0
DEV_SHARE = 0.2  # share of emotion recognition's training folds
UTTERANCES_AT_ONCE = 512


@dataclass(frozen=True)
class HeadSchedule:
    """Training schedule of SUPERB's classifier.

    Attributes:
        steps: Adam steps, with batches of 32.
        steps_between_evaluations: steps between evaluations on dev.
        balanced: If True, draw all classes equally often, with replacement, and weight them equally on dev, as s3prl
            does for keyword spotting. Otherwise every utterance is drawn once per epoch.
        slots: If True, a label has several slots, see :func:`ssamba_upstream.corpora.labelled.split_labels`, each with
            its own softmax, and all must be right, as with the action, object and location of an intent in s3prl.
    """

    steps: int
    steps_between_evaluations: int
    balanced: bool = False
    slots: bool = False

    def of_steps(self, steps):
        """Return a schedule of another length with the same number of evaluations."""
        if steps < 1:
            raise ValueError(f"the classifier needs one step or more; got {steps}")
        between = max(1, steps * self.steps_between_evaluations // self.steps)
        return replace(self, steps=steps, steps_between_evaluations=between)


SUPERB_SCHEDULES = {
    "sid": HeadSchedule(200_000, 5000),
    "er": HeadSchedule(30_000, 1000),
    "ks": HeadSchedule(200_000, 5000, balanced=True),
    "ic": HeadSchedule(200_000, 5000, slots=True),
}
DEFAULT_SCHEDULE = HeadSchedule(5000, 250)


@dataclass(frozen=True)
class HeadResults:
    """SUPERB's classifier at the step and learning rate with the highest dev accuracy.

    Attributes:
        dev_accuracy, test_accuracy: accuracy of the classifier.
        layer_weights: weights of the weighted sum, one per layer; their sum is 1.
        learning_rate, step: the chosen learning rate and step.
    """

    dev_accuracy: float
    test_accuracy: float
    layer_weights: list[float]
    learning_rate: float
    step: int


class SuperbHead(nn.Module):
    """s3prl's Featurizer and ``UtteranceLevel`` classifier with ``MeanPooling``, on time averages.

    Args:
        layers: number of hidden states.
        size: number of features of each hidden state.
        classes: number of classes, or a list with the number for each slot.
    """

    def __init__(self, layers, size, classes):
        super().__init__()
        self.slots = [classes] if isinstance(classes, int) else [*classes]
        self.weights = nn.Parameter(torch.zeros(layers))
        self.projector = nn.Linear(size, PROJECTOR_SIZE)
        self.linear = nn.Linear(PROJECTOR_SIZE, sum(self.slots))

    def forward(self, averages):
        """Map (layers, utterances, features) to logits (utterances, classes), with all slots concatenated."""
        summed = torch.tensordot(self.layer_weights, averages, dims=1)
        return self.linear(self.projector(summed))

    @property
    def layer_weights(self):
        """Weights of the weighted sum, (layers,)."""
        return self.weights.softmax(dim=0)


def train_head(features, labels, splits, schedule=DEFAULT_SCHEDULE, learning_rates=(1e-4,), seed=0, device="cpu"):
    """Train SUPERB's classifier with s3prl's optimiser, batches and gradient clipping.

    SUPERB draws another second of background noise, or another eight seconds of an utterance, at every step. Here
    utterances stay fixed, see :mod:`ssamba_upstream.corpora.superb.sets`.

    Args:
        features: (layers, utterances, features), see :func:`ssamba_upstream.probing.time_averages`.
        labels: class of each utterance.
        splits: "train", "dev" or "test" for each utterance.
        schedule: steps and batches.
        learning_rates: rates to try; dev accuracy chooses one. SUPERB allows no other hyperparameter search.
        seed: seed of the initial weights and the order of the batches.
        device: device that the classifier is trained on.

    Returns:
        HeadResults.
    """
    task = _task(labels, splits, schedule)
    results = [_train(features, task, schedule, rate, seed, device) for rate in learning_rates]
    return max(results, key=lambda result: result.dev_accuracy)


def training_step(head, optimizer, averages, targets):
    """Take one step of s3prl's runner on (layers, utterances, features) and class indices, (utterances,) or
    (utterances, slots). The gradient is clipped; the step is skipped if it is NaN."""
    optimizer.zero_grad()
    slots = zip(head(averages).split(head.slots, dim=-1), targets.view(len(targets), -1).T)
    losses = [F.cross_entropy(logits, expected, reduction="sum") for logits, expected in slots]
    (sum(losses) / len(targets)).backward()
    if not nn.utils.clip_grad_norm_(head.parameters(), GRADIENT_CLIPPING).isnan():
        optimizer.step()


def splits_for_fold(folds, test):
    """Return "train", "dev" or "test" for each utterance, drawing dev as s3prl's emotion recognition does.

    Args:
        folds: name of each utterance's fold. For s3prl's own split, they must be in the metadata's order.
        test: fold used as the test set.
    """
    others = [i for i, fold in enumerate(folds) if fold != test]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).tolist()
    splits = ["test"] * len(folds)
    for rank, i in enumerate(order):
        splits[others[i]] = "train" if rank < int((1 - DEV_SHARE) * len(others)) else "dev"
    return splits


def read_layer_weights(checkpoint):
    """Return the layer weights in a checkpoint of s3prl's runner, such as ``dev-best.ckpt``.

    Args:
        checkpoint: path. Code in the file is never run.

    Returns:
        one number per layer; their sum is 1.

    Raises:
        ValueError: If the file is not a checkpoint of s3prl's runner, or its run used a single layer.
    """
    # The runner saves its arguments in a Namespace, a plain container.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        states = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling a bad file can raise anything
        raise ValueError(f"{checkpoint} {why_unreadable(error)}. Give a checkpoint of s3prl's runner, such as "
                         "dev-best.ckpt") from None
    if not isinstance(states, dict) or "Downstream" not in states:
        raise ValueError(f"{checkpoint} is not a checkpoint of s3prl's runner, such as dev-best.ckpt")
    weights = states.get("Featurizer", {}).get("weights")
    if weights is None:
        raise ValueError(f"{checkpoint} has no layer weights: its run used a single layer")
    return weights.float().softmax(dim=0).tolist()


class _Task(NamedTuple):
    """Each utterance's class, (utterances,); each class's index in every slot, (classes, slots); and each split's
    utterance indices."""

    targets: torch.Tensor
    slots: torch.Tensor
    parts: dict[str, torch.Tensor]


def _task(labels, splits, schedule):
    classes = sorted(set(labels))
    parts = {name: torch.tensor(members) for name, members in members_of_splits(splits).items()}
    in_slots = [*zip(*map(split_labels, classes))] if schedule.slots else [classes]
    numbers = [[sorted(set(of_slot)).index(name) for name in of_slot] for of_slot in in_slots]
    return _Task(torch.tensor([classes.index(label) for label in labels]), torch.tensor(numbers).T, parts)


def _train(features, task, schedule, learning_rate, seed, device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SuperbHead(features.shape[0], features.shape[2], (task.slots.amax(dim=0) + 1).tolist()).to(device)
    best = None
    for step in _training(head, features, task, schedule, learning_rate, seed):
        dev_accuracy = _accuracy(head, features, task, "dev", schedule.balanced)
        if best is None or dev_accuracy > best.dev_accuracy:
            test_accuracy = _accuracy(head, features, task, "test")
            best = HeadResults(dev_accuracy, test_accuracy, head.layer_weights.tolist(), learning_rate, step)
    return best


def _training(head, features, task, schedule, learning_rate, seed):
    """Train a head; yield the step number whenever an evaluation is due."""
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    members = task.parts["train"]
    batches = _batches(task.targets[members], schedule.balanced, torch.Generator().manual_seed(seed))
    device = next(head.parameters()).device
    batches = tqdm(itertools.islice(batches, schedule.steps), "classifier", schedule.steps, leave=False, disable=None)
    for step, batch in enumerate(batches, start=1):
        batch = members[batch]
        targets = task.slots[task.targets[batch]]
        training_step(head, optimizer, features[:, batch].float().to(device), targets.to(device))
        if step % schedule.steps_between_evaluations == 0 or step == schedule.steps:
            yield step


def _batches(targets, balanced, generator):
    """Yield batches of indices indefinitely."""
    weights = 1 / torch.bincount(targets)[targets]
    while True:
        if balanced:
            order = torch.multinomial(weights, len(targets), replacement=True, generator=generator)
            if len(order) > BATCH_SIZE:  # s3prl drops the last batch if it is smaller
                order = order[:len(order) - len(order) % BATCH_SIZE]
        else:
            order = torch.randperm(len(targets), generator=generator)
        yield from order.split(BATCH_SIZE)


@torch.no_grad()
def _accuracy(head, features, task, split, balanced=False):
    """Return the accuracy on a split, averaged over the classes if ``balanced``."""
    device, members = next(head.parameters()).device, task.parts[split]
    found = []
    for part in members.split(UTTERANCES_AT_ONCE):
        slots = head(features[:, part].float().to(device)).split(head.slots, dim=-1)
        found.append(torch.stack([logits.argmax(dim=-1) for logits in slots], dim=-1).cpu())
    expected = task.targets[members]
    right = (torch.cat(found) == task.slots[expected]).all(dim=-1).double()
    if balanced:
        right = torch.stack([right[expected == label].mean() for label in expected.unique()])
    return right.mean().item()
