"""Linear probes: multinomial logistic regression on every layer, all learning rates and penalties at once."""

import itertools
import math
from dataclasses import dataclass
from statistics import mean

import torch
from tqdm import tqdm

from ..corpora.labelled import members_of_splits, rotate_folds

# Bytes of standardised features; beyond what caches hold, more layers at once are slower on a CPU.
BYTES_AT_ONCE = 2**23
BATCH_SIZE = 256
STEPS_BETWEEN_EVALUATIONS = 5


@dataclass(frozen=True)
class ProbeResults:
    """The probe of each layer with the lowest loss on dev; lists have one entry per layer.

    Attributes:
        dev_accuracy, dev_loss: of the chosen learning rate, weight decay and step; the loss is cross-entropy.
        test_accuracy: of the same probe.
        learning_rate, weight_decay: those chosen.
    """

    dev_accuracy: list[float]
    dev_loss: list[float]
    test_accuracy: list[float]
    learning_rate: list[float]
    weight_decay: list[float]

    @property
    def best_layer(self):
        """The layer with the lowest loss on dev."""
        return min(range(len(self.dev_loss)), key=self.dev_loss.__getitem__)

    @property
    def best_test_accuracy(self):
        """Test accuracy of the layer that dev chose."""
        return self.test_accuracy[self.best_layer]


@dataclass(frozen=True)
class CrossValidation:
    """:class:`ProbeResults` of each fold being the test set once, by the fold's name."""

    folds: dict[str, ProbeResults]

    @property
    def test_accuracy(self):
        """Test accuracy of each layer, the mean over the folds."""
        by_fold = [results.test_accuracy for results in self.folds.values()]
        return [mean(accuracies) for accuracies in zip(*by_fold)]

    @property
    def best_test_accuracy(self):
        """Mean over the folds, in each the layer that its dev fold chose."""
        return mean(results.best_test_accuracy for results in self.folds.values())


def train_probes(
    features, labels, splits, learning_rates=(5e-4, 2e-3, 1e-2), weight_decays=(0.0, 1e-2), seed=0,
    max_steps=300, patience=20, device=None,
):
    """Train the probes of all layers and choose on dev.

    Adam on features standardised by the statistics of train, in batches of up to 256 utterances. Each probe
    keeps the step with the lowest loss on dev, and is stopped when that has not fallen for ``patience``
    evaluations, five steps apart; of a layer's probes the one with the lowest loss on dev is reported. (On a
    small dev set the accuracies of many probes tie, and choosing by them would be luck.) All probes start
    from the same weights and see the same batches, and none depends on those trained beside it.

    Args:
        features: (layers, utterances, features), such as from :func:`ssamba_upstream.probing.time_averages`.
        labels: the class of each utterance.
        splits: "train", "dev" or "test" of each utterance.
        learning_rates, weight_decays: all pairs are tried; weight decay is an L2 penalty, not on the bias.
        seed: of the random start and the order of the batches.
        max_steps: the longest that a probe is trained.
        patience: see above.
        device: on which the probes are trained, a few layers at a time. Default: where the features are.

    Raises:
        ValueError: sizes that do not fit, an empty split, a class of dev or test that train lacks, or
            features that are not finite.
    """
    pairs = list(itertools.product(learning_rates, weight_decays))
    layers = _probe_layers(features, labels, splits, pairs, [seed] * len(pairs), max_steps, patience, device)
    return _by_field([min(candidates, key=lambda candidate: candidate[1]) for candidates in layers])


def retrain_probes(features, labels, splits, results, seeds, **options):
    """Train the probes from other random starts, with the learning rates and weight decays that were chosen before.

    All starts of a layer are one problem: they see the same batches, in another order than :func:`train_probes`.

    Args:
        features, labels, splits: see :func:`train_probes`.
        results: what that returned for them.
        seeds: of the random starts; the first also of the order of the batches.
        options: ``max_steps``, ``patience`` and ``device`` of :func:`train_probes`.

    Returns:
        list of ProbeResults, one for each seed.
    """
    chosen = zip(results.learning_rate, results.weight_decay)
    layers = [
        _probe_layers(features[layer:layer + 1], labels, splits, [pair] * len(seeds), seeds, **options)[0]
        for layer, pair in enumerate(chosen)
    ]
    return [_by_field(layers_of_seed) for layers_of_seed in zip(*layers)]


def cross_validate(features, labels, folds, **options):
    """Train the probes with each fold as test once, the next (in sorted order) as dev, the others as train.

    Args:
        features, labels: see :func:`train_probes`.
        folds: name of each utterance's fold, of three or more.
        options: of :func:`train_probes`.

    Returns:
        a :class:`CrossValidation`.

    Raises:
        ValueError: fewer than three folds, and see :func:`train_probes`.
    """
    return CrossValidation({
        test: train_probes(features, labels, splits, **options) for test, splits in rotate_folds(folds)
    })


def _probe_layers(features, labels, splits, pairs, seeds, max_steps=300, patience=20, device=None):
    """For each layer, the fields of ProbeResults of each pair of learning rate and weight decay, from its own seed."""
    device = device or features.device
    targets, parts = _checked(features, labels, splits)
    targets = targets.to(device)
    layers_at_once = max(1, BYTES_AT_ONCE // (4 * features[0].numel()))
    found = []
    for group in tqdm(features.split(layers_at_once), "probes", leave=False, disable=None):
        scores = _train(group.to(device), targets, parts, pairs, seeds, max_steps, patience)
        for layer in zip(*(score.tolist() for score in scores)):
            found.append([(*values, *pair) for *values, pair in zip(*layer, pairs)])
    return found


def _by_field(probes):
    """ProbeResults of one probe per layer."""
    return ProbeResults(*map(list, zip(*probes)))


def _checked(features, labels, splits):
    """(class index of each utterance, indices of the utterances of each split)."""
    if features.dim() != 3 or not features.shape[1] == len(labels) == len(splits):
        raise ValueError("features must be (layers, utterances, features), with a label and a split for each "
                         f"utterance; got {tuple(features.shape)}, {len(labels)} labels and {len(splits)} "
                         "splits")
    parts = members_of_splits(splits)
    classes = sorted({labels[i] for i in parts["train"]})
    unknown = sorted({labels[i] for i in parts["dev"] + parts["test"]} - set(classes))
    if unknown:
        raise ValueError(f"dev or test has classes that train lacks: {', '.join(unknown[:3])}")
    number = {label: i for i, label in enumerate(classes)}
    targets = torch.tensor([number.get(label, -1) for label in labels])
    return targets, parts


def _train(features, targets, parts, pairs, seeds, max_steps, patience):
    """Accuracy and loss on dev, accuracy on test, each (layers, pairs), of the step that dev chose."""
    train, dev, test = _standardised(features, parts)
    train_targets, dev_targets, test_targets = (targets[members] for members in parts.values())
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    classes = int(targets.max()) + 1
    weights, biases = _start(train, classes, generators)
    rates, penalties = train.new_tensor(pairs).T.repeat_interleave(classes, dim=1)
    optimizers = [_Adam(weights, rates, penalties), _Adam(biases, rates, torch.zeros_like(penalties))]
    shape = len(train), len(pairs)
    dev_accuracy, dev_loss, test_accuracy = (train.new_full(shape, value) for value in (-1, math.inf, 0))
    waited = torch.zeros(shape, dtype=torch.int, device=train.device)
    for step, batch in enumerate(itertools.islice(_batches(train.shape[1], generators[0]), max_steps), start=1):
        losses, _ = _scores(train[:, batch], train_targets[batch], weights, biases, len(pairs))
        for optimizer, gradient in zip(optimizers, torch.autograd.grad(losses.sum(), [weights, biases])):
            optimizer.step(gradient)
        if step % STEPS_BETWEEN_EVALUATIONS and step < max_steps:
            continue
        with torch.no_grad():
            loss, accuracy = _scores(dev, dev_targets, weights, biases, len(pairs))
            better = (loss < dev_loss) & (waited < patience)
            if better.any():
                _, on_test = _scores(test, test_targets, weights, biases, len(pairs))
                for best, new in ((dev_accuracy, accuracy), (dev_loss, loss), (test_accuracy, on_test)):
                    best[better] = new[better]
        waited = torch.where(better, 0, waited + 1)
        if (waited >= patience).all():
            break
    return dev_accuracy, dev_loss, test_accuracy


def _standardised(features, parts):
    """(layers, members, features) of each split, by the mean and standard deviation of train's."""
    train, *held_out = (features[:, members].float() for members in parts.values())
    if not all(part.isfinite().all() for part in (train, *held_out)):
        raise ValueError("the features hold NaN or infinite values; is the checkpoint sound?")
    deviation, mean = torch.std_mean(train, dim=1, keepdim=True, correction=0)
    # What is constant but for rounding says nothing in train, and would be blown up in dev and test.
    deviation = deviation.masked_fill(deviation <= 1e-6 * mean.abs(), math.inf)
    return [part.sub_(mean).div_(deviation) for part in (train, *held_out)]


def _batches(utterances, generator):
    """Batches of indices of like sizes, without end; every utterance once before any comes again."""
    while True:
        yield from torch.randperm(utterances, generator=generator).chunk(math.ceil(utterances / BATCH_SIZE))


def _start(train, classes, generators):
    """Weights (layers, features, probes * classes), of all layers alike, a probe from each generator, and biases
    (layers, 1, probes * classes)."""
    layers, _, size = train.shape
    starts = [torch.empty(size, classes).uniform_(-size**-0.5, size**-0.5, generator=each) for each in generators]
    weights = torch.cat(starts, dim=1).to(train.device).repeat(layers, 1, 1).requires_grad_()
    return weights, torch.zeros_like(weights[:, :1], requires_grad=True)


class _Adam:
    """torch.optim.Adam with a learning rate and an L2 penalty for each column of one tensor.

    As parameter groups the probes would be many small tensors, whose steps take longer than all of their gradients.
    """

    def __init__(self, parameter, rates, penalties):
        self.parameter, self.rates, self.penalties = parameter, rates, penalties
        self.mean, self.square, self.steps = torch.zeros_like(parameter), torch.zeros_like(parameter), 0

    @torch.no_grad()
    def step(self, gradient, betas=(0.9, 0.999), epsilon=1e-8):
        self.steps += 1
        gradient = gradient.addcmul(self.parameter, self.penalties)
        self.mean.lerp_(gradient, 1 - betas[0])
        self.square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        deviation = (self.square / (1 - betas[1] ** self.steps)).sqrt_().add_(epsilon)
        self.parameter.sub_(self.mean.div(deviation).mul_(self.rates / (1 - betas[0] ** self.steps)))


def _scores(features, targets, weights, biases, probes):
    """Cross-entropy and accuracy of every probe, each (layers, probes)."""
    logits = torch.baddbmm(biases, features, weights).unflatten(2, (probes, -1))
    expected = targets[None, :, None, None].expand(*logits.shape[:3], 1)
    loss = -logits.log_softmax(dim=3).gather(3, expected).squeeze(3).mean(dim=1)
    accuracy = (logits.argmax(dim=3, keepdim=True) == expected).squeeze(3).float().mean(dim=1)
    return loss, accuracy
