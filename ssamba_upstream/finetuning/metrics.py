"""Metrics of a classifier: accuracy, mean average precision, mean area under the ROC curve."""

import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from ..network.classification import IGNORED
from .recipe import METRICS


def evaluate(logits, targets, problem) -> dict:
    """Return the metrics of a problem, from 0 to 1.

    Args:
        logits: ``(clips, classes)``; for ``"per_second"`` ``(clips, seconds, classes)``.
        targets: targets from :func:`~ssamba_upstream.finetuning.batches.evaluation_batches`: ``(clips, classes)`` of 0
            and 1, with one 1 per row for ``"single_label"``; for ``"per_second"`` ``(clips, seconds)`` int64, -100 for
            seconds that do not count.
        problem: ``"single_label"``: ``accuracy``, and ``mAP`` and ``mAUC`` of the softmax probabilities;
            ``"multi_label"``: ``mAP`` and ``mAUC``; ``"per_second"``: ``accuracy`` and ``mAP`` over the seconds that
            count, as for single labels.

    Returns:
        dict of the metrics, None if undefined, and the numbers of classes that ``mAP`` and ``mAUC`` exclude,
        ``mAP_classes_skipped`` and ``mAUC_classes_skipped``.

    Raises:
        ValueError: If shapes or values do not match, there are no clips, or logits are not finite.
    """
    if problem not in METRICS:
        raise ValueError(f"problem must be one of {', '.join(METRICS)}; got {problem!r}")
    logits, targets = logits.detach().cpu().double(), targets.cpu()
    if problem == "per_second":
        logits, targets = _seconds(logits, targets)
    _check(logits, targets, problem)
    scores = logits if problem == "multi_label" else logits.softmax(dim=1)
    metrics = {}
    for name in METRICS[problem]:
        if name == "accuracy":
            metrics[name] = accuracy(scores, targets)
        else:
            metrics[name], metrics[f"{name}_classes_skipped"] = mean_over_classes(name, scores, targets)
    return metrics


def accuracy(scores, targets):
    """Return the share of rows whose highest score is that of their class; None if there are no rows.

    Scores and targets are (rows, classes). A target is 1 for the row's class, otherwise 0.
    """
    if not len(scores):
        return None
    return (scores.argmax(dim=1) == targets.argmax(dim=1)).double().mean().item()


def mean_over_classes(name, scores, targets):
    """Return the mean over classes of the average precision, or of the area under the ROC curve.

    Args:
        name: "mAP", whose precision is summed over steps of recall; or "mAUC".
        scores: ``(rows, classes)``.
        targets: ``(rows, classes)`` of 0 and 1.

    Returns:
        (mean, skipped): the mean over the classes that occur, and for mAUC not in all rows, or None if there are none;
        the number of other classes.
    """
    metric, defined = average_precision_score, targets.any(dim=0)
    if name == "mAUC":
        metric, defined = roc_auc_score, defined & ~targets.all(dim=0)
    values = [metric(truth, score) for truth, score in zip(targets.T[defined].numpy(), scores.T[defined].numpy())]
    return sum(values) / len(values) if values else None, len(defined) - len(values)


def _seconds(logits, targets):
    """Return logits and one-hot targets with one row for each second that counts."""
    if logits.dim() != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(f"expected logits (clips, seconds, classes) and targets (clips, seconds); got shapes "
                         f"{tuple(logits.shape)} and {tuple(targets.shape)}")
    counted = targets != IGNORED
    classes, labels = logits.shape[2], targets[counted]
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"labels of seconds must be classes from 0 to {classes - 1} or {IGNORED}; got "
                         f"{labels.min().item()} to {labels.max().item()}")
    return logits[counted], torch.nn.functional.one_hot(labels, classes)


def _check(logits, targets, problem):
    if logits.shape != targets.shape or logits.dim() != 2 or (not len(logits) and problem != "per_second"):
        raise ValueError(f"expected a row of logits for each row of targets, of the same classes; got logits of shape "
                         f"{tuple(logits.shape)} and targets of shape {tuple(targets.shape)}")
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"{(~finite).sum().item()} of {len(logits)} rows of logits are not finite: training has "
                         "diverged")
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError("evaluation targets must be 0 or 1; mixed targets are for training")
    if problem != "multi_label" and not (targets.sum(dim=1) == 1).all():
        raise ValueError("targets of a single-label problem must have exactly one 1 in each row")
