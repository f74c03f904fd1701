"""A fine-tuning run's task: recordings and targets of each split of a labelled set."""

from dataclasses import dataclass

import torch

from ..corpora.labelled import split_labels
from ..network.classification import IGNORED
from ..network.configuration import PUBLISHED_FRONT_END
from ..training.recipe import RecipeError
from .batches import label_targets


@dataclass
class ClassificationTask:
    """A classifier's recordings and targets for training and testing.

    Attributes:
        classes: sorted class names; a class's index is its position.
        paths: recordings of "train", "test" and, if present, "dev".
        targets: targets of each split, see :func:`ssamba_upstream.finetuning.batches.training_batches`.
        seconds: clip length in seconds if each second has a label, otherwise None.
    """

    classes: list[str]
    paths: dict[str, list]
    targets: dict[str, torch.Tensor]
    seconds: int | None = None

    @classmethod
    def of(cls, labelled, recipe, front_end=PUBLISHED_FRONT_END):
        """Return the task that a recipe defines on a labelled set.

        Args:
            labelled: a LabelledSet. If it has folds, all but the recipe's are train.
            recipe: a FinetuningRecipe.
            front_end: the network's front end, which determines the length of a frame.

        Raises:
            RecipeError: If a recording's labels do not suit the problem, train lacks a class, a split has no labelled
                second, or clips with labels of seconds are not whole seconds long.
        """
        seconds = _whole_seconds(recipe.clip_frames, front_end) if recipe.problem == "per_second" else None
        labels = [_names(*row, recipe, seconds) for row in zip(labelled.paths, labelled.labels)]
        classes = sorted({name for names in labels for name in names if name})
        if recipe.problem == "per_second":
            if len(classes) < 2:
                raise RecipeError(f"{recipe.data}: the seconds' classes are {', '.join(classes) or '(none)'}; "
                                  "expected two or more")
            targets = _seconds(labels, classes, seconds)
        else:
            targets = label_targets(labels, classes)
        splits = labelled.splits
        if recipe.fold is not None:
            splits = ["test" if fold == recipe.fold else "train" for fold in splits]
        members = {name: [i for i, split in enumerate(splits) if split == name] for name in dict.fromkeys(splits)}
        if absent := sorted(set(classes) - {name for i in members["train"] for name in labels[i]}):
            raise RecipeError(f"{recipe.data}: no recording of train has the class {absent[0]!r}")
        for split, indices in members.items():
            if (targets[indices] == IGNORED).all():
                raise RecipeError(f"{recipe.data}: no second of {split} has a label. Label some, or move recordings")
        return cls(
            classes,
            {split: [labelled.paths[i] for i in indices] for split, indices in members.items()},
            {split: targets[indices] for split, indices in members.items()},
            seconds,
        )


def _whole_seconds(frames, front_end):
    seconds = int(front_end.seconds_of(frames))
    if not seconds or front_end.frames_in(seconds) != frames:
        valid = ", ".join(str(front_end.frames_in(count)) for count in (1, 10, 60))
        raise RecipeError(f"clip_frames must be whole seconds, such as {valid} for 1, 10, 60; got {frames}")
    return seconds


def _names(path, label, recipe, seconds):
    """Return a recording's classes, or the class of each second up to the clip's end ("" if it does not count)."""
    names = split_labels(label)
    if recipe.problem == "per_second":
        return names[:seconds]
    if "" in names:
        raise RecipeError(f"{recipe.data}: a class in the label {label!r} of {path} has no name")
    if recipe.problem == "single_label" and not names:
        raise RecipeError(f"{recipe.data}: {path} has no label. Give each recording a label for single_label; with "
                          "multi_label, an empty label means that no class is present")
    if recipe.problem == "single_label" and len(names) > 1:
        raise RecipeError(f"{recipe.data}: {path} has the label {label!r}, which is {len(names)} classes. single_label "
                          "allows one per recording, multi_label several, per_second one for each second")
    return names


def _seconds(labels, classes, seconds):
    """Return (recordings, seconds) class indices; seconds without a class are ignored."""
    number = {"": IGNORED, **{name: i for i, name in enumerate(classes)}}
    targets = torch.full((len(labels), seconds), IGNORED)
    for row, names in zip(targets, labels):
        row[:len(names)] = torch.tensor([number[name] for name in names])
    return targets
