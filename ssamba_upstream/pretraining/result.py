"""What a run leaves beside its weights: recipe, data, environment and a model card."""

import json
import platform
from pathlib import Path

import torch
import transformers

from ..checkpoint import save_model
from ..files import replacing
from .manifest import manifest_hash
from .recipe import Recipe, RecipeError

RUN = "run.json"


def describe_run(recipe):
    """What decides a run's result, as JSON can hold it: recipe, hashes of its manifests, environment."""
    manifests = [source for source in (*recipe.train, *recipe.validation) if Path(source).is_file()]
    return {
        "recipe": recipe.to_dict(),
        "manifests": {source: manifest_hash(source) for source in manifests},
        "environment": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def check_continuation(out, description, resume):
    """Begin a run's folder, or see that a run there is the one described.

    Raises:
        FileExistsError: the folder is there and not empty, and the run is not to be resumed.
        RecipeError: the run that is to be resumed began with another recipe or other manifests.
    """
    file = out / RUN
    if file.exists() and resume:
        began = json.loads(file.read_text())
        _compare(began["recipe"], description["recipe"], Recipe.FREE, out)
        _compare(began["manifests"], description["manifests"], (), out)
    elif out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; resume the run that is there, or give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(description, file)


def save_result(model, folder, description, step, validation):
    """Write a checkpoint folder with its run's description and a model card; one that is there is replaced file by
    file, so that it can be loaded at any moment."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    save_model(model, folder / "model.safetensors")
    write_json(model.config.to_dict(), folder / "config.json")
    write_json({**description, "step": step, "validation": validation}, folder / RUN)
    _write(model_card(model, description, step, validation), folder / "README.md")


def model_card(model, description, step, validation):
    """The checkpoint's README in Markdown, with the Hugging Face hub's header."""
    config, recipe = model.config, description["recipe"]
    scores = "\n".join(f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in validation.items())
    hashes = description["manifests"].items()
    manifests = "\n".join(f"- `{Path(name).name}`, sha256 {digest}" for name, digest in hashes)
    return f"""---
library_name: transformers
tags: [audio, self-supervised, mamba, ssamba]
---

# SSAMBA {config.size or f"of width {config.hidden_size}"}, pretrained

A Self-Supervised Audio Mamba (arXiv 2405.11831), pretrained with ssamba-upstream: {step} steps of
{recipe["batch_size"]} clips of {config.pretraining_frames / 100:g} s at 16 kHz, {config.masked_patches} of
{config.position_grid[0] * config.position_grid[1]} patches masked ({recipe["masking"]} masks, {recipe["objective"]}).

```bash
run_downstream.py -u ssamba_local -k FOLDER ...
```

```python
from ssamba_upstream import SsambaModel
model = SsambaModel.from_pretrained("FOLDER")
```

Validation at step {step}:

| | |
|---|---|
{scores}

Manifests:

{manifests or "- none; the run read shards"}

`run.json` holds the whole recipe and the environment.
"""


def write_json(content, path):
    _write(json.dumps(content, indent=2) + "\n", path)


def _write(text, path):
    with replacing(path) as temporary:
        temporary.write_text(text)


def _compare(began, now, free, out):
    for name in sorted(began.keys() | now.keys()):
        if name not in free and began.get(name) != now.get(name):
            raise RecipeError(f"the run in {out} began with {name} {began.get(name)!r}, not {now.get(name)!r}; give "
                              "the same again, or a new folder")
