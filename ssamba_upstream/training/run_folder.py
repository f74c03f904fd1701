"""A run's folder: its lock, and the description of recipe, data and environment and the card stored with weights."""

import json
import platform
import shutil
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path

import torch
import transformers
import yaml
from huggingface_hub import ModelCardData

from ..files import LOCK, file_hash, locked, write_json, write_text
from .recipe import RecipeError
from .training_state import training_states

RUN = "run.json"


@contextmanager
def lock_run(out, processes):
    """Keep other runs out of a run's folder until the end of the context.

    The folder is created if missing, and the first process holds the lock. If another run holds it, a BlockingIOError
    is raised. If a new run fails before its first step, the folder is removed, so that the corrected command can use
    it.
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
    """Return True if a run in or below a folder has logged a step or saved its state."""
    logged = (line for log in out.rglob("log.jsonl") for line in log.read_text().splitlines())
    return (any(not line.startswith('{"step": 0,') for line in logged)
            or any(training_states(folder) for folder in out.rglob("states")))


def describe_run(recipe, **hashes):
    """Return everything that determines a run's result, as JSON-compatible values.

    These are ``recipe``, its fields; ``manifests``, the SHA-256 of each of its source files; ``environment``, versions
    and device; and the given hashes of other inputs, such as a checkpoint.
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
    """Start a run's folder, or check that the run in it matches the description.

    Raises:
        FileExistsError: If the folder is not empty and the run is not to be resumed.
        RecipeError: If the run to resume started with another recipe, other manifests, or other hashes in the
            description.
    """
    file = out / RUN
    if file.exists() and resume:
        began = json.loads(file.read_text())
        # Fields added to recipes since then have their defaults, which change nothing.
        defaults = {item.name: item.default for item in fields(recipe) if item.default is not MISSING}
        _compare({**defaults, **began["recipe"]}, description["recipe"], recipe.MAY_CHANGE_ON_RESUME, out)
        _compare(_hashes(began), _hashes(description), (), out)
    elif out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise FileExistsError(f"{out} is not empty. Resume the run in it, or choose a new folder")
    write_json(description, file)


def write_notes(folder, description, step, scores, card):
    """Write a run's description, with the step and scores of the checkpoint in a folder, and a model card into it."""
    write_json({**description, "step": step, **scores}, folder / RUN)
    write_text(card, folder / "README.md")


def card_header(recipe, **fields):
    """Return a model card's header for the Hugging Face hub, with a recipe's license and other fields."""
    data = ModelCardData(library_name="transformers", license=recipe["license"], **fields)
    return f"---\n{data.to_yaml()}\n---"


def card_recipe(recipe, *paths):
    """Return a recipe, given as a dict, as Markdown, without the fields that name files on the run's machine."""
    shown = {name: value for name, value in recipe.items() if name not in paths}
    return f"## Recipe\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"


def _hashes(description):
    more = {name: value for name, value in description.items() if name not in ("recipe", "manifests", "environment")}
    return description["manifests"] | more


def _compare(began, now, free, out):
    for name in sorted(began.keys() | now.keys()):
        if name not in free and began.get(name) != now.get(name):
            raise RecipeError(f"the run in {out} started with {name} {began.get(name)!r}, not {now.get(name)!r}. Use "
                              "the same value, or choose a new folder")
