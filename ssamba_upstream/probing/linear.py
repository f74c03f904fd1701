"""Linear probes: a multinomial logistic regression on each layer, trained to convergence."""

import math
from collections import Counter
from dataclasses import dataclass
from statistics import mean

import torch
import torch.nn.functional as F

from ..corpora.labelled import members_of_splits, rotate_folds

PENALTIES = tuple(10.0**-power for power in range(1, 11))  # multiplied by the number of features
PRECISION = 1e-3  # distance from the minimum, as a share of the objective
ITERATIONS_BETWEEN_CHECKS = 5
DRAWS = 1000
VALUES_AT_ONCE = 2**24  # features and logits of a chunk of utterances


@dataclass(frozen=True)
class ProbeResults:
    """Each layer's probe, with the penalty chosen on dev; lists have one entry per layer.

    Attributes:
        dev_accuracy, dev_loss: accuracy and cross-entropy on dev.
        penalty: the chosen penalty, see :func:`train_probes`.
        test_right: for each test utterance, in order, True if the probe classifies it correctly.
    """

    dev_accuracy: list[float]
    dev_loss: list[float]
    penalty: list[float]
    test_right: list[list[bool]]

    @property
    def test_accuracy(self):
        """Test accuracy of each layer."""
        return [mean(right) for right in self.test_right]

    @property
    def best_layer(self):
        """The layer with the lowest dev loss."""
        return min(range(len(self.dev_loss)), key=self.dev_loss.__getitem__)

    @property
    def best_test_accuracy(self):
        """Test accuracy of the layer chosen on dev."""
        return self.test_accuracy[self.best_layer]


@dataclass(frozen=True)
class CrossValidation:
    """:class:`ProbeResults` by fold name, with that fold as the test set."""

    folds: dict[str, ProbeResults]

    @property
    def test_accuracy(self):
        """Test accuracy of each layer, averaged over the folds."""
        by_fold = [results.test_accuracy for results in self.folds.values()]
        return [mean(accuracies) for accuracies in zip(*by_fold)]

    @property
    def best_test_accuracy(self):
        """Test accuracy of the layer chosen on each fold's own dev part, averaged over the folds.

        A single layer chosen on all dev parts together would be chosen with the test labels, because every fold is
        another fold's dev part.
        """
        return mean(results.best_test_accuracy for results in self.folds.values())


def train_probes(features, labels, splits, penalties=PENALTIES, device=None):
    """Train a linear probe on each layer, and choose its penalty on dev.

    A probe is a multinomial logistic regression on features standardised by train's mean and standard deviation. It
    minimises the mean cross-entropy on train plus ``penalty * features / 2`` times the squared norm of its weights
    (the bias is not penalised). The problem is convex: L-BFGS on all of train brings the objective to within 0.1 % of
    its minimum, so results do not depend on a random start. Penalties are tried from the strongest to the weakest,
    each starting from the previous solution, until the dev loss rises.

    Memory holds one layer at a time in float32, and one chunk of its logits.

    Args:
        features: (layers, utterances, features), for example from :func:`ssamba_upstream.probing.time_averages`.
        labels: class of each utterance.
        splits: "train", "dev" or "test" for each utterance.
        penalties: penalties to try, from strong to weak. Default: 0.1, 0.01, ..., 1e-10.
        device: device that the probes are trained on. Default: the features' device.

    Returns:
        ProbeResults.

    Raises:
        ValueError: If the sizes do not match, a split is empty, dev or test has a class that train lacks, or a feature
            is not finite.
    """
    targets, parts = _checked(features, labels, splits)
    device = device or features.device
    targets = [targets[members].to(device) for members in parts.values()]
    probes = [_probe_layer(_standardised(layer, parts, device), targets, penalties, features.shape[2])
              for layer in features]
    return ProbeResults(*map(list, zip(*probes)))


def cross_validate(features, labels, folds, **options):
    """Train the probes with each fold in turn as test, the next (in sorted order) as dev and the others as train.

    Args:
        features, labels: see :func:`train_probes`.
        folds: name of each utterance's fold; three or more folds.
        options: other arguments of :func:`train_probes`.

    Returns:
        CrossValidation.

    Raises:
        ValueError: If there are fewer than three folds; see also :func:`train_probes`.
    """
    return CrossValidation({
        test: train_probes(features, labels, splits, **options) for test, splits in rotate_folds(folds)
    })


def accuracy_intervals(right, folds, groups, seed=0):
    """Return 95 % confidence intervals of accuracies, by bootstrap over the groups of the test utterances.

    All groups are resampled with replacement 1000 times. An interval runs from the 2.5 % to the 97.5 % quantile of the
    accuracy. All accuracies use the same draws.

    Args:
        right: (accuracies, utterances), True if an utterance is classified correctly.
        folds: fold of each utterance; an accuracy is the mean over the folds.
        groups: group of each utterance, such as its speaker. Utterances of a group are not independent, so they are
            drawn together.
        seed: seed of the draws.

    Returns:
        [low, high] for each accuracy, or None for each if there is only one group.
    """
    sizes, numbers = Counter(folds), {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) == 1:
        return [None] * len(right)
    weights = torch.tensor([1 / sizes[fold] for fold in folds], dtype=torch.float64)
    weights = torch.stack([weights, *(torch.tensor(row) * weights for row in right)])
    by_group = torch.zeros(len(weights), len(numbers), dtype=torch.float64)
    by_group.index_add_(1, torch.tensor([numbers[group] for group in groups]), weights)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(DRAWS):
        members = torch.randint(len(numbers), (len(numbers),), generator=generator)
        sums = by_group @ members.bincount(minlength=len(numbers)).double()
        drawn.append(sums[1:] / sums[0])
    return torch.stack(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).T.tolist()


def _checked(features, labels, splits):
    """Return the class index of each utterance, and the indices of each split's utterances."""
    if features.dim() != 3 or not features.shape[1] == len(labels) == len(splits):
        raise ValueError("features must be (layers, utterances, features), with a label and a split for each utterance;"
                         f" got {tuple(features.shape)}, {len(labels)} labels and {len(splits)} splits")
    parts = members_of_splits(splits)
    classes = sorted({labels[i] for i in parts["train"]})
    unknown = sorted({labels[i] for i in parts["dev"] + parts["test"]} - set(classes))
    if unknown:
        raise ValueError(f"dev or test has classes that train lacks: {', '.join(unknown[:3])}")
    number = {label: i for i, label in enumerate(classes)}
    return torch.tensor([number.get(label, -1) for label in labels]), parts


def _standardised(layer, parts, device):
    """Return (members, features + 1) for each split: features standardised by train's statistics, and a bias column.

    If train has fewer utterances than features, the features are projected onto the span of train's utterances, which
    contains the optimal weights; the penalty is unchanged.
    """
    train, *held_out = (layer[members].to(device, torch.float32) for members in parts.values())
    if not all(part.isfinite().all() for part in (train, *held_out)):
        raise ValueError("the features contain NaN or infinite values. Check that the checkpoint is intact")
    deviation, average = torch.std_mean(train, dim=0, correction=0)
    # Features that are constant in train up to rounding carry no information, and would blow up in dev and test.
    deviation = deviation.masked_fill(deviation <= 1e-6 * average.abs(), math.inf)
    found = [part.sub_(average).div_(deviation) for part in (train, *held_out)]
    if len(train) < train.shape[1]:
        span = torch.linalg.qr(train.T).Q
        found = [part @ span for part in found]
    return [F.pad(part, (0, 1), value=1.0) for part in found]


def _probe_layer(parts, targets, penalties, size):
    """Return the fields of ProbeResults for one layer of ``size`` features, from its standardised splits."""
    train, dev, test = zip(parts, targets)
    weights = train[0].new_zeros(train[0].shape[1], int(train[1].max()) + 1)
    lowest, chosen = math.inf, None
    for penalty in penalties:
        weights = _minimise(*train, weights, size * penalty)
        loss, right = _evaluate(*dev, weights)
        if loss >= lowest:
            break
        lowest, chosen = loss, (mean(right), loss, penalty, weights)
    *found, weights = chosen
    return [*found, _evaluate(*test, weights)[1]]


def _minimise(features, targets, weights, penalty):
    """Return the weights (features, classes) that minimise the objective, starting from the given ones."""
    # The objective's least curvature bounds its distance from the minimum by the gradient's norm. It comes from the
    # penalty; for the unpenalised bias, from the loss while classes are undecided.
    least = min(penalty, 1 / weights.shape[1])
    factor = _curvature_factor(features, weights, penalty, least)
    scaled = (factor.T @ weights).contiguous()  # the objective's curvature is similar in all directions
    optimizer = torch.optim.LBFGS([scaled], max_iter=ITERATIONS_BETWEEN_CHECKS, history_size=10,
                                  line_search_fn="strong_wolfe")
    found = []

    def evaluate():
        loss, gradient = _objective(features, targets, _unscaled(factor, scaled), penalty)
        found.append((loss, gradient.square().sum().item() / (2 * least)))
        scaled.grad = torch.linalg.solve_triangular(factor, gradient, upper=False).contiguous()
        return loss

    before = math.inf
    while True:
        found.clear()
        optimizer.step(evaluate)
        loss, distance = found[0]
        if distance <= PRECISION * loss or loss >= before:  # or as close as float32 allows
            return _unscaled(factor, scaled)
        before = loss


def _unscaled(factor, scaled):
    return torch.linalg.solve_triangular(factor.T, scaled, upper=True)


def _curvature_factor(features, weights, penalty, least):
    """Return the Cholesky factor of the objective's curvature in the features, averaged over the classes.

    The Hessian is the penalty plus the mean over utterances of the Kronecker product of x x^T and diag(p) - p p^T,
    where p are the class probabilities. The second factor is replaced by the mean of its eigenvalues.
    """
    curvature = features.new_zeros(2 * features.shape[1:])
    for chunk in features.split(_rows_at_once(weights)):
        undecided = 1 - (chunk @ weights).softmax(dim=1).square().sum(dim=1, keepdim=True).clamp(max=1)
        curvature.addmm_((chunk * undecided).T, chunk)
    curvature /= len(features) * weights.shape[1]
    diagonal = curvature.diagonal()
    diagonal += 1e-6 * diagonal.sum()  # more than rounding errors
    diagonal[:-1] += penalty
    diagonal[-1] += least
    return torch.linalg.cholesky(curvature)


def _objective(features, targets, weights, penalty):
    """Return the mean cross-entropy plus the penalty, as a float, and its gradient."""
    rows = _rows_at_once(weights)
    loss, gradient = 0.0, torch.zeros_like(weights)
    for chunk, expected in zip(features.split(rows), targets[:, None].split(rows)):
        log_probabilities = (chunk @ weights).log_softmax(dim=1)
        loss -= log_probabilities.gather(1, expected).sum(dtype=torch.float64).item()
        excess = log_probabilities.exp_()
        excess.scatter_add_(1, expected, -torch.ones_like(expected, dtype=excess.dtype))
        gradient.addmm_(chunk.T, excess)
    gradient /= len(features)
    gradient[:-1] += penalty * weights[:-1]
    return loss / len(features) + penalty / 2 * weights[:-1].square().sum().item(), gradient


def _evaluate(features, targets, weights):
    """Return the mean cross-entropy, and for each utterance whether it is classified correctly."""
    rows, loss, right = _rows_at_once(weights), 0.0, []
    for chunk, expected in zip(features.split(rows), targets.split(rows)):
        logits = chunk @ weights
        loss += F.cross_entropy(logits, expected, reduction="sum").item()
        right += (logits.argmax(dim=1) == expected).tolist()
    return loss / len(features), right


def _rows_at_once(weights):
    return max(1, VALUES_AT_ONCE // sum(weights.shape))
