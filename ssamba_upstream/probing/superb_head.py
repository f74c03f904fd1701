"""SUPERB's classifier on averages over time: the weighted sum of the layers, a projector and a linear layer.

In s3prl 0.4.18 the classifiers of speaker identification, emotion recognition, keyword spotting and intent
classification are a weighted sum of the hidden states, a linear projector, the mean over time and a linear layer. All
that comes before the mean is linear, and the mean leaves out what an utterance is padded with, so that the mean may as
well come first: what :func:`ssamba_upstream.probing.time_averages` has computed is all that they see of an utterance.
(That is no longer so with ``--upstream_feature_normalize``, which normalises each frame, or with a fine-tuned
upstream.)
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
BATCH_SIZE = 32  # in all four tasks, with gradients accumulated
GRADIENT_CLIPPING = 1.0
DEV_SHARE = 0.2  # of emotion recognition's training folds
UTTERANCES_AT_ONCE = 512


@dataclass(frozen=True)
class HeadSchedule:
    """How long SUPERB's classifier is trained.

    Attributes:
        steps: of Adam, with batches of 32.
        steps_between_evaluations: on dev.
        balanced: draw utterances of all classes equally often, with replacement, and count the classes equally
            on dev, as s3prl does for keyword spotting; otherwise every utterance once before any comes again.
        slots: a label is several, see :func:`ssamba_upstream.corpora.labelled.split_labels`, each with a softmax of
            its own, and is right where all are: s3prl's action, object and location of an intent.
    """

    steps: int
    steps_between_evaluations: int
    balanced: bool = False
    slots: bool = False

    def of_steps(self, steps):
        """The same of another length, evaluated as many times."""
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
    """SUPERB's classifier at the step, and with the learning rate, that dev chose by its accuracy.

    Attributes:
        dev_accuracy, test_accuracy: of it.
        layer_weights: of the weighted sum, one per layer; their sum is 1.
        learning_rate, step: those chosen.
    """

    dev_accuracy: float
    test_accuracy: float
    layer_weights: list[float]
    learning_rate: float
    step: int


class SuperbHead(nn.Module):
    """s3prl's Featurizer and the ``UtteranceLevel`` classifier with ``MeanPooling``, of averages over time.

    Args:
        layers: number of hidden states.
        size: features of each.
        classes: number of classes; or a list, those of each slot.
    """

    def __init__(self, layers, size, classes):
        super().__init__()
        self.slots = [classes] if isinstance(classes, int) else [*classes]
        self.weights = nn.Parameter(torch.zeros(layers))
        self.projector = nn.Linear(size, PROJECTOR_SIZE)
        self.linear = nn.Linear(PROJECTOR_SIZE, sum(self.slots))

    def forward(self, averages):
        """(layers, utterances, features) -> logits (utterances, classes), of all slots one after the other."""
        summed = torch.tensordot(self.layer_weights, averages, dims=1)
        return self.linear(self.projector(summed))

    def clip_gradients(self):
        """Shorten the gradient as s3prl's runner does; returns the norm it had."""
        return nn.utils.clip_grad_norm_(self.parameters(), GRADIENT_CLIPPING)

    @property
    def layer_weights(self):
        """(layers,): the shares of the weighted sum."""
        return self.weights.softmax(dim=0)


class LayerHeads(nn.Module):
    """The classifier on each layer by itself, of all layers at once: what s3prl trains with ``-l``, one a run.

    Args:
        layers, size, classes: see :class:`SuperbHead`; its start is that of every layer.
    """

    def __init__(self, layers, size, classes):
        super().__init__()
        start = SuperbHead(1, size, classes)
        self.slots = start.slots
        for name, linear in (("projector", start.projector), ("linear", start.linear)):
            weight, bias = linear.weight.detach().T, linear.bias.detach()
            self.register_parameter(f"{name}_weight", nn.Parameter(weight.repeat(layers, 1, 1)))
            self.register_parameter(f"{name}_bias", nn.Parameter(bias.repeat(layers, 1, 1)))

    def forward(self, averages):
        """(layers, utterances, features) -> logits (layers, utterances, classes)."""
        projected = torch.baddbmm(self.projector_bias, averages, self.projector_weight)
        return torch.baddbmm(self.linear_bias, projected, self.linear_weight)

    def clip_gradients(self):
        """The same for each layer's classifier by itself."""
        gradients = [parameter.grad for parameter in self.parameters()]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        for gradient in gradients:
            gradient.mul_((GRADIENT_CLIPPING / (norms + 1e-6)).clamp(max=1)[:, None, None])
        return norms


def train_head(features, labels, splits, schedule=DEFAULT_SCHEDULE, learning_rates=(1e-4,), seed=0, device="cpu"):
    """Train SUPERB's classifier with s3prl's optimiser, batches and gradient clipping.

    Where SUPERB draws one second of a background noise or eight of an utterance anew for every step, here an
    utterance stays the same, see :mod:`ssamba_upstream.corpora.superb.sets`.

    Args:
        features: (layers, utterances, features), see :func:`ssamba_upstream.probing.time_averages`.
        labels: the class of each utterance.
        splits: "train", "dev" or "test" of each utterance.
        schedule: steps and batches.
        learning_rates: one is chosen by the accuracy on dev; all that SUPERB allows to be searched.
        seed: of the random start and the order of the batches.
        device: on which it is trained.

    Returns:
        HeadResults.
    """
    task = _task(labels, splits, schedule)
    results = [_train(features, task, schedule, rate, seed, device) for rate in learning_rates]
    return max(results, key=lambda result: result.dev_accuracy)


def train_layer_heads(
    features, labels, splits, schedule=DEFAULT_SCHEDULE, learning_rates=(1e-4,), seed=0, device="cpu",
):
    """Train SUPERB's classifier on each layer by itself; every layer sees the same batches.

    The arguments are those of :func:`train_head`; learning rate and step are chosen on dev for each layer.

    Returns:
        list of the layers' test accuracies.
    """
    task = _task(labels, splits, schedule)
    best_dev, best_test = torch.full((2, len(features)), -1.0, dtype=torch.float64)
    for learning_rate in learning_rates:
        heads = _start(LayerHeads, features, task, seed, device)
        for _ in _training(heads, features, task, schedule, learning_rate, seed):
            dev = _accuracy(heads, features, task, "dev", schedule.balanced)
            test = _accuracy(heads, features, task, "test")
            best_test = torch.where(dev > best_dev, test, best_test)
            best_dev = torch.maximum(dev, best_dev)
    return best_test.tolist()


def training_step(head, optimizer, averages, targets):
    """One step of s3prl's runner on (layers, utterances, features) and class indices, (utterances,) or (utterances,
    slots).

    The gradient is clipped, and the step left out where it is NaN; of LayerHeads, for each layer by itself.
    """
    optimizer.zero_grad()
    logits = head(averages)
    targets = targets.view(len(targets), -1)
    losses = [
        F.cross_entropy(of_slot.flatten(0, -2), expected.expand(of_slot.shape[:-1]).flatten(), reduction="sum")
        for of_slot, expected in zip(logits.split(head.slots, dim=-1), targets.T)
    ]
    (sum(losses) / len(targets)).backward()
    if not head.clip_gradients().isnan().any():
        optimizer.step()


def splits_for_fold(folds, test):
    """"train", "dev" or "test" for each of the folds, as s3prl's emotion recognition draws dev from the others.

    Args:
        folds: name of each utterance's fold. The order counts: for s3prl's own split it is that of the metadata.
        test: the fold that is the test set.
    """
    others = [i for i, fold in enumerate(folds) if fold != test]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).tolist()
    splits = ["test"] * len(folds)
    for rank, i in enumerate(order):
        splits[others[i]] = "train" if rank < int((1 - DEV_SHARE) * len(others)) else "dev"
    return splits


def read_layer_weights(checkpoint):
    """The shares of the weighted sum in a checkpoint of s3prl's runner, such as ``dev-best.ckpt``.

    Args:
        checkpoint: its path. No code in it is ever run.

    Returns:
        one number per layer; their sum is 1.

    Raises:
        ValueError: no checkpoint of s3prl's runner, or one of a run on a single layer.
    """
    # The runner's own arguments; nothing but what the class holds is restored.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        states = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling fails in as many ways as there are files
        raise ValueError(f"{checkpoint} {why_unreadable(error)}. Give a checkpoint of s3prl's runner, such as "
                         "dev-best.ckpt") from None
    if not isinstance(states, dict) or "Downstream" not in states:
        raise ValueError(f"{checkpoint} is no checkpoint of s3prl's runner, such as dev-best.ckpt")
    weights = states.get("Featurizer", {}).get("weights")
    if weights is None:
        raise ValueError(f"{checkpoint} holds no layer weights: its run read a single layer")
    return weights.float().softmax(dim=0).tolist()


class _Task(NamedTuple):
    """The class of each utterance, (utterances,); the class in each slot of each class, (classes, slots); and the
    indices of the utterances of each split."""

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
    head = _start(SuperbHead, features, task, seed, device)
    best = None
    for step in _training(head, features, task, schedule, learning_rate, seed):
        dev_accuracy = _accuracy(head, features, task, "dev", schedule.balanced).item()
        if best is None or dev_accuracy > best.dev_accuracy:
            test_accuracy = _accuracy(head, features, task, "test").item()
            weights = head.layer_weights.tolist()
            best = HeadResults(dev_accuracy, test_accuracy, weights, learning_rate, step)
    return best


def _start(head_class, features, task, seed, device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return head_class(features.shape[0], features.shape[2], (task.slots.amax(dim=0) + 1).tolist()).to(device)


def _training(head, features, task, schedule, learning_rate, seed):
    """Trains a head; yields the number of the step whenever it is to be evaluated."""
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
    """Batches of indices, without end."""
    weights = 1 / torch.bincount(targets)[targets]
    while True:
        if balanced:
            order = torch.multinomial(weights, len(targets), replacement=True, generator=generator)
            if len(order) > BATCH_SIZE:  # s3prl drops the last batch where it is smaller
                order = order[:len(order) - len(order) % BATCH_SIZE]
        else:
            order = torch.randperm(len(targets), generator=generator)
        yield from order.split(BATCH_SIZE)


@torch.no_grad()
def _accuracy(head, features, task, split, balanced=False):
    """Accuracy on the utterances of a split: a number for a SuperbHead, (layers,) for LayerHeads."""
    device, members = next(head.parameters()).device, task.parts[split]
    parts = members.split(UTTERANCES_AT_ONCE)
    found = torch.cat([_classes(head, features[:, part].float().to(device)) for part in parts], dim=-2)
    expected = task.targets[members]
    right = (found == task.slots[expected]).all(dim=-1).double()
    if balanced:
        return torch.stack([right[..., expected == label].mean(-1) for label in expected.unique()]).mean(0)
    return right.mean(-1)


def _classes(head, averages):
    """The class in each slot, (..., utterances, slots) on the CPU."""
    return torch.stack([logits.argmax(dim=-1) for logits in head(averages).split(head.slots, dim=-1)], dim=-1).cpu()
