"""A run's folder: locked while the run lasts, and what it holds beside the weights: recipe, data and environment."""

import json
import platform
import shutil
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path

import torch
import transformers

from ..files import LOCK, file_hash, locked, write_json, write_text
from .recipe import RecipeError
from .training_state import training_states

RUN = "run.json"


@contextmanager
def lock_run(out, processes):
    """Keep other runs out of a run's folder until the end of the context.

    After an error in a new run before its first step, the folder is removed, so that the corrected command can use it.

    Args:
        out: the folder, made if it does not exist.
        processes: see :func:`ssamba_upstream.training.distributed.start_processes`; the first one has the lock.

    Raises:
        BlockingIOError: Another run is writing into the folder.
    """
    if not processes.first:
        yield
        return
    new = not out.exists() or not any(out.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        try:
            yield
        except BaseException:
            if new and not _has_begun(out):
                shutil.rmtree(out)
            raise


def _has_begun(out):
    """True if a run below a folder has logged a step or saved its state."""
    logged = (line for log in out.rglob("log.jsonl") for line in log.read_text().splitlines())
    return (any(not line.startswith('{"step": 0,') for line in logged)
            or any(training_states(folder) for folder in out.rglob("states")))


def describe_run(recipe, **hashes):
    """All that decides a run's result, as JSON can hold it.

    Args:
        recipe: a TrainingRecipe.
        hashes: of what else is read, such as a checkpoint, by its name; these are kept as they are.

    Returns:
        dict of ``recipe``, its fields; ``manifests``, the SHA-256 of each file that the recipe names as a source; the
        hashes given; and ``environment``, versions and device.
    """
    return {
        "recipe": recipe.to_dict(),
        "manifests": {source: file_hash(source) for source in recipe.sources() if Path(source).is_file()},
        **hashes,
        "environment": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def check_continuation(out, description, recipe, resume):
    """Begin a run's folder, or see that a run there is the one described.

    Raises:
        FileExistsError: the folder is there and not empty, and the run is not to be resumed.
        RecipeError: the run that is to be resumed began with another recipe, other manifests, or another of what else
            has a hash in the description.
    """
    file = out / RUN
    if file.exists() and resume:
        began = json.loads(file.read_text())
        # A field that recipes did not have yet is at its default, which changes nothing.
        defaults = {item.name: item.default for item in fields(recipe) if item.default is not MISSING}
        _compare({**defaults, **began["recipe"]}, description["recipe"], recipe.MAY_CHANGE_ON_RESUME, out)
        _compare(_hashes(began), _hashes(description), (), out)
    elif out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise FileExistsError(f"{out} is not empty; resume the run that is there, or give a new folder")
    write_json(description, file)


def write_notes(folder, description, step, scores, card):
    """Write a run's description and a model card beside a checkpoint.

    Args:
        folder: of the checkpoint.
        description: see :func:`describe_run`.
        step: at which the checkpoint was taken.
        scores: by which it may be judged, as JSON can hold them.
        card: in Markdown.
    """
    write_json({**description, "step": step, **scores}, folder / RUN)
    write_text(card, folder / "README.md")


def _hashes(description):
    more = {name: value for name, value in description.items() if name not in ("recipe", "manifests", "environment")}
    return description["manifests"] | more


def _compare(began, now, free, out):
    for name in sorted(began.keys() | now.keys()):
        if name not in free and began.get(name) != now.get(name):
            raise RecipeError(f"the run in {out} began with {name} {began.get(name)!r}, not {now.get(name)!r}; give "
                              "the same again, or a new folder")
