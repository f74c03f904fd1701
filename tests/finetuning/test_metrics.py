"""Metrics, compared with slow definitions and cases worked by hand."""

import math

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn (the extra `finetuning`) is not installed")

from ssamba_upstream.finetuning.metrics import accuracy, evaluate, mean_over_classes  # noqa: E402


def slow_average_precision(scores, truth):
    """Sum, over distinct scores from the highest, the recall gained at a score times the precision there."""
    average, found = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        accepted = [hit for score, hit in zip(scores, truth) if score >= threshold]
        average += (sum(accepted) - found) / sum(truth) * sum(accepted) / len(accepted)
        found = sum(accepted)
    return average


def slow_auc(scores, truth):
    """Return the fraction of positive-negative pairs in which the positive scores higher; a tie counts half."""
    positive = [score for score, hit in zip(scores, truth) if hit]
    negative = [score for score, hit in zip(scores, truth) if not hit]
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def test_a_ranking_worked_by_hand():
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    targets = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
    # Precision at the three positives: 1/1, 2/3, 3/5. Pairs won: 2 + 1 + 0 of 6.
    assert mean_over_classes("mAP", scores, targets) == (pytest.approx((1 + 2 / 3 + 3 / 5) / 3), 0)
    assert mean_over_classes("mAUC", scores, targets) == (pytest.approx(1 / 2), 0)


@pytest.mark.parametrize("ties", [False, True])
def test_means_are_those_of_the_slow_definitions(ties):
    scores = torch.randn(60, 9).double()
    if ties:
        scores = scores.mul(2).round()
    targets = (torch.rand(60, 9) < 0.2).float()
    targets[0], targets[1] = 1, 0
    columns = list(zip(scores.T.tolist(), targets.T.tolist()))
    precision, skipped = mean_over_classes("mAP", scores, targets)
    assert (precision, skipped) == (pytest.approx(sum(slow_average_precision(*column) for column in columns) / 9), 0)
    area, skipped = mean_over_classes("mAUC", scores, targets)
    assert (area, skipped) == (pytest.approx(sum(slow_auc(*column) for column in columns) / 9), 0)


def test_classes_that_cannot_be_judged_are_skipped_and_counted():
    scores = torch.tensor([[0.9, 0.3, 0.1], [0.2, 0.4, 0.2], [0.6, 0.1, 0.3]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    assert mean_over_classes("mAP", scores, targets) == (1.0, 1)  # the second class has no positives
    assert mean_over_classes("mAUC", scores, targets) == (1.0, 2)  # and the third no negatives
    assert mean_over_classes("mAP", scores[:, :2], targets[:, :2]) == (1.0, 1)
    assert mean_over_classes("mAUC", scores[:, 1:], targets[:, 1:]) == (None, 2)


def test_accuracy_by_hand():
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, -1.0], [5.0, 4.0]])
    assert accuracy(scores, torch.tensor([[1, 0], [1, 0], [0, 1], [1, 0]])) == 0.5


def test_single_labels_are_judged_by_probabilities():
    # By the logits of class 0, the second row ranks first; by its probabilities, the first does.
    logits = torch.tensor([[1.0, -5.0, -5.0], [2.0, 4.0, -5.0], [0.0, 3.0, -5.0]])
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert evaluate(logits, targets, "single_label") == {
        "accuracy": 1.0, "mAP": 1.0, "mAP_classes_skipped": 1, "mAUC": 1.0, "mAUC_classes_skipped": 1}
    assert evaluate(logits, targets, "multi_label")["mAP"] == pytest.approx((1 / 2 + 1) / 2)


def test_many_labels_have_no_accuracy():
    logits, targets = torch.randn(50, 6, dtype=torch.bfloat16), (torch.rand(50, 6) < 0.3).float()
    metrics = evaluate(logits.requires_grad_(), targets, "multi_label")
    columns = list(zip(logits.tolist(), targets.tolist()))
    columns = list(zip(zip(*(row for row, _ in columns)), zip(*(row for _, row in columns))))
    assert metrics == {
        "mAP": pytest.approx(sum(slow_average_precision(*column) for column in columns) / 6),
        "mAP_classes_skipped": 0,
        "mAUC": pytest.approx(sum(slow_auc(*column) for column in columns) / 6), "mAUC_classes_skipped": 0}


def test_seconds_without_a_label_do_not_count():
    logits = torch.randn(4, 6, 3)
    targets = torch.randint(0, 3, (4, 6))
    targets[1, 3:] = -100
    logits[1, 3:] = math.nan
    metrics = evaluate(logits, targets, "per_second")
    rows = [(logits[i, j].softmax(0).tolist(), targets[i, j].item()) for i in range(4) for j in range(6)
            if targets[i, j] != -100]
    assert len(rows) == 21
    right = sum(max(range(3), key=scores.__getitem__) == label for scores, label in rows)
    precisions = [slow_average_precision([scores[number] for scores, _ in rows], [label == number for _, label in rows])
                  for number in range(3)]
    assert metrics == {"accuracy": pytest.approx(right / 21), "mAP": pytest.approx(sum(precisions) / 3, abs=1e-6),
                       "mAP_classes_skipped": 0}


def test_what_cannot_be_judged_is_refused():
    logits, targets = torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    with pytest.raises(ValueError, match="one of single_label, multi_label, per_second; got 'regression'"):
        evaluate(logits, targets, "regression")
    with pytest.raises(ValueError, match=r"\(4, 3\) and targets of shape \(3, 3\)"):
        evaluate(logits, torch.eye(3), "single_label")
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        evaluate(logits[:0], targets[:0], "single_label")
    with pytest.raises(ValueError, match="1 of 4 rows of logits are not finite: training has diverged"):
        evaluate(logits.index_fill(0, torch.tensor([2]), math.nan), targets, "single_label")
    with pytest.raises(ValueError, match="mixed targets are for training"):
        evaluate(logits, targets * 0.4, "multi_label")
    with pytest.raises(ValueError, match="exactly one 1 in each row"):
        evaluate(logits, torch.ones(4, 3), "single_label")
    seconds = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) and \(2, 5\)"):
        evaluate(torch.zeros(2, 4, 3), seconds, "per_second")
    with pytest.raises(ValueError, match="from 0 to 2 or -100; got 0 to 3"):
        evaluate(torch.zeros(2, 5, 3), seconds.index_fill(1, torch.tensor([1]), 3), "per_second")


def test_without_a_second_that_counts_nothing_is_defined():
    metrics = evaluate(torch.zeros(2, 5, 3), torch.full((2, 5), -100), "per_second")
    assert metrics == {"accuracy": None, "mAP": None, "mAP_classes_skipped": 3}
