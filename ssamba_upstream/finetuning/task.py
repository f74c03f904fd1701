"""A labelled set as a fine-tuning run reads it: recordings and targets of each split."""

from dataclasses import dataclass

import torch

from ..classification import FRAMES_PER_SECOND, IGNORED
from ..labelled import split_labels
from ..training.recipe import RecipeError
from .data import label_targets


@dataclass
class Task:
    """
    Attributes:
        classes: their names, sorted; a class's place is its index.
        paths: the recordings of "train", "test" and, where there is one, "dev".
        targets: of each split, see :func:`ssamba_upstream.finetuning.data.training_batches`.
    """

    classes: list[str]
    paths: dict[str, list]
    targets: dict[str, torch.Tensor]

    @classmethod
    def of(cls, labelled, recipe):
        """
        Args:
            labelled: a LabelledSet; of one with folds, all but the recipe's are train.
            recipe: a FinetuningRecipe.

        Raises:
            RecipeError: a recording whose labels do not fit the problem, or a class that train lacks.
        """
        labels = labelled.labels
        labels = [[label] if recipe.problem == "single_label" else split_labels(label) for label in labels]
        classes = sorted({name for names in labels for name in names})
        if recipe.problem == "per_second":
            targets = _seconds(labels, classes, recipe)
        else:
            targets = label_targets(labels, classes)
        splits = labelled.splits
        if recipe.fold is not None:
            splits = ["test" if fold == recipe.fold else "train" for fold in splits]
        members = {name: [i for i, split in enumerate(splits) if split == name] for name in dict.fromkeys(splits)}
        heard = {name for i in members["train"] for name in labels[i]}
        if absent := sorted(set(classes) - heard):
            raise RecipeError(f"{recipe.data}: no recording of train has the class {absent[0]!r}")
        return cls(
            classes,
            {split: [labelled.paths[i] for i in indices] for split, indices in members.items()},
            {split: targets[indices] for split, indices in members.items()},
        )


def _seconds(labels, classes, recipe):
    """(recordings, seconds) of classes; what is beyond the clip is left out, what a shorter recording lacks ignored."""
    seconds, number = recipe.clip_frames // FRAMES_PER_SECOND, {name: i for i, name in enumerate(classes)}
    targets = torch.full((len(labels), seconds), IGNORED)
    for row, names in zip(targets, labels):
        found = torch.tensor([number[name] for name in names[:seconds]])
        row[:len(found)] = found
    return targets
