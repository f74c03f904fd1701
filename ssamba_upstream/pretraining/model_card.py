"""A pretrained checkpoint with its run's description and model card."""

from pathlib import Path

from ..checkpoint import describe_size, write_model
from ..feature_extraction import SsambaFeatureExtractor
from ..files import markdown_table, shown, write_json
from ..training.run_folder import card_header, card_recipe, write_notes


def save_result(model, folder, description, step, validation):
    """Write a checkpoint folder. An existing one is replaced file by file, so it can be loaded at any time."""
    write_model(model, folder)
    write_json(SsambaFeatureExtractor.for_config(model.config).to_dict(), folder / "preprocessor_config.json")
    card = model_card(model, description, step, validation)
    write_notes(folder, description, step, {"validation": validation}, card)


def model_card(model, description, step, validation):
    """Return the checkpoint's README in Markdown, with the Hugging Face hub's header."""
    config, recipe = model.config, description["recipe"]
    seconds = config.front_end.seconds_of(config.pretraining_frames)
    scores = markdown_table(["", ""], [[name.replace("_", " "), shown(value)] for name, value in validation.items()])
    hashes = description["manifests"].items()
    manifests = "\n".join(f"- `{Path(name).name}`, sha256 {digest}" for name, digest in hashes)
    masked = (f"{config.masked_patches} of\n{config.position_grid[0] * config.position_grid[1]} patches masked "
              f"({recipe['masking']} masks, {recipe['objective']})")
    self_supervised = config.contrastive_weight or config.reconstruction_weight
    if recipe.get("teacher_input", "whole") == "whole" and not self_supervised:
        masked = "unmasked"
    taught = f"""
It was trained to predict the hidden states of a teacher, {config.taught_by}.
The licence of the teacher's weights may also apply to these weights.
""" if config.taught_by else ""
    return f"""{card_header(recipe, tags=["audio", "self-supervised", "mamba", "ssamba"])}

# SSAMBA ({describe_size(config)}), pretrained

A Self-Supervised Audio Mamba (arXiv 2405.11831), pretrained with ssamba-upstream: {step} steps of
{recipe["batch_size"]} clips of {seconds:g} s at {config.sampling_rate / 1000:g} kHz, {masked}.
{taught}
```bash
run_downstream.py -u ssamba_local -k FOLDER ...
```

```python
from ssamba_upstream import SsambaModel
model = SsambaModel.from_pretrained("FOLDER")
```

## Figures

Validation at step {step}:

{scores}

## Data

{manifests or "- shards, without a manifest"}

{card_recipe(recipe, "train", "validation", "probe", "teacher", "teacher_outputs")}

`run.json` also records the environment.
"""
